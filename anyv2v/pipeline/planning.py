"""What a source keeps for the edits of it, and whether it serves them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

import torch

from anyv2v import checks
from anyv2v.backbones.base import Backbone, FirstFrame, Options
from anyv2v.diffusion.schedule import Level, matches, steps_within
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.injection.fractions import Injection, sites_per_step
from anyv2v.injection.taps import Taps, active_steps
from anyv2v.media.frames import Video
from anyv2v.pipeline.arguments import as_video, check_taps, injection_of, options_of
from anyv2v.pipeline.denoise import recorded
from anyv2v.pipeline.shapes import FeatureShapes
from anyv2v.pipeline.source import Source
from anyv2v.pipeline.stages import Stages, size_of
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, StepPlan, plan_steps
from anyv2v.runtime.finite import FiniteCheck, not_finite_message, remedy
from anyv2v.runtime.memory import free_bytes


class Planning(Stages):
    """The stages, and what lies between an inversion and its edits: plans and recorded features."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._shapes = FeatureShapes(self.backbone)

    def step_plan(
        self,
        steps: int | None = None,
        start: int = 0,
        injection: Injection | None = None,
        source: Source | None = None,
        recording: CachePlan | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        options: Options | None = None,
    ) -> StepPlan:
        """What each step of an edit does: which sites it injects, and where it has them from.

        `source` or `recording`: the features that were recorded, or will be.
        """
        steps = self.defaults.steps if steps is None else steps
        checks.one_of("source_pass", source_pass, SourcePass.__args__)
        check_taps(taps, self.sites)
        options = options_of(self.backbone, None, options)
        levels = self.backbone.sampler(options).levels(steps)
        checks.whole("start", start, 0, len(levels) - 2)
        groups = injection_of(injection, self.defaults).groups(self.backbone.groups)
        sites = sites_per_step(groups, steps, start, self.sites)
        index = {} if source is None else matches(levels, source.trajectory.levels)
        # with another frame rate, or the like, its branch is not the one that was recorded
        other = source is not None and options != source.settings.options
        other = other or self.backbone.edited_source(options)

        def cached(level: Level, at: frozenset[str]) -> bool:
            if other:
                return False
            if source is not None:
                return source.features.serve(index.get(level.index, -1), at)
            return recording is not None and recording.serves(level, at)

        return plan_steps(levels, sites, cached, source_pass, active_steps(taps, steps))

    def recording(
        self,
        video: Video,
        injection: Injection | None = None,
        steps: int | None = None,
        start: int = 0,
        memory: int | None = None,
        compact: bool = True,
        options: Options | None = None,
    ) -> CachePlan:
        """What an edit of a video would read of its source, and where that fits.

        `memory`: bytes for it, on the device and then in pinned host memory; never more than half
        of what is free there. `compact`: the least that has to be kept, not queries and keys.
        Nothing is computed but shapes.
        """
        compact, device = checks.flag("compact", compact), self.backbone.device
        options = options_of(self.backbone, None, options)
        plan = self.step_plan(steps, start, injection, options=options)
        frames = as_video(video, self.defaults).frames
        self.check_size(size_of(frames))
        self.backbone.codec.check_frames(len(frames))
        every = frozenset().union(*(step.sites for step in plan.steps))
        kept = self._shapes.of(len(frames), size_of(frames), every, compact)
        site_bytes = {site: sum(x.nbytes for x in parts) for site, parts in kept.items()}
        here = free_bytes(device) // 2
        host = free_bytes(torch.device("cpu")) // 2 if device.type == "cuda" else 0
        memory = here + host if memory is None else checks.whole("memory", memory, 0)
        # what every edit has of its own cannot be recorded for all
        memory = 0 if self.backbone.edited_source(options) else memory
        here = min(memory, here)
        return CachePlan.fit(plan, site_bytes, here, min(memory - here, host), compact)

    @torch.no_grad()
    def record(
        self, source: Source, recording: CachePlan, features: FeatureCache | None = None
    ) -> Source:
        """The same source with features, for edits that then do without it in their batch.

        One evaluation for each step of the recording that `features` lacks, of the source alone and
        only as far as its last site.
        """
        checks.kind("recording", recording, CachePlan, "a CachePlan: see editor.recording")
        self.check_source(source)
        if features is not None:
            checks.kind("features", features, FeatureCache, "a FeatureCache, as a Source has one")
        levels = [recording.levels[i] for i in recording.places]
        self.check_kept(source.trajectory.kept_levels, levels)
        index = matches(levels, source.trajectory.levels)
        cache = features or FeatureCache(recording.placed(index))
        missing = [level for level in levels if index[level.index] not in cache.kept]
        if missing:
            with self._conditioning():
                conditions = self.backbone.condition(
                    source.settings.prompt, source_frame(self, source), source.settings.options
                )
        check = FiniteCheck(self._tell_of_features)
        with self._forward() as forward:
            for level in missing:
                sites, latents = recording.sites[level.index], source.at(index[level.index])
                kept = recorded(forward, latents, level.t, conditions, sites, recording.compact)
                for site, parts in kept.items():
                    for x in parts:
                        check.look(x[None], (site, level.t))
                cache.add(index[level.index], kept)
        check.finish()
        return replace(source, features=cache)

    def check_kept(self, kept: Collection[Level], needed: Collection[Level]) -> None:
        """InputError if an inversion that keeps these levels lacks one that is needed."""
        known = {level.noise for level in kept}
        if missing := [level for level in needed if level.noise not in known]:
            others = ", ".join(map(str, steps_within(self.schedule, kept))) or "no number of"
            raise InputError(
                f"steps: the inversion has {len(kept)} steps and holds no latents of timestep "
                f"{(missing[0].source or missing[0]).t:g}; it serves runs of {others} steps"
            )

    def check_source(self, source: Source) -> None:
        """InputError unless the source was made with these weights."""
        if not isinstance(source, Source):
            hint = "editor.load_source(path) reads one, editor.invert(video) makes one"
            raise InputError(f"source: {checks.shown(source)} is not a Source; {hint}")
        if source.fingerprint != self.fingerprint:
            raise InputError("the source was made with other weights; invert the video again")
        frames, shape = source.video.frames, tuple(source.trajectory.clean.shape)
        width, height = size_of(frames)
        if shape != (1, *self.backbone.codec.shape(len(frames), height, width)):
            raise InputError(
                f"the source's latents {shape} do not fit {len(frames)} frames of {width}x{height}"
            )
        levels = self.schedule.levels(source.settings.steps)
        if [x.noise for x in source.trajectory.levels] != [x.noise for x in levels]:
            raise InputError("the source's noise levels are not those of its weights")

    def load_source(self, path: str | os.PathLike) -> Source:
        """A saved source; InputError if it is none, or was made with other weights."""
        path = checks.path("path", path)
        source = Source.load(path)
        try:
            self.check_source(source)
            frames = source.video.frames
            checks.known("features", source.features.sites, self.sites, "site")
            self._shapes.check(source.features, len(frames), size_of(frames))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return source

    def _tell_of_features(self, place: tuple[str, float], rows: list[int]) -> str:
        site, t = place
        where = f"at {site}, timestep {t:g}"
        return not_finite_message(
            "recording features: the network", where, remedy(self.backbone.dtype)
        )


def records_on_the_way(
    backbone: Backbone, method: str, inversion_steps: int, steps: int, options: Options | None
) -> bool:
    """Whether an inversion passes the very predictions of the source that sampling would need.

    It does if it solves the steps of the same run, and the network is told the same there:
    recording is then free.
    """
    sampler = backbone.sampler(options_of(backbone, None, options))
    runs = backbone.schedule.levels(inversion_steps), sampler.levels(steps)
    inverted, sampled = ([(x.t, x.noise) for x in levels[:-1]] for levels in runs)
    return method == "fixed-point" and inverted == sampled


def source_frame(stages: Stages, source: Source) -> FirstFrame:
    """The first frame of a source's own branch."""
    frames = source.video.frames
    clean = source.trajectory.clean[:, :, :1].to(stages.backbone.device)
    return stages._first_frame(frames[0], len(frames), clean)
