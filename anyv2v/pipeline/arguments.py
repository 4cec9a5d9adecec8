"""Turns callers' arguments into the objects of a run; an InputError names a wrong argument."""

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
    """Returns the caller's video as a `Video` with a copy of its frames.

    A path is read with the size, number of frames and rate of `defaults`. An array of frames
    (f, h, w, 3) uint8 is taken to have that rate. Raises InputError for anything else, and for a
    saved source.
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
    """Returns a value for every option of the backbone: the caller's `options`, else its default.

    fps: the option "fps", if it is not None. Raises InputError if `options` contradicts it, and for
    unknown options and invalid values.
    """
    chosen = {} if options is None else dict(checks.kind("options", options, Mapping, "a mapping"))
    if fps is not None:
        if chosen.get("fps", fps) != fps:
            raise InputError(f"fps: {fps} is not {checks.shown(chosen['fps'])}, as the options say")
        chosen["fps"] = fps
    return backbone.options(chosen)


def injection_of(injection: Injection | None, defaults: Defaults) -> Injection:
    """Returns the caller's injection, completed by the weights' own (`defaults.injection`).

    An `Injection` takes from there the fractions and sites that it does not state; None stands for
    the weights' own. Any other object with a method `groups` like `Injection.groups` is returned as
    it is; without one, InputError is raised.
    """
    if injection is None:
        return defaults.injection
    if isinstance(injection, Injection):
        return injection.over(defaults.injection)
    if not callable(getattr(injection, "groups", None)):
        raise InputError(f"injection: {checks.shown(injection)} is not an Injection")
    return injection


def check_taps(taps: Taps | None, sites: frozenset[str]) -> None:
    """Raises InputError unless `taps` is None, or a `Taps` whose sites are all in `sites`.

    sites: the names of the network's layers at which taps can be called.
    """
    if taps is None:
        return
    checks.kind("taps", taps, Taps, "an anyv2v.Taps")
    if taps.sites is not None:
        checks.known("taps", taps.sites, sites, "site")


def check_inversion(
    plan: object, recording: object, unfinished: object, taps: Taps | None, sites: frozenset[str]
) -> None:
    """Raises InputError unless these arguments of `Editor.invert` are valid together.

    Each is None, or a `StepPlan`, a `CachePlan`, an `Unfinished` and a `Taps` in this order. The
    taps' sites must be in `sites`, those of the network; with taps nothing can be recorded.
    """
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
    """Draws the noise of one edit from a seed: first the initial noise, then that of its steps.

    The same seed draws the same noise for every device.
    """

    def __init__(self, seed: int, device: torch.device):
        # drawn on the CPU, so that a seed means the same on every device
        self._generator = torch.Generator().manual_seed(checks.seed(seed))
        self._device = device

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Returns standard normal noise of this shape, float32, on the device."""
        return torch.randn(tuple(shape), generator=self._generator).to(self._device)

    def use(self, noise: Tensor | None, shape: Sequence[int], name="noise") -> Tensor:
        """Returns the caller's `noise` as float32 on the device, or draws some if it is None.

        Raises InputError, which names the argument `name`, unless `noise` is a tensor of this shape
        with finite values.
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
        """Returns a function: index of a step -> standard normal noise for it, of this shape.

        It returns the caller's tensors, one for each of the `steps`, or, if `step_noise` is None,
        draws new noise in every call. Raises InputError if the `sampler` adds no noise although
        `step_noise` is given, and for another number or another shape of the tensors.
        """
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
    """Adapts the caller's functions to a sampler whose latents do not contain the pinned frames.

    The caller's functions get the latents of all frames: `pinned` (n, c, p, h, w), which are never
    noised, then those of the sampler. What `after_step` returns must have the shape of all frames;
    its pinned ones are ignored. Functions that are None stay None. Raises InputError if one is not
    callable, and, when `after_step` is called, for a return value of another type or shape.
    """
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
