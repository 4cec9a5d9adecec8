"""Reads a file of jobs, clips with their edits, into `Task`s.

In YAML, or in JSON as one document:

    defaults: {steps: 25}
    clips:
      - video: ballet.mp4
        method: ddim
        edits:
          - {name: van-gogh, frame: van-gogh.png, prompt: "a girl dancing, van Gogh"}
          - {name: robot, editor: recolour, instruction: "red to blue", prompt: "a girl, dancing"}
      - {video: walk.mp4, frame: robot.png, prompt: "a robot walking", output: robot.mp4}

In JSON lines each line is one of the clips. Options are those of `anyv2v edit`, with - or _ in
their names; an edit's have precedence over its clip's, and these over the defaults. A value of null
takes back what was inherited. Paths are relative to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from anyv2v import checks
from anyv2v.batch.gathering import Gathering, name_of_clip, name_of_text, options_for
from anyv2v.batch.options import COMMANDS, OF_CLIPS, Check, path_of, plain_options, text_of
from anyv2v.batch.tasks import Task
from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.runtime.plain_yaml import parse, unique

LARGEST = 2**24
"""The most bytes that a file of jobs may have."""
LINES = (".jsonl", ".ndjson")
"""Suffixes of files in JSON lines."""
OF_FILES = frozenset({"defaults", "clips"})
"""Keys of a whole document."""
OF_OUTPUTS = frozenset({"name", "output", "command"})
"""Keys of an edit besides its options."""


def read_jobs(path: str | os.PathLike, check: Check | None = None) -> list[Task]:
    """Reads a file of jobs in YAML, JSON or JSON lines (.jsonl, .ndjson); see the module.

    check: checks the values of options; None leaves that to who uses them. An edit has the output
    that it names, or else NAME-OF-CLIP/NAME.mp4, where its name is that which is given, that of its
    frame, or the first words of its prompt. Edits of a clip that agree in how it is read and
    inverted become one `Task`, wherever in the file they are.

    Raises InputError, which says where, if the file cannot be read, holds no edits, an unknown
    option, a wrong value, or an output twice or outside of the folder of the batch.
    """
    gathering = Gathering(check)
    base = Path(os.path.abspath(path)).parent
    for where, defaults, clip in _clips(os.fspath(path)):
        _add_clip(gathering, where, defaults, clip, base)
    if not (tasks := gathering.tasks()):
        raise InputError(f"{path}: holds no edits")
    return tasks


def read_text(path: str) -> str:
    """Returns the text of a file in UTF-8, without a mark before it.

    Raises InputError if it cannot be read, is no such text, or is larger than `LARGEST` bytes.
    """
    try:
        with open(checks.path("jobs", path), "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{path}: is larger than {LARGEST} bytes")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8") from error


def _clips(path: str) -> Iterator[tuple[str, Mapping, Mapping]]:
    """Yields where a clip is told, the defaults, and the clip."""
    text = read_text(path)
    if path.lower().endswith(LINES):
        for where, clip in _lines(path, text):
            yield where, {}, _mapping(where, clip)
        return
    document = _mapping(path, parse(path, text.lstrip(), aliases=False))
    if unknown := sorted(map(str, document.keys() - OF_FILES)):
        raise InputError(f"{path}: {unknown[0]!r} is neither defaults nor clips")
    clips = document.get("clips")
    if not isinstance(clips, list):
        raise InputError(f"{path}: clips: {shown(clips)} is not a list of clips")
    defaults = _mapping(f"{path}: defaults", document.get("defaults") or {})
    for i, clip in enumerate(clips, 1):
        where = f"{path}: clip {i}"
        yield where, defaults, _mapping(where, clip)


def _lines(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yields where each value of JSON lines stands, and the value, which may be several lines."""
    # line breaks inside of texts are what they look like
    decoder, end = json.JSONDecoder(strict=False, object_pairs_hook=unique), 0
    while text[end:].strip():
        begin = len(text) - len(text[end:].lstrip())
        where = f"{path}: line {text.count(chr(10), 0, begin) + 1}"
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: cannot be read as JSON: {error}") from error
        yield where, value


def _mapping(where: str, value: Any) -> Mapping:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {shown(value)} has no keys such as video")
    return value


def _add_clip(
    gathering: Gathering, where: str, defaults: Mapping, clip: Mapping, base: Path
) -> None:
    """Adds the edits of a clip, or the one edit that it is itself."""
    if not clip.get("video"):
        raise InputError(f"{where}: has no video")
    video = path_of(f"{where}: video", clip["video"], base)
    where = f"{where} ({PurePosixPath(video).name})"
    inherited = plain_options(f"{where}: defaults", defaults, base)
    own = {name: value for name, value in clip.items() if name not in ("video", "edits")}
    if "edits" not in clip:
        _add_edit(gathering, where, video, inherited, own, base)
        return
    edits = clip["edits"]
    if not isinstance(edits, list) or not edits:
        raise InputError(f"{where}: edits: {shown(edits)} is not a list of edits")
    if told := sorted(OF_OUTPUTS & {*own}):
        raise InputError(f"{where}: {told[0]} belongs to one of its edits")
    inherited |= plain_options(where, own, base)
    for i, edit in enumerate(edits, 1):
        at = f"{where}, edit {i}"
        _add_edit(gathering, at, video, inherited, _mapping(at, edit), base)


def _add_edit(
    gathering: Gathering, where: str, video: str, inherited: Mapping, edit: Mapping, base: Path
) -> None:
    if isinstance(name := edit.get("name"), str):
        where = f"{where} ({name})"
    command = checks.one_of(f"{where}: command", edit.get("command", "edit"), tuple(COMMANDS))
    own = {name: value for name, value in edit.items() if name not in OF_OUTPUTS}
    own = plain_options(where, own, base)
    if lacking := sorted({*own} - OF_CLIPS - COMMANDS[command]):
        raise InputError(f"{where}: {command} has no {lacking[0]}")
    options = options_for(command, inherited, own)
    if command == "edit":
        _check_frame(where, options)
    output = edit.get("output")
    if output is None:
        output = f"{name_of_clip(video)}/{_name(where, command, edit.get('name'), options)}.mp4"
    gathering.add(where, video, options, output, command)


def _check_frame(where: str, options: Mapping[str, Any]) -> None:
    """Raises InputError unless there is one way to an edited first frame."""
    given = {name for name in ("frame", "editor", "editor_command") if options.get(name)}
    if not given:
        raise InputError(f"{where}: has no frame, and no editor that makes one")
    if "frame" in given and len(given) > 1:
        other = (given - {"frame"}).pop()
        raise InputError(
            f"{where}: frame and {other} exclude each other; null takes back what is inherited"
        )


def _name(where: str, command: str, name: Any, options: Mapping[str, Any]) -> str:
    """The name of an edit's output: that which is given, its frame's, or words of its prompt."""
    if name is not None:
        if not (text := text_of(f"{where}: name", name)) or "/" in text or text in (".", ".."):
            raise InputError(f"{where}: name: {shown(name)} cannot be the name of a file")
        return text
    if command != "edit":
        return command
    if frame := options.get("frame"):
        return name_of_clip(frame)
    texts = (options.get("instruction"), options.get("prompt"))
    return next((name_of_text(str(text)) for text in texts if text), "") or "edit"
