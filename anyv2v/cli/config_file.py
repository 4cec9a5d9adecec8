"""Reads options of a command from a YAML or JSON file: `--config FILE`.

The keys of a file are the names of options, with - or _, and of positional arguments (video, src).
Options given on the command line have precedence. The sidecar of an output is such a file, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.runtime.plain_yaml import parse

LARGEST = 2**20
"""The most bytes that a config file may have."""
SETTINGS, COMMAND = "settings", "command"
"""The keys of a sidecar that hold its options and its command."""
BY_NAME = ("guidance", "inject", "option")
"""Options whose value is several numbers by name: text=35,image=1, or a mapping in a file."""


def read_config(path: str) -> dict[str, Any]:
    """Returns option (with _ for -) -> its value, as read from a YAML or JSON file.

    Of a sidecar these are its settings. Raises InputError if the file cannot be read or is no such
    file.
    """
    try:
        if Path(path).stat().st_size > LARGEST:
            raise InputError(f"{path}: is no config file: it is larger than {LARGEST} bytes")
        # Windows' editors put a mark before UTF-8
        values = parse(path, Path(path).read_text(encoding="utf-8-sig").lstrip())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no config file: it is not text in UTF-8") from error
    if isinstance(values, Mapping) and isinstance(values.get(SETTINGS), Mapping):
        values = values[SETTINGS]
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: is no config file: it has no lines such as `steps: 50`")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def options_of(
    path: str, actions: Collection[argparse.Action], known: Collection[str]
) -> tuple[dict[argparse.Action, Any], list[str]]:
    """Returns the options that a file sets, and the names in it that this command does not have.

    path: a config file. Other arguments, the result and the errors are those of `options_among`.
    """
    return options_among(path, read_config(path), actions, known)


def options_among(
    where: str,
    values: Mapping[str, Any],
    actions: Collection[argparse.Action],
    known: Collection[str],
) -> tuple[dict[argparse.Action, Any], list[str]]:
    """Returns the options that a mapping sets, and the names in it that this command does not have.

    where: where the mapping is from, for messages. values: option (with _ for -) -> value, as
    `read_config` returns them. actions: the options of the command. known: the names of all
    commands' options. The first result is action -> value, converted and checked as on the command
    line. Values of null count as not given. Raises InputError for a name that no command has, and
    for a bad value.
    """
    values = {name: value for name, value in values.items() if value is not None}
    mine = {action.dest: action for action in actions}
    if unknown := sorted(values.keys() - mine.keys() - {*known, COMMAND}):
        raise InputError(f"{where}: there is no option {shown(unknown[0])}")
    found = {
        mine[name]: _converted(f"{where}: {name}", mine[name], value)
        for name, value in values.items()
        if name in mine
    }
    # a sidecar says of all flags whether they were given
    asked = {name for name, value in values.items() if value is not False}
    return found, sorted(asked - mine.keys() - {COMMAND})


def _converted(name: str, action: argparse.Action, value: Any) -> Any:
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise InputError(f"{name}: {shown(value)} is neither true nor false")
        return value
    if isinstance(value, Mapping) and action.dest in BY_NAME:
        pairs = [f"{key}={each}" for key, each in value.items()]
        value = pairs if isinstance(action, argparse._AppendAction) else ",".join(pairs)
    if isinstance(action, argparse._AppendAction):
        return [_text(name, action, x) for x in (value if isinstance(value, list) else [value])]
    if isinstance(value, list) and action.dest == "size" and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    return _text(name, action, value)


def _text(name: str, action: argparse.Action, value: Any) -> Any:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise InputError(f"{name}: {shown(value)} is neither a text nor a number")
    try:
        text = str(value)
        # what a command line could not hold
        if b"\0" in os.fsencode(text):
            raise InputError(f"{name}: {shown(value)} holds a character of code 0")
        value = action.type(text) if callable(action.type) else text
    except UnicodeEncodeError:
        raise InputError(f"{name}: {shown(value)} holds half a character") from None
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{name}: {error}") from error
    if action.choices is not None and value not in action.choices:
        raise InputError(f"{name}: {value!r} is not one of {', '.join(map(str, action.choices))}")
    return value
