"""From decoded frames to those that are written: protection, and the form of the source."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, size_of
from anyv2v.cli.values import AUTO, OFF, SOURCE
from anyv2v.errors import InputError
from anyv2v.media import container, timing
from anyv2v.media.frames import Frames
from anyv2v.media.on_disk import FramesOnDisk
from anyv2v.media.placement import Placement
from anyv2v.media.sound import Sound
from anyv2v.media.video import stream_video
from anyv2v.protection.given import masks_of
from anyv2v.protection.mask import Protection, compose


@dataclass(frozen=True)
class Form:
    """The form in which edits of one clip are written, as the options say."""

    clip: Frames
    """The frames of the source, as the edit has them."""
    protect: str = OFF
    """"auto", "off", or the path of a mask."""
    mask: np.ndarray | None = None
    """The mask that `protect` names, see `masks_of`."""
    video: str = ""
    """The path of VIDEO, which is read again for `placement`."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How VIDEO was read, see `Clip.reading`."""
    placement: Placement | None = None
    """How frames get back to the size of VIDEO; None: they keep the size of the edit."""

    @classmethod
    def of(cls, args: argparse.Namespace, clip: Frames) -> Form:
        """Returns the form that the options ask for.

        clip: the frames of the source, as the edit has them. Raises InputError if `--protect` names
        a mask that does not fit.
        """
        size, fit = size_of(clip.frames_at([0])[0]), args.fit or "crop"
        named = args.protect not in (OFF, AUTO)
        mask = _mask(args.protect, size, len(clip), fit) if named else None
        if args.out_size != SOURCE:
            return cls(clip, args.protect, mask)
        asked = typed(Clip, args)
        placement = Placement(asked.sizes()[0], size, fit)
        return cls(clip, args.protect, mask, args.video, asked.reading(), placement)

    def finish(self, references: Mapping[int, np.ndarray], factor: int = 1) -> Finish:
        """Returns what is done with the frames of one edit.

        references: keyframe -> its edited frame at the clip's size, uint8 RGB (h, w, 3). factor:
        pixels per latent along each axis.
        """
        if self.protect == OFF:
            return Finish(self)
        before, after = self.clip.frames_at([*references]), np.stack([*references.values()])
        return Finish(self, Protection(before, after, factor, self.mask))

    @property
    def sound(self) -> Sound | None:
        """The sound of VIDEO during the clip; None if it has none or its form is not taken."""
        if self.placement is None or not isinstance(self.clip, FramesOnDisk):
            return None
        if not container.facts(self.video).audio:
            return None
        # sound that goes on after the last frame belongs to the whole clip
        end = None if self.reading["frames"] is None else self.clip.end
        return Sound(self.video, self.clip.start, end)

    @property
    def times(self) -> tuple[Sequence[float] | None, float | None]:
        """When each frame is shown and when the last one ends, in seconds, as in VIDEO.

        Both are None where frames are shown at the clip's rate.
        """
        if self.placement is None or self.reading["fps"] is not None:
            return None, None
        assert isinstance(self.clip, FramesOnDisk), "a clip in VIDEO's form is read to disk"
        return timing.increasing(self.clip.times, self.clip.end)


@dataclass
class Finish:
    """What is done with the frames of one edit before they are written, a frame at a time."""

    form: Form
    """The form of all edits of the clip."""
    protection: Protection | None = None
    """Says where the source's own pixels are put back; None: nowhere."""
    kept: float | None = field(default=None, init=False)
    """The share of pixels that are the source's own, once all frames are done; None without
    protection."""

    def frames(self, edited: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the frames to be written, uint8 RGB (h, w, 3), for those of the edit in order."""
        shares: list[float] = []
        with ExitStack() as stack:
            originals = None
            if self.form.placement is not None:
                own = {**self.form.reading, "size": None, "fit": "crop"}
                originals = stack.enter_context(stream_video(self.form.video, **own))
            for index, frame in enumerate(edited):
                yield self._frame(index, frame, originals, shares)
        self.kept = float(np.mean(shares)) if shares else None

    def _frame(
        self, index: int, frame: np.ndarray, originals: Iterator | None, shares: list[float]
    ) -> np.ndarray:
        source, mask = self.form.clip.frames_at([index])[0], None
        if self.protection is not None:
            mask = self.protection.mask(source, frame, index)
            shares.append(np.count_nonzero(mask == 0) / mask.size)
        if self.form.placement is not None and originals is not None:
            return self.form.placement.restore(frame, next(originals), mask)
        return frame if mask is None else compose(source, frame, mask)


def _mask(path: str, size: tuple[int, int], frames: int, fit: str) -> np.ndarray:
    try:
        return masks_of(path, size, frames, fit)
    except InputError as error:
        raise InputError(f"--protect {path}: {error}") from error
