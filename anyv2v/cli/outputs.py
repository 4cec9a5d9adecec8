"""The files that a command writes: checked before the work, written whole, reported after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from anyv2v import checks
from anyv2v.cli.arguments import listed
from anyv2v.cli.clip import size_of
from anyv2v.cli.finish import Finish
from anyv2v.cli.sidecar import check_sidecar, comment, sidecar_of, with_sidecar
from anyv2v.errors import InputError
from anyv2v.media.sequence import check_sequence_output, writes_sequence
from anyv2v.media.video import SUFFIXES, pyav
from anyv2v.media.writer import CRF, FAITHFUL, video_writer
from anyv2v.runtime.atomic_files import check_output
from anyv2v.weights.packaged import DEMO, PACKAGED


@dataclass(frozen=True)
class Outputs:
    """What a command writes, and the inputs that it must not overwrite.

    Fields have the names of options; None means that an option was not given. output and save_frame
    are written, if `force` even over existing files; the others are inputs.
    """

    output: str | list[str] | None = None
    save_frame: list[str] | None = None
    force: bool = False
    weights: str = DEMO
    video: str | None = None
    frame: list[str] | None = None
    reference: list[str] | None = None
    mask: list[str] | None = None
    keyframe: list[str] | None = None
    protect: str | None = None
    guide: str | None = None

    def check(self, suffixes: tuple[str, ...]) -> None:
        """Raises InputError if an output cannot be written, is an input, or is named twice.

        suffixes: those that `--output` may have. Sidecars of the outputs and the files of
        `--save-frame` are checked too.
        """
        paths, pictures = listed(self.output), self.save_frame or []
        for path in paths:
            self.check_one(path, suffixes)
        for path in pictures:
            self.check_one(path, (".png",))
        for i, path in enumerate(all_paths := [*paths, *pictures]):
            before = all_paths[:i]
            if os.path.realpath(path) in map(os.path.realpath, before):
                raise InputError(f"-o {path}: is given twice")
            sidecar = sidecar_of(path)
            if os.path.realpath(sidecar) in (os.path.realpath(sidecar_of(x)) for x in before):
                raise InputError(f"-o {path}: needs a folder of its own, for its {sidecar.name}")

    def check_one(self, path: str, suffixes: tuple[str, ...]) -> None:
        """Raises InputError if a file cannot be written, is an input or lies among the weights.

        path: an output, or one of several files that `--output` stands for.
        """
        output = Path(os.path.realpath(path))
        inputs = [*listed(self.video), *listed(self.frame)]
        inputs += [*listed(self.reference), *listed(self.mask)]
        inputs += [text.partition(":")[2] for text in self.keyframe or []]
        inputs += [path for path in (self.protect, self.guide) if path is not None]
        if any(output == Path(os.path.realpath(given)) for given in inputs):
            raise InputError(f"-o {path}: is an input, which is never overwritten")
        weights = Path(os.path.realpath(PACKAGED.get(self.weights, self.weights)))
        if weights in output.parents:
            raise InputError(f"-o {path}: is in the folder of the weights")
        if suffixes == SUFFIXES and writes_sequence(path):
            check_sequence_output(path, self.force, inputs)
        else:
            check_output(path, self.force, suffixes)
            if suffixes == SUFFIXES:
                pyav()  # else its absence would be found when all is computed
        check_sidecar(path, self.force)

    def write(
        self, path: str, edited: Iterable[np.ndarray], finish: Finish, facts: dict
    ) -> Written:
        """Writes the frames of an edit to the file `path`, and `facts` to its sidecar.

        edited: the decoded frames, uint8 RGB (h, w, 3). finish: what is done with them, and the
        timestamps and sound of the file. The sidecar also gets the share that `finish` kept.
        """
        form, frames = finish.form, iter(finish.frames(edited))
        first, fps, about = next(frames), form.clip.fps, comment(facts)
        size, count, timed = size_of(first), 0, (*form.times, form.sound)
        crf = CRF if form.placement is None else FAITHFUL
        with with_sidecar(path, facts):
            with video_writer(path, size, fps, *timed, self.force, about, crf) as writer:
                for frame in chain([first], frames):
                    writer.write(frame)
                    count += 1
            facts["kept"] = finish.kept
        return Written(count, size, fps, finish.kept)


@dataclass(frozen=True)
class Written:
    """What a file holds that was written."""

    frames: int
    """Number of frames."""
    size: tuple[int, int]
    """(width, height) of the frames."""
    fps: float
    """Frames per second."""
    kept: float | None = None
    """The share of the source's pixels that were put back; None without protection."""


def report(path: str, written: Written) -> None:
    """Prints what was written to `path`: number, size and frame rate of the frames."""
    width, height = written.size
    kept = "" if written.kept is None else f", {written.kept:.0%} of the pixels are the source's"
    print(f"{path}: {written.frames} frames, {width}x{height}, {written.fps:g} fps{kept}")


def made_folder(path: str, files: Iterable[str], force: bool) -> Path:
    """Makes the folder of `-o DIR` if it is missing, and returns it.

    files: names of the files that the command will write into it. Raises InputError if the folder
    cannot be made, or a file cannot be written, see `check_output`.
    """
    folder = checks.path("-o", path)
    if not folder.parent.is_dir():
        raise InputError(f"-o {folder}: there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror}") from error
    for name in files:
        check_output(folder / name, force)
    return folder
