"""The part of an edit of a long clip that is the edit of one window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyv2v.backbones.base import Backbone
from anyv2v.errors import InputError
from anyv2v.long.windows import Window, around
from anyv2v.media.frames import Frames, Video
from anyv2v.media.image import Frame, fit_frame, read_argument
from anyv2v.pipeline.arguments import options_of
from anyv2v.pipeline.guide import Guide, Keyframe
from anyv2v.pipeline.planning import Planner
from anyv2v.pipeline.request import EditRequest


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides arguments of `Editor.edit` into those of `EditRequest`, and the other ones."""
    names = {field.name for field in fields(EditRequest)}
    own = {name: value for name, value in arguments.items() if name in names}
    return own, {name: value for name, value in arguments.items() if name not in names}


def fitted(backbone: Backbone, frame: Frame, size: tuple[int, int], fit: str) -> np.ndarray:
    """Returns an edited frame at the clip's size (width, height), uint8 RGB (h, w, 3)."""
    picture = read_argument("frame", frame)
    # a backbone may stretch the frame to floats
    return np.rint(fit_frame(picture, size, fit, backbone.stretches_bilinearly)).astype(np.uint8)


class WindowRequests:
    """Makes the requests for the windows of a long clip from those for the whole clip.

    A frame has the same noise in every window, so that windows agree where they overlap: it is
    drawn from the request's seed and the number of the frame, the first one of its latent frame.
    """

    def __init__(self, stages: Planner, video: Frames, size: tuple[int, int], common: Mapping):
        """video, size: the source's frames, and their (width, height) in pixels.

        common: the arguments of `Editor.edit_each` for all edits. Raises InputError for options
        that are wrong.
        """
        codec = stages.backbone.codec
        c, _, height, width = codec.shape(1, size[1], size[0])
        self._backbone, self._video, self._size = stages.backbone, video, size
        self._frames, self._shape = len(video), (c, height, width)
        options = options_of(stages.backbone, common.get("fps"), common.get("options"))
        steps, sampler = common.get("steps"), stages.backbone.sampler(options)
        levels = sampler.levels(stages.defaults.steps if steps is None else steps)
        noisy = any(sampler.coefficients(*pair).noise for pair in pairwise(levels))
        self._draws = len(levels) - 1 if noisy else 0
        """The number of steps that add noise."""

    def request(
        self, edit: EditRequest, edited: Mapping[int, Frame], window: Window
    ) -> EditRequest:
        """Returns the request for one window, which begins with its own edited keyframe.

        edited: keyframe -> its edited frame. A guide also takes the other one of the two keyframes
        between which the window lies. Noise and clips among the fields of `edit` are those of the
        whole clip, of which the window gets its own frames. Raises InputError if they have another
        number of frames.
        """
        own = {x.name: self._part(x.name, getattr(edit, x.name), window) for x in fields(edit)}
        own |= {"frame": edited[window.anchor], "guide": self._guide(edit, edited, window)}
        request = replace(edit, **own)
        draws_noise = request.noise is None and request.random_ratio > 0
        draws_steps = request.step_noise is None and self._draws > 0
        if not (draws_noise or draws_steps):
            return request
        noise, step_noise = self._drawn(request.seed, window)
        return replace(
            request,
            noise=noise if request.noise is None else request.noise,
            step_noise=step_noise if draws_steps else request.step_noise,
        )

    def common(self, arguments: Mapping[str, Any], window: Window) -> dict[str, Any]:
        """Returns the common arguments of `Editor.edit_each` for one window."""
        return {name: self._part(name, value, window) for name, value in arguments.items()}

    def _guide(
        self, edit: EditRequest, edited: Mapping[int, Frame], window: Window
    ) -> Guide | None:
        guide = Guide.of(edit.guide)
        if guide is None:
            return None
        if guide.clip is not None:
            return replace(guide, clip=self._part("guide", guide.clip, window))
        others = [
            Keyframe(
                self._video.frames_at([key])[0],
                fitted(self._backbone, edited[key], self._size, edit.fit),
            )
            for key in around(window, edited)
            if key != window.anchor
        ]
        return replace(guide, keyframes=(*guide.keyframes, *others))

    def _part(self, name: str, value: Any, window: Window) -> Any:
        """The window's frames of a clip or of a tensor (1, c, f, h, w); other values as they are.

        A list of such tensors is divided as well.
        """
        indices = list(window.indices)
        if isinstance(value, Video):
            self._check(name, len(value.frames))
            return Video.owning(value.frames[indices], value.fps)
        if isinstance(value, Tensor) and value.ndim == 5:
            self._check(name, value.shape[2])
            return value[:, :, indices]
        if name == "step_noise" and value is not None:
            return [self._part("step_noise of a step", x, window) for x in value]
        return value

    def _check(self, name: str, frames: int) -> None:
        if frames != self._frames:
            raise InputError(f"{name}: it has {frames} frames, the clip has {self._frames}")

    def _drawn(self, seed: int, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Noise for the start and for each step, (1, c, f, h, w) each."""
        frames = []
        anchor, *others = window.indices
        for index in (anchor, *others[:: self._backbone.codec.frames_per_latent]):
            (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state))
            draws = 1 + self._draws
            frames.append(torch.randn((draws, *self._shape), generator=generator))
        first, *steps = torch.stack(frames, 2)[:, None]
        return first, steps
