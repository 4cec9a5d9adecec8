"""The ledger of a batch: what failed, what is being made, and who works on which clip.

What is done is told by the outputs themselves, whose sidecars hold a key. All else is in the folder
of the batch: `done.jsonl` and `failed.jsonl`, which are for people and their tools, and a hidden
folder with the locks and the state of unfinished work. The ledger is the same whatever engine runs
the batch, on one machine or several that share the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anyv2v.batch.tasks import Task
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.runtime.locks import hold

HIDDEN = ".anyv2v-batch"
"""Name of the folder, in that of the batch, with locks and unfinished work."""
DONE, FAILED = "done.jsonl", "failed.jsonl"
"""Names of the files with a line for each edit that was made, and for each that failed."""


class Ledger:
    """What is known of the edits of a batch, in the folder of their outputs."""

    def __init__(self, folder: str | os.PathLike):
        """folder: that of the outputs. It is made, if only it is missing, when `open` is called."""
        self.folder = Path(folder)
        self.hidden = self.folder / HIDDEN

    def open(self) -> None:
        """Makes the folders; raises InputError if they cannot be made."""
        if not self.folder.absolute().parent.is_dir():
            raise InputError(f"-o {self.folder}: there is no folder {self.folder.parent}")
        try:
            self.hidden.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"-o {self.folder}: {error.strerror or error}") from error

    def path(self, output: str) -> Path:
        """Returns the path of an output, which is named below the folder of the batch."""
        return self.folder / output

    @contextmanager
    def lock(self, task: Task, wait: bool = False) -> Iterator[bool]:
        """Holds the lock of a clip inside the block; yields whether it could be had.

        wait: wait until another run frees it. The system frees the lock of a process that ends,
        however it ends. On a file system without locks it is always had.
        """
        name = _digest(*(edit.output for edit in task.edits))
        with hold(self.hidden / f"{name}.lock", wait) as held:
            yield held

    def scratch(self, task: Task) -> Path:
        """Returns the folder for unfinished work on a clip; the holder of its lock may write there.

        It is made if it is missing.
        """
        folder = self.hidden / _digest(*(edit.output for edit in task.edits))
        folder.mkdir(exist_ok=True)
        return folder

    def begin(self, task: Task, output: str, key: str) -> bool:
        """Notes that an edit with this key is being made; returns whether it was noted already.

        A run that was killed has noted it then, and what it left of the output may be replaced.
        """
        note = self.scratch(task) / f"{_digest(output)}.begun"
        with suppress(OSError):
            if note.read_text(encoding="utf-8") == key:
                return True
        with atomic_path(note) as temporary:
            temporary.write_text(key, encoding="utf-8")
        return False

    def end(self, task: Task) -> None:
        """Removes the unfinished work on a clip, when all of its edits were made or have failed."""
        shutil.rmtree(self.scratch(task), ignore_errors=True)

    def done(self, output: str, key: str, seconds: float, **more: Any) -> None:
        """Appends a line for an edit that was made, and removes those that say it failed."""
        line = {"output": output, "key": key, **_here(), "seconds": round(seconds, 3), **more}
        self._append(DONE, line)
        self.forget([output])

    def failed(self, output: str, video: str, error: str, key: str | None) -> None:
        """Adds a line for an edit that failed, in place of one that it may have already."""
        line = {"output": output, "video": video, "error": error, "key": key, **_here()}
        self._rewrite([output], [line])

    def forget(self, outputs: Collection[str]) -> None:
        """Removes the lines of edits that are done from the file of failed ones."""
        if any(line.get("output") in outputs for line in self.failures()):
            self._rewrite(outputs, [])

    def failures(self) -> list[dict[str, Any]]:
        """Returns the lines of the edits that failed; lines that are not JSON are left out."""
        return _lines(self.folder / FAILED)

    def _rewrite(self, outputs: Collection[str], more: list[dict[str, Any]]) -> None:
        """Replaces the lines of these outputs in the file of failed edits, which then is whole."""
        path = self.folder / FAILED
        with hold(self.hidden / "failed.lock", wait=True):
            kept = [line for line in self.failures() if line.get("output") not in outputs]
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in [*kept, *more])
            if not text:
                path.unlink(missing_ok=True)
                return
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    def _append(self, name: str, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False) + "\n"
        # one call of the system, so that lines of several processes do not mix
        file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(file)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:24]


def _here() -> dict[str, Any]:
    """Who writes a line, and when (seconds since 1970)."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "time": round(time.time(), 3)}


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    with suppress(OSError), open(path, encoding="utf-8") as file:
        for text in file:
            with suppress(ValueError):
                line = json.loads(text)
                found += [line] if isinstance(line, dict) else []
    return found
