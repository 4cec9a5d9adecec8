"""Small videos that say which frame is which, written by PyAV alone."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from anyv2v.media.frames import Video

av = pytest.importorskip("av")


def clip(count: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Frame i is grey of level 16 + 6 i, with a red corner at the top left and a ramp below."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (16 + 6 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : height // 4, : width // 4] = (255, 0, 0)
    frames[:, -height // 4 :] = np.linspace(0, 255, width).astype(np.uint8)[:, None]
    return frames


def numbers(video: Video) -> list[int]:
    """What `clip` wrote: which frames these are."""
    h, w = video.frames.shape[1:3]
    middle = video.frames[:, h * 3 // 8 : h * 5 // 8, w * 3 // 8 : w * 5 // 8]
    return ((middle.astype(float).mean(axis=(1, 2, 3)) - 16) / 6).round().astype(int).tolist()


def encode(
    path,
    frames,
    rate=25,
    codec="libx264",
    pix_fmt="yuv420p",
    times=None,
    options=None,
    sounds=(),
    **context,
):
    """A file as any other program would write it; `times` in milliseconds, options of the codec.

    sounds: (codec, samples per second, samples (2, n) in -1..1, beginning in seconds) of each.
    """
    tick = Fraction(1, 1000) if times else 1 / Fraction(rate)
    movflags = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=movflags) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = tick
        stream.bit_rate = 4_000_000
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        audio = [container.add_stream(name, rate=hz, layout="stereo") for name, hz, _, _ in sounds]
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else index), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for track, (_, hz, samples, begin) in zip(audio, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(
                samples.astype(np.float32), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = hz, round(begin * hz), Fraction(1, hz)
            container.mux([*track.encode(frame), *track.encode(None)])
    return path


def tone(seconds, hz=48_000):
    """Two voices (2, n), of which every moment can be told from all others."""
    t = np.arange(round(seconds * hz)) / hz
    left = 0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t)
    return np.stack([left, 0.3 * np.sin(2 * np.pi * 440 * t) * np.exp(-t)])


def heard(path, index=0):
    """Samples (2, n) of an audio stream and when they begin, in seconds after the first frame."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=index))
    arrays = [f.to_ndarray() for f in frames]
    if not frames[0].format.is_planar:
        arrays = [a.reshape(-1, 2).T for a in arrays]
    begin = frames[0].pts * frames[0].time_base - first.pts * first.time_base
    return np.concatenate(arrays, axis=1), float(begin)


def turn(path, a, b, c, d):
    """Puts another matrix into the first track header of an MP4 or MOV (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def levels(r, g, b, kr, kb, full):
    """Y, Cb, Cr of an RGB color, from the definition in BT.601 and BT.709."""
    r, g, b = r / 255, g / 255, b / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    if full:
        return 255 * y, 128 + 255 * cb, 128 + 255 * cr
    return 16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr
