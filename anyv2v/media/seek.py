"""Reading from the middle of a video, with the same frames as by decoding it from its beginning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile
from pathlib import Path
from typing import Any

from anyv2v.media.container import decode, names, open_video
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.fields import deinterlaced

# formats with timestamps and an index of keyframes; others are decoded from their beginning
INDEXED = {"mov", "matroska"}
# seconds that are decoded sooner than sought; the index may go by decoding times, which are earlier
NEAR = 1.0


@dataclass(frozen=True)
class Opened:
    """A video that `open_at` has opened."""

    container: Any
    """PyAV's container."""
    stream: Any
    """PyAV's video stream."""
    frames: Iterator
    """The frames of PyAV, deinterlaced, from the beginning or from a keyframe on."""
    first: float | None
    """Timestamp of the video's first frame in seconds; None if `frames` begin with that frame."""


@dataclass(frozen=True)
class _Place:
    """Timestamps of the video's first frame, of a keyframe, and the one to seek before it."""

    first: int
    keyframe: int
    sought: int


@contextmanager
def open_at(path: Path, start: float) -> Iterator[Opened]:
    """Opens a video, as a context manager, with its frames from `start` seconds or earlier on.

    start: seconds after the first frame. The frames begin at a keyframe that is shown at `start` or
    before, or at the beginning where that is near or the format has no index. Decoding begins one
    keyframe earlier, because frames that are shown before a keyframe, video that is refreshed
    gradually, and deinterlacing need the frames before it. Raises InputError as `open_video`.
    """
    place = _find(path, start) if start > NEAR else None
    with open_video(path) as (container, stream):
        if place is None:
            yield Opened(container, stream, deinterlaced(stream, decode(container, stream)), None)
            return
        container.seek(place.sought, stream=stream)
        shown = place.keyframe * stream.time_base
        frames = deinterlaced(stream, decode(container, stream))
        frames = dropwhile(lambda frame: not _is_from(frame, shown), frames)
        yield Opened(container, stream, frames, float(place.first * stream.time_base))


def _is_from(frame, time: Fraction) -> bool:
    if frame.pts is None or frame.time_base is None:
        return False
    return frame.pts * frame.time_base >= time


def _find(path: Path, start: float) -> _Place | None:
    with open_video(path) as (container, stream):
        frame = next(decode(container, stream), None)
        if not names(container) & INDEXED or frame is None or frame.pts is None:
            return None
        begins = frame.pts + round(start / stream.time_base)
        keyframe = _landing(container, stream, begins - round(NEAR / stream.time_base))
        if keyframe is None or not frame.pts < keyframe.pts <= begins:
            return None
        sought = min(x for x in (keyframe.pts, keyframe.dts) if x is not None) - 1
        before = _landing(container, stream, sought)
        if before is None or before.pts >= keyframe.pts:
            return None
        return _Place(frame.pts, keyframe.pts, sought)


def _landing(container, stream, sought: int):
    """The packet at which seeking arrives, if it is a keyframe with a timestamp; else None."""
    av = pyav()
    try:
        container.seek(sought, stream=stream)
        packet = next(container.demux(stream), None)
    except av.FFmpegError:
        return None
    is_one = packet is not None and packet.is_keyframe and packet.pts is not None
    return packet if is_one else None
