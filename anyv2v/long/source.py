"""`LongSource`: an inverted long clip, from which edits start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v.errors import InputError
from anyv2v.long.clip_editor import ClipEditor
from anyv2v.long.frames import clip_at
from anyv2v.long.windows import Window, nearest_keyframes, plan_windows
from anyv2v.media.frames import Frames
from anyv2v.pipeline.source import SUFFIX, Source, Unfinished


@dataclass(frozen=True, repr=False)
class LongSource:
    """An inverted long clip: its frames, how it is inverted, and a `Source` for each window.

    The sources are in memory or, if there is a folder, in files there, of which one is read at a
    time. Windows of a keyframe other than frame 0 are inverted when an edit first needs them.
    """

    video: Frames
    """The frames of the clip, and their rate."""
    window: int
    """The number of frames of a window; 0 for one window with the whole clip."""
    shared: int | None
    """The number of frames that consecutive windows share; None for a quarter of the window."""
    inversion: Mapping[str, Any]
    """The arguments of `Editor.invert` with which each window is inverted."""
    folder: Path | None = None
    """The folder of the files; None keeps the sources in memory."""
    group: int = 1
    """How many frames each latent frame after the first stands for."""
    kept: dict[tuple[int, ...], Source] = field(default_factory=dict)
    """The frame numbers of a window -> its source; empty if there is a folder."""

    def __repr__(self) -> str:
        where = f"in {self.folder}" if self.folder else f"{len(self.kept)} windows in memory"
        return f"LongSource({len(self.video)} frames, {self.video.fps:g} fps, {where})"

    def windows(self, keyframes: Iterable[int] = ()) -> list[Window]:
        """Returns the windows of the clip for edits with these keyframes besides frame 0."""
        return plan_windows(len(self.video), self.window, self.shared, keyframes, self.group)

    def anchors(self, keyframes: Iterable[int] = ()) -> tuple[int, ...]:
        """Returns, for each frame of the clip, the keyframe to which it belongs."""
        return nearest_keyframes(len(self.video), keyframes)

    def source(self, editor: ClipEditor, window: Window, **told: Any) -> Source:
        """Returns the source of one window, which is inverted now if it is not yet.

        told: further arguments of `Editor.invert`, such as `on_step`. An inversion into a folder
        that was interrupted is resumed.
        """
        if window.indices in self.kept:
            return self.kept[window.indices]
        clip, arguments = clip_at(self.video, window.indices), {**self.inversion, **told}
        if self.folder is None:
            return self.kept.setdefault(window.indices, editor.invert(clip, **arguments))
        name = f"source-{window.anchor:06}-{window.start:06}-{window.stop:06}"
        path = self.folder / f"{name}{SUFFIX}"
        if path.exists():
            source = editor.load_source(path)
            if not np.array_equal(source.video.frames, clip.frames):
                raise InputError(f"{path}: is of other frames; remove it")
            return source
        unfinished = Unfinished(self.folder / f"{name}.unfinished")
        source = editor.invert(clip, unfinished=unfinished, **arguments)
        source.save(path, features=arguments.get("recording") is not None)
        unfinished.remove()
        return source
