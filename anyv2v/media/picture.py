"""Reads picture files of any bit depth as 8-bit sRGB."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from anyv2v.errors import InputError
from anyv2v.media import picture_color
from anyv2v.media.picture_color import reread

log = logging.getLogger(__name__)

# not what Pillow reads by way of other programs (PostScript) or by guess. the last has no mark of
# its own and takes what the others do not
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
NAMES = "PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, PPM, JPEG 2000 or TGA"

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf")

# TIFF 6.0
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339
WHITE_IS_ZERO, SEPARATE, UNSIGNED, SIGNED, FLOAT = 0, 2, 1, 2, 3

# of a level of 255: what resampling and rounding leave beyond 0 and 1 in floats
OVERSHOOT = 0.5 / 255


MOST_PIXELS = 2**26
"""Most pixels of a picture or a frame, about twice those of 8K video. The limit is there because a
file of a few bytes may claim any size, 16-bit pictures take many times the memory of 8-bit ones,
and video decoders hold some twenty frames."""


class _Bounded(io.BufferedReader):
    """A file whose reads are limited to its actual size, whatever length its content claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > 0:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Opens a picture file as a context manager, which yields a PIL image that is not decoded yet.

    Raises InputError, which names the path, if the file is not in one of FORMATS or has more than
    MOST_PIXELS pixels, and in place of any exception that is raised within the block.
    """
    path = Path(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise InputError("is a folder, not an image")
        # opening a pipe waits for who writes into it
        if not stat.S_ISREG(kind):
            raise InputError("is a pipe or a device, not a file; give the name of a picture file")
        with _Bounded(io.FileIO(path)) as file, Image.open(file, formats=_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise InputError(
                    f"is {image.width}x{image.height}, too large; make it smaller than "
                    f"{MOST_PIXELS // 10**6} million pixels"
                )
            yield image
    except InputError as error:
        raise InputError(f"{path} {error}") from error.__cause__
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} cannot be read as an image: {_unknown(path)}") from None
    # Pillow's many readers raise what they like on broken files, SyntaxError and struct.error
    # included
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read as an image: {reason}") from error


def format_of(path: Path) -> str | None:
    """Returns the name, out of FORMATS, of the format that a file's first 16 bytes show.

    Returns None if they show none of these or if the file cannot be read. TGA is never returned,
    because its files have no signature.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return None
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept and accept(head) is True:
            return name
    return None


def rgb(image: Image.Image) -> np.ndarray:
    """Converts a picture to uint8 sRGB (h, w, 3), upright by its Exif orientation, without alpha.

    Raises InputError if the meaning of its samples is not known. The message has no subject ("has
    signed samples, ..."): callers put the name of the picture before it.
    """
    color = picture_color.meaning(image)
    if (deep := _sixteen_bits(image)) is not None:
        return picture_color.to_srgb(deep, color)
    return picture_color.to_srgb(gray_or_color(image), color)


def gray_or_color(image: Image.Image) -> Image.Image | np.ndarray:
    """Returns a picture, upright and without alpha, as a PIL image of mode L, RGB or CMYK.

    Gray of more than 8 bits (modes I and F) is returned as uint16 (h, w) instead, scaled to 0 to
    65535. Raises InputError if black and white are not known, as in signed samples.
    """
    facts = _facts(image)
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        return _scaled(np.asarray(image), image.mode, facts)
    if facts.get(SAMPLE_FORMAT, UNSIGNED) == SIGNED:
        raise InputError("has signed samples, of which black and white are not known")
    if image.mode in ("1", "La", "LA"):
        # Pillow has no way from premultiplied gray to gray but this one
        return (image.convert("LA") if image.mode == "La" else image).convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Loads a picture and applies its Exif orientation.

    Raises InputError for JPEG 2000 of a bit depth that Pillow loads wrongly.
    """
    if image.format == "JPEG2000":
        _check_jpeg2000(image)
    return ImageOps.exif_transpose(image)


def value_range(values: np.ndarray) -> str:
    """Describes the range of an array for messages, such as "0 to 255" or "0 to 1 and NaN"."""
    least, most = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    nan = " and NaN" if values.dtype.kind == "f" and np.isnan(values).any() else ""
    return f"{least:g} to {most:g}{nan}"


def _formats() -> list[str]:
    """Those of FORMATS that the installed Pillow reads: AVIF came with 11.3."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _unknown(path: Path) -> str:
    """Says why Pillow cannot identify a file."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return (
            "it is HEIC, which is not read; "
            f"make a PNG of it first, such as by `heif-convert {path.name} {path.stem}.png`"
        )
    if (name := format_of(path)) is not None:
        return f"it is damaged, or of a kind of {name} that is not read; save it as PNG"
    return f"it is none of the picture formats that are read, {NAMES}"


def _facts(image: Image.Image) -> dict[int, int]:
    """TIFF tag -> its value for the first channel, of the tags that say what samples mean.

    Raises InputError for colors of 16 bits in separate planes.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return {}
    facts = {}
    for name in (BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT):
        value = tags.get(name)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, int):
            facts[name] = value
    # Pillow takes one byte of two of each plane
    if facts.get(PLANAR) == SEPARATE and facts.get(BITS, 8) > 8 and len(image.getbands()) > 1:
        raise InputError("has colors of 16 bits in separate planes, which are not read; interleave")
    return facts


def _check_jpeg2000(image: Image.Image) -> None:
    """Raises InputError for colors of more than 8 bits, whose whites Pillow overflows to black.

    A picture that is already loaded passes, because its bit depth is not known any more.
    """
    bits = reread(image, _jpeg2000_bits)
    if bits is not None and (max(bits) > 16 or (len(bits) > 1 and max(bits) > 8)):
        raise InputError(
            f"is JPEG 2000 of {len(bits)} channels of {max(bits)} bits, of which gray of 16 and "
            "colors of 8 are read; save it as PNG"
        )


def _jpeg2000_bits(file: IO[bytes]) -> list[int] | None:
    """The bit depth of each component in the SIZ marker (ISO/IEC 15444-1, A.5.1), or None."""
    head = file.read(2**16)
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(head) < at + 42:
        return None
    (count,) = struct.unpack(">H", head[at + 40 : at + 42])
    return [(b & 0x7F) + 1 for b in head[at + 42 : at + 42 + 3 * count : 3]] or None


def _scaled(values: np.ndarray, mode: str, facts: dict[int, int]) -> np.ndarray:
    """Scales gray of more than 8 bits to uint16 (h, w), 0 to 65535; `facts`: see `_facts`."""
    if mode == "F":
        samples = _of_floats(values)
    elif facts.get(SAMPLE_FORMAT, UNSIGNED) == SIGNED:
        raise InputError(f"has signed samples, {value_range(values)}, of which white is not known")
    elif facts.get(BITS, 16) > 16:
        raise InputError(
            f"has samples of {facts[BITS]} bits, {value_range(values)}; save it with 8 or 16 bits"
        )
    elif facts.get(BITS, 16) < 16:
        # Pillow leaves those of 12 bits as they are
        top = 2 ** facts[BITS] - 1
        samples = ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
    else:
        samples = _of_integers(values, mode)
    return 65535 - samples if facts.get(PHOTOMETRIC) == WHITE_IS_ZERO else samples


def _of_floats(values: np.ndarray) -> np.ndarray:
    # the least and the greatest are not a number if any one is not
    if not (values.min() >= -OVERSHOOT and values.max() <= 1 + OVERSHOOT):
        raise InputError(
            f"has floats of {value_range(values)}; only 0 to 1 (black to white) are read"
        )
    return np.rint(values.clip(0, 1) * 65535).astype(np.uint16)


def _of_integers(values: np.ndarray, mode: str) -> np.ndarray:
    """16-bit gray as uint16: Pillow's mode I;16, or mode I if its values can only be 16-bit."""
    least, most = values.min(), values.max()
    if not 0 <= least <= most <= 65535:
        raise InputError(f"has integers of {value_range(values)}; 16 bits go from 0 to 65535")
    if mode == "I" and 0 < most <= 255:
        raise InputError(
            f"has integers of {value_range(values)} in 32 bits, and may be meant as 8 bits or as "
            "16; save it with as many bits as it has"
        )
    if 0 < most < 4096:
        log.warning(
            "anyv2v: a picture of 16 bits has only %s, and looks black", value_range(values)
        )
    return values.astype(np.uint16)


def _sixteen_bits(image: Image.Image) -> np.ndarray | None:
    """Reads the colors of a file with 16-bit color samples as uint16 (h, w, 3); None for others.

    Pillow keeps only the upper byte of each sample. Told the other byte order, it keeps the lower.
    """
    # of later frames Pillow has put together what it kept of earlier ones
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA") or image.tell():
        return None
    if not isinstance(image, ImageFile.ImageFile):
        return None
    orders = {_byte_order(tile.args) for tile in image.tile}
    if len(orders) != 1 or None in orders:
        return None
    data = reread(image, lambda file: file.read())
    if data is None:
        return None
    _facts(image)
    with Image.open(BytesIO(data), formats=[image.format]) as lower:
        lower.tile = [tile._replace(args=_other_order(tile.args)) for tile in lower.tile]
        low = np.asarray(upright(lower).convert("RGB"))
    high = np.asarray(upright(image).convert("RGB"))
    return high.astype(np.uint16) << 8 | low


TileArgs = str | tuple[Any, ...] | None


def _raw_mode(args: TileArgs) -> str:
    return args[0] if isinstance(args, tuple) else args or ""


def _byte_order(args: TileArgs) -> str | None:
    """The byte order in a tile's raw mode; None unless it is straight color of 16-bit samples."""
    mode = _raw_mode(args)
    colors, _, order = mode.partition(";16")
    return order if colors in ("RGB", "RGBA", "RGBX") and order in ("L", "B", "N") else None


def _other_order(args: TileArgs) -> TileArgs:
    mode = _raw_mode(args)
    native = "L" if sys.byteorder == "little" else "B"
    order = mode[-1].replace("N", native)
    other = mode[:-1] + ("B" if order == "L" else "L")
    return (other, *args[1:]) if isinstance(args, tuple) else other
