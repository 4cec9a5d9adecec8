"""Matching by patches, against a search through all pairs in float64, and against known motion."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from anyv2v.correspondence import patches
from anyv2v.correspondence.patches import Matches, match_patches
from anyv2v.errors import InputError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, in which a shift by one pixel still looks alike."""
    smooth = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0)
    )
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def squares_of_all_pairs(frame: np.ndarray, references: np.ndarray, radius: int) -> np.ndarray:
    """Mean squared differences of all pairs of patches, float64 (h * w, r * h * w)."""

    def patch(picture, y, x):
        rows = np.clip(np.arange(y - radius, y + radius + 1), 0, picture.shape[0] - 1)
        columns = np.clip(np.arange(x - radius, x + radius + 1), 0, picture.shape[1] - 1)
        return picture[np.ix_(rows, columns)].astype(np.float64).ravel()

    h, w = frame.shape[:2]
    ours = np.array([patch(frame, y, x) for y in range(h) for x in range(w)])
    theirs = np.array([patch(f, y, x) for f in references for y in range(h) for x in range(w)])
    return ((ours[:, None] - theirs) ** 2).mean(-1)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_the_match_is_the_least_of_all_pairs(radius):
    # few levels, so that many patches are equal and the distance decides
    frame, references = noise(7, 9) // 128 * 9, noise(2, 7, 9, seed=1) // 128 * 9
    squares = squares_of_all_pairs(frame, references, radius)
    y, x = np.divmod(np.arange(63), 9)
    steps = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    costs = squares + patches.FAR / 63 * np.tile(steps, 2)
    found = match_patches(frame, references, radius)
    index = found.index.numpy().ravel()
    np.testing.assert_allclose(costs[np.arange(63), index], costs.min(1), rtol=1e-5, atol=1e-5)
    expected = np.sqrt(squares[np.arange(63), index])
    np.testing.assert_allclose(found.distance.numpy().ravel(), expected, rtol=1e-6)


def test_rivals_are_the_least_of_the_pairs_apart():
    frame, references = noise(8, 9), noise(2, 8, 9, seed=1)
    squares = squares_of_all_pairs(frame, references, 1)
    found = match_patches(frame, references, 1, rivals=True)
    index = found.index.numpy().ravel()
    y, x = np.divmod(np.arange(72), 9)
    best = index % 72
    steps = (np.arange(72)[:, None], np.arange(72))
    penalty = patches.FAR / 72 * ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2)[steps]
    mine = np.where((index < 72)[:, None], squares[:, :72], squares[:, 72:])
    near = (abs(y[best][:, None] - y) < patches.APART) & (abs(x[best][:, None] - x) < patches.APART)
    chosen = np.where(near, np.inf, mine + penalty).argmin(1)
    expected = np.sqrt(mine[np.arange(72), chosen])
    np.testing.assert_allclose(found.rival.numpy().ravel(), expected, rtol=1e-6)
    assert (found.rival >= found.distance).float().mean() > 0.9


def test_a_flat_picture_matches_in_place_and_says_that_it_is_ambiguous():
    flat = np.full((12, 16, 3), 77, np.uint8)
    found = match_patches(flat, flat[None], rivals=True)
    assert found.index.equal(torch.arange(192).view(12, 16))
    assert not found.distance.any() and not found.rival.any()
    large = np.full((150, 131, 3), 200, np.uint8)
    found = match_patches(large, large[None], rivals=True)
    assert found.index.equal(torch.arange(150 * 131).view(150, 131))
    assert found.rival.shape == (150, 131) and not found.rival.any()


@pytest.mark.parametrize(("height", "width", "dy", "dx"), [(64, 80, 5, -9), (203, 150, -23, 31)])
def test_finds_a_shift(height, width, dy, dx):
    """Small: exactly; large, with odd sizes: through all sizes of the pyramid."""
    whole = texture(height + 80, width + 80)
    frame = whole[40 : 40 + height, 40 : 40 + width]
    moved = whole[40 - dy : 40 - dy + height, 40 - dx : 40 - dx + width]
    # a second reference in which nothing is found
    found = match_patches(frame, np.stack([noise(height, width), moved]))
    y, x = np.mgrid[:height, :width]
    seen = (y + dy >= 8) & (y + dy < height - 8) & (x + dx >= 8) & (x + dx < width - 8)
    seen &= (y >= 2) & (y < height - 2) & (x >= 2) & (x < width - 2)
    expected = height * width + (y + dy) * width + x + dx
    right = found.index.numpy() == expected
    assert right[seen].mean() > 0.995
    assert found.distance.numpy()[right & seen].max() == 0
    # the values that are taken are those of the reference
    references = torch.from_numpy(np.stack([noise(height, width), moved]))
    assert found.take(references).numpy()[right & seen].tolist() == frame[right & seen].tolist()


def test_two_motions_are_told_apart_at_full_size():
    """A square that moves against its ground: each side of its edge has its own match."""
    ground, square = texture(160 + 24, 160, 1), texture(40, 40, 2)
    reference, frame = ground[:160].copy(), ground[16:176].copy()
    reference[60:100, 40:80], frame[60:100, 70:110] = square, square
    found = match_patches(frame, reference[None]).index.numpy()
    y, x = np.mgrid[:160, :160]
    inside = (y >= 62) & (y < 98) & (x >= 72) & (x < 108)
    expected = np.where(inside, y * 160 + x - 30, (y + 16) * 160 + x)
    beside = (y >= 58) & (y < 102) & (x >= 68) & (x < 112) & ~inside
    # ground that leaves the reference below, or lies under the square there, has no true match
    covered = (y + 16 >= 56) & (y + 16 < 104) & (x >= 36) & (x < 84)
    known = ~beside & (y + 16 < 156) & ~(covered & ~inside) & (y >= 2) & (x >= 2) & (x < 158)
    right = found == expected
    assert right[inside].mean() > 0.97
    assert right[known & ~inside].mean() > 0.97


def test_takes_values_of_any_shape_at_the_matches():
    index = torch.tensor([[5, 0], [3, 7]])
    found = Matches(index, torch.zeros(2, 2))
    values = torch.arange(8.0).view(2, 2, 2)
    assert found.take(values).tolist() == [[5, 0], [3, 7]]
    assert found.take(values[..., None] * torch.ones(3)).tolist()[1][1] == [7, 7, 7]


@pytest.mark.parametrize(
    ("frame", "references", "message"),
    [
        (np.zeros((4, 4)), np.zeros((1, 4, 4, 3), np.uint8), "frame must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), "references must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 5, 3), np.uint8), "of the size of"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), "of the size of"),
    ],
)
def test_refuses_what_does_not_fit(frame, references, message):
    with pytest.raises(InputError, match=message):
        match_patches(frame, references)


def test_of_equal_candidates_the_nearest_is_taken_at_every_size():
    """In a flat picture with coarse matches one pixel off, twice one candidate is closest."""
    flat = torch.full((1, 8, 10, 3), 77, dtype=torch.uint8)
    coarse = Matches((torch.arange(20).view(4, 5) + 1).clamp(max=19), torch.zeros(4, 5))
    found = patches._refine(flat, flat, 1, coarse).index
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    # two pixels off at this size, and one less by the best of the candidates around
    assert found[:6, :8].equal((y * 10 + x + 1)[:6])
