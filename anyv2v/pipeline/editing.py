"""Edits of one source, in batches that share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Branches, FirstFrame, Guidance, Options
from anyv2v.diffusion.samplers import AfterStep, OnStep, sample
from anyv2v.diffusion.schedule import Level, NoiseSchedule, matches
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import playback
from anyv2v.injection.taps import Taps
from anyv2v.media.image import fit_frame, read_argument
from anyv2v.pipeline.arguments import Noise, hooks
from anyv2v.pipeline.denoise import SourceBranch, guided, injected, pinned_first
from anyv2v.pipeline.planning import source_frame
from anyv2v.pipeline.request import Edit, EditRequest
from anyv2v.pipeline.source import Source
from anyv2v.pipeline.stages import Stages, size_of
from anyv2v.pipeline.step_plan import StepPlan
from anyv2v.runtime.finite import DescribeEdits, ordinal


@dataclass(frozen=True)
class Job:
    """One edit, with what it takes from its request: all that can be wrong with it was found."""

    request: EditRequest
    picture: np.ndarray
    """The edited frame at the clip's size."""
    begin: Tensor
    """All latent frames that it starts from."""
    step_noise: Callable[[int], Tensor]
    """Index of a step -> the noise that it adds."""

    @classmethod
    def of(
        cls,
        stages: Stages,
        request: EditRequest,
        source: Source,
        begin: Tensor,
        sampler: NoiseSchedule,
        steps: int,
    ) -> Job:
        checks.kind("edits", request, EditRequest, "an EditRequest")
        request = request.filled(stages.defaults)
        noise, ratio = Noise(request.seed, stages.backbone.device), float(request.random_ratio)
        first = noise.given_or_drawn(request.noise, begin.shape)
        size = size_of(source.video.frames)
        picture = fit_frame(read_argument("frame", request.frame), size, request.fit)
        step_noise = noise.of_steps(request.step_noise, begin.shape, sampler, steps)
        return cls(request, picture, ratio * first + (1 - ratio) * begin, step_noise)


@dataclass(frozen=True)
class EditRun:
    """Several edits of a source, ready to run some of them together."""

    stages: Stages
    source: Source
    jobs: Sequence[Job]
    plan: StepPlan
    steps: int
    options: Options
    taps: Taps | None
    on_step: OnStep | None
    after_step: AfterStep | None
    index: Mapping[int, int] = field(init=False)
    """Of a step of this run, in the inversion's."""
    own: SourceBranch | None = field(init=False)
    """The branch that the source has in all edits; None: it begins with the edited frame."""

    def __post_init__(self):
        levels = [step.level for step in self.plan.steps]
        index = matches(levels, self.source.trajectory.levels)
        object.__setattr__(self, "index", index)
        edited = self.stages.backbone.edited_source(self.options)
        own = None if edited else self._source(source_frame(self.stages, self.source))
        object.__setattr__(self, "own", own)

    def _source(self, first: FirstFrame) -> SourceBranch:
        """The source's branch, which begins with this frame."""
        stages, source, p = self.stages, self.source, self.stages.backbone.pinned
        with stages._conditioning():
            conditions = stages.backbone.condition(source.settings.prompt, first, self.options)
        # not by way of self, which would hold itself, and the memory of a run, beyond its end
        device, index = stages.backbone.device, self.index
        pinned = first.latents[:, :, :p].to(device)

        def latents(level: Level) -> Tensor:
            latents = source.at(index[level.index]).to(device)
            return pinned_first(pinned, latents[:, :, p:])

        return SourceBranch(conditions, latents, index)

    def run(self, batch: slice) -> list[Edit]:
        """These edits, together."""
        stages, jobs = self.stages, self.jobs[batch]
        p, device = stages.backbone.pinned, stages.backbone.device
        branches, firsts = zip(*(self._branches(job) for job in jobs), strict=True)
        pinned = torch.cat([first.latents.to(device)[:, :, :p] for first in firsts])
        begin = torch.cat([job.begin for job in jobs])[:, :, p:]
        on_step, after_step = hooks(self.on_step, self.after_step, pinned)
        strongest = [max(job.request.guidance.values(), key=abs) for job in jobs]
        check = stages._step_check("sampling", self.steps, strongest, self._which(batch.start))

        def step_noise(index: int) -> Tensor:
            return torch.cat([job.step_noise(index) for job in jobs])[:, :, p:]

        source = self.own or self._source(*firsts)
        replayed = [self.index[level.index] for level in self.plan.replayed]
        played = playback(self.source.features, replayed, device)
        with played as kept, stages._forward() as forward:
            predict = injected(
                forward, branches, pinned, source, self.plan, kept, self.taps, self.steps
            )
            clean = sample(
                predict,
                begin,
                stages.backbone.sampler(self.options),
                self.steps,
                self.plan.steps[0].level.index,
                on_step,
                check,
                after_step,
                step_noise,
            )
        return [
            self._edit(x, batch.start + row)
            for row, x in enumerate(pinned_first(pinned, clean).split(1))
        ]

    def _branches(self, job: Job) -> tuple[Branches, FirstFrame]:
        stages, request = self.stages, job.request
        first = stages._first_frame(job.picture, len(self.source.video.frames))
        with stages._conditioning():
            branches = stages.backbone.branches(
                request.prompt, request.negative_prompt, first, request.guidance, self.options
            )
        return branches, first

    def _edit(self, latents: Tensor, index: int) -> Edit:
        frames = self.stages._decode(latents, self._which(index))
        return Edit(frames, self.source.video.fps, latents)

    def _which(self, first: int) -> DescribeEdits:
        """Of rows of a batch that begins with edit `first`: which edits they are, in a message."""

        def which(rows: list[int]) -> str:
            if len(self.jobs) == 1:
                return ""
            named = [(first + row, self.jobs[first + row].request.prompt) for row in rows]
            told = [f"{ordinal(i, len(self.jobs))} {checks.shown(prompt)}" for i, prompt in named]
            return f", of edit {', '.join(told)}"

        return which


def requests_of(edits: Sequence[EditRequest]) -> list[EditRequest]:
    edits = list(checks.kind("edits", edits, Sequence, "a list of EditRequest"))
    if not edits:
        raise InputError("edits: the list is empty; it holds one EditRequest for each edit")
    return edits


@dataclass(frozen=True)
class PlainRun:
    """One clip by sampling alone, nothing injected."""

    stages: Stages
    steps: int
    start: int
    options: Options
    on_step: OnStep | None
    after_step: AfterStep | None

    def run(
        self,
        told: tuple[str, str, FirstFrame, Guidance],
        begin: Tensor,
        step_noise: Sequence[Tensor] | None,
        draws: Noise,
        fps: float,
    ) -> Edit:
        """told: prompt, negative prompt, first frame and guidance. begin: all latent frames."""
        stages, p = self.stages, self.stages.backbone.pinned
        *_, first, guidance = told
        pinned = first.latents.to(begin.device)[:, :, :p]
        on_step, after_step = hooks(self.on_step, self.after_step, pinned)
        sampler = stages.backbone.sampler(self.options)
        noise = draws.of_steps(step_noise, begin.shape, sampler, self.steps)
        with stages._conditioning():
            branches = stages.backbone.branches(*told, self.options)
        strongest = max(guidance.values(), key=abs)
        with stages._forward() as forward:
            clean = sample(
                guided(forward, branches, pinned),
                begin[:, :, p:],
                sampler,
                self.steps,
                self.start,
                on_step,
                stages._step_check("sampling", self.steps, [strongest]),
                after_step,
                lambda index: noise(index)[:, :, p:],
            )
        latents = pinned_first(pinned, clean)
        return Edit(stages._decode(latents), fps, latents)
