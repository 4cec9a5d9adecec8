"""What is compared: ways to edit a clip whose edited first frame is given, and ways to make that.

A method is one of `METHODS` by name, or NAME=OPTIONS with options of `anyv2v edit`, which begin
with --, or NAME=COMMAND with the command of any other tool. An editor of the first frame is one of
`FRAMES`, a name that `anyv2v edit-frame --list` shows, or NAME=EDITOR OPTION=VALUE ...
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyv2v.comparison.baselines import BASELINES
from anyv2v.comparison.benchmark import NAME
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.registry import make

PLACEHOLDERS = (
    *("video", "frames", "frame", "prompt", "instruction", "mask", "seed", "fps"),
    *("output", "output_frames"),
)
"""Names that the command of a tool may hold in braces; see `Tool.command`."""
WRITES = ("{output}", "{output_frames}")
"""Of which a command has to hold one."""
GIVEN, TRUE = "given", "true"
FRAMES = (GIVEN, TRUE)
"""First frames that no editor makes: the frame.png of the benchmark, and the first of the truth."""


@dataclass(frozen=True)
class AnyV2V:
    """A method that is `anyv2v edit` with some options."""

    name: str
    """The name in tables and paths."""
    settings: Mapping[str, Any]
    """Option (with _ for -) -> value, as a --config file has it."""


@dataclass(frozen=True)
class Baseline:
    """A method without a network."""

    name: str
    """A key of `BASELINES`."""


@dataclass(frozen=True)
class Tool:
    """A method that is the command of another program."""

    name: str
    """The name in tables and paths."""
    command: str
    """The command, split into words as a shell does, but run without a shell. These names in braces
    are replaced: {video} is the clip as an MP4 file and {frames} the folder of its PNG pictures,
    {frame} the edited first frame and {mask} that mask of the benchmark, PNG files, {prompt} and
    {instruction} texts, {seed} and {fps} numbers. The edited clip goes to {output}, an MP4 file, or
    to {output_frames}, a folder that exists.
    """


Method = AnyV2V | Baseline | Tool

METHODS: dict[str, Method] = {
    "ours": AnyV2V("ours", {}),
    "paper": AnyV2V("paper", {"paper": True}),
    "plain": AnyV2V("plain", {"protect": "off", "guide": "off"}),
    "protected": AnyV2V("protected", {"protect": "auto", "guide": "off"}),
    "guided": AnyV2V("guided", {"protect": "off", "guide": "patches"}),
    "guided-protected": AnyV2V("guided-protected", {"protect": "auto", "guide": "patches"}),
    **{name: Baseline(name) for name in BASELINES},
}
"""Name -> method: the defaults of the weights, the settings of the paper, this project's additions
off and on, and the baselines."""


@dataclass(frozen=True)
class FrameSource:
    """Where an edited first frame comes from."""

    name: str
    """The name in tables and paths."""
    editor: str
    """One of `FRAMES`, or of `EDITORS`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Option -> value, of an editor."""

    def missing(self, available: Mapping[str, object]) -> str | None:
        """Returns what a benchmark's edit lacks for this, None if it has all.

        available: "frame", "truth", "instruction", "reference", "mask" -> what the edit has, which
        is true if there is something.
        """
        if self.editor in FRAMES:
            needs = {"frame" if self.editor == GIVEN else "truth"}
        else:
            needs = make(self.editor, self.options).needs
        lacking = sorted(name for name in needs if not available[name])
        return lacking[0] if lacking else None


def read_methods(names: Sequence[str], defined: Sequence[str] = ()) -> list[Method]:
    """Returns the methods that are named, then those that are defined as NAME=... here.

    Raises InputError for an unknown name, a name that stands twice, and a command or options that
    cannot be read. There has to be a method.
    """
    found = [_known("--methods", name, METHODS) for name in names]
    found += [_defined_method(*_split("--method", text)) for text in defined]
    return _unlike("method", found)


def read_frame_sources(names: Sequence[str], defined: Sequence[str] = ()) -> list[FrameSource]:
    """Returns the editors of the first frame that are named, then those that are defined here.

    Raises InputError for an unknown editor or option, a bad value, and a name that stands twice.
    There has to be an editor.
    """
    known = {name: name for name in (*FRAMES, *EDITORS)}
    found = [FrameSource(name, _known("--editors", name, known)) for name in names]
    for text in defined:
        name, words = _split("--editor", text)
        editor, *options = _words("--editor", name, words) or [""]
        pairs = dict(_pair(f"--editor {name}", option) for option in options)
        found.append(FrameSource(name, _known(f"--editor {name}", editor, known), pairs))
    for source in found:
        if source.editor not in FRAMES:
            make(source.editor, source.options)  # refuses wrong options
    return _unlike("editor", found)


def _defined_method(name: str, text: str) -> Method:
    if name in METHODS:
        raise InputError(f"--method {name}: is the name of a method already; take another")
    words = _words("--method", name, text)
    if words and words[0].startswith("--"):
        return AnyV2V(name, _settings(name, words))
    if not any(each in text for each in WRITES):
        raise InputError(
            f"--method {name}: {text!r} has neither {' nor '.join(WRITES)}, "
            "where the tool is to write; options of anyv2v edit begin with --"
        )
    braced = set(re.findall(r"\{([a-z_]+)\}", text))
    if unknown := sorted(braced - set(PLACEHOLDERS)):
        raise InputError(f"--method {name}: {{{unknown[0]}}} is none of {', '.join(PLACEHOLDERS)}")
    return Tool(name, text)


def _settings(name: str, words: list[str]) -> dict[str, Any]:
    """Options as on a command line -> as a --config file has them; those without a value are true.

    An option that stands several times has a list of values.
    """
    settings: dict[str, Any] = {}
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not option.startswith("--"):
            raise InputError(f"--method {name}: {option!r} stands where an option is due")
        key = option[2:].replace("-", "_")
        given: Any = value if equals else True
        if not equals and words and not words[0].startswith("--"):
            given = words.pop(0)
        if key in settings:
            earlier = settings[key]
            given = [*(earlier if isinstance(earlier, list) else [earlier]), given]
        settings[key] = given
    return settings


def _split(option: str, text: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not equals or not NAME.fullmatch(name) or not rest.strip():
        raise InputError(
            f"{option} {text!r}: is not NAME=... with a name of letters, digits, '-', '_' and '.'"
        )
    return name, rest


def _words(option: str, name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option} {name}: {text!r}: {error}") from error


def _pair(name: str, text: str) -> tuple[str, str]:
    option, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{name}: {text!r} is not OPTION=VALUE")
    return option, value


def _known(option: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise InputError(f"{option}: {name!r} is not one of {', '.join(known)}")
    return known[name]


def _unlike(what: str, found: list[Any]) -> list[Any]:
    if not found:
        raise InputError(f"a comparison needs at least one {what}")
    names = [each.name for each in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{what} {twice[0]}: is named twice")
    return found
