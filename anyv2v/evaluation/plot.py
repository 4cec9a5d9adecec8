"""Curves as a picture in SVG, which an HTML page holds as text."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

WIDTH, HEIGHT = 360, 200
"""Size of a plot in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 24, 36
"""Margins in pixels around the area of the curves."""
COLORS = ("#1f6feb", "#d1480f", "#2a8a3e", "#8250df", "#6e7781")
"""Colors of the curves, in their order; they repeat after the last."""


def plot(title: str, curves: Mapping[str, Sequence[float]], x: str, y: str) -> str:
    """Draws curves over the whole numbers 0, 1, 2 ... and returns them as one `<svg>` element.

    title: the text above. curves: name -> values, at least one curve with at least one value; all
    values must be finite. x, y: what the axes show, with units. The y axis begins at 0, or at the
    least value if that is negative. Texts may hold any characters; they are escaped.
    """
    values = [float(v) for curve in curves.values() for v in curve]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"plot {title!r}: needs at least one value, and only finite ones")
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1.0
    longest = max(len(curve) for curve in curves.values())

    def place(i: float, value: float) -> tuple[float, float]:
        across = (WIDTH - LEFT - RIGHT) * i / max(1, longest - 1)
        up = (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [_text(WIDTH / 2, 14, title, "middle", "font-weight:bold"), *_axes(place, low, high)]
    parts += [
        _text(LEFT, HEIGHT - BOTTOM + 14, "0", "middle"),
        _text(WIDTH - RIGHT, HEIGHT - BOTTOM + 14, str(longest - 1), "middle"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 14, x, "middle"),
        f'<g transform="rotate(-90 10 {HEIGHT / 2:g})">{_text(10, HEIGHT / 2, y, "middle")}</g>',
    ]
    for i, (name, curve) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        points = " ".join("{:.2f},{:.2f}".format(*place(k, v)) for k, v in enumerate(curve))
        parts.append(f'<polyline fill="none" stroke="{color}" points="{points}"/>')
        # the names stand below the axis, one beside the other
        at = LEFT + (WIDTH - LEFT - RIGHT) * i / len(curves)
        parts.append(_text(at, HEIGHT - 6, name, "start", f"fill:{color}"))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} class="plot">{"".join(parts)}</svg>'


def _axes(
    place: Callable[[float, float], tuple[float, float]], low: float, high: float
) -> list[str]:
    """The horizontal line at 0 and the labels of the least and the greatest value."""
    (left, zero), (_, bottom), (_, top) = place(0, 0.0), place(0, low), place(0, high)
    lines = [
        f'<path fill="none" stroke="#888" d="M{left:.2f},{top:.2f}V{bottom:.2f}"/>',
        f'<path fill="none" stroke="#888" d="M{left:.2f},{zero:.2f}H{WIDTH - RIGHT}"/>',
    ]
    return lines + [
        _text(LEFT - 4, at + 3, f"{value:.3g}", "end") for value, at in ((low, bottom), (high, top))
    ]


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    style = f' style="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{html.escape(text)}</text>'
