"""Clips that are pictures: folders of files, numbered files, and animated pictures."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import picture, timing
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame
from anyv2v.media.stream import FrameStream, Shown, collected
from anyv2v.runtime.atomic_files import REPLACED, atomic_path, check_output, scratch

log = logging.getLogger(__name__)

RATE = 8.0
"""Frames per second of pictures without durations: the rate of I2VGen-XL."""

FIRST = 1
"""The number of the first file that is written, the same as FFmpeg's default."""

SUFFIXES = (".gif", ".webp")
"""Suffixes of the animated pictures that can be written."""

# of the files in a folder; the last two get a message of their own
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp")
PICTURES += (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".heic", ".heif")

# films may begin as these do; pictures are called so
AMBIGUOUS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}

# of pictures; the pages of others are no frames
MOVING = ("GIF", "WEBP", "PNG", "AVIF")

# seconds; what browsers make of frames of no duration, and of GIF's below two hundredths
NO_DURATION, LEAST_OF_GIF = 0.1, 0.02

# seconds; GIF's timestamps are rounded to hundredths of a second
ROUNDING_OF_GIF = 6e-3

GIF_MOST = 50
"""Most frames per second of a GIF, because players slow down faster ones."""


@dataclass(frozen=True)
class Pattern:
    """The pattern of the names of numbered files, such as frames/%05d.png."""

    folder: Path
    """The folder of the files."""
    before: str
    """The part of the name before the number."""
    digits: int
    """The least number of digits, filled up with zeros; 0 for %d, which has no zeros."""
    after: str
    """The part of the name after the number, with the suffix."""

    @classmethod
    def of(cls, path: str | os.PathLike) -> Pattern | None:
        """Parses a path such as frames/%05d.png.

        Returns None if the file name does not hold exactly one %, in a number such as %d or %05d.
        """
        path = Path(path)
        found = re.fullmatch(r"([^%]*)%(?:0(\d{1,2}))?d([^%]*)", path.name, re.DOTALL)
        return found and cls(path.parent, found[1], int(found[2] or 0), found[3])

    def file(self, number: int) -> Path:
        """Returns the path of the file with a number, whether or not it exists."""
        return self.folder / f"{self.before}{number:0{self.digits}}{self.after}"

    def files(self) -> dict[int, Path]:
        """Returns number -> path of the existing files of the pattern, in ascending order.

        Raises InputError if the folder cannot be read.
        """
        number = re.compile(re.escape(self.before) + r"([0-9]{1,18})" + re.escape(self.after))
        found = filter(None, map(number.fullmatch, _names(self.folder)))
        numbers = sorted({int(name[1]) for name in found})
        # not 1.png for %02d, and no folders
        return {n: self.file(n) for n in numbers if os.path.isfile(self.file(n))}


def is_sequence(path: str | os.PathLike) -> bool:
    """Whether a path is a clip of pictures, to be read by `read_sequence`.

    It is if it is a folder, a pattern such as frames/%05d.png (unless a file has that very name),
    or a picture file, judged by its first bytes. JPEG and JPEG 2000 files must have the suffix of a
    picture as well, because videos may begin with the same bytes.
    """
    path = Path(path)
    if os.path.isdir(path):
        return True
    if not os.path.isfile(path):
        return not os.path.exists(path) and Pattern.of(path) is not None
    name = picture.format_of(path)
    return name is not None and path.suffix.lower() in AMBIGUOUS.get(name, (path.suffix.lower(),))


def moves(path: str | os.PathLike) -> bool:
    """Whether `is_sequence` holds for a path, and the path is not a still picture.

    A folder or a pattern counts as moving, even with one picture; a file, if it is animated.
    """
    path = Path(path)
    if not is_sequence(path) or not os.path.isfile(path):
        return is_sequence(path)
    try:
        with picture.opened(path) as image:
            return image.format in MOVING and bool(getattr(image, "is_animated", False))
    except InputError:
        return False


def writes_sequence(path: str | os.PathLike) -> bool:
    """Whether `write_sequence` writes the output `path`: its suffix is .png, .gif or .webp."""
    return Path(path).suffix.lower() in (*SUFFIXES, ".png")


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


def write_sequence(
    path: str | os.PathLike, frames: np.ndarray, fps: float, force: bool, comment: str = ""
) -> None:
    """Writes frames, uint8 RGB (f, h, w, 3), as numbered PNGs, a GIF or a WebP, by the suffix.

    path: for PNGs a pattern such as frames/%05d.png; the files are numbered from 1, and existing
    files of the pattern are removed. A GIF has 256 dithered colors per frame, at most 50 fps, times
    in hundredths of a second whose rounding does not add up, and the `comment`. A WebP is lossless,
    with times in milliseconds. Both repeat forever, and equal consecutive frames become one that is
    shown longer. PNGs have no rate, and they and WebP no comment. The output appears whole or not
    at all. Raises InputError as `check_sequence_output` does.
    """
    check_sequence_output(path, force)
    if (pattern := numbered(path)) is not None:
        _write_files(pattern, frames)
        return
    path = Path(path)
    gif = path.suffix.lower() == ".gif"
    if gif and fps > GIF_MOST:
        # an error would come after all the work
        log.warning(
            "anyv2v: %s has %d fps, the most that players show, not %g", path, GIF_MOST, fps
        )
        fps = GIF_MOST
    pictures = map(_in_256_colors if gif else Image.fromarray, frames)
    options: dict[str, Any] = (
        {"optimize": False, "comment": comment} if gif else {"lossless": True, "exact": True}
    )
    with atomic_path(path) as temporary:
        next(pictures).save(
            temporary,
            save_all=True,
            append_images=pictures,
            duration=_durations(len(frames), fps, 10 if gif else 1),
            loop=0,
            **options,
        )


def check_sequence_output(
    path: str | os.PathLike, force: bool, inputs: Sequence[str | os.PathLike] = ()
) -> None:
    """Raises InputError if `write_sequence` could not write to `path`; see `check_output`.

    force: overwrites an existing GIF or WebP, or existing files of the pattern of numbered PNGs;
    without it they are an error. inputs: paths that the run reads; it is an error if numbered PNGs
    would overwrite one of them, or be written to a folder that is read or holds numbered files that
    are read. A name with the suffix .png but without a number is an error as well.
    """
    if (pattern := numbered(path)) is None:
        if Path(path).suffix.lower() == ".png":
            raise InputError(
                f"cannot write {path}: several frames need a number in the name, "
                f"such as {Path(path).stem.replace('%', '')}-%05d.png"
            )
        check_output(path, force, SUFFIXES)
        return
    # the folder, its rights, and names that are too long
    check_output(pattern.file(FIRST), force=True)
    existing = pattern.files()
    if existing and not force:
        raise InputError(
            f"{next(iter(existing.values()))} already exists; --force (force=True) overwrites it, "
            f"and removes the others of {path}"
        )
    folder, own = Path(os.path.realpath(pattern.folder)), set(map(_real, existing.values()))
    for source in map(_real, inputs):
        if source == folder or source in own or (source.parent == folder and Pattern.of(source)):
            raise InputError(f"-o {path}: is where the input {source} is, which is not overwritten")


def numbered(path: str | os.PathLike) -> Pattern | None:
    """Returns the pattern of an output of numbered PNGs, such as frames/%05d.png; else None.

    Names with another suffix are no pattern, whether or not they hold a %.
    """
    return Pattern.of(path) if Path(path).suffix.lower() == ".png" else None


def _real(path: str | os.PathLike) -> Path:
    return Path(os.path.realpath(path))


def files_of(path: Path) -> list[Path] | None:
    """Returns the picture files of a folder or a pattern, in order; None for any other path.

    Raises InputError if there are none, if the folder cannot be read, or if a number is missing.
    """
    if os.path.isdir(path):
        names = [n for n in _names(path) if n[0] != "." and n.lower().endswith(PICTURES)]
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


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


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


def _write_files(pattern: Pattern, frames: np.ndarray) -> None:
    names = [pattern.file(FIRST + index) for index in range(len(frames))]
    with scratch(pattern.folder) as folder:
        for target, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(folder / target.name, "PNG")
        old = folder / REPLACED
        old.mkdir()
        moved: list[tuple[Path, Path]] = []
        try:
            for source in pattern.files().values():
                _move(source, old / source.name, moved)
            for target in names:
                _move(folder / target.name, target, moved)
        # an interrupted run leaves what was there
        except BaseException:
            for source, target in reversed(moved):
                with suppress(OSError):
                    os.replace(target, source)
            raise


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    moved.append((source, target))
    os.replace(source, target)


def _in_256_colors(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame)
    palette = image.quantize(256)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _durations(frames: int, fps: float, tick: int) -> list[int]:
    """The duration of each frame in ms, a multiple of `tick`; rounding errors do not add up."""
    ends = [round(1000 * index / fps / tick) * tick for index in range(frames + 1)]
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]
