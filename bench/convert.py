"""Conversion, verification and loading of weights, each compared with copying the same bytes.

The weights are random and in Hugging Face's format: those of a small model, or (full) of the
published sizes in half precision, 5 GB. Every tensor that is written must have the sum of squares
of the tensor that it was made of; `verify` compares names and shapes with the network.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import anyv2v
from anyv2v.convert.published import convert
from anyv2v.loading import expected_shapes, inspect
from bench.core import Bench, Contender

# what differs from the tiny model of tests/oracles/snapshot.py
MIDDLE = {
    "unet": {
        "block_out_channels": [64, 128, 256, 256],
        "norm_num_groups": 32,
        "head_dim": 64,
        "cross_attention_dim": 128,
    },
    "vae": {"block_out_channels": [32, 64, 64, 64], "norm_num_groups": 32},
    "text": {"hidden": 128, "intermediate": 512},
}


def run(bench: Bench) -> None:
    """Measure the subject "convert"."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        snapshot(folder / "theirs", bench.full)
        measure(bench, folder)


def snapshot(folder: Path, full: bool) -> None:
    """Write random weights in Hugging Face's format: of the published sizes, or small ones."""
    from tests.oracles import snapshot as hf

    tiny = hf.PRESETS["tiny"]
    hf.PRESETS["middle"] = tiny | {name: tiny[name] | of for name, of in MIDDLE.items()}
    hf.write_snapshot(folder, "full" if full else "middle", 0, **({"half": True} if full else {}))


def measure(bench: Bench, folder: Path) -> None:
    """Measure the two cases, writing and reading, on the snapshot in folder/theirs."""
    theirs, ours, copied = folder / "theirs", folder / "ours", folder / "copied"
    truth = fingerprints(theirs)
    size = sum(path.stat().st_size for path in theirs.rglob("*.safetensors"))

    def converting() -> Path:
        convert(theirs, ours, expected_shapes, force=True)
        return ours

    def copying() -> Path:
        return Path(shutil.copytree(theirs, copied, dirs_exist_ok=True))

    def off(way: str, out: Path) -> float:
        written = fingerprints(out)
        if written.shape != truth.shape:
            return float("inf")
        return ((written - truth).abs() / truth.clamp(min=1e-12)).max().item()

    name = f"weights of {size / 1e6:.0f} MB"
    twice = {"moved": lambda out: 2 * size}
    contenders = [
        Contender("anyv2v convert", converting, **twice),
        Contender("copying the files", copying, peer=True, **twice),
    ]
    bench.case(f"convert, {name}", contenders, off, 1e-6, least=3)

    once = {"moved": lambda out: size}
    contenders = [
        Contender("anyv2v weights verify", lambda: str(inspect(ours)), **once),
        Contender("anyv2v.load", lambda: anyv2v.load(ours, bench.device), **once),
        Contender("safetensors, all tensors", lambda: tensors(ours), peer=True, **once),
    ]
    count = len(truth)

    def read(way: str, out: Any) -> float:
        """Error of reading: 0 if all tensors were read, else 1."""
        if way == "anyv2v.load":
            backbone = out.backbone
            networks = backbone.unet, backbone.text, backbone.vision, backbone.codec.vae
            return float(sum(len(n.state_dict()) for n in networks) != count)
        return float("every value is finite" not in out if isinstance(out, str) else 0)

    bench.case(f"read, {name}", contenders, read, 0.0, least=3)


def tensors(folder: Path) -> list[Tensor]:
    """Load all tensors of all safetensors files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return [x for path in files for x in load_file(path).values()]


def fingerprints(folder: Path) -> Tensor:
    """Sorted sums of squares of all tensors, which do not depend on their names and order."""
    squares = [x.double().square().sum() for x in tensors(folder) if x.is_floating_point()]
    return torch.stack(squares).sort().values
