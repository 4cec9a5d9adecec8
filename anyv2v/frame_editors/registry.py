"""Frame editors by name: making one from options, which may be text, and listing all."""

from __future__ import annotations

import importlib
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor

SETUP = ("device", "dtype")
"""Fields of editors that are not options, because the command line sets them for all models."""


def find(name: str) -> type[FrameEditor]:
    """Returns the class of the editor that EDITORS lists under `name`.

    Raises InputError, which lists the known names, for an unknown one.
    """
    if name not in EDITORS:
        raise InputError(f"editor: {name!r} is not one of {', '.join(EDITORS)}")
    module, _, attribute = EDITORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(name: str, options: Mapping[str, Any] | None = None, **setup: Any) -> FrameEditor:
    """Makes the editor that EDITORS lists under `name`.

    options: field name -> value; text is converted to the type of the field. setup: further fields
    (device, dtype), ignored if they are None or the editor has no such field. Raises InputError for
    an unknown name or option, a missing option, or an invalid value.
    """
    editor = find(name)
    kinds = typing.get_type_hints(editor)
    known = {field.name: field for field in _options(editor)}
    values = {}
    for option, value in (options or {}).items():
        if option not in known:
            names = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"editor {name} has no option {option!r}; {names}")
        values[option] = value
        if isinstance(value, str):
            values[option] = _typed(f"editor {name}, option {option}", value, kinds[option])
    required = [n for n, f in known.items() if f.default is f.default_factory is MISSING]
    if missing := [option for option in required if option not in values]:
        raise InputError(f"editor {name} needs {option_name(missing[0])}")
    values |= {n: v for n, v in setup.items() if n in kinds and n not in values and v is not None}
    return editor(**values)


def option_name(field: str) -> str:
    """Returns the command-line option that sets a field of an editor.

    For example, "weights" is set by "--editor-weights" and "steps" by
    "--editor-option steps=VALUE".
    """
    if field in ("weights", "command", "timeout"):
        return f"--editor-{field}"
    return f"--editor-option {field}=VALUE"


def describe() -> str:
    """Returns the text of `anyv2v edit-frame --list`.

    It has a line for each editor in EDITORS, with its name, what it does and which inputs it needs,
    and a second line with the options of an editor that has any.
    """
    lines = []
    for name in EDITORS:
        editor = find(name)
        text = (editor.__doc__ or "").strip().partition("\n")[0]
        wants = " and ".join(sorted(editor.needs))
        lines.append(f"{name:17}{text}" + (f" Needs {wants}." if wants else ""))
        kinds = typing.get_type_hints(editor)
        options = [
            f"{field.name} ({_kind_name(kinds[field.name])}{_default(field)})"
            for field in _options(editor)
        ]
        if options:
            lines.append(f"{'':17}options: {', '.join(options)}")
    return "\n".join(lines)


def _options(editor: type[FrameEditor]) -> list[Field[Any]]:
    # as the protocol asks; a checker cannot know
    assert is_dataclass(editor)
    return [field for field in fields(editor) if field.name not in SETUP]


def _default(field: Field[Any]) -> str:
    if field.default is field.default_factory is MISSING:
        return ", needed"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return "" if value in (None, "") else f", else {value}"


def _typed(what: str, text: str, kind: Any) -> Any:
    choices = _choices(kind)
    for choice in choices:
        try:
            return _READERS[choice](text) if choice in _READERS else _one_of(text, choice)
        except ValueError:
            continue
    raise InputError(f"{what}: {text!r} is not {_kind_name(kind)}")


def _choices(kind: Any) -> list[Any]:
    """The types in a union, of which str is the last, because it accepts any text."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        kinds = [choice for one in typing.get_args(kind) for choice in _choices(one)]
        return sorted(kinds, key=lambda choice: choice is str)
    if kind is type(None):
        return []
    if typing.get_origin(kind) is os.PathLike:
        return [os.PathLike]
    return [kind]


def _one_of(text: str, kind: Any) -> Any:
    for value in typing.get_args(kind) if typing.get_origin(kind) is Literal else ():
        if text == str(value):
            return value
    raise ValueError


def _kind_name(kind: Any) -> str:
    names = []
    for choice in _choices(kind):
        if typing.get_origin(choice) is Literal:
            names += [str(value) for value in typing.get_args(choice)]
        else:
            names.append(_NAMES.get(choice, getattr(choice, "__name__", str(choice))))
    # for `str | Path`
    return " or ".join(dict.fromkeys(n for n in names if not (n == "text" and "a path" in names)))


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _yes_or_no(text: str) -> bool:
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


_READERS = {
    bool: _yes_or_no,
    int: int,
    float: _finite,
    Path: Path,
    os.PathLike: Path,
    str: str,
}
_NAMES = {
    bool: "yes or no",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    os.PathLike: "a path",
    str: "text",
}
