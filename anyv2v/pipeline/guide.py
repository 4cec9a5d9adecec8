"""Guided start: sampling begins at the source's noise under a guess of what the edit changes.

An edit begins at the source's inverted latents x_t = alpha_t z + sigma_t e, where z are the clean
latents of the source and e is its noise. With a guess z' of the edited clip's clean latents it
begins at alpha_t z' + sigma_t e instead, that is at

    x_t + alpha_t (z' - z)

so that the noise stays the source's own (fresh noise, or more of it as in SDEdit, arXiv 2108.01073,
loses how the source moves). The rest of the edit is as without. `Guide` says where the guess comes
from, `Guesses` makes it, and z' - z is called the shift.

Of 48 scenes of the demo weights in 10 steps (bench/guide.py), the guess by features gains 1.01 dB
[0.72, 1.36] from the first step on, t = 901; one scene loses 0.26 dB, the others lose nothing. The
guess by patches gains 2.3 dB from 0.3 of the steps on, and loses up to 3 dB where it is wrong. In
50 steps the first step is at t = 981, where alpha_t is small and so is what a guess changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Conditions, FirstFrame, Options
from anyv2v.correspondence.features import carry_by_features
from anyv2v.correspondence.patches import match_patches
from anyv2v.errors import InputError
from anyv2v.media.frames import Video, describe_clip
from anyv2v.media.image import as_frames
from anyv2v.pipeline.denoise import prepend_pinned, record_features
from anyv2v.pipeline.planning import source_frame
from anyv2v.pipeline.source import Source
from anyv2v.pipeline.stages import Stages, size_of

WAYS = ("auto", "patches")
"""The ways in which a guess is made from the edited first frame."""
RUN, BEFORE_LAST = 10, -3
"""Features are those of the second least noisy level of a run of 10 steps (t = 101 of 1000)."""
NEW = 60.0
"""Distance of the most alike patches, root mean square in levels of 0 to 255, beyond which a pixel
shows what no reference shows. In clips without anything new 40 costs 0.05 dB, 25 costs 1.8."""


class Keyframe(NamedTuple):
    """A frame of which the edit is known."""

    source: np.ndarray
    """The frame before the edit: uint8 RGB (h, w, 3), of the clip's size."""
    edited: np.ndarray
    """The frame after the edit, of the same dtype and shape."""


@dataclass(frozen=True, eq=False)
class Guide:
    """Where the guess of an edited clip comes from. Raises InputError for values that do not fit.

    `Guide("auto")` and `Guide("patches")` are the same as these words.
    """

    way: str = "auto"
    """ "auto": what the edit changes in the latents of the first frame is carried by features of
    the network (one evaluation for each reference). "patches": the edited first frame is carried in
    pixels, by correspondence of patches, and encoded."""
    keyframes: Sequence[Keyframe] = ()
    """Further frames of which the edit is known, besides the first of the clip; they need not be
    frames of this clip. A place is carried from the frame that matches best."""
    clip: Video | None = None
    """The guess itself, as long and as large as the source; nothing is carried then."""

    def __post_init__(self):
        checks.one_of("guide", self.way, WAYS)
        pairs = [
            Keyframe(*(as_frames(np.asarray(x)[None])[0] for x in pair)) for pair in self.keyframes
        ]
        object.__setattr__(self, "keyframes", tuple(pairs))

    @classmethod
    def of(cls, guide: object) -> Guide | None:
        """Returns the caller's argument `guide` as a `Guide`: None, a way, a Video or a `Guide`.

        Raises InputError for anything else.
        """
        if guide is None or isinstance(guide, Guide):
            return guide
        if isinstance(guide, Video):
            return cls(clip=guide)
        if isinstance(guide, str):
            return cls(guide)
        raise InputError(
            f"guide: {checks.shown(guide)} is not {', '.join(WAYS)}, a Video or a Guide"
        )

    def check(self, frames: np.ndarray) -> None:
        """Raises InputError unless the guide fits the source's `frames`, uint8 (f, h, w, 3)."""
        if self.clip is not None and self.clip.frames.shape != frames.shape:
            theirs = describe_clip(self.clip.frames, self.clip.fps)
            (width, height), count = size_of(frames), len(frames)
            raise InputError(
                f"guide: {theirs}, does not fit the source of {count} frames of {width}x{height}"
            )
        for pair in self.keyframes:
            for picture in pair:
                if picture.shape != frames.shape[1:]:
                    (height, width, _), size = picture.shape, size_of(frames)
                    raise InputError(
                        f"guide: a keyframe of {width}x{height} does not fit a source of "
                        f"{size[0]}x{size[1]}"
                    )


@dataclass(frozen=True)
class Guesses:
    """What guides guess of the edits of one source; what they share is computed once."""

    stages: Stages
    """The editor, with the networks that guesses take."""
    source: Source
    """The inverted video."""
    options: Options
    """A value for every option of the backbone."""

    def shift(self, guide: Guide, edited: np.ndarray) -> Tensor:
        """Returns what the edit is guessed to change in the source's clean latents.

        edited: the edited first frame at the clip's size, RGB (h, w, 3), uint8 or float32 of 0 to
        255. The result is (1, c, f', h', w') float32 on the backbone's device, and 0 in frames that
        are never noised. Raises NotFiniteError if a network produces infinities or NaN.
        """
        edited = np.rint(edited).astype(np.uint8)
        if guide.clip is not None:
            shift = self.stages.encode_frames(guide.clip.frames) - self._clean
        elif guide.way == "patches":
            shift = self.stages.encode_frames(self._copy(guide, edited)) - self._clean
        else:
            shift = self._carried(guide, edited)
        shift[:, :, : self.stages.backbone.pinned_frames] = 0
        return shift

    def _copy(self, guide: Guide, edited: np.ndarray) -> np.ndarray:
        """The source's frames, each pixel in the colors of the edit of what it shows."""
        frames = self.source.video.frames
        before = np.stack([frames[0], *(pair.source for pair in guide.keyframes)])
        after = np.stack([edited, *(pair.edited for pair in guide.keyframes)])
        device = self.stages.backbone.device
        before, after = (torch.from_numpy(x).to(device) for x in (before, after))
        copies = [edited]
        for frame in torch.from_numpy(frames[1:].copy()).to(device):
            matches = match_patches(frame, before)
            new = matches.distance > NEW
            copies.append(torch.where(new[..., None], frame, matches.take(after)).cpu().numpy())
        return np.stack(copies)

    def _carried(self, guide: Guide, edited: np.ndarray) -> Tensor:
        """The changes of the references' latents, carried to all frames by features."""
        features, changes = [self._features], [self._encode(edited) - self._clean[:, :, :1]]
        for pair in guide.keyframes:
            before, after = self._encode(pair.source), self._encode(pair.edited)
            first = self.stages._first_frame(pair.source, len(self.source.video.frames), before)
            features.append(self._features_after(first))
            changes.append(after - before)
        values = torch.cat(changes, dim=2)[0].transpose(0, 1)
        carried = carry_by_features(features, [x[0] for x in features], values)
        carried[0] = values[0]
        return carried.transpose(0, 1)[None]

    def _encode(self, picture: np.ndarray) -> Tensor:
        return self.stages.encode_frames(picture[None])

    @cached_property
    def _clean(self) -> Tensor:
        return self.source.trajectory.clean.to(self.stages.backbone.device)

    @cached_property
    def _features(self) -> Tensor:
        return self._features_after(source_frame(self.stages, self.source))

    def _features_after(self, first: FirstFrame) -> Tensor:
        """Features (f', h, w, c) of the source's frames, with another `first` in place of its own.

        They are those of one prediction, so that each frame is seen beside the first.
        """
        stages = self.stages
        clean = prepend_pinned(first.latents.to(stages.backbone.device), self._clean[:, :, 1:])
        with stages._conditioning():
            conditions = stages.backbone.condition(self.source.settings.prompt, first, self.options)
        return clip_features(stages, clean, conditions)


def clip_features(stages: Stages, clean: Tensor, conditions: Conditions) -> Tensor:
    """Returns features of a clip that tell which place shows what: (f', h, w, c).

    They are recorded at the backbone's `correspondence_site`, in one prediction of all frames at a
    low noise level, see `BEFORE_LAST`. clean: the clip's clean latents (1, c, f', h', w') on the
    backbone's device. conditions: those of the clip. The noise is drawn from a fixed seed.
    """
    site, p = stages.backbone.correspondence_site, stages.backbone.pinned_frames
    level = stages.schedule.levels(RUN)[BEFORE_LAST]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    noisy = level.alpha * clean + level.sigma * noise
    latents = prepend_pinned(clean[:, :, :p], noisy[:, :, p:])
    recorded = record_features(stages.predict, latents, level.t, conditions, frozenset({site}))
    (features,) = recorded[site]
    return _by_place(features, *clean.shape[2:])


def _by_place(features: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Features in the order of the latents as (f', h'/k, w'/k, c), see `correspondence_site`."""
    features = features.reshape(frames, -1, features.shape[-1])
    k = round((height * width / features.shape[1]) ** 0.5)
    return features.unflatten(1, (height // k, width // k))
