"""The key of an output: a hash of all that its content depends on, known before it is made.

The sidecar of an output holds its key, by which a batch recognizes what is done already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, is_source
from anyv2v.cli.values import SOURCE

FILES = ("video", "frame", "reference", "mask", "keyframe", "protect", "guide")
"""Options whose files count by their contents, not by their paths."""
WITHOUT_EFFECT = ("output", "save_frame", "resume", "editor_timeout", "feature_memory")
"""Options that do not change the content of an output, but for rounding."""
OF_THE_MACHINE = ("weights", "device", "offload")
"""Options of which the result depends on the fingerprint of the weights alone, but for rounding."""
COMPUTED = ("option", "fps", "preset", *settings.PAPER_INVERSION, "inject", "tolerance")
"""Options that count by what follows from them, see `_used`."""
EACH = ("prompt", "instruction")
"""Options that hold no files, and that each of several edits may have for itself."""


def edit_key(
    args: argparse.Namespace, fingerprint: str, inputs: Mapping[str, Any], index: int = 0
) -> str:
    """Returns the key of an output, 32 hexadecimal digits.

    args: the options, after `settings.fill`. fingerprint: that of the weights. inputs: option ->
    the fingerprint of its file, or a list with one for each edit, as `Provenance` has them. index:
    the place of the edit among several. Two outputs have the same key if they are made by the same
    command, settings, weights, and contents of files; paths, names and the machine do not matter.
    A setting counts as it is used, whether it was given or is the weights' own. A frame editor
    counts by its options: what its weights or another program make of them is not known.
    """
    left_out = (*FILES, *WITHOUT_EFFECT, *OF_THE_MACHINE, *COMPUTED)
    named = {name: getattr(args, name) for name in args.settable if name not in left_out}
    for name in EACH:
        if isinstance(value := named.get(name), list):
            named[name] = value[index if len(value) > 1 else 0]
    facts = {
        "command": args.command,
        "settings": named | _used(args),
        "words": {name: getattr(args, name, None) for name in FILES if name not in inputs},
        "keyframes": [text.partition(":")[0] for text in getattr(args, "keyframe", None) or []],
        "weights": fingerprint,
        "inputs": {name: _hashes(value, name, index) for name, value in inputs.items()},
    }
    text = json.dumps(_plain(facts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _used(args: argparse.Namespace) -> dict[str, Any]:
    """What the command does where options were left out, or may be given in several ways."""
    method, steps = settings.of_the_inversion(args)
    used: dict[str, Any] = {"options": args.options, "injection": args.injection.fractions}
    if is_source(args.video):
        return used
    reading, own = typed(Clip, args), args.own
    whole = reading.out_size == SOURCE
    return used | {
        "size": reading.size or own.size,
        "frames": reading.frames or ("all" if whole else own.frames),
        "sample_fps": reading.sample_fps or (SOURCE if whole else own.fps),
        "start_time": reading.start_time or 0.0,
        "method": method,
        "inversion_steps": steps,
        "inversion_prompt": args.inversion_prompt or "",
        "tolerance": args.tolerance or own.tolerance,
    }


def _plain(value: Any) -> Any:
    """The value with all numbers as floats: 8 is 8.0."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _hashes(value: Any, name: str, index: int) -> Any:
    if not isinstance(value, list):
        return value["sha256"]
    if name == "keyframe":
        return [each["sha256"] for each in value]
    return value[index if len(value) > 1 else 0]["sha256"]
