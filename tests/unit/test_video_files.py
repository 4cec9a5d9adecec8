"""What is opened as a video, which of its streams is read, and what is refused."""

import importlib.abc
import importlib.util
import io
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from anyv2v.cli.main import main
from anyv2v.errors import InputError
from anyv2v.media.container import VideoFacts, facts, is_video
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.image import read_image
from anyv2v.media.video import read_first_frame, read_video, write_video
from tests import icc
from tests.clips import clip, encode, numbers

av = pytest.importorskip("av")


def mux(path, packets, codec, size, pix_fmt):
    """A file of pictures that were compressed by another program."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        for index, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 8)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)
    return path


def picture(form, orientation=None):
    """A red picture of 64x48 with a green left third, as bytes."""
    pixels = np.full((48, 64, 3), (200, 20, 20), np.uint8)
    pixels[:, :21] = (20, 200, 20)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if orientation:
        exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, exif=exif, quality=95, subsampling=0)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "codec", "form", "pix_fmt"),
    [
        ("a.mjpeg", "mjpeg", "jpeg", "yuvj444p"),
        ("a.avi", "mjpeg", "jpeg", "yuvj444p"),
        ("a.mov", "mjpeg", "jpeg", "yuvj444p"),
        ("a.mov", "png", "png", "rgb24"),
        ("a.mov", "tiff", "tiff", "rgb24"),
    ],
)
@pytest.mark.parametrize("orientation", [None, 6, 2])
def test_frames_with_exif_are_read_and_turned_upright(
    tmp_path, name, codec, form, pix_fmt, orientation
):
    data = picture(form, orientation)
    path = mux(tmp_path / name, [data] * 3, codec, (64, 48), pix_fmt)
    frames = read_video(path).frames
    # Pillow turns it by itself
    (tmp_path / "still").write_bytes(data)
    still = read_first_frame(tmp_path / "still")
    assert frames.shape == (3, *still.shape)
    assert np.abs(frames.astype(int) - still).mean() < 3
    height, width = still.shape[:2]
    assert facts(path) == VideoFacts(width, height, audio=False)


def test_exif_of_a_later_frame_alone(tmp_path):
    plain = io.BytesIO()
    Image.open(io.BytesIO(picture("jpeg"))).convert("RGB").save(plain, "jpeg", subsampling=0)
    packets = [plain.getvalue(), plain.getvalue(), picture("jpeg")]
    path = mux(tmp_path / "a.avi", packets, "mjpeg", (64, 48), "yuvj444p")
    assert read_video(path).frames.shape == (3, 48, 64, 3)


def with_profile(form, to_xyz):
    """A picture of one orange with a profile of its primaries, as an editor saves it."""
    held = io.BytesIO()
    orange = Image.new("RGB", (32, 16), (200, 120, 60))
    orange.save(
        held, form, icc_profile=icc.rgb(to_xyz, 2.2), **({"quality": 100} if form == "JPEG" else {})
    )
    return held.getvalue()


@pytest.mark.parametrize("name", ["a.mov", "a.avi"])
def test_profiles_of_jpeg_frames_are_honored(tmp_path, name):
    for primaries in (icc.P3, icc.ADOBE):
        data = with_profile("JPEG", primaries)
        (tmp_path / "a.jpg").write_bytes(data)
        mux(tmp_path / name, [data, data], "mjpeg", (32, 16), "yuvj420p")
        found = read_video(tmp_path / name).frames[0].astype(int)
        truth = read_image(tmp_path / "a.jpg").astype(int)
        assert np.abs(found - truth).max() <= 3
        assert np.abs(truth[0, 0] - (200, 120, 60)).max() > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mov", "a.avi"])
def test_profiles_of_png_frames_do_not_end_the_process(tmp_path, name):
    data = with_profile("PNG", icc.P3)
    path = tmp_path / name
    mux(path, [data] * 3, "png", (32, 16), "rgb24")
    code = (
        "import gc, sys, anyv2v\nfor _ in range(20): anyv2v.read_video(sys.argv[1]); gc.collect()"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True)


# streams


def several(path, *streams):
    """A file with a stream of one grey level for each ((width, height), level, default)."""
    with av.open(str(path), "w") as container:
        made = []
        for (width, height), _, default in streams:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else 0
            made.append(stream)
        for index in range(2):
            for stream, (size, level, _) in zip(made, streams, strict=True):
                grey = np.full((size[1], size[0], 3), level, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 8)
                container.mux(stream.encode(frame))
        for stream in made:
            container.mux(stream.encode())
    return path


SMALL, LARGE, HUGE = (16, 16), (96, 64), (3200, 1800)


@pytest.mark.parametrize(
    ("streams", "taken"),
    [
        ([(LARGE, 60, False), (LARGE, 180, True)], 180),
        ([(LARGE, 60, True), (LARGE, 180, True)], 60),
        ([(SMALL, 60, True), (LARGE, 180, True)], 180),
        ([(SMALL, 60, False), (LARGE, 180, False)], 180),
        ([(LARGE, 60, False), (SMALL, 180, True)], 180),
        # its 5.76 million pixels are more than being the default counts
        ([(SMALL, 60, True), (HUGE, 180, False)], 180),
    ],
)
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_of_several_streams_that_is_read_which_ffmpeg_takes(tmp_path, streams, taken, suffix):
    path = several(tmp_path / f"a.{suffix}", *streams)
    with av.open(str(path)) as container:
        marked = [bool(s.disposition & 1) for s in container.streams.video]
    if marked != [default for _, _, default in streams]:
        pytest.skip("this muxer marks a stream by itself")
    assert abs(int(read_video(path, frames=1).frames.mean()) - taken) <= 3


@pytest.mark.parametrize("suffix", ["mkv", "nut", "avi"])
@pytest.mark.parametrize("first", [SMALL, LARGE])
def test_a_stream_without_data_is_passed_over(tmp_path, suffix, first):
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        made = {}
        for size in (first, SMALL if first is LARGE else LARGE):
            made[size] = container.add_stream("mpeg4", rate=8)
            made[size].width, made[size].height = size
            made[size].pix_fmt = "yuv420p"
        container.start_encoding()
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 180, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(made[SMALL].encode(frame))
        container.mux(made[SMALL].encode())
    assert read_video(tmp_path / f"a.{suffix}").frames.shape == (3, 16, 16, 3)


def test_facts(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(2), sample_aspect_ratio=Fraction(4, 3))
    assert facts(path) == VideoFacts(128, 64, audio=False)
    with av.open(str(tmp_path / "b.mkv"), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(clip(1)[0], format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 8)
        container.mux([*stream.encode(frame), *stream.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux([*sound.encode(frame), *sound.encode()])
    assert facts(tmp_path / "b.mkv") == VideoFacts(96, 64, audio=True)


# formats


@pytest.fixture
def secret(tmp_path):
    """Files that a text beside them may name."""
    write_video(tmp_path / "secret.mp4", clip(4), 8)
    encode(tmp_path / "secret.ts", clip(4))
    return tmp_path


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("live.m3u8", HLS.format("secret.ts"), "an HLS playlist"),
        ("self.m3u8", HLS.format("self.m3u8"), "an HLS playlist"),
        ("a.mp4", HLS.format("secret.ts") + "#EXT-X-ENDLIST\n", "an HLS playlist"),
        ("marked.m3u8", "\ufeff" + HLS.format("secret.ts"), "an HLS playlist"),
        ("c.mp4", "ffconcat version 1.0\nfile secret.mp4\n", "files to concatenate"),
        ("c.ffconcat", "ffconcat version 1.0\nfile secret.mp4\n", "files to concatenate"),
        ("s.sdp", SDP, "an SDP description"),
        ("d.mpd", "<?xml version='1.0'?><MPD type='static'></MPD>", "an XML text"),
        ("a.nfo", "a text\n" * 40, "in no video format that is read"),
        ("a.ans", "\x1b[31ma text\n" * 40, "in no video format that is read"),
    ],
)
def test_texts_are_refused_at_once(secret, monkeypatch, name, text, says):
    monkeypatch.chdir(secret)
    (secret / name).write_text(text, encoding="utf-8")
    for function in (read_video, facts, is_video, read_first_frame):
        with pytest.raises(InputError, match=f"{name} cannot be read as a video: .*{says}"):
            function(name)


@pytest.mark.parametrize("name", ["b%03d.png", "b%d.mp4", "%05d.mkv"])
def test_a_name_that_is_a_pattern_names_that_file(tmp_path, name):
    for index in (0, 1, 2):
        path = tmp_path / (name % index)
        if path.suffix == ".png":
            Image.new("RGB", (64, 64), (0, 0, 200)).save(path)
        else:
            write_video(path, np.zeros((2, 64, 64, 3), np.uint8), 8)
    red = np.full((64, 64, 3), (200, 0, 0), np.uint8)
    if name.endswith(".png"):
        Image.fromarray(red).save(tmp_path / name)
    else:
        os.replace(encode(tmp_path / f"a{name[-4:]}", red[None].repeat(3, axis=0)), tmp_path / name)
    frames = read_video(tmp_path / name).frames
    assert np.abs(frames.astype(int) - (200, 0, 0)).max() <= 4


CONTENT = [
    ("a.mp4", "libx264"),
    ("a.webm", "libvpx"),
    ("a.avi", "mpeg4"),
    ("a.ts", "mpeg2video"),
    ("a.mpg", "mpeg2video"),
    ("a.flv", "flv"),
    ("a.wmv", "wmv2"),
    ("a.gif", "gif"),
    ("a.ivf", "libvpx"),
    ("a.nut", "ffv1"),
    ("a.3gp", "mpeg4"),
    ("a.rm", "rv20"),
]


@pytest.mark.parametrize(("name", "codec"), CONTENT)
def test_a_video_is_one_by_its_content(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    # a size that H.263 and its like have
    frames = clip(4, 128, 96)
    path = encode(tmp_path / name, frames, 25, codec, "rgb8" if codec == "gif" else "yuv420p")
    for named in (path, tmp_path / "no suffix", tmp_path / "a.png"):
        os.replace(path, named)
        path = named
        assert is_video(path) and numbers(read_video(path)) == [0, 1, 2, 3]
        first = read_first_frame(path)
        np.testing.assert_array_equal(first, read_video(path, frames=1).frames[0])


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "tiff", "bmp", "ppm", "tga", "avif"])
def test_a_picture_is_one_by_its_content(tmp_path, form):
    red = np.full((48, 64, 3), (200, 20, 20), np.uint8)
    if form == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(red).save(tmp_path / "a.mp4", form)
    if form != "tga":
        # FFmpeg has no reader that knows its content
        assert not is_video(tmp_path / "a.mp4")
    assert np.abs(read_first_frame(tmp_path / "a.mp4").astype(int) - red).max() <= 8


def test_the_first_frame_from_a_start_on(tmp_path):
    path = encode(tmp_path / "a.avi", clip(20), codec="mpeg4")
    first = read_first_frame(path, start_time=0.4)
    np.testing.assert_array_equal(first, read_video(path, start_time=0.4).frames[0])
    with pytest.raises(InputError, match="start_time 9 s is past the end"):
        read_first_frame(path, start_time=9)


def test_edit_frame_takes_every_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.avi", clip(3), codec="mpeg4")
    told = ["--editor", "recolour", "--instruction", "blue", "-o", "b.png"]
    assert main(["edit-frame", "a.avi", *told]) == 0
    assert Image.open("b.png").size == (96, 64)


def test_what_is_neither_is_told_in_one_line(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"neither" * 50)
    with pytest.raises(InputError, match="a.mp4 cannot be read as a video: .*nor is it a picture"):
        read_first_frame(tmp_path / "a.mp4")
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "no", "no such file")):
        with pytest.raises(InputError, match=f"{path}.*{says}"):
            read_first_frame(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="no regular file"):
            read_first_frame(tmp_path / "pipe")


# limits


@pytest.mark.parametrize(
    "arguments",
    [
        {"fps": 2**31},
        {"fps": 10**30},
        {"fps": 10**400},
        {"fps": "8"},
        {"frames": 10**30},
        {"start_time": "1.5"},
        {"start_time": 10**400},
    ],
)
def test_numbers_beyond_all_measure_are_refused(tmp_path, arguments):
    path = encode(tmp_path / "a.mp4", clip(3))
    with pytest.raises(InputError, match=f"^{next(iter(arguments))}: .* is not"):
        read_video(path, **arguments)


@pytest.mark.parametrize("error", [av.error.MemoryError, av.error.BlockingIOError])
@pytest.mark.parametrize("where", ["open", "decode"])
def test_a_lack_of_memory_is_not_the_clip_s_fault(tmp_path, monkeypatch, error, where):
    """Errno 12; or 11, where no thread can be started."""
    path = encode(tmp_path / "a.mp4", clip(3))
    code = {av.error.MemoryError: 12, av.error.BlockingIOError: 11}[error]

    def fails(*_, **__):
        raise error(code, os.strerror(code))
        yield

    if where == "open":
        monkeypatch.setattr(av, "open", lambda *a, **k: next(fails()))
    else:
        monkeypatch.setattr("anyv2v.media.seek.decode", fails)
    with pytest.raises(InputError, match="a.mp4 could not be read: .*memory"):
        read_video(path)


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch):
    class Loader(importlib.abc.Loader):
        def exec_module(self, module):
            raise ImportError("libdrm.so: failed to map segment")

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            return importlib.util.spec_from_loader(name, Loader()) if name == "av" else None

    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(InputError, match="PyAV, which cannot be loaded: libdrm.so: failed to map"):
        pyav()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_under_a_limit_of_memory(tmp_path):
    write_video(tmp_path / "a.mp4", clip(3), 8)
    write_video(tmp_path / "b.mp4", clip(3, 1920, 1080), 8)
    code = (
        "import resource, av\n"
        "from anyv2v.media.video import read_video\n"
        "read_video('a.mp4')  # loads all that it needs\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))\n"
        "read_video('b.mp4')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "InputError: b.mp4 could not be read" in done.stderr and "memory" in done.stderr


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_equal_frames_give_equal_files(tmp_path, suffix):
    for name in "ab":
        write_video(tmp_path / f"{name}.{suffix}", clip(4), 8)
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
