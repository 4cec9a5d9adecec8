"""Goldens of ConsistI2V: results of the original code (tests/goldens/README.md).

Of large tensors only every k-th value is stored; index.json says which k. The environment variable
ANYV2V_CONSISTI2V_GOLDENS may name a folder of the same goldens whole.
"""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.oracles import golden

COMMITTED = Path(__file__).parents[1] / "goldens" / "consisti2v"
FOLDER = Path(os.environ.get("ANYV2V_CONSISTI2V_GOLDENS", COMMITTED)).absolute()
INDEX = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
ABOUT = json.loads((FOLDER / "about.json").read_text(encoding="utf-8"))


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Load the tensors of one golden; large ones may be thinned."""
    return load_file(FOLDER / f"{name}.safetensors")


def error(file: str, name: str, ours: Tensor) -> float:
    """Return the relative L2 error of the values that the golden `name` of a file stores."""
    entry = INDEX[f"{file}.safetensors"][name]
    assert list(ours.shape) == entry["shape"], f"{name}: {tuple(ours.shape)}, not {entry['shape']}"
    truth, every = tensors(file)[name], entry.get("every")
    return golden.relative_error(ours.flatten()[::every] if every else ours, truth)


def released_shapes() -> dict[str, list[int]]:
    """Return name -> shape of every tensor of the released UNet."""
    return json.loads(gzip.decompress((COMMITTED / "released_unet_shapes.json.gz").read_bytes()))
