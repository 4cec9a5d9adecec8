"""What callers give, made into what a run works with; InputError names what will not do."""

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
from anyv2v.pipeline.denoise import pinned_first
from anyv2v.pipeline.source import SUFFIX, Source
from anyv2v.runtime.finite import FiniteCheck, not_finite_message


def as_video(video: Video | str | os.PathLike | np.ndarray, defaults: Defaults) -> Video:
    """What the caller calls a video, with frames that nobody else can change.

    A path is read with the size, frames and rate that are the weights' own; an array of frames
    (f, h, w, 3) uint8 is taken for a clip of that rate.
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
    """All options of a backbone; `fps` is short for the one that is called so."""
    given = {} if options is None else dict(checks.kind("options", options, Mapping, "a mapping"))
    if fps is not None:
        if given.get("fps", fps) != fps:
            raise InputError(f"fps: {fps} is not {checks.shown(given['fps'])}, as the options say")
        given["fps"] = fps
    return backbone.options(given)


def injection_of(injection: Injection | None, defaults: Defaults) -> Injection:
    """What is injected: anything with `groups(sites of each group)`, see `Injection`."""
    if injection is None:
        return defaults.injection
    if isinstance(injection, Injection):
        return injection.over(defaults.injection)
    if not callable(getattr(injection, "groups", None)):
        raise InputError(f"injection: {checks.shown(injection)} is not an Injection")
    return injection


def check_taps(taps: Taps | None, sites: frozenset[str]) -> None:
    if taps is None:
        return
    checks.kind("taps", taps, Taps, "an anyv2v.Taps")
    if taps.sites is not None:
        checks.known("taps", taps.sites, sites, "site")


class Noise:
    """The random numbers of one edit: the noise that it begins with, then that of its steps."""

    def __init__(self, seed: int, device: torch.device):
        # drawn on the CPU, so that a seed means the same on every device
        self._generator = torch.Generator().manual_seed(checks.seed(seed))
        self._device = device

    def draw(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator).to(self._device)

    def given_or_drawn(self, noise: Tensor | None, shape: Sequence[int], name="noise") -> Tensor:
        """`noise` on the device, float32, if it is given and has the shape."""
        if noise is None:
            return self.draw(shape)
        checks.kind(name, noise, Tensor, "a tensor")
        if tuple(noise.shape) != tuple(shape):
            raise InputError(f"{name} is {tuple(noise.shape)}, the latents are {tuple(shape)}")
        if not noise.isfinite().all():
            raise InputError(f"{name}: it holds values that are not finite")
        return noise.to(self._device, torch.float32)

    def of_steps(
        self,
        given: Sequence[Tensor] | None,
        shape: Sequence[int],
        sampler: NoiseSchedule,
        steps: int,
    ) -> Callable[[int], Tensor]:
        """Index of a step -> the noise that it adds."""
        if given is None:
            return lambda index: self.draw(shape)
        pairs = pairwise(sampler.levels(steps))
        if not any(sampler.coefficients(*pair).noise for pair in pairs):
            raise InputError("step_noise: the steps of this sampler add no noise")
        checks.kind("step_noise", given, (Sequence, Tensor), "a list of tensors, one for each step")
        if len(given) != steps:
            raise InputError(f"step_noise: {len(given)} tensors are given for {steps} steps")
        noise = [self.given_or_drawn(x, shape, "step_noise") for x in given]
        return noise.__getitem__


def hooks(
    on_step: OnStep | None, after_step: AfterStep | None, pinned: Tensor
) -> tuple[OnStep | None, AfterStep | None]:
    """The caller's functions, which see all frames, as a sampler calls them, without the pinned."""
    checks.called("on_step", on_step)
    checks.called("after_step", after_step)

    def show(index: int, t: float, latents: Tensor) -> None:
        on_step(index, t, pinned_first(pinned, latents))

    def replace(index: int, latents: Tensor) -> Tensor | None:
        whole = pinned_first(pinned, latents)
        instead = after_step(index, whole)
        if instead is None:
            return None
        checks.kind("after_step: what it gave", instead, Tensor, "a tensor, or None")
        if instead.shape != whole.shape:
            raise InputError(
                f"after_step: it gave {tuple(instead.shape)}, the latents are {tuple(whole.shape)}"
            )
        check = FiniteCheck(lambda i, rows: not_finite_message("after_step", f"in step {i}"))
        check.look(instead, index)
        check.finish()
        # a copy, because the caller may use the memory again
        instead = instead.to(latents.device, latents.dtype, copy=True)
        return instead[:, :, pinned.shape[2] :]

    return on_step and show, after_step and replace
