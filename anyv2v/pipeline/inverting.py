"""The run of an inversion: from a video to a `Source`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from anyv2v.diffusion.inversion import METHODS, InversionState, default_budget, fixed_point
from anyv2v.diffusion.samplers import OnStep, Predict, sample
from anyv2v.diffusion.schedule import Level, match_levels
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.injection.taps import Taps
from anyv2v.media.frames import Video
from anyv2v.pipeline.arguments import NoiseGenerator, step_callbacks
from anyv2v.pipeline.denoise import Recorder, guided_predictor, prepend_pinned
from anyv2v.pipeline.planning import Planner
from anyv2v.pipeline.source import InversionSettings, Source, Unfinished
from anyv2v.pipeline.stages import size_of
from anyv2v.pipeline.step_plan import CachePlan, StepPlan
from anyv2v.runtime.stage import stage

log = logging.getLogger(__name__)

STEPS = {"ddim": 500}
"""Name of an inversion method -> its default number of steps, that of the original. Methods that
are not named here take the number of steps of sampling."""


@dataclass(frozen=True)
class InversionRun:
    """The inversion of one video: its settings, and what of it is stored.

    Raises InputError, when it is made, if the video, the plan or the recording do not fit the
    weights or the settings, or if memory is too short.
    """

    stages: Planner
    """The editor, with the networks that the run calls."""
    video: Video
    """The video to invert."""
    settings: InversionSettings
    """Method, number of steps, tolerance, and what the network is conditioned on."""
    plan: StepPlan | None = None
    """The edit run that will read the source: only the latents that it reads are stored, and the
    inversion ends at the noisiest of them. None stores the latents of all steps."""
    recording: CachePlan | None = None
    """The features to record during the inversion; None records none."""
    round_trip: bool = False
    """Whether to measure `Source.round_trip`."""

    def __post_init__(self):
        """Checks the fields, and moves networks to the host if memory is short."""
        frames, method = self.video.frames, self.settings.method
        if len(frames) < 2:
            raise InputError("the video has 1 frame; at least 2 are needed")
        self.stages.check_size(size_of(frames))
        self.stages.backbone.codec.check_frames(len(frames))
        branches = self.stages.backbone.branch_count(self.settings.guidance)
        if self.recording is not None and (method != "fixed-point" or branches > 1):
            raise InputError(
                "recording: only a fixed-point inversion without guidance passes the features that "
                "sampling will need; record them afterwards, by `record`"
            )
        if self.plan is not None:
            self.stages.check_kept(self.levels[:-1], self.plan.source_levels)
        if self.recording is not None:
            recorded = [self.recording.levels[i] for i in self.recording.placement]
            self.stages.check_kept(self.levels[self.last : -1], recorded)
            for level in recorded:
                # the network is given another timestep, so its features would be others
                if (own := level.inversion_level) is not None and own.t != level.t:
                    raise InputError(
                        f"recording: the run asks about timestep {level.t:g} where the inversion "
                        f"asks about {own.t:g}; record features afterwards, by `record`"
                    )
        cached = 0 if self.recording is None else self.recording.bytes("device")
        self.stages._reserve(size_of(frames), len(frames), branches, cached)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """All noise levels of the inversion, the noisiest first, the clean end included."""
        return tuple(self.stages.schedule.levels(self.settings.steps))

    @cached_property
    def read(self) -> set[int]:
        """The indices in `levels` whose latents are stored: those that `plan` reads, or all."""
        if self.plan is None:
            return set(range(self.settings.steps))
        return set(match_levels(self.plan.source_levels, self.levels).values())

    @cached_property
    def last(self) -> int:
        """The index of the noisiest level whose latents are stored, where the inversion ends."""
        return min(self.read)

    def run(
        self, unfinished: Unfinished | None, taps: Taps | None, on_step: OnStep | None
    ) -> Source:
        """Inverts the video and returns the source.

        unfinished: the file in which the state is saved from time to time; if it holds a state of
        the same inversion, the run goes on from there. taps: hooks that are called in the steps in
        which they are active. on_step: called after each step with (index counted from the least
        noisy, timestep, latents of all frames). Raises NotFiniteError if latents are not finite,
        and InputError if the file is of another inversion.

        Conditions, captured graphs, iterates and features that are not recorded are freed at the
        end. See `Source` for what remains in memory.
        """
        stages, settings, frames = self.stages, self.settings, self.video.frames
        p = stages.backbone.pinned_frames
        clean = stages.encode_frames(frames)
        pinned, begin = clean[:, :, :p], InversionState.start(clean[:, :, p:])
        on_step, _ = step_callbacks(on_step, None, pinned)
        first = stages._first_frame(frames[0], len(frames), clean[:, :, :1])
        with stages._conditioning():
            branches = stages.backbone.branches(
                settings.prompt,
                settings.negative_prompt,
                first,
                settings.guidance,
                settings.options,
            )
        count = len(branches.conditions)
        if unfinished is not None:
            begin = unfinished.load(begin, self.video, settings, stages.fingerprint)
        indices = self._recorded_indices()
        recorder = Recorder(self.recording, indices, taps, settings.steps, count)
        state, round_trip = begin, None
        if self.recording is not None:
            log.info("%s", self.recording)
        made = "invert: %d steps of %s", settings.steps, settings.method
        with stage(log, stages.backbone.device, *made), stages._forward() as forward:
            predict = guided_predictor(forward, branches, pinned, recorder.taps)
            for state in self._states(predict, begin, unfinished):
                recorder.commit(state.latest)
                if on_step is not None:
                    latents = state.trajectory[state.latest]
                    on_step(state.steps - 1, self.levels[state.latest].t, latents)
            if self.round_trip:
                run = stages.schedule, settings.steps, self.last, on_step
                x = state.trajectory[self.last]
                missed = sample(predict, x, *run, offsets=state.offsets) - state.clean
                round_trip = (missed.norm() / state.clean.norm()).item()
        latents = {
            i: prepend_pinned(pinned, x) for i, x in state.trajectory.items() if i in self.read
        }
        source = Source(
            video=self.video,
            trajectory=Trajectory(clean, latents, self.levels),
            evaluations=state.evaluations * count,
            settings=settings,
            fingerprint=stages.fingerprint,
            residuals=state.residuals,
            features=recorder.cache,
            offsets={i: prepend_pinned(0 * pinned, x) for i, x in state.offsets.items()},
            round_trip=round_trip,
        )
        log.info("invert: %s", source.figures)
        bounds, norm = stages.defaults.noise_range, source.noise_norm
        if bounds and not min(bounds) <= norm <= max(bounds):
            if unfinished is not None:
                # what was computed is not lost: it can be resumed where any norm is allowed
                unfinished.save(state, self.video, settings, stages.fingerprint)
            raise InputError(self._of_noise(norm))
        return source

    def _of_noise(self, norm: float) -> str:
        """What an error says of inverted noise of a norm that the weights do not know."""
        bounds = self.stages.defaults.noise_range
        method = "" if self.settings.method == "fixed-point" else "the method fixed-point, "
        return (
            f"the inverted noise has norm {norm:.3g}; these weights know {min(bounds):g} to "
            f"{max(bounds):g}, so edits would fail. Try {method}more steps, a prompt that "
            'describes the video, or another size; "noise_range": null in the defaults of '
            "config.json allows any norm (and --resume goes on from what was computed)"
        )

    def _recorded_indices(self) -> Mapping[int, int]:
        """Index of a step of the recording's run -> its index in this inversion."""
        if self.recording is None:
            return {}
        return match_levels([*self.recording.levels.values()], self.levels)

    def _states(
        self, predict: Predict, begin: InversionState, unfinished: Unfinished | None
    ) -> Iterator[InversionState]:
        """The states after each step that is left, up to the last level that is read."""
        if begin.steps >= self.settings.steps - self.last:
            return
        settings, stages = self.settings, self.stages
        strongest = max(settings.guidance.values(), key=abs)
        check = stages._step_check("inversion", settings.steps, [strongest])
        inversion = METHODS[settings.method]
        options = {}
        if inversion is fixed_point:
            budget = default_budget(settings.steps, stages.defaults.evaluations)
            options = {"tolerance": settings.tolerance, "budget": budget, "last": self.last}
            # the same noise each time, so that the inversion can be resumed
            noise = NoiseGenerator(0, begin.clean.device).draw(begin.clean.shape)
            options |= {"noise": noise, "solved_from": stages.defaults.solved_from}
        states = inversion(predict, begin, stages.schedule, settings.steps, check=check, **options)
        for state in states:
            yield state
            ended = state.latest == self.last
            if unfinished is not None and (unfinished.keep if ended else unfinished.due):
                check.finish()
                unfinished.save(state, self.video, settings, stages.fingerprint)
            if ended:
                break
        check.finish()
