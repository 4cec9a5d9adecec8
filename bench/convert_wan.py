"""Memory and time of converting and loading Wan 2.2 TI2V-5B at its published sizes, by hand.

    python -m bench.convert_wan FOLDER [transformer|vae|text ...]

Weights are random. One network after the other has its published size, while the other two are
small, so that 35 GB of disk suffice; all is removed again. What is told is the peak of the resident
memory of a process that converts, verifies or loads, over what it needs to begin with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from anyv2v.convert.formats.wan_config import MOMENTS

FULL = {
    "transformer": {
        **{"in_channels": 48, "out_channels": 48, "dim": 3072, "heads": 24, "ff_dim": 14336},
        **{"layers": 30, "text_dim": 4096, "text_tokens": 512, "time_dim": 256},
        **{"patch": [1, 2, 2], "positions": 1024, "eps": 1e-6, "clean_first_frame": True},
    },
    "vae": {
        **{"channels": 3, "patch": 2, "latent_channels": 48, "layers": 2, "residual": True},
        "encoder_channels": [160, 320, 640, 640],
        "decoder_channels": [256, 512, 1024, 1024],
        **{"temporal": [False, True, True], **MOMENTS},
    },
    "text": {
        **{"vocab_size": 256384, "tokens": 512, "width": 4096, "heads": 64, "head_dim": 64},
        **{"layers": 24, "mlp_width": 10240, "buckets": 32, "max_distance": 128, "norm_eps": 1e-6},
    },
}
SMALL = {
    "transformer": {**FULL["transformer"], "dim": 128, "heads": 1, "ff_dim": 128, "layers": 1},
    "vae": {
        **FULL["vae"],
        **{"encoder_channels": [8, 16, 32, 32], "decoder_channels": [8, 16, 32, 32]},
    },
    "text": {**FULL["text"], "vocab_size": 400, "heads": 1, "layers": 1, "mlp_width": 64},
}
STEPS = {
    "convert": "convert(src, dst, expected_shapes, torch.bfloat16)",
    "verify": "inspect(dst)",
    "load": "checkpoint.load(component, builders(checkpoint.config)[component], dtype=dtype)",
}
CHILD = """
import sys, time, torch
from pathlib import Path
from anyv2v.convert.published import convert
from anyv2v.loading import builders, expected_shapes, inspect
from anyv2v.weights.checkpoint import Checkpoint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
src, dst, component = sys.argv[1:]
dtype = torch.bfloat16
checkpoint = Checkpoint.open(dst) if Path(dst).exists() else None
before, began = peak(), time.perf_counter()
{step}
print(peak() - before, time.perf_counter() - began)
"""


def measure(folder: Path, component: str) -> None:
    """Prints a row for each step with one network of its published size."""
    from tests.oracles import wan_folder

    sections = {**SMALL, component: FULL[component]}
    src, dst = folder / "theirs", folder / "ours"
    try:
        shards = {"transformer": 5, "text": 3}
        shards = {name: count if name == component else 1 for name, count in shards.items()}
        wan_folder.write_folder(src, sections, shards, torch.bfloat16)
        for name, step in STEPS.items():
            run = subprocess.run(
                [sys.executable, "-c", CHILD.format(step=step), str(src), str(dst), component],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            if name == "convert":
                read, _ = size(src), shutil.rmtree(src)
                tensors = json.loads((dst / "manifest.json").read_text())["files"]
                listed = tensors[f"{component}.safetensors"]
                print(f"{component}: {read / 1e9:.2f} GB become {listed['bytes'] / 1e9:.2f} GB")
            added, seconds = map(float, run.stdout.split())
            print(f"  {name}: {added / 1e9:.2f} GB, {seconds:.0f} s", flush=True)
    finally:
        shutil.rmtree(src, ignore_errors=True)
        shutil.rmtree(dst, ignore_errors=True)


def size(folder: Path) -> int:
    """Returns the number of bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="an empty folder on a disk with 35 GB of room")
    parser.add_argument("component", nargs="*", default=list(FULL), help="default: all three")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for component in args.component:
        measure(args.folder, component)
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
