"""Pictures: reading, cropping, and conversion between uint8 and the range of the networks."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media import picture
from anyv2v.media.proportions import inscribed_size

Frame = str | os.PathLike | np.ndarray | Image.Image
"""Accepted as a picture: a path, an array, uint8 (h, w, 3), or a PIL image."""
PICTURES = "a path, a picture, or an array, uint8 (h, w, 3)"
FITS = ("crop", "stretch", "pad")


def read_image(source: Frame) -> np.ndarray:
    """Reads a file, a PIL image or a uint8 array (h, w, 3) as uint8 sRGB (h, w, 3).

    The EXIF orientation is applied; of several pictures in a file the first is taken. Alpha is
    dropped, not composited: hidden colors become visible, as in the original (PIL's
    `convert("RGB")`). Colors that a file describes (an ICC profile, gAMA, cHRM, cICP, nclx) become
    sRGB (`picture_color`); more than 8 bits, floats of 0 to 1 too, are scaled (`picture`).
    InputError: it is not in a format that is read, or the meaning of its numbers is ambiguous.
    """
    if isinstance(source, Image.Image):
        if not source.width or not source.height:
            raise InputError(f"an image of {source.width}x{source.height} holds nothing")
        try:
            return picture.rgb(source)
        except InputError as error:
            raise InputError(f"an image {error}") from error
    if isinstance(source, (str, os.PathLike)):
        with picture.opened(source) as image:
            return picture.rgb(image)
    checks.kind("source", source, (np.ndarray, Tensor), PICTURES)
    return _as_uint8(source, 3, "an image", "(h, w, 3)")


def read_argument(name: str, value: str | os.PathLike | np.ndarray | Image.Image) -> np.ndarray:
    """Reads the argument `name` of a call with `read_image`; an InputError names the argument."""
    try:
        if isinstance(value, (str, os.PathLike)):
            return read_image(checks.path(name, value))
        return read_image(checks.kind(name, value, (np.ndarray, Image.Image, Tensor), PICTURES))
    except InputError as error:
        named = str(error).startswith(f"{name}:")
        raise error if named else InputError(f"{name}: {error}") from error


def crop_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the smallest picture of `source`'s proportions that covers `target`."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h <= h * to_w:
        return to_w, h * to_w // w
    return w * to_h // h, to_h


def crop_size_original(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """`crop_size` as the original computes it: one pixel short where s is rounded up.

    TIGER-AI-Lab/AnyV2V, i2vgen-xl: float floor division by s, as in 704 // 0.55 = 1279.
    """
    (w, h), (to_w, to_h) = source, target
    s = min(w / to_w, h / to_h)
    return round(w // s), round(h // s)


def crop_box(resized: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the center; starts at -1 where `resized` is one pixel short."""
    left, top = (resized[0] - target[0]) // 2, (resized[1] - target[1]) // 2
    return left, top, left + target[0], top + target[1]


def center_crop(
    image: Image.Image | np.ndarray, size: tuple[int, int], black_edge: bool = False
) -> np.ndarray:
    """The center of the image at `size` (width, height), uint8 RGB (h, w, 3), by a box filter.

    With `black_edge` the original's rounding is used, which for many sizes leaves the first row or
    column black (704 // 0.55 is 1279). For all other sizes both give the same pixels.
    """
    size = checks.size(size)
    image = _as_pil(image)
    resized = (crop_size_original if black_edge else crop_size)(image.size, size)
    if resized[0] * resized[1] > max(Image.MAX_IMAGE_PIXELS or 0, 16 * size[0] * size[1]):
        raise InputError(
            f"a {image.width}x{image.height} picture is too narrow to be cropped to "
            f"{size[0]}x{size[1]}; cut it to about these proportions first"
        )
    image = image.resize(resized, Image.Resampling.BOX)
    return np.array(image.crop(crop_box(resized, size)))


def fit_frame(image: Image.Image | np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Fits a picture to `size` (width, height): uint8 RGB (h, w, 3).

    fit: "crop" cuts the center (`center_crop`); "stretch" resizes with LANCZOS whatever the
    proportions, as the original's run script does with the edited frame; "pad" keeps all of the
    picture, between black bars (`letterbox`).
    """
    checks.one_of("fit", fit, FITS)
    if fit == "crop":
        return center_crop(image, size)
    if fit == "pad":
        return letterbox(image, size)
    return np.array(_as_pil(image).resize(checks.size(size), Image.Resampling.LANCZOS))


def letterbox(image: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The whole image within `size` (width, height), in the middle of black: uint8 RGB (h, w, 3).

    Resized by a box filter, as `center_crop` does: of an image of the size's proportions both make
    the same. Of an odd number of black rows or columns there is one more below or on the right.
    """
    width, height = size = checks.size(size)
    image = _as_pil(image)
    image = image.resize(inscribed_size(image.size, size), Image.Resampling.BOX)
    whole = Image.new("RGB", size)
    whole.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return np.array(whole)


def to_pixels(frames: np.ndarray | Tensor) -> Tensor:
    """Converts uint8 frames (f, h, w, 3) to float32 (f, 3, h, w) in -1..1, on the CPU."""
    # a copy, because numpy arrays may be read-only
    return pixels_of(torch.from_numpy(as_frames(frames).copy()))


def pixels_of(frames: Tensor) -> Tensor:
    """`to_pixels` without checks and copies, on the device of the frames, or without data."""
    # contiguous, because channels-last memory would select other kernels
    return frames.permute(0, 3, 1, 2).contiguous().float() / 255 * 2 - 1


def to_frames(pixels: Tensor) -> np.ndarray:
    """Converts pixels (f, 3, h, w) of any float dtype in -1..1 to uint8 frames (f, h, w, 3).

    Values beyond are clamped, and halves are rounded to even, as in the original.
    """
    levels = (pixels.detach() / 2 + 0.5).clamp(0, 1).float().mul(255).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def as_frames(frames: np.ndarray | Tensor) -> np.ndarray:
    """Frames as a contiguous uint8 array (f, h, w, 3), or an InputError if they are none."""
    return _as_uint8(frames, 4, "frames", "(f, h, w, 3)")


def _as_pil(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    return Image.fromarray(read_image(image))


def _as_uint8(values, ndim: int, what: str, shape: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    fits = array.ndim == ndim and array.shape[-1] == 3 and array.size > 0
    if array.dtype != np.uint8 or not fits:
        raise InputError(f"{what} must be uint8 {shape} RGB, not {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)
