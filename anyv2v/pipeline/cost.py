"""Predicts the cost of an inversion and its edits, by running their code on fake tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyv2v.backbones.base import Backbone, Conditions, Guidance, Options
from anyv2v.diffusion.inversion import default_budget
from anyv2v.diffusion.schedule import match_levels
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import NO_TAPS, Record, Recorded, Replay, ShareSource, Taps
from anyv2v.media.frames import Video
from anyv2v.pipeline.inverting import STEPS
from anyv2v.pipeline.planning import Planner, recording_is_free
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, Way
from anyv2v.runtime.accounting import Cost, count, fake_mode
from anyv2v.runtime.memory import comfortable_bytes
from anyv2v.runtime.offload import fits

HEAP = 1.35
"""On a CPU: the factor from the memory of a process's live tensors to that of the process after
many forward passes, which also holds the allocator's gaps and the kernels' own buffers. Measured
between 1.12 and 1.47."""
CODE = 100_000_000
"""On a CPU: bytes of code and tables of PyTorch that a process loads on first use."""


@dataclass(frozen=True)
class EditCost:
    """The predicted cost of inverting a video and editing it, in one or several edits at once."""

    inversion_evaluations: int
    """Evaluations of the network in the inversion; the most there can be, for a method that stops
    at a tolerance."""
    sampling_branches: int
    """Evaluations of the network in sampling, each branch of a batch counted as one."""
    flops: dict[str, int]
    """Floating-point operations by part of the run ("conditions", "encode", "invert", "sample",
    "decode"); a multiply-add counts as two."""
    recording: CachePlan
    """The features that are recorded while the video is inverted."""
    weights: int
    """Bytes of the weights of all networks, but of those that are read only for the conditions."""
    peak: int
    """Most bytes on the device at one time, weights included, in addition to what the process had
    allocated before it loaded them."""
    offloaded: int
    """Bytes of weights that are kept on the host while predictions are made."""

    @property
    def total(self) -> int:
        """The floating-point operations of all parts together."""
        return sum(self.flops.values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {flops / 1e12:.4g}" for name, flops in self.flops.items())
        return "\n".join(
            (
                f"evaluations: at most {self.inversion_evaluations} to invert, "
                f"{self.sampling_branches} branches to sample",
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


def predict_cost(
    editor: Planner,
    video: Video,
    edits: int = 1,
    steps: int | None = None,
    start: int | None = None,
    guidance: float | Guidance | None = None,
    injection: Injection | None = None,
    method: str = "fixed-point",
    inversion_steps: int | None = None,
    feature_memory: int | None = None,
    evaluations: int | None = None,
    source_pass: SourcePass = "shared",
    options: Options | None = None,
) -> EditCost:
    """Predicts the cost of `Editor.invert`, then of `Editor.edit_many` with `edits` in one batch.

    Arguments not named here are theirs; `inversion_steps` is the `steps` of `invert`.
    `feature_memory`: most bytes of recorded features; nothing is recorded if that takes evaluations
    of its own. `evaluations`: those of the inversion, 0 if it is done; None: the most that `method`
    may take. No tensor is allocated. Raises InputError for a wrong argument.
    """
    steps = editor.defaults.steps if steps is None else steps
    inversion_steps = STEPS.get(method, steps) if inversion_steps is None else inversion_steps
    scales = editor.defaults.scales(guidance)
    levels = editor.schedule.levels(inversion_steps)
    is_free = recording_is_free(editor.backbone, method, inversion_steps, steps, options)
    memory = feature_memory if is_free and source_pass == "shared" else 0
    recording = editor.recording(video, injection, steps, start, memory, options=options)
    plan = editor.step_plan(steps, start, injection, None, recording, source_pass, options=options)
    editor.check_kept(levels[:-1], plan.source_levels)
    visited = levels[min(match_levels(plan.source_levels, levels).values()) : -1]
    if evaluations is None:
        spare = default_budget(inversion_steps, editor.defaults.evaluations) - inversion_steps
        evaluations = len(visited) + (spare if method == "fixed-point" else 0)
    branches = editor.backbone.branch_count(scales)
    with fake_mode(editor.backbone.device) as device:
        parts = _Parts(editor, video, device, edits, branches, recording.compact)
        # few steps differ in kind, so each kind is counted once
        kinds = Counter[tuple[frozenset[str], Way]]((step.sites, step.way) for step in plan.steps)
        sampling = {(sites, way): parts.step(sites, way) for sites, way in kinds}
        at_level = {recording.levels[i].identity: recording.sites[i] for i in recording.placement}
        recorded = Counter(at_level.get(level.identity, frozenset()) for level in visited)
        inverting = {sites: parts.recording(sites) for sites in recorded}
    per_step = evaluations / len(visited)
    flops = {
        # the inversion's branch, those of the edits, and the source's branch in sampling
        "conditions": parts.conditions.flops * (1 + edits * branches + 1),
        "encode": (parts.encode.flops if evaluations else 0) + edits * parts.first_frame.flops,
        "invert": round(per_step * sum(n * inverting[x].flops for x, n in recorded.items())),
        "sample": sum(n * sampling[kind].flops for kind, n in kinds.items()),
        "decode": edits * parts.decode.flops,
    }
    passes = [cost.peak_bytes for cost in (*sampling.values(), *inverting.values())]
    features = recording.bytes("device")
    # the clean latents and those of the trajectory, float32
    held = 4 * parts.latents * (1 + len(plan.source_levels)) + features
    peak, offloaded = parts.peak(passes, held, features)
    total = sum(step.branches(edits * branches) for step in plan.steps)
    return EditCost(evaluations, total, flops, recording, parts.weights, peak, offloaded)


class _Parts:
    """The costs of the parts of a run, counted on fake tensors; to be made inside `fake_mode`."""

    def __init__(
        self,
        editor: Planner,
        video: Video,
        device: torch.device,
        edits: int,
        branches: int,
        compact: bool,
    ):
        self._editor, self._compact, self._branches = editor, compact, branches
        self._samples = [edit for edit in range(edits) for _ in range(branches)]
        fake = self._fake = editor.backbone.meta_copy(device)
        codec, dtype = fake.codec, fake.dtype
        frames, height, width, _ = self._frames = video.frames.shape
        self._shape = codec.shape(frames, height, width)
        self.latents = math.prod(self._shape)
        made: list[Conditions] = []
        self.conditions = count(lambda: made.append(fake.meta_conditions(*self._shape[1:])))
        self._conditions = made[0]
        self._t = editor.schedule.levels(1)[0].t
        at_once = editor._frames_at_once((width, height))
        pixels = torch.empty(video.frames.shape, dtype=torch.uint8, device=device)
        small = torch.empty((1, *self._shape), dtype=dtype, device=device)
        self._empty = lambda n: torch.empty((n, *self._shape), dtype=dtype, device=device)
        self.encode = _count_pieces(codec.encode(pixels, at_once), 2, self._shape[1])
        self.first_frame = _count_pieces(codec.encode(pixels[:1]), 2, 1)
        self.decode = _count_pieces(codec.decode(small, at_once), 0, frames)
        networks = _networks(fake)
        # an encoder of frames that makes conditions, too, is counted below
        towers = [x for x in editor.backbone.conditioners if x is not editor.backbone.codec.encoder]
        # weights that are in memory only while conditions are made, however much memory there is
        self._reloaded = sum(_bytes(x) for x in towers if editor.offload.reloads(x))
        self.weights = sum(map(_bytes, networks)) - self._reloaded
        self._towers = sum(map(_bytes, towers)) - self._reloaded
        self._encoder = _bytes(codec.encoder)

    def step(self, sites: frozenset[str], way: Way) -> Cost:
        """The cost of one step of sampling."""
        samples = self._samples
        if way == "plain":
            return self._forward(samples, NO_TAPS)
        if way == "batched":
            taps = ShareSource(sites, 1 + len(samples))
            return self._forward([0, *(sample + 1 for sample in samples)], taps)
        record = Record(sites, self._compact and way == "replayed", stop=way == "separate")
        source = self._forward([0], record)
        cost = self._forward(samples, Replay(record.features))
        if way == "replayed":
            return cost  # the inversion has paid for the recording
        return Cost(source.flops + cost.flops, max(source.peak_bytes, cost.peak_bytes))

    def recording(self, sites: frozenset[str]) -> Cost:
        """The cost of one evaluation of an inversion that records features at `sites`."""
        return self._forward([0], Record(sites, self._compact))

    def peak(self, passes: list[int], stored: int, features: int) -> tuple[int, int]:
        """The most bytes on the device, and the bytes of weights offloaded to the host meanwhile.

        passes: peak bytes of each kind of prediction. stored: bytes of latents and of `features`,
        which stay during the whole run.
        """
        editor, (frames, height, width, _) = self._editor, self._frames
        least = editor._least_bytes((width, height), frames, 1 + self._branches)
        offloads = editor.offload.applies_to(
            comfortable_bytes(least, editor.graphs is not False) + features
        )
        towers, encoder = (self._towers, self._encoder) if offloads else (0, 0)
        device = editor.backbone.device
        heap, code = (HEAP, CODE) if device.type == "cpu" else (1, 0)
        # what is read for the conditions alone, unless it runs on the host
        read = self._reloaded
        if read and device.type != "cpu" and not fits(read + stored, device):
            read = 0
        # the peak of activations, less the weights that are not on the device at that time
        work = max(
            # conditions, and the edited frame, which is encoded between them
            read + heap * max(self.conditions.peak_bytes, self.first_frame.peak_bytes),
            heap * self.encode.peak_bytes - towers,
            heap * max(self.decode.peak_bytes, *passes) - towers - encoder,
        )
        return self.weights + stored + round(work) + code, towers + encoder

    def _forward(self, samples: list[int], taps: Taps) -> Cost:
        """The cost of one prediction; samples: which latents each branch of the batch has."""
        conditions = self._conditions
        stacked = conditions.stack([conditions] * len(samples), samples)
        latents = self._empty(1 + max(samples))

        def run() -> None:
            with suppress(Recorded):
                self._fake.predict(latents, self._t, stacked, taps)

        return count(run)


def _count_pieces(pieces: Iterator[Tensor], dim: int, total: int) -> Cost:
    """The cost of all pieces, `total` long along `dim` together; each is freed before the next.

    Once two pieces in a row cost the same, the rest is assumed to, so long clips take no longer.
    """
    lengths: list[int] = []
    flops: list[int] = []

    def run() -> None:
        while sum(lengths) < total and (len(flops) < 2 or flops[-1] != flops[-2]):
            cost = count(lambda: lengths.append(next(pieces).shape[dim]))
            flops.append(cost.flops)

    # in one count, because tensors that the codec holds between pieces count too
    cost, left = count(run), total - sum(lengths)
    return Cost(cost.flops + flops[-1] * left // lengths[-1], cost.peak_bytes)


def _networks(backbone: Backbone) -> list[nn.Module]:
    """The networks of a backbone and of its codec."""
    if isinstance(backbone, nn.Module):
        return [backbone]
    parts = (*vars(backbone).values(), *vars(backbone.codec).values())
    return [x for x in parts if isinstance(x, nn.Module)]


def _bytes(network: nn.Module) -> int:
    return sum(x.nbytes for x in network.parameters())
