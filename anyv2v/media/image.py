"""Pictures: reading, cropping, and conversion between uint8 and the range of the networks."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media import picture
from anyv2v.media.proportions import inscribed_size

Frame = str | os.PathLike | np.ndarray | Image.Image
"""What is accepted as a picture: a path, a uint8 RGB array (h, w, 3), or a PIL image."""
PICTURES = "a path, a picture, or an array, uint8 (h, w, 3)"
"""`Frame` in words, for error messages."""
FITS = ("crop", "stretch", "pad")
"""The ways in which `fit_frame` fits a picture to a size."""


def read_image(source: Frame) -> np.ndarray:
    """Reads a file, a PIL image or a uint8 RGB array (h, w, 3) as uint8 sRGB (h, w, 3).

    The EXIF orientation is applied. If a file holds several pictures, the first is read. Alpha is
    dropped, not composited: hidden colors become visible, as in the original (PIL's
    `convert("RGB")`). If a file states its color space (ICC profile, gAMA, cHRM, cICP, nclx), the
    colors are converted to sRGB (see `picture_color`). Samples of more than 8 bits, and floats of 0
    to 1, are scaled to 8 bits (see `picture`). Raises InputError if the file is in no format that
    is read, or if the meaning of its samples is ambiguous.
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
    """Returns the picture `value` as uint8 sRGB (h, w, 3), as `read_image` reads it.

    Raises InputError, which begins with `name`, the name of the argument that had this value, if it
    is not a picture or cannot be read.
    """
    try:
        if isinstance(value, (str, os.PathLike)):
            return read_image(checks.path(name, value))
        return read_image(checks.kind(name, value, (np.ndarray, Image.Image, Tensor), PICTURES))
    except InputError as error:
        named = str(error).startswith(f"{name}:")
        raise error if named else InputError(f"{name}: {error}") from error


def crop_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Returns the size to which a picture is scaled before its center is cropped to `target`.

    The result is the smallest size that has the proportions of `source` and covers `target`, with
    fractions of a pixel cut off. All sizes are (width, height).
    """
    (w, h), (to_w, to_h) = source, target
    if w * to_h <= h * to_w:
        return to_w, h * to_w // w
    return w * to_h // h, to_h


def crop_size_original(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Returns `crop_size` with the rounding of the original, by which some sides lack a pixel.

    TIGER-AI-Lab/AnyV2V, in its folder i2vgen-xl, divides each side by the scale with the floor
    division of floats, by which 704 // 0.55 is 1279 and not 1280.
    """
    (w, h), (to_w, to_h) = source, target
    s = min(w / to_w, h / to_h)
    return round(w // s), round(h // s)


def crop_box(resized: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the box (left, top, right, bottom) of size `target` in the center of `resized`.

    Both sizes are (width, height). left or top is -1 where `resized` is one pixel short of
    `target`, as `crop_size_original` may make it.
    """
    left, top = (resized[0] - target[0]) // 2, (resized[1] - target[1]) // 2
    return left, top, left + target[0], top + target[1]


def center_crop(
    image: Image.Image | np.ndarray, size: tuple[int, int], black_edge: bool = False
) -> np.ndarray:
    """Scales an image to cover `size` (width, height) and crops its center: uint8 RGB (h, w, 3).

    image: a PIL image or uint8 RGB (h, w, 3), scaled by a box filter. black_edge: uses the
    original's rounding (`crop_size_original`), which for many sizes leaves the first row or column
    black; for all others the pixels are the same. Raises InputError for an image so narrow that
    scaling would take too much memory.
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


def fit_frame(
    image: Image.Image | np.ndarray, size: tuple[int, int], fit: str, bilinear: bool = False
) -> np.ndarray:
    """Fits a picture to `size` (width, height): uint8 RGB (h, w, 3).

    image: a PIL image or uint8 RGB (h, w, 3). fit: "crop" scales the picture to cover the size and
    crops its center (`center_crop`); "stretch" resizes it with LANCZOS whatever its proportions, as
    the original's run script does with the edited frame; "pad" keeps all of it between black bars
    (`letterbox`). bilinear: stretch by bilinear interpolation without antialiasing, and do not
    round: the result is float32, 0 to 255. Raises InputError for any other `fit`.
    """
    checks.one_of("fit", fit, FITS)
    if bilinear and fit == "stretch":
        pixels = torch.from_numpy(np.array(_as_pil(image), np.float32)).permute(2, 0, 1)[None]
        pixels = F.interpolate(pixels, checks.size(size)[::-1], mode="bilinear")
        return pixels[0].permute(1, 2, 0).numpy()
    if fit == "crop":
        return center_crop(image, size)
    if fit == "pad":
        return letterbox(image, size)
    return np.array(_as_pil(image).resize(checks.size(size), Image.Resampling.LANCZOS))


def letterbox(image: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales an image to fit within `size` (width, height), on black: uint8 RGB (h, w, 3).

    image: a PIL image or uint8 RGB (h, w, 3), scaled by a box filter as in `center_crop`; if it has
    the proportions of `size`, both functions return the same pixels. The image is centered; an odd
    number of black rows or columns puts one more below it or on its right.
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
    """Converts uint8 frames (f, h, w, 3) to float32 (f, 3, h, w) in -1..1, on their own device.

    Unlike `to_pixels` it checks nothing, and takes tensors on a GPU or on the meta device as well.
    """
    # contiguous, because channels-last memory would select other kernels
    return frames.permute(0, 3, 1, 2).contiguous().float() / 255 * 2 - 1


def to_frames(pixels: Tensor) -> np.ndarray:
    """Converts pixels (f, 3, h, w) of any float dtype in -1..1 to uint8 frames (f, h, w, 3).

    The result is on the CPU. Values outside -1..1 are clamped, and levels are rounded to the
    nearest, halves to even, as in the original.
    """
    levels = (pixels.detach() / 2 + 0.5).clamp(0, 1).float().mul(255).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def as_frames(frames: np.ndarray | Tensor) -> np.ndarray:
    """Returns frames as a contiguous uint8 array (f, h, w, 3), copied only where needed.

    Raises InputError if they do not have that dtype and shape, or if there are none.
    """
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
