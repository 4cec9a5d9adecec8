"""When the frames of a video are shown, and which of them a sampling rate takes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

from anyv2v import checks
from anyv2v.errors import InputError

# frames per second
RATES = 0.01, 1000

# seconds; timestamps in some containers are rounded to milliseconds
ROUNDING = 1e-3

# seconds; a frame that is shown for longer is a damaged timestamp, not a film
LONGEST = 3600.0
# the same in MPEG streams, whose timestamps are at most 0.7 s apart (ISO/IEC 13818-1, 2.7.4)
LONGEST_MPEG = 10.0
MPEG = {"mpeg", "mpegts", "mpegtsraw"}
# formats whose header tells how long they are; of others FFmpeg infers it from the timestamps
TELL_LENGTH = {"asf", "matroska", "mov"}
# seconds by which a clip may be longer than its header says
OVERTIME = 1.0


def checked_rate(fps: object) -> float:
    """Returns `fps` as a float; raises InputError if it is no number of frames per second."""
    least, most = RATES
    if not least <= (rate := checks.positive("fps", fps)) <= most:
        raise InputError(f"fps: {fps} is not between {least} and {most}")
    return rate


def limits(formats: set[str], duration: int | None) -> tuple[float, float]:
    """Returns the arguments `longest` and `until` of `timed`, in seconds, for a container.

    formats: FFmpeg's names of its format. duration: its length in microseconds, or None. `until` is
    infinite unless the format is one whose header tells the length.
    """
    if formats & MPEG:
        return LONGEST_MPEG, math.inf
    return LONGEST, duration / 1e6 if duration and formats & TELL_LENGTH else math.inf


def timed(
    frames: Iterable,
    fps: float,
    longest: float = LONGEST,
    until: float = math.inf,
    first: float | None = None,
) -> Iterator[tuple]:
    """Yields (begin, end, frame) for PyAV's frames, in seconds after the clip's first frame.

    fps: the clip's average rate, used for frames without a timestamp, as in a bare stream without a
    container. longest: most seconds from one frame to the next. until: the clip's length in
    seconds. first: the timestamp of the clip's first frame in seconds; None takes the first one of
    `frames`.

    A timestamp counts as damaged if it is before the previous one, jumps ahead and the next one
    comes back, or exceeds `longest` or `until`. Its frame is then shown 1 / fps after the previous
    one. If the next timestamp does not come back, the clock has been reset, and all later
    timestamps are shifted likewise.
    """
    begin, shift = None, 0.0
    none = math.inf, 0.0, None

    def may_follow(time: float, begin: float) -> bool:
        gap = time - begin
        return -ROUNDING < gap <= longest and (time <= until + OVERTIME or gap <= OVERTIME)

    for (time, lasts, frame), (following, _, _) in pairwise(chain(_stamped(frames, fps), [none])):
        regular = 0.0 if begin is None else begin + 1 / fps
        if first is None and time is not None:
            first = time - regular
        own = regular if time is None or first is None else time - first - shift
        following = math.inf if following is None or first is None else following - first - shift
        if begin is None or (may_follow(own, begin) and not begin < following < own - ROUNDING):
            begin = own
        elif may_follow(following, begin):
            begin = min(regular, following)
        else:
            begin = regular
            shift += own - begin
        if begin + lasts > until + OVERTIME:
            lasts = min(lasts, max(until - begin, 1 / fps))
        yield begin, begin + min(lasts, longest), frame


def noted(frames: Iterable[tuple], spans: list[tuple[float, float]]) -> Iterator[tuple]:
    """Yields the (begin, end, frame) of `frames` unchanged, and appends (begin, end) to `spans`."""
    for begin, end, frame in frames:
        spans.append((begin, end))
        yield begin, end, frame


def increasing(times: Iterable[float], end: float) -> tuple[list[float], float]:
    """Returns times and the end after them such that each is at least 1 ms after the previous one.

    Damaged files show two frames at once, which no file can be written with.
    """
    moved: list[float] = []
    for time in (*times, end):
        # what is nearly 1 ms apart keeps its time, which is rounded
        late = bool(moved) and time - moved[-1] < ROUNDING / 2
        moved.append(moved[-1] + ROUNDING if late else time)
    return moved[:-1], moved[-1]


def shown_from(
    frames: Iterable[tuple], start: float, rounding: float = ROUNDING
) -> Iterator[tuple]:
    """Yields every one of (begin, end, frame) that begins at `start` seconds or later.

    rounding: seconds by which a frame may begin earlier, because timestamps are rounded.
    """
    for begin, end, frame in frames:
        if begin > start - rounding:
            yield begin, end, frame


def sampled(
    frames: Iterable[tuple], start: float, fps: float, rounding: float = ROUNDING
) -> Iterator[tuple]:
    """Yields the frame that is shown at `start`, start + 1 / fps, ..., until the last frame ends.

    frames: (begin, end, frame), in seconds; a frame may be yielded several times or never. What is
    yielded is (begin, end, frame) as well, where begin is start + k / fps and end the next begin.
    rounding: seconds by which a frame may begin later, because timestamps are rounded.
    """
    count, last_end, shown = 0, 0.0, None
    for begin, end, frame in frames:
        while shown is not None and start + count / fps < begin - rounding:
            yield start + count / fps, start + (count + 1) / fps, shown
            count += 1
        shown, last_end = frame, end
    while shown is not None and start + count / fps < last_end - rounding:
        yield start + count / fps, start + (count + 1) / fps, shown
        count += 1


def too_few(
    path: str | os.PathLike,
    count: int,
    needed: int,
    fps: float | None,
    own_fps: float,
    start: float,
    spans: list[tuple[float, float]],
    resampled: bool = True,
    rounding: float = ROUNDING,
) -> InputError:
    """Returns the InputError for a clip with too few frames, which says what would work instead.

    count: the frames found. needed: the frames asked for. fps: the sampling rate asked for; None
    takes every frame. own_fps: the clip's average rate. start: where reading began, in seconds.
    spans: begin and end of each of the clip's frames, in seconds. resampled: whether another `fps`
    would select other frames, which it does not for pictures without times. rounding: error of the
    timestamps in seconds.
    """
    if not spans:
        return InputError(f"{path} has no frame that can be decoded")
    if not count:
        end = spans[-1][1]
        return InputError(
            f"start_time {start:g} s is past the end of {path}, which is at {end:g} s"
        )
    ways = [f"{count} frame{'s' * (count > 1)} (--frames)"]
    if resampled and (rate := rate_for(needed, start, fps, spans, rounding)) is not None:
        ways.append(f"{rate} fps (--sample-fps)")
    earlier = start_for(needed, fps if resampled else None, spans, rounding)
    if earlier is not None:
        ways.append(f"a start at {earlier} s (--start-time)")
    return InputError(
        f"{path} has {count} frame{'s' * (count > 1)} at {fps or own_fps:g} fps from {start:g} s "
        f"on, fewer than the {needed} asked for; {', or '.join(ways)} would do"
    )


def rate_for(
    count: int,
    start: float,
    fps: float | None,
    spans: list[tuple[float, float]],
    rounding: float = ROUNDING,
) -> float | None:
    """Returns a sampling rate above `fps` at which a clip has `count` frames from `start` on.

    start: in seconds. spans: begin and end of each frame of the clip, to the last, in seconds.
    rounding: error of the timestamps in seconds. Returns None if there is no such rate up to 1000.
    """
    length = spans[-1][1] - rounding - start
    if length <= 0:
        return None
    # the last frame taken has to lie before the end
    rate = round(math.ceil(100 * (count - 1) / length) / 100 + 0.01, 2)
    return rate if (fps or 0) < rate <= RATES[1] else None


def start_for(
    count: int, fps: float | None, spans: list[tuple[float, float]], rounding: float = ROUNDING
) -> float | None:
    """Returns the latest start from which a clip has `count` frames, in seconds; None if none has.

    The result is a whole number of milliseconds. fps: the sampling rate; None takes every frame.
    spans: begin and end of each frame of the clip, in seconds. rounding: error of the timestamps in
    seconds.
    """
    if fps is not None:
        latest = spans[-1][1] - rounding - ROUNDING - (count - 1) / fps
    else:
        latest = spans[-count][0] if count <= len(spans) else -1.0
    return math.floor(1000 * latest) / 1000 if latest >= 0 else None


def _stamped(frames: Iterable, fps: float) -> Iterator[tuple]:
    """Yields (timestamp or None, duration, frame), in seconds; without a duration it is 1 / fps."""
    for frame in frames:
        tick = frame.time_base
        time = float(frame.pts * tick) if tick and frame.pts is not None else None
        yield time, float(frame.duration * tick) if tick and frame.duration else 1 / fps, frame
