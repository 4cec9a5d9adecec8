"""`FrameStream`, the frames of a clip one after another, as they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
import torch

from anyv2v.errors import InputError
from anyv2v.media.frames import Video
from anyv2v.runtime.memory import free_bytes


class Shown(NamedTuple):
    """A frame and when it is shown."""

    begin: float
    """Seconds after the clip's first frame."""
    end: float
    """Seconds after the clip's first frame; at least `begin`."""
    picture: np.ndarray
    """uint8 RGB (h, w, 3)."""


Reader = Callable[["FrameStream"], Generator[Shown, None, None]]
"""Reads a clip: yields its frames and sets `fps` of the stream before the first one."""


class FrameStream:
    """An iterator over the frames of a clip, uint8 RGB (h, w, 3), which holds one at a time.

    It is a context manager that closes the file. A frame that is shown several times, because the
    clip is sampled above its own rate, is the same array each time, so frames must not be written
    to. The first frame is read when the stream is made, so that a file that is no clip raises
    InputError then; one with fewer frames than were asked for raises it when they end.
    """

    fps: float
    """The sampling rate, or the clip's average rate. That of an animated picture without a sampling
    rate is known when its frames have ended; until then it is that of its first frame."""
    size: tuple[int, int]
    """(width, height) of every frame."""
    start: float
    """When the first frame is shown, in seconds after the clip's first frame."""
    times: list[float]
    """When each frame that was taken so far is shown, in seconds after `start`. Where the clip is
    not resampled these are its own timestamps."""
    end: float
    """When the last frame that was taken so far ends, in seconds after `start`."""

    def __init__(self, read: Reader):
        self._rest = read(self)
        self._next: Shown | None = next(self._rest)
        height, width, _ = self._next.picture.shape
        self.size, self.start = (width, height), self._next.begin
        self.times, self.end = [], 0.0

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> np.ndarray:
        shown, self._next = self._next or next(self._rest), None
        self.times.append(shown.begin - self.start)
        self.end = shown.end - self.start
        return shown.picture

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; no further frame can be taken."""
        self._next = None
        self._rest.close()


def collected(path: str | os.PathLike, stream: FrameStream) -> Video:
    """Takes all frames of a stream into memory, and closes it.

    path: the clip's, for the message. Raises InputError if the frames take more than half of the
    free memory, and whatever the stream raises.
    """
    with stream:
        room, pictures = free_bytes(torch.device("cpu")) // 2, []
        for picture in stream:
            pictures.append(picture)
            if len(pictures) * picture.nbytes > room:
                width, height = stream.size
                raise InputError(
                    f"{path}: more than {len(pictures)} frames of {width}x{height} do not fit "
                    "into memory; say how many to read (frames), or a smaller size"
                )
        return Video.owning(np.stack(pictures), stream.fps)
