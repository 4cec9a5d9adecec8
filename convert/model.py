"""A published model, opened, and writing it as a folder of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.convert.detect import recognise
from anyv2v.convert.files import Weights
from anyv2v.convert.rename import Renamed, Rule, rename
from anyv2v.errors import InputError
from anyv2v.weights.folder import Part, write_folder
from anyv2v.weights.manifest import Shapes, difference
from anyv2v.weights.tensors import Layout, largest, overflows

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NAMED = 10
"""How many tensors of each kind a refusal names where more than half of them are wrong."""


@dataclass(frozen=True)
class Source:
    """One network's weights, and the rules for its names."""

    weights: Weights
    table: tuple[Rule, ...]


@dataclass(frozen=True)
class Model:
    """config: ours. merges: the text of merges.txt. sources: component -> its weights.

    vocab and merges are empty for a model that reads no texts.
    """

    config: dict
    vocab: dict[str, int]
    merges: str
    sources: dict[str, Source]


@dataclass(frozen=True)
class Plan:
    """What one output file will hold: our key -> their key, our key -> (dtype, shape)."""

    weights: Weights
    theirs: dict[str, Renamed]
    layout: Layout


def write_model(
    model: Model,
    dst: Path,
    expected: dict[str, Shapes],
    dtype: torch.dtype | None,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write a model in our format, tensor by tensor; see `anyv2v.convert.published.convert`.

    expected: component -> our key -> shape.
    """
    plans = _plan(model, expected, dtype)

    def fetch(plan: Plan, name: str) -> Tensor:
        theirs = plan.theirs[name]
        where = f"{plan.weights.files[theirs.name].path}: {theirs.name}"
        tensor = plan.weights.read(theirs.name)
        return _cast(where, tensor.T if theirs.rule.transpose else tensor, *plan.layout[name])

    parts = {name: Part(plan.layout, partial(fetch, plan)) for name, plan in plans.items()}
    write_folder(dst, model.config, model.vocab, model.merges, parts, force, progress)


def _plan(model: Model, expected: dict[str, Shapes], dtype: torch.dtype | None) -> dict[str, Plan]:
    """Compare what there is with what is expected, in their names, and match the two."""
    plans, problems = {}, []
    for name, source in model.sources.items():
        found = {key: shape for key, (_, shape) in source.weights.layout.items()}
        types = {key: kind for key, (kind, _) in source.weights.layout.items()}
        theirs = rename(expected[name], source.table, to="theirs")
        wanted = {new.name: new.their_shape(expected[name][ours]) for ours, new in theirs.items()}
        if differs := _differs(name, found, wanted):
            problems.append(f"{source.weights.where}: {differs}")
        elif odd := [f"{key} is {kind}" for key, kind in types.items() if kind not in FLOATS]:
            problems.append(
                f"{source.weights.where}: no weights of a supported dtype: {', '.join(odd)}"
            )
        else:
            layout = {
                ours: (dtype or types[new.name], tuple(expected[name][ours]))
                for ours, new in theirs.items()
            }
            plans[name] = Plan(source.weights, theirs, layout)
    if problems:
        raise InputError(" | ".join(problems))
    return plans


def _differs(component: str, found: Shapes, wanted: Shapes) -> str:
    if found == wanted:
        return ""
    if stranger := recognise(component, found, wanted):
        return stranger
    right = sum(found.get(name) == shape for name, shape in wanted.items())
    return difference(found, wanted, limit=None if 2 * right > len(wanted) else NAMED)


def _cast(where: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    bound = largest(tensor)
    if not bound < float("inf"):
        raise InputError(f"{where} holds values that are not finite")
    if overflows(bound, dtype):
        raise InputError(
            f"{where}: its largest value, {bound:g}, becomes infinite in {dtype}; "
            "take float32 or bfloat16"
        )
    return tensor.to(dtype).reshape(shape)
