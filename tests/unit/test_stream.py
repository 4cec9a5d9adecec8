"""Clips as streams: the frames of `read_video` one by one, with the times of each."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media.video import read_video, stream_video
from tests.clips import clip, encode

VARIABLE = [0, 40, 120, 130, 400, 480, 500, 1000]


def folder(tmp_path, count=5):
    path = tmp_path / "frames"
    path.mkdir()
    for index, frame in enumerate(clip(count)):
        Image.fromarray(frame).save(path / f"{index}.png")
    return path


def gif(tmp_path):
    first, *rest = map(Image.fromarray, clip(4))
    path = tmp_path / "a.gif"
    first.save(path, save_all=True, append_images=rest, duration=[100, 50, 200, 150], loop=0)
    return path


def film(tmp_path):
    return encode(tmp_path / "a.mkv", clip(8), times=VARIABLE)


ARGUMENTS = [
    {},
    {"frames": 3},
    {"fps": 7.0, "start_time": 0.1},
    {"fps": 100, "frames": 12},
    {"size": (32, 48), "fit": "pad", "start_time": 0.11},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("make", [folder, gif, film])
def test_a_stream_gives_the_frames_that_reading_gives(tmp_path, make, arguments):
    path = make(tmp_path)
    if make is folder:
        # every file is one frame
        arguments = {k: v for k, v in arguments.items() if k not in ("fps", "frames")}
    whole = read_video(path, **arguments)
    with stream_video(path, **arguments) as stream:
        size = stream.size
        frames = list(stream)
    np.testing.assert_array_equal(frames, whole.frames)
    assert stream.fps == whole.fps
    assert size == (whole.frames.shape[2], whole.frames.shape[1])
    assert len(stream.times) == len(frames)


def test_frames_have_their_own_times(tmp_path):
    with stream_video(film(tmp_path), start_time=0.1) as stream:
        assert stream.start == pytest.approx(0.12)
        for _ in stream:
            pass
    assert stream.times == pytest.approx([(t - 120) / 1000 for t in VARIABLE[2:]])
    # Matroska gives the last frame the duration of the average rate
    assert stream.times[-1] < stream.end < 0.88 + 0.5
    with stream_video(gif(tmp_path)) as stream:
        assert len(list(stream)) == 4
    assert (stream.times, stream.end) == (pytest.approx([0, 0.1, 0.15, 0.35]), pytest.approx(0.5))
    assert stream.fps == pytest.approx(8)


def test_resampled_frames_have_the_times_of_the_rate(tmp_path):
    with stream_video(film(tmp_path), fps=10, start_time=0.2, frames=4) as stream:
        assert len(list(stream)) == 4
    assert stream.start == 0.2
    assert stream.times == pytest.approx([0, 0.1, 0.2, 0.3])
    assert stream.end == pytest.approx(0.4)


def test_a_stream_refuses_what_reading_refuses(tmp_path):
    path = film(tmp_path)
    (tmp_path / "no.mp4").write_bytes(b"hello")
    wrong = [
        (tmp_path / "no.mp4", {}),
        (tmp_path / "missing.mp4", {}),
        (tmp_path, {}),
        (path, {"start_time": 60}),
        (path, {"fps": 0}),
        (path, {"frames": True}),
        (path, {"fit": "fill"}),
    ]
    for clip_path, arguments in wrong:
        with pytest.raises(InputError) as read:
            read_video(clip_path, **arguments)
        with pytest.raises(InputError) as streamed:
            stream_video(clip_path, **arguments)
        assert str(streamed.value) == str(read.value)
    # what is too short is known at its end
    with pytest.raises(InputError) as read:
        read_video(path, frames=99)
    with stream_video(path, frames=99) as stream, pytest.raises(InputError) as streamed:
        list(stream)
    assert len(stream.times) == 8
    assert str(streamed.value) == str(read.value)


def test_an_error_of_the_caller_stays_the_caller_s(tmp_path):
    """And is not told as one of the clip."""
    with pytest.raises(OSError, match="no space"), stream_video(film(tmp_path)) as stream:
        next(stream)
        raise OSError("no space")
    assert list(stream) == []


@pytest.mark.slow
def test_a_stream_holds_one_frame(tmp_path):
    """The highest resident set of 330 frames is that of 30; in memory 300 more take 88 MB."""
    frames = clip(33, 384, 256).repeat(10, axis=0)
    path = encode(tmp_path / "a.mp4", frames, options={"preset": "ultrafast"})
    program = (
        "import sys; from anyv2v.media.video import stream_video\n"
        "with stream_video(sys.argv[1], frames=int(sys.argv[2])) as stream:\n"
        "    assert sum(frame.shape == (256, 384, 3) for frame in stream) == int(sys.argv[2])\n"
        "print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')))\n"
    )

    def peak(count):
        command = [sys.executable, "-c", program, str(path), str(count)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert peak(330) - peak(30) < 15_000
