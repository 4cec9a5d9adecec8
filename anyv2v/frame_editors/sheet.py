"""A contact sheet: the frame and its candidates in one picture, to choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

MARGIN, LABEL = 8, 16
COLUMNS = 5
"""The most pictures in a row."""
SIDE = 128
"""The least number of pixels of a picture's shorter side, so that the labels can be read."""


def contact_sheet(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Pictures of one size in a grid, each with its label above: uint8 RGB (h, w, 3)."""
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
