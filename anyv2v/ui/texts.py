"""What the page says, in words."""

from __future__ import annotations

from collections.abc import Sequence

STAGES = {
    "invert": "Inverting the clip",
    "edit": "Editing",
    "windows": "Inverting and editing",
    "decode": "Decoding",
}
"""Stage of a run, as commands call it -> what the page calls it."""


def clip_text(
    frames: int, fps: float, size: tuple[int, int], own: tuple[int, int], windows: int
) -> str:
    """Returns what is read of a clip.

    frames: number of frames. fps: how many are taken per second. size: (width, height) of the
    frames. own: that of the file. windows: in how many windows the clip is edited.
    """
    text = f"{frames} frames, {fps:g} per second, at {_by(size)} pixels"
    if own != size:
        text += f" (the file has {_by(own)})"
    return text + (f", in {windows} windows" if windows > 1 else "") + "."


def plan_text(
    invert: int, sample: int, flops: int, peak: int, windows: int = 1, kept: bool = False
) -> str:
    """Returns what an edit will take.

    invert, sample: evaluations of the network, for each window. flops: operations, likewise. peak:
    bytes of memory. windows: number of windows. kept: the clip is inverted already.
    """
    if kept:
        work = f"The clip is inverted already, so the edit starts at once: {sample} evaluations"
    else:
        work = f"Up to {invert} evaluations of the network to invert the clip and {sample} to edit"
    each = f" for each of {windows} windows" if windows > 1 else ""
    return (
        f"{work}{each}, {windows * flops / 1e12:.3g} trillion operations, "
        f"and about {peak / 1e9:.2g} GB of memory."
    )


def progress_text(title: str, left: str) -> str:
    """Returns the text beside a bar; title: the stage. left: the time that is left, or ""."""
    return STAGES.get(title, title) + (f", {left} left" if left else "")


def notices_text(lines: Sequence[str]) -> str:
    """Returns notices as Markdown, one item each; nothing in them is taken for Markdown."""
    return "\n".join(f"- {_plain(line)}" for line in lines)


def error_text(line: str) -> str:
    """Returns what went wrong as Markdown."""
    return f"**{_plain(line)}**"


def _plain(text: str) -> str:
    return "".join(f"\\{x}" if x in "\\`*_{}[]<>()#+-.!|~$&" else x for x in text)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
