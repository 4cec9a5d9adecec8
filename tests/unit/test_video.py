import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from anyv2v.errors import InputError
from anyv2v.media import video as module
from anyv2v.media.video import Video, read_video, write_video
from tests.clips import clip, encode, levels, numbers, turn

av = pytest.importorskip("av")


# containers and codecs


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mkv", "libx264", "yuv444p"),
        ("avi", "mpeg4", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "png", "rgba"),
        ("mkv", "ffv1", "gray"),
        ("h264", "libx264", "yuv420p"),
    ],
)
def test_codecs(tmp_path, suffix, codec, pix_fmt):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    frames = clip(12)
    video = read_video(encode(tmp_path / f"a.{suffix}", frames, 25, codec, pix_fmt))
    assert video.frames.shape == frames.shape and video.frames.dtype == np.uint8
    assert video.fps == 25 and numbers(video) == list(range(12))
    if pix_fmt != "gray":
        corner = video.frames[:, 4:12, 4:16].astype(float).mean(axis=(0, 1, 2))
        assert np.abs(corner - (255, 0, 0)).max() < 4


def test_odd_size(tmp_path):
    frames = clip(6, 97, 63)
    path = encode(tmp_path / "a.mp4", frames, pix_fmt="yuv444p")
    assert read_video(path).frames.shape == (6, 63, 97, 3)
    video = read_video(path, size=(40, 24))
    assert video.frames.shape == (6, 24, 40, 3) and numbers(video) == list(range(6))


@pytest.mark.parametrize(
    ("matrix", "moved"),
    [
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
        ((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
        ((1, 0, 0, -1), lambda f: f[:, ::-1]),
        ((0, 1, 1, 0), lambda f: f.transpose(0, 2, 1, 3)),
    ],
)
def test_display_matrix(tmp_path, matrix, moved):
    path = encode(tmp_path / "a.mov", clip(2))
    plain = read_video(path).frames
    turned = read_video(turn(path, *matrix)).frames
    np.testing.assert_array_equal(turned, moved(plain))


def test_pixels_that_are_not_square(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(2), sample_aspect_ratio=Fraction(4, 3))
    assert read_video(path).frames.shape == (2, 64, 128, 3)


def test_tags_in_another_encoding(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(3))
    data = path.read_bytes()
    assert b"VideoHandler" in data
    path.write_bytes(data.replace(b"VideoHandler", "Vidéo-Manag.".encode("latin-1")))
    assert len(read_video(path).frames) == 3


def test_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("12:30.mp4", clip(3), 8)
    assert len(read_video("12:30.mp4").frames) == 3


# colours


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90), (12, 240, 130), (255, 255, 255)]
COLOURS += [(0, 0, 0), (128, 128, 128), (250, 250, 10)]
SOLID = np.array(COLOURS, np.uint8)[:, None, None, :].repeat(64, axis=1).repeat(64, axis=2)
BT601, BT709 = (5, 0.299, 0.114), (1, 0.2126, 0.0722)


@pytest.mark.parametrize(("tag", "kr", "kb"), [BT601, BT709])
@pytest.mark.parametrize("full", [False, True])
def test_reading_honours_matrix_and_range(tmp_path, tag, kr, kb, full):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 1 + full
        for index, colour in enumerate(COLOURS):
            planes = np.array(levels(*colour, kr, kb, full)).round().clip(0, 255).astype(np.uint8)
            planes = np.repeat(planes, [64 * 64, 32 * 32, 32 * 32]).reshape(96, 64)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.colorspace, frame.color_range = index, tag, 1 + full
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ours = read_video(tmp_path / "a.mkv").frames.astype(int)
    assert np.abs(ours - SOLID).max() <= 1


@pytest.mark.parametrize(("height", "kr", "kb"), [(64, *BT601[1:]), (720, *BT709[1:])])
def test_matrix_when_the_file_does_not_say(tmp_path, height, kr, kb):
    planes = np.array(levels(12, 240, 130, kr, kb, False)).round().astype(np.uint8)
    planes = planes[:, None, None].repeat(height, axis=1).repeat(64, axis=2)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        container.mux(stream.encode())
    ours = read_video(tmp_path / "a.mkv").frames.astype(int)
    assert np.abs(ours - (12, 240, 130)).max() <= 2


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_written_colours_are_tagged_and_come_back(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_video(path, SOLID, 8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tuple(map(int, tags)) == (1, 1, 1, 1)
        for frame, colour in zip(container.decode(stream), COLOURS, strict=True):
            planes = np.split(frame.to_ndarray().reshape(-1), [64 * 64, 64 * 64 * 5 // 4])
            truth = levels(*colour, *BT709[1:], False)
            assert np.abs(np.subtract([plane.mean() for plane in planes], truth)).max() < 1.5, (
                colour
            )
    error = read_video(path).frames.astype(float) - SOLID
    assert np.abs(error.mean(axis=(1, 2))).max() <= 2


# time


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_25_fps_sampled_at_8(tmp_path, suffix):
    path = encode(tmp_path / f"a.{suffix}", clip(25))
    video = read_video(path, fps=8)
    # 0, 125, 250, ... ms; a frame lasts 40 ms
    assert video.fps == 8 and numbers(video) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert numbers(read_video(path, fps=8, frames=3, start_time=0.1)) == [2, 5, 8]
    # frame 5 begins at 200 ms
    assert numbers(read_video(path, start_time=0.2)) == list(range(5, 25))
    assert numbers(read_video(path, start_time=0.19, frames=2)) == [5, 6]


def test_sampling_above_the_clip_s_rate_repeats(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(4), 10)
    assert numbers(read_video(path, fps=20)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert numbers(read_video(path, fps=25)) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2)])
def test_an_odd_rate_sampled_at_itself_gives_every_frame_once(tmp_path, suffix, rate):
    # .mkv rounds its timestamps to milliseconds
    path = encode(tmp_path / f"a.{suffix}", clip(38), rate)
    own = read_video(path)
    assert own.fps == pytest.approx(float(rate), rel=1e-3)
    assert numbers(own) == numbers(read_video(path, fps=float(rate))) == list(range(38))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    times = [0, 100, 150, 400, 500, 540, 580, 1000, 1020, 1300]
    path = encode(tmp_path / f"a.{suffix}", clip(10), times=times)
    assert numbers(read_video(path)) == list(range(10))
    shown = [max(i for i, t in enumerate(times) if t <= 125 * k) for k in range(11)]
    assert shown == [0, 1, 2, 2, 4, 6, 6, 6, 7, 8, 8]
    assert numbers(read_video(path, fps=8, frames=11)) == shown


def test_time_counts_from_the_first_frame(tmp_path):
    path = encode(tmp_path / "a.mkv", clip(5), times=[5000 + 100 * i for i in range(5)])
    assert numbers(read_video(path, fps=10)) == list(range(5))
    assert numbers(read_video(path, fps=10, start_time=0.2)) == [2, 3, 4]


def test_only_the_frames_asked_for_are_converted(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", clip(30))
    converted = []
    convert = module.to_rgb
    monkeypatch.setattr(module, "to_rgb", lambda *a: converted.append(1) or convert(*a))
    assert numbers(read_video(path, frames=4, fps=8)) == [0, 3, 6, 9]
    assert len(converted) == 4
    # and once only, however often one is shown
    converted.clear()
    assert len(read_video(path, frames=12, fps=100).frames) == 12
    assert len(converted) == 3


def test_fit(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(2, 128, 64))
    cropped = read_video(path, size=(64, 64)).frames
    stretched = read_video(path, size=(64, 64), fit="stretch").frames
    # the red corner is 32 wide, as much as the crop takes away
    assert cropped[0, 4, 4].tolist() != stretched[0, 4, 4].tolist()
    assert np.abs(stretched[0, 4, 4].astype(int) - (255, 0, 0)).max() < 4
    assert cropped.shape == stretched.shape == (2, 64, 64, 3)


# what is wrong with a file


def test_one_frame_is_a_video(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(1))
    assert len(read_video(path).frames) == 1
    with pytest.raises(InputError, match=r"has 1 frames? at 25 fps .* 16 asked"):
        read_video(path, frames=16)


def test_too_few_frames_says_how_many(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(25))
    assert len(read_video(path, frames=8, fps=8).frames) == 8
    with pytest.raises(InputError, match="has 8 frames at 8 fps .* 9 asked"):
        read_video(path, frames=9, fps=8)
    with pytest.raises(InputError, match="past the end"):
        read_video(path, start_time=2)
    with pytest.raises(InputError, match="past the end"):
        read_video(path, start_time=2, fps=8)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_of_a_truncated_file_the_whole_frames_are_read(tmp_path, suffix):
    rng = np.random.default_rng(0)
    frames = clip(30)
    # noise, so that the frames fill the file evenly
    frames[:, -16:] = rng.integers(0, 255, frames[:, -16:].shape)
    path = encode(tmp_path / f"a.{suffix}", frames, max_b_frames=0, gop_size=1)
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [p.pos + p.size for p in container.demux(video=0) if p.size]
    path.write_bytes(whole[: ends[17] + 100])
    video = read_video(path)
    assert numbers(video) == list(range(18))
    with pytest.raises(InputError, match="has 18 frames"):
        read_video(path, frames=19)


def test_a_truncated_file_with_reordered_frames_keeps_its_order(tmp_path):
    frames = clip(30)
    frames[:, -16:] = np.random.default_rng(0).integers(0, 255, frames[:, -16:].shape)
    path = encode(tmp_path / "a.mp4", frames, max_b_frames=3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with av.open(str(path)) as container:
        # the last one is cut
        complete = sum(p.size > 0 for p in container.demux(video=0)) - 1
    assert 15 < complete < 25
    assert len(read_video(path).frames) == complete
    assert numbers(read_video(path, frames=complete - 3)) == list(range(complete - 3))


def audio_only(path, cover=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame(64, 64, "yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1)
            container.mux([*picture.encode(frame), *picture.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_no_video_is_one_line_naming_the_path(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    audio_only(tmp_path / "sound.mp4")
    audio_only(tmp_path / "cover.mp4", cover=True)
    whole = encode(tmp_path / "whole.mp4", clip(20)).read_bytes()
    (tmp_path / "head.mp4").write_bytes(whole[: whole.index(b"mdat") + 4])
    cases = {
        "text.mp4": "cannot be read as a video",
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder without pictures",
        "sound.mp4": "no video stream",
        "cover.mp4": "no video stream",
        "head.mp4": "no frame that can be decoded",
        "missing.mp4": "no such file",
    }
    for name, says in cases.items():
        with pytest.raises(InputError) as caught:
            read_video(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message and says in message and "\n" not in message


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (0, 64)},
        {"frames": 0},
        {"frames": 2.5},
        {"fps": 0},
        {"fps": float("nan")},
        {"start_time": -1},
        {"start_time": float("inf")},
        {"fit": "zoom"},
    ],
)
def test_impossible_arguments_name_themselves(tmp_path, arguments):
    path = encode(tmp_path / "a.mp4", clip(3))
    with pytest.raises(InputError, match=f"^{next(iter(arguments))}: .* is not"):
        read_video(path, **arguments)


# writing


def test_there_and_back(tmp_path):
    frames = clip(16)
    for given in (frames, torch.from_numpy(frames)):
        write_video(tmp_path / "a.mp4", given, 8)
        video = read_video(tmp_path / "a.mp4")
        assert video.fps == 8 and numbers(video) == list(range(16))
        difference = video.frames.astype(float) - frames
        # the corner's edges are coloured, and colour has half the resolution
        difference[:, :18, :26] = 0
        assert np.sqrt(np.square(difference).mean()) < 2
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("fps", [8, 23.976, 24000 / 1001, 30000 / 1001, 12.5, 60])
def test_rates_survive(tmp_path, fps):
    write_video(tmp_path / "a.mp4", clip(5), fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-6)
        assert float(container.duration / av.time_base) == pytest.approx(5 / fps, abs=2e-3)


@pytest.mark.parametrize(("width", "height"), [(97, 63), (96, 63), (97, 64), (1, 1)])
def test_odd_sizes_get_their_edge_twice(tmp_path, width, height):
    frames = clip(3, width, height)
    write_video(tmp_path / "a.mp4", frames, 8)
    ours = read_video(tmp_path / "a.mp4").frames
    assert ours.shape[1:3] == (height + height % 2, width + width % 2)
    assert np.abs(ours[:, :height, :width].astype(float) - frames).mean() < 4
    assert np.abs(ours[:, -1, :width].astype(float) - frames[:, -1]).mean() < 8
    assert np.abs(ours[:, :height, -1].astype(float) - frames[:, :, -1]).mean() < 8


def test_the_index_comes_before_the_pictures(tmp_path):
    write_video(tmp_path / "a.mp4", clip(3), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_existing_output_needs_force(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="--force"):
        write_video(path, clip(2), 8, force=False)
    assert path.read_bytes() == b"old"
    write_video(path, clip(2), 8)
    assert len(read_video(path).frames) == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, error):
    whole, seen = av.VideoFrame, []

    class VideoFrame:
        @staticmethod
        def from_ndarray(picture, format):
            seen.append(picture)
            # late enough for the encoder to have written something
            if len(seen) == 90:
                assert len(os.listdir(tmp_path)) == 2
                raise error
            return whole.from_ndarray(picture, format=format)

    (tmp_path / "a.mp4").write_bytes(b"old")
    monkeypatch.setattr(av, "VideoFrame", VideoFrame)
    with pytest.raises(error):
        write_video(tmp_path / "a.mp4", clip(4, 32, 32).repeat(25, axis=0), 8)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_bad_outputs(tmp_path):
    with pytest.raises(InputError, match=".mp4, .mov, .mkv"):
        write_video(tmp_path / "a.avi", clip(2), 8)
    with pytest.raises(InputError, match="no folder"):
        write_video(tmp_path / "missing" / "a.mp4", clip(2), 8)
    for fps in (0, -8, float("inf"), 1e9, 1e-9, "fast"):
        with pytest.raises(InputError, match="^fps: .* is not"):
            write_video(tmp_path / "a.mp4", clip(2), fps)
    assert os.listdir(tmp_path) == []


# Video


def test_video_made_by_hand():
    frames = clip(2)
    assert Video(frames=frames, fps=8).fps == 8.0
    np.testing.assert_array_equal(Video(torch.from_numpy(frames), 8).frames, frames)
    for wrong in (frames[0], frames[:0], frames.astype(float), frames[..., :2]):
        with pytest.raises(InputError, match=r"uint8 \(f, h, w, 3\)"):
            Video(wrong, 8)
    for fps in (0, -1, float("nan"), None, "8 fps"):
        with pytest.raises(InputError, match="^fps: .* is not"):
            Video(frames, fps)
