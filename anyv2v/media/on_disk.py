"""`FramesOnDisk`: the frames of a clip in a file, of which any can be read without the others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.sequence_stream import files_of
from anyv2v.media.stream import FrameStream
from anyv2v.media.video import checked, stream_video
from anyv2v.runtime.atomic_files import atomic_path

# the file is the frames' bytes, their description as JSON, its length, and this, the end of a file
# that is whole
MAGIC = b"anyv2v frames 1\n"
LENGTH = 8


@dataclass(frozen=True)
class FramesOnDisk:
    """Frames in a file, uint8 RGB, of which any can be read at once.

    They are read as a file is, not mapped into memory, so that what was read does not count as this
    process's memory. The file is opened for each read only.
    """

    file: Path
    """The file that holds the frames."""
    size: tuple[int, int]
    """(width, height) of every frame."""
    fps: float
    """The sampling rate, or the clip's average rate."""
    start: float
    """When the first frame is shown, in seconds after the clip's first frame."""
    times: tuple[float, ...]
    """When each frame is shown, in seconds after `start`."""
    end: float
    """When the last frame ends, in seconds after `start`."""
    sha256: str
    """Of all frames' bytes, in hexadecimal."""
    source: Any
    """What the frames were made of, as `write` was told it: anything that JSON holds."""

    def __len__(self) -> int:
        return len(self.times)

    def frames_at(self, indices: Iterable[int]) -> np.ndarray:
        """Reads frames: uint8 RGB (n, h, w, 3), in the order of `indices`.

        indices: each from 0 to len(self) - 1; any may be asked for several times. Raises InputError
        for others, and if the file is gone or was cut off since it was opened.
        """
        wanted = [checks.whole("index", i, 0, len(self) - 1) for i in indices]
        width, height = self.size
        frames = np.empty((len(wanted), height, width, 3), np.uint8)
        bytes_of_one = 3 * width * height
        try:
            # without a buffer of Python's, which would copy
            with open(self.file, "rb", buffering=0) as file:
                for frame, index in zip(frames, wanted, strict=True):
                    file.seek(index * bytes_of_one)
                    _read_into(file, frame.data.cast("B"))
        except (OSError, EOFError) as error:
            raise InputError(f"{self.file} cannot be read any more: {error}") from error
        return frames

    def is_intact(self) -> bool:
        """Whether the frames in the file are those that were written, to the bit."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.frames_at([index]).data)
        return digest.hexdigest() == self.sha256

    @classmethod
    def read(
        cls,
        file: str | os.PathLike,
        path: str | os.PathLike,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        start_time: float = 0.0,
        fit: str = "crop",
    ) -> FramesOnDisk:
        """Reads a clip into a file, frame by frame, unless the file holds just that clip already.

        file: where the frames are kept; a file that is there is replaced. The other arguments and
        the errors are those of `read_video`. A clip is the same if it has the same path, size in
        bytes and time of modification, and was read with the same arguments. The file appears whole
        or not at all.
        """
        wanted = checked(path, size, frames, fps, start_time, fit)
        arguments = {**wanted._asdict(), "path": os.path.realpath(wanted.path)}
        # compared as JSON gives it back, in which a tuple is a list
        source = json.loads(json.dumps({**arguments, "files": _state(wanted.path)}))
        kept = cls.opened(file)
        if kept is not None and kept.source == source and kept.is_intact():
            return kept
        with stream_video(*wanted) as stream:
            return cls.write(file, stream, source)

    @classmethod
    def write(
        cls, file: str | os.PathLike, stream: FrameStream, source: object = None
    ) -> FramesOnDisk:
        """Writes the frames of a stream to `file`, which appears whole or not at all.

        source: anything that JSON holds, for the caller to tell later what the frames are. Raises
        InputError if the file cannot be written, and whatever the stream raises.
        """
        digest = hashlib.sha256()
        try:
            with atomic_path(file) as temporary, open(temporary, "wb") as out:
                for frame in stream:
                    data = np.ascontiguousarray(frame).data
                    out.write(data)
                    digest.update(data)
                facts = {
                    "size": stream.size,
                    "fps": stream.fps,
                    "start": stream.start,
                    "times": stream.times,
                    "end": stream.end,
                    "sha256": digest.hexdigest(),
                    "source": source,
                }
                text = json.dumps(facts).encode()
                out.write(text + len(text).to_bytes(LENGTH, "little") + MAGIC)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror or error}") from error
        return cls._of(Path(file), facts)

    @classmethod
    def opened(cls, file: str | os.PathLike) -> FramesOnDisk | None:
        """Opens a file that `write` has written; returns None if there is none, or another's."""
        file = Path(file)
        try:
            with open(file, "rb") as data:
                data.seek(-(LENGTH + len(MAGIC)), os.SEEK_END)
                length = int.from_bytes(data.read(LENGTH), "little")
                if data.read() != MAGIC:
                    return None
                data.seek(-(LENGTH + len(MAGIC) + length), os.SEEK_END)
                begin = data.tell()
                frames = cls._of(file, json.loads(data.read(length)))
            width, height = frames.size
            return frames if begin == 3 * width * height * len(frames) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def _of(cls, file: Path, facts: dict) -> FramesOnDisk:
        width, height = facts["size"]
        facts = facts | {"size": (width, height), "times": tuple(facts["times"])}
        return cls(file, **facts)


def _read_into(file, view: memoryview) -> None:
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            raise EOFError("it was cut off")
        view = view[count:]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of modification in nanoseconds of each file of a clip."""
    files = files_of(path) or [path]
    found = [(file.name, os.stat(file)) for file in files if os.path.exists(file)]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]
