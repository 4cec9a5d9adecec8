"""What all methods of a comparison get: the clips and first frames at the size of the edits.

Each clip, its truths, masks and first frames are read once, as `anyv2v edit` reads them, and
written without loss below the folder of the comparison. So no method gains by another way to crop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyv2v.comparison.benchmark import BenchmarkClip, BenchmarkEdit
from anyv2v.comparison.cells import PICTURE, Comparison, Layout
from anyv2v.comparison.methods import GIVEN, TRUE
from anyv2v.errors import InputError
from anyv2v.media import container
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame, read_image
from anyv2v.media.mask import fit_mask, read_mask
from anyv2v.media.proportions import Size, check_fit
from anyv2v.media.video import read_video, write_video
from anyv2v.runtime.atomic_files import atomic_path

Reading = Callable[[Path], Mapping[str, Any]]
"""Path of a clip -> the arguments of `read_video`, besides the path, with which it is read."""


def prepare(
    comparison: Comparison, layout: Layout, reading: Reading, fit: str | None = None
) -> dict[str, dict[str, Any]]:
    """Writes the inputs of all methods; returns clip -> options of `anyv2v edit` that read them.

    fit: how pictures get to the size of the clip, one of `media.image.FITS`; None: by their
    proportions, as `anyv2v edit` does. Files that are there and hold the same are left alone.
    Raises InputError if a clip, a truth or a picture cannot be read or does not fit.
    """
    return {clip.name: _clip(comparison, clip, layout, reading, fit) for clip in comparison.clips}


def _clip(
    comparison: Comparison,
    clip: BenchmarkClip,
    layout: Layout,
    reading: Reading,
    fit: str | None,
) -> dict[str, Any]:
    read, own = dict(reading(clip.video)), container.facts(clip.video)
    video = read_video(clip.video, **read)
    count, height, width, _ = video.frames.shape
    write_clip(layout.clip(clip.name), video)
    sizes = (own.width, own.height), (width, height)
    for edit in clip.edits:
        truth = None
        if edit.truth is not None:
            truth = read_video(edit.truth, **read | {"size": (width, height), "frames": count})
            write_clip(layout.truth(edit), truth)
        if edit.mask is not None:
            _write_picture(layout.mask(edit), _mask(edit.mask, sizes, fit))
        for frame in comparison.frames:
            if frame.editor == TRUE and truth is not None:
                _write_picture(layout.frame(edit, frame), truth.frames[0])
            if frame.editor == GIVEN and edit.frame is not None:
                _write_picture(layout.frame(edit, frame), _frame(edit, sizes, fit))
    return {"size": f"{width}x{height}", "frames": count, "sample_fps": video.fps}


def _frame(edit: BenchmarkEdit, sizes: tuple[Size, Size], fit: str | None) -> np.ndarray:
    assert edit.frame is not None
    picture = read_image(edit.frame)
    size = picture.shape[1], picture.shape[0]
    return fit_frame(picture, sizes[1], fit or check_fit(str(edit.frame), size, *sizes))


def _mask(path: Path, sizes: tuple[Size, Size], fit: str | None) -> np.ndarray:
    mask = read_mask(path)
    size = mask.shape[1], mask.shape[0]
    fitted = fit_mask(mask, sizes[1], fit or check_fit(str(path), size, *sizes))
    return np.rint(fitted * 255).astype(np.uint8)


def write_clip(folder: Path, video: Video) -> None:
    """Writes a clip as a folder of pictures, unless they are there and the same."""
    folder.mkdir(parents=True, exist_ok=True)
    if _same(lambda: read_video(folder).frames, video.frames):
        return
    write_video(folder / PICTURE, video.frames, video.fps)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, (h, w, 3) or of gray (h, w), unless it is there and the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _same(lambda: np.asarray(Image.open(path)), picture):
        return
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _same(read: Callable[[], np.ndarray], wanted: np.ndarray) -> bool:
    """Whether what is there already is what is wanted; what cannot be read is not."""
    try:
        return np.array_equal(read(), wanted)
    except (OSError, InputError):
        return False
