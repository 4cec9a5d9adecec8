"""Metrics of clips, each beside its definition in numpy and on clips whose answer is known."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import ndimage

from anyv2v.errors import InputError
from anyv2v.metrics import features, flow, lpips, pixels


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clip_of(rng, frames=3, height=20, width=24):
    return rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def noisy(clip, rng, sigma=20):
    return np.clip(clip + rng.normal(0, sigma, clip.shape), 0, 255).astype(np.uint8)


# pixels


def ssim_by_definition(a, b, where=None):
    """Wang et al. 2004, equation 13 and section III-C, window by window in float64."""
    t = np.arange(11) - 5
    w = np.exp(-(t[:, None] ** 2 + t**2) / (2 * 1.5**2))
    w /= w.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    f, h, width, colors = a.shape
    for i, y, x in np.ndindex(f, h - 10, width - 10):
        place = (i, slice(y, y + 11), slice(x, x + 11))
        if where is not None and not where[place].all():
            continue
        for c in range(colors):
            p, q = (v[place][..., c].astype(np.float64) for v in (a, b))
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + c1) * (2 * cov + c2)
            found.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(found)


def test_ssim_is_its_definition(rng):
    a = clip_of(rng, 2, 15, 17)
    b = noisy(a, rng)
    assert pixels.ssim(a, b) == pytest.approx(ssim_by_definition(a, b), abs=1e-12)
    assert pixels.ssim(a, a) == 1


def test_ssim_of_a_region_is_that_of_whole_windows_in_it(rng):
    a = clip_of(rng, 2, 18, 20)
    b = noisy(a, rng)
    where = np.ones(a.shape[:3], bool)
    where[0, :, :6], where[1, 3, 14] = False, False
    expected = ssim_by_definition(a, b, where)
    assert pixels.ssim_where(a, b, where) == pytest.approx(expected, abs=1e-12)
    b[~where] = 0
    assert pixels.ssim_where(a, b, where) == pytest.approx(expected, abs=1e-12)
    where[:, 9, ::5] = False
    assert pixels.ssim_where(a, b, where) is None


def test_psnr_of_a_region_counts_no_other_pixel(rng):
    a = clip_of(rng)
    b, where = a.copy(), np.zeros(a.shape[:3], bool)
    where[:, :10] = True
    b[:, 10:] = 255 - b[:, 10:]
    assert pixels.psnr_where(a, b, where) == 100
    # a recolored region: every level is off by 5
    recolored = np.where(a > 127, a - 5, a + 5).astype(np.uint8)
    expected = 20 * math.log10(255 / 5)
    assert pixels.psnr_where(a, recolored, where) == pytest.approx(expected, abs=1e-12)
    assert pixels.psnr_where(a, b, where & False) is None


def test_unchanged_is_three_pixels_away_from_any_change():
    source = np.zeros((2, 12, 12, 3), np.uint8)
    truth = source.copy()
    truth[1, 5, 6, 2] = 1
    y, x = np.mgrid[:12, :12]
    far = np.maximum(abs(y - 5), abs(x - 6)) >= 3
    region = pixels.unchanged(source, truth)
    assert region[0].all() and np.array_equal(region[1], far)


def test_flicker_is_the_rms_of_the_difference_of_changes(rng):
    a, b = clip_of(rng, 4), clip_of(rng, 4)
    x, y = a.astype(float), b.astype(float)
    changes = (x[1:] - x[:-1]) - (y[1:] - y[:-1])
    assert pixels.flicker(a, b) == pytest.approx(math.sqrt((changes**2).mean()), rel=1e-12)


def test_flicker_of_known_clips(rng):
    half = clip_of(rng, 4) // 2
    # another picture, the same in all frames, is none
    assert pixels.flicker(half + np.uint8(40), half) == 0
    # a frozen clip lacks all of the reference's changes
    frozen = np.repeat(half[:1], 4, axis=0)
    changes = np.diff(half.astype(float), axis=0)
    expected = math.sqrt((changes**2).mean())
    assert pixels.flicker(frozen, half) == pytest.approx(expected, rel=1e-12)
    # levels that go up and down by 8 change by 16 between frames
    sign = np.array([1, -1, 1, -1])[:, None, None, None]
    assert pixels.flicker((half + 60 + 8 * sign).astype(np.uint8), half) == pytest.approx(16)
    # swapped frames are seen, though the pictures are the same
    assert pixels.flicker(half[[0, 2, 1, 3]], half) > 10


# optical flow


@pytest.fixture(scope="module")
def texture():
    """A smooth random picture of 120x140, of which a clip shows a part."""
    noise = np.random.default_rng(1).normal(size=(120, 140, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving(texture, dx, dy, frames=3, size=72):
    """A clip whose content moves by (dx, dy) pixels from each frame to the next."""
    top, left = 24, 34
    return np.stack([texture[top - i * dy :, left - i * dx :][:size, :size] for i in range(frames)])


INNER = (slice(None), slice(16, -16), slice(16, -16))


def test_flow_of_a_shifted_clip_is_the_shift(texture):
    pytest.importorskip("cv2")
    clip = moving(texture, 3, -2)
    forward, backward = flow.flows(clip), flow.flows(clip, backward=True)
    assert forward.shape == (2, 72, 72, 2)
    assert abs(forward[INNER] - (3, -2)).max() < 0.25
    assert abs(backward[INNER] + (3, -2)).max() < 0.25


def test_flow_difference_is_the_mean_end_point_difference(rng):
    a, b = rng.normal(size=(2, 2, 5, 6, 2))
    by_pixel = np.sqrt(((a - b) ** 2).sum(-1))
    assert flow.flow_difference(a, b) == pytest.approx(by_pixel.mean(), rel=1e-12)
    where = rng.random(by_pixel.shape) < 0.5
    found = flow.flow_difference(a, b, where)
    assert found == pytest.approx(by_pixel[where].mean(), rel=1e-12)
    assert flow.flow_difference(a, b, where & False) is None


def test_flow_difference_of_known_clips(texture):
    pytest.importorskip("cv2")
    source, frozen = moving(texture, 3, -2), moving(texture, 0, 0)
    a, b = flow.flows(source), flow.flows(frozen)
    inner = np.zeros(a.shape[:3], bool)
    inner[INNER] = True
    # what stands still misses all of the motion; what is recolored moves as before
    assert flow.flow_difference(a, b, inner) == pytest.approx(math.hypot(3, 2), abs=0.15)
    recolored = flow.flows(255 - source)
    assert flow.flow_difference(a, recolored, inner) < 0.1
    # played backward it moves the other way: twice as far off
    backward = flow.flows(source[::-1])
    assert flow.flow_difference(a, backward, inner) == pytest.approx(2 * math.hypot(3, 2), abs=0.3)


def warping_error_by_definition(clip, forward, backward):
    """The pixels of frame i against those of frame i + 1, by bilinear weights written out."""

    def at(picture, x, y):
        h, w = picture.shape[:2]
        x, y = np.clip(x, 0, w - 1), np.clip(y, 0, h - 1)
        i, j = int(min(y, h - 2)), int(min(x, w - 2))
        v, u = y - i, x - j
        p = picture.astype(float)
        upper = (1 - u) * p[i, j] + u * p[i, j + 1]
        return (1 - v) * upper + v * ((1 - u) * p[i + 1, j] + u * p[i + 1, j + 1])

    squares = []
    _, h, w = clip.shape[:3]
    for i, y, x in np.ndindex(len(clip) - 1, h, w):
        there = forward[i, y, x].astype(float)
        to = np.array([x, y]) + there
        back = at(backward[i], *to)
        most = 0.01 * ((there**2).sum() + (back**2).sum()) + 0.5
        if 0 <= to[0] <= w - 1 and 0 <= to[1] <= h - 1 and ((there + back) ** 2).sum() <= most:
            squares.append((at(clip[i + 1], *to) - clip[i, y, x].astype(float)) ** 2)
    return math.sqrt(np.mean(squares))


def test_warping_error_is_its_definition(rng):
    pytest.importorskip("cv2")
    clip = clip_of(rng, 3, 10, 12)
    # quarters of a pixel, because OpenCV places pixels by 1/32
    forward = rng.integers(-8, 9, (2, 10, 12, 2)).astype(np.float32) / 4
    backward = -forward + rng.integers(-2, 3, forward.shape).astype(np.float32) / 4
    expected = warping_error_by_definition(clip, forward, backward)
    assert flow.warping_error(clip, forward, backward) == pytest.approx(expected, rel=1e-5)


def test_warping_error_of_known_clips(texture):
    pytest.importorskip("cv2")
    source = moving(texture, 3, -2)
    there, back = flow.flows(source), flow.flows(source, backward=True)
    assert flow.warping_error(source, there, back) < 2
    # a new color that moves along is no error, and one that comes and goes is
    assert flow.warping_error(255 - source, there, back) < 2
    flashing = source // 2 + np.array([0, 30, 0], np.uint8)[:, None, None, None]
    assert flow.warping_error(flashing, there, back) == pytest.approx(30, abs=0.5)
    frozen = np.repeat(source[:1], 3, axis=0)
    shifted = source[0, 2:, :-3].astype(float) - source[0, :-2, 3:]
    assert flow.warping_error(frozen, there, back) == pytest.approx(
        math.sqrt((shifted**2).mean()), rel=0.1
    )
    # nothing is visible twice
    assert flow.warping_error(source, there + 200, back) is None


def test_without_opencv_flow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"OpenCV.*pip install '\.\[evaluate\]'"):
        flow.flows(np.zeros((2, 16, 16, 3), np.uint8))


# features and latents


def test_matched_cosine_is_the_mean_of_the_best_cosines(rng):
    a, b = rng.normal(size=(3, 4, 5, 7)), rng.normal(size=(2, 6, 7))
    ours, theirs = a.reshape(-1, 7), b.reshape(-1, 7)
    dots = ours @ theirs.T
    cosines = dots / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    found = features.matched_cosine(torch.tensor(a), torch.tensor(b))
    assert found == pytest.approx(cosines.max(1).mean(), abs=1e-6)


def test_matched_cosine_of_known_features(rng):
    reference = torch.tensor(rng.normal(size=(4, 5, 7)))
    # the same places elsewhere, and of another length, are found again
    moved = 3 * torch.stack([reference.roll(i, 1) for i in range(3)])
    assert features.matched_cosine(moved, reference) == pytest.approx(1, abs=1e-6)
    first, second = torch.eye(8)[:4].reshape(2, 2, 8), torch.eye(8)[4:].reshape(2, 2, 8)
    assert features.matched_cosine(first[None], second) == 0
    assert features.matched_cosine(torch.stack([first, second]), first) == 0.5


@pytest.mark.parametrize("lag", [None, 1, 2])
def test_distances_of_latents_are_their_rms(rng, lag):
    z = rng.normal(size=(1, 4, 5, 3, 2))
    expected = []
    for i in range(5):
        other = 0 if lag is None else max(0, i - lag)
        expected.append(math.sqrt(((z[0, :, i] - z[0, :, other]) ** 2).mean()))
    assert features.distances(torch.tensor(z), lag) == pytest.approx(expected, rel=1e-12)


# LPIPS


@pytest.fixture
def stub(monkeypatch):
    """Stands for torchmetrics, whose weights are downloaded; writes down how it was made."""
    made = {}

    class Stub(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            made.update(options)

        def forward(self, a, b):
            assert a.shape == b.shape and a.min() >= 0 and a.max() <= 1
            return (a - b).abs().mean()

    for name in ("torchvision", "torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("torchmetrics.image.lpip")
    module.LearnedPerceptualImagePatchSimilarity = Stub
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_lpips_is_asked_for_each_pair_of_frames(stub, rng):
    a, b = clip_of(rng), clip_of(rng)
    net = lpips.load()
    assert stub == {"net_type": "alex", "normalize": True}
    expected = (abs(a.astype(float) - b) / 255).mean()
    assert lpips.lpips(a, b, net) == pytest.approx(expected, abs=1e-6)
    where = rng.random(a.shape[:3]) < 0.5
    expected = (abs(a.astype(float) - b)[where]).sum() / 255 / a.size
    assert lpips.lpips(a, b, net, where) == pytest.approx(expected, abs=1e-6)
    # outside of a region both are black
    light = (a.astype(float)[where].sum() + b[where].sum()) / 255 / len(a)
    found = lpips.lpips(a, b, lambda x, y: x.sum() + y.sum(), where)
    assert found == pytest.approx(light, rel=1e-5)


def test_without_torchmetrics_lpips_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"pip install '\.\[lpips\]'"):
        lpips.load()


def test_without_its_weights_lpips_says_so(stub, monkeypatch):
    def fails(**_):
        raise OSError("<urlopen error no network>")

    module = sys.modules["torchmetrics.image.lpip"]
    monkeypatch.setattr(module, "LearnedPerceptualImagePatchSimilarity", fails)
    with pytest.raises(InputError, match="AlexNet could not be downloaded: .*no network"):
        lpips.load()


def test_a_torchvision_of_another_torch_is_told(stub, monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(InputError, match="does not fit this torch: operator torchvision::nms"):
        lpips.load()


def test_lpips_by_torchmetrics_is_its_definition(rng, monkeypatch):
    """With random weights of AlexNet, since the real ones are downloaded (Zhang et al., eq. 1)."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    pytest.importorskip("torchmetrics")
    alexnet = torchvision.models.alexnet
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights=None: alexnet())
    net = lpips.load()
    inner = net.net
    a = clip_of(rng, 2, 64, 64)
    b = noisy(a, rng, 60)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def units(clip):
        pixels = (torch.tensor(clip).permute(0, 3, 1, 2) / 127.5 - 1 - shift) / scale
        return [x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in inner.net(pixels)]

    layers = zip(units(a), units(b), inner.lins, strict=True)
    weighted = [line.model[-1]((x - y).square()).mean() for x, y, line in layers]
    assert lpips.lpips(a, b, net) == pytest.approx(float(sum(weighted)), rel=1e-4)
    assert lpips.lpips(a, a, net) == 0
