"""Damaged timestamps, beginning in the middle, interlaced frames."""

from fractions import Fraction

import numpy as np
import pytest

from anyv2v.errors import InputError
from anyv2v.media import seek, timing
from anyv2v.media.video import read_video
from tests.clips import clip, encode, numbers

av = pytest.importorskip("av")


class Shown:
    """A frame of a clip, as far as time goes; milliseconds."""

    def __init__(self, pts, duration=40):
        self.pts, self.duration, self.time_base = pts, duration, Fraction(1, 1000)


def begins(pts, **limits):
    timed = list(timing.timed([Shown(t) for t in pts], 25.0, **limits))
    assert all(end > begin for begin, end, _ in timed)
    return [round(1000 * begin) for begin, _, _ in timed]


REGULAR = list(range(0, 400, 40))


@pytest.mark.parametrize("stray", [1_500_000, 200, 100, -900_000, None])
@pytest.mark.parametrize("index", [1, 4, 8])
def test_one_damaged_timestamp_moves_one_frame(index, stray):
    pts = REGULAR.copy()
    pts[index] = None if stray is None else pts[index] + stray
    found = begins(pts)
    # it is put between its neighbours, and the others stay
    assert found[:index] + found[index + 1 :] == REGULAR[:index] + REGULAR[index + 1 :]
    assert REGULAR[index - 1] < found[index] <= REGULAR[index + 1]


@pytest.mark.parametrize("stray", [1_500_000, -1_500_000, None])
def test_of_the_first_frame_too(stray):
    assert begins([stray, *REGULAR[1:]], until=0.4) == REGULAR


def test_a_clock_that_is_set_goes_on():
    for jump in (9_000_000, -200, -9_000_000):
        pts = REGULAR[:5] + [t + jump for t in REGULAR[5:]]
        assert begins(pts) == REGULAR
    # a jump that a header, or the standard of MPEG streams, knows not to be part of the clip
    pts = REGULAR[:5] + [t + 60_000 for t in REGULAR[5:]]
    assert begins(pts, until=0.4) == begins(pts, longest=10) == REGULAR
    assert begins([*REGULAR, 900_000], until=0.44) == [*REGULAR, 400]


def test_slides_may_be_shown_for_minutes(tmp_path):
    times = [0, 1000, 181_000, 181_040, 400_000]
    assert begins(times) == times
    for name in ("a.mp4", "a.mkv", "a.mov"):
        path = encode(tmp_path / name, clip(5), times=times)
        assert numbers(read_video(path, fps=0.1, frames=20)) == [0] + 18 * [1] + [3]
        assert numbers(read_video(path)) == list(range(5))


def with_damage(path, codec, at):
    """90 frames of which the one at `at` claims to be shown 25 minutes later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 1, 0
        packets = []
        for index, picture in enumerate(clip(30, 48, 32).repeat(3, axis=0)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += stream.encode(frame)
        for index, packet in enumerate(packets + stream.encode()):
            packet.pts += 1500 * 25 * (index == at)
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("a.mkv", "mpeg4"), ("a.ts", "mpeg2video")]
)
@pytest.mark.parametrize("at", [40, 89])
def test_a_file_with_a_damaged_timestamp_is_as_long_as_it_was(tmp_path, name, codec, at):
    if at == 89 and name == "a.mkv":
        pytest.skip("the muxer writes the damage into the header's duration as well")
    path = with_damage(tmp_path / name, codec, at)
    assert len(read_video(path).frames) == 90
    assert 28 <= len(read_video(path, fps=8).frames) <= 30


@pytest.mark.parametrize(
    ("name", "b_frames", "seconds"), [("a.mp4", 0, 10), ("a.mp4", 2, 130_000), ("a.mov", 0, 1000)]
)
def test_a_damaged_duration_in_a_table_of_durations(tmp_path, name, b_frames, seconds):
    # uneven times, so that the table has many entries (ISO/IEC 14496-12, 8.6.1.2)
    times = [40 * i + 7 * i % 3 for i in range(60)]
    frames = clip(30).repeat(2, axis=0)
    path = encode(tmp_path / name, frames, times=times, max_b_frames=b_frames)
    sound = path.read_bytes()
    table = sound.index(b"stts") + 8
    entries, ticks = int.from_bytes(sound[table : table + 4], "big"), 16_000
    for entry in (0, entries // 2, entries - 1):
        at = table + 8 + 8 * entry
        damage = min(seconds * ticks, 2**31 - 1).to_bytes(4, "big")
        path.write_bytes(sound[:at] + damage + sound[at + 4 :])
        video, sampled = read_video(path), read_video(path, fps=8)
        assert numbers(video) == [i // 2 for i in range(60)]
        assert video.fps == pytest.approx(25, rel=0.02)
        assert 18 <= len(sampled.frames) <= 21
        assert numbers(read_video(path, start_time=1.6))[-1] == 29


# beginning in the middle


@pytest.fixture(scope="module")
def moving():
    """Six seconds at 25 fps of noise that moves: no frame can be guessed from another."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return np.stack([np.roll(noise, (3 * i, 2 * i), (0, 1)) for i in range(150)])


VFR = np.random.default_rng(0).integers(5, 75, 150).cumsum().tolist()
CLIPS = [
    ("a.mp4", "libx264", {"x264-params": "keyint=25:open-gop=1:bframes=3"}, None),
    ("a.mkv", "libx264", {"x264-params": "keyint=20:bframes=2"}, VFR),
    ("a.mov", "mpeg4", {"g": "12", "bf": "2"}, None),
    ("a.mp4", "libx264", {"x264-params": "keyint=30:intra-refresh=1"}, None),
    ("a.mp4", "libx264", {"x264-params": "keyint=25:tff=1"}, None),
    ("a.mkv", "libx265", {"x265-params": "keyint=25:open-gop=1:log-level=none"}, None),
    ("a.webm", "libvpx-vp9", {"g": "25", "deadline": "realtime", "cpu-used": "8"}, None),
    ("a.ts", "libx264", {"g": "25"}, None),
    ("a.avi", "mpeg4", {"g": "25"}, None),
]


def check_beginning(path, monkeypatch, starts, at_once):
    with monkeypatch.context() as patched:
        patched.setattr(seek, "_find", lambda path, start: None)
        whole = [read_video(path, start_time=start, frames=9, fps=20).frames for start in starts]
        every = [read_video(path, start_time=start).frames for start in starts]
    for start, sampled, rest in zip(starts, whole, every, strict=True):
        assert (seek._find(path, start) is not None) == at_once
        np.testing.assert_array_equal(
            read_video(path, start_time=start, frames=9, fps=20).frames, sampled
        )
        np.testing.assert_array_equal(read_video(path, start_time=start).frames, rest)


@pytest.mark.parametrize(("name", "codec", "options", "times"), CLIPS[:2])
def test_beginning_in_the_middle_changes_no_bit(
    tmp_path, monkeypatch, moving, name, codec, options, times
):
    path = encode(tmp_path / name, moving[:110], codec=codec, options=options, times=times)
    check_beginning(path, monkeypatch, [3.83], at_once=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "options", "times"), CLIPS)
def test_beginning_anywhere_changes_no_bit(
    tmp_path, monkeypatch, moving, name, codec, options, times
):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = encode(tmp_path / name, moving, codec=codec, options=options, times=times)
    at_once = name not in ("a.ts", "a.avi")
    check_beginning(path, monkeypatch, [3.6, 4.0, 4.41, 5.2], at_once)


def test_what_comes_long_before_the_beginning_is_not_decoded(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", clip(30).repeat(10, axis=0), gop_size=25)
    decoded = []
    decode = seek.decode
    monkeypatch.setattr(
        seek, "decode", lambda *a: (decoded.append(1) or frame for frame in decode(*a))
    )
    assert numbers(read_video(path, start_time=10.0, frames=5)) == [25] * 5
    # at most two groups of pictures, of 300 frames
    assert len(decoded) < 60


def test_a_start_before_the_second_keyframe_or_past_the_end(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(30), 5, gop_size=1000)
    assert numbers(read_video(path, start_time=4.0, frames=3)) == [20, 21, 22]
    path = encode(tmp_path / "a.mkv", clip(30), 5, gop_size=2)
    with pytest.raises(InputError, match="start_time 9 s is past the end of .*, which is at 6 s"):
        read_video(path, start_time=9)


# what would do instead


@pytest.mark.parametrize(
    ("name", "wanted", "fps", "start", "helps"),
    [
        ("a.mp4", 47, None, 0.0, ["frames", "fps"]),
        ("a.mkv", 47, 8, 0.3, ["frames", "fps", "start_time"]),
        ("a.mp4", 47, 8, 4.7, ["frames", "fps", "start_time"]),
        ("a.ts", 47, 3.3, 0.0, ["frames", "fps"]),
        ("a.mkv", 20, None, 2.5, ["frames", "fps", "start_time"]),
        ("a.mp4", 9000, None, 0.0, ["frames"]),
    ],
)
def test_a_clip_that_is_too_short_says_what_would_do(tmp_path, name, wanted, fps, start, helps):
    """Six seconds at 5 fps."""
    path = encode(tmp_path / name, clip(30), 5, gop_size=5)
    given = {"frames": wanted, "fps": fps, "start_time": start}
    with pytest.raises(InputError) as caught:
        read_video(path, **given)
    ways = str(caught.value).partition("asked for; ")[2].removesuffix(" would do").split(", or ")
    options = {"--frames": "frames", "--sample-fps": "fps", "--start-time": "start_time"}
    found = {options[way[way.index("--") : -1]]: way for way in ways}
    assert list(found) == helps
    for argument, way in found.items():
        value = next(float(word) for word in way.split() if word[0].isdigit())
        changed = given | {argument: int(value) if argument == "frames" else value}
        assert len(read_video(path, **changed).frames) == changed["frames"]


# interlaced


def woven(count=12, width=96, height=64):
    """(frames, their first moments): the top field shows a bar where it is, the other 1/50 s on."""
    moments = np.full((2 * count, height, width, 3), 60, np.uint8)
    moments[:, :20] = (200, 40, 40)
    for moment, picture in enumerate(moments):
        picture[:, 4 + 2 * moment : 12 + 2 * moment] = (230, 220, 40)
    frames = moments[::2].copy()
    frames[:, 1::2] = moments[1::2, 1::2]
    return frames, moments[::2]


def combs(frames):
    """How much lines differ from the mean of their neighbours."""
    lines = frames[:, 24:].astype(float)
    return np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean()


INTERLACED = [
    ("a.mp4", "libx264", "yuv420p", {"x264-params": "tff=1"}),
    ("a.ts", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}),
    ("a.mov", "prores_ks", "yuv422p10le", {"flags": "+ildct+ilme"}),
    ("a.mov", "v210", "yuv422p10le", None),
    # the picture does not say it, the container does
    ("a.mov", "png", "rgb24", None),
    ("a.h264", "libx264", "yuv420p", {"x264-params": "tff=1"}),
]


def interlace(path, codec, pix_fmt, options):
    frames, moments = woven()
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=96, height=64, format="rgb24", time_base=Fraction(1, 25)),
        graph.add("format", pix_fmts=pix_fmt),
        graph.add("setfield", mode="tff"),
        graph.add("buffersink"),
    ).configure()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        # AV_FIELD_TT
        stream.codec_context.field_order = 2
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode())
    return frames, moments


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "options"), INTERLACED)
def test_interlaced_frames_are_deinterlaced(tmp_path, name, codec, pix_fmt, options):
    frames, moments = interlace(tmp_path / name, codec, pix_fmt, options)
    video = read_video(tmp_path / name)
    assert len(video.frames) == len(frames) and video.fps == 25
    assert combs(video.frames) < 0.1 * combs(frames)
    assert np.abs(video.frames.astype(float) - moments).mean() < 5
    # times are kept
    if name != "a.h264":
        later = read_video(tmp_path / name, start_time=0.2, fps=25)
        np.testing.assert_array_equal(later.frames, video.frames[5:])


def test_frames_that_are_not_interlaced_pass_unchanged(tmp_path, monkeypatch):
    # the stream is marked as interlaced, but its frames are not, and this codec's know
    path = encode(tmp_path / "a.mp4", woven()[0], options={"x264-params": "fake-interlaced=1"})
    frames = read_video(path).frames
    assert combs(frames) > 4
    monkeypatch.setattr(seek, "deinterlaced", lambda stream, decoded: decoded)
    np.testing.assert_array_equal(frames, read_video(path).frames)


def test_frames_that_are_shown_at_once_are_written_one_after_another():
    times, end = timing.increasing([0.0, 0.1, 0.1, 0.0996, 0.2], 0.2)
    assert times == pytest.approx([0, 0.1, 0.101, 0.102, 0.2]) and end == pytest.approx(0.201)
    assert timing.increasing((0.0, 0.001, 0.0019), 0.5) == ([0.0, 0.001, 0.0019], 0.5)
