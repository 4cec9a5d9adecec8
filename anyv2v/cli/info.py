"""`anyv2v info`: what a report of a fault should tell of an installation, a machine and weights."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from anyv2v import loading, weights_folders
from anyv2v.cli import kernel_facts, machine
from anyv2v.cli.console import tell
from anyv2v.cli.source import without_effect
from anyv2v.cli.weights import option_of
from anyv2v.convert.repositories import VIDEOS
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.runtime.memory import size_text
from anyv2v.weights.checkpoint import Checkpoint


def run_info(args: argparse.Namespace) -> None:
    """Runs `anyv2v info`: prints a page to read, or with --json an object with more detail.

    Raises InputError if DIR is no folder of weights.
    """
    found = _presentable(facts(args.dir))
    tell(without_effect(args))
    print(json.dumps(found, indent=2) if args.json else as_text(found))


def facts(weights: str | None) -> dict[str, Any]:
    """Returns all that is known, as JSON has it.

    weights: a folder of weights, "demo" or "flow", a repository of the hub, or None for no
    weights. The keys are "versions", "machine", "kernels", "weights", "caches" and "environment".
    Raises InputError if `weights` is none of these.
    """
    device = choose_device(None)
    dtype = choose_dtype(None, device)
    held = None if weights is None else weights_facts(weights)
    if weights is not None and held is not None and held["option"] == VIDEOS:
        kernels, own = kernel_facts.of_weights(weights, device, dtype), held["defaults"]
        what = f"an edit of {own['frames']} frames of {own['size']}"
    else:
        kernels = kernel_facts.of_i2vgen(device, dtype)
        what = "I2VGen-XL on 16 frames of 512x512"
    where = f"{str(dtype).removeprefix('torch.')} on {device.type}"
    return {
        "versions": machine.versions(),
        "machine": machine.machine(),
        "kernels": {"of": f"{what}, {where}", "operations": kernels},
        "weights": held,
        "caches": machine.caches(),
        "environment": machine.environment(),
    }


def weights_facts(weights: str) -> dict[str, Any]:
    """Returns what a folder of weights holds, without reading its weights.

    weights: as in `facts`. Raises InputError if there is no such folder or it is damaged.
    """
    checkpoint = Checkpoint.open(weights_folders.folder_of(weights))
    config, networks = checkpoint.config, {}
    for name, file in checkpoint.files.items():
        if tensors := file.get("tensors"):
            networks[name] = {
                "parameters": sum(math.prod(shape) for _, shape in tensors.values()),
                "dtypes": sorted({kind for kind, _ in tensors.values()}),
                "bytes": file["bytes"],
            }
    known = {
        "folder": str(checkpoint.folder),
        "model": config.get("model", config.get("backbone")),
        "option": option_of(config, "DIR"),
        "networks": networks,
        "fingerprint": checkpoint.fingerprint,
    }
    if known["option"] == VIDEOS:
        own = loading.peek(checkpoint.folder).defaults
        known["defaults"] = {
            "size": "{}x{}".format(*own.size),
            "frames": own.frames,
            "fps": own.fps,
            "steps": own.steps,
            "guidance": dict(own.guidance),
        }
    return known


def as_text(found: dict[str, Any]) -> str:
    """Returns the facts as a page of text."""
    lines = [*_versions(found["versions"]), *_machine(found["machine"])]
    lines += ["", f"kernels, {found['kernels']['of']}:"]
    lines += [f"  {line}" for line in kernel_facts.as_text(found["kernels"]["operations"])]
    if found["weights"] is not None:
        lines += ["", *_weights(found["weights"])]
    return "\n".join([*lines, "", *_caches(found["caches"]), *_environment(found["environment"])])


def _versions(found: dict[str, str | None]) -> list[str]:
    cuda = found["cuda"] or "without CUDA"
    first = f"anyv2v {found['anyv2v']}, Python {found['python']}, PyTorch {found['torch']} ({cuda}"
    first += f", cuDNN {found['cudnn']})" if found["cudnn"] else ")"
    packages = (*machine.NEEDED, *machine.OPTIONAL)
    have = [f"{name} {found[name]}" for name in packages if found[name]]
    lack = [name for name in packages if not found[name]]
    return [first, f"with {', '.join(have)}", *([f"without {', '.join(lack)}"] if lack else [])]


def _machine(found: dict[str, Any]) -> list[str]:
    free = found["free_bytes"] / 1e9
    threads = f"{found['threads']} threads on {found['cores']} cores"
    lines = [f"{found['system']}, {threads}, {free:.1f} GB of memory free"]
    driver = f", driver {found['driver']}" if found["driver"] else ""
    for gpu in found["gpus"]:
        memory = f"{gpu['bytes'] / 1e9:.1f} GB"
        lines.append(f"{gpu['name']}, {memory}, compute capability {gpu['capability']}{driver}")
    return lines if found["gpus"] else [*lines, "no GPU that PyTorch can use"]


def _weights(found: dict[str, Any]) -> list[str]:
    lines = [f"weights {found['folder']}: {found['model']}, for {found['option']}"]
    for name, network in found["networks"].items():
        dtypes, size = "+".join(network["dtypes"]), size_text(network["bytes"])
        lines.append(f"  {name}: {network['parameters']:,} parameters, {dtypes}, {size}")
    if own := found.get("defaults"):
        guidance = ", ".join(f"{name} {scale:g}" for name, scale in own["guidance"].items())
        lines.append(
            f"  {own['size']}, {own['frames']} frames at {own['fps']:g} fps, {own['steps']} steps, "
            f"guidance {guidance}"
        )
    return [*lines, f"  fingerprint {found['fingerprint']}"]


def _caches(found: dict[str, Any]) -> list[str]:
    own = found["converted"]
    lines = [f"cache of converted models {own['folder']}: {len(own['models']) or 'empty'}"]
    for each in own["models"]:
        size, commit = size_text(each["bytes"]), each["commit"][:12]
        lines.append(f"  {each['repository']}@{commit}, {size}, made {each['made']}")
    others = found["others"].items()
    return lines + [f"cache of {n} {x['folder']}: {size_text(x['bytes'])}" for n, x in others]


def _environment(found: dict[str, str]) -> list[str]:
    if not found:
        return ["environment: nothing that changes a run is set"]
    return ["environment:", *(f"  {name}={value}" for name, value in found.items())]


def _presentable(value: Any) -> Any:
    """A value of JSON whose texts can be written as UTF-8 and do not name the user's folder."""
    if isinstance(value, dict):
        return {_presentable(key): _presentable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_presentable(each) for each in value]
    if isinstance(value, str):
        # bytes that are no text are surrogates in file names and in the environment
        return _without_home(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def _without_home(text: str) -> str:
    """The text without the path of the user's folder, whose name often is that of the user."""
    home = os.path.expanduser("~")
    # in a container it may be the root of all
    if not os.path.isabs(home) or Path(home) == Path(home).parent:
        return text
    # a whole path or the beginning of one, also in a list of paths and in a file:// URL
    whole = rf"(?:(?<![\w./\\~-])|(?<=://)){re.escape(home)}(?=[/\\:;,]|$)"
    return re.sub(whole, "~", text)
