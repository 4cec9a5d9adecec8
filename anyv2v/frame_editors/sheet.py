"""A contact sheet: a frame and its edited versions in one picture, to choose one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

MARGIN, LABEL = 8, 16
COLUMNS = 5
"""Most pictures in a row."""
SIDE = 128
"""Least length of a picture's shorter side in pixels, so that its label can be read."""


def contact_sheet(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Draws pictures in a grid, each with its label above: uint8 RGB (h, w, 3).

    pictures: uint8 RGB, all of one size. Their pixels are repeated if the shorter side has fewer
    than 128. labels: one text for each picture. A row has up to 5 pictures.
    """
    zoom = math.ceil(SIDE / min(pictures[0].shape[:2]))
    pictures = [picture.repeat(zoom, 0).repeat(zoom, 1) for picture in pictures]
    height, width = (n + MARGIN for n in pictures[0].shape[:2])
    height += LABEL
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
        draw.text((x, y), label, fill="black")
        sheet.paste(Image.fromarray(picture), (x, y + LABEL))
    return np.array(sheet)
