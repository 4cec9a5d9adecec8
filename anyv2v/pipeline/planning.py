"""Planning an edit: what each step reads of its source, and which features are recorded for it.

An inversion and the edits of its source are separate runs. `Planner` connects them: it decides
which latents and features an edit reads, records features, and refuses sources that do not fit.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import get_args

import torch

from anyv2v import checks
from anyv2v.backbones.base import Backbone, FirstFrame, Options
from anyv2v.diffusion.schedule import Level, match_levels, steps_within
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.injection.fractions import Injection, sites_per_step
from anyv2v.injection.taps import Taps, active_steps
from anyv2v.media.frames import Video
from anyv2v.pipeline.arguments import as_video, check_taps, injection_of, options_of
from anyv2v.pipeline.denoise import record_features
from anyv2v.pipeline.shapes import FeatureShapes
from anyv2v.pipeline.source import Source
from anyv2v.pipeline.stages import Stages, size_of
from anyv2v.pipeline.step_plan import CachePlan, SourcePass, StepPlan, plan_steps
from anyv2v.runtime.finite import FiniteCheck, not_finite_message, remedy
from anyv2v.runtime.memory import free_bytes


class Planner(Stages):
    """The stages of an edit, and the plans that connect an inversion with the edits of its source.

    `step_plan` decides how each step of an edit runs, `recording` decides which features fit into
    memory, and `record` records these after an inversion. `check_kept`, `check_source` and
    `load_source` raise InputError for a source that cannot be edited as planned.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._shapes = FeatureShapes(self.backbone)

    def step_plan(
        self,
        steps: int | None = None,
        start: int | None = None,
        injection: Injection | None = None,
        source: Source | None = None,
        recording: CachePlan | None = None,
        source_pass: SourcePass = "shared",
        taps: Taps | None = None,
        options: Options | None = None,
    ) -> StepPlan:
        """Decides what each step of an edit does: where it injects, and how it gets the features.

        A step that injects replays the features that `source` has or, if it is None, those that
        will be recorded as `recording` plans. Where the features of a step are in neither, the
        source is a branch of that step's batch. See `StepPlan` for the default plan. The other
        arguments are those of `edit_many`. Raises InputError for invalid ones, such as an unknown
        group, site or option.
        """
        steps = self.defaults.steps if steps is None else steps
        checks.one_of("source_pass", source_pass, get_args(SourcePass))
        check_taps(taps, self.sites)
        options = options_of(self.backbone, None, options)
        levels = self.backbone.sampler(options).levels(steps)
        start = self.defaults.start_of(steps) if start is None else start
        checks.whole("start", start, 0, len(levels) - 2)
        groups = injection_of(injection, self.defaults).groups(self.backbone.groups)
        sites = sites_per_step(groups, steps, start, self.sites)
        index = {} if source is None else match_levels(levels, source.trajectory.levels)
        # with other options (another frame rate) the source's branch computes other features
        unusable = source is not None and options != source.settings.options
        unusable = unusable or self.backbone.uses_edited_source_frame(options)

        def cached(level: Level, injected: frozenset[str]) -> bool:
            if unusable:
                return False
            if source is not None:
                return source.features.covers(index.get(level.index, -1), injected)
            return recording is not None and recording.covers(level, injected)

        return plan_steps(levels, sites, cached, source_pass, active_steps(taps, steps))

    def recording(
        self,
        video: Video,
        injection: Injection | None = None,
        steps: int | None = None,
        start: int | None = None,
        memory: int | None = None,
        compact: bool = True,
        options: Options | None = None,
    ) -> CachePlan:
        """Plans which features of a video to record for its edits, and where to keep them.

        The result is for `invert(..., recording=)` or `record`. `video`: as in `invert`.
        `injection`, `steps`, `start` and `options`: those of the edits, see `edit`; features are
        recorded where they inject. `memory`: the most bytes, of which the device is filled first,
        then pinned host memory; of each at most half of what is free is used, besides the room for
        networks that are read from disk for each use. None: both halves.
        `compact`: record the smallest form of each feature, instead of queries and keys. Computes
        shapes alone. Raises InputError for arguments that are wrong.
        """
        compact, device = checks.flag("compact", compact), self.backbone.device
        options = options_of(self.backbone, None, options)
        plan = self.step_plan(steps, start, injection, options=options)
        frames = as_video(video, self.defaults).frames
        self.check_size(size_of(frames))
        self.backbone.codec.check_frames(len(frames))
        every = frozenset().union(*(step.sites for step in plan.steps))
        features = self._shapes.features(len(frames), size_of(frames), every, compact)
        site_bytes = {site: sum(x.nbytes for x in parts) for site, parts in features.items()}
        on_device = max(0, free_bytes(device) - self.offload.reloaded) // 2
        on_host = free_bytes(torch.device("cpu")) // 2 if device.type == "cuda" else 0
        memory = on_device + on_host if memory is None else checks.whole("memory", memory, 0)
        # if every edit has a source branch of its own, nothing can be recorded for all of them
        memory = 0 if self.backbone.uses_edited_source_frame(options) else memory
        on_device = min(memory, on_device)
        on_host = min(memory - on_device, on_host)
        return CachePlan.fit(plan, site_bytes, on_device, on_host, compact)

    @torch.no_grad()
    def record(
        self, source: Source, recording: CachePlan, features: FeatureCache | None = None
    ) -> Source:
        """Records features of a source, so that edits of it run without the source in their batch.

        `recording`: a plan made by the method `recording`. `features`: a cache made by the same
        plan, to which missing steps are added; None starts an empty one, also if `source` has
        features. Each missing step takes one evaluation for the source alone, which ends at the
        last site. Returns a copy of `source` with the cache. Raises InputError if the source was
        made with other weights or has no latents at a level of the plan, and NotFiniteError if a
        feature is not finite.
        """
        checks.kind("recording", recording, CachePlan, "a CachePlan: see editor.recording")
        self.check_source(source)
        if features is not None:
            checks.kind("features", features, FeatureCache, "a FeatureCache, as a Source has one")
        levels = [recording.levels[i] for i in recording.placement]
        self.check_kept(source.trajectory.stored_levels, levels)
        index = match_levels(levels, source.trajectory.levels)
        cache = features or FeatureCache(recording.placement_for(index))
        missing = [level for level in levels if index[level.index] not in cache.by_step]
        if not missing:
            return replace(source, features=cache)
        with self._conditioning():
            conditions = self.backbone.condition(
                source.settings.prompt, source_frame(self, source), source.settings.options
            )
        check = FiniteCheck(self._not_finite_message)
        with self._forward() as forward:
            for level in missing:
                sites, latents = recording.sites[level.index], source.at(index[level.index])
                recorded = record_features(
                    forward, latents, level.t, conditions, sites, recording.compact
                )
                for site, parts in recorded.items():
                    for x in parts:
                        check.look(x[None], (site, level.t))
                cache.add(index[level.index], recorded)
        check.finish()
        return replace(source, features=cache)

    def check_kept(self, stored: Collection[Level], needed: Collection[Level]) -> None:
        """Raises InputError if a level in `needed` is not among those in `stored`.

        stored: the levels at which an inversion stored latents. needed: those at which an edit
        reads them. Levels are the same if they have the same `identity`. The message names the
        numbers of steps for which the stored levels suffice.
        """
        known = {level.identity for level in stored}
        if missing := [level for level in needed if level.identity not in known]:
            others = ", ".join(map(str, steps_within(self.schedule, stored))) or "no number of"
            t = (missing[0].inversion_level or missing[0]).t
            raise InputError(
                f"steps: the inversion has {len(stored)} steps and holds no latents of timestep "
                f"{t:g}; it serves runs of {others} steps"
            )

    def check_source(self, source: Source) -> None:
        """Raises InputError unless `source` is a `Source` that was made with these weights.

        Its weights' fingerprint, the shape of its latents and its noise levels are compared.
        """
        if not isinstance(source, Source):
            hint = "editor.load_source(path) reads one, editor.invert(video) makes one"
            raise InputError(f"source: {checks.shown(source)} is not a Source; {hint}")
        if source.fingerprint != self.fingerprint:
            raise InputError(
                "the source was made with other weights; load those, or invert the video again"
            )
        frames, shape = source.video.frames, tuple(source.trajectory.clean.shape)
        width, height = size_of(frames)
        if shape != (1, *self.backbone.codec.shape(len(frames), height, width)):
            raise InputError(
                f"the source's latents {shape} do not fit {len(frames)} frames of {width}x{height}"
            )
        levels = self.schedule.levels(source.settings.steps)
        if [x.identity for x in source.trajectory.levels] != [x.identity for x in levels]:
            raise InputError("the source's noise levels are not those of its weights")

    def load_source(self, path: str | os.PathLike) -> Source:
        """Reads a source, which `Source.save` wrote to a file, into host memory and returns it.

        Raises InputError if the file is no source, was made with other weights, or holds features
        that do not fit the network.
        """
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

    def _not_finite_message(self, place: tuple[str, float], positions: list[int]) -> str:
        site, t = place
        where = f"at {site}, timestep {t:g}"
        return not_finite_message(
            "recording features: the network", where, remedy(self.backbone.dtype)
        )


def recording_is_free(
    backbone: Backbone, method: str, inversion_steps: int, steps: int, options: Options | None
) -> bool:
    """Whether features can be recorded during an inversion, at no evaluations of their own.

    That holds for the method "fixed-point" if sampling in `steps` visits the same noise levels as
    the inversion in `inversion_steps`, and gives the network the same timesteps there.
    """
    sampler = backbone.sampler(options_of(backbone, None, options))
    runs = backbone.schedule.levels(inversion_steps), sampler.levels(steps)
    inverted, sampled = ([(x.t, x.identity) for x in levels[:-1]] for levels in runs)
    return method == "fixed-point" and inverted == sampled


def source_frame(stages: Stages, source: Source) -> FirstFrame:
    """Returns the source's own first frame, with its latents on the backbone's device."""
    frames = source.video.frames
    clean = source.trajectory.clean[:, :, :1].to(stages.backbone.device)
    return stages._first_frame(frames[0], len(frames), clean)
