"""Readers of option values: each converts one text, or raises argparse.ArgumentTypeError."""

from __future__ import annotations

import argparse

OFF, AUTO = "off", "auto"
"""Values of --protect and --guide."""
ALL = "all"
"""Value of --frames: all frames of the clip."""
SOURCE = "source"
"""Value of --sample-fps and --out-size: as the video has it."""


def byte_count(text: str) -> int:
    """Returns the number of bytes that a text such as 12GB or 500MB states; 1 KB is 1000 bytes.

    Raises ArgumentTypeError for any other text.
    """
    number = text.upper().removesuffix("B")
    scale = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:], 1)
    try:
        size = float(number.rstrip("KMG")) * scale
    except ValueError:
        size = -1.0
    if not 0 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 12GB or 500MB")
    return int(size)


def size(text: str) -> tuple[int, int] | int:
    """Reads a size in pixels: "512x512" as (width, height), or "512" as the shorter side alone.

    Raises ArgumentTypeError for any other text.
    """
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and int(side) for side in sides)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, such as 512x512, nor the shorter side alone"
        )
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else int(sides[0])


def whole_size(text: str) -> tuple[int, int]:
    """Reads a size in pixels, "512x512", as (width, height); raises ArgumentTypeError otherwise."""
    if isinstance(sides := size(text), int):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 512x512")
    return sides


def from_0(text: str, least: int = 0) -> int:
    """Reads a whole number from `least` up, below 2^63; raises ArgumentTypeError otherwise."""
    # what a seed and every count fit into
    if not text.isdecimal() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def from_1(text: str) -> int:
    """Reads a whole number from 1 up, below 2^63; raises ArgumentTypeError otherwise."""
    return from_0(text, least=1)


def count_or_all(text: str) -> int | str:
    """Reads a whole number from 1 up, or the word "all"; raises ArgumentTypeError otherwise."""
    return text if text == ALL else from_1(text)


def rate_or_source(text: str) -> float | str:
    """Reads a number above 0, or the word "source"; raises ArgumentTypeError otherwise."""
    return text if text == SOURCE else above_0(text)


def keyframe(text: str) -> str:
    """Returns INDEX:IMAGE, such as "48:later.png"; raises ArgumentTypeError for other texts."""
    index, _, path = text.partition(":")
    if not (index.isdecimal() and 0 < int(index) < 2**31 and path):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not INDEX:IMAGE, such as 48:later.png; index 0 is that of --frame"
        )
    return text


def number(text: str) -> float:
    """Reads a finite number; raises ArgumentTypeError otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def numbers_by_name(text: str) -> dict[str, float]:
    """Reads numbers by name, such as "conv=0.2,cross=0" as {"conv": 0.2, "cross": 0.0}.

    Raises ArgumentTypeError for any other text, and if a name occurs twice.
    """
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not name.isidentifier() or not equals or name in numbers:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,..., each name once")
        numbers[name] = number(value)
    return numbers


def scales(text: str) -> float | dict[str, float]:
    """Reads guidance: one scale, such as "9", or scales by name, such as "text=35,image=1".

    Raises ArgumentTypeError for any other text.
    """
    return numbers_by_name(text) if "=" in text else number(text)


def name_and_value(text: str) -> str:
    """Returns NAME=VALUE without blanks around either; raises ArgumentTypeError for other texts."""
    name, equals, value = (x.strip() for x in text.partition("="))
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return f"{name}={value}"


def above_0(text: str) -> float:
    """Reads a finite number above 0; raises ArgumentTypeError otherwise."""
    if not (value := number(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def fraction(text: str) -> float:
    """Reads a number from 0 to 1; raises ArgumentTypeError otherwise."""
    if not 0 <= (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value
