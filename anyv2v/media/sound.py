"""The sound of a clip, copied into another file without decoding it where the file can hold it."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from anyv2v import checks
from anyv2v.media.container import decode, open_video
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.sequence import is_sequence

log = logging.getLogger(__name__)

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix of an output -> FFmpeg's name of its format."""

# channels -> FFmpeg's name of what they are where a file tells only their number
LAYOUTS = {1: "mono", 2: "stereo"}

# bits per second and channel of sound that has to be encoded
RATE_OF_AAC = 96_000


@dataclass(frozen=True)
class Sound:
    """The sound of a part of a clip, to be written beside its frames."""

    path: str | os.PathLike
    """The clip: what `read_video` takes. Clips of pictures have no sound."""
    start: float = 0.0
    """Where the part begins, in seconds after the clip's first frame: `FrameStream.start`."""
    duration: float | None = None
    """How long the part is, in seconds: `FrameStream.end`. None: to the end of the sound, which may
    be later than that of the last frame."""


class SoundTracks:
    """The audio streams of a clip on their way into an output; `add_sound` makes it."""

    lead: float
    """Seconds by which the sound is heard before the first frame, so that frames have to be shown
    that much later in the output. 0 if it begins with the first frame or later."""

    def __init__(self, packets: Generator[tuple[float, Any], None, None], output, lead: float):
        self.lead = lead
        self._packets = packets
        self._output = output
        self._next: tuple[float, Any] | None = None

    def write_until(self, seconds: float) -> None:
        """Writes the sound that begins up to `seconds` after the first frame; inf: all the rest."""
        while True:
            self._next = self._next or next(self._packets, None)
            if self._next is None or self._next[0] > seconds:
                return
            self._output.mux(self._next[1])
            self._next = None

    def close(self) -> None:
        """Closes the clip."""
        self._packets.close()


@dataclass(frozen=True)
class _Track:
    """An audio stream of the clip and what becomes of it."""

    index: int
    """Of the stream in the clip."""
    stream: Any
    """PyAV's stream of the output."""
    copied: bool
    """Whether its packets are copied; else they are decoded and encoded."""


def add_sound(sound: Sound, output, suffix: str) -> SoundTracks | None:
    """Adds the audio streams of a clip to an output; returns None if there are none.

    output: PyAV's container, to which nothing has been written. suffix: that of its name, .mp4,
    .mov or .mkv.

    All audio streams are copied, packet by packet, with their languages and dispositions. One whose
    codec the format cannot hold is encoded as AAC, and one that FFmpeg does not know is left out; a
    warning says so. A whole clip's sound is the same to the sample in MP4 and MOV, because the
    delay of its encoder is kept; in MKV that delay (of AAC: 21 ms) may be heard before it, and what
    MKV trims from the last packet may be heard after it in MP4. A part of a clip is cut between
    packets (of AAC: 21 ms at 48 kHz), so that it begins with the first packet after `start`.
    Packets whose clock is set back are left out, and damaged sound ends there. Raises InputError as
    `open_video` does.
    """
    path = checks.path("sound", sound.path)
    if is_sequence(path):
        return None
    made: list[_Track] = []
    with open_video(path) as (container, _):
        for stream in container.streams.audio:
            if stream.codec_context is None:
                log.warning("anyv2v: %s has sound of an unknown codec, which is left out", path)
            else:
                made.append(_added(path, stream, output, suffix))
    if not made:
        return None
    first = _first_frame(path)
    lead = 0.0 if sound.start else max(0.0, first - _heard(path, [t.index for t in made], first))
    return SoundTracks(_packets(path, sound, made, first, lead), output, lead)


def _added(path: Path, stream, output, suffix: str) -> _Track:
    codec = stream.codec_context
    layout = LAYOUTS.get(codec.channels, codec.layout.name)
    copied = _holds(suffix, stream)
    if copied:
        added = output.add_stream_from_template(stream)
        # raw samples may lack it, and MP4 needs it
        added.codec_context.layout = layout
    else:
        instead = "" if suffix == ".mkv" else "; .mkv holds more"
        log.warning(
            "anyv2v: %s cannot hold the sound of %s (%s), which is encoded as AAC%s",
            suffix,
            path,
            codec.name,
            instead,
        )
        rates = pyav().Codec("aac", "w").audio_rates or [codec.sample_rate]
        rate = codec.sample_rate if codec.sample_rate in rates else 48_000
        added = output.add_stream("aac", rate=rate, layout=layout)
        added.bit_rate = RATE_OF_AAC * codec.channels
    added.metadata.update({k: v for k, v in stream.metadata.items() if k in ("language", "title")})
    added.disposition = stream.disposition
    return _Track(stream.index, added, copied)


def _holds(suffix: str, stream) -> bool:
    """Whether a format takes the codec of a stream, found out by writing the header of a file."""
    av = pyav()
    # ValueError: refused by PyAV, which asks FFmpeg; some codecs FFmpeg refuses at the header only
    try:
        with av.open(io.BytesIO(), "w", format=FORMATS[suffix]) as output:
            output.add_stream_from_template(stream)
            output.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _first_frame(path: Path) -> float:
    """When the clip's first frame is shown, in seconds on the file's clock."""
    with open_video(path) as (container, stream):
        frame = next(decode(container, stream), None)
    return _seconds(frame) or 0.0


def _heard(path: Path, indices: list[int], otherwise: float) -> float:
    """When the first sound of some streams is heard, in seconds on the file's clock.

    It is later than the first packet, because what an encoder puts before the sound is not heard.
    """
    begins = []
    for index in indices:
        with open_video(path) as (container, _), suppress(pyav().FFmpegError, IndexError):
            begins.append(_seconds(next(container.decode(container.streams[index]), None)))
    return min((begin for begin in begins if begin is not None), default=otherwise)


def _seconds(timed) -> float | None:
    """The timestamp of PyAV's frame in seconds."""
    if timed is None or timed.pts is None or timed.time_base is None:
        return None
    return float(timed.pts * timed.time_base)


def _packets(
    path: Path, sound: Sound, made: list[_Track], first: float, lead: float
) -> Generator[tuple[float, Any], None, None]:
    """Yields packets for the output, and when each begins, in seconds after the first frame.

    first: when the clip's first frame is shown, on the file's clock. lead: see `SoundTracks`.
    """
    of = {track.index: track for track in made}
    until = math.inf if sound.duration is None else sound.duration
    zero, last = Fraction(first + sound.start), dict.fromkeys(of, -math.inf)
    with open_video(path) as (container, _):
        for item, track in _items(container, of):
            begin = float(item.pts * item.time_base - zero)
            # what comes before the beginning of the clip is its sound, too
            if (sound.start and begin < 0) or begin >= until:
                continue
            ticks = round((Fraction(lead) - zero) / item.time_base)
            item.pts += ticks
            if track.copied:
                item.dts = item.pts if item.dts is None else item.dts + ticks
                if item.dts <= last[track.index]:
                    continue
                last[track.index] = item.dts
                item.stream = track.stream
                yield begin, item
            else:
                yield from ((begin, packet) for packet in track.stream.encode(item))
    for track in made:
        if not track.copied:
            yield from ((math.inf, packet) for packet in track.stream.encode(None))


def _items(container, of: dict[int, _Track]) -> Iterator[tuple[Any, _Track]]:
    """Yields packets of the copied streams, frames of the others, up to the first damage."""
    # IndexError: PyAV's way to end a file in which another stream turned up on the way
    with suppress(pyav().FFmpegError, IndexError):
        for packet in container.demux([container.streams[index] for index in of]):
            track = of[packet.stream.index]
            items = [packet] if track.copied else packet.decode()
            # a packet of no size tells the decoder of the end
            yield from (
                (x, track) for x in items if x.pts is not None and (not track.copied or x.size)
            )
