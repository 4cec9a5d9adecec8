"""Video files to and from uint8 RGB frames; the only module that knows PyAV."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.files import atomic_path, check_output
from anyv2v.media.clip import Video
from anyv2v.media.image import FITS, as_frames, fit_frame
from anyv2v.media.sequence import SUFFIXES as SEQUENCES
from anyv2v.media.sequence import is_sequence, read_sequence, write_sequence, writes_sequence
from anyv2v.memory import free_bytes, require

if TYPE_CHECKING:
    import av

SUFFIXES = (".mp4", ".mov", ".mkv", *SEQUENCES)

# seconds; timestamps in some containers are rounded to milliseconds
ROUNDING = 1e-3

# seconds; a frame that is shown for longer is a damaged timestamp, not a film
LONGEST = 3600.0

# of a frame; twice what is filmed today. decoders hold some twenty frames
MOST_PIXELS = 2**26

# the number of AVCOL_SPC, AVCOL_PRI and AVCOL_TRC that means BT.709, and the one for "not said"
BT709, UNSPECIFIED = 1, 2


def pyav():
    """The package av, imported when a file is opened: InputError where there is none."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"videos need PyAV (pip install av): {error}") from error
    return av


def read_video(
    path: str | os.PathLike,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    start_time: float = 0.0,
    fit: str = "crop",
) -> Video:
    """The first `frames` frames from `start_time` (seconds after the clip's first frame) on.

    size: (width, height), reached by `fit` ("crop" or "stretch", see `fit_frame`). fps: samples by
    timestamps, taking for each moment the frame that is shown then. None: the clip's own size, all
    frames, its own frames and average rate. Rotation, mirroring and non-square pixels are undone;
    alpha is dropped. Of a damaged file what comes before the damage is read. Folders of pictures,
    numbered pictures and pictures that move are clips too, see `read_sequence`.

    InputError: not a readable video, fewer than `frames` frames, or an impossible argument.
    """
    size = None if size is None else checks.size(size)
    fps = None if fps is None else checks.positive("fps", fps)
    frames = None if frames is None else checks.whole("frames", frames)
    checks.one_of("fit", fit, FITS)
    if not checks.finite("start_time", start_time) >= 0:
        raise InputError(f"start_time: {start_time} is not a number of seconds from 0 up")

    if size is not None and frames is not None:
        require(lambda w, h: 3 * w * h * frames, size, frames, 1, torch.device("cpu"))
    if is_sequence(path):
        return read_sequence(path, size, frames, fps, start_time, fit)
    pictures: list[np.ndarray] = []
    room = free_bytes(torch.device("cpu")) // 2
    with _open(Path(path)) as (container, stream):
        own_fps = float(stream.average_rate or stream.guessed_rate or 25)
        timed = _timed(path, _decode(container, stream), own_fps)
        shown = _from(timed, start_time) if fps is None else _sample(timed, start_time, fps)
        last = None
        for frame in islice(shown, frames):
            if frame is not last:
                picture, last = _to_rgb(frame, stream.sample_aspect_ratio), frame
                size = size or (picture.shape[1], picture.shape[0])
                picture = fit_frame(picture, size, fit)
            pictures.append(picture)
            if len(pictures) * picture.nbytes > room:
                raise InputError(
                    f"{path}: more than {len(pictures)} frames of {size[0]}x{size[1]} do not fit "
                    "into memory; say how many to read (frames), or a smaller size"
                )
    if not pictures:
        raise InputError(f"start_time {start_time:g} s is past the end of {path}")
    if frames is not None and len(pictures) < frames:
        raise InputError(
            f"{path} has {len(pictures)} frame{'s' * (len(pictures) > 1)} at "
            f"{fps or own_fps:g} fps from "
            f"{start_time:g} s on, fewer than the {frames} asked for"
        )
    return Video(np.stack(pictures), fps or own_fps)


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray,
    fps: float,
    force: bool = True,
    comment: str = "",
) -> None:
    """Writes frames, uint8 RGB (f, h, w, 3), numpy or tensor, as H.264 that any player shows.

    yuv420p, BT.709, limited range. That format has even sizes only: an odd width or height gets its
    last column or row twice. The file appears whole or not at all; without `force` an existing one
    is an InputError, as are a missing or unwritable folder and a suffix that is not in SUFFIXES.
    Names such as frames/%05d.png, and .gif and .webp, go to `write_sequence`.
    `comment`: a text that the file carries.
    """
    frames = as_frames(frames)
    rate = Fraction(checks.positive("fps", fps)).limit_denominator(100_000)
    if not Fraction(1, 100) <= rate <= 1000:
        raise InputError(f"fps: {fps} is not between 0.01 and 1000")
    if writes_sequence(path):
        return write_sequence(path, frames, float(fps), force)
    check_output(path, force, SUFFIXES)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_path(path) as temporary:
        _encode(temporary, frames, rate, comment)


@contextmanager
def _open(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its video stream."""
    av = pyav()
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        # the prefix keeps a name with a colon from being taken for a protocol; titles and the like
        # may be in any encoding
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams or streams[0].codec_context is None:
                raise InputError(f"{path} has no video stream that can be decoded")
            # with frame threads the decoder hides errors and loses whole frames before the damage
            streams[0].thread_type = "SLICE"
            # a few bytes may claim any size, at the beginning or later on
            codec = streams[0].codec_context
            if codec.width * codec.height > MOST_PIXELS:
                raise InputError(f"{path} has frames of {codec.width}x{codec.height}, too large")
            codec.options = {"max_pixels": str(MOST_PIXELS)}
            yield container, streams[0]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be read as a video: {reason}") from error


def _decode(container, stream) -> Iterator[av.VideoFrame]:
    """Whole frames in the order they are shown, up to the first damage after a frame."""
    av = pyav()
    packets = container.demux(stream)
    begun = False
    while True:
        try:
            packet = next(packets, None)
            decoded = [] if packet is None else packet.decode()
        except av.FFmpegError:
            # a stream cut out of a longer one may begin with packets that need earlier ones
            if begun:
                break
            continue
        if packet is None:
            break
        for frame in decoded:
            if not frame.is_corrupt:
                begun = True
                yield frame
    # after damage the decoder still holds frames from before it; otherwise there are none left
    with suppress(av.FFmpegError):
        yield from (frame for frame in stream.codec_context.decode(None) if not frame.is_corrupt)


def _timed(path, frames, own_fps: float) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """(begin, end, frame), in seconds after the first frame."""
    first, last = None, math.inf
    for index, frame in enumerate(frames):
        tick = frame.time_base
        # a bare stream without a container has no timestamps
        time = float(frame.pts * tick) if tick and frame.pts is not None else index / own_fps
        first = time if first is None else first
        lasts = float(frame.duration * tick) if tick and frame.duration else 1 / own_fps
        if time - last > LONGEST:
            break
        last = time
        yield time - first, time - first + min(lasts, LONGEST), frame
    if first is None:
        raise InputError(f"{path} has no frame that can be decoded")


def _from(timed, start: float) -> Iterator[av.VideoFrame]:
    for begin, _, frame in timed:
        if begin > start - ROUNDING:
            yield frame


def _sample(timed, start: float, fps: float) -> Iterator[av.VideoFrame]:
    """The frame shown at start, start + 1 / fps, ...; the last one counts until it ends."""
    count, last_end, shown = 0, 0.0, None
    for begin, end, frame in timed:
        while shown is not None and start + count / fps < begin - ROUNDING:
            yield shown
            count += 1
        shown, last_end = frame, end
    while shown is not None and start + count / fps < last_end - ROUNDING:
        yield shown
        count += 1


def _to_rgb(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> np.ndarray:
    """uint8 RGB (h, w, 3), upright and with square pixels."""
    reformatter = pyav().video.reformatter
    matrix = frame.colorspace
    # players take high definition for BT.709 when the file does not say
    if matrix == UNSPECIFIED and frame.height >= 720:
        matrix = reformatter.Colorspace.ITU709
    # beyond these it is a damaged header, not a camera
    stretch = pixel_aspect if pixel_aspect and 1 / 4 <= pixel_aspect <= 4 else 1
    width = max(1, round(frame.width * stretch))
    rgb = frame.reformat(
        width=width,
        format="rgb24",
        src_colorspace=matrix,
        interpolation=_exact(reformatter.Interpolation),
    )
    return _upright(rgb.to_ndarray(), frame.side_data.get("DISPLAYMATRIX"))


def _exact(interpolation):
    """Without these swscale rounds down and is up to 3 levels off in saturated colours."""
    return interpolation.BICUBIC | interpolation.ACCURATE_RND | interpolation.FULL_CHR_H_INT


def _upright(picture: np.ndarray, matrix) -> np.ndarray:
    """Applies the quarter turns and mirrorings of a display matrix: x' = ax + cy, y' = bx + dy."""
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _encode(path: Path, frames: np.ndarray, rate: Fraction, comment: str) -> None:
    av = pyav()
    reformatter = av.video.reformatter
    interpolation = reformatter.Interpolation
    # the index goes to the front, so that a player can start before it has the whole file
    options = {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
    with av.open(f"file:{path}", "w", options=options) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = reformatter.ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=reformatter.Colorspace.ITU709,
                dst_color_range=reformatter.ColorRange.MPEG,
                dst_color_primaries=BT709,
                dst_color_trc=BT709,
                interpolation=_exact(interpolation) | interpolation.FULL_CHR_H_INP,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
