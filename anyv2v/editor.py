"""Invert a video, edit it: the whole of AnyV2V (arXiv 2403.14468), start to end.

video file     read_video                frames   (f, h, w, 3) uint8
frames         encode_frames             z0       (1, c, f, h/s, w/s)
z0             invert                    trajectory: timestep -> latents
edited frame   backbone.branches         conditions of every branch, and how they combine
fractions      sites_per_step            which sites are injected at which step
z_T            sample                    for each t: rows = [source's z_t | z | z]
                                         v = predict(rows, t, conditions, taps)
                                         v = combine(branches of v); z = DDIM step
z_0            decode                    frames   (f, h, w, 3) uint8
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Backbone, Branches, Conditions, FirstFrame
from anyv2v.diffusion.ddim import OnStep, sample
from anyv2v.diffusion.inversion import METHODS, TOLERANCE, Inverted, fixed_point
from anyv2v.diffusion.schedule import TRAIN_STEPS, Schedule
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.edit import NEGATIVE_PROMPT, Edit, EditRequest, Frame, SourcePass
from anyv2v.errors import InputError
from anyv2v.finite import FiniteCheck, Which, in_steps, not_finite, nth, remedy
from anyv2v.graphs import Forward, graphed, wanted
from anyv2v.guidance import SourceAt, guided, injected, recorded
from anyv2v.injection.features import Features, Kept, Recorder, Recording, playback
from anyv2v.injection.plan import NO_INJECTION, Injection, sites_per_step
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.media.clip import Video
from anyv2v.media.image import (
    as_frames,
    center_crop,
    fit_frame,
    read_argument,
    to_frames,
    to_pixels,
)
from anyv2v.memory import comfortable, frames_at_once, free_bytes, require
from anyv2v.offload import Offload, Wanted
from anyv2v.source import SUFFIX, InversionSettings, Source, Unfinished
from anyv2v.vae.autoencoder import Autoencoder

STEPS = {"fixed-point": 50, "ddim": 500}
"""Of an inversion; the original's numbers of sampling and of inversion steps."""
BLANKS = 16
"""Kinds of recording whose shapes an editor remembers."""


@dataclass(frozen=True)
class Defaults:
    """What a model works best with, when nothing else is asked for."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    frames: int
    fps: int


class Editor:
    """A backbone and an autoencoder, and the stages of an edit as methods.

    It holds no state of a run: one editor may serve several threads at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        vae: Autoencoder,
        defaults: Defaults,
        fingerprint: str = "",
        graphs: bool | None = None,
        offload: Wanted = False,
    ):
        """`fingerprint` says which weights these are; a saved source is bound to it.

        `graphs` and `offload`: see `load`.
        """
        if not hasattr(backbone, "branches"):
            raise InputError(f"backbone: {checks.shown(backbone)} is not a Backbone")
        if not hasattr(vae, "encoder"):
            raise InputError(f"vae: {checks.shown(vae)} is not an Autoencoder")
        checks.kind("defaults", defaults, Defaults, "a Defaults")
        checks.text("fingerprint", fingerprint)
        self.backbone, self.vae = backbone, vae
        self.defaults, self.fingerprint = defaults, fingerprint
        self.graphs = wanted(graphs, backbone.device)
        self.offload = Offload((*backbone.conditioners, vae.encoder), backbone.device, offload)
        self.schedule = Schedule()
        self._blanks: dict[Hashable, Kept] = {}

    def __repr__(self) -> str:
        (width, height), dtype = self.defaults.size, str(self.backbone.dtype).removeprefix("torch.")
        return (
            f"Editor({self.backbone.name}, {self.defaults.frames} frames of {width}x{height}, "
            f"{self.defaults.fps:g} fps, {dtype} on {self.backbone.device}, "
            f"weights {self.fingerprint[:12] or 'unknown'})"
        )

    @property
    def sites(self) -> frozenset[str]:
        """The names of all places whose features can be recorded, replayed and injected."""
        return frozenset(self.backbone.sites)

    @torch.no_grad()
    def invert(
        self,
        video: Video | str | os.PathLike | np.ndarray,
        method: str = "fixed-point",
        steps: int | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        guidance: float = 1.0,
        fps: int = 8,
        on_step: OnStep | None = None,
        tolerance: float = TOLERANCE,
        timesteps: Collection[int] | None = None,
        recording: Recording | None = None,
        unfinished: Unfinished | None = None,
    ) -> Source:
        """The noise that a video came from, and all that lies between (section 4.1).

        `video`: a path is read with the size, frames and rate that are the weights' own, as the
        command line does; an array of frames (f, h, w, 3) uint8 is taken for a clip of that rate.
        `method`: "fixed-point" solves the steps of a sampling run of as many `steps` (50) to
        `tolerance`; "ddim" is the original's (500). `fps` is what the network is told, not a
        sampling rate. `prompt` describes the source. `timesteps`: those that will be read; the
        inversion ends at the noisiest; left out: all. `recording`: features to keep on the way, see
        `recording()`. `unfinished`: the file from which an interrupted inversion goes on.
        """
        checks.one_of("method", method, tuple(METHODS))
        steps = STEPS[method] if steps is None else steps
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        guidance, fps = checks.finite("guidance", guidance), checks.count("fps", fps)
        tolerance = checks.positive("tolerance", tolerance)
        checks.called("on_step", on_step)
        timesteps = _timesteps(timesteps)
        for name, value, kind in (
            ("recording", recording, Recording),
            ("unfinished", unfinished, Unfinished),
        ):
            if value is not None:
                checks.kind(name, value, kind, f"a {kind.__name__}")
        video = self._video(video)
        if len(video.frames) < 2:
            raise InputError("the video has 1 frame; at least 2 are needed")
        size, schedule = self.check_size(_size(video.frames)), self.schedule
        visited = schedule.timesteps(steps)  # refuses a wrong number before any work
        last = max(timesteps or visited)
        read = [*(timesteps or []), *(recording.places if recording else [])]
        self.check_kept([0, *[t for t in visited if t <= last]], read)
        if recording is not None and (method != "fixed-point" or guidance > 1):
            raise InputError(
                "recording: only a fixed-point inversion without guidance passes the features that "
                "sampling will need; record them afterwards, by `record`"
            )
        held = 0 if recording is None else recording.bytes("device")
        self._reserve(size, len(video.frames), 2 if guidance > 1 else 1, held)

        settings = InversionSettings(
            method, steps, prompt, negative_prompt, guidance, fps, tolerance
        )
        clean = self.encode_frames(video.frames)
        first = self._first_frame(video.frames[0], clean[:, :, :1], len(video.frames), fps)
        with self._conditioning():
            branches = self.backbone.branches(prompt, negative_prompt, first, guidance)
        recorder = Recorder(recording)
        begin = state = Inverted.of(clean)
        if unfinished is not None:
            begin = state = unfinished.load(begin, video, settings, self.fingerprint)

        inversion = METHODS[method]
        options = {"tolerance": tolerance} if inversion is fixed_point else {}
        check = self._step_check("inversion", steps, [guidance])
        if begin.latest < last:
            with self._forward() as forward:
                predict = guided(forward, branches, recorder.taps)
                for state in inversion(predict, begin, schedule, steps, check=check, **options):
                    recorder.settle(state.latest)
                    if on_step is not None:
                        on_step(state.steps - 1, state.latest, state.kept[state.latest])
                    if state.latest == last:
                        break
                    if unfinished is not None and unfinished.due:
                        check.finish()
                        unfinished.save(state, video, settings, self.fingerprint)
            check.finish()
        read = {0, *(timesteps or visited)}
        source = Source(
            video=video,
            trajectory=Trajectory({t: x for t, x in state.kept.items() if t in read}),
            evaluations=state.evaluations * len(branches.conditions),
            settings=settings,
            fingerprint=self.fingerprint,
            residuals=state.residuals,
        )
        # an inversion that was resumed did not pass its first steps again
        return source if recording is None else self.record(source, recording, recorder.features)

    def recording(
        self,
        video: Video,
        injection: Injection = Injection(),  # noqa: B008 - frozen
        steps: int = 50,
        start: int = 0,
        memory: int | None = None,
        compact: bool = True,
    ) -> Recording:
        """What an edit of a video would read of its source, and where that fits.

        `memory`: bytes for it, on the device and then in pinned host memory; never more than half
        of what is free there. `compact`: the least that has to be kept, not queries and keys.
        Nothing is computed but shapes.
        """
        timesteps, compact = self.schedule.timesteps(steps), checks.flag("compact", compact)
        video = self._video(video)
        plan = self.plan(steps, start, injection)
        sites = {timesteps[i]: at for i, at in plan.items()}
        device, every = self.backbone.device, frozenset().union(*sites.values())
        kept = self._blank_features(video, every, compact)
        site_bytes = {site: sum(x.nbytes for x in parts) for site, parts in kept.items()}
        here = free_bytes(device) // 2
        host = free_bytes(torch.device("cpu")) // 2 if device.type == "cuda" else 0
        memory = here + host if memory is None else checks.whole("memory", memory, 0)
        here = min(memory, here)
        return Recording.fit(sites, site_bytes, here, min(memory - here, host), compact)

    @torch.no_grad()
    def record(
        self, source: Source, recording: Recording, features: Features | None = None
    ) -> Source:
        """The same source with features, for edits that then do without it in their batch.

        One evaluation for each timestep of the recording that `features` lacks, of the source
        alone and only as far as its last site.
        """
        checks.kind("recording", recording, Recording, "a Recording: see editor.recording")
        self.check_source(source)
        if features is not None:
            checks.kind("features", features, Features, "Features, as a Source has them")
        features = features or Features(recording.places)
        missing = [t for t in recording.places if t not in features.kept]
        if missing:
            self.check_kept(source.trajectory, missing)
            first = self._source_frame(source, source.settings.fps)
            with self._conditioning():
                conditions = self.backbone.condition(source.settings.prompt, first)
        check = FiniteCheck(self._tell_of_features)
        with self._forward() as forward:
            for t in missing:
                sites, latents = recording.sites[t], source.trajectory[t]
                kept = recorded(forward, latents, t, conditions, sites, recording.compact)
                for site, parts in kept.items():
                    for x in parts:
                        check.look(x[None], (site, t))
                features.add(t, kept)
        check.finish()
        return replace(source, features=features)

    def edit(
        self,
        source: Source,
        frame: Frame,
        prompt: str,
        negative_prompt: str = NEGATIVE_PROMPT,
        steps: int = 50,
        start: int = 0,
        guidance: float = 9.0,
        injection: Injection = Injection(),  # noqa: B008 - frozen
        random_ratio: float = 0.0,
        fps: int = 8,
        seed: int = 0,
        fit: str = "crop",
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
        source_pass: SourcePass = "shared",
    ) -> Edit:
        """The video whose first frame is `frame` and that moves as the source does (section 4.2).

        `start`: index of the first of the `steps` timesteps that is run. `random_ratio`: how much
        of the inverted latents is replaced by `noise`, drawn from `seed` if not given.
        `injection`: anything with `groups(backbone.groups)`, see `Injection`. `source_pass` changes
        the cost, not the result.
        """
        request = EditRequest(
            frame, prompt, negative_prompt, guidance, random_ratio, seed, fit, noise
        )
        (edit,) = self.edit_many(
            source, [request], steps, start, injection, fps, on_step, source_pass
        )
        return edit

    @torch.no_grad()
    def edit_many(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int = 50,
        start: int = 0,
        injection: Injection = Injection(),  # noqa: B008 - frozen
        fps: int = 8,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
    ) -> list[Edit]:
        """Several edits of one source, in batches as large as memory allows: see `edit`.

        Those of a batch share one source: its rows, or what was recorded of it. `on_step` gets the
        latents of a batch, (its edits, c, f, h/s, w/s). They agree with those of each edit alone
        to rounding.
        """
        run = self._edits(source, edits, steps, start, injection, fps, on_step, source_pass)
        size, done = _size(source.video.frames), []
        while (left := len(edits) - len(done)) > 0:
            count = self._batch(size, len(source.video.frames), left)
            done += run(slice(len(done), len(done) + count))
        return done

    @torch.no_grad()
    def edit_each(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int = 50,
        start: int = 0,
        injection: Injection = Injection(),  # noqa: B008 - frozen
        fps: int = 8,
        on_step: OnStep | None = None,
        source_pass: SourcePass = "shared",
    ) -> Iterator[Edit | Exception]:
        """Several edits of one source, each as soon as it is done; one that fails stops no other.

        What an edit fails with is given in its place. Each has the very latents that `edit` gives
        it. What is wrong with the arguments of any of them is raised before the first is run.
        """
        run = self._edits(source, edits, steps, start, injection, fps, on_step, source_pass)
        for i in range(len(edits)):
            try:
                (edit,) = run(slice(i, i + 1))
            except Exception as error:
                edit = error
            yield edit

    def _edits(
        self,
        source: Source,
        edits: Sequence[EditRequest],
        steps: int,
        start: int,
        injection: Injection,
        fps: int,
        on_step: OnStep | None,
        source_pass: SourcePass,
    ) -> Callable[[slice], list[Edit]]:
        """What runs some of the edits together; all that can be wrong with any is found here."""
        edits = list(checks.kind("edits", edits, Sequence, "a list of EditRequest"))
        if not edits:
            raise InputError("edits: there is none")
        self.check_source(source)
        checks.called("on_step", on_step)
        needed = self.needed_timesteps(steps, start, injection, source_pass)
        self.check_kept(source.trajectory, needed)
        fps = checks.count("fps", fps)
        size, frames = _size(source.video.frames), len(source.video.frames)
        self._reserve(size, frames)
        plan = self.plan(steps, start, injection)
        inverted = source.trajectory[needed[0]].to(self.backbone.device)
        timesteps, replayed = self.schedule.timesteps(steps), []
        if source_pass == "shared" and fps == source.settings.fps:
            replayed = [
                timesteps[i]
                for i, at in plan.items()
                if at and source.features.serve(timesteps[i], at)
            ]
        with self._conditioning():
            first = self._source_frame(source, fps)
            of_source = self.backbone.condition(source.settings.prompt, first)
        at = SourceAt(source, of_source, plan, source_pass, replayed, self.backbone.sites)
        # what can be wrong with one edit is found before the first is run
        for edit in edits:
            _check_request(edit)
        latents = [self._begin(edit, inverted) for edit in edits]
        pictures = [fit_frame(read_argument("frame", edit.frame), size, edit.fit) for edit in edits]
        scales = [float(edit.guidance) for edit in edits]

        def run(batch: slice) -> list[Edit]:
            with self._conditioning():
                branches = [
                    self.backbone.branches(
                        edit.prompt,
                        edit.negative_prompt,
                        self._encoded(picture, frames, fps),
                        scale,
                    )
                    for edit, picture, scale in zip(
                        edits[batch], pictures[batch], scales[batch], strict=True
                    )
                ]
            played = playback(source.features, replayed, self.backbone.device)
            begin = torch.cat(latents[batch])
            with played as kept, self._forward() as forward:
                predict = injected(forward, branches, at, kept)
                which = _which(edits, batch.start)
                check = self._step_check("sampling", steps, scales[batch], which)
                clean = sample(predict, begin, self.schedule, steps, start, on_step, check)
            done = []
            for row, x in enumerate(clean.split(1)):
                decoded = self._decode(x, _which(edits, batch.start + row))
                done.append(Edit(decoded, source.video.fps, x))
            return done

        return run

    @torch.no_grad()
    def reconstruct(
        self,
        source: Source,
        prompt: str = "",
        negative_prompt: str = "",
        steps: int = 50,
        start: int = 0,
        guidance: float = 1.0,
        fps: int = 8,
        on_step: OnStep | None = None,
    ) -> Edit:
        """The source video again, from its inverted latents; nothing is injected."""
        self.check_source(source)
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        checks.called("on_step", on_step)
        (first,) = needed = self.needed_timesteps(steps, start)
        self.check_kept(source.trajectory, needed)
        guidance, fps = checks.finite("guidance", guidance), checks.count("fps", fps)
        self._reserve(_size(source.video.frames), len(source.video.frames), 2)
        with self._conditioning():
            branches = self.backbone.branches(
                prompt, negative_prompt, self._source_frame(source, fps), guidance
            )
        latents = source.trajectory[first].to(self.backbone.device)
        return self._sample(branches, latents, steps, start, guidance, on_step, source.video.fps)

    @torch.no_grad()
    def generate(
        self,
        frame: Frame,
        prompt: str,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        steps: int = 50,
        guidance: float = 9.0,
        fps: int = 8,
        seed: int = 0,
        negative_prompt: str = NEGATIVE_PROMPT,
        fit: str = "crop",
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
    ) -> Edit:
        """The plain image-to-video model: a clip that begins with `frame`, from random noise."""
        self.schedule.timesteps(steps)
        checks.texts(prompt=prompt, negative_prompt=negative_prompt)
        checks.called("on_step", on_step)
        size = self.check_size(self.defaults.size if size is None else size)
        frames = checks.count("frames", self.defaults.frames if frames is None else frames)
        guidance, fps = checks.finite("guidance", guidance), checks.count("fps", fps)
        self._reserve(size, frames, 2)
        first = self._encoded(fit_frame(read_argument("frame", frame), size, fit), frames, fps)
        with self._conditioning():
            branches = self.backbone.branches(prompt, negative_prompt, first, guidance)
        one = first.latents.shape
        noise = self._noise(torch.Size((*one[:2], frames, *one[3:])), seed, noise)
        return self._sample(branches, noise, steps, 0, guidance, on_step, fps)

    def tokenize(self, text: str) -> Tensor:
        """int64 (1, 77)."""
        return self.backbone.tokenize(checks.text("text", text))

    @torch.no_grad()
    def encode_text(self, text: str, clip_skip: int = 1) -> Tensor:
        """(1, 77, d): hidden states before the last `clip_skip` layers, final norm applied."""
        with self._conditioning():
            clip_skip = checks.whole("clip_skip", clip_skip, 0)
            return self.backbone.encode_text(checks.text("text", text), clip_skip)

    @torch.no_grad()
    def encode_image(
        self, frame: Frame, width: int | None = None, black_edge: bool = False
    ) -> Tensor:
        """(1, d): CLIP embedding of a frame, cropped for a video `width` (its own) pixels wide.

        `black_edge` reproduces a fault of the original's crop: see `center_crop`.
        """
        image = read_argument("frame", frame)
        width = checks.count("width", image.shape[1] if width is None else width)
        black_edge = checks.flag("black_edge", black_edge)
        with self._conditioning():
            return self.backbone.encode_image(image, width, black_edge)

    @torch.no_grad()
    def encode_frames(
        self, frames: np.ndarray | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(f, h, w, 3) uint8 -> (1, c, f, h/s, w/s) float32: scaled posterior means.

        With a generator, samples of the posterior, as the original draws them.
        """
        frames = as_frames(frames)
        if generator is not None:
            checks.kind("generator", generator, torch.Generator, "a torch.Generator")
        size = self.check_size(_size(frames))
        # not all of them, so that memory does not grow with the length of the clip; samples are
        # drawn for one after the other, as the original draws them
        at_once = self._frames_at_once(size) if generator is None else 1
        latents, check = [], self._frame_check("the autoencoder's encoder", len(frames))
        with self.offload.here(self.vae.encoder):
            for start in range(0, len(frames), at_once):
                pixels = to_pixels(frames[start : start + at_once])
                pixels = pixels.to(self.backbone.device, self.backbone.dtype)
                latents.append(self.vae.encode(pixels, generator).float())
                check.look(latents[-1], start)
        check.finish()
        return torch.cat(latents).transpose(0, 1)[None].contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """(1, c, f, h/s, w/s) scaled latents -> (f, h, w, 3) uint8."""
        checks.kind("latents", latents, Tensor, "a tensor (1, c, f, h/s, w/s)")
        c = self.vae.config.latent_channels
        if latents.ndim != 5 or latents.shape[:2] != (1, c) or not latents.numel():
            raise InputError(f"latents: {tuple(latents.shape)} is not (1, {c}, f, h/s, w/s)")
        given = FiniteCheck(lambda place, rows: "the latents to be decoded are not finite")
        given.look(latents, None)
        given.finish()
        return self._decode(latents)

    @torch.no_grad()
    def condition(
        self,
        prompt: str,
        frame: Frame,
        frames: int,
        size: tuple[int, int],
        fps: int = 8,
        negative: bool = False,
    ) -> Conditions:
        """What one branch is steered by; `negative` zeroes the image embedding."""
        checks.text("prompt", prompt)
        negative = checks.flag("negative", negative)
        image = read_argument("frame", frame)
        frames, fps = checks.count("frames", frames), checks.count("fps", fps)
        latents = self.encode_frames(center_crop(image, self.check_size(size))[None])
        first = FirstFrame(image, latents, size[0], frames, fps)
        with self._conditioning():
            return self.backbone.condition(prompt, first, negative)

    @torch.no_grad()
    def predict(
        self, latents: Tensor, t: int | Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """v of latents (b, c, f, h, w) at timestep t, float32; b rows of conditions."""
        checks.kind("latents", latents, Tensor, "a tensor (b, c, f, h, w)")
        if latents.ndim != 5:
            raise InputError(f"latents: {tuple(latents.shape)} is not (b, c, f, h, w)")
        if not hasattr(conditions, "stack"):
            given = checks.shown(conditions)
            raise InputError(f"conditions: {given} is not what editor.condition gives")
        if not isinstance(t, Tensor):
            checks.whole("t", t, 0, TRAIN_STEPS - 1)
        elif t.ndim > 1 or t.numel() not in (1, len(latents)):
            raise InputError(f"t: {checks.shown(t)} is not one timestep, nor one for each row")
        self._check_taps(taps)
        rows = latents.to(self.backbone.device, self.backbone.dtype)
        return self.backbone.predict(rows, t, conditions, taps).float()

    def check_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """`size` (width, height) if the model takes it; InputError with the nearest that works."""
        return checks.size(size, self.vae.config.factor)

    def check_memory(self, size: tuple[int, int], frames: int, rows: int = 3) -> None:
        """InputError if `rows` branches of a clip of that size cannot fit, with what would."""
        s = self.vae.config.factor

        def needed(width: int, height: int) -> int:
            unet = self.backbone.activation_bytes(rows, frames, height // s, width // s)
            return max(unet, self.vae.activation_bytes(height, width))

        require(needed, size, frames, s, self.backbone.device, self.offload.freeable)

    def plan(self, steps: int, start: int, injection: Injection) -> dict[int, frozenset[str]]:
        """Index of each step that is run -> sites that are injected there."""
        if not callable(getattr(injection, "groups", None)):
            raise InputError(f"injection: {checks.shown(injection)} is not an Injection")
        checks.whole("start", start, 0, len(self.schedule.timesteps(steps)) - 1)
        return sites_per_step(injection.groups(self.backbone.groups), steps, start, self.sites)

    def needed_timesteps(
        self,
        steps: int,
        start: int = 0,
        injection: Injection = NO_INJECTION,
        source_pass: SourcePass = "shared",
    ) -> list[int]:
        """The timesteps whose latents a run takes from its source, the one it starts from first."""
        timesteps = self.schedule.timesteps(steps)
        checks.one_of("source_pass", source_pass, SourcePass.__args__)
        plan = self.plan(steps, start, injection)
        return [
            timesteps[i]
            for i, sites in plan.items()
            if i == start or sites or source_pass == "always"
        ]

    def check_kept(self, kept: Collection[int], needed: list[int]) -> None:
        """InputError if a trajectory of these timesteps lacks one that is needed."""
        if missing := [t for t in needed if t not in kept]:
            others = ", ".join(map(str, self.schedule.steps_within(kept)))
            raise InputError(
                f"steps: the inversion has {len(kept) - 1} steps and holds no latents of timestep "
                f"{missing[0]}; it serves runs of {others} steps"
            )

    def check_source(self, source: Source) -> None:
        """InputError unless the source was made with these weights."""
        if not isinstance(source, Source):
            hint = "editor.load_source(path) reads one, editor.invert(video) makes one"
            raise InputError(f"source: {checks.shown(source)} is not a Source; {hint}")
        if source.fingerprint != self.fingerprint:
            raise InputError("the source was made with other weights; invert the video again")
        (width, height), s = _size(source.video.frames), self.vae.config.factor
        b, c, _, h, w = shape = tuple(source.trajectory[0].shape)
        if (c, h, w) != (self.vae.config.latent_channels, height // s, width // s):
            raise InputError(f"the source's latents {shape} do not fit {width}x{height} frames")

    def load_source(self, path: str | os.PathLike) -> Source:
        """A saved source; InputError if it is none, or was made with other weights."""
        path = checks.path("path", path)
        source = Source.load(path)
        try:
            self.check_source(source)
            self._check_features(source)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return source

    def _blank_features(self, video: Video, sites: frozenset[str], compact: bool) -> Kept:
        """What a record of a video would keep, without data."""
        if not sites:
            return {}
        meta, s = torch.device("meta"), self.vae.config.factor
        (width, height), frames = _size(video.frames), len(video.frames)
        key = frames, width, height, sites, compact
        if (known := self._blanks.get(key)) is not None:
            return known
        blank = self.backbone.blank(meta)
        conditions = blank.blank_conditions(frames, height // s, width // s)
        shape = (1, self.vae.config.latent_channels, frames, height // s, width // s)
        latents = torch.empty(shape, dtype=self.backbone.dtype, device=meta)
        kept = recorded(blank.predict, latents, 1, conditions, sites, compact)
        # a second for the host, so the last few are known from then on; another thread may find
        # the same, and drop the same
        self._blanks[key] = kept
        for old in list(self._blanks)[:-BLANKS]:
            self._blanks.pop(old, None)
        return kept

    def _check_features(self, source: Source) -> None:
        kept = source.features.kept
        every = frozenset(site for at in kept.values() for site in at)
        checks.known("features", every, self.sites, "site")
        fit = [self._blank_features(source.video, every, compact) for compact in (True, False)]
        for t, at in kept.items():
            for site, parts in at.items():
                found = [tuple(x.shape) for x in parts]
                if found not in [[tuple(x.shape) for x in blank[site]] for blank in fit]:
                    raise InputError(f"features of timestep {t}, {site}, of shapes {found}")

    def _begin(self, edit: EditRequest, inverted: Tensor) -> Tensor:
        """The latents that an edit starts from."""
        ratio = checks.fraction("random_ratio", edit.random_ratio)
        return ratio * self._noise(inverted.shape, edit.seed, edit.noise) + (1 - ratio) * inverted

    def _batch(self, size: tuple[int, int], frames: int, edits: int) -> int:
        """How many of these edits fit into memory together."""
        s, free = self.vae.config.factor, free_bytes(self.backbone.device)

        def fits(edits: int) -> bool:
            # the source and two branches of each; the least that is needed, twice
            rows = 1 + 2 * edits
            need = self.backbone.activation_bytes(rows, frames, size[1] // s, size[0] // s)
            return 2 * need <= free

        return next((n for n in range(edits, 1, -1) if fits(n)), 1)

    def _reserve(self, size: tuple[int, int], frames: int, rows: int = 3, held: int = 0) -> None:
        """A job begins: `check_memory`, and what can wait elsewhere leaves if memory is short.

        `held`: bytes that the job will keep besides.
        """
        self.check_memory(size, frames, rows)
        s = self.vae.config.factor
        least = self.backbone.activation_bytes(rows, frames, size[1] // s, size[0] // s)
        self.offload.begin(comfortable(least, self.graphs is not False) + held)

    def _conditioning(self) -> AbstractContextManager[None]:
        """Inside, what makes conditions is on the device."""
        return self.offload.here(*self.backbone.conditioners)

    def _frames_at_once(self, size: tuple[int, int]) -> int:
        """How many frames of that size the autoencoder takes together."""
        width, height = size
        return frames_at_once(self.vae.activation_bytes(height, width), self.backbone.device)

    def _forward(self) -> AbstractContextManager[Forward]:
        """`predict` for the length of one run, captured where it can be."""
        return graphed(self.predict, self.backbone.device, self.graphs)

    def _sample(
        self,
        branches: Branches,
        latents: Tensor,
        steps: int,
        start: int,
        guidance: float,
        on_step: OnStep | None,
        fps: float,
    ) -> Edit:
        check = self._step_check("sampling", steps, [guidance])
        with self._forward() as forward:
            predict = guided(forward, branches)
            clean = sample(predict, latents, self.schedule, steps, start, on_step, check)
        return Edit(self._decode(clean), fps, clean)

    def _decode(self, latents: Tensor, which: Which = lambda rows: "") -> np.ndarray:
        """`decode`, of latents that are finite."""
        each = latents[0].transpose(0, 1).to(self.backbone.device, self.backbone.dtype)
        s = self.vae.config.factor
        at_once = self._frames_at_once((each.shape[3] * s, each.shape[2] * s))
        check = self._frame_check("the autoencoder's decoder", len(each), which)
        frames = []
        for start in range(0, len(each), at_once):
            pixels = self.vae.decode(each[start : start + at_once])
            check.look(pixels, start)
            frames.append(to_frames(pixels))
        # the frames have come from the device, and their flags before them
        check.finish()
        return np.concatenate(frames)

    def _step_check(
        self, doing: str, steps: int, guidance: Sequence[float], which: Which = lambda rows: ""
    ) -> FiniteCheck:
        """Of a run; rows are the edits of a batch, with the guidance of each."""
        what, dtype = f"{doing}: the network (UNet)", self.backbone.dtype
        return FiniteCheck(in_steps(what, steps, dtype, guidance, which))

    def _frame_check(self, part: str, count: int, which: Which = lambda rows: "") -> FiniteCheck:
        """Of a network that goes through `count` frames; rows are frames from the place on."""

        def tell(start: int, rows: list[int]) -> str:
            where = f"in frame {nth(start + rows[0], count)}{which([0])}"
            return not_finite(part, where, remedy(self.backbone.dtype))

        return FiniteCheck(tell)

    def _tell_of_features(self, place: tuple[str, int], rows: list[int]) -> str:
        site, t = place
        where = f"at {site}, timestep {t}"
        return not_finite(
            "recording features: the network (UNet)", where, remedy(self.backbone.dtype)
        )

    def _check_taps(self, taps: Taps) -> None:
        checks.kind("taps", taps, Taps, "an anyv2v.Taps")
        if taps.sites is not None:
            checks.known("taps", taps.sites, self.sites, "site")

    def _video(self, video: Video | str | os.PathLike | np.ndarray) -> Video:
        """What the caller calls a video, with frames that nobody else can change."""
        if isinstance(video, Source):
            raise InputError(f"video: {video} is inverted already; editor.edit takes it")
        if isinstance(video, (str, os.PathLike)):
            path = checks.path("video", video)
            if path.suffix.lower() == SUFFIX:
                raise InputError(f"video: {path} is a source; editor.load_source reads it")
            from anyv2v.media.video import read_video

            size, frames, fps = self.defaults.size, self.defaults.frames, self.defaults.fps
            return read_video(path, size=size, frames=frames, fps=fps)
        if isinstance(video, (np.ndarray, Tensor)):
            try:
                return Video(video, self.defaults.fps)
            except InputError as error:
                raise InputError(f"video: {error}") from error
        what = "a Video, a path, or an array of frames, uint8 (f, h, w, 3)"
        checks.kind("video", video, Video, what)
        return Video(video.frames, video.fps)

    def _encoded(self, image: np.ndarray, frames: int, fps: int) -> FirstFrame:
        return self._first_frame(image, self.encode_frames(image[None]), frames, fps)

    def _source_frame(self, source: Source, fps: int) -> FirstFrame:
        frames = source.video.frames
        clean = source.trajectory[0][:, :, :1]
        return self._first_frame(frames[0], clean, len(frames), fps)

    def _first_frame(self, image: np.ndarray, latents: Tensor, frames: int, fps: int) -> FirstFrame:
        return FirstFrame(image, latents, image.shape[1], frames, fps)

    def _noise(self, shape: torch.Size, seed: int, noise: Tensor | None) -> Tensor:
        if noise is None:
            # drawn on the CPU, so that a seed means the same on every device
            generator = torch.Generator().manual_seed(checks.seed(seed))
            return torch.randn(shape, generator=generator).to(self.backbone.device)
        checks.kind("noise", noise, Tensor, "a tensor")
        if noise.shape != shape:
            raise InputError(f"noise is {tuple(noise.shape)}, the latents are {tuple(shape)}")
        if not noise.isfinite().all():
            raise InputError("noise: it holds values that are not finite")
        return noise.to(self.backbone.device, torch.float32)


def _size(frames: np.ndarray) -> tuple[int, int]:
    return frames.shape[2], frames.shape[1]


def _check_request(edit: EditRequest) -> None:
    checks.kind("edits", edit, EditRequest, "an EditRequest")
    checks.texts(prompt=edit.prompt, negative_prompt=edit.negative_prompt)
    checks.finite("guidance", edit.guidance)


def _which(edits: Sequence[EditRequest], first: int) -> Which:
    """Of rows of a batch that begins with edit `first`: which edits they are, in a message."""

    def which(rows: list[int]) -> str:
        if len(edits) == 1:
            return ""
        indices = [first + row for row in rows]
        told = [f"{nth(i, len(edits))} {checks.shown(edits[i].prompt)}" for i in indices]
        return f", of edit {', '.join(told)}"

    return which


def _timesteps(timesteps: Collection[int] | None) -> list[int] | None:
    try:
        given = None if timesteps is None else list(timesteps)
    except TypeError:
        raise InputError(f"timesteps: {checks.shown(timesteps)} is not a list of them") from None
    return given and [checks.whole("timesteps", t, 0, TRAIN_STEPS - 1) for t in given]
