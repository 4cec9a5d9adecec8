"""Joining the latents or frames of windows to those of the whole clip, as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from anyv2v.long.windows import Window, predictions


def merged(windows: Sequence[Window], load: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Yields the clean latents, or the pixels, of each frame of a clip, (1, c, 1, ...) float32.

    windows: as `plan_windows` returns them. load: index of a window -> its values, (1, c, f, ...)
    with those of each frame; f is the number of its frames. A frame that several windows predict is
    the mean of theirs, a cross-fade in equal parts. Each window is loaded once, when its first
    frame is due, and kept until its last frame is past: two or three windows at a time.
    """
    found = predictions(windows)
    last = {i: frame for frame, pairs in enumerate(found) for i, _ in pairs}
    loaded: dict[int, Tensor] = {}
    for frame, pairs in enumerate(found):
        parts = []
        for i, position in pairs:
            if i not in loaded:
                loaded[i] = load(i)
            parts.append(loaded[i][:, :, position : position + 1].float())
        # a copy, so that what is kept of a frame does not keep its window
        yield sum(parts[1:], parts[0].clone()) / len(parts)
        for i, _ in pairs:
            if last[i] == frame:
                del loaded[i]
