"""The color space of a picture, and the conversion to sRGB (IEC 61966-2-1).

A file may state its color space in several ways. Their precedence is that of the PNG specification
(third edition, section 4.3): code points (cICP, ITU-T H.273), an ICC profile, sRGB, gAMA and cHRM.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms

from anyv2v.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""The chromaticities x, y of white, red, green and blue, in the order of PNG's cHRM chunk."""

D65 = (0.3127, 0.3290)
SRGB = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)

# ITU-T H.273, table 2, by code point; 2 is "not said"
PRIMARIES = {
    1: SRGB,
    2: SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
# table 3, as the exponent of decoding; None: shown as sRGB is, the curves of cameras among them
TRANSFERS = {1: None, 2: None, 6: None, 13: None, 14: None, 15: None, 4: 2.2, 5: 2.8, 8: 1.0}
HDR = {16: "PQ", 18: "HLG"}

# the sRGB curve as gAMA has it, about
SRGB_GAMMA = (0.45, 0.46)

# pixels that are converted at a time
BLOCK = 2**20

BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@dataclass(frozen=True)
class Coded:
    """An RGB color space that is given by numbers instead of an ICC profile."""

    exponent: float | None
    """Linear light is a sample, 0 to 1, to this power; None means sRGB's curve."""
    primaries: Chromaticities = SRGB
    """Chromaticities of white and of the three primaries."""


def meaning(image: Image.Image) -> Coded | bytes | None:
    """Returns the color space that an opened picture states; bytes are an ICC profile.

    None means sRGB, or that the picture states no color space. Has to be called before the picture
    is loaded, because loading closes the file. Raises InputError for HDR (PQ, HLG) and for other
    code points of ITU-T H.273 that are not read.
    """
    # L*a*b* has one meaning, whatever the profile that comes with it
    if image.mode == "LAB":
        return None
    if (points := _code_points(image)) is not None:
        return _from_points(*points)
    info = image.info
    if profile := info.get("icc_profile"):
        return profile
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        return _from_chunks(info.get("gamma"), info.get("chromaticity"))
    return Coded(563 / 256, ADOBE_RGB) if _is_adobe_by_exif(image) else None


def to_srgb(image: Image.Image | np.ndarray, color: Coded | bytes | None) -> np.ndarray:
    """Converts a picture in the color space `color` to uint8 sRGB (h, w, 3).

    image: a PIL image of mode L, RGB or CMYK, or uint16 (h, w) or (h, w, 3) of 0 to 65535. color:
    as `meaning` returns it: `Coded`, an ICC profile in bytes, or None for sRGB. Colors out of gamut
    are clipped. A profile is applied by Little CMS in 8 bits, with relative colorimetric intent and
    black point compensation; one that cannot be applied is ignored with a warning.
    """
    if isinstance(color, Coded):
        samples = image if isinstance(image, np.ndarray) else np.asarray(_plain(image))
        return _rgb(_decoded(samples, color))
    if isinstance(image, np.ndarray):
        image = Image.fromarray(eight_bits(image))
    if color is not None and (converted := _by_profile(image, color)) is not None:
        return np.array(converted)
    return np.array(image.convert("RGB"))


def eight_bits(samples: np.ndarray) -> np.ndarray:
    """Scales uint16 levels of 0 to 65535 to uint8 levels of 0 to 255, rounded to the nearest."""
    # in place: pictures may be large
    wide = samples.astype(np.uint32)
    wide += 128
    wide //= 257
    return wide.astype(np.uint8)


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else image.convert("RGB")


def _rgb(samples: np.ndarray) -> np.ndarray:
    return np.dstack([samples] * 3) if samples.ndim == 2 else samples


def _from_points(primaries: int, transfer: int) -> Coded | None:
    if transfer in HDR:
        raise InputError(
            f"is an HDR picture ({HDR[transfer]}), which has no one meaning as sRGB; "
            "save it as SDR first"
        )
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        raise InputError(
            f"has colors of primaries {primaries} and transfer {transfer} (ITU-T H.273), which "
            "are not read; save it as sRGB first"
        )
    return _simplest(TRANSFERS[transfer], PRIMARIES[primaries])


def _from_chunks(gamma: float | None, primaries: Chromaticities | None) -> Coded | None:
    """The color space of PNG's gAMA and cHRM chunks; impossible ones are ignored with a warning."""
    if gamma is not None and not 0.01 <= gamma <= 10:
        log.warning("anyv2v: a picture's gAMA of %g is no gamma, and is left out", gamma)
        gamma = None
    if primaries is not None and _to_linear_srgb(primaries) is None:
        log.warning("anyv2v: a picture's cHRM of %s are no colors, and is left out", primaries)
        primaries = None
    exponent = None
    if gamma is not None and not SRGB_GAMMA[0] < gamma < SRGB_GAMMA[1]:
        exponent = 1 / gamma
    return _simplest(exponent, primaries or SRGB)


def _simplest(exponent: float | None, primaries: Chromaticities) -> Coded | None:
    """The color space with these values; None if it is sRGB up to rounding."""
    if max(abs(a - b) for a, b in zip(primaries, SRGB, strict=True)) < 0.005:
        primaries = SRGB
    return None if exponent is None and primaries == SRGB else Coded(exponent, primaries)


def _decoded(samples: np.ndarray, color: Coded) -> np.ndarray:
    """Converts uint8 or uint16 samples in a color space to uint8 sRGB of the same shape."""
    top = np.iinfo(samples.dtype).max
    values = np.arange(top + 1, dtype=np.float64) / top
    linear = _linear(values) if color.exponent is None else values**color.exponent
    # a gray stays gray in other primaries
    if samples.ndim == 2 or color.primaries == SRGB:
        return _encoded(linear)[samples]
    matrix = _to_linear_srgb(color.primaries)
    assert matrix is not None  # primaries without one were refused before
    matrix = matrix.astype(np.float32)
    linear = linear.astype(np.float32)
    flat = samples.reshape(-1, 3)
    out = np.empty(flat.shape, np.uint8)
    for begin in range(0, len(flat), BLOCK):
        out[begin : begin + BLOCK] = _encoded(linear[flat[begin : begin + BLOCK]] @ matrix.T)
    return out.reshape(samples.shape)


def _linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _encoded(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    curve = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, curve)).astype(np.uint8)


@lru_cache(maxsize=8)
def _to_linear_srgb(primaries: Chromaticities) -> np.ndarray | None:
    """The matrix (3, 3) from linear RGB with these primaries to linear sRGB; white stays white.

    Whites are adapted by Bradford's method. None if the primaries are not those of a color space.
    """
    try:
        source, target = _to_xyz(primaries), _to_xyz(SRGB)
        cones = [BRADFORD @ m.sum(1) for m in (source, target)]
        adapt = np.linalg.inv(BRADFORD) @ np.diag(cones[1] / cones[0]) @ BRADFORD
        matrix = np.linalg.inv(target) @ adapt @ source
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    return matrix if np.isfinite(matrix).all() and np.abs(matrix).max() < 10 else None


def _to_xyz(primaries: Chromaticities) -> np.ndarray:
    """The matrix (3, 3) from linear RGB with these primaries to CIE XYZ (SMPTE RP 177)."""
    pairs = [primaries[i : i + 2] for i in range(0, 8, 2)]
    white, *columns = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in pairs]
    rgb = np.stack(columns, 1)
    return rgb * np.linalg.solve(rgb, white)


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB; None if its profile changes nothing, or cannot be applied."""
    image = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
    try:
        mode, transform = _transform(bytes(profile), image.mode)
        if transform is None:
            return None
        return ImageCms.applyTransform(image.convert(mode), transform)
    # Little CMS says what it likes of broken profiles
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        log.warning("anyv2v: a picture's color profile is left out: %s", reason)
        return None


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile converts from, and the transform to sRGB; None if it changes nothing.

    A transform that changes a sample of colors by one level at most counts as none.
    """
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    # Pillow annotates the profile with what its constructor takes
    space = opened.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
    expected = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
    # a gray picture may have the RGB profile of what it was made from
    if expected is None or (expected != mode and (expected, mode) != ("RGB", "L")):
        raise ValueError(f"it is one for {space}, the picture is {mode}")
    transform = ImageCms.buildTransform(
        opened,
        _srgb(),
        expected,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if expected == "CMYK":
        return expected, transform
    levels = (
        np.arange(256, dtype=np.uint8) if expected == "L" else np.arange(0, 256, 15, dtype=np.uint8)
    )
    grid = levels[None] if expected == "L" else np.stack(np.meshgrid(*[levels] * 3), -1)
    sample = Image.fromarray(np.ascontiguousarray(grid.reshape(1, -1, *grid.shape[3:])))
    converted = np.asarray(ImageCms.applyTransform(sample, transform)).astype(int)
    same = np.abs(converted - np.asarray(sample.convert("RGB"))).max() <= 1
    return expected, None if same else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_adobe_by_exif(image: Image.Image) -> bool:
    """Whether Exif data say Adobe RGB, by the option file R03 of DCF 2.0 (JEITA CP-3461)."""
    if "exif" not in image.info:
        return False
    try:
        return str(image.getexif().get_ifd(ExifTags.IFD.Interop).get(1)).strip("\0 ") == "R03"
    # of broken Exif data
    except Exception:
        return False


def _code_points(image: Image.Image) -> tuple[int, int] | None:
    """Primaries and transfer in a PNG's cICP chunk or an AVIF's colr box, which Pillow ignores."""
    find = {"PNG": _cicp, "AVIF": _nclx}.get(image.format or "")
    return None if find is None else reread(image, find)


def reread(image: Image.Image, read: Callable[[IO[bytes]], T]) -> T | None:
    """Calls `read` with the file of an opened picture, at its beginning, and returns the result.

    The file's position is restored afterwards. Returns None, without a call, if the picture is
    already loaded, because Pillow has closed the file then.
    """
    file = getattr(image, "fp", None)
    if file is None or file.closed or not file.seekable():
        return None
    place = file.tell()
    try:
        file.seek(0)
        return read(file)
    finally:
        file.seek(place)


def _cicp(file: IO[bytes]) -> tuple[int, int] | None:
    file.seek(8, os.SEEK_SET)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"cICP" and len(points := file.read(2)) == 2:
            return points[0], points[1]
        if name in (b"IDAT", b"IEND"):
            return None
        file.seek(length + 4, os.SEEK_CUR)
    return None


def _nclx(file: IO[bytes]) -> tuple[int, int] | None:
    """Primaries and transfer of the first colr box (ISO/IEC 14496-12, 12.1.5).

    None if there is none, or if there is an ICC profile, which takes precedence.
    """
    head = file.read(2**16)
    at = head.find(b"colrnclx")
    if at < 0 or b"colrprof" in head or b"colrrICC" in head or len(head) < at + 12:
        return None
    primaries, transfer = struct.unpack(">2H", head[at + 8 : at + 12])
    return primaries, transfer
