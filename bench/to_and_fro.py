"""Makes long clips in one take, as a phone would film them, of what is at hand.

    python bench/to_and_fro.py OUT.mp4                     # a rendered scene, whose edit is known
    python bench/to_and_fro.py OUT.mp4 --of CLIP.mp4       # a clip, under a slow pan and zoom

The frames of a scene or of a short clip are played to and fro, so that the take has no cut and ends
where one likes. The file is H.264 with a sound of which every moment can be told from all others
(AAC), stored lying on its side with a display matrix that turns it upright. Of a scene the true
result of an edit is written beside it, OUT-truth.mp4, and its first frame, OUT-frame.png.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from anyv2v.media.video import read_video
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import Scene, draw_edit

SAMPLES = 48_000
"""Samples of sound per second."""
SECONDS_OF_A_SCENE = 2.5
"""How long a rendered scene takes from its beginning to its end."""


def to_and_fro(count: int, length: int, step: float = 1.0) -> Iterator[float]:
    """Yields `count` places in a clip of `length` frames: 0, step, ..., length - 1, and back."""
    for index in range(count):
        place = index * step % (2 * (length - 1))
        yield min(place, 2 * (length - 1) - place)


def of_scene(scene: Scene, size: int, count: int, fps: float) -> Iterator[np.ndarray]:
    """Yields frames of a rendered scene, uint8 RGB (size, size, 3), in constant memory."""
    length = round(SECONDS_OF_A_SCENE * fps)
    # small enough to be kept: 75 frames of 512 pixels are 59 MB
    frames = render([scene], (size, size), length).frames[0].numpy()
    for place in to_and_fro(count, length):
        yield frames[round(place)]


def of_clip(path: Path, size: int, count: int, fps: float) -> Iterator[np.ndarray]:
    """Yields frames of a short clip under a pan and zoom that return after ten seconds.

    The clip is played at half a frame a frame; between two frames both are blended.
    """
    frames = read_video(path, size=(size, size)).frames
    for index, place in enumerate(to_and_fro(count, len(frames), 0.5)):
        first = int(place)
        last = min(first + 1, len(frames) - 1)
        weight = place - first
        mixed = (1 - weight) * frames[first] + weight * frames[last].astype(np.float64)
        turn = 2 * np.pi * index / (10 * fps)
        side = size / (1.2 + 0.15 * np.sin(turn))
        left, top = ((size - side) * (0.5 + 0.5 * f(turn)) for f in (np.cos, np.sin))
        box = float(left), float(top), float(left + side), float(top + side)
        image = Image.fromarray(mixed.round().astype(np.uint8))
        yield np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))


def tone(seconds: float) -> np.ndarray:
    """Two voices, float32 (2, n): one that rises, and one that fades away."""
    t = np.arange(round(seconds * SAMPLES)) / SAMPLES
    rising = np.sin(2 * np.pi * (200 + 20 * t) * t)
    return np.stack([0.3 * rising, 0.3 * np.sin(2 * np.pi * 440 * t) * np.exp(-t / 4)], dtype="f4")


def film(path: Path, frames: Iterator[np.ndarray], size: int, fps: int, seconds: float) -> None:
    """Writes upright frames as a clip that lies on its side, with a display matrix and a sound."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "14"})
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLES, layout="stereo")
        for frame in frames:
            lying = np.ascontiguousarray(np.rot90(frame))
            container.mux(video.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(tone(seconds), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLES, 0, Fraction(1, SAMPLES)
        container.mux([*audio.encode(sound), *audio.encode()])
    _turn(path)


def _turn(path: Path) -> None:
    """Writes a quarter turn clockwise into the first track header (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at, one = data.index(b"tkhd") + 4 + 40, 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--of", type=Path, help="a clip to be played; default: a rendered scene")
    parser.add_argument("--kind", default="colour", help="of the scene's edit")
    parser.add_argument("--scene", type=int, default=6_000_000, help="number of the held-out scene")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args(arguments)
    count, out = round(given.seconds * given.fps), given.output

    def write(path: Path, drawn: Callable[..., Iterator[np.ndarray]], source) -> None:
        frames = drawn(source, given.size, count, given.fps)
        film(path, frames, given.size, given.fps, given.seconds)

    if given.of is not None:
        write(out, of_clip, given.of)
        return
    edit = draw_edit(given.kind, "held-out", given.scene)
    write(out, of_scene, edit.source)
    write(out.with_name(f"{out.stem}-truth{out.suffix}"), of_scene, edit.truth)
    first = next(of_scene(edit.truth, given.size, 1, given.fps))
    Image.fromarray(first).save(out.with_name(f"{out.stem}-frame.png"))
    print(edit.truth.caption)


if __name__ == "__main__":
    main()
