"""Clips that are pictures: folders of files, numbered files, and animated pictures."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import picture
from anyv2v.runtime.atomic_files import REPLACED, atomic_path, check_output, scratch

log = logging.getLogger(__name__)

FIRST = 1
"""The number of the first file that is written, the same as FFmpeg's default."""

SUFFIXES = (".gif", ".webp")
"""Suffixes of the animated pictures that can be written."""

# films may begin as these do; pictures are called so
AMBIGUOUS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}

# of pictures; the pages of others are no frames
MOVING = ("GIF", "WEBP", "PNG", "AVIF")

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
        found = filter(None, map(number.fullmatch, names_in(self.folder)))
        numbers = sorted({int(name[1]) for name in found})
        # not 1.png for %02d, and no folders
        return {n: self.file(n) for n in numbers if os.path.isfile(self.file(n))}


def is_sequence(path: str | os.PathLike) -> bool:
    """Whether a path is a clip of pictures, to be read by `stream_sequence`.

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
    """Whether `sequence_writer` writes the output `path`: its suffix is .png, .gif or .webp."""
    return Path(path).suffix.lower() in (*SUFFIXES, ".png")


Write = Callable[[np.ndarray], None]
"""Takes one frame, uint8 RGB (h, w, 3)."""


@contextmanager
def sequence_writer(
    path: str | os.PathLike,
    fps: float,
    bounds: Sequence[float] | None,
    force: bool,
    comment: str = "",
) -> Iterator[Write]:
    """Writes frames as numbered PNGs, a GIF or a WebP, by the suffix, as a context manager.

    Yields the function that takes the frames. PNGs are written as they come, and the frames of the
    others are kept in memory to the end of the block.

    path: for PNGs a pattern such as frames/%05d.png; the files are numbered from 1, and existing
    files of the pattern are removed. A GIF has 256 dithered colors per frame, at most 50 fps, times
    in hundredths of a second whose rounding does not add up, and the `comment`. A WebP is lossless,
    with times in milliseconds. Both repeat forever, and equal consecutive frames become one that is
    shown longer. PNGs have no rate, and they and WebP no comment. bounds: when each frame begins
    and the last one ends, in seconds; None goes by `fps`. The output appears whole or not at all.
    Raises InputError as `check_sequence_output` does.
    """
    check_sequence_output(path, force)
    if (pattern := numbered(path)) is not None:
        with _files_writer(pattern) as write:
            yield write
        return
    frames: list[np.ndarray] = []
    # copies, because the caller may draw the next frame into the same array
    yield lambda frame: frames.append(frame.copy())
    _write_animation(Path(path), frames, fps, bounds, comment)


def _write_animation(
    path: Path,
    frames: list[np.ndarray],
    fps: float,
    bounds: Sequence[float] | None,
    comment: str,
) -> None:
    gif = path.suffix.lower() == ".gif"
    if gif and bounds is None and fps > GIF_MOST:
        # an error would come after all the work
        log.warning(
            "anyv2v: %s has %d fps, the most that players show, not %g", path, GIF_MOST, fps
        )
        fps = GIF_MOST
    if bounds is None:
        milliseconds = [1000 * index / fps for index in range(len(frames) + 1)]
    else:
        milliseconds = [1000 * bound for bound in bounds]
    pictures = map(_in_256_colors if gif else Image.fromarray, frames)
    options: dict[str, Any] = (
        {"optimize": False, "comment": comment} if gif else {"lossless": True, "exact": True}
    )
    with atomic_path(path) as temporary:
        next(pictures).save(
            temporary,
            save_all=True,
            append_images=pictures,
            duration=_durations(milliseconds, 10 if gif else 1),
            loop=0,
            **options,
        )


def check_sequence_output(
    path: str | os.PathLike, force: bool, inputs: Sequence[str | os.PathLike] = ()
) -> None:
    """Raises InputError if `sequence_writer` could not write to `path`; see `check_output`.

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


def names_in(folder: Path) -> list[str]:
    """Returns the names in a folder; raises InputError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


@contextmanager
def _files_writer(pattern: Pattern) -> Iterator[Write]:
    names: list[Path] = []
    with scratch(pattern.folder) as folder:

        def write(frame: np.ndarray) -> None:
            names.append(pattern.file(FIRST + len(names)))
            Image.fromarray(frame).save(folder / names[-1].name, "PNG")

        yield write
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


def _durations(bounds: Sequence[float], tick: int) -> list[int]:
    """The duration of each frame in ms, a multiple of `tick`; rounding errors do not add up.

    bounds: when each frame begins and the last one ends, in ms.
    """
    ends = [round(bound / tick) * tick for bound in bounds]
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]
