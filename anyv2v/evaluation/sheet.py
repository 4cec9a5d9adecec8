"""A page that shows clips side by side with their scores: one HTML file that needs no other file.

The clips are animated WebP pictures inside the page. Its own rules (a content security policy)
forbid scripts, and that anything is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

LEAST, MOST = 128, 256
"""Bounds in pixels of the shorter side of a clip that is shown. Pixels of smaller clips are
repeated, and larger clips are scaled down."""
QUALITY = 85
"""Quality of WebP, 0 to 100."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #1f2328; background: #fff }
section { border-top: 1px solid #d0d7de; margin-top: 24px }
figure { display: inline-block; margin: 8px 12px 8px 0; vertical-align: top }
figcaption { font-size: 13px; color: #59636e; max-width: 40em }
table { border-collapse: collapse; margin: 12px 0 }
caption { text-align: left; color: #59636e }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #d0d7de;
  vertical-align: top }
.number { text-align: right; font-variant-numeric: tabular-nums }
.plot { font: 11px system-ui, sans-serif; margin-right: 12px }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, eq=False)
class Shown:
    """A clip on the page."""

    label: str
    """The text below it."""
    frames: np.ndarray
    """The frames, uint8 RGB (f, h, w, 3); a picture is a clip of one frame."""
    fps: float = 8.0
    """Frames per second."""


@dataclass(frozen=True)
class Table:
    """A table on the page. Cells are texts; those that read as numbers stand on the right."""

    columns: Sequence[str]
    """The heads of the columns."""
    rows: Sequence[Sequence[str]]
    """The rows, each with one text for each column."""
    caption: str = ""
    """The text above the table."""


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page: what is shown of one edit, or of one scene."""

    title: str
    """The heading."""
    clips: Sequence[Shown] = ()
    """Clips that stand side by side, in one row if the window is wide enough."""
    table: Table | None = None
    """The table below the clips."""
    plots: Sequence[str] = ()
    """Pictures below the table, each an `<svg>` element as `plot` makes it; not escaped."""
    notes: Sequence[str] = ()
    """Lines of text below the heading."""


def sheet(title: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Returns an HTML page with a title, lines of text (`notes`) and sections, in this order.

    All texts are escaped. The page is to be written as UTF-8; a text may hold a surrogate, as names
    of files do that are no UTF-8, for which the writer has to care.
    """
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = [f"<h1>{html.escape(title)}</h1>", *_paragraphs(notes), *map(_section, sections)]
    lines = ["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body]
    return "\n".join([*lines, "</body></html>", ""])


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", *_paragraphs(section.notes)]
    if section.clips:
        parts.append(f"<div>{''.join(map(_figure, section.clips))}</div>")
    if section.table is not None:
        parts.append(_table(section.table))
    if section.plots:
        parts.append(f"<div>{''.join(section.plots)}</div>")
    return f"<section>{''.join(parts)}</section>"


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [f"<p>{html.escape(line)}</p>" for line in lines]


def _figure(clip: Shown) -> str:
    data, (width, height) = animation(clip.frames, clip.fps)
    source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    label = html.escape(clip.label)
    image = f'<img width="{width}" height="{height}" alt="{label}" src="{source}">'
    return f"<figure>{image}<figcaption>{label}</figcaption></figure>"


def _table(table: Table) -> str:
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(text: str) -> str:
    kind = ' class="number"' if _is_number(text) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def animation(frames: np.ndarray, fps: float) -> tuple[bytes, tuple[int, int]]:
    """Encodes a clip, uint8 RGB (f, h, w, 3), as an animated WebP that repeats without end.

    fps: frames per second. Returns the bytes, and the (width, height) at which the clip is shown:
    see `LEAST` and `MOST`.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    width, height = pictures[0].size
    shorter = min(width, height)
    if shorter > MOST:
        size = round(width * MOST / shorter), round(height * MOST / shorter)
        pictures = [picture.resize(size, Image.Resampling.BOX) for picture in pictures]
    elif shorter < LEAST:
        times = math.ceil(LEAST / shorter)
        size = width * times, height * times
        pictures = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    first, *others = pictures
    data = io.BytesIO()
    first.save(
        data,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / fps),
        loop=0,
        quality=QUALITY,
    )
    return data.getvalue(), first.size
