"""What an edit will cost, found by running its code on tensors without data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from anyv2v.accounting import Cost, count, fakes
from anyv2v.diffusion.inversion import most
from anyv2v.editor import STEPS, Editor
from anyv2v.injection.features import Recording
from anyv2v.injection.plan import Injection
from anyv2v.injection.taps import NO_TAPS, Record, Replay, ShareSource, Taps
from anyv2v.media.clip import Video
from anyv2v.memory import comfortable, frames_at_once
from anyv2v.nn.blank import blank

HEAP = 1.35
"""On a CPU: what a process holds over the tensors that are alive, after many forward passes: the
allocator's holes and the kernels' own buffers. Between 1.12 and 1.47 in what was measured."""
CODE = 100_000_000
"""Bytes of PyTorch's own code and tables that a process loads on first use, on a CPU."""


@dataclass(frozen=True)
class Plan:
    """Predicted for one edit, or several of one source together."""

    inversion_evaluations: int
    """Of single branches; at most, for a method that stops when it is near enough."""
    sampling_rows: int
    """Branches that sampling runs, all steps together."""
    flops: dict[str, int]
    """Of each part of the run; a multiplication and an addition are two."""
    recording: Recording
    weights: int
    """Bytes."""
    peak: int
    """Bytes on the device, weights included, over the process as it was."""
    offloaded: int
    """Bytes of weights that wait on the host while predictions are made."""

    @property
    def total(self) -> int:
        return sum(self.flops.values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {flops / 1e12:.4g}" for name, flops in self.flops.items())
        return "\n".join(
            (
                f"evaluations: at most {self.inversion_evaluations} to invert, "
                f"{self.sampling_rows} branches to sample",
                f"operations: {self.total / 1e12:.4g} TFLOP = {parts}",
                str(self.recording),
                f"memory: about {self.peak / 1e9:.3g} GB at the peak, "
                f"{self.weights / 1e9:.3g} GB of it weights" + self._offloaded(),
            )
        )

    def _offloaded(self) -> str:
        if not self.offloaded:
            return ""
        return f", of which {self.offloaded / 1e9:.3g} GB wait on the host while it samples"


def predict(
    editor: Editor,
    video: Video,
    edits: int = 1,
    steps: int = 50,
    start: int = 0,
    guidance: float = 9.0,
    injection: Injection = Injection(),  # noqa: B008 - frozen
    method: str = "fixed-point",
    inversion_steps: int | None = None,
    feature_memory: int | None = None,
    evaluations: int | None = None,
) -> Plan:
    """Of `Editor.invert` and `Editor.edit_many` with the same arguments, one batch of edits.

    `evaluations` of the inversion, if they are known; 0: it is done.
    """
    inversion_steps = STEPS[method] if inversion_steps is None else inversion_steps
    timesteps = editor.schedule.timesteps(steps)
    needed = editor.needed_timesteps(steps, start, injection)
    visited = [t for t in editor.schedule.timesteps(inversion_steps) if t <= max(needed)]
    if evaluations is None:
        spare = most(inversion_steps) - inversion_steps if method == "fixed-point" else 0
        evaluations = len(visited) + spare

    # what is recorded on the way of an inversion that solves the very steps of sampling
    free = method == "fixed-point" and inversion_steps == steps
    memory = feature_memory if free else 0
    recording = editor.recording(video, injection, steps, start, memory)
    frames, height, width, _ = video.frames.shape
    s, device, dtype = editor.vae.config.factor, editor.backbone.device, editor.backbone.dtype
    channels = editor.vae.config.latent_channels

    with fakes(device) as there:
        twin, vae = editor.backbone.blank(there), blank(editor.vae, there)
        branches = 2 if guidance > 1 else 1
        conditions: list = []
        told = count(
            lambda: conditions.append(twin.blank_conditions(frames, height // s, width // s))
        )
        pixels = torch.empty(1, 3, height, width, dtype=dtype, device=there)
        small = torch.empty(1, channels, height // s, width // s, dtype=dtype, device=there)
        encode, decode = count(lambda: vae.encode(pixels)), count(lambda: vae.decode(small))

        def forward(rows: list[int], taps: Taps) -> Cost:
            stacked = conditions[0].stack([conditions[0]] * len(rows), rows)
            shape = (1 + max(rows), channels, frames, height // s, width // s)
            latents = torch.empty(shape, dtype=dtype, device=there)
            return count(lambda: twin.predict(latents, 1, stacked, taps))

        def step(sites: frozenset[str], replayed: bool) -> Cost:
            rows = [edit for edit in range(edits) for _ in range(branches)]
            if not sites:
                return forward(rows, NO_TAPS)
            if replayed:
                record = Record(sites, recording.compact)
                forward([0], record)
                return forward(rows, Replay(record.kept))
            return forward([0, *(row + 1 for row in rows)], ShareSource(sites, 1 + len(rows)))

        nothing: frozenset[str] = frozenset()
        plan = {timesteps[i]: sites for i, sites in editor.plan(steps, start, injection).items()}
        kinds = Counter((sites, t in recording.places) for t, sites in plan.items())
        sampling = {kind: step(*kind) for kind in kinds}
        recorded = Counter(plan[t] if t in recording.places else nothing for t in visited)
        inverting = {sites: forward([0], Record(sites, recording.compact)) for sites in recorded}

    per_step = evaluations / len(visited)
    flops = {
        "conditions": told.flops * (1 + edits * branches + 1),
        "encode": encode.flops * (frames + edits),
        "invert": round(
            per_step * sum(n * inverting[sites].flops for sites, n in recorded.items())
        ),
        "sample": sum(n * sampling[kind].flops for kind, n in kinds.items()),
        "decode": decode.flops * frames * edits,
    }
    if not evaluations:
        flops["encode"] -= encode.flops * frames
    networks = [x for x in (*vars(twin).values(), vae) if isinstance(x, nn.Module)]
    weights = sum(map(_bytes, networks))
    latents_bytes = 4 * channels * frames * (height // s) * (width // s)
    kept = latents_bytes * (1 + len(needed)) + recording.bytes("device")
    at_once = min(frames, frames_at_once(editor.vae.activation_bytes(height, width), device))
    least = editor.backbone.activation_bytes(3, frames, height // s, width // s)
    comfort = comfortable(least, editor.graphs is not False) + recording.bytes("device")
    towers = encoder = 0
    if editor.offload.is_for(comfort):
        towers, encoder = sum(map(_bytes, twin.conditioners)), _bytes(vae.encoder)
    passes = [cost.peak_bytes for cost in (*sampling.values(), *inverting.values())]
    work = max(
        # conditions, and the edited frame between them
        max(told.peak_bytes, encode.peak_bytes),
        at_once * encode.peak_bytes - towers,
        max(at_once * decode.peak_bytes, *passes) - towers - encoder,
    )
    if device.type == "cpu":
        work = round(work * HEAP) + CODE
    rows = sum(
        n * (edits * branches + (bool(sites) and not replayed))
        for (sites, replayed), n in kinds.items()
    )
    peak = weights + kept + work
    return Plan(evaluations, rows, flops, recording, weights, peak, towers + encoder)


def _bytes(network: nn.Module) -> int:
    return sum(x.nbytes for x in network.parameters())
