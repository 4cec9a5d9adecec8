"""The frames of a long clip, which need not be in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults
from anyv2v.errors import InputError
from anyv2v.media.frames import Frames, Video
from anyv2v.media.video import read_video
from anyv2v.pipeline.arguments import as_video
from anyv2v.pipeline.source import SUFFIX


def as_long_video(video: object, defaults: Defaults) -> Frames:
    """Returns the caller's video as `Frames`.

    `Frames` are returned as they are. A path is read whole, with the size and the rate of
    `defaults`. A Video and an array of frames are taken as `Editor.invert` takes them. Raises
    InputError for anything else.
    """
    if isinstance(video, Frames) and not isinstance(video, Video):
        return video
    if isinstance(video, (str, os.PathLike)) and checks.path("video", video).suffix != SUFFIX:
        return read_video(video, size=defaults.size, fps=defaults.fps)
    kinds = Video, str, os.PathLike, np.ndarray, Tensor
    checks.kind("video", video, kinds, "a Video, a path, frames on disk, or an array of frames")
    return as_video(video, defaults)  # pyright: ignore[reportArgumentType]


def clip_at(video: Frames, indices: Sequence[int]) -> Video:
    """Returns the frames with these numbers as a Video of the clip's rate."""
    return Video.owning(video.frames_at(indices), video.fps)


def size_of_clip(video: Frames) -> tuple[int, int]:
    """Returns (width, height) of the frames; raises InputError if there are fewer than 2 frames."""
    if len(video) < 2:
        raise InputError(f"video: it has {len(video)} frames; at least 2 are needed")
    _, height, width, _ = video.frames_at([0]).shape
    return width, height


def digest_of(video: Frames) -> str:
    """Returns the SHA-256 of all frames, which are read one at a time."""
    digest = hashlib.sha256()
    for frame in _each(video):
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def _each(video: Frames) -> Iterator[np.ndarray]:
    for index in range(len(video)):
        yield video.frames_at([index])[0]
