"""A published model with its files opened, and its conversion to a weights folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.convert.detect import detect_foreign
from anyv2v.convert.files import Weights
from anyv2v.convert.rename import Renamed, Rule, rename
from anyv2v.errors import InputError
from anyv2v.weights.folder import Part, write_folder
from anyv2v.weights.manifest import Shapes, difference
from anyv2v.weights.tensors import Layout, largest, overflows

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights may have."""
MOST_NAMED = 10
"""How many tensors of each kind a refusal names where more than half of them are wrong."""


@dataclass(frozen=True)
class PublishedNetwork:
    """The weights of one published network, and the rules that rename its parameters."""

    weights: Weights
    table: tuple[Rule, ...]


@dataclass(frozen=True)
class Model:
    """A published model: our config.json for it, its tokenizer's files and its networks.

    vocab and merges are empty for a model that reads no text.
    """

    config: dict
    vocab: dict[str, int]
    merges: str
    """The text of merges.txt."""
    networks: dict[str, PublishedNetwork]
    """Component -> its network."""


@dataclass(frozen=True)
class Conversion:
    """The content of one file to be written, and where each of its tensors comes from."""

    weights: Weights
    theirs: dict[str, Renamed]
    """Our key -> the published key."""
    layout: Layout
    """Our key -> (dtype, shape)."""


def write_model(
    model: Model,
    dst: Path,
    expected: Mapping[str, Shapes],
    dtype: torch.dtype | None,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write a model in our format, one tensor at a time; see `anyv2v.convert.published.convert`.

    expected: component -> our key -> shape.
    """
    conversions = _match(model, expected, dtype)

    def read(conversion: Conversion, name: str) -> Tensor:
        theirs = conversion.theirs[name]
        where = f"{conversion.weights.files[theirs.name].path}: {theirs.name}"
        tensor = conversion.weights.read(theirs.name)
        tensor = tensor.T if theirs.rule.transpose else tensor
        return _cast(where, tensor, *conversion.layout[name])

    parts = {name: Part(c.layout, partial(read, c)) for name, c in conversions.items()}
    write_folder(dst, model.config, model.vocab, model.merges, parts, force, progress)


def _match(
    model: Model, expected: Mapping[str, Shapes], dtype: torch.dtype | None
) -> dict[str, Conversion]:
    """Find the published tensor of each expected one; InputError lists all that do not fit.

    Names and shapes are compared in the published form, because messages should name tensors as
    they stand in the published files.
    """
    conversions, problems = {}, []
    for component, network in model.networks.items():
        weights = network.weights
        shapes = {key: shape for key, (_, shape) in weights.layout.items()}
        dtypes = {key: kind for key, (kind, _) in weights.layout.items()}
        theirs = rename(expected[component], network.table, to="theirs")
        expected_shapes = {
            renamed.name: renamed.their_shape(expected[component][ours])
            for ours, renamed in theirs.items()
        }
        if problem := _difference(component, shapes, expected_shapes):
            problems.append(f"{weights.origin}: {problem}")
        elif odd := [f"{key} is {kind}" for key, kind in dtypes.items() if kind not in FLOATS]:
            problems.append(f"{weights.origin}: no weights of a supported dtype: {', '.join(odd)}")
        else:
            layout = {
                ours: (dtype or dtypes[renamed.name], tuple(expected[component][ours]))
                for ours, renamed in theirs.items()
            }
            conversions[component] = Conversion(weights, theirs, layout)
    if problems:
        raise InputError(" | ".join(problems))
    return conversions


def _difference(component: str, shapes: Shapes, expected: Shapes) -> str:
    if shapes == expected:
        return ""
    if foreign := detect_foreign(component, shapes, expected):
        return foreign
    right = sum(shapes.get(name) == shape for name, shape in expected.items())
    return difference(shapes, expected, limit=None if 2 * right > len(expected) else MOST_NAMED)


def _cast(where: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    bound = largest(tensor)
    # written so that NaN fails too
    if not bound < float("inf"):
        raise InputError(f"{where} holds values that are not finite")
    if overflows(bound, dtype):
        raise InputError(
            f"{where}: its largest value, {bound:g}, becomes infinite in {dtype}; "
            "take float32 or bfloat16"
        )
    return tensor.to(dtype).reshape(shape)
