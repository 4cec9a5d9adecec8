"""Which implementations run the kernel calls of an edit here, and why; for `anyv2v info`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyv2v import loading
from anyv2v.injection.fractions import Injection
from anyv2v.kernels.cases import cases
from anyv2v.kernels.choose import Call, observed
from anyv2v.kernels.explain import AS_WELL, RUNS, explain, explain_call
from anyv2v.media.frames import Video
from anyv2v.pipeline.cost import predict_cost

Verdicts = list[tuple[str, str]]
"""(name of an implementation, verdict) for a call, see `kernels.explain`."""


def of_weights(weights: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns operation -> its facts, for an inversion and an edit with the weights' own settings.

    The facts are those of `_facts`. Nothing is computed: the networks run on tensors without data.
    """
    editor = loading.skeleton(weights, device, dtype)
    width, height = editor.defaults.size
    frames = np.zeros((editor.defaults.frames, height, width, 3), np.uint8)
    own = editor.defaults.injection.fractions.items()
    # a single step that injects all that any step of a run does
    injection = Injection(sites=None, **{group: float(share > 0) for group, share in own})
    with observed() as calls:
        predict_cost(editor, Video(frames, editor.defaults.fps), steps=1, injection=injection)
    # what only finds shapes runs on the meta device; so does all that is planned for a GPU
    there = ("cpu",) if device.type == "cpu" else ("meta", device.type)
    distinct = {_signature(call): call for call in calls if call.args[0].device.type in there}
    return _facts((call.op, explain_call(call, device)) for call in distinct.values())


def of_i2vgen(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the same for a forward pass of I2VGen-XL's network on 16 frames of 512x512."""
    return _facts((x.operation, list(explain(x, str(device), dtype))) for x in cases())


def _facts(calls: Iterable[tuple[str, Verdicts]]) -> dict[str, Any]:
    """Operation -> how many different calls there are, what is asked for, and the verdicts.

    Verdicts are implementation -> verdict -> number of calls, the best implementation first.
    """
    found: dict[str, dict[str, Any]] = {}
    for op, verdicts in calls:
        asked = os.environ.get(f"ANYV2V_{op.upper()}")
        facts = found.setdefault(op, {"calls": 0, "asked_for": asked, "verdicts": {}})
        facts["calls"] += 1
        for name, verdict in verdicts:
            facts["verdicts"].setdefault(name, Counter())[verdict] += 1
    return {op: found[op] for op in sorted(found)}


def as_text(facts: dict[str, Any]) -> list[str]:
    """Returns a line for each operation: what runs it, and why nothing that is better does."""
    width = max(map(len, facts), default=0)
    return [f"{op:{width}}  {_line(op, each)}" for op, each in facts.items()]


def _line(op: str, facts: dict[str, Any]) -> str:
    calls, runs, reasons = facts["calls"], [], []
    for name, verdicts in facts["verdicts"].items():
        count = verdicts.get(RUNS, 0)
        if count:
            runs.append(name if count == calls else f"{name} ({count} of {calls})")
        if count == calls:
            # what comes after it is asked for no call
            break
        reasons += [f"{name} {why}" for why in verdicts if why not in (RUNS, AS_WELL)]
    chosen = ", ".join(runs)
    if asked := facts["asked_for"]:
        chosen = f"{asked}, as ANYV2V_{op.upper()} says (without it {chosen})"
    return "; ".join([chosen, *reasons])


def _signature(call: Call) -> tuple:
    """What a verdict depends on: two calls with the same signature have the same verdicts."""

    def form(x: Any) -> Any:
        return (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else repr(x)

    options = ((name, form(x)) for name, x in sorted(call.options.items()))
    return (call.op, *map(form, call.args), *options)
