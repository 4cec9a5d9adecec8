"""YAML and JSON, with numbers and dates of YAML left as the texts that they are written as."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from anyv2v.errors import InputError

WORDS = {
    "bool": ("^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "null": ("^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
}
"""Type -> (pattern of its words, their first characters): the words of YAML 1.2 that are not texts.
Numbers are loaded as texts, because options parse them."""


def parse(where: str, text: str, aliases: bool = True) -> Any:
    """Returns what a text in YAML, or in JSON if it begins with { or [, holds.

    where: the file, for messages. aliases: allow YAML's aliases; a few lines of them can stand for
    millions. In YAML all scalars but true, false and null are texts: 1:30 is not 90, and 010 is not
    8. Raises InputError if the text is neither, and for a key that a mapping has twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Loads values as texts, but for true, false and null."""

        yaml_implicit_resolvers = {}

        def compose_node(self, parent, index):
            if not aliases and self.check_event(yaml.events.AliasEvent):
                alias = self.peek_event()
                raise yaml.YAMLError(f"the alias *{alias.anchor} is not read:{alias.start_mark}")
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            unique([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
            return super().construct_mapping(node, deep)

    for what, (pattern, first) in WORDS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{what}", re.compile(pattern), first)
    try:
        # JSON by its own reader: YAML has other escapes
        if text.startswith(("{", "[")):
            return json.loads(text, object_pairs_hook=unique)
        return yaml.load(text, Loader)
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as YAML or JSON: {error}") from error


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the mapping of pairs of a key and a value; raises ValueError for a key that is twice.

    Readers of JSON and YAML would take the last one without a word.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key} is given twice")
        found[key] = value
    return found
