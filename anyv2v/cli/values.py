"""Values of options: each function reads one text, and argparse says what is wrong with it."""

from __future__ import annotations

import argparse


def byte_count(text: str) -> int:
    """A number of bytes, such as 12GB or 500MB."""
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
    """WIDTHxHEIGHT, or the shorter side alone, in pixels."""
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and int(side) for side in sides)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, such as 512x512, nor the shorter side alone"
        )
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else int(sides[0])


def from_0(text: str, least: int = 0) -> int:
    """A whole number from `least` up, 0 by default."""
    # what a seed and every count fit into
    if not text.isdecimal() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def from_1(text: str) -> int:
    """A whole number from 1 up."""
    return from_0(text, least=1)


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def numbers_by_name(text: str) -> dict[str, float]:
    """Numbers by their names, such as conv=0.2,cross=0, each name once."""
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not name.isidentifier() or not equals or name in numbers:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,..., each name once")
        numbers[name] = number(value)
    return numbers


def scales(text: str) -> float | dict[str, float]:
    """One scale, or scales by their names, such as text=35,image=1."""
    return numbers_by_name(text) if "=" in text else number(text)


def name_and_value(text: str) -> str:
    """NAME=VALUE, without the blanks around either."""
    name, equals, value = (x.strip() for x in text.partition("="))
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return f"{name}={value}"


def above_0(text: str) -> float:
    """A number above 0."""
    if not (value := number(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value
