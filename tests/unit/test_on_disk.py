"""Frames in a file: any of them at once, written whole, and again only where the clip changed."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import on_disk
from anyv2v.media.on_disk import FramesOnDisk
from anyv2v.media.video import read_video, stream_video
from tests.clips import clip, encode


@pytest.fixture
def film(tmp_path):
    return encode(tmp_path / "a.mp4", clip(8, 50, 34), times=[0, 40, 120, 130, 400, 480, 500, 900])


def test_any_frames_are_read(tmp_path, film):
    kept = FramesOnDisk.read(tmp_path / "frames", film, size=(32, 24), fit="pad", start_time=0.1)
    whole = read_video(film, size=(32, 24), fit="pad", start_time=0.1)
    assert (len(kept), kept.size, kept.fps) == (6, (32, 24), whole.fps)
    for indices in ([0], [5, 0, 0, 3], range(6), [], np.arange(2)):
        np.testing.assert_array_equal(kept.frames_at(indices), whole.frames[list(indices)])
    assert kept.frames_at([]).shape == (0, 24, 32, 3)
    with stream_video(film, start_time=0.1) as stream:
        count = len(list(stream))
    assert (count, kept.start, kept.end) == (6, stream.start, stream.end)
    assert kept.times == tuple(stream.times)
    assert kept.sha256 == hashlib.sha256(whole.frames.tobytes()).hexdigest()
    assert FramesOnDisk.opened(tmp_path / "frames") == kept
    for index in (6, -1, 1.0):
        with pytest.raises(InputError, match=f"^index: {index} is not a whole number from 0 to 5"):
            kept.frames_at([0, index])


def test_a_clip_is_read_again_only_if_it_changed(tmp_path, film, monkeypatch):
    read = []
    whole = on_disk.stream_video
    monkeypatch.setattr(on_disk, "stream_video", lambda *a: read.append(a) or whole(*a))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    file = tmp_path / "frames"

    def reads(path, **arguments):
        read.clear()
        frames = FramesOnDisk.read(file, path, **arguments)
        assert frames == FramesOnDisk.opened(file)
        return len(read)

    assert reads(film, fps=8, size=(16, 16)) == 1
    assert reads(str(film), fps=8.0, size=[np.int64(16), 16]) == 0
    assert reads(film, fps=8) == 1
    assert reads(film, fps=8, frames=2) == 1
    assert reads(film, fps=8, frames=2) == 0
    os.utime(film, ns=(0, 0))
    assert reads(film, fps=8, frames=2) == 1
    assert reads(folder) == 1
    assert reads(folder) == 0
    Image.new("RGB", (4, 4), "red").save(folder / "2.png")
    assert reads(folder) == 1
    assert FramesOnDisk.opened(file).frames_at([1])[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("damage", ["cut", "longer", "other", "empty", "missing"])
def test_a_file_that_is_not_whole_is_written_anew(tmp_path, film, damage):
    file = tmp_path / "frames"
    kept = FramesOnDisk.read(file, film)
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        damaged = {"cut": data[:-9], "longer": b"\0" + data, "other": b"x" * 99, "empty": b""}
        file.write_bytes(damaged[damage])
    assert FramesOnDisk.opened(file) is None
    assert FramesOnDisk.read(file, film) == kept
    assert file.read_bytes() == data


def test_a_file_with_a_damaged_pixel_is_written_anew(tmp_path, film):
    file = tmp_path / "frames"
    kept = FramesOnDisk.read(file, film)
    data = file.read_bytes()
    file.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    assert not kept.is_intact()
    assert FramesOnDisk.read(file, film).is_intact()
    assert file.read_bytes() == data


def test_what_is_not_read_whole_leaves_nothing(tmp_path, film):
    file = tmp_path / "frames"
    with pytest.raises(InputError, match="fewer than the 9 asked for"):
        FramesOnDisk.read(file, film, frames=9)
    with pytest.raises(InputError, match="^cannot write .*no/frames: No such file"):
        FramesOnDisk.read(tmp_path / "no" / "frames", film)
    with pytest.raises(InputError, match="no.mp4: no such file"):
        FramesOnDisk.read(file, tmp_path / "no.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
    kept = FramesOnDisk.read(file, film)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="frames cannot be read any more: it was cut off"):
        kept.frames_at([0])


@pytest.mark.slow
def test_frames_that_were_read_are_not_this_process_s_memory(tmp_path):
    """400 frames of 147 kB, read two by two; all of them are 59 MB."""
    path = encode(
        tmp_path / "a.mp4", clip(40, 256, 192).repeat(10, axis=0), options={"preset": "ultrafast"}
    )
    program = (
        "import sys; from anyv2v.media.on_disk import FramesOnDisk\n"
        "frames = FramesOnDisk.read(*sys.argv[1:3], frames=int(sys.argv[3]))\n"
        "for i in range(len(frames) - 1): frames.frames_at([i, i + 1])\n"
        "print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')))\n"
    )

    def peak(count):
        command = [sys.executable, "-c", program, str(tmp_path / "frames"), str(path), str(count)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert peak(400) - peak(100) < 10_000
