"""`invert_long` and `edit_long`, the methods of `Editor` for clips of any length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.long.clip_editor import ClipEditor
from anyv2v.long.frames import as_long_video, digest_of, size_of_clip
from anyv2v.long.merging import merged
from anyv2v.long.requests import WindowRequests, fitted, split_arguments
from anyv2v.long.source import LongSource
from anyv2v.long.windows import Window, check_keyframes, plan_windows
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
        group = self.backbone.codec.frames_per_latent
        windows = plan_windows(len(frames), window, shared, group=group)
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
        source = LongSource(frames, window, shared, inversion, folder, group)
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
        several windows share are averaged, or their pixels where a latent frame stands for several
        frames; the latents returned are then those of each window in turn. `settings`: the other
        arguments of `edit`; those that are clips or noise are of the whole clip. `on_step`,
        `after_step` and `taps` are called in every window. A clip of one window is edited as `edit`
        does it, to the bit. Raises InputError for an argument that is wrong.

        Returns one `Edit` with all frames in memory; `anyv2v.long.run.LongRun` yields them as a
        stream instead.
        """
        checks.kind("long_source", long_source, LongSource, "a LongSource: see editor.invert_long")
        given = checks.kind("keyframes", keyframes or {}, Mapping, "a mapping from frame numbers")
        video = long_source.video
        check_keyframes(given, len(video))
        edited = {0: frame, **given}
        windows = long_source.windows(given)
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
        frames = np.concatenate([*joined_frames(self, windows, done.__getitem__)])
        latents = torch.cat([*joined_latents(self, windows, done.__getitem__)], 2)
        references = {
            key: fitted(self.backbone, picture, size, request.fit)
            for key, picture in edited.items()
        }
        return Edit(frames, video.fps, latents, references)


def joined_latents(
    stages: Planner, windows: Sequence[Window], load: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Yields the clean latents of an edited clip in order, (1, c, n, h, w) float32 each.

    load: index of a window -> its clean latents. Where latent frames stand for several frames each,
    the windows cannot be joined before they are decoded: they follow each other as they are.
    """
    if stages.backbone.codec.frames_per_latent > 1:
        return map(load, range(len(windows)))
    return merged(windows, load)


def joined_frames(
    stages: Planner, windows: Sequence[Window], load: Callable[[int], Tensor]
) -> Iterator[np.ndarray]:
    """Yields the decoded frames of an edited clip in order, uint8 RGB (n, h, w, 3) each.

    load: index of a window -> its clean latents. Where latent frames stand for several frames each,
    the frames that windows share are means of pixels, else of latents.
    """
    if stages.backbone.codec.frames_per_latent > 1:
        for mean in merged(windows, lambda i: torch.from_numpy(stages.decode(load(i)))[None, None]):
            yield mean[0, 0].round().byte().numpy()
        return
    latents = merged(windows, load)
    # as many at once as in one window, which is decoded as `Editor.edit` does it
    while taken := [*islice(latents, len(windows[0]))]:
        yield stages.decode(torch.cat(taken, 2))
