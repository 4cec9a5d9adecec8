"""`LongRun`: several edits of one long clip, window by window, in the memory of one window.

For each window the frames are read and inverted, features are recorded, all edits are made, and
their clean latents are written to files in a folder. All else of the window is freed. When all
windows are done, the files are joined and decoded as a stream. A run that was interrupted goes on
with the first window that is missing, and within that window where its inversion was last saved;
the latents are those of an uninterrupted run, to the bit. Windows do not depend on each other, so
several machines may run some each, into one folder or into folders that are put together later.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anyv2v import checks
from anyv2v.diffusion.samplers import OnStep
from anyv2v.diffusion.schedule import match_levels
from anyv2v.errors import InputError
from anyv2v.long.clip_editor import ClipEditor
from anyv2v.long.editor import joined_frames, joined_latents
from anyv2v.long.frames import as_long_video, clip_at, digest_of, size_of_clip
from anyv2v.long.latent_files import LatentFiles
from anyv2v.long.requests import WindowRequests, fitted
from anyv2v.long.windows import Window, nearest_keyframes, plan_windows
from anyv2v.long.work_folder import WorkFolder, described
from anyv2v.media.frames import Frames
from anyv2v.media.image import Frame
from anyv2v.pipeline.editing import check_requests
from anyv2v.pipeline.inverting import STEPS
from anyv2v.pipeline.planning import recording_is_free
from anyv2v.pipeline.request import EditRequest
from anyv2v.pipeline.source import Source, Unfinished

FORMAT = "anyv2v long run 1"
"""The format of a folder with the edits of windows, with its version."""
NOT_RECORDED = ("on_step", "plan", "recording")
"""Arguments on which the result does not depend, but for rounding."""


@dataclass(frozen=True)
class LongRun:
    """Edits of one clip that are made window by window; `prepare` makes a run."""

    editor: ClipEditor
    """The editor of single windows."""
    video: Frames
    """The frames of the clip, in memory or on disk."""
    edits: Sequence[EditRequest]
    """What is asked for, for the whole clip; `frame` is the edited first frame."""
    edited: Mapping[int, Sequence[Frame]]
    """Keyframe -> its edited frame for each of the edits; frame 0 is one of the keyframes."""
    windows: Sequence[Window]
    """The windows of the clip."""
    inversion: Mapping[str, Any]
    """The arguments of `Editor.invert` for each window."""
    settings: Mapping[str, Any]
    """The arguments of `Editor.edit_each` for each window."""
    size: tuple[int, int]
    """(width, height) of the frames."""
    files: LatentFiles
    """The files of the windows that are done."""
    states: str | None = None
    """Where the inversions of windows are kept for other runs: a path to which the windows' numbers
    are added, the same for runs that invert alike. None keeps none."""

    @classmethod
    def prepare(
        cls,
        editor: ClipEditor,
        video: Any,
        edits: Sequence[EditRequest],
        folder: str | os.PathLike,
        window: int | None = None,
        shared: int | None = None,
        keyframes: Mapping[int, Sequence[Frame]] | None = None,
        inversion: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> LongRun:
        """Checks the arguments of a run and opens its folder.

        video, window, shared: see `Editor.invert_long`. edits: one `EditRequest` for each edit of
        the clip; noise and clips in them are of the whole clip. folder: where finished windows are
        kept; it is made if only it is missing. keyframes: frame number -> the edited frame there
        for each edit. inversion: arguments of `Editor.invert`; options are those of the edits
        unless it has others. Without "plan" in it only the latents that the edits read are stored,
        and without "recording" the features that they inject are recorded, as far as memory allows.
        settings: arguments of `Editor.edit_each`.

        Raises InputError for an argument that is wrong, for one that cannot be recorded (a
        function), and for a folder of another run.
        """
        frames, edits = as_long_video(video, editor.defaults), check_requests(edits)
        size = editor.check_size(size_of_clip(frames))
        window = editor.defaults.frames if window is None else window
        group = editor.backbone.codec.frames_per_latent
        edited = {0: [edit.frame for edit in edits], **(keyframes or {})}
        windows = plan_windows(len(frames), window, shared, edited, group)
        for key, given in edited.items():
            if len(given) != len(edits):
                raise InputError(
                    f"keyframes: {len(given)} edited frames {key} are given for {len(edits)} edits"
                )
        settings = dict(settings or {})
        options = {x: settings[x] for x in ("fps", "options") if settings.get(x) is not None}
        inversion = {**options, **(inversion or {})}
        files = LatentFiles(Path(folder), "")
        run = cls(editor, frames, edits, edited, windows, inversion, settings, size, files)
        run._inversion_arguments(windows[0])  # refuses settings that are wrong
        opened = WorkFolder(folder, run._facts())
        return replace(run, files=LatentFiles(opened.path, opened.digest))

    @property
    def anchors(self) -> tuple[int, ...]:
        """The keyframe to which each frame of the clip belongs."""
        return nearest_keyframes(len(self.video), self.edited)

    def reference(self, edit: int, keyframe: int = 0) -> np.ndarray:
        """Returns the edited frame of a keyframe at the clip's size, uint8 RGB (h, w, 3)."""
        frame, fit = self.edited[keyframe][edit], self.edits[edit].fit
        return fitted(self.editor.backbone, frame, self.size, fit)

    def missing(self, windows: slice | Collection[int] | None = None) -> dict[int, list[int]]:
        """Returns the windows that are not done -> the edits of which they lack the latents.

        windows: the indices of the windows to look at; None for all. Raises InputError for an index
        that no window has, and for files that are damaged or of another run.
        """
        found = {}
        for i in self._chosen(windows):
            edits = range(len(self.edits))
            if lacking := [k for k in edits if self.files.evaluations(i, k) is None]:
                found[i] = lacking
        return found

    def steps(self, windows: slice | Collection[int] | None = None) -> int:
        """Returns how often `run` will call `on_step`, at most.

        windows: as in `run`.
        """
        start = self.settings.get("start")
        steps = self._steps()
        start = self.editor.defaults.start_of(steps) if start is None else start
        inversion = self._inversion_steps()
        if plan := self._inversion_arguments(self.windows[0]).get("plan"):
            levels = self.editor.schedule.levels(inversion)
            inversion -= min(match_levels(plan.source_levels, levels).values())
        lacking = self.missing(windows).values()
        return sum(inversion + len(edits) * (steps - start) for edits in lacking)

    def run(
        self, windows: slice | Collection[int] | None = None, on_step: OnStep | None = None
    ) -> dict[int, Exception]:
        """Inverts and edits the windows that are not done yet, one after the other.

        windows: the indices of those to run, such as slice(0, None, 2) on the first of two
        machines; None for all. on_step: called after each step of each inversion and edit, see
        `Editor.invert` and `Editor.edit`.

        Returns the edits that failed -> why. An edit that failed is not tried again in later
        windows; the others go on. Raises InputError for arguments that are wrong, and whatever an
        inversion raises.
        """
        requests, failed = self._requests(), {}
        for i, lacking in self.missing(windows).items():
            edits = [k for k in lacking if k not in failed]
            if edits:
                failed |= self._run_window(i, edits, requests, on_step)
        return failed

    def latents(self, edit: int) -> Iterator[Tensor]:
        """Yields the clean latents of an edit in order, (1, c, n, h', w') float32 each.

        They are in host memory; see `joined_latents`. Raises InputError if a window is missing, see
        `missing`.
        """
        return joined_latents(self.editor, self.windows, lambda i: self.files.load(i, edit))

    def frames(self, edit: int) -> Iterator[np.ndarray]:
        """Yields the decoded frames of an edit in order, uint8 RGB (n, h, w, 3), a few at a time.

        Raises InputError if a window is missing, see `missing`.
        """
        return joined_frames(self.editor, self.windows, lambda i: self.files.load(i, edit))

    def evaluations(self) -> int:
        """Returns the number of evaluations of the network in the inversions of all windows done.

        Each branch of a batch is counted.
        """
        edits = range(len(self.edits))
        # the edits of a window share its inversion
        each = ([self.files.evaluations(i, k) for k in edits] for i in range(len(self.windows)))
        return sum(max(filter(None, counts), default=0) for counts in each)

    def _run_window(
        self,
        index: int,
        edits: Sequence[int],
        requests: WindowRequests,
        on_step: OnStep | None,
    ) -> dict[int, Exception]:
        """Inverts one window and makes these edits of it; returns those that failed -> why."""
        window, failed = self.windows[index], {}
        asked = [requests.request(self.edits[k], self._edited(k), window) for k in edits]
        common = requests.common(self.settings, window)
        unfinished = self._unfinished(index)
        source = self._invert(window, unfinished, on_step)
        each = self.editor.edit_each(source, asked, **common, on_step=on_step, decode=False)
        for k, edit in zip(edits, each, strict=True):
            if isinstance(edit, Exception):
                failed[k] = edit
            else:
                self.files.save(index, k, edit.latents, source.evaluations)
        if not unfinished.keep:
            unfinished.remove()
        return failed

    def _unfinished(self, index: int) -> Unfinished:
        if self.states is None:
            return Unfinished(self.files.folder / f"window-{index:05}.unfinished")
        window = self.windows[index]
        place = f"{self.states}-{window.anchor:06}-{window.start:06}-{window.stop:06}"
        return Unfinished(place, keep=True)

    def _invert(self, window: Window, unfinished: Unfinished, on_step: OnStep | None) -> Source:
        clip, arguments = clip_at(self.video, window.indices), self._inversion_arguments(window)
        return self.editor.invert(clip, **arguments, unfinished=unfinished, on_step=on_step)

    def _inversion_arguments(self, window: Window) -> dict[str, Any]:
        """The arguments of `Editor.invert`, with a plan and a recording for the edits."""
        editor, given = self.editor, dict(self.inversion)
        injection, start = self.settings.get("injection"), self.settings.get("start")
        options = editor.backbone.options(self._options())
        if "plan" not in given:
            given["plan"] = editor.step_plan(self._steps(), start, injection, options=options)
        if "recording" not in given:
            guidance = editor.defaults.scales(given.get("guidance", 1.0))
            free = recording_is_free(
                editor.backbone,
                given.get("method", "fixed-point"),
                self._inversion_steps(),
                self._steps(),
                options,
            )
            clip = clip_at(self.video, window.indices)
            if free and editor.backbone.branch_count(guidance) == 1:
                given["recording"] = editor.recording(
                    clip, injection, self._steps(), start, options=options
                )
        return given

    def _facts(self) -> dict[str, Any]:
        """All on which the latents depend, for the record in the folder."""
        editor, video = self.editor, self.video
        return {
            "format": FORMAT,
            "clip": [len(video), self.size, video.fps, digest_of(video)],
            "weights": [editor.backbone.name, editor.fingerprint, str(editor.backbone.dtype)],
            "defaults": described("defaults", editor.defaults),
            "windows": [(*each.indices[:2], each.stop, each.unused) for each in self.windows],
            "edits": [_request_facts(edit, editor) for edit in self.edits],
            "keyframes": {
                key: [described("frame", self.reference(k, key)) for k in range(len(self.edits))]
                for key in self.edited
            },
            "inversion": _recorded("inversion", self.inversion),
            "settings": _recorded("settings", self.settings),
        }

    def _options(self) -> dict[str, Any]:
        """The options that the edits were given, `fps` among them."""
        fps, options = self.settings.get("fps"), dict(self.settings.get("options") or {})
        return options if fps is None else {**options, "fps": fps}

    def _steps(self) -> int:
        steps = self.settings.get("steps")
        return self.editor.defaults.steps if steps is None else steps

    def _inversion_steps(self) -> int:
        steps, method = self.inversion.get("steps"), self.inversion.get("method")
        return STEPS.get(str(method), self.editor.defaults.steps) if steps is None else steps

    def _edited(self, edit: int) -> dict[int, Frame]:
        return {key: frames[edit] for key, frames in self.edited.items()}

    def _requests(self) -> WindowRequests:
        return WindowRequests(self.editor, self.video, self.size, self.settings)

    def _chosen(self, windows: slice | Collection[int] | None) -> list[int]:
        every = range(len(self.windows))
        if windows is None or isinstance(windows, slice):
            return list(every[windows or slice(None)])
        return sorted({checks.whole("windows", i, 0, len(every) - 1) for i in windows})


def _request_facts(edit: EditRequest, editor: ClipEditor) -> dict[str, Any]:
    """The fields of a request on which its result depends, except for its frame."""
    edit.prompts(editor.defaults)  # refuses those that are wrong
    names = [field.name for field in fields(edit) if field.name != "frame"]
    return {name: described(name, getattr(edit, name)) for name in names}


def _recorded(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in arguments.items() if key not in NOT_RECORDED}
    return {key: described(f"{name}: {key}", value) for key, value in kept.items()}
