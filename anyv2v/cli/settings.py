"""The settings of a command: as given, else the weights' own, or with --paper the original's."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from anyv2v.backbones.base import Backbone, Defaults
from anyv2v.cli.values import AUTO, OFF
from anyv2v.diffusion.inversion import METHODS
from anyv2v.errors import InputError
from anyv2v.injection.fractions import USUAL, Injection
from anyv2v.injection.presets import PRESETS, Preset
from anyv2v.pipeline.inverting import STEPS
from anyv2v.pipeline.planning import recording_is_free

PAPER = {"feature_memory": 0, "window": 0, "protect": OFF, "guide": OFF}
"""Settings of --paper, for any backbone, besides those of the inversion."""
GUIDED, GUIDED_BY_PIXELS = {AUTO: 0.08}, 0.3
"""Part of the steps after which an edit under a guide begins, where --start does not say so. In
the first steps a guess is lost in the noise; the later it begins, the more a wrong guess costs."""
PAPER_INVERSION = {"method": "ddim", "inversion_steps": 500, "inversion_prompt": ""}
"""Settings of --paper for the inversion, for any backbone."""


def fill(args: Namespace, own: Defaults, original: Defaults, inverted: bool = False) -> list[str]:
    """Fills the options in `args` that were not given; returns messages to be shown to the user.

    own: the defaults of the weights. original: the defaults with --paper, those of the original
    code. inverted: VIDEO is a source (an inverted video), so that the options of an inversion stay
    empty. `args` also gets the attributes `own` (the defaults that were used), `injection` (an
    `Injection` of all groups), `called` (injection group -> the option that gave its fraction) and
    `options` (name -> value of each --option). Raises InputError for options that contradict each
    other.
    """
    args.own = own = original if args.paper else own
    args.options = _options(args)
    _make_way_for_preset(args)
    args.called = _sort_groups(args)
    if getattr(args, "guidance", None) is not None:
        args.guidance = own.scales(args.guidance)
    others = []
    for name, value in _left(args, own, inverted).items():
        if not hasattr(args, name):
            continue
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif getattr(args, name) != value:
            others.append(name)
        elif (option := _option(name)) in args.filed:
            # a sidecar states the weights' own value, too; that does not count as given
            args.given.discard(option)
    args.called = {g: name for g, name in args.called.items() if name.split()[0] in args.given}
    args.injection = Injection.none()
    if hasattr(args, "inject"):
        usual = {name: getattr(args, name) for name in USUAL}
        args.inject = {**_others(own), **args.inject}
        args.injection = Injection(**usual, **args.inject)
    return [*_lacking(args, own), *_beside_paper(args, others)]


def of_the_inversion(args: Namespace) -> tuple[str, int]:
    """Returns the method of the inversion, such as "fixed-point", and its number of steps."""
    method = args.method or next(iter(METHODS))
    steps = args.inversion_steps or STEPS.get(method) or getattr(args, "steps", args.own.steps)
    return method, steps


def passes(args: Namespace, backbone: Backbone) -> bool:
    """Whether the inversion computes the features that the edit injects, and so can record them."""
    method, steps = of_the_inversion(args)
    return recording_is_free(backbone, method, steps, getattr(args, "steps", steps), args.options)


def seed_of_the_sampler(args: Namespace, backbone: Backbone) -> frozenset[str]:
    """Returns {"seed"} if the sampler adds noise, which --seed draws, and else the empty set."""
    sampler = backbone.sampler(backbone.options(args.options))
    first, second, *_ = sampler.levels(2)
    return frozenset({"seed"} if sampler.coefficients(first, second).noise else ())


def of_the_run(args: Namespace) -> dict[str, Any]:
    """Returns the keyword arguments that `Editor.step_plan` and the run itself share."""
    # with --paper and --feature-memory, features are recorded, and then they are replayed
    always = args.paper and not getattr(args, "feature_memory", None)
    return {
        "steps": args.steps,
        "start": args.start,
        "injection": args.injection,
        "source_pass": "always" if always else "shared",
        "options": args.options,
    }


def _left(args: Namespace, own: Defaults, inverted: bool) -> dict[str, Any]:
    """Option -> the value that it has where it is not given."""
    fractions = own.injection.fractions
    if preset := _preset(args):
        # a group that the network lacks keeps no fraction, which `_lacking` tells
        fractions |= {name: x for name, x in preset.fractions.items() if name in fractions}
    values: dict[str, Any] = {name: fractions.get(name) for name in USUAL}
    values |= {"inject": _others(own), "steps": own.steps}
    values |= {"guidance": own.guidance, "negative_prompt": own.negative_prompt}
    values["start"] = 0 if args.command == "reconstruct" else _start(args, own)
    values |= {"window": own.frames, "protect": AUTO if own.protect else OFF}
    values |= {"guide": own.guide or OFF}
    if args.paper:
        values |= PAPER if inverted else PAPER | PAPER_INVERSION
    elif args.command == "reconstruct":
        values |= {"guidance": own.scales(1.0), "negative_prompt": ""}
    if inverted:
        # a source is one window, however long it is
        del values["window"]
    return values


def _preset(args: Namespace) -> Preset | None:
    return PRESETS.get(getattr(args, "preset", None) or "")


def _make_way_for_preset(args: Namespace) -> None:
    """Takes from `args` what a file of --config says of the settings of a later --preset."""
    if "preset" not in args.given - args.filed:
        return
    for name in args.filed & {"start", *USUAL}:
        setattr(args, name, None)
        args.given.discard(name)
    if "inject" in args.filed:
        args.inject = {name: x for name, x in args.inject.items() if name not in USUAL}


def _lacking(args: Namespace, own: Defaults) -> list[str]:
    """A line for each group of a preset that the network has not."""
    preset = _preset(args)
    groups = preset.fractions if preset else {}
    lacking = [name for name in groups if name not in own.injection.fractions]
    return [f"--preset {args.preset}: this model has no {name} to inject" for name in lacking]


def _start(args: Namespace, own: Defaults) -> int:
    """The preset's or the weights' own first step or, under a guide, one that gives it weight."""
    steps = getattr(args, "steps", None) or own.steps
    first = preset.start_of(steps) if (preset := _preset(args)) else own.start_of(steps)
    guide = getattr(args, "guide", None) or (not args.paper and own.guide) or OFF
    part = 0.0 if guide == OFF else GUIDED.get(guide, GUIDED_BY_PIXELS)
    return max(first, int(part * steps))


def _others(own: Defaults) -> dict[str, float]:
    """The injection groups without an option of their own, and their fractions."""
    return {name: x for name, x in own.injection.fractions.items() if name not in USUAL}


def _sort_groups(args: Namespace) -> dict[str, str]:
    """Moves groups of --inject to their own option if they have one; group -> option given."""
    called = {name: name for name in USUAL if getattr(args, name, None) is not None}
    given = dict(getattr(args, "inject", None) or {})
    if "sites" in given:
        raise InputError("--inject sites=: no group of features is called sites")
    for name in given:
        if name not in called or _winner(args, name, "inject", name) == "inject":
            called[name] = f"inject {name}"
    for name in USUAL:
        if name in given:
            value = given.pop(name)
            if called[name] != name:
                setattr(args, name, value)
    if hasattr(args, "inject"):
        args.inject = given or None
    return called


def _options(args: Namespace) -> dict[str, object]:
    options: dict[str, object] = {}
    for text in args.option or []:
        name, _, value = text.partition("=")
        if name in options:
            raise InputError(f"--option {name}: is given twice")
        options[name] = _value(value)
    if args.fps is not None:
        if "fps" not in options or _winner(args, "fps", "option", "fps") == "fps":
            options["fps"] = args.fps
    return options


def _winner(args: Namespace, one: str, other: str, name: str) -> str:
    """Which of two options for one value counts: the command line's over the file's."""
    filed = {one, other} & args.filed
    if len(filed) != 1:
        raise InputError(f"--{one} and --{other} {name}= exclude each other")
    return ({one, other} - filed).pop()


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if abs(number) < float("inf"):
            return number
    return text


def _beside_paper(args: Namespace, others: list[str]) -> list[str]:
    if not args.paper:
        return []
    given = [_option(name) for name in others]
    given += [name for name in ("fit", "preset") if name in args.given]
    if not given:
        return []
    *others, last = [f"--{name}" for name in given]
    names = f"{', '.join(others)} and {last}" if others else last
    return [f"--paper: {names} as given, in place of the original's"]


def _option(name: str) -> str:
    return name.replace("_", "-")
