"""What a batch has to know of the options of `anyv2v edit`: which are paths, and whose they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anyv2v import checks
from anyv2v.batch.paths import is_url
from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.weights import hub
from anyv2v.weights.packaged import PACKAGED

OF_CLIPS = frozenset(
    "size frames sample_fps start_time fit method inversion_steps tolerance inversion_prompt fps "
    "option paper weights device dtype offload".split()
)
"""Options of how a clip is read and inverted, and of what with; edits of a clip that agree in these
are one `Task`."""
OF_BOTH = frozenset("prompt negative_prompt guidance steps start".split())
"""Options that each edit may have for itself, and each reconstruction."""
OF_EDITS = OF_BOTH | frozenset(
    "frame seed random_ratio conv spatial temporal inject preset feature_memory window shared "
    "keyframe protect guide out_size editor instruction reference mask keep_unchanged "
    "editor_weights editor_option editor_command editor_timeout".split()
)
"""Options that each edit may have for itself."""
OF_THE_BATCH = frozenset(
    "output save_frame resume force quiet verbose debug config list help".split()
)
"""Options of `anyv2v edit` that a job cannot have: the batch decides on them."""
COMMANDS = {"edit": OF_EDITS, "reconstruct": OF_BOTH}
"""Command that makes outputs -> the options, besides those of the clip, that it has."""
PATHS = frozenset("frame reference mask weights editor_weights keyframe protect guide".split())
"""Options that name files, besides the clip."""
WORDS = {
    "weights": tuple(PACKAGED),
    "protect": ("off", "auto"),
    "guide": ("off", "auto", "patches"),
}
"""Option that names a file unless it is one of these words -> the words."""
WEIGHTS = ("weights", "editor_weights")
"""Options that may also be repositories of the Hugging Face hub."""
LISTS = frozenset("keyframe option editor_option guidance inject size".split())
"""Options that may have several values in one edit."""

Check = Callable[[str, str, Mapping[str, Any]], object]
"""Raises InputError for wrong values of options. It is called with where they are told, which
begins the message, the command, and option -> value, as `Task.options` returns them."""


def plain_options(where: str, values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Returns option -> value with _ for - in names, and paths that are absolute.

    where: where the options are told, for messages. base: the folder that paths are relative to.
    Raises InputError for an unknown option, for one that the batch decides on, and for a value that
    no option can have.
    """
    names = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in values:
        if (other := str(name).replace("-", "_")) != name and other in values:
            raise InputError(f"{where}: {name} and {other} are the same option")
    for name in sorted(names.keys() & OF_THE_BATCH):
        raise InputError(f"{where}: {name} is no option of a job; the batch decides on it")
    try:
        checks.known("option", names, OF_CLIPS | OF_EDITS, "option")
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('option: ')}") from None
    return {name: _plain(where, name, value, base) for name, value in names.items()}


def path_of(where: str, value: Any, base: Path) -> str:
    """Returns a path as an absolute one, or a URL as it is.

    where: the name of the value, for messages. base: the folder that the path is relative to.
    Raises InputError if no file can have the name.
    """
    text = text_of(where, value)
    if not text:
        raise InputError(f"{where}: '' is not a path")
    return text if is_url(text) else os.path.abspath(base / os.path.expanduser(text))


def text_of(where: str, value: Any) -> str:
    """Returns a value that is a text without a null character and without half a character.

    where: the name of the value, for messages. Raises InputError for any other value.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: {shown(value)} is not a text")
    if "\0" in value:
        raise InputError(f"{where}: {shown(value)} holds a character of code 0")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {shown(value)} holds half a character") from None
    return value


def _plain(where: str, name: str, value: Any, base: Path) -> Any:
    at = f"{where}: {name}"
    if isinstance(value, (list, Mapping)) and name not in LISTS:
        raise InputError(f"{at}: {shown(value)} is not one value; several are several edits")
    if isinstance(value, (list, Mapping)):
        parts = value if isinstance(value, list) else value.values()
        if any(isinstance(each, (list, Mapping)) for each in parts):
            raise InputError(f"{at}: {shown(value)} holds lists in lists")
    if isinstance(value, list):
        return [_plain(where, name, each, base) for each in value]
    if isinstance(value, str):
        text_of(at, value)
    if name not in PATHS or value is None or value in WORDS.get(name, ()):
        return value
    if name == "keyframe":
        index, colon, path = text_of(at, value).partition(":")
        return f"{index}:{path_of(at, path, base)}" if colon and path else value
    if name in WEIGHTS and hub.name_of(value, base) is not None:
        return value
    return path_of(at, value, base)
