"""Writing of clips frame by frame, so that none has to be in memory as a whole."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media import timing
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.frame import EXACT
from anyv2v.media.image import as_frames
from anyv2v.media.sequence import SUFFIXES as SEQUENCES
from anyv2v.media.sequence import sequence_writer, writes_sequence
from anyv2v.media.sound import Sound, SoundTracks, add_sound
from anyv2v.runtime.atomic_files import atomic_path, check_output

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov", ".mkv", *SEQUENCES)
"""Suffixes of the clips that can be written, besides numbered PNGs."""

CRF, FAITHFUL = 16, 4
"""Constant rate factors of H.264: that of edited clips, and that of clips whose pixels are partly
the source's own, which should be seen again. On two clips of a phone's detail and of a kitten they
were written with 38.7 and 43.5 dB, and with 45.7 and 47.5 dB in 3 to 4 times the bytes."""

# the number of AVCOL_SPC, AVCOL_PRI and AVCOL_TRC that means BT.709
BT709 = 1

# SWS_FULL_CHR_H_INP: the chroma of all pixels is read, not of every second one
FULL_CHROMA = 0x4000

# seconds: the unit of timestamps that no frame rate explains, the same as in MPEG streams
TICK = Fraction(1, 90_000)


@contextmanager
def video_writer(
    path: str | os.PathLike,
    size: tuple[int, int],
    fps: float,
    times: Sequence[float] | None = None,
    end: float | None = None,
    sound: Sound | None = None,
    force: bool = True,
    comment: str = "",
    crf: int = CRF,
) -> Iterator[VideoWriter]:
    """Writes a clip frame by frame, as a context manager with `write(frame)`.

    path, fps, force and comment: as in `write_video`, of which this is the streaming form. size:
    (width, height) of the frames. times: when each frame is shown, in seconds after the first one;
    None, and times that are those of the rate up to a millisecond, give each frame 1 / fps seconds.
    end: when the last of them ends; None gives it 1 / fps seconds. sound: what is written beside
    the frames, see `add_sound`; pictures have none. crf: the constant rate factor of H.264, 0 to
    51, less for better pictures and larger files, see `CRF` and `FAITHFUL`.

    Frames of a variable rate carry their own timestamps, in units of 1/90000 s (in MKV of 1 ms),
    and are encoded without B-frames.

    The output appears whole, after the block, or not at all. Frames are upright and have square
    pixels and BT.709 colors, as `read_video` gives them, so that no rotation is written. MP4, MOV,
    MKV and numbered PNGs are written as a stream; of GIF and WebP the frames are kept in memory
    until the end. Raises InputError as `write_video` does, for times that do not increase, and for
    fewer or more frames than times.
    """
    path, force = checks.path("path", path), checks.flag("force", force)
    # a name in it may hold bytes that are no text
    comment = checks.text("comment", comment).encode("utf-8", "backslashreplace").decode()
    size, fps = checks.size(size), timing.checked_rate(fps)
    bounds = None if times is None else _bounds(times, end, fps)
    count = None if times is None else len(times)
    if writes_sequence(path):
        if sound is not None:
            log.warning("anyv2v: %s holds no sound; the clip's is left out", path)
        with sequence_writer(path, fps, bounds, force, comment) as write:
            writer = VideoWriter(write, size, count)
            yield writer
            writer.check_count()
        return
    check_output(path, force, SUFFIXES)
    with atomic_path(path) as temporary, _opened(temporary, comment) as container:
        encoder = _Encoder(container, size, fps, bounds, crf)
        with ExitStack() as stack:
            if sound is not None:
                encoder.add_sound(sound, path.suffix.lower())
                stack.callback(encoder.close_sound)
            writer = VideoWriter(encoder.write, size, count)
            yield writer
            writer.check_count()
            encoder.finish()


class VideoWriter:
    """What takes the frames of a clip one after another; made by `video_writer`."""

    def __init__(
        self, write: Callable[[np.ndarray], None], size: tuple[int, int], count: int | None
    ):
        self._write = write
        self._size = size
        self._count = count
        self._written = 0

    def write(self, frame: np.ndarray) -> None:
        """Writes a frame, uint8 RGB (h, w, 3).

        Raises InputError if it is none of the clip's size, or if there is no time for it.
        """
        (frame,) = as_frames(np.asarray(frame)[None])
        height, width, _ = frame.shape
        if (width, height) != self._size:
            raise InputError(
                f"a frame is {width}x{height}, and the clip {self._size[0]}x{self._size[1]}"
            )
        if self._written == self._count:
            raise InputError(f"there are times for {self._count} frames, and more are written")
        self._written += 1
        self._write(frame)

    def check_count(self) -> None:
        """Raises InputError if no frame was written, or fewer than there are times."""
        if self._written < (self._count or 1):
            raise InputError(f"of {self._count or 1} frames only {self._written} were written")


class _Encoder:
    """H.264 of any player in an open container, and the sound beside it."""

    def __init__(
        self,
        container,
        size: tuple[int, int],
        fps: float,
        bounds: list[float] | None,
        crf: int,
    ):
        self._container = container
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._bounds = bounds
        self._tick = 1 / self._rate
        self._lasts: dict[int, int] = {}
        self._count = 0
        self._sound: SoundTracks | None = None
        self._lead = 0.0
        reformatter = pyav().video.reformatter
        # without B-frames packets come in the order of the frames; in another order MP4 could not
        # tell how long each frame is shown, unless all are shown equally long
        # libx264's macroblock tree reads beyond rows whose width 64 does not divide, so that equal
        # frames would give other pictures each time
        options = {"crf": str(crf), "x264-params": "mbtree=0"} | (
            {} if bounds is None else {"bf": "0"}
        )
        stream = container.add_stream("libx264", rate=self._rate, options=options)
        # 4:2:0 needs even sizes
        stream.width, stream.height = (x + x % 2 for x in size)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = reformatter.ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        self._stream = stream
        if bounds is not None:
            self._take_fine_times()

    def add_sound(self, sound: Sound, suffix: str) -> None:
        """Adds the streams of a sound to the container, before the first frame is written."""
        self._sound = add_sound(sound, self._container, suffix)
        if self._sound is not None and self._sound.lead:
            self._lead = self._sound.lead
            self._take_fine_times()

    def close_sound(self) -> None:
        """Closes the clip that the sound comes from."""
        if self._sound is not None:
            self._sound.close()

    def write(self, picture: np.ndarray) -> None:
        """Encodes a frame, and writes the sound up to it."""
        begin = self._begin(self._count)
        if self._sound is not None:
            self._sound.write_until(begin)
        frame = _yuv(picture)
        frame.pts, frame.time_base = self._ticks(self._count), self._tick
        if self._tick == TICK:
            # FFmpeg infers durations from the rate
            self._lasts[frame.pts] = self._ticks(self._count + 1) - frame.pts
        self._count += 1
        self._mux(frame)

    def finish(self) -> None:
        """Writes what the encoder still holds, and the rest of the sound."""
        self._mux(None)
        if self._sound is not None:
            self._sound.write_until(math.inf)

    def _take_fine_times(self) -> None:
        self._tick = self._stream.codec_context.time_base = self._stream.time_base = TICK

    def _begin(self, index: int) -> float:
        return self._bounds[index] if self._bounds is not None else float(index / self._rate)

    def _ticks(self, index: int) -> int:
        if self._tick != TICK:
            return index
        return round((self._lead + self._begin(index)) / TICK)

    def _mux(self, frame) -> None:
        for packet in self._stream.encode(frame):
            if packet.pts in self._lasts:
                packet.duration = self._lasts.pop(packet.pts)
            self._container.mux(packet)


def _yuv(picture: np.ndarray):
    """PyAV's frame of a picture, uint8 RGB (h, w, 3), whose odd sides are made even."""
    av = pyav()
    reformatter = av.video.reformatter
    height, width, _ = picture.shape
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=reformatter.Colorspace.ITU709,
        dst_color_range=reformatter.ColorRange.MPEG,
        dst_color_primaries=BT709,
        dst_color_trc=BT709,
        interpolation=EXACT | FULL_CHROMA,
    )


def _opened(path: Path, comment: str):
    """PyAV's container of a file to be written."""
    # without numbers drawn by chance, so that equal frames give equal files
    options = {"fflags": "+bitexact"}
    if path.suffix.lower() != ".mkv":
        # the index goes to the front, so that a player can start before it has the whole file
        options["movflags"] = "faststart"
    container = pyav().open(f"file:{path}", "w", options=options)
    if comment:
        container.metadata["comment"] = comment
    return container


def _bounds(times: Sequence[float], end: float | None, fps: float) -> list[float] | None:
    """When each frame begins and the last one ends, in seconds; None if the rate tells it.

    Raises InputError unless they begin at 0 and increase.
    """
    bounds = [checks.finite("times", time) for time in times]
    if bounds:
        bounds.append(checks.finite("end", bounds[-1] + 1 / fps if end is None else end))
    if not bounds or bounds[0] != 0 or any(b <= a for a, b in pairwise(bounds)):
        raise InputError("times: they do not begin at 0 and increase to the end")
    regular = all(abs(b - i / fps) <= timing.ROUNDING for i, b in enumerate(bounds))
    return None if regular else bounds
