"""What the page of `anyv2v ui` does: it runs commands, each as the command line would."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v import loading
from anyv2v.cli import notices, settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, is_source, windows_of
from anyv2v.cli.console import explained
from anyv2v.cli.edit import SomeFailed, run_edit, run_edit_frame
from anyv2v.cli.first_frame import FirstFrame, frame_files, uses, write_picture
from anyv2v.cli.invert import predicted
from anyv2v.cli.model import Model
from anyv2v.cli.options import parser
from anyv2v.cli.process import Signals
from anyv2v.cli.sharing import inversion_key
from anyv2v.cli.sidecar import plain, sidecar_of
from anyv2v.cli.source import of_the_run, packaged_notice
from anyv2v.cli.ui_editors import read_editors
from anyv2v.cli.ui_files import (
    EXAMPLE,
    EXAMPLE_FRAME,
    name_only,
    write_example,
    write_shown,
    write_side_by_side,
)
from anyv2v.cli.ui_kept import KeptSources
from anyv2v.cli.values import AUTO, OFF
from anyv2v.errors import InputError
from anyv2v.injection.presets import PRESETS
from anyv2v.media.cuts import find_cuts
from anyv2v.media.frames import Video
from anyv2v.media.image import read_image
from anyv2v.media.video import stream_video, write_video
from anyv2v.runtime.interrupt import interruptible
from anyv2v.ui.progress import Show, ShownProgress
from anyv2v.ui.sessions import Cancelled, Session, Sessions
from anyv2v.ui.streams import heard
from anyv2v.ui.studio import Looked, Made, Settings
from anyv2v.ui.texts import clip_text, plan_text
from anyv2v.ui.words import changed, command_line, text, words

SMALL = 128
"""The least length in pixels of a shorter side at which frames are not enlarged pixel by pixel."""
KEPT = 2
"""The most inverted clips that are kept of one user."""
KEPT_OF_ALL = {"cpu": 4}
"""Type of a device -> the most inverted clips that are kept there; 1 on a GPU, of whose memory the
features of one may take half."""
FILES = ("video", "frame", "reference", "mask", "protect", "output")
"""Options that are names of files in the folder of a user."""
HELP = re.compile(r" \(see anyv2v [a-z-]+ --help\)$")
"""The end of what is said of a wrong option."""


class Studio:
    """Does what the page asks for, as `anyv2v.ui.studio.Studio` says."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        """args: the options of `anyv2v ui`. folder: for the files of all users."""
        model = typed(Model, args)
        self._editors = {each.name: each for each in read_editors(args.editor or [])}
        self._known = loading.peek(args.weights)
        self._kept = KeptSources(KEPT, KEPT_OF_ALL.get(model.torch_device.type, 1))
        self._editor = self._kept.editor(model)
        # the same weights in whatever folder the command is run
        weights = plain("weights", model.weights)
        self._machine = {"device": model.device, "dtype": model.dtype}
        self._model = {"weights": weights, **self._machine}
        self._model |= {} if model.offload == "auto" else {"offload": model.offload}
        self._commands = parser({"edit": run_edit, "edit-frame": run_edit_frame})
        self._costs: dict[str, Any] = {}
        # networks, and what is recorded of the kernels, are for one run at a time
        self._device, self._is_closed = threading.Lock(), False
        # how many runs wait or run
        self._runs, self._no_run = 0, threading.Condition()
        self._debug = args.debug
        self._looked: dict[Path, tuple[Video, int]] = {}
        self._gone: set[Path] = set()
        self.sessions = Sessions(folder, self._forget, self._settle)
        """The users."""
        own, backbone = self._known.defaults, self._editor.backbone
        self.settings = Settings(
            f"{os.path.basename(weights)} ({backbone.name}), on {backbone.device}",
            packaged_notice(model.weights),
            min(own.size) < SMALL,
            own.frames,
            own.size,
            own.fps,
            [*PRESETS],
            [*self._editors.values()],
        )
        """What the page has to know of the weights."""

    def usual(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Studio.usual`."""
        given = {name: options.get(name) or None for name in ("preset", "steps", "guide")}
        args = self._parsed(words("edit", "clip.mp4", given | {"prompt": "", "output": "x.mp4"}))
        own = self._known.defaults
        return {
            "steps": own.steps,
            "guide": own.guide or OFF,
            "guidance": args.guidance,
            "inject": args.injection.fractions,
            "start": args.start,
            "negative-prompt": args.negative_prompt,
            "protect": args.protect,
            "seed": 0,
            "out-size": "edited",
        }

    def example(self, session: Session) -> tuple[str, Path, Path]:
        """See `Studio.example`."""
        prompt = write_example(session.folder, self._known.defaults)
        session.clip, session.frame = EXAMPLE, EXAMPLE_FRAME
        return prompt, session.folder / EXAMPLE, session.folder / EXAMPLE_FRAME

    def look(self, session: Session, options: Mapping[str, Any]) -> Looked:
        """See `Studio.look`."""
        self._looked.pop(session.folder, None)
        args = self._args(session, options)
        if is_source(session.clip):
            raise InputError(f"{session.clip} is inverted already; give the video")
        clip, frames, count = typed(Clip, args), [], 0

        def each() -> Iterator[np.ndarray]:
            nonlocal count
            for frame in stream:
                if not args.window or count < args.window:
                    frames.append(frame)
                count += 1
                yield frame

        with stream_video(args.video, **clip.reading()) as stream:
            cuts = find_cuts(each())
        divided = windows_of(args, count)
        windows = len(divided)
        video = Video.owning(np.stack(frames[: len(divided[0])]), stream.fps)
        self._looked[session.folder] = video, windows
        # new names, because browsers keep what they have got of the old ones
        preview = session.folder / session.numbered("preview", ".mp4")
        first = session.folder / session.numbered("first-frame", ".png")
        write_video(preview, video.frames, video.fps)
        write_picture(first, clip.first_frame())
        own, size = clip.sizes()
        lines = [*of_the_run(args, self._editor), notices.cuts(session.clip, cuts)]
        said = clip_text(count, video.fps, size, own, windows)
        return Looked(said, _named([x for x in lines if x], session), preview, first)

    def upload_frame(self, session: Session, path: str, options: Mapping[str, Any]) -> Path:
        """See `Studio.upload_frame`."""
        name = session.take(path)
        frame = read_image(session.folder / name)
        if session.folder in self._looked:
            # its proportions have to be those of the clip
            args = self._args(session, options, {"frame": name})
            typed(FirstFrame, args).read(typed(Clip, args))
        session.frame = name
        return self._shown(session, frame)

    def candidates(
        self,
        session: Session,
        editor: str,
        options: Mapping[str, Any],
        own: Mapping[str, Any],
        count: int,
        run: int,
    ) -> tuple[list[Path], list[str]]:
        """See `Studio.candidates`."""
        chosen = self._editors[editor]
        usual = {option.name: option.default for option in chosen.options}
        given = [f"{name}={text(x)}" for name, x in changed(_given(own), usual).items()]
        line = {**_given(options), **chosen.words}
        line["editor-option"] = [*line["editor-option"], *given]
        output = session.numbered("frame", ".png")
        clip = self._clip(session)
        args = self._parsed(words("edit-frame", clip, line | {"output": output}), session)
        setup = typed(Model, args)
        read = uses(typed(FirstFrame, args).make_editor(setup.torch_device, setup.torch_dtype))
        # without random numbers all would be the same
        count = count if "seed" in read else 1
        line |= {name: value for name, value in self._machine.items() if name in read}
        line |= {"candidates": count if count > 1 else None, "output": output}
        arguments = words("edit-frame", clip, line)
        args = self._parsed(arguments, session)
        check = partial(session.check, run)
        with self._run(check) as lines, interruptible(check):
            run_edit_frame(args)
        files = frame_files(output, count)
        found = files[1:-1] or files
        session.made |= dict.fromkeys(found, arguments)
        return [session.folder / name for name in found], _named(lines, session)

    def choose(self, session: Session, name: str) -> Path:
        """See `Studio.choose`."""
        session.frame = name
        return self._shown(session, read_image(session.folder / name))

    def draw(self, session: Session, alpha: np.ndarray | None) -> str:
        """See `Studio.draw`."""
        session.mask = ""
        if alpha is not None and alpha.any():
            session.mask = session.numbered("mask", ".png")
            white = np.where(alpha > 0, np.uint8(255), np.uint8(0))
            write_picture(session.folder / session.mask, np.stack([white] * 3, axis=-1))
        return session.mask

    def plan(self, session: Session, options: Mapping[str, Any]) -> str:
        """See `Studio.plan`."""
        if not session.clip or session.folder not in self._looked:
            return ""
        video, windows = self._looked[session.folder]
        args = self._args(session, options)
        with self._no_run:
            # runs come first
            self._no_run.wait_for(lambda: self._runs == 0)
        with self._alone():
            key = inversion_key(args, lambda: self._editor)
            kept = self._kept.has(session.folder.name, key, args.injection)
            run = settings.of_the_run(args)
            known = repr([video.frames.shape, run, args.guidance, settings.of_the_inversion(args)])
            if known not in self._costs:
                self._costs[known] = predicted(args, self._editor, video)
            cost = self._costs[known]
        work = cost.inversion_evaluations, cost.sampling_branches
        flops = cost.total - (cost.flops["invert"] if kept else 0)
        return plan_text(*work, flops, cost.peak, windows, kept)

    def edit(self, session: Session, options: Mapping[str, Any], show: Show, run: int) -> Made:
        """See `Studio.edit`."""
        output = session.numbered("edit", ".mp4")
        self._clip(session)
        if not session.frame:
            raise InputError("give an edited first frame (2)")
        # the user may choose another frame while this runs
        made_by, check = session.made_by, partial(session.check, run)
        arguments = self._words(session, options, {"frame": session.frame, "output": output})
        args = self._parsed(arguments, session)
        both = session.folder / output.replace("edit", "side-by-side")
        with self._run(check) as lines:
            user, key = session.folder.name, inversion_key(args, lambda: self._editor)
            self._kept.prepare(user, key, args)
            args.sharing, args.progress = self._kept, ShownProgress(show, check)
            try:
                run_edit(args)
                name_only(session.folder / output)
                write_side_by_side(args, both)
            except SomeFailed as failed:
                raise next(iter(failed.failures.values())) from None
            finally:
                shutil.rmtree(session.folder / f"{output}.unfinished", ignore_errors=True)
        files = [output, sidecar_of(output), both, *_inputs(session, args, made_by)]
        commands = [*([made_by] if made_by else []), arguments]
        return Made(
            session.folder / output,
            both,
            [session.folder / file for file in files],
            "\n".join(map(command_line, commands)),
            _named([line for line in lines if line != self.settings.warning], session),
        )

    def explain(self, session: Session, error: Exception) -> str:
        """See `Studio.explain`."""
        if self._debug:
            traceback.print_exception(error)
        line = " ".join(explained(error)[0].split())
        # nobody looks at a page to learn of the options of a command
        return _named([HELP.sub("", line)], session)[0]

    def close(self) -> None:
        """See `Studio.close`."""
        self._is_closed = True
        self.sessions.cancel()
        self._settle()

    def _settle(self) -> None:
        with self._device:
            pass

    def _forget(self, key: str) -> None:
        self._gone.add(self.sessions.get(key).folder)
        self._free()

    def _free(self) -> None:
        """Frees what is kept of users who have gone; whoever holds the device does so after it."""
        while self._gone and self._device.acquire(blocking=False):
            try:
                while self._gone:
                    folder = self._gone.pop()
                    self._kept.forget(folder.name)
                    self._looked.pop(folder, None)
            finally:
                self._device.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the device."""
        try:
            with self._device:
                yield
        finally:
            self._free()

    @contextmanager
    def _run(self, check: Callable[[], None]) -> Iterator[list[str]]:
        """Runs a command when no other runs, and listens to what it says.

        check: raises if it was cancelled while it waited.
        """
        self._count_runs(1)
        try:
            with self._alone(), heard() as lines:
                if self._is_closed:
                    raise Cancelled
                check()
                yield lines
        finally:
            self._count_runs(-1)

    def _count_runs(self, more: int) -> None:
        with self._no_run:
            self._runs += more
            self._no_run.notify_all()

    def _clip(self, session: Session) -> str:
        if not session.clip:
            raise InputError("give a clip (1)")
        return session.clip

    def _words(self, session: Session, options: Mapping[str, Any], more: Mapping[str, Any]):
        given = _given(options)
        given = changed(given, self.usual(given))
        inputs = {"frame": more.get("frame"), "prompt": options.get("prompt") or ""}
        last = {**self._model, "output": more.get("output", "edit.mp4")}
        given.pop("prompt", None)
        return words("edit", self._clip(session), inputs | given | last)

    def _args(
        self, session: Session, options: Mapping[str, Any], more: Mapping[str, Any] | None = None
    ) -> argparse.Namespace:
        """The options of an edit, for what is done before it."""
        return self._parsed(self._words(session, options, more or {}), session)

    def _parsed(self, arguments: list[str], session: Session | None = None) -> argparse.Namespace:
        """The options of a command as `main` gives them to it; files are those of a user."""
        args = self._commands.parse_args(arguments)
        args.signals = Signals()
        if hasattr(args, "paper"):
            settings.fill(args, self._known.defaults, self._known.original)
        if session is not None:
            _locate(args, session.folder)
        return args

    def _shown(self, session: Session, frame: np.ndarray) -> Path:
        path = session.folder / session.numbered("shown", ".png")
        write_shown(path, frame)
        return path


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given; a prompt may be empty."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and (value != "" or name.endswith("prompt"))
    }


def _inputs(session: Session, args: argparse.Namespace, made_by: Sequence[str]) -> list[Path]:
    """The files that an edit reads; made_by: the command that made its frame, which may be none.

    The user's own are among them, because the browser may have sent them by other names.
    """
    made = [*made_by]
    # a frame that was made here is made by that command, which may read files of its own
    read = [made[made.index(f"--{x}") + 1] for x in ("reference", "mask") if f"--{x}" in made]
    paths = [args.video, *([made[1], *read] if made else args.frame), args.protect]
    names = dict.fromkeys(os.path.basename(p) for p in paths if p and p not in (OFF, AUTO))
    return [session.folder / name for name in names]


def _locate(args: argparse.Namespace, folder: Path) -> None:
    """Replaces the names of files by their paths in a folder."""
    for name in FILES:
        value = getattr(args, name, None)
        if isinstance(value, list):
            setattr(args, name, [str(folder / each) for each in value])
        elif value is not None and value not in (OFF, AUTO):
            setattr(args, name, str(folder / value))


def _named(lines: Sequence[str], session: Session) -> list[str]:
    """Lines in which the files of a user are called by their names."""
    return [line.replace(f"{session.folder}{os.sep}", "") for line in lines]
