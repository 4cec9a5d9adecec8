"""Reading of clips that are pictures: folders of files, numbered files, animated pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import picture, timing
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame
from anyv2v.media.sequence import FIRST, MOVING, Pattern, names_in
from anyv2v.media.stream import FrameStream, Shown, collected

RATE = 8.0
"""Frames per second of pictures without durations: the rate of I2VGen-XL."""

# of the files in a folder; the last two get a message of their own
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp")
PICTURES += (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".heic", ".heif")

# seconds; what browsers make of frames of no duration, and of GIF's below two hundredths
NO_DURATION, LEAST_OF_GIF = 0.1, 0.02

# seconds; GIF's timestamps are rounded to hundredths of a second
ROUNDING_OF_GIF = 6e-3


def read_sequence(
    path: str | os.PathLike,
    size: tuple[int, int] | None,
    frames: int | None,
    fps: float | None,
    start_time: float,
    fit: str,
) -> Video:
    """Reads a clip of pictures; arguments, result and errors are those of `read_video`.

    path: a folder, a pattern or a picture file, see `is_sequence`. The frames of a folder are its
    picture files in natural order (2 before 10), without hidden ones; those of a pattern are the
    numbered files from the lowest number on, of which none may be missing. Every file is a frame,
    and the rate is `fps`, by default 8. Frames of animated GIF, WebP, PNG and AVIF have durations
    of their own; one without is shown for 0.1 s, as in browsers. A still picture is a clip of one
    frame. Raises InputError also for pictures of different sizes.
    """
    return collected(path, stream_sequence(path, size, frames, fps, start_time, fit))


def stream_sequence(
    path: str | os.PathLike,
    size: tuple[int, int] | None,
    frames: int | None,
    fps: float | None,
    start_time: float,
    fit: str,
) -> FrameStream:
    """Reads a clip of pictures one by one; arguments and errors are those of `read_sequence`."""
    path = Path(path)
    files = files_of(path)

    def read(stream: FrameStream) -> Generator[Shown, None, None]:
        timed = _animation(path) if files is None else _at_rate(files, fps or RATE)
        spans: list[tuple[float, float]] = []
        timed = timing.noted(timed, spans)
        rounding = ROUNDING_OF_GIF if picture.format_of(path) == "GIF" else timing.ROUNDING
        # of pictures that are a frame each none is left out and none is shown twice
        if files is not None or fps is None:
            shown = timing.shown_from(timed, start_time, rounding)
        else:
            shown = timing.sampled(timed, start_time, fps, rounding)
        found: list[tuple[float, float]] = []
        for begin, end, fitted in _fitted(path, islice(shown, frames), size, fit):
            found.append((begin, end))
            if len(found) == 1:
                stream.fps = fps or (RATE if files is not None else _rate(found, rounding))
            yield Shown(begin, end, fitted)
        rate = RATE if files is not None or not found else _rate(spans[-len(found) :], rounding)
        stream.fps = fps or rate
        if len(found) < (wanted := frames or 1):
            raise timing.too_few(
                path, len(found), wanted, fps, rate, start_time, spans, files is None, rounding
            )

    return FrameStream(read)


def files_of(path: Path) -> list[Path] | None:
    """Returns the picture files of a folder or a pattern, in order; None for any other path.

    Raises InputError if there are none, if the folder cannot be read, or if a number is missing.
    """
    if os.path.isdir(path):
        names = [n for n in names_in(path) if n[0] != "." and n.lower().endswith(PICTURES)]
        if not names:
            raise InputError(
                f"{path} is a folder without pictures; it must hold one file a frame, "
                "such as 00001.png"
            )
        return [path / name for name in sorted(names, key=_natural)]
    pattern = None if os.path.isfile(path) else Pattern.of(path)
    if pattern is None:
        return None
    existing = pattern.files()
    if not existing:
        raise InputError(f"{path}: there is no such file, such as {pattern.file(FIRST)}")
    first, last = min(existing), max(existing)
    for expected, number in enumerate(existing, first):
        if number != expected:
            raise InputError(
                f"{path}: {pattern.file(expected)} is missing, of {pattern.file(first).name} to "
                f"{pattern.file(last).name}"
            )
    return list(existing.values())


def _natural(name: str) -> tuple:
    """A sort key that puts 2 before 10 and, of equal numbers, the one with fewer digits first."""
    parts = re.split("([0-9]+)", name)
    parts[1::2] = [(int(digits), len(digits)) for digits in parts[1::2]]
    return parts, name


def _at_rate(files: list[Path], rate: float) -> Iterator[tuple[float, float, Path]]:
    for index, file in enumerate(files):
        yield index / rate, (index + 1) / rate, file


def _read(path: Path) -> np.ndarray:
    with picture.opened(path) as image:
        return picture.rgb(image)


def _animation(path: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yields (begin, end, frame) of an animated picture, in seconds, up to the first damage."""
    with picture.opened(path) as image:
        # a PNG that moves may have a still for those who cannot show it
        first = int(bool(image.info.get("default_image")))
        begin = 0.0
        for index in count(first):
            try:
                if index > 0:
                    image.seek(index)
                frame = picture.rgb(image)
            except Exception:
                if index == first:
                    raise
                return
            end = begin + _duration(image)
            yield begin, end, frame
            begin = end
            if image.format not in MOVING:
                return


def _duration(image: Image.Image) -> float:
    seconds = float(image.info.get("duration") or 0) / 1000
    least = LEAST_OF_GIF if image.format == "GIF" else 0
    return min(seconds, timing.LONGEST) if seconds > 0 and seconds >= least else NO_DURATION


def _fitted(
    path: Path, shown: Iterable[tuple], size: tuple[int, int] | None, fit: str
) -> Iterator[tuple[float, float, np.ndarray]]:
    """Reads the frames and fits them to `size`; raises InputError if their own sizes differ.

    shown: (begin, end, frame), where frame is a file or uint8 RGB (h, w, 3).
    """
    last = own = fitted = None
    for begin, end, frame in shown:
        if fitted is None or frame is not last:
            last, name = frame, frame if isinstance(frame, Path) else f"{path}: a frame"
            read = _read(frame) if isinstance(frame, Path) else frame
            own = own or read.shape
            if read.shape != own:
                raise InputError(f"{name} is {_size(read.shape)}, the frames before {_size(own)}")
            fitted = read if size is None else fit_frame(read, size, fit)
        yield begin, end, fitted


def _rate(times: list[tuple[float, float]], rounding: float) -> float:
    """The average frames per second: a whole number if the times agree with one up to rounding."""
    first, last = times[0][0], times[-1][1]
    rate = len(times) / (last - first)
    whole = max(1, round(rate))
    ends = [first + index / whole for index in range(1, len(times) + 1)]
    regular = all(abs(a - b[1]) < rounding for a, b in zip(ends, times, strict=True))
    return float(whole) if regular else rate


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
