"""An editor that runs another program: a command that reads a picture file and writes one."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from PIL import Image

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors import watch
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.media.image import read_image
from anyv2v.runtime.atomic_files import scratch
from anyv2v.runtime.interrupt import check_interrupt

PLACEHOLDERS = ("input", "output", "instruction", "reference", "mask", "seed")
"""Names that a command may hold in braces, such as {input}; see `Command.command`."""
TAIL = 400
"""Most characters, from the end of a failed command's output, that its error message shows."""
POLL = 0.2
"""Seconds between looks whether the run shall end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Runs another tool, such as 'mytool --in {input} --out {output} --text {instruction}'."""

    command: str
    """The command, split into words as a shell does, but run without a shell. {input}, {output},
    {instruction}, {reference}, {mask} and {seed} are replaced by their values, pictures by the
    paths of PNG files. It must hold {output}, where it has to write the edited picture.
    """
    timeout: float = 600.0
    """Seconds after which the command is killed, with all processes that it started."""

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
        """The names of the placeholders in the command, out of PLACEHOLDERS; see `FrameEditor`."""
        return frozenset(name for name in PLACEHOLDERS if f"{{{name}}}" in self.command)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Runs the command once for each seed and returns the pictures; see `FrameEditor`.

        A picture with the frame's proportions, up to 1 %, is resized to the frame's size. Raises
        InputError if the command has a placeholder whose input is not given, cannot run, fails,
        takes longer than the timeout, or writes no picture with these proportions.
        """
        missing = {"reference": request.reference is None, "mask": request.mask is None}
        missing["instruction"] = not request.instruction
        for name, is_missing in missing.items():
            if f"{{{name}}}" in self.command and is_missing:
                raise InputError(f"the editor command has {{{name}}}, but no {name} is given")
        with scratch(Path(tempfile.gettempdir())) as parent:
            folder = parent / "pictures"
            # other users of the temporary folder may not read the pictures
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
        words = filled(self.command, values)
        longer = "; --editor-timeout gives it longer"
        run_command(words, folder / "log", self.timeout, longer=longer)
        if not output.exists():
            raise InputError(f"the editor command {words[0]} ended well but wrote no {{output}}")
        return _resized(read_image(output), request.frame.shape[:2])


def run_command(
    words: list[str], log: Path, timeout: float, called: str = "editor command", longer: str = ""
) -> None:
    """Runs another program, and ends all that it has started when it ends or this process does.

    words: the program and its arguments. log: the file for what it prints. timeout: seconds after
    which it is ended. called: what messages call it; longer: what they say gives it more time.
    Raises InputError if it cannot run, fails or takes longer.
    """
    with open(log, "w+b") as output, _watcher() as watch_process:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # a session of its own, all of whose processes can be killed together
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"the {called} {words[0]} cannot run: {reason}") from error
        try:
            watch_process(process)
            status = _wait(process, timeout)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"the {called} {words[0]} was ended after {timeout:g} s{_tail(output)}{longer}"
            ) from None
        finally:
            _end(process)
        if status:
            raise InputError(f"the {called} {words[0]} failed with status {status}{_tail(output)}")


def filled(command: str, values: Mapping[str, str]) -> list[str]:
    """Returns the words of a command, with {name} replaced by `values[name]`.

    Words are split before they are filled in, and each is filled in one pass, because the text of
    an instruction may contain spaces and {output}.
    """
    pattern = re.compile("{(" + "|".join(map(re.escape, values)) + ")}")
    return [pattern.sub(lambda match: values[match[1]], word) for word in shlex.split(command)]


@contextmanager
def _watcher() -> Iterator[Callable[[subprocess.Popen], None]]:
    """Yields a function to which a process is passed that must end when this process ends."""
    if not hasattr(os, "killpg"):
        yield lambda process: None
        return
    python = [sys.executable, "-I", "-S", watch.__file__]
    with subprocess.Popen(python, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        stdin = watcher.stdin
        assert stdin is not None  # a pipe, see above

        def watch_process(process: subprocess.Popen) -> None:
            with suppress(BrokenPipeError):
                stdin.write(str(process.pid).encode())
                stdin.flush()

        try:
            yield watch_process
        finally:
            watcher.kill()


def _wait(process: subprocess.Popen, timeout: float) -> int:
    """Returns the status of a process when it ends; raises as `check_interrupt` does meanwhile."""
    deadline = time.monotonic() + timeout
    while True:
        check_interrupt()
        left = deadline - time.monotonic()
        try:
            return process.wait(max(0.0, min(left, POLL)))
        except subprocess.TimeoutExpired:
            if left <= POLL:
                raise


def _end(process: subprocess.Popen) -> None:
    """Kills a process and all processes that it has left running."""
    if hasattr(os, "killpg"):
        watch.end(process.pid)
    else:
        process.kill()
    process.wait()


def _tail(output: BinaryIO) -> str:
    output.flush()
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 4 * TAIL))
    text = " ".join(output.read().decode(errors="replace").split())
    if not text:
        return ", without a word"
    return f": {'... ' if len(text) > TAIL else ''}{text[-TAIL:]}"


def _resized(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
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
