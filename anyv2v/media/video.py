"""Reading video files as uint8 RGB frames, and writing frames as video files."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media import timing
from anyv2v.media.container import is_video, names, own_rate
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.frame import to_rgb
from anyv2v.media.frames import Video
from anyv2v.media.image import FITS, as_frames, fit_frame, read_image
from anyv2v.media.seek import open_at
from anyv2v.media.sequence import is_sequence
from anyv2v.media.sequence_stream import stream_sequence
from anyv2v.media.stream import FrameStream, Shown, collected
from anyv2v.media.writer import SUFFIXES, video_writer
from anyv2v.runtime.memory import require_memory

__all__ = ["SUFFIXES", "pyav", "read_first_frame", "read_video", "stream_video", "write_video"]

MOST_FRAMES = 2**31 - 1
LONGEST = checks.MOST
"""Largest `start_time` in seconds; no clip is longer."""


class Wanted(NamedTuple):
    """The arguments of `read_video`, checked."""

    path: Path
    """A video, a folder or a pattern; whether it exists is not checked."""
    size: tuple[int, int] | None
    """(width, height); None: the clip's own."""
    frames: int | None
    """How many frames are read; None: all."""
    fps: float | None
    """The sampling rate; None: every frame."""
    start_time: float
    """In seconds after the clip's first frame."""
    fit: str
    """One of `FITS`."""


def checked(path, size, frames, fps, start_time, fit) -> Wanted:
    """Returns the arguments of `read_video`; raises InputError for those that are invalid."""
    return Wanted(
        checks.path("path", path),
        None if size is None else checks.size(size),
        None if frames is None else checks.whole("frames", frames, most=MOST_FRAMES),
        None if fps is None else timing.checked_rate(fps),
        start_time=_start(start_time),
        fit=checks.one_of("fit", fit, FITS),
    )


def read_video(
    path: str | os.PathLike,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    start_time: float = 0.0,
    fit: str = "crop",
) -> Video:
    """Reads a clip as uint8 RGB frames, beginning `start_time` seconds after its first frame.

    size: (width, height), reached by `fit` ("crop", "stretch" or "pad", see `fit_frame`); None
    keeps the clip's size. frames: how many to read; None reads to the end. fps: resamples by
    timestamps, taking the frame that is shown at each moment; None keeps every frame and returns
    the average rate.

    Rotation, mirroring (EXIF orientations of Motion JPEG as well) and non-square pixels are undone,
    interlaced frames are deinterlaced by FFmpeg's bwdif, and alpha is dropped. If the file has
    several video streams, the one that ffmpeg would select is read, see `open_video`. If it is
    damaged, the frames before the damage are read. Folders of pictures, numbered pictures and
    animated pictures are clips, too, see `read_sequence`.

    Frames have the colors of an SDR screen. HDR (PQ, HLG) is tone-mapped in linear light by the
    Möbius curve, with 203 cd/m2 as white, and wide gamuts (BT.2020, P3) are converted to BT.709,
    see `color.to_sdr`. ICC profiles of JPEG frames are applied; all other SDR is left as it is.

    Raises InputError if the file is not a readable video, if its colors cannot be converted (as in
    every floating-point format), if it has fewer than `frames` frames (the message says what would
    work), or if an argument is invalid.
    """
    wanted = checked(path, size, frames, fps, start_time, fit)
    if wanted.size is not None and (count := wanted.frames) is not None:
        # as many bytes as the frames will take
        require_memory(lambda w, h: 3 * w * h * count, wanted.size, count, 1, torch.device("cpu"))
    return collected(wanted.path, _stream(*wanted))


def stream_video(
    path: str | os.PathLike,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    start_time: float = 0.0,
    fit: str = "crop",
) -> FrameStream:
    """Reads a clip frame by frame: the same frames as `read_video` gives, one in memory at a time.

    Arguments and errors are those of `read_video`, but that a clip with fewer than `frames` frames
    raises InputError when they have ended. The result is a context manager and an iterator:

        with stream_video("clip.mp4", fps=8) as stream:
            for frame in stream:
                ...
    """
    return _stream(*checked(path, size, frames, fps, start_time, fit))


def _stream(
    path: Path,
    size: tuple[int, int] | None,
    frames: int | None,
    fps: float | None,
    start_time: float,
    fit: str,
) -> FrameStream:
    if is_sequence(path):
        return stream_sequence(path, size, frames, fps, start_time, fit)

    def read(stream: FrameStream) -> Generator[Shown, None, None]:
        spans: list[tuple[float, float]] = []
        count = 0
        with open_at(path, start_time) as clip:
            own_fps = own_rate(clip.stream)
            stream.fps = fps or own_fps
            longest, until = timing.limits(names(clip.container), clip.container.duration)
            timed = timing.timed(clip.frames, own_fps, longest, until, clip.first)
            timed = timing.noted(timed, spans)
            if fps is None:
                shown = timing.shown_from(timed, start_time)
            else:
                shown = timing.sampled(timed, start_time, fps)
            ratio = clip.stream.sample_aspect_ratio
            for picture in _pictures(path, islice(shown, frames), ratio, size, fit):
                count += 1
                yield picture
        if count < (frames or 1):
            raise timing.too_few(path, count, frames or 1, fps, own_fps, start_time, spans)

    return FrameStream(read)


def _pictures(
    path: Path,
    shown: Iterable[tuple],
    ratio: Fraction | None,
    size: tuple[int, int] | None,
    fit: str,
) -> Iterator[Shown]:
    """Converts (begin, end, PyAV's frame) to uint8 RGB of one size: `size`, or the first frame's.

    ratio: width / height of a pixel.
    """
    picture = last = None
    for begin, end, frame in shown:
        # a slow clip that is sampled faster shows a frame several times
        if picture is None or frame is not last:
            picture = to_rgb(path, frame, ratio)
            size = size or (picture.shape[1], picture.shape[0])
            picture, last = fit_frame(picture, size, fit), frame
        yield Shown(begin, end, picture)


def read_first_frame(path: str | os.PathLike, start_time: float = 0.0) -> np.ndarray:
    """Reads a still picture, or a video's first frame from `start_time` seconds on, as uint8 RGB.

    The result is (h, w, 3), upright, at the file's own size. start_time counts from the first frame
    and has no effect on a still picture. Which of the two the file is depends on its content, not
    its name. Raises InputError if it is neither, or if the video ends before `start_time`.
    """
    try:
        film = is_video(path)
    except InputError as no_video:
        if not Path(path).is_file():
            raise
        try:
            return read_image(path)
        except InputError as no_picture:
            raise InputError(f"{no_video}; nor is it a picture") from no_picture
    if not film:
        return read_image(path)
    return read_video(path, frames=1, start_time=start_time).frames[0]


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray,
    fps: float,
    force: bool = True,
    comment: str = "",
) -> None:
    """Writes frames, uint8 RGB (f, h, w, 3), numpy or tensor, as H.264 that any player shows.

    path: ends in .mp4, .mov or .mkv; for .gif, .webp, and numbered PNGs (frames/%05d.png), see
    `sequence_writer`. fps: frames per second, 0.01 to 1000. force: overwrites an existing file.
    comment: a text that is stored in the file's metadata.

    The pixel format is yuv420p with BT.709 colors in limited range. It needs even sizes, so an odd
    width or height is made even by repeating the last column or row. The file appears whole or not
    at all. Raises InputError for invalid frames, rate or suffix, for an existing file without
    `force`, and for a folder that is missing or cannot be written to.
    """
    frames = as_frames(frames)
    height, width = frames.shape[1:3]
    with video_writer(path, (width, height), fps, force=force, comment=comment) as writer:
        for frame in frames:
            writer.write(frame)


def _start(start_time: float) -> float:
    seconds = checks.finite("start_time", start_time)
    if not 0 <= seconds <= LONGEST:
        raise InputError(f"start_time: {seconds} is not a number of seconds from 0 to {LONGEST}")
    return seconds
