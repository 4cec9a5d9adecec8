"""Gathers edits, in whatever order they are told, into clips with their edits."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from anyv2v.batch.ledger import DONE, FAILED, HIDDEN
from anyv2v.batch.options import COMMANDS, OF_CLIPS, Check, text_of
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.errors import InputError
from anyv2v.media.sequence import numbered
from anyv2v.media.video import SUFFIXES

LONGEST = 240
"""Most bytes of a folder's or file's name that is made of texts."""


@dataclass
class Gathering:
    """Edits, by their clips in the order in which these are first told."""

    check: Check | None = None
    """Checks the values of options."""
    _clips: dict[str, list[TaskEdit]] = field(default_factory=dict)
    """Clip and its options, as a text -> its edits."""
    _facts: dict[str, tuple[str, dict, list[str], str | None]] = field(default_factory=dict)
    """Clip and its options, as a text -> the clip, its options, its notices, its backbone."""
    _places: dict[str, str] = field(default_factory=dict)
    """Output, or the place of its sidecar -> where it is told."""

    def add(
        self,
        where: str,
        video: str,
        options: Mapping[str, Any],
        output: str,
        command: str = "edit",
        notices: Sequence[str] = (),
        backbone: str | None = None,
    ) -> None:
        """Adds an edit.

        where: where it is told, for messages. video: path of its clip, absolute or a URL. options:
        those of the clip and its own, with values of None for options that are not given. output:
        its path below the folder of the batch. notices, backbone: see `Task`. Raises InputError if
        the output cannot be written there or is another edit's, or if the check refuses the
        options.
        """
        output = checked_output(where, output)
        if other := self._places.get(_place(output)):
            raise InputError(f"{where}: the output {output} is that of {other}, too; give another")
        self._places[_place(output)] = where
        given = {name: value for name, value in options.items() if value is not None}
        shared = {name: value for name, value in given.items() if name in OF_CLIPS}
        own = {name: value for name, value in given.items() if name not in OF_CLIPS}
        edit = TaskEdit(output, own, command)
        key = json.dumps([video, shared, backbone], sort_keys=True, default=str)
        _, _, told, _ = self._facts.setdefault(key, (video, shared, [], backbone))
        told += [notice for notice in notices if notice not in told]
        self._clips.setdefault(key, []).append(edit)
        if self.check:
            self.check(where, command, Task(video, (edit,), shared).options(edit))

    def tasks(self) -> list[Task]:
        """Returns the clips with their edits."""
        return [
            Task(video, tuple(self._clips[key]), shared, tuple(notices), backbone)
            for key, (video, shared, notices, backbone) in self._facts.items()
        ]


def checked_output(where: str, output: Any) -> str:
    """Returns the path of an output, without . and doubled slashes in it.

    where: where it is told, for messages. Raises InputError unless it stays below the folder of the
    batch, can be the name of a file, and has a suffix that can be written.
    """
    where = f"{where}: output"
    text = text_of(where, output)
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:|.*\\", text):
        raise InputError(f"{where}: {text!r} is not below the folder of the batch")
    if path.parts and path.parts[0] in (HIDDEN, DONE, FAILED):
        raise InputError(f"{where}: {text!r} lies where the batch keeps its own files")
    if path.suffix.lower() not in (*SUFFIXES, ".png"):
        raise InputError(f"{where}: {text!r} does not end in one of {', '.join(SUFFIXES)}, .png")
    if path.suffix.lower() == ".png" and numbered(text) is None:
        raise InputError(f"{where}: {text!r} holds no number, such as frames/%05d.png")
    if any(len(part.encode()) > 255 - len(".json") for part in path.parts):
        raise InputError(f"{where}: {text!r} is longer than a name can be")
    return posixpath.normpath(text)


def _place(output: str) -> str:
    """The output or, where several patterns share one sidecar, their folder."""
    return output if numbered(output) is None else f"{posixpath.dirname(output)}/%.png"


def name_of_clip(video: str) -> str:
    """Returns the name that a clip's outputs get: its stem, or its folder's name for a pattern."""
    path = PurePosixPath(video.partition("?")[0] if "://" in video else video)
    return path.parent.name or "clip" if "%" in path.name else path.stem or "clip"


def name_of_text(text: str) -> str:
    """Returns a name of a file made of a text: its words in lower case, with - between them."""
    words = "-".join(re.findall(r"\w+", text.lower()))
    return words.encode()[:60].decode(errors="ignore").strip("-")


def options_for(command: str, inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict:
    """Returns an edit's options: its own, and those of `inherited` that its command has."""
    known = OF_CLIPS | COMMANDS[command]
    return {**{name: value for name, value in inherited.items() if name in known}, **own}
