"""A published model whose files are open, and its conversion to a weights folder.

A component is one network of a model, such as "unet". "Ours" are the names and shapes of parameters
in this package's networks, "theirs" those in the published files.
"""

import re
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
"""The dtypes that published and converted weights may have."""
MOST_NAMED = 10
"""How many tensors of each kind (missing, extra, misshapen) an error message names if at least half
of the expected tensors are not as they should be; otherwise it names all."""


@dataclass(frozen=True)
class PublishedNetwork:
    """The weights of one published network, and the rules that rename its parameters to ours."""

    weights: Weights
    table: tuple[Rule, ...]
    """Rules of which exactly one applies to each parameter; see `rename`."""
    float32: re.Pattern | None = None
    """Matches our whole names of parameters that are converted to float32 in place of half
    precision; None if there are none."""

    def dtype(self, ours: str, wanted: torch.dtype) -> torch.dtype:
        """Returns the dtype that the parameter `ours` is converted to if `wanted` is asked for."""
        stays = self.float32 is not None and self.float32.fullmatch(ours)
        return torch.float32 if stays else wanted


@dataclass(frozen=True)
class Model:
    """A published model: open weight files, tokenizer, and its configs translated to ours."""

    config: dict
    """The content of the config.json that the converted folder will have."""
    tokenizer: dict[str, str]
    """Name of each file of the tokenizer, in a weights folder -> its text; empty for a model that
    reads no text."""
    networks: dict[str, PublishedNetwork]
    """Component (such as "unet") -> its published network."""


@dataclass(frozen=True)
class Conversion:
    """The tensors of one file to be written, and the published tensors that they are made from."""

    weights: Weights
    """The published tensors."""
    theirs: dict[str, Renamed]
    """Our name of a tensor -> its published name, with the rule that relates the two."""
    layout: Layout
    """Our name of a tensor -> the (dtype, shape) in which it is written."""


def write_model(
    model: Model,
    dst: Path,
    expected: Mapping[str, Shapes],
    dtype: torch.dtype | None,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes a published model as a weights folder, one tensor at a time.

    expected: component (such as "unet") -> our name of a tensor -> its shape. For the other
    arguments and the errors see `anyv2v.convert.published.convert`.
    """
    conversions = _match(model, expected, dtype)

    def read(conversion: Conversion, name: str) -> Tensor:
        theirs = conversion.theirs[name]
        where = f"{conversion.weights.files[theirs.name].path}: {theirs.name}"
        tensor = conversion.weights.read(theirs.name)
        tensor = tensor.T if theirs.rule.transpose else tensor
        return _cast(where, tensor, *conversion.layout[name])

    parts = {name: Part(c.layout, partial(read, c)) for name, c in conversions.items()}
    write_folder(dst, model.config, model.tokenizer, parts, force, progress)


def _match(
    model: Model, expected: Mapping[str, Shapes], dtype: torch.dtype | None
) -> dict[str, Conversion]:
    """Finds the published tensor of each expected one; InputError lists all that do not fit.

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
                ours: (
                    network.dtype(ours, dtype) if dtype else dtypes[renamed.name],
                    tuple(expected[component][ours]),
                )
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
