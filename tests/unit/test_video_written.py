"""What is handed to the encoder, number by number; and where a damaged file is said to end."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import stream, writer
from anyv2v.media import video as module
from anyv2v.media.frames import Video
from anyv2v.media.image import center_crop, fit_frame
from anyv2v.media.video import read_video, write_video
from tests.clips import clip, encode, levels, numbers

av = pytest.importorskip("av")

BT709 = 0.2126, 0.0722


class Lossless:
    """A container that x264 writes into without loss: what comes back is what it was given."""

    def __init__(self, container):
        self.container = container

    def __enter__(self):
        self.container.__enter__()
        return self

    def __exit__(self, *error):
        return self.container.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.container, name)

    def add_stream(self, codec, rate, options):
        assert codec == "libx264" and options["crf"] == "16"
        return self.container.add_stream(codec, rate=rate, options={"qp": "0"})


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(frames, fps, suffix): the file's stream, its planes in float64 and its times."""
    lossless = SimpleNamespace(**{name: getattr(av, name) for name in ("video", "VideoFrame")})
    lossless.open = lambda *args, **options: Lossless(av.open(*args, **options))
    monkeypatch.setattr(writer, "pyav", lambda: lossless)

    def write(frames, fps, suffix="mp4"):
        path = tmp_path / f"a.{suffix}"
        write_video(path, frames, fps)
        height, width = frames.shape[1:3]
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.pix_fmt == "yuv420p"
            decoded = list(container.decode(stream))
            planes = [frame.to_ndarray().astype(float) for frame in decoded]
            seconds = [frame.pts * stream.time_base for frame in decoded]
            rate = stream.average_rate
        y = np.stack([p[:height] for p in planes])
        shape = len(planes), 2, height // 2, width // 2
        cb, cr = np.moveaxis(np.stack([p[height:] for p in planes]).reshape(shape), 1, 0)
        return SimpleNamespace(y=y, cb=cb, cr=cr, seconds=seconds, rate=rate)

    return write


def truth(frames):
    """Y of every pixel, Cb and Cr of the mean of every 2x2, by BT.709's definition."""
    r, g, b = np.moveaxis(frames.astype(float), -1, 0)
    y, _, _ = levels(r, g, b, *BT709, False)
    halved = frames.reshape(len(frames), frames.shape[1] // 2, 2, frames.shape[2] // 2, 2, 3)
    r, g, b = np.moveaxis(halved.astype(float).mean(axis=(2, 4)), -1, 0)
    _, cb, cr = levels(r, g, b, *BT709, False)
    return y, cb, cr


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_flat_colours_are_those_of_the_definition(written, suffix):
    """To rounding, 0.5, and what the converter's numbers of 14 bits cost; swscale's faster ways are
    off by 0.66, and too dark on the whole.
    """
    colours = np.random.default_rng(0).integers(0, 256, (200, 1, 1, 3), dtype=np.uint8)
    colours[:8, 0, 0] = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).T.reshape(-1, 3)
    found = written(colours.repeat(16, axis=1).repeat(16, axis=2), 8, suffix)
    exact = truth(colours.repeat(2, axis=1).repeat(2, axis=2))
    for ours, right in zip((found.y, found.cb, found.cr), exact, strict=True):
        off = ours - right[:, :1, :1]
        assert np.abs(off).max() < 0.55
        assert abs(off.mean()) < 0.1


def test_colours_that_change_from_pixel_to_pixel_are_averaged(written):
    """The chroma of two columns is the mean of both: with one left out it would be theirs."""
    frames = np.zeros((1, 32, 64, 3), np.uint8)
    frames[:, :, 0::2], frames[:, :, 1::2] = (230, 30, 60), (20, 200, 120)
    found = written(frames, 8)
    y, cb, cr = truth(frames)
    assert np.abs(found.y - y).max() < 1
    # away from the edges, which the filter reaches beyond
    for ours, exact in ((found.cb, cb), (found.cr, cr)):
        assert np.abs(ours - exact)[:, 4:-4, 4:-4].max() < 1.5


RATES = [8, 25, 30, 7.5, 24000 / 1001, 30000 / 1001, 0.5, 120]


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_have_the_times_of_their_rate(written, suffix, fps):
    found = written(clip(7, 32, 16), fps, suffix)
    rate = Fraction(fps).limit_denominator(100_000)
    # Matroska counts in milliseconds
    off = Fraction(1, 1000) if suffix == "mkv" else 0
    assert len(found.seconds) == 7
    for index, seconds in enumerate(found.seconds):
        assert abs(seconds - found.seconds[0] - index / rate) <= off
    assert abs(found.rate / rate - 1) < 1e-3


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_equal_frames_give_equal_files(tmp_path, suffix):
    """Matroska has a number that is drawn by chance unless it is told not to."""
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        write_video(path, clip(3), fps=8, comment="the same")
    first, second = (path.read_bytes() for path in paths)
    assert first == second


def test_a_video_is_no_part_of_what_it_was_made_of():
    given = clip(3)
    for array in (given, given[::-1], given[:, ::2]):
        video, before = Video(array, 8), array.copy()
        array[:] = 0
        assert np.array_equal(video.frames, before)
        array[:] = before
    assert Video.owning(given, 8).frames is given


# damage


def damaged(path, *which):
    """The packets of these numbers are no more than zeros."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for at, size in (places[i] for i in which):
        data[at : at + size] = bytes(size)
    path.write_bytes(data)
    return path


CODECS = [
    ("ffv1", "mkv", "yuv420p", {}),
    ("png", "mov", "rgb24", {}),
    ("libx264", "mp4", "yuv420p", {"gop_size": 1, "max_b_frames": 0}),
    ("libx264", "mkv", "yuv420p", {"gop_size": 1, "max_b_frames": 0}),
    ("mpeg4", "avi", "yuv420p", {"gop_size": 1}),
]


@pytest.mark.parametrize("codec, suffix, pix_fmt, options", CODECS)
def test_what_comes_after_damage_is_not_read(tmp_path, codec, suffix, pix_fmt, options):
    """Frames from behind it would stand at a wrong time, or be made of what is missing."""
    path = encode(tmp_path / f"a.{suffix}", clip(12), 25, codec, pix_fmt, **options)
    damaged(path, 5)
    assert numbers(read_video(path)) == [0, 1, 2, 3, 4]
    assert numbers(read_video(path, frames=5)) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="has 5 frames"):
        read_video(path, frames=6)


@pytest.mark.parametrize("codec, suffix, pix_fmt, options", [CODECS[1], CODECS[4]])
def test_damage_before_the_first_frame_is_passed_over(tmp_path, codec, suffix, pix_fmt, options):
    path = encode(tmp_path / f"a.{suffix}", clip(12), 25, codec, pix_fmt, **options)
    damaged(path, 0, 1, 7)
    assert numbers(read_video(path)) == [2, 3, 4, 5, 6]


# memory


def test_all_frames_that_are_asked_for_need_memory(tmp_path, monkeypatch):
    path, asked = encode(tmp_path / "a.mp4", clip(6)), []
    monkeypatch.setattr(
        module, "require_memory", lambda need, *rest: asked.append((need(7, 5), rest[0]))
    )
    read_video(path, size=(32, 16), frames=4)
    assert asked == [(3 * 7 * 5 * 4, (32, 16))]


@pytest.mark.parametrize("room, fits", [(6, True), (5, False)])
def test_frames_fill_half_of_the_free_memory_at_most(tmp_path, monkeypatch, room, fits):
    path = encode(tmp_path / "a.mp4", clip(6))
    monkeypatch.setattr(stream, "free_bytes", lambda device: 2 * room * 96 * 64 * 3)
    if fits:
        assert len(read_video(path).frames) == 6
    else:
        with pytest.raises(InputError, match="more than 6 frames of 96x64 do not fit"):
            read_video(path)


# pictures that would be blown up


@pytest.mark.parametrize("known", [None, 10_000, 40_000])
def test_a_picture_may_be_resized_to_sixteen_times_what_is_asked(monkeypatch, known):
    """Or to as many pixels as Pillow reads without a warning, if those are more."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", known)
    least = 16 * 32 * 32
    for height in (16, 17, 39, 40):
        image = np.full((height, 1, 3), 77, np.uint8)
        # 1 x height becomes 32 x 32 height
        if 32 * 32 * height <= max(known or 0, least):
            for fitted in (center_crop(image, (32, 32)), fit_frame(image, (32, 32), "crop")):
                assert fitted.shape == (32, 32, 3) and (fitted == 77).all()
        else:
            with pytest.raises(InputError, match=f"a 1x{height} picture is too narrow"):
                center_crop(image, (32, 32))
