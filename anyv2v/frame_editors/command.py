"""Any other tool: a command that reads a picture and writes one."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors import watch
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.media.image import read_image
from anyv2v.runtime.atomic_files import scratch

PLACEHOLDERS = ("input", "output", "instruction", "reference", "mask", "seed")
TAIL = 400
"""Characters of what a failed command said that are shown."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Runs another tool, such as 'mytool --in {input} --out {output} --text {instruction}'."""

    command: str
    """Its words as a shell would split them, but no shell runs them; then {input}, {output},
    {instruction}, {reference}, {mask} and {seed} are filled in, pictures as paths of PNG files."""
    timeout: float = 600.0
    """Seconds after which it is ended, with all that it started."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        checks.positive("timeout", self.timeout)
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"editor command {self.command!r}: {error}") from error
        if "{output}" not in self.command or not words:
            raise InputError(
                f"editor command {self.command!r} has no {{output}}: where its picture is to go"
            )

    @property
    def uses(self) -> frozenset[str]:
        return frozenset(name for name in PLACEHOLDERS if f"{{{name}}}" in self.command)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        given = {"reference": request.reference, "mask": request.mask}
        given["instruction"] = request.instruction or None
        for name, value in given.items():
            if f"{{{name}}}" in self.command and value is None:
                raise InputError(f"the editor command has {{{name}}}, but no {name} is given")
        with scratch(Path(tempfile.gettempdir())) as room:
            folder = room / "pictures"
            # whoever else uses the temporary folder has no business with them
            folder.mkdir(mode=0o700)
            return [self._edit(request, seed, folder) for seed in seeds]

    def _edit(self, request: FrameRequest, seed: int, folder: Path) -> np.ndarray:
        values = {"instruction": request.instruction, "seed": str(seed)}
        pictures = {"input": request.frame, "reference": request.reference}
        if request.mask is not None:
            pictures["mask"] = np.rint(request.mask * 255).astype(np.uint8)
        for name, picture in pictures.items():
            if picture is not None:
                values[name] = str(folder / f"{name}.png")
                Image.fromarray(picture).save(values[name])
        output = folder / f"output-{seed}.png"
        values["output"] = str(output)
        pattern = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")
        words = [
            # in one pass: an instruction may speak of {output}
            pattern.sub(lambda found: values[found[1]], word)
            for word in shlex.split(self.command)
        ]
        self._run(words, folder)
        if not output.exists():
            raise InputError(f"the editor command {words[0]} ended well but wrote no {{output}}")
        return _of_size(read_image(output), request.frame.shape[:2])

    def _run(self, words: list[str], folder: Path) -> None:
        with open(folder / "log", "w+b") as said, _watched() as tell:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    # a session of its own, which can be ended as a whole
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"the editor command {words[0]} cannot run: {reason}") from error
            try:
                tell(process)
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"the editor command {words[0]} was ended after {self.timeout:g} s"
                    f"{_tail(said)}; --editor-timeout gives it longer"
                ) from None
            finally:
                _end(process)
            if status:
                raise InputError(
                    f"the editor command {words[0]} failed with status {status}{_tail(said)}"
                )


@contextmanager
def _watched() -> Iterator[Callable[[subprocess.Popen], None]]:
    """Gives what is told of a process, which then ends when this one does, however that ends."""
    if not hasattr(os, "killpg"):
        yield lambda process: None
        return
    python = [sys.executable, "-I", "-S", watch.__file__]
    with subprocess.Popen(python, stdin=subprocess.PIPE, start_new_session=True) as watcher:

        def tell(process: subprocess.Popen) -> None:
            with suppress(BrokenPipeError):
                watcher.stdin.write(str(process.pid).encode())
                watcher.stdin.flush()

        try:
            yield tell
        finally:
            watcher.kill()


def _end(process: subprocess.Popen) -> None:
    """Ends it and what it left running."""
    if hasattr(os, "killpg"):
        watch.end(process.pid)
    else:
        process.kill()
    process.wait()


def _tail(said) -> str:
    said.flush()
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - 4 * TAIL))
    text = " ".join(said.read().decode(errors="replace").split())
    if not text:
        return ", without a word"
    return f": {'... ' if len(text) > TAIL else ''}{text[-TAIL:]}"


def _of_size(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    (height, width), (h, w) = picture.shape[:2], shape
    if (height, width) == (h, w):
        return picture
    if abs(width * h / (height * w) - 1) > 0.01:
        raise InputError(
            f"the editor command wrote a picture of {width}x{height}, "
            f"which has not the proportions of the frame, {w}x{h}"
        )
    log.warning("anyv2v: the editor's picture of %dx%d was resized to %dx%d", width, height, w, h)
    return np.array(Image.fromarray(picture).resize((w, h), Image.Resampling.LANCZOS))
