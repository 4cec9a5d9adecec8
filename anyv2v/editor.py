"""`Editor` inverts a video and edits it: the whole of AnyV2V (arXiv 2403.14468), start to end.

video file     read_video                frames   (f, h, w, 3) uint8
frames         encode_frames             z0       (1, c, f', h', w')
z0             invert                    trajectory: noise level -> latents
                                         features, if it records: noise level -> site -> tensors
edited frame   backbone.branches         conditions of every branch, and how they combine
fractions      step_plan                 which sites are injected at which step, and how
z_T            sample                    each level: f = predict(batch, t, conditions, taps)
                                         f = combine(branches of f); z = a z + b f
z_0            decode                    frames   (f, h, w, 3) uint8

In the equations f is the network's prediction, and a and b are the coefficients of the sampler's
step. A site is a layer whose features can be injected. The batch of a step depends on where the
source's features come from (I2VGen-XL, one edit):

replayed       the inversion recorded    [negative, edited]          2 branches, taps = Replay
batched        it did not                [source, negative, edited]  3 branches, taps = ShareSource
plain          nothing is injected       [negative, edited]          2 branches, no taps

The command `anyv2v edit` records by itself. `editor.invert(video)` records only with `recording=`,
so steps that inject are then batched: see `StepPlan` for what the default edit does at each step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults, Guidance, Options
from anyv2v.diffusion.inversion import METHODS
from anyv2v.diffusion.samplers import AfterStep, OnStep
from anyv2v.diffusion.schedule import match_levels
from anyv2v.errors import InputError
from anyv2v.injection.fractions import NO_INJECTION, Injection
from anyv2v.injection.taps import Taps
from anyv2v.long.editor import LongEditor
from anyv2v.media.frames import Video
from anyv2v.media.image import Frame, fit_frame, read_argument
from anyv2v.pipeline.arguments import NoiseGenerator, as_video, check_inversion, options_of
from anyv2v.pipeline.editing import EditRun, PlainRun, most_branches
from anyv2v.pipeline.guide import Guide
from anyv2v.pipeline.inverting import STEPS, InversionRun
from anyv2v.pipeline.planning import source_frame
from anyv2v.pipeline.request import Edit, EditRequest, Prompts
from anyv2v.pipeline.source import InversionSettings, Source, Unfinished
from anyv2v.pipeline.stages import size_of
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, StepPlan
from anyv2v.runtime.memory import free_bytes

__all__ = ["Defaults", "Editor"]


class Editor(LongEditor):
    """Inverts and edits videos; `anyv2v.load` makes an editor from a folder of weights.

    The single stages (encoding, conditions, a prediction, plans) are methods too. An editor holds
    no state of a run, so several threads may use one at once. In `edit` and the other methods that
    sample, settings that are None have the weights' own default, see `defaults`.
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
        tolerance: float | None = None,
        plan: StepPlan | None = None,
        recording: CachePlan | None = None,
        unfinished: Unfinished | None = None,
        taps: Taps | None = None,
        options: Options | None = None,
        round_trip: bool = False,
    ) -> Source:
        """Inverts a video into the noise that it would have been sampled from (section 4.1).

        `video`: a Video, an array of frames (f, h, w, 3) uint8, or a path, which is read with the
        weights' own size, number of frames and rate. `method`: "fixed-point" solves each step of
        sampling to the relative `tolerance` (None: the weights' own); "ddim" is the original's
        plain DDIM. `steps`: None is 500 for "ddim", else the weights' own number. `prompt`
        describes the source; with `guidance` above 1, `negative_prompt` is what it leads away from.
        `fps` and `options` are settings that the network is given, see `backbone.options`.

        `on_step(index, t, latents)` is called after each step with the latents (1, c, f', h', w')
        that it reached; index 0 is the first step, the least noisy. `plan`: the edit run that will
        read the source, see `step_plan`; only the latents that it reads are stored. None stores
        those of all steps. `recording`: the features to record, see `recording()`; None records
        nothing. `unfinished`: the file in which an interrupted inversion is saved, and from which
        it is resumed. `taps` are called in the steps in which they are active, and may change what
        the network computes. `round_trip`: also sample the source again, and keep how near it comes
        in `Source.round_trip`; `on_step` is called as in `reconstruct`, too. Raises InputError for
        an argument that is wrong, and names it, and for noise outside of `Defaults.noise_range`.

        On the GPU remain the weights and the source: its latents, and those features that
        `recording` placed there, see `Source`. Conditions, captured graphs and the latents of
        iterations are freed, though PyTorch's allocator may keep their memory for the next run.
        """
        checks.one_of("method", method, tuple(METHODS))
        steps = STEPS.get(method, self.defaults.steps) if steps is None else steps
        self.schedule.levels(steps)  # refuses a wrong number before any work
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        checks.called("on_step", on_step)
        check_inversion(plan, recording, unfinished, taps, self.sites)
        settings = InversionSettings(
            method,
            steps,
            prompt,
            negative_prompt,
            self.defaults.scales(guidance),
            options_of(self.backbone, fps, options),
            checks.positive(
                "tolerance", self.defaults.tolerance if tolerance is None else tolerance
            ),
        )
        video, round_trip = as_video(video, self.defaults), checks.flag("round_trip", round_trip)
        run = InversionRun(self, video, settings, plan, recording, round_trip)
        source = run.run(unfinished, taps, on_step)
        # an inversion that was resumed did not predict at its first steps, so they are missing
        return source if recording is None else self.record(source, recording, source.features)

    def edit(
        self,
        source: Source,
        frame: Frame,
        prompt: str,
        negative_prompt: str | None = None,
        steps: int | None = None,
        start: int | None = None,
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
        guide: str | Video | Guide | None = None,
    ) -> Edit:
        """Makes a video that begins with `frame` and moves as the source does (section 4.2).

        `frame`: the edited first frame, a path, a uint8 array (h, w, 3) or a PIL image; `fit`
        ("crop", "stretch" or "pad", see `fit_frame`) brings it to the clip's size. `start`: index
        of the first step that is run; 0, the noisiest, runs all `steps`. `guidance`: a number, or a
        mapping from names of scales to numbers. `injection`: for which part of the steps features
        of the source are injected; an `Injection`, or any object with its method `groups`.
        `random_ratio`: the weight, 0 to 1, of random `noise` mixed into the inverted latents.
        `noise`: standard normal, in the shape of the source's latents (1, c, f', h', w'); None
        draws it from `seed`. `step_noise`: the same for each step, used only by samplers that add
        noise; None draws it. `guide`: a guess of the edited video, under which sampling starts from
        the source's noise ("auto", "patches", a Video or a `Guide`, see `EditRequest`). `fps`,
        `on_step`, `source_pass`, `taps`, `after_step`, `options`: see `edit_many`. Other arguments
        that are None have the weights' own default. Raises InputError for an argument that is
        wrong, and names it.
        """
        request = EditRequest(
            frame,
            prompt,
            negative_prompt,
            guidance,
            random_ratio,
            seed,
            fit,
            noise,
            step_noise,
            guide,
        )
        common = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        (edit,) = self.edit_many(source, [request], *common)
        return edit

    @torch.no_grad()
    def edit_many(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None = None,
        start: int | None = None,
        injection: Injection | None = None,
        fps: int | None = None,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        after_step: AfterStep | None = None,
        options: Options | None = None,
    ) -> list[Edit]:
        """Makes several edits of one source, in batches as large as memory allows.

        Returns one `Edit` for each request in `edits`, in order; it equals that of `edit` up to
        rounding. The edits of a batch share the source, which is one branch or recorded features.
        Arguments not named here are those of `edit`. `on_step(index, t, latents)` is called after
        each step with the latents (edits, c, f', h', w') of the batch; `after_step(index, latents)`
        is called before it, and may return other latents to go on with, or None. `taps`: hooks that
        are called after the injection's own; in steps in which they are active the source is the
        first branch of the batch. `source_pass`: how steps get the source's features; "shared"
        replays recorded ones where there are any, "always" has the source in every batch, and
        "separate" predicts the source alone before each step that injects. It changes the cost, not
        the result. `fps` and `options` are settings that the network is given, see
        `backbone.options`. Raises InputError, before the first edit, for an argument that is wrong.
        """
        common = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        run, done = EditRun.prepare(self, source, edits, *common), []
        while (left := len(run.jobs) - len(done)) > 0:
            size, frames = size_of(source.video.frames), len(source.video.frames)
            left = 1 if self.backbone.uses_edited_source_frame(run.options) else left
            count = self._batch(size, frames, left, most_branches(self, run.jobs))
            done += run.run(slice(len(done), len(done) + count))
        return done

    @torch.no_grad()
    def edit_each(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int | None = None,
        start: int | None = None,
        injection: Injection | None = None,
        fps: int | None = None,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        after_step: AfterStep | None = None,
        options: Options | None = None,
        decode: bool = True,
    ) -> Iterator[Edit | Exception]:
        """Makes several edits of one source one by one, and yields each `Edit` once it is done.

        If an edit fails, its exception is yielded in its place, and the others go on. The latents
        are exactly those of `edit`. `decode`: False leaves out the decoding, so that the edits have
        latents and no frames. The other arguments are those of `edit_many`; InputError for any that
        is wrong is raised at the first `next()`, before any edit runs.
        """
        common = steps, start, injection, fps, on_step, source_pass, taps, after_step, options
        run = EditRun.prepare(self, source, edits, *common)
        for i in range(len(run.jobs)):
            try:
                (edit,) = run.run(slice(i, i + 1), decode)
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
        """Samples the source video again from its inverted latents, with nothing injected.

        `prompt`, `negative_prompt` and `guidance` have the same defaults as in `invert`. `start`:
        index of the first step that is run; 0, the noisiest, runs all `steps` (None: the weights'
        own number). `seed` draws the noise of samplers that add some, if `step_noise` is None. With
        the inversion's number of steps, `source.offsets` are added after them. The other arguments,
        the errors and the result are those of `edit`.
        """
        self.check_source(source)
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        steps = self.defaults.steps if steps is None else steps
        options = options_of(self.backbone, fps, options)
        plan = self.step_plan(steps, start, NO_INJECTION, options=options)
        self.check_kept(source.trajectory.stored_levels, plan.source_levels)
        index = match_levels(plan.source_levels, source.trajectory.levels)
        run = PlainRun(self, steps, start, options, on_step, after_step)
        frames = source.video.frames
        prompts = Prompts(prompt, negative_prompt, self.defaults.scales(guidance))
        self._reserve(size_of(frames), len(frames), self.backbone.branch_count(prompts.guidance))
        return run.run(
            prompts,
            source_frame(self, source),
            source.at(index[start]).to(self.backbone.device),
            step_noise,
            NoiseGenerator(seed, self.backbone.device),
            source.video.fps,
            source.offsets if steps == source.settings.steps else None,
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
        """Samples a clip that begins with `frame` from random noise, without any source.

        `frames`: number of frames of the clip. `size`: its (width, height) in pixels. `noise`: the
        initial latents, (1, c, f', h', w'), standard normal; None draws them from `seed`. The other
        arguments, the errors and the result are those of `edit`; None is the weights' own default.
        """
        defaults, codec = self.defaults, self.backbone.codec
        steps = defaults.steps if steps is None else steps
        request = EditRequest(frame, prompt, negative_prompt, guidance, seed=seed)
        prompts = request.prompts(defaults)
        options = options_of(self.backbone, fps, options)
        width, height = size = self.check_size(defaults.size if size is None else size)
        frames = checks.count("frames", defaults.frames if frames is None else frames)
        shape = (1, *codec.shape(codec.check_frames(frames), height, width))
        if shape[2] <= self.backbone.pinned_frames:
            raise InputError(f"frames: {frames} is the given frame alone; more are needed")
        run = PlainRun(self, steps, 0, options, on_step, after_step)
        self._reserve(size, frames, self.backbone.branch_count(prompts.guidance))
        generator = NoiseGenerator(seed, self.backbone.device)
        noise = generator.use(noise, shape)
        picture, bilinear = read_argument("frame", frame), self.backbone.stretches_bilinearly
        first = self._first_frame(fit_frame(picture, size, fit, bilinear), frames)
        # options are numbers or texts, and a rate is a number
        rate = cast(float, options.get("fps", defaults.fps))
        return run.run(prompts, first, noise, step_noise, generator, rate)

    def _batch(self, size: tuple[int, int], frames: int, edits: int, branches: int) -> int:
        """How many of the `edits`, with so many branches each, fit into memory together."""
        free = free_bytes(self.backbone.device)

        def fits(edits: int) -> bool:
            # the source, and the branches of each edit; twice the least that a prediction needs
            return 2 * self._least_bytes(size, frames, 1 + branches * edits) <= free

        return next((n for n in range(edits, 1, -1) if fits(n)), 1)
