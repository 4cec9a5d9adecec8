"""The interface of an editor for clips of one window, by which long clips are edited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anyv2v.media.frames import Video
from anyv2v.pipeline.planning import Planner
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Source


class ClipEditor(Planner):
    """An editor for clips of one window; `Editor` is the one that does the work."""

    def invert(self, video: Video, *args: Any, **kwargs: Any) -> Source:
        """Inverts a clip; see `Editor.invert`."""
        raise NotImplementedError

    def edit(self, source: Source, *args: Any, **kwargs: Any) -> Edit:
        """Edits a clip; see `Editor.edit`."""
        raise NotImplementedError

    def edit_each(self, source: Source, *args: Any, **kwargs: Any) -> Iterator[Edit | Exception]:
        """Makes several edits of a clip one by one; see `Editor.edit_each`."""
        raise NotImplementedError
