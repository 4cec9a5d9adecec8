"""Options as words of a command line, and the command line as a text to be copied."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def words(command: str, clip: str, options: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of a command of anyv2v for a clip.

    command: a command such as "edit". clip: the path of the clip. options: option -> its value,
    which is left out if it is None or False; True gives the option alone, a list repeats it, and a
    mapping gives NAME=VALUE,... in one word.
    """
    # a path that begins with - would be an option
    found = [command, os.path.join(".", clip) if clip.startswith("-") else clip]
    for option, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            found += _option(option, each)
    return found


def text(value: Any) -> str:
    """Returns a value as a word: whole numbers without a point, names with values as NAME=VALUE."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text(each)}" for name, each in value.items())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def changed(options: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that have another value than the usual one; of a mapping, the parts."""
    found: dict[str, Any] = {}
    for option, value in options.items():
        own = usual.get(option)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            parts = {name: each for name, each in value.items() if each != own.get(name)}
            found |= {option: parts} if parts else {}
        elif value != own:
            found[option] = value
    return found


def command_line(arguments: Sequence[str]) -> str:
    """Returns a command of anyv2v as a text for a POSIX shell, with each option on its own line."""
    lines = ["anyv2v"]
    for word in arguments:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n    ".join(lines)


def _option(option: str, value: Any) -> list[str]:
    if value is None or value is False or value == {}:
        return []
    if value is True:
        return [f"--{option}"]
    word = text(value)
    # argparse would take the value for an option
    return [f"--{option}={word}"] if word.startswith("-") else [f"--{option}", word]
