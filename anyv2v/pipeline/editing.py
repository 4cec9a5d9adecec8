"""Runs that sample: edits of one source in shared batches, and clips with nothing injected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Branches, FirstFrame, Options
from anyv2v.diffusion.samplers import AfterStep, OnStep, sample
from anyv2v.diffusion.schedule import Level, NoiseSchedule, match_levels
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import open_playback
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import Taps
from anyv2v.media.image import fit_frame, read_argument
from anyv2v.pipeline.arguments import NoiseGenerator, options_of, step_callbacks
from anyv2v.pipeline.denoise import (
    SourceBranch,
    guided_predictor,
    injecting_predictor,
    prepend_pinned,
)
from anyv2v.pipeline.guide import Guesses, Guide
from anyv2v.pipeline.planning import Planner, source_frame
from anyv2v.pipeline.request import Edit, EditRequest, Prompts
from anyv2v.pipeline.source import Source
from anyv2v.pipeline.stages import Stages, size_of
from anyv2v.pipeline.step_plan import SourcePass, StepPlan
from anyv2v.runtime.finite import DescribeEdits, ordinal
from anyv2v.runtime.stage import stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One edit of a source, with all its arguments checked and its noise drawn."""

    prompts: Prompts
    """Its prompt, negative prompt and guidance scales."""
    image: np.ndarray
    """The edited first frame at the clip's size, RGB (h, w, 3); see `FirstFrame.image`."""
    noise: Tensor
    """The noise that is mixed into the latents that sampling starts from, with `random_ratio` as
    its weight: (1, c, f', h', w') float32, all frames."""
    random_ratio: float
    """Weight of the noise, 0 to 1."""
    step_noise: Callable[[int], Tensor]
    """Index of a step -> standard normal noise in the shape of `noise`, for a sampler that adds
    noise in its steps."""
    guide: Guide | None
    """Where the guess comes from from which sampling starts; None: it starts from the source."""

    @classmethod
    def prepare(
        cls,
        stages: Stages,
        request: EditRequest,
        source: Source,
        sampler: NoiseSchedule,
        steps: int,
    ) -> Job:
        """Makes the job of a request: checks its arguments, draws its noise and fits its frame.

        sampler, steps: the run's noise schedule and number of steps. Raises InputError, which names
        the argument that is wrong.
        """
        checks.kind("edits", request, EditRequest, "an EditRequest")
        prompts = request.prompts(stages.defaults)
        backbone = stages.backbone
        generator = NoiseGenerator(request.seed, backbone.device)
        shape, frames = source.trajectory.clean.shape, source.video.frames
        noise = generator.use(request.noise, shape)
        if (guide := Guide.of(request.guide)) is not None:
            guide.check(frames)
        picture, bilinear = read_argument("frame", request.frame), backbone.stretches_bilinearly
        image = fit_frame(picture, size_of(frames), request.fit, bilinear)
        step_noise = generator.for_steps(request.step_noise, shape, sampler, steps)
        return cls(prompts, image, noise, float(request.random_ratio), step_noise, guide)


@dataclass(frozen=True)
class EditRun:
    """Several edits of one source; `run` samples some of them in one batch."""

    stages: Stages
    """The editor, with the networks that the run calls."""
    source: Source
    """The inverted video."""
    jobs: Sequence[Job]
    """One job for each edit."""
    plan: StepPlan
    """What each step does, the same for all edits."""
    steps: int
    """Number of steps in the schedule, those before the start of the run included."""
    options: Options
    """A value for every option of the backbone."""
    taps: Taps | None
    """The caller's own hooks, called after the injection in the steps that `plan` names."""
    on_step: OnStep | None
    """Called after each step of a batch with (index, timestep, latents of all frames)."""
    after_step: AfterStep | None
    """Called before `on_step` with (index, latents of all frames); may return other latents."""
    guesses: Guesses = field(init=False)
    """What guides guess of the edits."""
    index: Mapping[int, int] = field(init=False)
    """Index of a step of this run -> its index in the inversion's run."""
    source_branch: SourceBranch | None = field(init=False)
    """The source's branch, which all edits share; None if the backbone conditions it on each edited
    frame, so that every edit has its own."""

    @classmethod
    def prepare(
        cls,
        editor: Planner,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None,
        start: int | None,
        injection: Injection | None,
        fps: int | None,
        on_step: OnStep | None,
        source_pass: SourcePass,
        taps: Taps | None,
        after_step: AfterStep | None,
        options: Options | None,
    ) -> EditRun:
        """Returns the run of all requests in `edits`; the arguments are those of `edit_many`.

        Raises InputError for everything that can be wrong with any of them, and offloads networks
        if memory is short.
        """
        edits = check_requests(edits)
        editor.check_source(source)
        steps = editor.defaults.steps if steps is None else steps
        options = options_of(editor.backbone, fps, options)
        plan = editor.step_plan(steps, start, injection, source, None, source_pass, taps, options)
        editor.check_kept(source.trajectory.stored_levels, plan.source_levels)
        sampler = editor.backbone.sampler(options)
        jobs = [Job.prepare(editor, edit, source, sampler, steps) for edit in edits]
        frames, branches = source.video.frames, most_branches(editor, jobs)
        # before the run is made, which conditions the source's branch
        editor._reserve(size_of(frames), len(frames), 1 + branches)
        return cls(editor, source, jobs, plan, steps, options, taps, on_step, after_step)

    def __post_init__(self):
        levels = [step.level for step in self.plan.steps]
        index = match_levels(levels, self.source.trajectory.levels)
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "guesses", Guesses(self.stages, self.source, self.options))
        shared = not self.stages.backbone.uses_edited_source_frame(self.options)
        branch = self._source(source_frame(self.stages, self.source)) if shared else None
        object.__setattr__(self, "source_branch", branch)

    def _source(self, first: FirstFrame) -> SourceBranch:
        """The source's branch, conditioned on this first frame."""
        stages, source, p = self.stages, self.source, self.stages.backbone.pinned_frames
        with stages._conditioning():
            conditions = stages.backbone.condition(source.settings.prompt, first, self.options)
        # the closure below must not refer to self: the cycle would hold the memory of the run until
        # Python's garbage collector finds it
        device, index = stages.backbone.device, self.index
        pinned = first.latents[:, :, :p].to(device)

        def latents(level: Level) -> Tensor:
            latents = source.at(index[level.index]).to(device)
            return prepend_pinned(pinned, latents[:, :, p:])

        return SourceBranch(conditions, latents, index)

    def run(self, batch: slice, decode: bool = True) -> list[Edit]:
        """Samples the edits `jobs[batch]` in one batch, decodes them, and returns them in order.

        decode: False leaves out the decoding, so that the edits have no frames. Raises
        NotFiniteError, which names the edits concerned, if a network produces infinities or NaN.
        """
        stages, jobs = self.stages, self.jobs[batch]
        p, device = stages.backbone.pinned_frames, stages.backbone.device
        begins = [self._begin(job) for job in jobs]
        # one context, in which networks that are read from disk are read once for all edits
        with stages._conditioning():
            branches, firsts = zip(*map(self._branches, jobs, begins), strict=True)
        pinned = torch.cat([first.latents.to(device)[:, :, :p] for first in firsts])
        begin = torch.cat(begins)[:, :, p:]
        on_step, after_step = step_callbacks(self.on_step, self.after_step, pinned)
        strongest = [max(job.prompts.guidance.values(), key=abs) for job in jobs]
        check = stages._step_check("sampling", self.steps, strongest, self._which(batch.start))

        def step_noise(index: int) -> Tensor:
            return torch.cat([job.step_noise(index) for job in jobs])[:, :, p:]

        source = self.source_branch or self._source(*firsts)
        replayed = [self.index[level.index] for level in self.plan.replayed]
        opened = open_playback(self.source.features, replayed, device)
        self.plan.log_to(log)
        timed = stage(log, device, "edit: %d of %d steps", len(self.plan.steps), self.steps)
        with timed, opened as playback, stages._forward() as forward:
            predict = injecting_predictor(
                forward, branches, pinned, source, self.plan, playback, self.taps, self.steps
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
            self._edit(x, batch.start + i, decode)
            for i, x in enumerate(prepend_pinned(pinned, clean).split(1))
        ]

    def _begin(self, job: Job) -> Tensor:
        """The latents of all frames that sampling starts from, (1, c, f', h', w') float32."""
        level = self.plan.steps[0].level
        begin = self.source.at(self.index[level.index]).to(self.stages.backbone.device)
        if job.guide is not None:
            begin = begin + level.alpha * self.guesses.shift(job.guide, job.image)
        return job.random_ratio * job.noise + (1 - job.random_ratio) * begin

    def _branches(self, job: Job, begin: Tensor) -> tuple[Branches, FirstFrame]:
        stages = self.stages
        prompt, negative_prompt, guidance = job.prompts
        first = stages._first_frame(job.image, len(self.source.video.frames), begin=begin)
        return stages.backbone.branches(
            prompt, negative_prompt, first, guidance, self.options
        ), first

    def _edit(self, latents: Tensor, index: int, decode: bool) -> Edit:
        frames = self.source.video.frames[:0]
        if decode:
            frames = self.stages._decode(latents, self._which(index))
        # a backbone may stretch the frame to floats
        first = np.rint(self.jobs[index].image).astype(np.uint8)
        return Edit(frames, self.source.video.fps, latents, {0: first})

    def _which(self, first: int) -> DescribeEdits:
        """Names edits in a message, by their positions in a batch that begins with edit `first`."""

        def which(positions: list[int]) -> str:
            if len(self.jobs) == 1:
                return ""
            indices = [first + position for position in positions]
            prompts = [checks.shown(self.jobs[i].prompts.prompt) for i in indices]
            names = [
                f"{ordinal(i, len(self.jobs))} {x}" for i, x in zip(indices, prompts, strict=True)
            ]
            return f", of edit {', '.join(names)}"

        return which


def most_branches(stages: Stages, jobs: Sequence[Job]) -> int:
    """Returns the most branches that one of the edits has, not counting the source's."""
    return max(stages.backbone.branch_count(job.prompts.guidance) for job in jobs)


def check_requests(edits: Sequence[EditRequest]) -> list[EditRequest]:
    """Returns the requests as a list; raises InputError if there are none, or it is no sequence."""
    edits = list(checks.kind("edits", edits, Sequence, "a list of EditRequest"))
    if not edits:
        raise InputError("edits: the list is empty; it holds one EditRequest for each edit")
    return edits


@dataclass(frozen=True)
class PlainRun:
    """A run that samples one clip with nothing injected."""

    stages: Stages
    """The editor, with the networks that the run calls."""
    steps: int
    """Number of steps in the schedule."""
    start: int
    """Index of the first step that is run; 0, the noisiest, runs all steps."""
    options: Options
    """A value for every option of the backbone."""
    on_step: OnStep | None
    """Called after each step with (index, timestep, latents of all frames)."""
    after_step: AfterStep | None
    """Called before `on_step` with (index, latents of all frames); may return other latents."""

    def run(
        self,
        prompts: Prompts,
        first: FirstFrame,
        begin: Tensor,
        step_noise: Sequence[Tensor] | None,
        generator: NoiseGenerator,
        fps: float,
        offsets: Mapping[int, Tensor] | None = None,
    ) -> Edit:
        """Samples from the latents `begin`, decodes the result and returns it.

        prompts: prompt, negative prompt and guidance scales. first: the clip's first frame. begin:
        (1, c, f', h', w') float32, all frames, at the level of index `start`. step_noise: one
        tensor for each step, for samplers that add noise; None draws it from `generator`. fps: the
        frame rate of the result. offsets: index of a step -> what is added after it, all frames.
        Raises NotFiniteError if a network produces infinities or NaN.
        """
        stages, p = self.stages, self.stages.backbone.pinned_frames
        prompt, negative_prompt, guidance = prompts
        pinned, first = first.latents.to(begin.device)[:, :, :p], replace(first, begin=begin)
        on_step, after_step = step_callbacks(self.on_step, self.after_step, pinned)
        sampler = stages.backbone.sampler(self.options)
        noise = generator.for_steps(step_noise, begin.shape, sampler, self.steps)
        with stages._conditioning():
            branches = stages.backbone.branches(
                prompt, negative_prompt, first, guidance, self.options
            )
        strongest = max(guidance.values(), key=abs)
        timed = stage(
            log, begin.device, "sample: %d of %d steps", self.steps - self.start, self.steps
        )
        with timed, stages._forward() as forward:
            clean = sample(
                guided_predictor(forward, branches, pinned),
                begin[:, :, p:],
                sampler,
                self.steps,
                self.start,
                on_step,
                stages._step_check("sampling", self.steps, [strongest]),
                after_step,
                lambda index: noise(index)[:, :, p:],
                {i: x[:, :, p:].to(begin.device) for i, x in (offsets or {}).items()},
            )
        latents = prepend_pinned(pinned, clean)
        return Edit(stages._decode(latents), fps, latents)
