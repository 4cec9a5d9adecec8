"""Invert a video, edit it: the whole of AnyV2V (arXiv 2403.14468), start to end.

video file     read_video                frames   (f, h, w, 3) uint8
frames         encode_frames             z0       (1, c, f', h', w')
z0             invert                    trajectory: noise level -> latents
edited frame   backbone.branches         conditions of every branch, and how they combine
fractions      step_plan                 which sites are injected at which step, and how
z_T            sample                    for each level: batch = [source's z | z | z]
                                         f = predict(batch, t, conditions, taps)
                                         f = combine(branches of f); z = a z + b f
z_0            decode                    frames   (f, h, w, 3) uint8
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults, Guidance, Options
from anyv2v.diffusion.inversion import METHODS, TOLERANCE
from anyv2v.diffusion.samplers import AfterStep, OnStep
from anyv2v.diffusion.schedule import matches
from anyv2v.errors import InputError
from anyv2v.injection.fractions import NO_INJECTION, Injection
from anyv2v.injection.taps import Taps
from anyv2v.media.frames import Video
from anyv2v.media.image import Frame, fit_frame, read_argument
from anyv2v.pipeline.arguments import Noise, as_video, check_taps, options_of
from anyv2v.pipeline.editing import EditRun, Job, PlainRun, requests_of
from anyv2v.pipeline.inverting import STEPS, InversionRun
from anyv2v.pipeline.planning import Planning, source_frame
from anyv2v.pipeline.request import Edit, EditRequest
from anyv2v.pipeline.source import InversionSettings, Source, Unfinished
from anyv2v.pipeline.stages import size_of
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, StepPlan
from anyv2v.runtime.memory import free_bytes

__all__ = ["Defaults", "Editor"]


class Editor(Planning):
    """The stages of an edit as methods, and the runs that are made of them.

    It holds no state of a run: one editor may serve several threads at once. Of every method None
    is what the weights work best with.
    """

    def __repr__(self) -> str:
        (width, height), dtype = self.defaults.size, str(self.backbone.dtype).removeprefix("torch.")
        return (
            f"Editor({self.backbone.name}, {self.defaults.frames} frames of {width}x{height}, "
            f"{self.defaults.fps:g} fps, {dtype} on {self.backbone.device}, "
            f"weights {self.fingerprint[:12] or 'unknown'})"
        )

    @torch.no_grad()
    def invert(
        self,
        video: Video | str | os.PathLike | np.ndarray,
        method: str = "fixed-point",
        steps: int | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        guidance: float | Guidance = 1.0,
        fps: int | None = None,
        on_step: OnStep | None = None,
        tolerance: float = TOLERANCE,
        plan: StepPlan | None = None,
        recording: CachePlan | None = None,
        unfinished: Unfinished | None = None,
        taps: Taps | None = None,
        options: Options | None = None,
    ) -> Source:
        """The noise that a video came from, and all that lies between (section 4.1).

        `video`: a path is read with the size, frames and rate that are the weights' own; so is an
        array of frames (f, h, w, 3) uint8. `method`: "fixed-point" solves the steps of a sampling
        run of as many `steps` to `tolerance`; "ddim" is the original's (500). `prompt` describes
        the source. `fps`, `options`: what the network is told, see `backbone.options`. `plan`: the
        run that will read the source; only what it reads is kept. `recording`: features to keep on
        the way, see `recording()`. `unfinished`: the file from which an interrupted inversion goes
        on. `taps`: look on, and may change what the network computes.
        """
        checks.one_of("method", method, tuple(METHODS))
        steps = STEPS.get(method, self.defaults.steps) if steps is None else steps
        self.schedule.levels(steps)  # refuses a wrong number before any work
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        checks.called("on_step", on_step)
        check_taps(taps, self.sites)
        for name, value, kind in (
            ("plan", plan, StepPlan),
            ("recording", recording, CachePlan),
            ("unfinished", unfinished, Unfinished),
        ):
            if value is not None:
                checks.kind(name, value, kind, f"a {kind.__name__}")
        if taps is not None and recording is not None:
            raise InputError(
                "recording: taps may change what the network computes, and an edit's source does "
                "without them; record features afterwards, by `record`"
            )
        settings = InversionSettings(
            method,
            steps,
            prompt,
            negative_prompt,
            self.defaults.scales(guidance),
            options_of(self.backbone, fps, options),
            checks.positive("tolerance", tolerance),
        )
        run = InversionRun(self, as_video(video, self.defaults), settings, plan, recording)
        source = run.run(unfinished, taps, on_step)
        # an inversion that was resumed did not pass its first steps again
        return source if recording is None else self.record(source, recording, source.features)

    def edit(
        self,
        source: Source,
        frame: Frame,
        prompt: str,
        negative_prompt: str | None = None,
        steps: int | None = None,
        start: int = 0,
        guidance: float | Guidance | None = None,
        injection: Injection | None = None,
        random_ratio: float = 0.0,
        fps: int | None = None,
        seed: int = 0,
        fit: str = "crop",
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        after_step: AfterStep | None = None,
        step_noise: Sequence[Tensor] | None = None,
        options: Options | None = None,
    ) -> Edit:
        """The video whose first frame is `frame` and that moves as the source does (section 4.2).

        `start`: index of the first of the `steps` that is run. `random_ratio`: how much of the
        inverted latents is replaced by `noise`, drawn from `seed` if not given. `injection`: see
        `Injection`, or anything else with its `groups`. `guidance`: a number, or one for each scale
        by name. `step_noise`: for samplers that draw, one tensor for each step. `source_pass`,
        `taps`, `after_step`, `options`: see `edit_many`.
        """
        request = EditRequest(
            frame, prompt, negative_prompt, guidance, random_ratio, seed, fit, noise, step_noise
        )
        run = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        (edit,) = self.edit_many(source, [request], *run)
        return edit

    @torch.no_grad()
    def edit_many(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None = None,
        start: int = 0,
        injection: Injection | None = None,
        fps: int | None = None,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        after_step: AfterStep | None = None,
        options: Options | None = None,
    ) -> list[Edit]:
        """Several edits of one source, in batches as large as memory allows: see `edit`.

        Those of a batch share one source: its branch, or what was recorded of it. They agree with
        those of each edit alone to rounding. `on_step(index, t, latents)` gets the latents of a
        batch after each step, (its edits, c, f', h', w'); `after_step(index, latents)` too, and may
        give others to go on from. `taps` are called after the injection's own; in steps in which
        they are active the source is in the batch, first. `source_pass` changes the cost, not the
        result. `fps`, `options`: what the network is told, see `backbone.options`.
        """
        given = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        run, done = self._edits(source, edits, *given), []
        while (left := len(run.jobs) - len(done)) > 0:
            size, frames = size_of(source.video.frames), len(source.video.frames)
            left = 1 if self.backbone.edited_source(run.options) else left
            count = self._batch(size, frames, left, self._branches(run.jobs))
            done += run.run(slice(len(done), len(done) + count))
        return done

    @torch.no_grad()
    def edit_each(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None = None,
        start: int = 0,
        injection: Injection | None = None,
        fps: int | None = None,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        after_step: AfterStep | None = None,
        options: Options | None = None,
    ) -> Iterator[Edit | Exception]:
        """Several edits of one source, each as soon as it is done; one that fails stops no other.

        What an edit fails with is given in its place. Each has the very latents that `edit` gives
        it. What is wrong with the arguments of any of them is raised before the first is run.
        """
        given = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        run = self._edits(source, edits, *given)
        for i in range(len(run.jobs)):
            try:
                (edit,) = run.run(slice(i, i + 1))
            except Exception as error:
                edit = error
            yield edit

    @torch.no_grad()
    def reconstruct(
        self,
        source: Source,
        prompt: str = "",
        negative_prompt: str = "",
        steps: int | None = None,
        start: int = 0,
        guidance: float | Guidance = 1.0,
        fps: int | None = None,
        on_step: OnStep | None = None,
        after_step: AfterStep | None = None,
        step_noise: Sequence[Tensor] | None = None,
        seed: int = 0,
        options: Options | None = None,
    ) -> Edit:
        """The source video again, from its inverted latents; nothing is injected."""
        self.check_source(source)
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        steps = self.defaults.steps if steps is None else steps
        options = options_of(self.backbone, fps, options)
        plan = self.step_plan(steps, start, NO_INJECTION, options=options)
        self.check_kept(source.trajectory.kept_levels, plan.source_levels)
        index = matches(plan.source_levels, source.trajectory.levels)
        run = PlainRun(self, steps, start, options, on_step, after_step)
        frames, scales = source.video.frames, self.defaults.scales(guidance)
        self._reserve(size_of(frames), len(frames), self.backbone.branch_count(scales))
        return run.run(
            (prompt, negative_prompt, source_frame(self, source), scales),
            source.at(index[start]).to(self.backbone.device),
            step_noise,
            Noise(seed, self.backbone.device),
            source.video.fps,
        )

    @torch.no_grad()
    def generate(
        self,
        frame: Frame,
        prompt: str,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        fps: int | None = None,
        seed: int = 0,
        negative_prompt: str | None = None,
        fit: str = "crop",
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
        after_step: AfterStep | None = None,
        step_noise: Sequence[Tensor] | None = None,
        options: Options | None = None,
    ) -> Edit:
        """The plain image-to-video model: a clip that begins with `frame`, from random noise."""
        defaults, codec = self.defaults, self.backbone.codec
        steps = defaults.steps if steps is None else steps
        request = EditRequest(frame, prompt, negative_prompt, guidance, seed=seed).filled(defaults)
        options = options_of(self.backbone, fps, options)
        width, height = size = self.check_size(defaults.size if size is None else size)
        frames = checks.count("frames", defaults.frames if frames is None else frames)
        shape = (1, *codec.shape(codec.check_frames(frames), height, width))
        if shape[2] <= self.backbone.pinned:
            raise InputError(f"frames: {frames} is the given frame alone; more are needed")
        run = PlainRun(self, steps, 0, options, on_step, after_step)
        self._reserve(size, frames, self.backbone.branch_count(request.guidance))
        draws = Noise(seed, self.backbone.device)
        noise = draws.given_or_drawn(noise, shape)
        first = self._first_frame(fit_frame(read_argument("frame", frame), size, fit), frames)
        told = request.prompt, request.negative_prompt, first, request.guidance
        fps = options.get("fps", defaults.fps)
        return run.run(told, noise, step_noise, draws, fps)

    def _edits(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None,
        start: int,
        injection: Injection | None,
        fps: int | None,
        on_step: OnStep | None,
        source_pass: SourcePass,
        taps: Taps | None,
        after_step: AfterStep | None,
        options: Options | None,
    ) -> EditRun:
        """What runs some of the edits together; all that can be wrong with any is found here."""
        edits = requests_of(edits)
        self.check_source(source)
        steps = self.defaults.steps if steps is None else steps
        options = options_of(self.backbone, fps, options)
        plan = self.step_plan(steps, start, injection, source, None, source_pass, taps, options)
        self.check_kept(source.trajectory.kept_levels, plan.source_levels)
        index = matches(plan.source_levels, source.trajectory.levels)
        begin = source.at(index[plan.steps[0].level.index]).to(self.backbone.device)
        sampler = self.backbone.sampler(options)
        jobs = [Job.of(self, edit, source, begin, sampler, steps) for edit in edits]
        frames, branches = source.video.frames, self._branches(jobs)
        self._reserve(size_of(frames), len(frames), 1 + branches)
        return EditRun(self, source, jobs, plan, steps, options, taps, on_step, after_step)

    def _branches(self, jobs: Sequence[Job]) -> int:
        """How many one of them has at most, without the source's."""
        return max(self.backbone.branch_count(job.request.guidance) for job in jobs)

    def _batch(self, size: tuple[int, int], frames: int, edits: int, each: int) -> int:
        """How many of these edits, of so many branches `each`, fit into memory together."""
        free = free_bytes(self.backbone.device)

        def fits(edits: int) -> bool:
            # the source, and the branches of each; the least that is needed, twice
            return 2 * self._least_bytes(size, frames, 1 + each * edits) <= free

        return next((n for n in range(edits, 1, -1) if fits(n)), 1)
