"""Deinterlacing of decoded frames by FFmpeg's filter bwdif."""

from __future__ import annotations

from collections.abc import Iterator

from anyv2v.media.ffmpeg import pyav

# AV_FIELD_*: the field of a stream's frames that is shown first
FIRST_FIELD = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
# AV_CODEC_PROP_FIELDS: frames of such a codec say themselves whether they are interlaced
CODES_FIELDS = 1 << 4
# columns and lines of a frame; the filter needs three of every plane
LEAST = 12


def deinterlaced(stream, frames) -> Iterator:
    """Yields PyAV's frames of a stream, with interlaced ones deinterlaced by FFmpeg's bwdif.

    The number of frames and their timestamps stay the same, and progressive frames pass unchanged.
    Each frame states whether it is interlaced; for codecs that do not code fields, the stream's
    field order tells. Frames with a side below 12 pixels are not deinterlaced.
    """
    # PyAV tells it from version 18 on; before, only frames of codecs that code fields tell
    order = FIRST_FIELD.get(getattr(stream.codec_context, "field_order", 0))
    if stream.codec_context.codec.properties & CODES_FIELDS:
        order = None
    previous = filtered = None
    for frame in frames:
        if filtered is not None and not filtered.takes(frame):
            yield from filtered.rest()
            filtered = None
        if filtered is not None:
            yield from filtered.put(frame)
        elif (order or frame.interlaced_frame) and min(frame.width, frame.height) >= LEAST:
            filtered = _Bwdif(frame, order)
            if previous is not None and filtered.takes(previous):
                # only as context, so that the result does not depend on where reading begins
                filtered.put_before(previous)
            yield from filtered.put(frame)
        else:
            yield frame
        previous = frame
    if filtered is not None:
        yield from filtered.rest()


class _Bwdif:
    """FFmpeg's bwdif for frames of one size and format; it delays its output by one frame."""

    def __init__(self, frame, order: str | None):
        self._graph = pyav().filter.Graph()
        self._kind = _kind(frame)
        self._dropped = 0
        nodes = [self._graph.add_buffer(template=frame, time_base=frame.time_base or 1)]
        if order:
            nodes.append(self._graph.add("setfield", mode=order))
        nodes.append(self._graph.add("bwdif", mode="send_frame", deint="interlaced"))
        nodes.append(self._graph.add("buffersink"))
        self._graph.link_nodes(*nodes).configure()

    def takes(self, frame) -> bool:
        return _kind(frame) == self._kind

    def put_before(self, frame) -> None:
        self._graph.push(frame)
        self._dropped = 1

    def put(self, frame) -> Iterator:
        self._graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator:
        yield from self.put(None)

    def _ready(self) -> Iterator:
        av = pyav()
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            if self._dropped:
                self._dropped = 0
            else:
                yield frame


def _kind(frame) -> tuple:
    return frame.width, frame.height, frame.format.name, frame.time_base
