"""Goldens of SEINE: results of the original AnyV2V code on the snapshot (tests/goldens/README.md).

Of large tensors every seventh value is kept. ANYV2V_SEINE_GOLDENS names a folder with all values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.oracles import golden

OWN = Path(__file__).parents[1] / "goldens" / "seine"
FOLDER = Path(os.environ.get("ANYV2V_SEINE_GOLDENS", OWN))
INDEX = json.loads((OWN / "index.json").read_text(encoding="utf-8"))
"""File -> tensor -> [shape, dtype] and, if not all values are kept, the gap between two kept."""


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Load the tensors of one golden."""
    return load_file(FOLDER / f"{name}.safetensors")


def about() -> dict:
    """Load the settings and cases of the goldens."""
    return json.loads((OWN / "about.json").read_text(encoding="utf-8"))


def error(
    ours: Tensor, file: str, name: str, then: Callable[[Tensor], Tensor] = lambda truth: truth
) -> float:
    """Return the relative L2 error of a tensor, or of those of its values that were kept.

    then: what ours was computed from the golden by, value for value.
    """
    truth, (shape, _, *apart) = tensors(file)[name], INDEX[file][name]
    assert list(ours.shape) == shape, f"{name}: {tuple(ours.shape)} is not {tuple(shape)}"
    if list(truth.shape) != shape:
        ours = ours.flatten()[:: apart[0]]
    return golden.relative_error(ours, then(truth))
