"""What an edit will cost, found by running its code on tensors without data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyv2v.backbones.base import Backbone, Guidance, Options
from anyv2v.diffusion.inversion import most
from anyv2v.diffusion.schedule import matches
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import NO_TAPS, Record, Recorded, Replay, ShareSource, Taps
from anyv2v.media.frames import Video
from anyv2v.pipeline.inverting import STEPS
from anyv2v.pipeline.planning import Planning, records_on_the_way
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, Way
from anyv2v.runtime.accounting import Cost, count, fake_mode
from anyv2v.runtime.memory import comfortable_bytes

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
    recording: CachePlan
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
    editor: Planning,
    video: Video,
    edits: int = 1,
    steps: int | None = None,
    start: int = 0,
    guidance: float | Guidance | None = None,
    injection: Injection | None = None,
    method: str = "fixed-point",
    inversion_steps: int | None = None,
    feature_memory: int | None = None,
    evaluations: int | None = None,
    source_pass: SourcePass = "shared",
    options: Options | None = None,
) -> Plan:
    """Of `Editor.invert` and `Editor.edit_many` with the same arguments, one batch of edits.

    `evaluations` of the inversion, if they are known; 0: it is done.
    """
    steps = editor.defaults.steps if steps is None else steps
    inversion_steps = STEPS.get(method, steps) if inversion_steps is None else inversion_steps
    scales = editor.defaults.scales(guidance)
    levels = editor.schedule.levels(inversion_steps)
    runs = method, inversion_steps, steps
    on_the_way = records_on_the_way(editor.backbone, *runs, options) and source_pass == "shared"
    memory = feature_memory if on_the_way else 0
    recording = editor.recording(video, injection, steps, start, memory, options=options)
    plan = editor.step_plan(steps, start, injection, None, recording, source_pass, options=options)
    editor.check_kept(levels[:-1], plan.source_levels)
    visited = levels[min(matches(plan.source_levels, levels).values()) : -1]
    if evaluations is None:
        spare = most(inversion_steps) - inversion_steps if method == "fixed-point" else 0
        evaluations = len(visited) + spare

    branches = editor.backbone.branch_count(scales)
    with fake_mode(editor.backbone.device) as there:
        counted = _Counted(editor, video, there, edits, branches, recording.compact)
        kinds = Counter((step.sites, step.way) for step in plan.steps)
        sampling = {kind: counted.step(*kind) for kind in kinds}
        at = {recording.levels[i].noise: recording.sites[i] for i in recording.places}
        recorded = Counter(at.get(level.noise, frozenset()) for level in visited)
        inverting = {sites: counted.recording(sites) for sites in recorded}
    per_step = evaluations / len(visited)
    flops = {
        "conditions": counted.told.flops * (1 + edits * branches + 1),
        "encode": (counted.encode.flops if evaluations else 0) + edits * counted.first.flops,
        "invert": round(per_step * sum(n * inverting[x].flops for x, n in recorded.items())),
        "sample": sum(n * sampling[kind].flops for kind, n in kinds.items()),
        "decode": edits * counted.decode.flops,
    }
    passes = [cost.peak_bytes for cost in (*sampling.values(), *inverting.values())]
    held = 4 * counted.latents * (1 + len(plan.source_levels)) + recording.bytes("device")
    peak, away = counted.peak(passes, held, recording.bytes("device"))
    total = sum(step.branches(edits * branches) for step in plan.steps)
    return Plan(evaluations, total, flops, recording, counted.weights, peak, away)


class _Counted:
    """What the parts of a run cost; to be made inside `fake_mode`."""

    def __init__(
        self,
        editor: Planning,
        video: Video,
        device: torch.device,
        edits: int,
        branches: int,
        compact: bool,
    ):
        self._editor, self._compact, self._branches = editor, compact, branches
        self._samples = [edit for edit in range(edits) for _ in range(branches)]
        twin = self._twin = editor.backbone.blank(device)
        codec, dtype = twin.codec, twin.dtype
        frames, height, width, _ = self._frames = video.frames.shape
        self._shape = codec.shape(frames, height, width)
        self.latents = math.prod(self._shape)
        self._conditions: list = []
        self.told = count(lambda: self._conditions.append(twin.blank_conditions(*self._shape[1:])))
        self._t = editor.schedule.levels(1)[0].t
        at_once = editor._frames_at_once((width, height))
        pixels = torch.empty(video.frames.shape, dtype=torch.uint8, device=device)
        small = torch.empty((1, *self._shape), dtype=dtype, device=device)
        self._empty = lambda n: torch.empty((n, *self._shape), dtype=dtype, device=device)
        self.encode = _count_pieces(codec.encode(pixels, at_once), 2, self._shape[1])
        self.first = _count_pieces(codec.encode(pixels[:1]), 2, 1)
        self.decode = _count_pieces(codec.decode(small, at_once), 0, frames)
        networks = _networks(twin)
        self.weights = sum(map(_bytes, networks))
        towers = editor.backbone.conditioners
        # those that are there for conditions only, whatever room there is
        self._apart = sum(_bytes(x) for x in towers if editor.offload.reloads(x))
        self._towers = sum(map(_bytes, towers)) - self._apart
        self._encoder = _bytes(codec.encoder)

    def step(self, sites: frozenset[str], way: Way) -> Cost:
        """Of one step of sampling."""
        samples = self._samples
        if way == "plain":
            return self._forward(samples, NO_TAPS)
        if way == "batched":
            taps = ShareSource(sites, 1 + len(samples))
            return self._forward([0, *(sample + 1 for sample in samples)], taps)
        record = Record(sites, self._compact and way == "replayed", stop=way == "separate")
        before = self._forward([0], record)
        cost = self._forward(samples, Replay(record.kept))
        if way == "replayed":
            return cost  # what was recorded has been paid for
        return Cost(before.flops + cost.flops, max(before.peak_bytes, cost.peak_bytes))

    def recording(self, sites: frozenset[str]) -> Cost:
        """Of one evaluation of an inversion that records."""
        return self._forward([0], Record(sites, self._compact))

    def peak(self, passes: list[int], held: int, features: int) -> tuple[int, int]:
        """Bytes on the device at the peak, and those that wait on the host meanwhile.

        passes: of each kind of prediction. held: what is kept besides, `features` among it.
        """
        editor, (frames, height, width, _) = self._editor, self._frames
        least = editor._least_bytes((width, height), frames, 1 + self._branches)
        away = editor.offload.applies_to(
            comfortable_bytes(least, editor.graphs is not False) + features
        )
        towers, encoder = (self._towers, self._encoder) if away else (0, 0)
        work = max(
            # conditions, and the edited frame between them
            max(self.told.peak_bytes, self.first.peak_bytes),
            self.encode.peak_bytes - towers - self._apart,
            max(self.decode.peak_bytes, *passes) - towers - self._apart - encoder,
        )
        if editor.backbone.device.type == "cpu":
            work = round(work * HEAP) + CODE
        return self.weights + held + work, towers + encoder

    def _forward(self, samples: list[int], taps: Taps) -> Cost:
        conditions = self._conditions[0]
        stacked = conditions.stack([conditions] * len(samples), samples)
        latents = self._empty(1 + max(samples))

        def run() -> None:
            with suppress(Recorded):
                self._twin.predict(latents, self._t, stacked, taps)

        return count(run)


def _count_pieces(pieces: Iterator[Tensor], dim: int, total: int) -> Cost:
    """Of all pieces, which are `total` long along `dim` together, each dropped as it comes.

    After two that cost the same the others are taken for such, so a long clip takes no longer.
    """
    lengths: list[int] = []
    flops: list[int] = []

    def run() -> None:
        while sum(lengths) < total and (len(flops) < 2 or flops[-1] != flops[-2]):
            cost = count(lambda: lengths.append(next(pieces).shape[dim]))
            flops.append(cost.flops)

    # as one, since what the codec keeps from piece to piece counts too
    cost, left = count(run), total - sum(lengths)
    return Cost(cost.flops + flops[-1] * left // lengths[-1], cost.peak_bytes)


def _networks(backbone: Backbone) -> list[nn.Module]:
    """Those of a backbone and of its codec."""
    if isinstance(backbone, nn.Module):
        return [backbone]
    parts = (*vars(backbone).values(), *vars(backbone.codec).values())
    return [x for x in parts if isinstance(x, nn.Module)]


def _bytes(network: nn.Module) -> int:
    return sum(x.nbytes for x in network.parameters())
