"""Warnings before the work: options without an effect, and parts of the inputs that are lost.

Only options that the user gave are named, never a default, and no option whose purpose is fulfilled
anyway (such as `--feature-memory 0` where no features are recorded).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Iterator

from anyv2v.cli.arguments import listed
from anyv2v.clip.tokenizer import cut_text
from anyv2v.media.proportions import ALIKE, Size, part_cut, size_of_short_side

UNPREDICTED = ("inversion-prompt", "tolerance", "fps")
"""Options that `anyv2v plan` accepts because `edit` does, and that its prediction ignores."""


PRINTING = ("plan", "weights verify", "info")
"""Commands that only print. Such a command fails if what it prints is lost, and so does one whose
optional `-o` was not given."""
MACHINE = ("device", "dtype")
"""Options that every network takes."""


def without_effect(
    args: Namespace,
    method: str = "fixed-point",
    inversion_steps: int = 50,
    passes: bool = True,
    uses: Collection[str] = (),
    inverted: bool = False,
    still: bool = False,
    on_cpu: bool = False,
) -> list[str]:
    """Returns one line for each option that was given and changes nothing.

    args: as `options.parser` makes them and `settings.fill` fills them; `args.given` holds the
    names of the options that were given. method, inversion_steps: how VIDEO is inverted. passes:
    whether the inversion can record the features that the edit injects. uses: which of
    "instruction", "reference", "seed", "device" and "dtype" the frame editor reads. inverted: VIDEO
    is a source (an inverted video). still: VIDEO is one picture. on_cpu: networks run on the CPU.
    """
    command = args.command
    lines = [*_of_guidance(args), *_of_the_editor(args, command, uses)]
    lines += _of_injection(args, command, method, inversion_steps, passes, inverted)
    given = args.given
    if command == "plan":
        lines += [
            _no_effect(x, "nothing predicted depends on it") for x in UNPREDICTED if x in given
        ]
    elif "tolerance" in given and method == "ddim":
        lines.append(_no_effect("tolerance", "ddim solves nothing to a tolerance"))
    if command == "evaluate" and not (args.round_trip or args.checks):
        of_networks = ("weights", "offload") if args.clip else (*MACHINE, "weights", "offload")
        lines += [_no_effect(x, "no network is asked for") for x in of_networks if x in given]
    if "fit" in given and _is_fitting(args, command, inverted):
        lines.append(_no_effect("fit", "nothing has to get to another size"))
    if command == "edit-frame" and "start-time" in given and (inverted or still):
        lines.append(_no_effect("start-time", f"{args.video} has but one first frame"))
    if getattr(args, "offload", None) == "on" and "offload" in given and on_cpu:
        lines.append(_no_effect("offload", "on a CPU nothing waits elsewhere"))
    writes = command not in PRINTING and getattr(args, "output", "") is not None
    if "force" in given and not writes:
        lines.append(_no_effect("force", "nothing is written"))
    return list(dict.fromkeys(lines))


def unread(args: Namespace, lost: Callable[[str], str], tokens: int) -> list[str]:
    """Returns one line for each prompt that is too long for the text encoder: the words cut off.

    lost: returns the end of a text that does not fit, "" if all of it fits. tokens: how many tokens
    fit. The result is empty for `anyv2v plan`, which reads no prompt.
    """
    if args.command == "plan":
        return []
    texts = [("prompt", text) for text in listed(getattr(args, "prompt", None))]
    if "negative-prompt" in args.given and not _unguided(args):
        texts.append(("negative-prompt", args.negative_prompt))
    texts += [("inversion-prompt", text) for text in listed(args.inversion_prompt)]
    return [
        cut_text(f"--{name}", tokens, words)
        for name, text in dict.fromkeys(texts)
        if (words := lost(text))
    ]


def silent(path: str, audio: bool) -> str | None:
    """Returns a warning if the clip has sound, which the output will not have, else None.

    path: the clip, as the message names it. audio: whether it has sound.
    """
    return f"{path} has sound; what is written has none" if audio else None


def of_the_size(args: Namespace, clip: Size, size: Size, factor: int = 1) -> list[str | None]:
    """Returns warnings of a rounded size, and of borders that are cropped unless --fit is given.

    clip: (width, height) of the clip. size: that of the frames to be edited. factor: sides of these
    are multiples of it. None in the list stands for no warning.
    """
    told = args.size if isinstance(args.size, int) else None
    return [
        None if told is None else rounded(told, size, factor),
        cut_off(args.video, clip, size, factor, told) if args.fit is None else None,
    ]


def cut_off(path: str, clip: Size, size: Size, factor: int, told: int | None = None) -> str | None:
    """Returns a warning of the part of a clip that is cropped, and how to keep it, or None.

    path: the clip, as the message names it. clip: its (width, height). size: (width, height) after
    the crop. factor: sides of `size` are multiples of it. told: the shorter side if the user gave
    only that; None if not. None is returned if a crop cuts off too little to be mentioned.
    """
    side, part = part_cut(clip, size)
    if part <= ALIKE:
        return None
    whole = size_of_short_side(min(size), clip, factor)
    keeps = ""
    if told is None and (still := part_cut(clip, whole)[1]) < part / 2:
        nearly = "" if still <= ALIKE else "nearly "
        keeps = f"--size {min(size)} ({_by(whole)}) {nearly}keeps its proportions, "
    return (
        f"{path} is {_by(clip)}: {part:.0%} of its {side} is cut off to reach {_by(size)}; "
        f"{keeps}--fit pad adds bars"
    )


def rounded(told: int, size: Size, factor: int) -> str | None:
    """Returns a warning if the shorter side that was given, `told`, was rounded, else None.

    size: (width, height) that is used. factor: the sides of `size` are multiples of it.
    """
    if min(size) == told:
        return None
    return f"--size {told} is not divisible by {factor}; {_by(size)} is taken"


def beginning_again(path: str, there: bool, resume: bool, what: str = "inversion") -> str | None:
    """Returns a warning if work begins anew, contrary to --resume or over a saved state.

    path: the file or folder with the state of unfinished work. there: whether it exists. resume:
    whether --resume was given. what: the work. None: no warning is due.
    """
    if resume and not there:
        return _no_effect("resume", f"there is no {path}; the {what} begins at its start")
    if there and not resume:
        return f"{path} is replaced: the {what} begins at its start; --resume would go on"
    return None


def cuts(path: str, found: Collection[int]) -> str | None:
    """Returns a warning of cuts inside a clip, beyond which no frame was edited, else None.

    path: the clip, as the message names it. found: indices of frames with which a scene begins.
    """
    if not found:
        return None
    few = [str(index) for index in sorted(found)[:5]]
    more = f" and {len(found) - len(few)} more" if len(found) > len(few) else ""
    frames = f"frame{'s' if len(found) > 1 else ''} {', '.join(few)}{more}"
    return (
        f"{path} is cut before {frames}: the edited first frame does not tell what comes there; "
        f"give --keyframe {few[0]}:IMAGE, or edit the scenes one by one"
    )


def _of_guidance(args: Namespace) -> Iterator[str]:
    if not hasattr(args, "guidance"):
        return
    of_text = next(iter(args.guidance.values()))
    if "guidance" in args.given and of_text < 1 and _unguided(args):
        yield f"--guidance {of_text:g} is taken as 1, no guidance"
    if "negative-prompt" in args.given and _unguided(args):
        yield _no_effect("negative-prompt", f"guidance {of_text:g} leads away from nothing")


def _unguided(args: Namespace) -> bool:
    return all(scale <= 1 for scale in args.guidance.values())


def _of_the_editor(args: Namespace, command: str, uses: Collection[str]) -> Iterator[str]:
    if command not in ("edit", "edit-frame"):
        return
    name = args.editor or "command"
    for option in ("instruction", "reference"):
        if option in args.given and option not in uses:
            yield _no_effect(option, f"the editor {name} makes nothing of it")
    if command == "edit":
        if "seed" in args.given and "seed" not in uses and not args.random_ratio:
            yield _no_effect("seed", "nothing is drawn; --random-ratio mixes noise in")
        return
    for option in ("device", "dtype"):
        if option in args.given and option not in uses:
            yield _no_effect(option, f"the editor {name} runs no network")
    if "seed" not in uses:
        if "seed" in args.given:
            yield _no_effect("seed", f"the editor {name} draws nothing")
        if args.candidates > 1:
            yield f"--candidates {args.candidates} are all the same: {name} draws nothing"


def _of_injection(
    args: Namespace, command: str, method: str, inversion_steps: int, passes: bool, inverted: bool
) -> Iterator[str]:
    if command not in ("edit", "plan", "invert"):
        return
    steps, start = getattr(args, "steps", inversion_steps), getattr(args, "start", 0)
    parts = args.injection.fractions
    if command == "invert" and not args.features:
        kept = [
            *args.called.values(),
            *(n for n in ("feature-memory", "preset") if n in args.given),
        ]
        yield from (_no_effect(name, "it goes with --features") for name in kept)
        return
    idle = [name for name, part in parts.items() if part > 0 and int(steps * part) <= start]
    for name in idle:
        if name in args.called:
            yield _no_effect(args.called[name], _too_early(steps, parts[name], start))
    nothing = all(part <= 0 or name in idle for name, part in parts.items())
    if nothing and idle and not set(idle) & set(args.called):
        yield f"nothing of the source is injected: {_too_early(steps, max(parts.values()), start)}"

    reason = None
    if inverted:
        reason = f"{args.video} is inverted already"
    elif not passes:
        reason = f"an inversion of {inversion_steps} steps passes none of the {steps} of sampling"
        if method == "ddim":
            reason = "a ddim inversion does not pass the features that sampling needs"
    elif nothing:
        reason = "nothing is injected"
    elif command == "invert" and args.feature_memory == 0:
        reason = "--feature-memory 0 keeps none"
    option = "features" if command == "invert" else "feature-memory"
    if reason and option in args.given and (option == "features" or args.feature_memory):
        yield _no_effect(option, reason)


def _too_early(steps: int, part: float, start: int) -> str:
    over = f"{part:g} of {steps} steps is {int(steps * part)}"
    return f"{over}, and --start is {start}" if start else over


def _is_fitting(args: Namespace, command: str, inverted: bool) -> bool:
    """Whether --fit has nothing to do, as all pictures have the clip's size already."""
    if getattr(args, "mask", None):
        return False
    if command == "edit-frame":
        return args.size is None
    return inverted and not getattr(args, "frame", None)


def _no_effect(option: str, why: str) -> str:
    return f"--{option} has no effect: {why}"


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
