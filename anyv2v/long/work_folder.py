"""The folder of a long run: files of finished windows, and a record of what they are of.

A folder takes the windows of one run alone. Its file `run.json` states all on which the result
depends: the clip, the weights and the settings. A run with others is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.frames import Video
from anyv2v.runtime.atomic_files import atomic_path

RECORD = "run.json"
"""Name of the file that states what the windows in a folder are of."""


class WorkFolder:
    """A folder with the files of one long run, and of no other."""

    def __init__(self, path: str | os.PathLike, facts: Mapping[str, Any]):
        """Opens the folder `path`, or makes it in a folder that exists.

        facts: all on which the result depends, as values for JSON; see `described`. Raises
        InputError if the folder holds the windows of a run with other facts, and says of which, or
        if it cannot be made or written to.
        """
        self.path, facts = checks.path("folder", path), json.loads(json.dumps(facts))
        text = json.dumps(facts, indent=1, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        """SHA-256 of the facts, by which files of this run are recognized."""
        record = self.path / RECORD
        try:
            self.path.mkdir(exist_ok=True)
            if record.exists():
                self._compare(json.loads(record.read_text(encoding="utf-8")), facts)
            else:
                with atomic_path(record) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"folder: {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"folder: {record} is damaged ({error}); give another") from error

    def _compare(self, before: object, facts: Mapping[str, Any]) -> None:
        before = before if isinstance(before, dict) else {}
        for name in sorted({*before, *facts}):
            if before.get(name) != facts.get(name):
                raise InputError(
                    f"folder: {self.path} holds windows of a run with other {name}; "
                    "give another folder, or remove it"
                )


def described(name: str, value: Any) -> Any:
    """Returns a value for JSON that is the same for equal arguments, and another for others.

    Pictures, arrays, tensors and videos are described by their contents, and so is a file that is
    given as a `Path`. Raises InputError, which names the argument `name`, for what cannot be
    described, such as a function.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic, Tensor, Image)):
        return _contents(value)
    if isinstance(value, os.PathLike):
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    if isinstance(value, Video):
        return {"frames": _contents(value.frames), "fps": value.fps}
    if isinstance(value, Mapping):
        pairs = {str(key): described(name, x) for key, x in value.items()}
        return dict(sorted(pairs.items()))
    if isinstance(value, Sequence):
        return [described(name, x) for x in value]
    if isinstance(value, Collection):
        return sorted(str(x) for x in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: described(name, getattr(value, field.name)) for field in fields(value)}
    raise InputError(
        f"{name}: {checks.shown(value)} cannot be recorded in a folder; leave it out, or edit "
        "in memory (editor.edit_long)"
    )


def _contents(value: Any) -> str:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return f"{array.dtype} {array.shape} {digest}"
