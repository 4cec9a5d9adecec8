"""`Studio`, the interface of what the page asks for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anyv2v.ui.progress import Show
from anyv2v.ui.sessions import Session, Sessions

Options = Mapping[str, Any]
"""Option of `anyv2v edit` -> its value; None or "" if it is not given. "guidance" and "inject" have
a mapping of numbers. Files are told by their names in the folder of a session."""


@dataclass(frozen=True)
class EditorOption:
    """An option of an editor of the first frame."""

    name: str
    """Its name."""
    kind: type | None
    """bool, int or float; None: one of `choices`."""
    default: Any
    """The value that it has by default."""
    choices: Sequence[str] = ()
    """The words among which to choose."""


@dataclass(frozen=True)
class PageEditor:
    """An editor of the first frame as the page offers it."""

    name: str
    """The name on the page."""
    text: str
    """What it does, in a sentence."""
    needs: frozenset[str]
    """The inputs that it cannot do without, see `FrameEditor.needs`."""
    uses: frozenset[str]
    """Those that change its result, see `FrameEditor.uses`."""
    options: Sequence[EditorOption]
    """The options that the page offers."""
    words: Mapping[str, Any] = field(default_factory=dict)
    """Options of `anyv2v edit-frame` that choose it: option -> value."""


@dataclass(frozen=True)
class Settings:
    """What the page has to know of the weights."""

    about: str
    """The weights and the device, in words."""
    warning: str
    """What has to be known of the weights, or ""."""
    pixels: bool
    """Whether the frames are so small that their pixels are shown as they are."""
    frames: int
    """Number of frames that are read by default."""
    size: tuple[int, int]
    """(width, height) of the frames by default."""
    fps: float
    """How many are read per second by default."""
    presets: Sequence[str]
    """The presets of the injection."""
    editors: Sequence[PageEditor]
    """The editors of the first frame."""


@dataclass(frozen=True)
class Looked:
    """What is read of a clip."""

    text: str
    """Number, rate and size of the frames, in words."""
    notices: Sequence[str]
    """What the user should know before an edit."""
    preview: Path
    """The frames of the first window as a video."""
    first: Path
    """The first frame at its own size, a PNG."""


@dataclass(frozen=True)
class Made:
    """An edit that was made."""

    edit: Path
    """The edited clip."""
    both: Path
    """The source and the edit side by side."""
    files: Sequence[Path]
    """These, the sidecar, and what the command reads and was made here."""
    command: str
    """The command line that does the same."""
    notices: Sequence[str]
    """What `anyv2v edit` said."""


class Studio(Protocol):
    """Does what the page asks for; exceptions are what `explain` turns into a line."""

    sessions: Sessions
    """The users."""
    settings: Settings
    """What the page has to know of the weights."""

    def usual(self, options: Options) -> dict[str, Any]:
        """Returns option -> the value that it has if it is not given.

        options: "preset", "steps" and "guide", on which others depend.
        """
        ...

    def example(self, session: Session) -> tuple[str, Path, Path]:
        """Makes an example and chooses it; returns its prompt, clip and edited first frame."""
        ...

    def look(self, session: Session, options: Options) -> Looked:
        """Reads the clip as the options say, and writes what the page shows of it."""
        ...

    def upload_frame(self, session: Session, path: str, options: Options) -> Path:
        """Chooses a file as the edited first frame; returns a picture of it for the page."""
        ...

    def candidates(
        self, session: Session, editor: str, options: Options, own: Options, count: int, run: int
    ) -> tuple[list[Path], list[str]]:
        """Edits the first frame of the clip; returns the results, and what was said.

        editor: its name on the page. options: those of `anyv2v edit-frame`. own: those of the
        editor. count: how many are made, with a seed each; one if all were the same. run:
        the number that `Session.begin` gave.
        """
        ...

    def choose(self, session: Session, name: str) -> Path:
        """Chooses a candidate by the name of its file; returns a picture of it for the page."""
        ...

    def draw(self, session: Session, alpha: np.ndarray | None) -> str:
        """Writes a mask, white where alpha (h, w) is above 0; returns its name, "" if nowhere."""
        ...

    def plan(self, session: Session, options: Options) -> str:
        """Returns what an edit will take, in words; "" if there is no clip yet."""
        ...

    def edit(self, session: Session, options: Options, show: Show, run: int) -> Made:
        """Runs `anyv2v edit`, or raises `Cancelled` and leaves nothing behind.

        run: the number that `Session.begin` gave.
        """
        ...

    def explain(self, session: Session, error: Exception) -> str:
        """Returns what went wrong, in one line."""
        ...

    def close(self) -> None:
        """Ends all runs, and waits for the one that is running."""
        ...
