"""The pictures of `anyv2v demo`: clips under one another as frames, or side by side and moving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND, INK, FAINT = (31, 35, 40), (240, 243, 246), (158, 166, 174)
"""Colors of the ground, of names and of lesser texts, RGB: the pictures bring a dark ground of
their own, so that they can be read on light and on dark pages."""
MARGIN, GAP = 16, 10
"""Pixels around the picture, and between frames."""
SHOWN, PANEL = 144, 256
"""The least length in pixels of a frame's shorter side, in a sheet and in a moving picture."""
COLUMNS = 5
"""Most frames of a clip in a sheet."""
PAUSE = 600
"""Milliseconds for which the last frame of a moving picture stays, so that its jump to the first
frame is not taken for a motion."""

Texts = tuple[str, ...]
"""A name, and lines that stand below it."""


def enlarged(frames: np.ndarray, shown: int) -> np.ndarray:
    """Returns frames (n, h, w, 3) enlarged by repeating pixels, a whole number of times.

    shown: the least length of a side in the result, in pixels.
    """
    times = max(1, -(-shown // min(frames.shape[1:3])))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def fitted(frames: np.ndarray, shown: int) -> np.ndarray:
    """Returns frames (n, h, w, 3) `enlarged`, or scaled down if they are larger than `shown`."""
    height, width = frames.shape[1:3]
    if min(height, width) <= shown:
        return enlarged(frames, shown)
    size = round(width * shown / min(height, width)), round(height * shown / min(height, width))
    box = Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, box)) for frame in frames])


def sheet(clips: Mapping[Texts, np.ndarray], fps: float) -> Image.Image:
    """Returns a picture with a row of frames for each clip, its name at the left.

    clips: a name and further lines -> uint8 RGB (f, h, w, 3), all of one shape. fps: frames per
    second, for the times above the columns. At most 5 frames of each are shown, at equal distances
    from the first on.
    """
    count = len(next(iter(clips.values())))
    shown = range(0, count, -(-count // COLUMNS))
    rows = [fitted(clip[:: shown.step], SHOWN) for clip in clips.values()]
    height, width = rows[0].shape[1:3]
    name, small = ImageFont.load_default(22), ImageFont.load_default(16)
    lines = [(text, small if i else name) for texts in clips for i, text in enumerate(texts)]
    left = MARGIN + GAP + round(max(font.getlength(text) for text, font in lines))
    top = MARGIN + 24
    size = left + len(shown) * (width + GAP), top + len(rows) * (height + GAP)
    picture = Image.new("RGB", (size[0] - GAP + MARGIN, size[1] - GAP + MARGIN), GROUND)
    draw = ImageDraw.Draw(picture)
    for column, index in enumerate(shown):
        place = left + column * (width + GAP) + width // 2, MARGIN + 6
        draw.text(place, f"{index / fps:.2f} s", FAINT, small, anchor="mm")
    for row, (texts, frames) in enumerate(zip(clips, rows, strict=True)):
        y = top + row * (height + GAP)
        for column, frame in enumerate(frames):
            picture.paste(Image.fromarray(frame), (left + column * (width + GAP), y))
        _write(draw, (MARGIN, y + height // 2), texts, name, small)
    return picture


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], texts: Texts, name, small) -> None:
    """Writes a name, and the other texts below it, with its middle at the height of `place`."""
    x, middle = place
    y = middle - 12 * (len(texts) - 1)
    for i, text in enumerate(texts):
        draw.text((x, y), text, FAINT if i else INK, small if i else name, anchor="lm")
        y += 24


def moving(clips: Mapping[Texts, np.ndarray]) -> list[Image.Image]:
    """Returns the frames of clips side by side, each clip with its name above.

    clips: a name and one further line -> uint8 RGB (f, h, w, 3), all of one shape.
    """
    panels = [fitted(clip, PANEL) for clip in clips.values()]
    height, width = panels[0].shape[1:3]
    top, name, small = MARGIN + 32, ImageFont.load_default(24), ImageFont.load_default(16)
    size = 2 * MARGIN + len(panels) * (width + GAP) - GAP, top + height + MARGIN
    ground = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(ground)
    places = [MARGIN + i * (width + GAP) for i in range(len(panels))]
    for (text, below), x in zip(clips, places, strict=True):
        draw.text((x, top - 12), text, INK, name, anchor="ls")
        draw.text((x + GAP + name.getlength(text), top - 12), below, FAINT, small, anchor="ls")
    pictures = []
    for frames in zip(*panels, strict=True):
        picture = ground.copy()
        for frame, x in zip(frames, places, strict=True):
            picture.paste(Image.fromarray(frame), (x, top))
        pictures.append(picture)
    return pictures


def write_gif(path: Path, pictures: list[Image.Image], fps: float) -> None:
    """Writes pictures as a GIF that repeats without end, its last frame shown for longer.

    All of them share one palette of 256 colors without dithering, so that colors that stay the
    same in the clip do so in the file.
    """
    whole = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
    palette = whole.quantize(256, kmeans=1, dither=Image.Dither.NONE)
    first, *others = (p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    step = round(1000 / fps)
    durations = [step] * len(others) + [step + PAUSE]
    first.save(path, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
