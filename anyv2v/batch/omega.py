r"""Configurations as OmegaConf reads them: merged, and with values that refer to others.

Of its interpolations these are read: ${a.b} from the top, ${.c} beside the value, ${..d} one level
up and so on, a[0] and a.0 for an item of a list, ${oc.env:NAME} and ${oc.env:NAME,default}. They
may stand within texts and within each other, and \${ is a plain ${. (OmegaConf's documentation,
"Variable interpolation" and "Built-in resolvers".)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from anyv2v.checks import shown
from anyv2v.errors import InputError

MISSING = "???"
"""The value of what has to be given elsewhere."""
LONGEST = 2**16
"""The most characters of a value; a few values that refer to each other can stand for millions."""
MOST = 2**12
"""The most references that one value may lead to, for the same reason."""


def merge(below: Any, above: Any) -> Any:
    """Returns `below` with what `above` says: mappings are merged, other values replaced."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{k: merge(below.get(k), value) for k, value in above.items()}}


class Config:
    """A configuration whose values are resolved when they are asked for."""

    def __init__(self, where: str, values: Mapping[str, Any]):
        """where: where it is told, for messages. values: the values as they are written."""
        self.where, self.values = where, dict(values)
        self._followed = 0

    def __contains__(self, key: str) -> bool:
        """Whether the file says something under a key, such as "inverse_config.prompt"."""
        return self._found(key.split(".")) is not None

    def get(self, key: str) -> Any:
        """Returns the value of a key, such as "inverse_config.prompt"; None if there is none.

        Raises InputError if it refers to what is not there, to itself, or has still to be given.
        """
        path, self._followed = key.split("."), 0
        value = self._resolved(self._found(path), path, (key,))
        if value == MISSING:
            raise InputError(f"{self.where}: {key} is {MISSING}: it has still to be given")
        return value

    def keys(self) -> Iterator[str]:
        """Yields the keys of all values that are no mappings, such as "inverse_config.prompt"."""
        yield from _keys(self.values, "")

    def used(self) -> set[str]:
        """Returns the first parts of the keys that values refer to from the top."""
        return set(re.findall(r"\$\{(\w+)(?=[.}\[])", str(self.values)))

    def _found(self, path: list[str]) -> Any:
        value: Any = self.values
        for part in path:
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def _resolved(self, value: Any, path: list[str], seen: tuple[str, ...]) -> Any:
        """A value without references. path: its place. seen: what led to it."""
        if isinstance(value, Mapping):
            return {k: self._resolved(v, [*path, str(k)], seen) for k, v in value.items()}
        if isinstance(value, list):
            return [self._resolved(v, [*path, str(i)], seen) for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        parts, rest = self._parts(value, path, seen, inside=False)
        assert not rest
        return parts[0] if len(parts) == 1 else self._joined(parts, path)

    def _parts(
        self, text: str, path: list[str], seen: tuple[str, ...], inside: bool
    ) -> tuple[list[Any], str]:
        """The pieces of a text, references replaced by what they stand for, and what comes after.

        inside: the text is that of a reference, which ends with a brace.
        """
        parts: list[Any] = []
        while text:
            found = re.search(r"\\\$\{|\$\{|\}" if inside else r"\\\$\{|\$\{", text)
            if found is None:
                break
            if found.start():
                parts.append(text[: found.start()])
            text = text[found.end() :]
            if found[0] == "}":
                return parts, text
            if found[0] == "${":
                inner, text = self._parts(text, path, seen, inside=True)
                parts.append(self._reference(self._joined(inner, path), path, seen))
            else:
                parts.append("${")
        if inside:
            raise InputError(f"{self.where}: {'.'.join(path)}: a ${{ is not closed")
        return [*parts, text] if text else parts, ""

    def _joined(self, parts: list[Any], path: list[str]) -> str:
        text = "".join(map(str, parts))
        if len(text) > LONGEST:
            raise InputError(f"{self.where}: {'.'.join(path)} is longer than {LONGEST} characters")
        return text

    def _reference(self, text: str, path: list[str], seen: tuple[str, ...]) -> Any:
        """What ${text} stands for in the value at `path`."""
        name = f"{self.where}: {'.'.join(path)}: ${{{text}}}"
        if text.startswith("oc.env:"):
            variable, comma, default = text.removeprefix("oc.env:").partition(",")
            value = os.environ.get(variable.strip(), default.strip() if comma else None)
            if value is None:
                raise InputError(f"{name}: there is no such environment variable")
            return None if value == "null" and variable.strip() not in os.environ else value
        if ":" in text:
            raise InputError(f"{name}: of OmegaConf's resolvers only oc.env is read")
        text = text.strip()
        dots = len(text) - len(text.lstrip("."))
        if dots > len(path):
            raise InputError(f"{name}: there is nothing above")
        above = path[: len(path) - dots] if dots else []
        target = [*above, *(part for part in re.split(r"[.\[\]]+", text[dots:]) if part)]
        key = ".".join(target)
        self._followed += 1
        if key in seen or self._followed > MOST:
            raise InputError(f"{name}: refers to itself, or to too much")
        if (value := self._found(target)) is None:
            raise InputError(f"{name}: there is no {shown(key)}")
        return self._resolved(value, target, (*seen, key))


def _keys(values: Mapping[str, Any], before: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"
