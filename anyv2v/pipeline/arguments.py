"""Turns the arguments of callers into the objects of a run; InputError names a wrong argument."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Backbone, Defaults, Options
from anyv2v.diffusion.samplers import AfterStep, OnStep
from anyv2v.diffusion.schedule import NoiseSchedule
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import Taps
from anyv2v.media.frames import Video
from anyv2v.pipeline.denoise import prepend_pinned
from anyv2v.pipeline.source import SUFFIX, Source, Unfinished
from anyv2v.pipeline.step_plan import CachePlan, StepPlan
from anyv2v.runtime.finite import FiniteCheck, not_finite_message


def as_video(video: Video | str | os.PathLike | np.ndarray, defaults: Defaults) -> Video:
    """The caller's video, with frames that nobody else can change.

    A path is read with the weights' own size, number of frames and rate. An array of frames
    (f, h, w, 3) uint8 is taken to have that rate.
    """
    if isinstance(video, Source):
        raise InputError(f"video: {video} is inverted already; editor.edit takes it")
    if isinstance(video, (str, os.PathLike)):
        path = checks.path("video", video)
        if path.suffix.lower() == SUFFIX:
            raise InputError(f"video: {path} is a source; editor.load_source reads it")
        from anyv2v.media.video import read_video

        return read_video(path, size=defaults.size, frames=defaults.frames, fps=defaults.fps)
    if isinstance(video, (np.ndarray, Tensor)):
        try:
            return Video(video, defaults.fps)
        except InputError as error:
            raise InputError(f"video: {error}") from error
    checks.kind("video", video, Video, "a Video, a path, or an array of frames, uint8 (f, h, w, 3)")
    return Video(video.frames, video.fps)


def options_of(backbone: Backbone, fps: int | None, options: Options | None) -> Options:
    """All options of a backbone, its defaults included; `fps` is short for the option "fps"."""
    chosen = {} if options is None else dict(checks.kind("options", options, Mapping, "a mapping"))
    if fps is not None:
        if chosen.get("fps", fps) != fps:
            raise InputError(f"fps: {fps} is not {checks.shown(chosen['fps'])}, as the options say")
        chosen["fps"] = fps
    return backbone.options(chosen)


def injection_of(injection: Injection | None, defaults: Defaults) -> Injection:
    """The injection, with the weights' own fractions where it has none.

    Besides an `Injection`, any object with its method `groups` will do.
    """
    if injection is None:
        return defaults.injection
    if isinstance(injection, Injection):
        return injection.over(defaults.injection)
    if not callable(getattr(injection, "groups", None)):
        raise InputError(f"injection: {checks.shown(injection)} is not an Injection")
    return injection


def check_taps(taps: Taps | None, sites: frozenset[str]) -> None:
    """InputError unless `taps` are None, or taps whose sites the network has."""
    if taps is None:
        return
    checks.kind("taps", taps, Taps, "an anyv2v.Taps")
    if taps.sites is not None:
        checks.known("taps", taps.sites, sites, "site")


def check_inversion(
    plan: object, recording: object, unfinished: object, taps: Taps | None, sites: frozenset[str]
) -> None:
    """InputError unless each is None or of its type, and they fit together and to the sites."""
    check_taps(taps, sites)
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


class NoiseGenerator:
    """Draws the noise of one edit: first the initial noise, then that of its steps."""

    def __init__(self, seed: int, device: torch.device):
        # drawn on the CPU, so that a seed means the same on every device
        self._generator = torch.Generator().manual_seed(checks.seed(seed))
        self._device = device

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of this shape, float32, on the device."""
        return torch.randn(tuple(shape), generator=self._generator).to(self._device)

    def use(self, noise: Tensor | None, shape: Sequence[int], name="noise") -> Tensor:
        """The caller's `noise` on the device, float32; if it is None, noise that is drawn.

        InputError, with the argument's `name`, for another shape or values that are not finite.
        """
        if noise is None:
            return self.draw(shape)
        checks.kind(name, noise, Tensor, "a tensor")
        if tuple(noise.shape) != tuple(shape):
            raise InputError(f"{name} is {tuple(noise.shape)}, the latents are {tuple(shape)}")
        if not noise.isfinite().all():
            raise InputError(f"{name}: it holds values that are not finite")
        return noise.to(self._device, torch.float32)

    def for_steps(
        self,
        step_noise: Sequence[Tensor] | None,
        shape: Sequence[int],
        sampler: NoiseSchedule,
        steps: int,
    ) -> Callable[[int], Tensor]:
        """Index of a step -> the noise that it adds: the caller's, or drawn when asked for."""
        if step_noise is None:
            return lambda index: self.draw(shape)
        pairs = pairwise(sampler.levels(steps))
        if not any(sampler.coefficients(*pair).noise for pair in pairs):
            raise InputError("step_noise: the steps of this sampler add no noise")
        checks.kind(
            "step_noise", step_noise, (Sequence, Tensor), "a list of tensors, one for each step"
        )
        if len(step_noise) != steps:
            raise InputError(f"step_noise: {len(step_noise)} tensors are given for {steps} steps")
        noise = [self.use(x, shape, "step_noise") for x in step_noise]
        return noise.__getitem__


def step_callbacks(
    on_step: OnStep | None, after_step: AfterStep | None, pinned: Tensor
) -> tuple[OnStep | None, AfterStep | None]:
    """Adapts the caller's functions, which get all frames, to a sampler without pinned frames."""
    checks.called("on_step", on_step)
    checks.called("after_step", after_step)
    return on_step and _show(on_step, pinned), after_step and _replace(after_step, pinned)


def _show(on_step: OnStep, pinned: Tensor) -> OnStep:
    def show(index: int, t: float, latents: Tensor) -> None:
        on_step(index, t, prepend_pinned(pinned, latents))

    return show


def _replace(after_step: AfterStep, pinned: Tensor) -> AfterStep:
    def replace(index: int, latents: Tensor) -> Tensor | None:
        whole = prepend_pinned(pinned, latents)
        replaced = after_step(index, whole)
        if replaced is None:
            return None
        checks.kind("after_step: what it gave", replaced, Tensor, "a tensor, or None")
        if replaced.shape != whole.shape:
            raise InputError(
                f"after_step: it gave {tuple(replaced.shape)}, the latents are {tuple(whole.shape)}"
            )
        check = FiniteCheck(lambda i, positions: not_finite_message("after_step", f"in step {i}"))
        check.look(replaced, index)
        check.finish()
        # a copy, because the caller may use the memory again
        replaced = replaced.to(latents.device, latents.dtype, copy=True)
        return replaced[:, :, pinned.shape[2] :]

    return replace
