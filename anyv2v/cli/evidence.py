"""What `anyv2v evaluate` knows of an output: from its options, else from the output's sidecar."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anyv2v import loading
from anyv2v.cli import options
from anyv2v.cli.arguments import listed
from anyv2v.cli.clip import is_source, size_of
from anyv2v.cli.config_file import COMMAND, SETTINGS
from anyv2v.cli.console import say
from anyv2v.cli.sidecar import read_sidecar, sidecar_of
from anyv2v.cli.values import AUTO, OFF, SOURCE
from anyv2v.errors import InputError
from anyv2v.evaluation.case import Case
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame, read_image
from anyv2v.media.placement import Placement
from anyv2v.media.proportions import ALIKE, Size, alike
from anyv2v.media.sequence import is_sequence, numbered
from anyv2v.media.video import read_first_frame, read_video, stream_video
from anyv2v.pipeline.source import Source
from anyv2v.protection.given import masks_of

DEMO, MADE = "demo", ("edit", "reconstruct", "demo")
"""The command whose outputs have a truth beside them, and all commands that make clips."""
T = TypeVar("T")


def find_outputs(path: str) -> tuple[dict[str, str], bool]:
    """Returns name -> path of the clips that OUT stands for, and whether it is a folder of clips.

    path: a clip, which may be a folder or a pattern of numbered pictures; or a folder below which
    clips lie beside their sidecars. Names are relative to the folder.
    """
    found = {os.path.relpath(clip, path): clip for clip in sorted(_clips_below(path))}
    inside = [name for name in found if numbered(name) is None or os.path.dirname(name)]
    if inside:
        return found, True
    # a folder with the pictures of one clip
    whole = {os.path.basename(os.path.abspath(path)): path}
    return {name: found[name] for name in found} or whole, False


def _clips_below(path: str) -> Iterator[str]:
    """The clips in a folder, and in those within it, that lie beside their sidecars."""
    for folder, folders, names in os.walk(path):
        folders[:] = [x for x in folders if not x.startswith(".") and not x.endswith(".unfinished")]
        for name in names:
            if not name.endswith(".json"):
                continue
            facts = read_sidecar(os.path.join(folder, name)).get(SETTINGS, {})
            if not facts and os.path.isfile(clip := os.path.join(folder, name[: -len(".json")])):
                say(f"{clip}: is left out, because {name} is no sidecar")
            if facts.get(COMMAND) not in MADE:
                continue
            # the sidecar of numbered pictures is called edit.json
            for clip in (name.removesuffix(".json"), os.path.basename(str(facts.get("output")))):
                clip = os.path.join(folder, clip)
                if str(sidecar_of(clip)) == os.path.join(folder, name) and _is_there(clip):
                    yield clip
                    break


def _is_there(clip: str) -> bool:
    pattern = numbered(clip)
    return os.path.isfile(clip) if pattern is None else bool(pattern.files())


@dataclass(frozen=True)
class Evidence:
    """The files that belong to an output, and how they are read."""

    output: str
    """The path of the clip."""
    source: str | None
    """The path of the clip before the edit, or of its inversion; None: it is not known."""
    truth: str | None
    """The path of the clip as it should be; None: it is not known."""
    frames: Mapping[int, str]
    """Index of a frame -> path of the edited frame that the edit was given."""
    prompt: str | None
    """The text that describes the edited clip; None: it is not known."""
    mask: str | None
    """The path of a mask; None: it is found."""
    size: Size | None
    """(width, height) at which clips are compared; None: that of the output."""
    given: frozenset[str]
    """Names of the fields that options gave; what they name must be there."""
    made: argparse.Namespace | None
    """The options with which the output was made, as its sidecar says; None: it has none."""

    @classmethod
    def of(cls, args: argparse.Namespace, output: str) -> Evidence:
        """Returns what is known of an output. args: the options of `anyv2v evaluate`.

        Raises InputError if its sidecar has options that no command has.
        """
        made = _made(output)
        known: dict[str, Any] = {"source": None, "truth": None, "prompt": None, "mask": None}
        frames, size = {}, args.size
        if made is not None and made.command == DEMO:
            folder = Path(output).parent
            known |= {"source": str(folder / "source.mp4"), "truth": str(folder / "truth.mp4")}
            # its files are enlarged, to be looked at
            size = size or loading.peek(made.weights).defaults.size
        elif made is not None:
            known |= {"source": made.video, "prompt": (listed(made.prompt) or [None])[0]}
            protect = getattr(made, "protect", OFF)
            known["mask"] = None if protect in (None, OFF, AUTO) else protect
            frames = _frames_of(made)
        given = {name for name in (*known, "frame") if getattr(args, name) is not None}
        known |= {name: getattr(args, name) for name in given - {"frame"}}
        if args.frame is not None:
            frames = {0: args.frame}
        return cls(output, **known, frames=frames, size=size, given=frozenset(given), made=made)

    @property
    def network_size(self) -> Size | None:
        """(width, height) at which the edit was made, if the sidecar says; else `size`."""
        size = getattr(self.made, "size", None)
        return size if isinstance(size, tuple) else self.size

    @property
    def fit(self) -> str:
        """How frames get to a size, one of `media.image.FITS`."""
        return getattr(self.made, "fit", None) or "crop"

    def read(self, size: Size | None) -> tuple[Case, float]:
        """Reads all clips and frames at a size; returns them and the output's frames per second.

        size: (width, height); None is that of the output. Raises InputError if the output or what
        an option names cannot be read, or has too few frames. For what only the sidecar names, a
        line is printed instead, and it counts as unknown.
        """
        video = read_video(self.output, size, fit=self.fit)
        size, count = size_of(video.frames[0]), len(video)
        source = self._tried("source", self.source, lambda x: self._source(x, size, video))
        truth = self._tried("truth", self.truth, lambda x: _truth(x, size, video))
        mask = self._tried("mask", self.mask, lambda x: masks_of(x, size, count, self.fit))

        def pictures(paths: Mapping[int, str]) -> dict[int, np.ndarray]:
            return {i: self._frame(x, size, source) for i, x in paths.items() if i < count}

        references = self._tried("frame", self.frames, pictures) or {}
        return Case(video.frames, source, truth, references, mask), video.fps

    def _tried(self, name: str, value: Any, read: Callable[[Any], T]) -> T | None:
        """What `read` makes of a value; None if there is none, or none of that name is there."""
        if not value:
            return None
        try:
            return read(value)
        except InputError as error:
            if name in self.given:
                raise InputError(f"--{name} {error}") from error
            say(f"{self.output}: the {name} that its sidecar names is left out: {error}")
            return None

    def _source(self, path: str, size: Size, edited: Video) -> np.ndarray:
        """The frames of the source that the edit was made of, as many as the output has."""
        if is_source(path):
            frames = Source.load_video(path).frames
            if size_of(frames[0]) != size:
                frames = np.stack([fit_frame(frame, size, self.fit) for frame in frames])
            return frames[: len(edited)]
        rate: Any = getattr(self.made, "sample_fps", SOURCE)
        if self.made is None and not is_sequence(path):
            rate = edited.fps
        rate = None if rate in (None, SOURCE) else rate
        begin = getattr(self.made, "start_time", None) or 0.0
        return _read(path, size, len(edited), rate, begin, self.fit).frames

    def _frame(self, path: str, size: Size, source: np.ndarray | None) -> np.ndarray:
        """An edited frame at the size of the clips, placed as the edit was placed."""
        picture, fit = read_image(path), getattr(self.made, "fit", None)
        # as the edit brought it there
        fit = fit or ("stretch" if getattr(self.made, "paper", False) else "crop")
        edited, placed = self.network_size, getattr(self.made, "out_size", None) == SOURCE
        if placed and edited not in (None, size) and self.size is None and source is not None:
            small = fit_frame(picture, edited, fit)
            return Placement(size, edited, self.fit).restore(small, source[0])
        return fit_frame(picture, size, fit)


def _truth(path: str, size: Size, edited: Video) -> np.ndarray:
    """The frames of a true result, which has those of the output one by one.

    Raises InputError if it has another number of frames, frame rate or proportions.
    """
    own = size_of(read_first_frame(path))
    if not alike(own, size):
        proportions = f"is {own[0]}x{own[1]}, the output {size[0]}x{size[1]}"
        raise InputError(f"{path}: {proportions}; a truth of the same proportions is needed")
    truth, count = read_video(path, size), len(edited)
    if len(truth) != count:
        raise InputError(f"{path}: has {len(truth)} frames, the output has {count}")
    # numbered pictures have no rate of their own
    if not is_sequence(path) and abs(truth.fps / edited.fps - 1) > ALIKE:
        raise InputError(f"{path}: has {truth.fps:g} fps, the output has {edited.fps:g}")
    return truth.frames


def _read(path: str, size: Size, count: int, fps: float | None, begin: float, fit: str) -> Video:
    """Reads the first `count` frames of a clip; raises InputError if it has fewer."""
    with stream_video(path, size, None, fps, begin, fit) as stream:
        frames = [*islice(stream, count)]
        if len(frames) < count:
            raise InputError(f"{path}: has {len(frames)} frames, the output has {count}")
        return Video(np.stack(frames), stream.fps)


def _frames_of(made: argparse.Namespace) -> dict[int, str]:
    """Index -> path of the edited frames of an edit; none if a frame editor made the first."""
    frames = dict(enumerate(listed(getattr(made, "frame", None))[:1]))
    keyframes = (text.partition(":") for text in getattr(made, "keyframe", None) or [])
    return frames | {int(index): path for index, _, path in keyframes} if frames else {}


def _made(output: str) -> argparse.Namespace | None:
    """The options in the sidecar of a clip, as the command that made it would get them."""
    clip = output
    if os.path.isdir(clip):
        # pictures; only the suffix of a pattern counts
        clip = os.path.join(clip, "%d.png")
    path = sidecar_of(clip)
    command = read_sidecar(path).get(SETTINGS, {}).get(COMMAND)
    if command not in MADE:
        return None
    parser = options.parser(dict.fromkeys(MADE, print))
    return parser.parse_args([command, "--config", str(path)])
