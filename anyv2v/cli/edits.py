"""The edits that a command asks for: of a clip of one window, or of a longer one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from anyv2v.cli import settings
from anyv2v.cli.clip import windows_of
from anyv2v.cli.sidecar import Inverted, latents_sha256
from anyv2v.cli.source import obtain, prepare, progress_of
from anyv2v.cli.work import Work
from anyv2v.diffusion.samplers import OnStep
from anyv2v.editor import Editor
from anyv2v.long.frames import clip_at
from anyv2v.long.run import LongRun
from anyv2v.media.frames import Frames
from anyv2v.pipeline.request import EditRequest
from anyv2v.pipeline.source import Source
from anyv2v.runtime.locks import POLL, hold


@dataclass(frozen=True)
class Edited:
    """One edit of a clip, of which the frames may not be decoded yet."""

    frames: Iterable[np.ndarray]
    """The decoded frames in order, uint8 RGB (h, w, 3)."""
    references: Mapping[int, np.ndarray]
    """Keyframe -> its edited frame at the clip's size, uint8 RGB (h, w, 3)."""
    inverted: Inverted
    """How the clip was inverted."""
    latents_sha256: str
    """See `sidecar.latents_sha256`."""


@dataclass(frozen=True)
class ShortEdits:
    """Edits of a clip that is one window."""

    editor: Editor
    """The editor that makes them."""
    source: Source
    """The inverted clip."""
    requests: Sequence[EditRequest]
    """What is asked for, one for each edit."""

    @classmethod
    def make(
        cls,
        args: argparse.Namespace,
        frames: Frames,
        requests: Sequence[EditRequest],
        uses: frozenset[str],
    ) -> ShortEdits:
        """Inverts the clip, unless it is a source. uses: as in `source.obtain`."""
        editor, source = obtain(args, video=clip_at(frames, range(len(frames))), uses=uses)
        return cls(editor, source, requests)

    def each(self, args: argparse.Namespace) -> Iterator[Edited | Exception]:
        """Yields each edit as soon as it is done, or the exception by which it failed."""
        with progress_of(args) as progress:
            on_step = progress("edit", (args.steps - args.start) * len(self.requests))
            run = settings.of_the_run(args)
            for edit in self.editor.edit_each(self.source, self.requests, **run, on_step=on_step):
                if isinstance(edit, Exception):
                    yield edit
                    continue
                inverted, latents = Inverted.of(self.source), edit.latents
                sha256 = latents_sha256(lambda latents=latents: [latents])
                yield Edited(edit.frames, edit.references, inverted, sha256)


@dataclass(frozen=True)
class LongEdits:
    """Edits of a clip of several windows, or of several keyframes."""

    editor: Editor
    """The editor that makes them."""
    run: LongRun
    """The run that makes all edits window by window."""

    @classmethod
    def make(
        cls,
        args: argparse.Namespace,
        work: Work,
        frames: Frames,
        requests: Sequence[EditRequest],
        keyframes: Mapping[int, np.ndarray],
        uses: frozenset[str],
    ) -> LongEdits:
        """Prepares the run and prints its windows; what is done already is taken up.

        keyframes: frame number -> edited frame, besides the first one. uses: as in `source.obtain`.
        """
        window = clip_at(frames, range(len(windows_of(args, len(frames), keyframes)[0])))
        if args.sharing is not None:
            args.sharing.alike = [args]
        editor, inversion, _ = prepare(args, window, uses)
        work.make()
        run = LongRun.prepare(
            editor,
            frames,
            requests,
            work.path,
            args.window,
            args.shared,
            {index: [frame] for index, frame in keyframes.items()},
            inversion,
            settings.of_the_run(args),
        )
        if args.sharing is not None and args.sharing.unfinished is not None:
            run = replace(run, states=str(args.sharing.unfinished))
        count, length = len(run.windows), len(run.windows[0])
        todo = len(run.missing())
        done = f", {count - todo} of them done" if todo < count else ""
        print(f"windows: {count} of {length} frames for {len(frames)} frames{done}")
        return cls(editor, run)

    def each(self, args: argparse.Namespace) -> Iterator[Edited | Exception]:
        """Makes all windows, then yields each edit, or the exception by which it failed."""
        with progress_of(args) as progress:
            on_step = progress("windows", self.run.steps())
            failed = self.run_windows(on_step) if args.sharing else self.run.run(on_step=on_step)
        method, steps = settings.of_the_inversion(args)
        tolerance = args.tolerance or self.editor.defaults.tolerance
        clip = self.run.video
        made = self.run.size, len(clip), clip.fps, method, steps, tolerance
        for k in range(len(self.run.edits)):
            if k in failed:
                yield failed[k]
                continue
            with progress_of(args) as progress:
                on_frame = progress("decode", len(clip))
                references = {key: self.run.reference(k, key) for key in self.run.edited}
                frames = _told(chain.from_iterable(self.run.frames(k)), on_frame)
                inverted = Inverted(*made, self.run.evaluations())
                sha256 = latents_sha256(lambda k=k: self.run.latents(k))
                yield Edited(frames, references, inverted, sha256)

    def run_windows(self, on_step: OnStep, wait: bool = True) -> dict[int, Exception]:
        """Runs windows until all are done, with other processes that call this for the same edit.

        Each window is run by one of them. on_step: see `LongRun.run`. wait: wait for those that
        others run, and run them if these die. Returns what `LongRun.run` does.
        """
        folder, failed = self.run.files.folder, {}
        while (missing := self.run.missing()) and not failed:
            took = False
            for window in missing:
                with hold(folder / f".anyv2v-window-{window:05}.lock") as held:
                    took = took or held
                    failed |= self.run.run([window], on_step) if held and not failed else {}
            if not took and not wait:
                break
            if not took:
                time.sleep(POLL)
        return failed


def _told(frames: Iterable[np.ndarray], on_frame) -> Iterator[np.ndarray]:
    for frame in frames:
        on_frame()
        yield frame
