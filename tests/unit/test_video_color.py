"""HDR, wide gamuts, and colors that are refused."""

from fractions import Fraction

import numpy as np
import pytest

from anyv2v.errors import InputError
from anyv2v.media import color
from anyv2v.media.video import read_video
from tests.clips import levels

av = pytest.importorskip("av")

# red, green, blue, white and grey of an SDR screen
PATCHES = [(220, 30, 30), (30, 180, 30), (30, 30, 220), (235, 235, 235), (128, 128, 128)]
# ITU-R BT.2087: linear BT.709 as linear BT.2020
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
BT709_MATRIX, BT2020_MATRIX = (1, 0.2126, 0.0722), (9, 0.2627, 0.0593)


def pq(light):
    """The inverse EOTF of SMPTE ST 2084, of cd/m2."""
    power = (np.asarray(light) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light):
    """ITU-R BT.2100: the signal that a screen of 1000 cd/m2 shows as `light`, RGB."""
    light = np.asarray(light) / 1000
    luminance = (light @ (0.2627, 0.6780, 0.0593))[..., None]
    scene = light * luminance ** ((1 - 1.2) / 1.2)
    above = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), above)


def flat(path, signals, transfer, primaries, matrix, full=False, codec="ffv1", pix="yuv444p10le"):
    """One frame per R'G'B' signal, 0..1, in 10 bits."""
    with av.open(str(path), "w") as container:
        exact = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=8, options=exact)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, primaries
        context.colorspace, context.color_range = matrix[0], 1 + full
        for index, signal in enumerate(signals):
            values = np.array(levels(*(255 * np.asarray(signal)), *matrix[1:], full))
            # of full range black stays at 0 and grey at 512, but 255 becomes 1023
            zero = np.array([0, 128, 128])
            values = 4 * zero + (values - zero) * (1023 / 255 if full else 4)
            frame = av.VideoFrame(64, 64, pix)
            for plane, value in zip(frame.planes, values.round(), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            frame.color_trc, frame.color_primaries = transfer, primaries
            frame.colorspace, frame.color_range = matrix[0], 1 + full
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(path):
    return read_video(path).frames[:, 32, 32].astype(int)


def linear(patches):
    return (np.array(patches) / 255) ** 2.4


@pytest.mark.parametrize(
    ("name", "codec", "pix", "full"),
    [
        ("a.mkv", "ffv1", "yuv444p10le", False),
        ("a.mkv", "ffv1", "yuv422p10le", True),
        ("a.mov", "prores_ks", "yuv422p10le", False),
        ("a.mp4", "libx265", "yuv420p10le", False),
    ],
)
@pytest.mark.parametrize(("transfer", "signal"), [(color.PQ, pq), (color.HLG, hlg)])
def test_hdr_is_tone_mapped(tmp_path, name, codec, pix, full, transfer, signal):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    # a screen shows the patches with a white of 203 cd/m2
    signals = signal(203 * linear(PATCHES) @ TO_2020.T)
    ours = seen(flat(tmp_path / name, signals, transfer, 9, BT2020_MATRIX, full, codec, pix))
    # up to 60 % of white nothing changes; above, as FFmpeg's filter has it (below)
    brightest = linear(PATCHES).max(axis=1, keepdims=True)
    truth = 255 * (linear(PATCHES) * color.mobius(brightest) / brightest) ** (1 / 2.4)
    assert np.abs(ours - truth).max() <= 8
    # what clipping would give is not far
    assert np.abs(ours - PATCHES).max() <= 16


def test_highlights_roll_off(tmp_path):
    light = np.array([100, 203, 400, 700, 1000, 4000])[:, None].repeat(3, axis=1)
    path = flat(tmp_path / "a.mkv", pq(light), color.PQ, 9, BT2020_MATRIX)
    grey = seen(path)[:, 0].tolist()
    assert grey == sorted(set(grey[:-1])) + [255] and grey[4] >= 254
    assert 225 < grey[1] < 245


def test_the_curve_is_that_of_ffmpeg_s_filter():
    light = np.linspace(0, color.PEAK / color.WHITE, 512, dtype=np.float32)
    frame = av.VideoFrame(512, 2, "gbrpf32le")
    for plane in frame.planes:
        row = np.pad(light, (0, plane.line_size // 4 - 512))
        plane.update(np.stack([row, row]).tobytes())
    frame.color_trc, frame.pts = 8, 0
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(template=frame, time_base=Fraction(1)),
        graph.add("setparams", color_trc="linear", color_primaries="bt709", colorspace="gbr"),
        graph.add(
            "tonemap",
            tonemap="mobius",
            param=str(color.KNEE),
            peak=str(color.PEAK / color.WHITE),
            desat="0",
        ),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    theirs = np.frombuffer(bytes(graph.pull().planes[0]), np.float32)[:512]
    np.testing.assert_allclose(color.mobius(light), theirs, atol=1e-5)


@pytest.mark.parametrize("transfer", [1, 2, 14, 15])
def test_wide_sdr_becomes_bt709(tmp_path, transfer):
    signals = (linear(PATCHES) @ TO_2020.T) ** (1 / 2.4)
    ours = seen(flat(tmp_path / "a.mkv", signals, transfer, 9, BT2020_MATRIX))
    assert np.abs(ours - PATCHES).max() <= 4


def test_p3_becomes_bt709(tmp_path):
    # linear BT.709 as linear Display P3 (CSS Color 4, through XYZ D65)
    to_p3 = [[0.822462, 0.177538, 0], [0.033194, 0.966806, 0], [0.017083, 0.072397, 0.910520]]
    signals = (linear(PATCHES) @ np.transpose(to_p3)) ** (1 / 2.4)
    ours = seen(flat(tmp_path / "a.mkv", signals, 1, 12, BT709_MATRIX))
    assert np.abs(ours - PATCHES).max() <= 3
    # in sRGB's own curve (IEC 61966-2-1), which PATCHES are in as well
    levels = np.array(PATCHES) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = light @ np.transpose(to_p3)
    signals = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    ours = seen(flat(tmp_path / "b.mkv", signals, 13, 12, BT709_MATRIX))
    assert np.abs(ours - PATCHES).max() <= 3


def test_whites_stay_white():
    for primaries in color.CHROMATICITIES:
        np.testing.assert_allclose(color._between(primaries, 1) @ np.ones(3), 1, atol=1e-5)
    np.testing.assert_allclose(color._between(1, 9), TO_2020, atol=1e-4)


@pytest.mark.parametrize(
    ("transfer", "primaries", "matrix", "says"),
    [
        (8, 1, 1, "linear light"),
        (9, 9, 9, "logarithmic"),
        (17, 1, 1, "digital cinema"),
        (1, 10, 1, "CIE XYZ"),
        (16, 9, 14, "ICtCp"),
        (14, 9, 10, "BT.2020 constant luminance"),
        (1, 1, 8, "YCgCo"),
    ],
)
def test_colors_that_are_not_understood_are_named(tmp_path, transfer, primaries, matrix, says):
    path = flat(tmp_path / "a.mkv", PATCHES[:1], transfer, primaries, (matrix, 0.2126, 0.0722))
    with pytest.raises(InputError, match=f"a.mkv: its colors are in .*{says}.* not understood"):
        read_video(path)


@pytest.mark.parametrize(("name", "codec"), [("a.hdr", "hdr"), ("a.pfm", "pfm"), ("a.phm", "phm")])
def test_floats_are_refused(tmp_path, name, codec):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "gbrpf32le"
        frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 99, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="gbrpf32le")))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="floats|linear light"):
        read_video(tmp_path / name)
