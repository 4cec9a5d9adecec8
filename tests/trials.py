"""Rendered scenes whose true edits are known, inverted by small trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import anyv2v
from anyv2v.weights.demo.scenes import SceneEdit
from anyv2v.weights.demo.scores import Truth


@dataclass(frozen=True)
class Trial:
    truth: Truth
    source: anyv2v.Source
    caption: str


@contextmanager
def loaded(weights: str) -> Iterator[anyv2v.Editor]:
    """An editor on one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield anyv2v.load(weights, device="cpu")
    torch.set_num_threads(threads)


def invert(editor: anyv2v.Editor, edit: SceneEdit, steps: int | None = None) -> Trial:
    """Inverts the scene before the edit with its caption; steps: None for the weights' own."""
    truth = Truth.of(edit, editor.defaults.size, editor.defaults.frames)
    source = editor.invert(truth.source, steps=steps, prompt=edit.source.caption)
    return Trial(truth, source, edit.truth.caption)
