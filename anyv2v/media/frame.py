"""Conversion of a decoded video frame to an upright uint8 RGB picture."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import color, picture_color
from anyv2v.media.ffmpeg import pyav

# where FFmpeg's converter puts the white of limited range YUV in RGB of 16 bits
LIMITED_WHITE = 65283

# SWS_BICUBIC, SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT, the flags with which FFmpeg's swscale
# converts exactly; without the others it rounds down, by up to 3 of 255 levels. PyAV has names for
# them from version 18 on
EXACT = 0x4 | 0x40000 | 0x2000

# the side data of a frame that FFmpeg may know and PyAV does not
NEWER_SIDE_DATA = 16

# how FFmpeg calls pixels of floats; Radiance, OpenEXR and most others mean linear light by them
FLOATS = re.compile(r"f(16|32)(be|le)?$")

# AVCOL_RANGE_JPEG
FULL = 2


def to_rgb(name, frame, pixel_aspect: Fraction | None) -> np.ndarray:
    """Converts a frame of PyAV to uint8 RGB (h, w, 3): upright, with square pixels, in SDR.

    pixel_aspect: width / height of a pixel; None means square. Raises InputError, which begins with
    `name`, the name of the video, if the frame's colors cannot be converted.
    """
    matrix = _matrix(frame)
    foreign = color.is_foreign(frame.color_primaries, frame.color_trc)
    if FLOATS.search(frame.format.name):
        raise InputError(
            f"{name}: its colors are floats ({frame.format.name}), of which white is not known; "
            "convert them to 8 or 16 bits first"
        )
    color.check(
        name,
        None if _is_rgb(frame) else frame.colorspace,
        frame.color_primaries,
        frame.color_trc,
    )
    # where a file does not say where its chroma lies, FFmpeg's converter takes the center, and zimg
    # the left: PyAV tells neither which files these are nor the converter another place
    rgb = frame.reformat(
        width=display_width(frame, pixel_aspect),
        format="rgb48le" if foreign else "rgb24",
        src_colorspace=matrix,
        interpolation=EXACT,
    ).to_ndarray()
    if foreign:
        white = 65535 if _is_rgb(frame) or frame.color_range == FULL else LIMITED_WHITE
        primaries = frame.color_primaries
        if primaries == color.UNSPECIFIED:
            primaries = color.BT2020
        rgb = color.to_sdr(rgb, white, primaries, frame.color_trc)
    elif (profile := _side_data(frame, "ICC_PROFILE")) is not None:
        # films of JPEG have those of their pictures
        rgb = picture_color.to_srgb(Image.fromarray(rgb), profile)
    return _upright(rgb, display_matrix(frame))


def display_size(frame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Returns the (width, height) of the picture that `to_rgb` makes from a frame of PyAV.

    pixel_aspect: width / height of a pixel; None means square.
    """
    width, height = display_width(frame, pixel_aspect), frame.height
    matrix = display_matrix(frame)
    return (height, width) if matrix is not None and _is_turned(matrix) else (width, height)


def display_width(frame, pixel_aspect: Fraction | None) -> int:
    """Returns the width of a frame of PyAV scaled to square pixels, before any rotation.

    pixel_aspect: width / height of a pixel; None, and a value outside 1/4 to 4, means square.
    """
    # beyond these it is a damaged header, not a camera
    stretch = pixel_aspect if pixel_aspect and 1 / 4 <= pixel_aspect <= 4 else 1
    return max(1, round(frame.width * stretch))


def display_matrix(frame) -> bytes | None:
    """Returns the display matrix of a frame of PyAV, which says how to turn and mirror it, or None.

    The bytes are the native 32-bit integers of FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX. EXIF
    orientations are in it as well.
    """
    return _side_data(frame, "DISPLAYMATRIX")


def without_side_data(frame, kinds: Iterable[int]):
    """Returns a frame of PyAV without its side data (metadata) of some kinds.

    kinds: the numbers of FFmpeg's AV_FRAME_DATA_* to be removed.
    """
    graph = pyav().filter.Graph()
    nodes = [graph.add_buffer(template=frame, time_base=frame.time_base or Fraction(1))]
    for kind in kinds:
        nodes.append(graph.add("sidedata", mode="delete", type=str(kind)))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def _matrix(frame) -> int:
    if frame.colorspace != color.UNSPECIFIED:
        return frame.colorspace
    if frame.color_trc in (color.PQ, color.HLG) or frame.color_primaries == color.BT2020:
        return color.BT2020_MATRIX
    # players take high definition for BT.709 when the file does not say
    return color.BT709 if frame.height >= 720 else color.UNSPECIFIED


def _is_rgb(frame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _side_data(frame, kind: str) -> bytes | None:
    # not frame.side_data, which the frame keeps and which keeps the frame: only the garbage
    # collector would free such frames, hundreds at a time
    container = pyav().sidedata.sidedata.SideDataContainer
    try:
        data = container(frame).get(kind)
    except ValueError:
        # PyAV's enum is older than its FFmpeg: one datum of a kind that it lacks (EXIF, the views
        # of stereo video) hides all. FFmpeg's own filter takes those out
        newest = max(kind.value for kind in pyav().sidedata.sidedata.Type)
        newer = range(newest + 1, newest + 1 + NEWER_SIDE_DATA)
        data = container(without_side_data(frame, newer)).get(kind)
    return None if data is None else bytes(data)


def _is_turned(matrix: bytes) -> bool:
    """Whether the matrix turns the picture by a quarter, so that its sides change places."""
    a, b = struct.unpack("=2i", matrix[:8])
    return abs(b) > abs(a)


def _upright(picture: np.ndarray, matrix: bytes | None) -> np.ndarray:
    """Applies the quarter turns and mirrorings of a display matrix: x' = ax + cy, y' = bx + dy."""
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if _is_turned(matrix):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
