"""`invert_long` and `edit_long`, the methods of `Editor` for clips of any length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.long.clip_editor import ClipEditor
from anyv2v.long.frames import as_long_video, digest_of, size_of_clip
from anyv2v.long.merging import merged
from anyv2v.long.requests import WindowRequests, check_codec, fitted, split_arguments
from anyv2v.long.source import LongSource
from anyv2v.long.windows import check_keyframes, plan_windows
from anyv2v.long.work_folder import WorkFolder, described
from anyv2v.media.frames import Frames, Video
from anyv2v.media.image import Frame
from anyv2v.pipeline.planning import Planner
from anyv2v.pipeline.request import Edit, EditRequest

FORMAT = "anyv2v long source 1"
"""The format of a folder with the sources of windows, with its version."""


class LongEditor(ClipEditor):
    """Inverts and edits clips of any length, window by window."""

    def invert_long(
        self,
        video: Video | Frames | str | os.PathLike | np.ndarray,
        window: int | None = None,
        shared: int | None = None,
        folder: str | os.PathLike | None = None,
        **inversion: Any,
    ) -> LongSource:
        """Inverts a clip of any length, in windows of `window` frames.

        `video`: as in `invert`, where a path is read to its end; or frames on disk, see
        `anyv2v.long.frames.Frames`. `window`: None is the weights' own number of frames, 0 inverts
        the whole clip at once. `shared`: the number of frames that consecutive windows have in
        common; None is a quarter of `window`. A clip of at most `window` frames is inverted as
        `invert` does it, to the bit. `inversion`: the other arguments of `invert`; `on_step` is
        called in every window.

        `folder`: where the source of each window is saved, so that memory does not grow with the
        length of the clip. Windows that are there already are not inverted again, and an inversion
        that was interrupted goes on; both give the same result. None keeps all in memory. Raises
        InputError for an argument that is wrong, and if the folder holds the sources of another
        clip, other weights or other settings.
        """
        frames = as_long_video(video, self.defaults)
        size = self.check_size(size_of_clip(frames))
        window = self.defaults.frames if window is None else window
        windows = plan_windows(len(frames), window, shared)
        check_codec(self.backbone, windows)
        if "unfinished" in inversion:
            raise InputError("unfinished: invert_long saves its state in the folder")
        told = {"on_step": checks.called("on_step", inversion.pop("on_step", None))}
        if folder is not None:
            facts = {
                "format": FORMAT,
                "clip": [len(frames), size, frames.fps, digest_of(frames)],
                "weights": self.fingerprint,
                "settings": described("inversion", inversion),
                "defaults": described("defaults", self.defaults),
            }
            folder = WorkFolder(folder, facts).path
        source = LongSource(frames, window, shared, inversion, folder)
        for each in windows:
            source.source(self, each, **told)
        return source

    @torch.no_grad()
    def edit_long(
        self,
        long_source: LongSource,
        frame: Frame,
        prompt: str,
        keyframes: Mapping[int, Frame] | None = None,
        **settings: Any,
    ) -> Edit:
        """Edits a clip of any length: each window by itself, then joins their latents.

        `frame`: the edited first frame. `keyframes`: frame number -> another edited frame, for what
        `frame` cannot tell, such as what comes into the picture later. Each window begins with the
        nearest of the edited frames, and is edited as `edit` does it. The latents of frames that
        several windows share are averaged. `settings`: the other arguments of `edit`; those that
        are clips or noise are of the whole clip. `on_step`, `after_step` and `taps` are called in
        every window. A clip of one window is edited as `edit` does it, to the bit. Raises
        InputError for an argument that is wrong.

        Returns one `Edit` with all frames in memory; `anyv2v.long.run.LongRun` yields them as a
        stream instead.
        """
        checks.kind("long_source", long_source, LongSource, "a LongSource: see editor.invert_long")
        given = checks.kind("keyframes", keyframes or {}, Mapping, "a mapping from frame numbers")
        video = long_source.video
        check_keyframes(given, len(video))
        edited = {0: frame, **given}
        windows = long_source.windows(given)
        check_codec(self.backbone, windows)
        if len(windows) == 1:
            return self.edit(long_source.source(self, windows[0]), edited[0], prompt, **settings)
        size = size_of_clip(video)
        own, common = split_arguments(settings)
        request = EditRequest(frame, prompt, **own)
        requests = WindowRequests(self, video, size, common)
        done: list[Tensor] = []
        for window in windows:
            source = long_source.source(self, window)
            asked = requests.request(request, edited, window)
            told = requests.common(common, window)
            (edit,) = self.edit_each(source, [asked], **told, decode=False)
            if isinstance(edit, Exception):
                raise edit
            done.append(edit.latents)
        pieces = decoded(self, merged(windows, done.__getitem__), len(windows[0]))
        frames, latents = zip(*pieces, strict=True)
        references = {
            key: fitted(self.backbone, picture, size, request.fit)
            for key, picture in edited.items()
        }
        return Edit(np.concatenate(frames), video.fps, torch.cat(latents, 2), references)


def decoded(
    stages: Planner, latents: Iterator[Tensor], at_once: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Decodes a stream of latent frames (1, c, 1, h, w), `at_once` at a time.

    Yields uint8 frames (n, h, w, 3), with the latents (1, c, n, h, w) that they were decoded from.
    """
    while taken := [x for _, x in zip(range(at_once), latents)]:  # noqa: B905 - the last is shorter
        together = torch.cat(taken, 2)
        yield stages.decode(together), together
