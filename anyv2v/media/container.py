"""What a video is, from its container and its first frame."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from anyv2v.errors import InputError
from anyv2v.media.sequence import is_sequence, read_sequence
from anyv2v.media.video import _decode, _open, _to_rgb


@dataclass(frozen=True)
class VideoFacts:
    width: int
    """In square pixels, upright, as `read_video` gives the frames."""
    height: int
    audio: bool
    """Whether there is sound."""


def facts(path: str | os.PathLike) -> VideoFacts:
    """Of a video; InputError if it is none that can be read."""
    if is_sequence(path):
        height, width, _ = read_sequence(path, None, 1, None, 0.0, "crop").frames[0].shape
        return VideoFacts(width, height, audio=False)
    with _open(Path(path)) as (container, stream):
        audio = bool(container.streams.audio)
        frame = next(_decode(container, stream), None)
        if frame is None:
            raise InputError(f"{path} has no frame that can be decoded")
        height, width, _ = _to_rgb(frame, stream.sample_aspect_ratio).shape
    return VideoFacts(width, height, audio)
