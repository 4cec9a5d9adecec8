"""The editors of the first frame that the page of `anyv2v ui` offers, with their options."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Literal

from anyv2v.cli.first_frame import uses
from anyv2v.comparison.methods import FRAMES, FrameSource, read_frame_sources
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.registry import SETUP, find, make
from anyv2v.ui.studio import EditorOption, PageEditor

OFFERED = (bool, int, float)
"""Types of options that the page offers, besides a choice of several words: no paths."""


def read_editors(defined: Sequence[str]) -> list[PageEditor]:
    """Returns the editors that need no weights, then those that are defined as NAME=EDITOR ...

    Raises InputError for a definition that cannot be read.
    """
    plain = [name for name in EDITORS if not _required(name)]
    sources = read_frame_sources(plain, defined)
    if wrong := [source for source in sources if source.editor in FRAMES]:
        raise InputError(f"--editor {wrong[0].name}: {wrong[0].editor} is no editor")
    return [_offered(source) for source in sources]


def _offered(source: FrameSource) -> PageEditor:
    editor, read = find(source.editor), uses(make(source.editor, source.options))
    separate = {name: source.options[name] for name in _SEPARATE if name in source.options}
    others = [f"{n}={value}" for n, value in source.options.items() if n not in _SEPARATE]
    words = {"editor": source.editor} | {f"editor-{n}": value for n, value in separate.items()}
    options = [x for x in _options(editor) if x.name not in source.options]
    text = (editor.__doc__ or "").strip().partition("\n")[0]
    words |= {"editor-option": others}
    return PageEditor(source.name, text, editor.needs, read, options, words)


_SEPARATE = ("weights", "command", "timeout")
"""Options of editors that are options of the command line."""


def _options(editor: type) -> list[EditorOption]:
    kinds, found = typing.get_type_hints(editor), []
    # as the protocol asks; a checker cannot know
    assert is_dataclass(editor)
    for each in fields(editor):
        kind = kinds[each.name]
        if each.name in (*SETUP, *_SEPARATE) or each.default is MISSING:
            continue
        if typing.get_origin(kind) is Literal:
            choices = [str(value) for value in typing.get_args(kind)]
            found.append(EditorOption(each.name, None, each.default, choices))
        elif kind in OFFERED:
            found.append(EditorOption(each.name, kind, each.default))
    return found


def _required(name: str) -> bool:
    """Whether an editor has an option without a default, such as its weights."""
    editor = find(name)
    assert is_dataclass(editor)
    return any(each.default is each.default_factory is MISSING for each in fields(editor))
