"""Versions, machine, GPU, environment and caches: what a report of a fault needs of a computer."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import anyv2v
from anyv2v.convert import cache
from anyv2v.runtime.memory import free_bytes

NEEDED = ("numpy", "av", "pillow", "safetensors", "tokenizers", "scipy")
"""Packages that every installation has, besides PyTorch."""
OPTIONAL = (
    "triton",
    "huggingface_hub",
    "opencv-python-headless",
    "torchmetrics",
    "torchvision",
    "fsspec",
    "ray",
    "gradio",
    "diffusers",
    "transformers",
)
"""Packages that one of the extras brings, or that tests compare with."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "XDG_CACHE_HOME",
)
"""Environment variables of others that change what a run does."""
OWN = (
    "ANYV2V_ADD_LAYER_NORM",
    "ANYV2V_APPLY_PROBABILITIES",
    "ANYV2V_ATTENTION",
    "ANYV2V_CACHE",
    "ANYV2V_CHECK",
    "ANYV2V_GEGLU",
    "ANYV2V_GRAPHS",
    "ANYV2V_GROUP_NORM_SILU",
    "ANYV2V_LAYER_NORM",
    "ANYV2V_LINEAR",
    "ANYV2V_RESIDUAL_SUM",
    "ANYV2V_SHORT_ATTENTION",
    "ANYV2V_SHORT_PROBABILITIES",
    "ANYV2V_WEIGHTS",
)
"""All environment variables of this package. Others with that prefix may be anybody's secrets."""
USER = re.compile("(?<=://).*@", re.DOTALL)
"""Matches the name and password in a URL, and more rather than less."""
PATIENCE = 5.0
"""Seconds that the driver's own program may take."""


def versions() -> dict[str, str | None]:
    """Returns the versions of the package, of what it runs on, and of packages; None: missing."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found: dict[str, str | None] = {
        "anyv2v": anyv2v.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": None if cudnn is None else str(cudnn),
    }
    return found | {name: _version(name) for name in (*NEEDED, *OPTIONAL)}


def machine() -> dict[str, Any]:
    """Returns the system, the CPU's threads, its free memory in bytes, and the GPUs."""
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        capability = f"{facts.major}.{facts.minor}"
        gpus.append({"name": facts.name, "bytes": facts.total_memory, "capability": capability})
    return {
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "free_bytes": free_bytes(torch.device("cpu")),
        "gpus": gpus,
        "driver": _driver() if gpus else None,
    }


def environment() -> dict[str, str]:
    """Returns the environment variables that are set and change what a run does.

    URLs in them are without a name and password.
    """
    names = sorted({*VARIABLES, *OWN})
    return {name: USER.sub("", os.environ[name]) for name in names if name in os.environ}


def caches() -> dict[str, Any]:
    """Returns the place and content of the cache of converted models, and other caches' sizes."""
    models = [
        {
            "repository": each.repository,
            "commit": each.commit,
            "folder": str(each.folder),
            "bytes": _bytes(each.folder),
            "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(each.made)),
        }
        for each in cache.converted()
    ]
    others = {"Hugging Face hub": _hub_cache(), "Triton": _triton_cache()}
    return {
        "converted": {"folder": str(cache.root() / "weights"), "models": models},
        "others": {
            name: {"folder": str(path), "bytes": _bytes(path)} for name, path in others.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0].strip() or None if done.returncode == 0 else None


def _hub_cache() -> Path:
    """The folder of huggingface_hub's downloads, by the rules of its documentation."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(base, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _triton_cache() -> Path:
    home = os.environ.get("TRITON_HOME") or "~"
    own = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    return Path(own).expanduser()


def _bytes(folder: Path) -> int:
    """The bytes of all files in a folder; links, as from a snapshot to its blobs, count nothing."""
    total = 0
    for at, _, names in os.walk(folder):
        for path in (os.path.join(at, name) for name in names):
            try:
                total += 0 if os.path.islink(path) else os.lstat(path).st_size
            except OSError:  # removed meanwhile
                continue
    return total
