"""Clips written frame by frame: the bytes of `write_video`, times of a variable rate, and sound."""

import logging
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media.container import facts
from anyv2v.media.sound import Sound
from anyv2v.media.video import read_video, stream_video, write_video
from anyv2v.media.writer import video_writer
from tests.clips import av, clip, encode, heard, numbers, tone, turn

# milliseconds
VARIABLE = [0, 40, 120, 150, 400, 480, 500, 1000]
# a rate that varies: 0.1 s, then 0.04 s each
UNEVEN = [0, *range(100, 1060, 40)]
RATE = 48_000


def write(path, frames, fps=25, **arguments):
    with video_writer(path, (frames.shape[2], frames.shape[1]), fps, **arguments) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def copied(source, path, **arguments):
    """The clip's own frames, times and sound, as the edited ones are written."""
    with stream_video(source) as stream:
        for _ in stream:
            pass
        times, end = stream.times, stream.end
    with (
        stream_video(source) as stream,
        video_writer(
            path, stream.size, stream.fps, times, end, sound=Sound(source, **arguments)
        ) as writer,
    ):
        for frame in stream:
            writer.write(frame)
    return path


def seconds(path):
    with av.open(str(path)) as container:
        return container.duration / 1e6


# frames


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.webp", "a%d.png"])
def test_the_bytes_are_those_of_writing_at_once(tmp_path, name):
    frames = clip(9, 51, 33)
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    whole.mkdir()
    streamed.mkdir()
    write_video(whole / name, frames, 24, comment="c")
    write(streamed / name, frames, 24, comment="c")
    # a millisecond is how exactly containers tell times
    rounded = [round(i / 24, 3) for i in range(9)]
    write(streamed / f"b{name}", frames, 24, times=rounded, end=9 / 24, comment="c")
    assert len(os.listdir(whole)) == (9 if "%" in name else 1)
    for file in whole.iterdir():
        assert (streamed / file.name).read_bytes() == file.read_bytes()
        assert (streamed / f"b{file.name}").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.gif", "a.webp"])
def test_frames_of_a_variable_rate_have_their_own_times(tmp_path, name):
    times = [t / 1000 for t in VARIABLE]
    write(tmp_path / name, clip(8), 8, times=times, end=1.25)
    with stream_video(tmp_path / name) as stream:
        assert len(list(stream)) == 8
    assert stream.times == pytest.approx(times, abs=1e-4)
    assert stream.end == pytest.approx(1.25, abs=1e-3)
    if name[2:] not in ("gif", "webp"):
        assert seconds(tmp_path / name) == pytest.approx(1.25, abs=1e-3)


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    frames = clip(3)
    for name in ("a.mp4", "a%d.png", "a.gif"):
        with pytest.raises(InputError, match="^a frame is 96x63, and the clip 96x64"):
            with video_writer(tmp_path / name, (96, 64), 8) as writer:
                writer.write(frames[0])
                writer.write(frames[1, :63])
        with (
            pytest.raises(InputError, match="uint8"),
            video_writer(tmp_path / name, (96, 64), 8) as w,
        ):
            w.write(frames[0].astype(float))
        with pytest.raises(InputError, match="of 4 frames only 3 were written"):
            write(tmp_path / name, frames, times=[0, 1, 2, 3])
        with pytest.raises(InputError, match="times for 2 frames, and more are written"):
            write(tmp_path / name, frames, times=[0, 1])
        with (
            pytest.raises(InputError, match="of 1 frames only 0"),
            video_writer(tmp_path / name, (96, 64), 8),
        ):
            pass
        for times, end in (([0, 2, 1], None), ([0, 1, 2], 2), ([1, 2, 3], None), ([], None)):
            with pytest.raises(InputError, match="^times: .*0 and increase"):
                write(tmp_path / name, frames, times=times, end=end)
        with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / name, (96, 64), 8) as writer:
            for _ in range(90):
                writer.write(frames[0])
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# sound


@pytest.fixture
def film(tmp_path):
    """25 frames in a second, and 1.03 s of sound that its encoder delays."""

    def make(name, codec="aac", begin=0.0, hz=RATE, **arguments):
        sounds = [(codec, hz, tone(1.03, hz), begin)]
        fast = {"preset": "ultrafast", "bf": "2"}
        return encode(tmp_path / name, clip(25), sounds=sounds, options=fast, **arguments)

    return make


@pytest.mark.parametrize(
    ("source", "codec", "output", "times"),
    [
        ("a.mp4", "aac", "b.mp4", None),
        ("a.mp4", "aac", "b.mp4", UNEVEN),
        ("a.mkv", "aac", "b.mov", UNEVEN),
        ("a.mkv", "pcm_s16le", "b.mp4", None),
        ("a.mkv", "libopus", "b.mkv", None),
        ("a.ts", "aac", "b.mp4", None),
        ("a.mp4", "flac", "b.mkv", None),
        ("a.mp4", "libmp3lame", "b.mp4", None),
    ],
)
def test_sound_is_copied_to_the_sample(tmp_path, film, caplog, source, codec, output, times):
    path = film(source, codec, times=times)
    copied(path, tmp_path / output)
    samples, begin = heard(path)
    found, begins = heard(tmp_path / output)
    np.testing.assert_array_equal(found, samples)
    # Matroska rounds times to milliseconds
    assert begins == pytest.approx(begin, abs=1e-3)
    assert seconds(tmp_path / output) == pytest.approx(seconds(path), abs=1 / 25)
    before, after = read_video(path), read_video(tmp_path / output)
    assert numbers(after) == numbers(before) == list(range(25))
    assert times or after.fps == before.fps
    assert not caplog.records


@pytest.mark.parametrize("begin", [-0.07, 0.11])
def test_sound_begins_where_it_began(tmp_path, film, begin):
    """Before the first frame, which is then shown later, or after it."""
    times = [70 + 40 * i for i in range(25)]
    path = film("a.mp4", begin=begin + 0.07, times=times)
    copied(path, tmp_path / "b.mp4")
    assert heard(tmp_path / "b.mp4")[1] == pytest.approx(heard(path)[1], abs=1e-4)
    np.testing.assert_array_equal(heard(tmp_path / "b.mp4")[0], heard(path)[0])
    assert seconds(tmp_path / "b.mp4") == pytest.approx(seconds(path), abs=2e-3)
    assert read_video(tmp_path / "b.mp4").fps == pytest.approx(25, rel=1e-3)


def test_a_part_is_cut_between_packets(tmp_path, film):
    """Packets of AAC hold 1024 samples, of which the first needs the packet before it."""
    path = film("a.mp4")
    with stream_video(path, start_time=0.4, frames=10) as stream:
        frames = np.stack(list(stream))
    assert (stream.start, stream.end) == (pytest.approx(0.4), pytest.approx(0.4))
    part = Sound(path, stream.start, stream.end)
    write(tmp_path / "b.mp4", frames, sound=part)
    samples, _ = heard(path)
    found, begin = heard(tmp_path / "b.mp4")
    # 0.4 s are 18.75 packets
    first = 19 * 1024
    assert begin == pytest.approx(first / RATE - 0.4, abs=1e-3)
    assert found.shape[1] == 1024 * 19
    # FFmpeg's decoder draws the noise of AAC anew
    expected = samples[:, first + 1024 : first + 1024 * 19]
    np.testing.assert_allclose(found[:, 1024:], expected, atol=1e-4)
    assert seconds(tmp_path / "b.mp4") == pytest.approx(0.4, abs=1 / 25)


@pytest.mark.parametrize(("name", "hz"), [("b.mp4", 8000), ("b.mkv", 8000), ("b.mp4", 15_000)])
def test_what_a_container_cannot_hold_becomes_aac(tmp_path, film, caplog, name, hz):
    path = film("a.mov", "pcm_mulaw", hz=hz)
    with caplog.at_level(logging.WARNING):
        copied(path, tmp_path / name)
    assert f"{name[1:]} cannot hold the sound of {path} (pcm_mulaw)" in caplog.text
    assert (".mkv holds more" in caplog.text) == name.endswith("mp4")
    found, begin = heard(tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        codec = container.streams.audio[0].codec_context
        rate = codec.sample_rate
        assert (codec.name, rate) == ("aac", 8000 if hz == 8000 else 48_000)
    truth = tone(1.03, rate)
    delay = round(begin * rate)
    assert begin == pytest.approx(0, abs=1e-3)
    # at the same place, not a packet or a delay away
    product = [np.sum(found[0, 2000 + k : 6000 + k] * truth[0, 2000:6000]) for k in range(-9, 10)]
    assert int(np.argmax(product)) - 9 == -delay
    error = found[:, 2000:6000] - truth[:, 2000:6000]
    assert np.sqrt(np.mean(error**2)) < 0.03


def test_all_languages_are_kept_and_silence_stays_silent(tmp_path):
    sounds = [("aac", RATE, tone(0.4), 0.0), ("aac", RATE, tone(0.4)[::-1] / 2, 0.0)]
    path = encode(tmp_path / "a.mkv", clip(10), sounds=sounds)
    copied(path, tmp_path / "b.mkv")
    for index in range(2):
        np.testing.assert_array_equal(heard(path, index)[0], heard(tmp_path / "b.mkv", index)[0])
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.fromarray(clip(1)[0]).save(frames / "1.png")
    for source in (encode(tmp_path / "silent.mp4", clip(3)), frames):
        copied(source, tmp_path / "c.mp4")
        assert not facts(tmp_path / "c.mp4").audio


def test_pictures_hold_no_sound(tmp_path, film, caplog):
    write(tmp_path / "b.gif", clip(3), sound=Sound(film("a.mp4")))
    assert "b.gif holds no sound; the clip's is left out" in caplog.text


def test_the_clip_comes_back_upright_whole_and_with_its_sound(tmp_path, film):
    """A phone's clip: turned by its header, of odd proportions, at 29.97 frames per second."""
    path = film("a.mp4", rate=Fraction(30_000, 1001))
    turn(path, 0, 1, -1, 0)
    copied(path, tmp_path / "b.mp4")
    before, after = read_video(path), read_video(tmp_path / "b.mp4")
    assert after.frames.shape == before.frames.shape == (25, 96, 64, 3)
    assert after.fps == before.fps == pytest.approx(30_000 / 1001)
    assert abs(after.frames.astype(int) - before.frames.astype(int)).mean() < 1.5
    with av.open(str(tmp_path / "b.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (64, 96, 0)
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)
    np.testing.assert_array_equal(heard(tmp_path / "b.mp4")[0], heard(path)[0])


def test_a_sound_that_cannot_be_read_leaves_nothing(tmp_path, film):
    path = film("a.mp4")
    with pytest.raises(InputError, match="no.mp4: no such file"):
        write(tmp_path / "b.mp4", clip(3), sound=Sound(tmp_path / "no.mp4"))
    with pytest.raises(OSError, match="full"):
        with video_writer(tmp_path / "b.mp4", (96, 64), 8, sound=Sound(path)) as writer:
            writer.write(clip(1)[0])
            raise OSError("full")
    # of one that was cut off the rest is copied
    cut = film("c.mkv")
    cut.write_bytes(cut.read_bytes()[:-9000])
    write(tmp_path / "b.mp4", clip(25), sound=Sound(cut))
    samples, found = heard(film("c2.mkv"))[0], heard(tmp_path / "b.mp4")[0]
    assert 10_000 < found.shape[1] < samples.shape[1]
    np.testing.assert_array_equal(found[:, :-1024], samples[:, : found.shape[1] - 1024])
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4", "c.mkv", "c2.mkv"]


@pytest.mark.slow
def test_writing_holds_what_the_encoder_holds(tmp_path):
    """The highest resident set of 300 frames is that of 100, which fill the encoder."""
    path = encode(tmp_path / "a.mp4", clip(2), sounds=[("aac", RATE, tone(12), 0.0)])
    program = (
        "import sys, numpy as np; from anyv2v.media.writer import video_writer\n"
        "from anyv2v.media.sound import Sound\n"
        "with video_writer(sys.argv[1], (384, 256), 25, sound=Sound(sys.argv[2])) as writer:\n"
        "    for i in range(int(sys.argv[3])):\n"
        "        writer.write(np.full((256, 384, 3), i % 256, np.uint8))\n"
        "print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')))\n"
    )

    def peak(count):
        command = [sys.executable, "-c", program, str(tmp_path / "b.mp4"), str(path), str(count)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert peak(300) - peak(100) < 15_000


def test_equal_frames_give_equal_files(tmp_path):
    """libx264's macroblock tree would make them differ, at sizes that 64 does not divide."""
    frames = np.kron(
        np.random.default_rng(0).integers(0, 256, (12, 18, 18, 3), np.uint8),
        np.ones((1, 8, 8, 1), np.uint8),
    )
    files = set()
    for _ in range(12):
        write_video(tmp_path / "clip.mp4", frames, fps=8)
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1
