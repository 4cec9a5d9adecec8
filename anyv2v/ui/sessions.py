"""What the page keeps for each user: a folder of files, and which runs shall end."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Cancelled(KeyboardInterrupt):
    """Raised in a run whose user has cancelled it; it cleans up as after Ctrl-C."""


@dataclass
class Session:
    """One user of the page. Files are told by their names in `folder`, "" for none."""

    folder: Path
    """The folder of all files of this user."""
    clip: str = ""
    """The clip."""
    frame: str = ""
    """The edited first frame."""
    made: dict[str, Sequence[str]] = field(default_factory=dict)
    """Frame that was made here -> arguments of the command that made it."""
    mask: str = ""
    """The mask that was drawn last."""
    candidates: Sequence[str] = ()
    """The frames among which to choose."""
    wanted: int = 0
    """The edit that was asked for and is not done, 0 for none."""
    begun: int = 0
    """The number of the run that was asked for last; the first has 1."""
    cancelled: int = 0
    """The last of the runs that shall end at their next step; all before it shall, too."""
    uploads: dict[Path, str] = field(default_factory=dict)
    """File that the browser has sent -> its name in the folder."""

    @property
    def made_by(self) -> Sequence[str]:
        """Arguments of the command that made the chosen frame; empty for a file of the user."""
        return self.made.get(self.frame, ())

    def begin(self) -> int:
        """Returns the number of a new run."""
        self.begun += 1
        return self.begun

    def cancel(self) -> None:
        """Ends all runs that have a number, those that still wait as well."""
        self.cancelled = self.begun

    def check(self, run: int) -> None:
        """Raises `Cancelled` if the run with this number shall end."""
        if run <= self.cancelled:
            raise Cancelled

    def take(self, path: str | os.PathLike) -> str:
        """Puts a file that was uploaded into the folder; returns its name there.

        It is that of the file, or one with a number if another file has that.
        """
        path = Path(path)
        if path in self.uploads:
            return self.uploads[path]
        name = self.uploads[path] = self._new(path.stem, path.suffix)
        try:
            os.link(path, self.folder / name)
        except OSError:
            shutil.copyfile(path, self.folder / name)
        return name

    def numbered(self, stem: str, suffix: str) -> str:
        """Returns a name with a number, which no file of the folder has: stem-1.suffix, ..."""
        number = 1
        while (self.folder / f"{stem}-{number}{suffix}").exists():
            number += 1
        return f"{stem}-{number}{suffix}"

    def _new(self, stem: str, suffix: str) -> str:
        name = f"{stem}{suffix}"
        return self.numbered(stem, suffix) if (self.folder / name).exists() else name


class Sessions:
    """All users of the page, by the key that their browser sends."""

    def __init__(
        self,
        folder: Path,
        forget: Callable[[str], None] = lambda key: None,
        settle: Callable[[], None] = lambda: None,
    ):
        """folder: where their folders are made.

        forget: called with the key of one that leaves; it waits for nothing. settle: waits for the
        run that is running.
        """
        self._folder, self._forget, self._settle = folder, forget, settle
        self._known: dict[str, Session] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> Session:
        """Returns the user with this key, who is new if there is none."""
        with self._lock:
            if key not in self._known:
                # a name that no other user can guess
                folder = self._folder / secrets.token_hex(16)
                folder.mkdir()
                self._known[key] = Session(folder)
            return self._known[key]

    def leave(self, key: str) -> None:
        """Ends the runs of a user whose page was closed, and frees what is in memory for it.

        It does not wait for them.
        """
        if key in self._known:
            self._known[key].cancel()
            self._forget(key)

    def end(self, key: str) -> None:
        """Removes all files of a user, when none of the runs of this user writes any more."""
        self.leave(key)
        self._settle()
        session = self._known.pop(key, None)
        if session is None:
            return
        shutil.rmtree(session.folder, ignore_errors=True)
        # what another user has sent, too, is the same file
        others = set().union(*(other.uploads for other in self._known.values()))
        for path in session.uploads.keys() - others:
            path.unlink(missing_ok=True)

    def cancel(self) -> None:
        """Ends the runs of all users at their next step."""
        for session in self._known.values():
            session.cancel()
