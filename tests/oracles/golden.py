"""Goldens: results of the original AnyV2V code on the tiny snapshot (tests/goldens/README.md)."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "goldens" / "tiny"


def tensors(name: str) -> dict[str, Tensor]:
    """Load the tensors of one golden."""
    return load_file(FOLDER / f"{name}.safetensors")


def facts(name: str):
    """Load the JSON of one golden."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Return ||ours - truth|| / ||truth||, computed in float64."""
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    ours, truth = ours.double(), truth.double()
    return ((ours - truth).norm() / truth.norm()).item()
