"""The command line's commands and options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NoReturn

import anyv2v
from anyv2v.cli import first_frame
from anyv2v.cli.config_file import options_of
from anyv2v.cli.model import OFFLOADS
from anyv2v.diffusion.inversion import METHODS, TOLERANCE
from anyv2v.errors import InputError
from anyv2v.injection.fractions import USUAL
from anyv2v.loading import DEMO
from anyv2v.media.image import FITS
from anyv2v.pipeline.inverting import STEPS
from anyv2v.weights.demo.scenes import KINDS

DTYPE_NAMES = ("float32", "float16", "bfloat16")
NOT_IN_FILES = ("help", "list", "config")
"""Options that a file of --config cannot have."""
NOT_SETTINGS = (*NOT_IN_FILES, "force", "quiet", "debug")
"""Options that say nothing of what comes out."""
OWN = "(default: the weights' own, I2VGen-XL: {})"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None):
        known, rest = self.parse_known_args(args, namespace)
        if rest and not rest[0].startswith("-"):
            raise InputError(f"{rest[0]!r} is one argument too many (see {known.prog} --help)")
        if rest:
            raise InputError(f"there is no option {rest[0]} (see {known.prog} --help)")
        return known

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does; options that are not given come from the file of --config first."""
        if "--config" not in self._option_string_actions:
            return super().parse_known_args(args, namespace)
        # no option may be abbreviated, and none may stand where a value is due
        given = {word[2:].partition("=")[0] for word in args if word.startswith("--")}
        if (path := _config_of(args)) is None:
            known, rest = super().parse_known_args(args, namespace)
            known.given, known.filed = given, set()
            return known, rest
        mine = [a for a in self._actions if a.dest not in NOT_IN_FILES]
        found, unused = options_of(path, mine, self.names)
        filed = {a.dest.replace("_", "-") for a, value in found.items() if value != a.default}
        for action in found:
            # None where it is not given; nobody can give that
            action.required, action.default = False, None
            if not action.option_strings:
                action.nargs = "?"
        known, rest = super().parse_known_args(args, namespace)
        for action, value in found.items():
            if getattr(known, action.dest) is None and not action.option_strings:
                # argparse fills all that may be left out before the first option
                later = [word for word in rest if not word.startswith("-")]
                value = later[0] if later else value
                rest = [word for word in rest if word not in later[:1]]
            if getattr(known, action.dest) is None:
                setattr(known, action.dest, value)
        known.unused, known.given, known.filed = unused, given | filed, filed - given
        return known, rest

    names: frozenset[str] = frozenset()
    """Of the options of all commands, in a file of --config."""

    @property
    def settable(self) -> list[str]:
        """The options of this command that say what comes out, as a sidecar has them."""
        return [a.dest for a in self._actions if a.dest not in NOT_SETTINGS]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)


class _ByName(argparse.Action):
    """Values by their names: those of an option that is given again are added to the earlier."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        both = isinstance(before, dict) and isinstance(values, dict)
        setattr(namespace, self.dest, {**before, **values} if both else values)


def _config_of(args) -> str | None:
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        return only.parse_known_args(args)[0].config
    except argparse.ArgumentError:
        return None


class _Commands:
    """Makes the parser of each command, with what all of them have."""

    def __init__(self, run: dict[str, Callable[[argparse.Namespace], None]]):
        self.top = Parser(prog="anyv2v", description=anyv2v.__doc__)
        version = f"anyv2v {anyv2v.__version__}"
        self.top.add_argument("--version", action="version", version=version)
        self._run, self.made = run, []
        self._below = {"": self.top.add_subparsers(metavar="COMMAND", required=True)}

    def group(self, name: str, text: str) -> None:
        """Commands of two words, of which this is the first."""
        parser = self._below[""].add_parser(name, help=text, description=text)
        self._below[name] = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, text: str, *groups: Callable[[Parser], None]) -> Parser:
        first, _, last = name.rpartition(" ")
        sub = self._below[first].add_parser(
            last, help=text, description=text, allow_abbrev=False, formatter_class=_Help
        )
        sub.set_defaults(run=self._run[name], prog=sub.prog, command=name)
        for group in groups:
            group(sub)
        text = "options that are not given here, in YAML or JSON"
        sub.add_argument("--config", metavar="FILE", help=text)
        sub.add_argument("--force", action="store_true", help="overwrite existing output")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        self.made.append(sub)
        return sub


def parser(commands: dict[str, Callable[[argparse.Namespace], None]]) -> Parser:
    """The parser of all commands; what runs one is found in the namespace as `run`.

    And as `given` the names of the options that are there or, with another value than the default,
    in the file of --config; as `filed` those that are in the file alone.
    """
    all_of_them = _Commands(commands)
    for describe in (_demo, _convert, _weights, _edit, _edit_frame, _plan, _invert, _reconstruct):
        describe(all_of_them)
    names = frozenset(name for each in all_of_them.made for name in each.settable)
    for sub in all_of_them.made:
        sub.names = names
        sub.set_defaults(settable=sub.settable, unused=[])
    return all_of_them.top


def _demo(commands: _Commands) -> None:
    sub = commands.add("demo", "edit a clip that is rendered here, and judge it", _model)
    sub.add_argument("-o", "--output", default="demo-out", metavar="DIR", help="made if missing")
    sub.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what is edited")
    sub.add_argument("--seed", type=_from_0, default=0, help="of the clip and of the noise")


def _convert(commands: _Commands) -> None:
    sub = commands.add("convert", "turn published weights into a folder of ours")
    sub.add_argument(
        "src",
        metavar="SRC",
        help="a folder of I2VGen-XL as published: Hugging Face's, or the original release's",
    )
    sub.add_argument("dst", metavar="DST", help="the folder to write")
    sub.add_argument("--dtype", choices=DTYPE_NAMES, help="of the weights written; else as in SRC")


def _weights(commands: _Commands) -> None:
    text = "look at a folder of weights, or get one"
    commands.group("weights", text)
    sub = commands.add("weights verify", "read a folder whole and say what it is")
    sub.add_argument("dir", metavar="DIR", help="a folder written by `anyv2v convert`, or demo")
    sub = commands.add("weights fetch", "download the published model and convert it")
    sub.add_argument("dst", metavar="DST", nargs="?", default="i2vgen-xl", help="where to write it")
    sub.add_argument("--dtype", choices=DTYPE_NAMES, default="float16", help="of the weights")


def _edit(commands: _Commands) -> None:
    text = "edit a video, once for each --frame (or --instruction), --prompt and -o"
    groups = (_model, _clip, _inversion, _sampling, _injection, first_frame.options)
    sub = commands.add("edit", text, *groups)
    several = {"action": "append", "required": True}
    sub.add_argument(
        "--frame", action="append", metavar="IMAGE", help="the edited first frame; or an --editor"
    )
    sub.add_argument(
        "--save-frame", action="append", metavar="FRAME.png", help="keep what the editor made"
    )
    sub.add_argument("--prompt", metavar="TEXT", help="what the edit shows", **several)
    sub.add_argument("-o", "--output", metavar="OUT.mp4", help="the edited video", **several)
    _guidance(sub)
    sub.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help=f"to be led away from {OWN.format('that of AnyV2V itself')}",
    )
    sub.add_argument(
        "--random-ratio", type=_fraction, default=0.0, metavar="0..1", help="noise mixed in"
    )
    sub.add_argument("--seed", type=_from_0, default=0, help="of that noise")


def _edit_frame(commands: _Commands) -> None:
    text = "edit the first frame alone, to look at it before the video is edited"
    sub = commands.add("edit-frame", text, _machine, _first_frame, first_frame.options)
    sub.add_argument("-o", "--output", required=True, metavar="FRAME.png", help="for edit --frame")
    sub.add_argument(
        "--candidates", type=_from_1, default=1, metavar="N", help="each of a seed; and a sheet"
    )
    sub.add_argument("--seed", type=_from_0, default=0, help="of the first of them")


def _plan(commands: _Commands) -> None:
    text = "what an edit would cost, before anything runs"
    sub = commands.add("plan", text, _model, _clip, _inversion, _sampling, _injection)
    _guidance(sub)
    sub.add_argument("--edits", type=_from_1, default=1, help="in one batch, as Editor.edit_many")


def _invert(commands: _Commands) -> None:
    text = "invert a video for later edits"
    sub = commands.add("invert", text, _model, _clip, _inversion, _injection)
    sub.add_argument(
        "-o", "--output", required=True, metavar="SOURCE.safetensors", help="for edit VIDEO"
    )
    sub.add_argument(
        "--features", action="store_true", help="save what edits with these settings inject, too"
    )
    sub.add_argument(
        "--resume", action="store_true", help="go on where an interrupted inversion was"
    )


def _reconstruct(commands: _Commands) -> None:
    text = "a video there and back through the model"
    sub = commands.add("reconstruct", text, _model, _clip, _inversion, _sampling)
    sub.add_argument("--prompt", default="", metavar="TEXT", help="what the video shows")
    sub.add_argument("--negative-prompt", metavar="TEXT", help="what it does not")
    _guidance(sub, "(default: 1)")
    sub.add_argument("-o", "--output", metavar="OUT.mp4", help="the video that came back")


def _model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--weights",
        default=os.environ.get("ANYV2V_WEIGHTS") or DEMO,
        metavar="DIR",
        help="folder written by `anyv2v convert`, or demo; $ANYV2V_WEIGHTS",
    )
    _machine(sub)
    text = "towers and encoder wait on the host while they are not needed; auto: if memory is short"
    sub.add_argument("--offload", choices=list(OFFLOADS), default="auto", help=text)


def _machine(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", metavar="cpu|cuda", help="cuda if there is one")
    sub.add_argument("--dtype", choices=DTYPE_NAMES, help="float16 on cuda, else float32")


def _clip(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("video", metavar="VIDEO", help="a video, or a source written by invert")
    text = "or N, the shorter side, in the clip's proportions; else the weights' own"
    sub.add_argument("--size", type=_size, metavar="WxH", help=text)
    sub.add_argument("--frames", type=_from_1, help="else the weights' own")
    sub.add_argument("--sample-fps", type=_above_0, help="frames taken per second of the video")
    sub.add_argument("--start-time", type=_number, metavar="SECONDS", help="of the first frame")
    text = (
        "how the clip and --frame get to the size; else the clip is cropped, a frame of its "
        "proportions too, and one of the size's is taken as it is. pad: black bars, which stay"
    )
    sub.add_argument("--fit", choices=FITS, help=text)


def _first_frame(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("video", metavar="VIDEO|IMAGE", help="of which the first frame is edited")
    text = "or N, the shorter side, in its proportions; else its own"
    sub.add_argument("--size", type=_size, metavar="WxH", help=text)
    sub.add_argument("--start-time", type=_number, metavar="SECONDS", help="of the first frame")
    text = "how it gets to the size, and a mask with it; else it is cropped. pad: black bars"
    sub.add_argument("--fit", choices=FITS, help=text)


def _inversion(sub: argparse.ArgumentParser) -> None:
    default = next(iter(METHODS))
    sub.add_argument("--method", choices=METHODS, help=f"of inversion; else {default}")
    steps = f"else {STEPS['ddim']} for ddim, as many as sampling for fixed-point"
    sub.add_argument("--inversion-steps", type=_from_1, metavar="N", help=steps)
    tolerance = f"of the fixed point; else {TOLERANCE}"
    sub.add_argument("--tolerance", type=_above_0, help=tolerance)
    sub.add_argument("--inversion-prompt", metavar="TEXT", help="what the source shows")
    sub.add_argument(
        "--fps", type=_from_1, help=f"frame rate that the network is told {OWN.format(8)}"
    )
    sub.add_argument(
        "--option",
        action="append",
        type=_option,
        metavar="NAME=VALUE",
        help="of the weights' backbone, what it alone has; may be given several times",
    )
    sub.add_argument(
        "--paper",
        action="store_true",
        help="the original's settings and nothing of ours: --method ddim --inversion-steps 500, no "
        "--inversion-prompt, --steps 50, --guidance 9, its negative prompt, --conv 0.2 --spatial "
        "0.2 --temporal 0.5 (for other weights than I2VGen-XL's, theirs), --frame stretched to the "
        "clip's size, the source in the batch of every step, no --feature-memory; what is given "
        "besides wins",
    )


def _guidance(sub: argparse.ArgumentParser, default: str = OWN.format(9)) -> None:
    text = f"towards the prompt; 1: none; or of each scale, such as text=35,image=1 {default}"
    sub.add_argument("--guidance", action=_ByName, type=_scales, metavar="X", help=text)


def _injection(sub: argparse.ArgumentParser) -> None:
    for name, own in zip(USUAL, (0.2, 0.2, 0.5), strict=True):
        sub.add_argument(
            f"--{name}",
            type=_number,
            metavar="0..1",
            help=f"part of the steps that inject {name} features of the source {OWN.format(own)}",
        )
    sub.add_argument(
        "--inject",
        action=_ByName,
        type=_numbers,
        metavar="NAME=0..1,...",
        help="the same of any groups that the weights have, such as conv=0.2,cross=0",
    )
    sub.add_argument(
        "--feature-memory",
        type=_bytes,
        metavar="BYTES",
        help="for features of the source, such as 12GB; 0: none; else half of what is free",
    )


def _sampling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--steps", type=_from_1, help=f"of sampling {OWN.format(50)}")
    sub.add_argument("--start", type=_from_0, default=0, help="index of the first that is run")


def _bytes(text: str) -> int:
    number = text.upper().removesuffix("B")
    scale = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:], 1)
    try:
        size = float(number.rstrip("KMG")) * scale
    except ValueError:
        size = -1.0
    if not 0 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 12GB or 500MB")
    return int(size)


def _size(text: str) -> tuple[int, int] | int:
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and int(side) for side in sides)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, such as 512x512, nor the shorter side alone"
        )
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else int(sides[0])


def _from_0(text: str, least: int = 0) -> int:
    # what a seed and every count fit into
    if not text.isdecimal() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def _from_1(text: str) -> int:
    return _from_0(text, least=1)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _numbers(text: str) -> dict[str, float]:
    """Numbers by their names."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (x.strip() for x in part.partition("="))
        if not name.isidentifier() or not equals or name in found:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,..., each name once")
        found[name] = _number(number)
    return found


def _scales(text: str) -> float | dict[str, float]:
    return _numbers(text) if "=" in text else _number(text)


def _option(text: str) -> str:
    name, equals, value = (x.strip() for x in text.partition("="))
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return f"{name}={value}"


def _above_0(text: str) -> float:
    if not (number := _number(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def _fraction(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return number
