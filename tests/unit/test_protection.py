"""Protection: which pixels come from the source, on clips whose true masks are known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import anyv2v
from anyv2v.errors import InputError
from anyv2v.media.psnr import psnr
from anyv2v.media.video import write_video
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Source
from anyv2v.protection.given import masks_of
from anyv2v.protection.mask import Protection, changed_pixels, compose
from anyv2v.protection.protect import protect

FRAMES, SIDE = 4, 48
MOVING = ("clip of arrays", "folder", "video")
REACH = 1 + 4  # a mask grows by one cell, and its border is softened over four


def texture(seed: int, *shape: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(*shape, 3)), (1.5, 1.5, 0)
    )
    return np.uint8(40 + 150 * (smooth - smooth.min()) / np.ptp(smooth))


def clip(scale: int = 1, recolored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A square that moves over a still ground, and where it is: (f, h, w, 3), bool (f, h, w)."""
    frames = np.repeat(texture(0, SIDE, SIDE)[None], FRAMES, 0)
    square, where = texture(1, 16, 16), np.zeros((FRAMES, SIDE, SIDE), bool)
    if recolored:
        square = 255 - square // 2
    for i in range(FRAMES):
        y, x = 6 + 5 * i, 28 - 6 * i
        frames[i, y : y + 16, x : x + 16], where[i, y : y + 16, x : x + 16] = square, True
    return frames.repeat(scale, 1).repeat(scale, 2), where.repeat(scale, 1).repeat(scale, 2)


def blurred_by_a_model(frames: np.ndarray) -> np.ndarray:
    """The errors of an autoencoder: a little everywhere, more at edges."""
    soft = ndimage.gaussian_filter(frames.astype(float), (0, 0.5, 0.5, 0))
    noisy = soft + np.random.default_rng(2).uniform(-4, 4, frames.shape)
    return np.uint8(np.clip(np.rint(noisy), 0, 255))


def source_of(frames: np.ndarray) -> Source:
    return Source(anyv2v.Video(frames, 8), None, 0, None, "")


def edit_of(frames: np.ndarray, first: np.ndarray | None, factor: int = 4) -> Edit:
    _, h, w, _ = frames.shape
    # two latent frames, as of an autoencoder that compresses time
    return Edit(
        frames,
        8,
        torch.zeros(1, 4, 2, h // factor, w // factor),
        {} if first is None else {0: first},
    )


def test_composes_to_the_bit_at_both_ends_and_rounds_between():
    source, edited = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 7, 3), np.uint8)
    mask = np.random.default_rng(1).choice(np.float32([0, 0.25, 1]), (5, 6, 7))
    result = compose(source, edited, mask)
    assert (result[mask == 0] == source[mask == 0]).all()
    assert (result[mask == 1] == edited[mask == 1]).all()
    quarter = np.rint(0.75 * source.astype(float) + 0.25 * edited)
    assert (result[mask == 0.25] == quarter[mask == 0.25]).all()
    # one strength for each frame
    fade = compose(source, edited, np.float32([0, 0.25, 0.5, 0.75, 1])[:, None, None])
    assert (fade[0] == source[0]).all() and (fade[4] == edited[4]).all()
    assert (fade[1] == quarter[1]).all()


def test_the_change_of_a_frame_that_was_painted_in_is_told_from_eight_levels_on():
    frame = texture(0, 32, 32)
    edited = frame.copy()
    edited[4:8, 4:8, 1] += 8
    edited[20:24, 20:24, 2] -= 9
    expected = np.zeros((32, 32), bool)
    expected[20:24, 20:24] = True
    assert (changed_pixels(frame, edited) == expected).all()


def test_errors_of_an_encoded_frame_are_no_change():
    flat = np.full((32, 32, 3), 100, np.uint8)
    flat[:, 16:] = 200
    encoded = flat + np.random.default_rng(0).integers(1, 6, flat.shape, dtype=np.uint8)
    encoded[:, 15:17] = 135  # at the edge: 35 and 65 levels off
    encoded[:, 16] = 166  # 34 levels off
    encoded[2:5, 2:5] = 117  # inside: 17 levels off
    encoded[10:12, 2:5] = 116
    expected = np.zeros((32, 32), bool)
    expected[2:5, 2:5] = True
    assert (changed_pixels(flat, encoded) == expected).all()
    # above the contrast's share, 16 + 0.2 * 100 levels, it is a change at an edge, too
    encoded[:, 16] = 163
    assert changed_pixels(flat, encoded)[:, 16].all()
    # around a pixel may mean farther away
    encoded[2:5, 13:15] = 120
    assert changed_pixels(flat, encoded)[2:5, 13].all()
    assert not changed_pixels(flat, encoded, reach=3)[2:5, 13:15].any()


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(("scale", "factor"), [(1, 4), (2, 8)])
def test_the_mask_follows_what_was_edited(scale, factor, encoded):
    (before, where), (after, _) = clip(scale), clip(scale, recolored=True)
    edited = blurred_by_a_model(after)
    first = edited[0] if encoded else after[0]
    protection = Protection(before[:1], first[None], factor)
    for i in range(FRAMES):
        mask = protection.mask(before[i], edited[i])
        assert mask.shape == before.shape[1:3] and mask.dtype == np.float32
        assert 0 <= mask.min() and mask.max() <= 1
        inner = ndimage.binary_erosion(where[i], np.ones((3, 3)), iterations=3 * scale)
        # what the square hid in frame 0 has no true match there
        seen_or_hid = where[i] | where[0]
        far = ~ndimage.binary_dilation(seen_or_hid, np.ones((3, 3)), iterations=(REACH + 2) * scale)
        assert mask[inner].min() > 0.99
        assert (mask[far] == 0).mean() > (0.97 if encoded else 0.999)


def test_the_border_of_a_mask_is_a_gaussian_one_cell_out():
    """The change ends at column 20; the mask passes 1/2 one cell later, sigma 1 cell."""
    frame = texture(0, 32, 48)
    edited = frame.copy()
    edited[:, :20] = 255 - frame[:, :20] // 2
    mask = Protection(frame[None], edited[None], 4).mask(frame, edited)[16]
    # the center of column x is at x + 1/2, the border that was moved out at 21
    expected = [0.5 * math.erfc((x + 0.5 - 21) / math.sqrt(2)) for x in range(18, 24)]
    assert mask[18:24].tolist() == pytest.approx(expected, abs=0.02)
    assert (mask[:17] == 1).all() and (mask[25:] == 0).all()


@pytest.mark.parametrize(
    ("height", "width", "levels", "shown"), [(4, 4, 33, True), (3, 9, 90, False), (9, 9, 32, False)]
)
def test_what_clearly_differs_is_the_edits_and_thin_or_faint_errors_are_not(
    height, width, levels, shown
):
    """A shadow that the first frame has not, against errors of the autoencoder."""
    frame = texture(0, 40, 40)
    first = frame.copy()
    first[30:36, 30:36] = 0
    edited = frame.copy()
    edited[10 : 10 + height, 10 : 10 + width] += np.uint8(levels)
    mask = Protection(frame[None], first[None], 4).mask(frame, edited)
    assert mask[11, 11] == (pytest.approx(1, abs=0.08) if shown else 0)
    assert (mask[:4] == 0).all() and mask[33, 33] == 1


def test_the_contrast_around_a_pixel_reaches_a_quarter_of_a_latent():
    """With 8 pixels per latent, two pixels beside an edge still lie at it."""
    frame = np.full((64, 64, 3), 100, np.uint8)
    frame[:, 32:] = 200
    encoded = frame + np.random.default_rng(0).integers(1, 6, frame.shape, dtype=np.uint8)
    encoded[20:40, 30] = 120  # 20 levels off, below 16 + 0.2 * 100
    protection = Protection(frame[None], encoded[None], 8)
    assert not protection.mask(frame, frame).any()
    encoded[20:40, 28] = 120
    mask = Protection(frame[None], encoded[None], 8).mask(frame, frame)
    assert (mask[22:38, 28] > 0.8).all()


def test_colors_that_are_alike_by_chance_are_not_protected():
    """Unchanged squares of less than a latent in a changed ground, against one of a latent."""
    frame = texture(0, 40, 40)
    edited = 255 - frame // 2
    edited[5:8, 5:8] = frame[5:8, 5:8]
    edited[20:32, 20:32] = frame[20:32, 20:32]
    mask = Protection(frame[None], edited[None], 4).mask(frame, edited)
    assert (mask[:16, :16] == 1).all() and mask[26, 26] < 0.01


def test_several_references_serve_what_is_in_one_of_them_alone():
    (before, where), (after, _) = clip(), clip(recolored=True)
    ground = texture(0, SIDE, SIDE)
    before[0] = after[0] = ground  # the square comes in later
    known = Protection(before[[0, 2]], after[[0, 2]], 4).mask(before[3], before[3])
    inner = ndimage.binary_erosion(where[3], np.ones((3, 3)), iterations=3)
    assert known[inner].min() > 0.99
    unknown = Protection(before[:1], after[:1], 4).mask(before[3], before[3])
    assert unknown.max() == 0


def test_an_edit_of_everything_is_returned_as_it_is():
    before, _ = clip()
    after = blurred_by_a_model(255 - before)
    edit = edit_of(after, 255 - before[0])
    result = protect(edit, source_of(before))
    assert result.frames is edit.frames and result.kept == 0
    protection = Protection(before[:1], 255 - before[:1], 4)
    assert protection.changes_everything
    assert (protection.mask(before[1], after[1]) == 1).all()
    # a fifteenth of it that stayed is protected
    partly = 255 - before[:1]
    partly[:, :6] = before[:1, :6]
    assert not Protection(before[:1], partly, 4).changes_everything


def test_protects_an_edit_and_says_how_much():
    (before, _), (after, _) = clip(), clip(recolored=True)
    edit = edit_of(blurred_by_a_model(after), after[0])
    result = protect(edit, source_of(before))
    same = (result.frames == before).all(-1)
    assert 0.4 < result.kept <= same.mean()
    assert result.latents is edit.latents and (
        result.fps,
        result.references is edit.references,
    ) == (8, True)
    # the truth outside is the source: the whole gains, and the inside loses nothing
    assert psnr(result.frames, after) > psnr(edit.frames, after) + 1.5
    protection = Protection(before[:1], after[:1], 4)
    masks = [protection.mask(*pair) for pair in zip(before, edit.frames, strict=True)]
    assert result.kept == (np.stack(masks) == 0).mean()
    assert (result.frames == compose(before, edit.frames, np.stack(masks))).all()


@pytest.mark.parametrize("kind", ["array", "clip of arrays", "picture", "folder", "video"])
def test_a_mask_of_ones_own(kind, tmp_path):
    """White may change, black is the source's to the bit; a frame may be black everywhere."""
    (before, _), (after, _) = clip(), clip(recolored=True)
    edit = edit_of(blurred_by_a_model(after), after[0])
    chosen = np.zeros((FRAMES, SIDE, SIDE), bool)
    for i in range(FRAMES):
        chosen[i, 10:30, 8 * i * (kind in MOVING) :] = True
    if kind in MOVING:
        chosen[1] = False
    levels = np.uint8(255 * chosen)
    pictures = np.repeat(levels[..., None], 3, -1)
    mask = {"array": chosen[0], "clip of arrays": chosen}.get(kind)
    if kind == "picture":
        Image.fromarray(levels[0]).save(mask := tmp_path / "mask.png")
    elif kind == "folder":
        (mask := tmp_path / "masks").mkdir()
        for i, picture in enumerate(pictures.clip(9, 240)):
            Image.fromarray(picture).save(mask / f"{i:03}.png")
    elif kind == "video":
        write_video(mask := tmp_path / "mask.mp4", pictures, 8)
    result = protect(edit, source_of(before), mask)
    # lossy files blur the border by a pixel or two
    near = np.zeros_like(chosen)
    if kind == "video":
        near = ndimage.maximum_filter(chosen, (1, 5, 5)) & ~ndimage.minimum_filter(
            chosen, (1, 5, 5)
        )
    assert (result.frames[chosen & ~near] == edit.frames[chosen & ~near]).all()
    assert (result.frames[~chosen & ~near] == before[~chosen & ~near]).all()
    assert result.kept == pytest.approx((~chosen).mean(), abs=near.mean())


def test_refuses_masks_that_are_wrong():
    with pytest.raises(InputError, match=r"\(9, 8\) is neither \(8, 9\) nor \(4, 8, 9\)"):
        masks_of(np.ones((9, 8)), (9, 8), 4)
    with pytest.raises(InputError, match="selects nothing"):
        masks_of(np.zeros((4, 8, 9)), (9, 8), 4)
    with pytest.raises(InputError, match="no such file"):
        masks_of("/nowhere/mask.png", (9, 8), 4)


def test_refuses_what_does_not_fit():
    before, _ = clip()
    source = source_of(before)
    with pytest.raises(InputError, match="edit: .* is no edit of this source"):
        protect(edit_of(before[:2], before[0]), source)
    with pytest.raises(InputError, match="edit: it has no edited first frame"):
        protect(edit_of(before, None), source)
    with pytest.raises(InputError, match="edit: .* is not an Edit"):
        protect(before, source)
    with pytest.raises(InputError, match="edited: .* is not the shape of sources"):
        Protection(before[:1], before[:2], 4)
    with pytest.raises(InputError, match="factor: 28 does not fit"):
        Protection(before[:1], before[:1], 28)
    protection = Protection(before[:1], before[:1], 4)
    with pytest.raises(InputError, match="edited: uint8 .* is not uint8"):
        protection.mask(before[0], before[0, :32])
    with pytest.raises(InputError, match="mask: values of 0 to 2"):
        Protection(before[:1], before[:1], 4, np.linspace(0, 2, SIDE**2).reshape(SIDE, SIDE))
    stack = Protection(before[:1], before[:1], 4, np.ones((2, SIDE, SIDE)))
    with pytest.raises(InputError, match="index: 2"):
        stack.mask(before[0], before[0], 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("colour", 102), ("style", 106)])
def test_an_edit_of_the_demo_gains(kind, number):
    """A local edit gains; a style, which changes everything, keeps its bits."""
    from anyv2v.weights.demo.scenes import draw_edit
    from anyv2v.weights.demo.scores import Truth

    editor = anyv2v.load("demo")
    scene = draw_edit(kind, "held-out", 7_000_000 + number)
    truth = Truth.of(scene, editor.defaults.size, 8)
    video = anyv2v.Video(truth.source, 8)
    source = editor.invert(video, steps=8, prompt=scene.source.caption)
    encoded = editor.decode(editor.encode_frames(truth.frames[:1]))[0]
    for first in (truth.frames[0], encoded):
        plain = editor.edit(source, first, scene.truth.caption, steps=8)
        result = protect(plain, source)
        gain = psnr(result.frames[1:], truth.frames[1:]) - psnr(plain.frames[1:], truth.frames[1:])
        assert gain > 0.3 if kind == "colour" else result.frames is plain.frames


def test_all_keyframes_of_a_long_edit_say_what_changed():
    before, where = clip()
    after, last = np.where(where[..., None], before - 20, before), len(before) - 1
    # the first frame was left alone, so only the last one tells of the edit
    edit = replace(edit_of(after, before[0]), references={0: before[0]})
    source = SimpleNamespace(video=anyv2v.Video(before, 8))
    blind = protect(edit, source)
    told = protect(replace(edit, references={0: before[0], last: after[last]}), source)
    assert told.kept < blind.kept == 1
    assert psnr(told.frames, after) > psnr(blind.frames, after)


def test_a_style_that_moves_all_colors_a_little_is_protected_nowhere():
    before, _ = clip()
    brighter, encoded = before + np.uint8(11), blurred_by_a_model(before)
    assert changed_pixels(before[0], brighter[0]).all()
    assert not changed_pixels(before[0], encoded[0]).any()
    result = protect(edit_of(brighter, brighter[0]), source_of(before))
    assert result.kept == 0 and np.array_equal(result.frames, brighter)
