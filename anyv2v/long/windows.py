"""The windows into which a long clip is divided, each an ordinary clip for the model.

A window is a keyframe, its anchor, followed by consecutive frames of the clip. Frame 0 is always a
keyframe. Every window is inverted by itself, with the source's keyframe as its first frame, and is
edited by itself, with the edited keyframe as its first frame. So nothing is handed on from window
to window, and nothing drifts. Consecutive windows share some frames, which are cross-faded, see
`anyv2v.long.merging`.

For windows of 8 frames that share 2, a clip of 20 frames is divided like this:

[0, 1 2 3 4 5 6 7]   [0, 6 7 8 9 10 11 12]   [0, 11 12 13 14 15 16 17]   [0, 13 14 15 16 17 18 19]

The last window is moved back to end with the clip, so that every window has the length that the
model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError

SHARED = 1 / 4
"""The share of a window's frames that consecutive windows have in common, by default."""


@dataclass(frozen=True)
class Window:
    """A keyframe and consecutive frames of a clip; all numbers are frame numbers of the clip."""

    anchor: int
    """The keyframe with which the window begins."""
    start: int
    """The first of the consecutive frames."""
    stop: int
    """The frame after the last one."""
    unused: tuple[int, int] = (0, 0)
    """The numbers of consecutive frames at the beginning and at the end that do not count in the
    result, because they belong to another keyframe or to another window of the same one."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The frame numbers of the window in order, the anchor first."""
        return (self.anchor, *range(self.start, self.stop))

    @property
    def used(self) -> range:
        """The consecutive frames whose predictions count in the result."""
        return range(self.start + self.unused[0], self.stop - self.unused[1])

    def __len__(self) -> int:
        return 1 + self.stop - self.start


def default_shared(window: int, group: int = 1) -> int:
    """Returns how many frames consecutive windows of `window` frames share: about a quarter.

    group: what the number is a multiple of.
    """
    return group * round(window * SHARED / group)


def plan_windows(
    frames: int,
    window: int,
    shared: int | None = None,
    keyframes: Iterable[int] = (0,),
    group: int = 1,
) -> list[Window]:
    """Divides a clip into windows; returns them in the order of their first consecutive frames.

    frames: number of frames of the clip. window: number of frames of a window, the anchor included;
    0 for one window with the whole clip. shared: number of frames that consecutive windows have in
    common; None: a quarter of `window`. keyframes: frame numbers of the keyframes, to which 0 is
    added. A clip of at most `window` frames without other keyframes is one window: the clip itself.
    group: the number of frames is 1 more than a multiple of it in every window, see
    `LatentCodec.frames_per_latent`. A short clip in which it is not has two shorter windows.

    Each frame belongs to the nearest keyframe (of two, to the earlier), and is predicted by windows
    with that anchor. In the middle between two keyframes, `shared` frames are predicted by windows
    of both. Raises InputError for numbers that are impossible.
    """
    frames, window = checks.count("frames", frames), checks.whole("window", window, 0)
    if window == 1:
        raise InputError("window: 1 is the keyframe alone; give 2 or more, or 0 for the whole clip")
    window = checks.grouped("window" if window else "frames", window or max(frames, 2), group)
    shared = default_shared(window, group) if shared is None else shared
    shared = checks.whole("shared", shared, 0, window - 2)
    keys = check_keyframes(keyframes, frames)
    size = min(window, frames) - 1
    size = size - size % group or checks.grouped("frames", frames, group) - 1
    windows: list[Window] = []
    for i, key in enumerate(keys):
        first = 0 if i == 0 else _first_of(keys[i - 1], key) - shared // 2
        stop = frames if key == keys[-1] else _first_of(key, keys[i + 1]) + shared - shared // 2
        # a keyframe itself is predicted by its own windows alone
        first = first if i == 0 else max(first, keys[i - 1] + 1)
        stop = stop if key == keys[-1] else min(stop, keys[i + 1])
        own = _before(key, first, size, shared, frames) + _after(key, stop, size, shared, frames)
        # between two keyframes that are neighbors, a keyframe has only itself to predict
        windows += own or [_alone(key, size, frames)]
    return sorted(windows, key=lambda x: (x.start, x.anchor))


def check_keyframes(keyframes: Iterable[int], frames: int) -> list[int]:
    """Returns the keyframes of a clip with so many `frames` in order, with frame 0 among them.

    Raises InputError for a number that is no frame of the clip.
    """
    return sorted({0, *(checks.whole("keyframe", key, 0, frames - 1) for key in keyframes)})


def nearest_keyframes(frames: int, keyframes: Iterable[int] = (0,)) -> tuple[int, ...]:
    """Returns the keyframe to which each frame of a clip belongs; of two, it is the earlier.

    frames: number of frames of the clip. keyframes: their frame numbers, to which 0 is added.
    """
    keys = check_keyframes(keyframes, frames)
    return tuple(min(keys, key=lambda key: (abs(frame - key), key)) for frame in range(frames))


def around(window: Window, keyframes: Iterable[int]) -> list[int]:
    """Returns the keyframes between which the frames of a window lie that count: one or two.

    keyframes: frame numbers of all keyframes of the clip, 0 among them.
    """
    keys, frames = sorted(keyframes), window.used or range(window.anchor, window.anchor + 1)
    before = [key for key in keys if key <= frames[0]][-1:]
    after = [key for key in keys if key >= frames[-1]][:1]
    return sorted({*before, *after})


def _first_of(before: int, key: int) -> int:
    """The first frame that is nearer to `key` than to the keyframe `before` it."""
    return (before + key) // 2 + 1


def _after(key: int, stop: int, size: int, shared: int, frames: int) -> list[Window]:
    """Windows of the keyframe `key` that predict the frames after it, up to `stop`."""
    windows = []
    for start in _starts(key + 1, stop, size, shared, frames):
        unused = max(key + 1 - start, 0), max(start + size - stop, 0)
        windows.append(Window(key, start, start + size, unused))
    return windows


def _before(key: int, first: int, size: int, shared: int, frames: int) -> list[Window]:
    """Windows of the keyframe `key` that predict the frames from `first` on, up to it."""
    windows = []
    # the same as for the frames after it, in a clip that is played backward
    for back in _starts(frames - key, frames - first, size, shared, frames):
        start = frames - back - size
        unused = max(first - start, 0), max(start + size - key, 0)
        windows.append(Window(key, start, start + size, unused))
    return windows


def _alone(key: int, size: int, frames: int) -> Window:
    """A window of the keyframe `key` in which no other frame counts."""
    start = min(key + 1, frames - size)
    return Window(key, start, start + size, (size, 0))


def _starts(start: int, stop: int, size: int, shared: int, frames: int) -> list[int]:
    """Where runs of `size` frames begin that cover the frames from `start` to before `stop`."""
    if start >= stop:
        return []
    starts = [start]
    while starts[-1] + size < stop:
        # a window of a short clip may be no longer than what longer ones share
        starts.append(starts[-1] + (size - shared if size > shared else size))
    # windows may go beyond the frames to be covered, but not beyond the clip
    starts[-1] = min(starts[-1], frames - size)
    return starts


def predictions(windows: Sequence[Window]) -> list[list[tuple[int, int]]]:
    """Returns, for each frame of the clip, which frames of which windows are predictions of it.

    They are pairs (index of a window, position in the window). A keyframe is predicted as the
    anchor of the window whose other frames follow it most closely, and by no other window. Every
    other frame is predicted by all windows in which it counts.
    """
    frames = max(max(window.indices) for window in windows) + 1
    found: list[list[tuple[int, int]]] = [[] for _ in range(frames)]
    keys = {window.anchor for window in windows}
    for i, window in enumerate(windows):
        for frame in window.used:
            if frame not in keys:
                found[frame].append((i, 1 + frame - window.start))
    for key in keys:
        own = [i for i, window in enumerate(windows) if window.anchor == key]
        found[key] = [(min(own, key=lambda i: abs(windows[i].start - key - 1)), 0)]
    return found
