"""One inversion, from a video to a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from anyv2v.diffusion.inversion import METHODS, Inverted, fixed_point
from anyv2v.diffusion.samplers import OnStep
from anyv2v.diffusion.schedule import Level, matches
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.injection.taps import Taps
from anyv2v.media.frames import Video
from anyv2v.pipeline.denoise import Recorder, guided, pinned_first
from anyv2v.pipeline.planning import Planning
from anyv2v.pipeline.source import InversionSettings, Source, Unfinished
from anyv2v.pipeline.stages import size_of
from anyv2v.pipeline.step_plan import CachePlan, StepPlan

STEPS = {"ddim": 500}
"""Default steps of the methods that do not solve the steps of sampling (the original's)."""


@dataclass(frozen=True)
class InversionRun:
    """What is inverted, and what of it is kept."""

    stages: Planning
    video: Video
    settings: InversionSettings
    plan: StepPlan | None = None
    """Of the run that will read the source; left out: all is kept."""
    recording: CachePlan | None = None

    def __post_init__(self):
        """Everything that can be wrong is found before any work."""
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
            wanted = [self.recording.levels[i] for i in self.recording.places]
            self.stages.check_kept(self.levels[self.last : -1], wanted)
            if told := [x for x in wanted if x.source is not None and x.source.t != x.t]:
                raise InputError(
                    f"recording: the run asks about timestep {told[0].t:g} where the inversion "
                    f"asks about {told[0].source.t:g}; record features afterwards, by `record`"
                )
        held = 0 if self.recording is None else self.recording.bytes("device")
        self.stages._reserve(size_of(frames), len(frames), branches, held)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        return tuple(self.stages.schedule.levels(self.settings.steps))

    @cached_property
    def read(self) -> set[int]:
        """The indices of the levels whose latents will be read."""
        if self.plan is None:
            return set(range(self.settings.steps))
        return set(matches(self.plan.source_levels, self.levels).values())

    @cached_property
    def last(self) -> int:
        """The index of the noisiest of them, where the inversion ends."""
        return min(self.read)

    def run(
        self, unfinished: Unfinished | None, taps: Taps | None, on_step: OnStep | None
    ) -> Source:
        stages, settings, frames = self.stages, self.settings, self.video.frames
        p = stages.backbone.pinned
        clean = stages.encode_frames(frames)
        pinned, begin = clean[:, :, :p], Inverted.of(clean[:, :, p:])
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
        indices = self._recorded()
        recorder = Recorder(self.recording, indices, taps, settings.steps, count)
        state = begin
        with stages._forward() as forward:
            predict = guided(forward, branches, pinned, recorder.taps)
            for state in self._states(predict, begin, unfinished):
                recorder.settle(state.latest)
                if on_step is not None:
                    latents = pinned_first(pinned, state.kept[state.latest])
                    on_step(state.steps - 1, self.levels[state.latest].t, latents)
        read = self.read
        kept = {i: pinned_first(pinned, x) for i, x in state.kept.items() if i in read}
        return Source(
            video=self.video,
            trajectory=Trajectory(clean, kept, self.levels),
            evaluations=state.evaluations * count,
            settings=settings,
            fingerprint=stages.fingerprint,
            residuals=state.residuals,
            features=recorder.cache,
        )

    def _recorded(self) -> dict[int, int]:
        """Index of a step of the recording -> its index in this inversion."""
        if self.recording is None:
            return {}
        return matches([*self.recording.levels.values()], self.levels)

    def _states(
        self, predict, begin: Inverted, unfinished: Unfinished | None
    ) -> Iterator[Inverted]:
        """The states after each step that is left, up to the last level that will be read."""
        if begin.steps >= self.settings.steps - self.last:
            return
        settings, stages = self.settings, self.stages
        strongest = max(settings.guidance.values(), key=abs)
        check = stages._step_check("inversion", settings.steps, [strongest])
        inversion = METHODS[settings.method]
        options = {"tolerance": settings.tolerance} if inversion is fixed_point else {}
        states = inversion(predict, begin, stages.schedule, settings.steps, check=check, **options)
        for state in states:
            yield state
            if state.latest == self.last:
                break
            if unfinished is not None and unfinished.due:
                check.finish()
                unfinished.save(state, self.video, settings, stages.fingerprint)
        check.finish()
