"""The goldens that the original AnyV2V code made of the tiny snapshot (tests/goldens/README.md)."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "goldens" / "tiny"


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def facts(name: str):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """||ours - truth|| / ||truth||, in float64."""
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    ours, truth = ours.double(), truth.double()
    return ((ours - truth).norm() / truth.norm()).item()
