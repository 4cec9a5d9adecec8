"""What all editors of frames do alike: seeds, options, masks, memory, and what they are told."""

import gc
import sys
import weakref
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.cluster.vq import vq

import anyv2v
from anyv2v.cli.first_frame import uses
from anyv2v.errors import InputError
from anyv2v.frame_editors import (
    EDITORS,
    instruct_pix2pix,
    ip_adapter,
    oklab,
    painting,
    regions,
    t2i_adapter,
)
from anyv2v.frame_editors import registry as choose
from anyv2v.frame_editors import run as running
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.command import Command, _resized
from anyv2v.frame_editors.mask import as_mask, blend, detect_changes
from anyv2v.frame_editors.recolor import dye, find_region, most_colorful, parse_colors
from anyv2v.frame_editors.run import candidates
from anyv2v.frame_editors.style import k_means
from anyv2v.stable_diffusion.ip_adapter import SITES
from anyv2v.stable_diffusion.painting import Painting

NEEDED = "needed"
DEFAULTS = {
    "recolour": {"lightness": 0.5, "tolerance": 1.0, "least": 0.1},
    "palette": {"method": "gaussian", "strength": 1.0},
    "posterise": {"colours": 8, "smooth": 0.005},
    "edges": {"strength": 1.0, "detail": 0.5, "paper": False},
    "command": {"command": NEEDED, "timeout": 600.0},
    # those of timothybrooks/instruct-pix2pix, edit_cli.py
    "instruct-pix2pix": {
        **{"weights": NEEDED, "steps": 100, "guidance": 7.5, "image_guidance": 1.5, "size": 512}
    },
    # 50 steps and guidance of 7.5 are those of Stable Diffusion's pipelines; of a picture that is
    # painted over IP-Adapter's own demo keeps four tenths
    "ip-adapter": {
        **{"weights": NEEDED, "adapter": NEEDED, "blocks": "all", "scale": 1.0, "strength": 0.6},
        **{"guidance": 7.5, "steps": 50, "negative": "", "t2i": "", "kind": "canny"},
        **{"condition": "", "condition_scale": 1.0, "size": 512},
    },
    "t2i-adapter": {
        **{"weights": NEEDED, "adapter": NEEDED, "kind": "canny", "condition": "", "scale": 1.0},
        **{"strength": 1.0, "guidance": 7.5, "steps": 50, "negative": "", "size": 512},
    },
}


def shaded(h=48, w=64):
    """A red disc, lit from above, on a grey ground with a faint cast; with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    disc = (x - w // 2) ** 2 + (y - h // 2) ** 2 < (h // 3) ** 2
    light = (1.1 - y / (1.4 * h))[..., None]
    frame = np.where(disc[..., None], [190, 40, 35], [120, 122, 126]) * light
    return (frame + rng.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8), disc


FRAME, DISC = shaded()
REFERENCE = np.random.default_rng(3).normal((70, 110, 90), 12, (20, 30, 3)).clip(0, 255)
REFERENCE = REFERENCE.astype(np.uint8)


@pytest.mark.parametrize("name", EDITORS)
def test_what_is_taken_unless_it_is_told(name):
    found = {
        f.name: NEEDED if f.default is MISSING else f.default
        for f in fields(choose.find(name))
        if f.name not in choose.SETUP
    }
    assert found == DEFAULTS[name]
    made = choose.make(name, {n: "{output}" for n, d in found.items() if d == NEEDED})
    assert {n: getattr(made, n) for n, d in found.items() if d != NEEDED} == {
        n: d for n, d in found.items() if d != NEEDED
    }
    for field in choose.SETUP:
        assert getattr(made, field, None) is None


def test_the_functions_behind_them_take_the_same():
    import inspect

    given = inspect.signature(instruct_pix2pix.edit).parameters
    for name in ("steps", "guidance", "image_guidance"):
        assert given[name].default == DEFAULTS["instruct-pix2pix"][name]
    assert Painting() == Painting(50, 1.0, 7.5, "")


# seeds, instructions, references: what counts is what an editor says that it uses

SMALL = {
    "recolour": ("recolour", {}),
    "palette": ("palette", {}),
    "palette by transport": ("palette", {"method": "transport"}),
    "posterise": ("posterise", {"colours": 4}),
    "edges": ("edges", {}),
}


def edited(name, frame=FRAME, instruction="red > blue", reference=REFERENCE, seed=0, **options):
    """By the editor alone; `edit_frame` would collect garbage each time."""
    if "transport" in name:
        frame = frame[::4, ::4]
    name, own = SMALL.get(name, (name, {}))
    request = FrameRequest(frame, instruction, reference)
    return choose.make(name, {**own, **options})(request, [seed])[0]


@pytest.mark.parametrize("name", SMALL)
def test_an_editor_uses_what_it_says(name):
    first = edited(name)
    editor = choose.make(*SMALL[name])
    assert np.array_equal(edited(name), first), "equal arguments make equal pictures"
    others = {"instruction": "red > lime", "reference": REFERENCE[..., ::-1].copy(), "seed": 5}
    counts = {
        what for what, it in others.items() if not np.array_equal(first, edited(name, **{what: it}))
    }
    assert counts == editor.uses == uses(editor)
    assert editor.needs <= editor.uses | {"mask"}


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_means_the_same_whatever_is_asked_besides(name):
    editor = choose.make(*SMALL[name])
    frame = FRAME[::4, ::4] if "transport" in name else FRAME
    request = FrameRequest(frame, "red > blue", REFERENCE)
    found = editor(request, [7, 0])
    assert len(found) == 2 and editor(request, []) == []
    for seed, picture in zip((7, 0), found, strict=True):
        assert np.array_equal(picture, edited(name, seed=seed))
    # nobody writes into another's picture
    found[0][:] = 0
    assert np.array_equal(found[1], edited(name))


OTHERWISE = {
    "recolour": {"lightness": 0.0, "tolerance": 0.5, "least": 0.0},
    "palette": {"method": "transport", "strength": 0.5},
    "posterise": {"colours": 3, "smooth": 0.1},
    "edges": {"strength": 0.5, "detail": 0.9, "paper": True},
}


@pytest.mark.parametrize("name, option", [(n, o) for n, all_ in OTHERWISE.items() for o in all_])
def test_every_option_counts(name, option):
    assert set(OTHERWISE[name]) == set(DEFAULTS[name])
    frame = FRAME.copy()
    # a smaller piece of the disc's own colour, which `least` leaves out
    frame[2:8, 2:8] = (190, 40, 35)
    changed = edited(name, frame, **{option: OTHERWISE[name][option]})
    assert not np.array_equal(edited(name, frame), changed)


# masks and what is kept


@pytest.fixture
def quick(monkeypatch):
    """Without the garbage collection after each edit, which takes longer than these edits do."""
    monkeypatch.setattr(running, "gc", SimpleNamespace(collect=lambda: None))


class Negative:
    """Every pixel becomes another; by the seed."""

    needs = frozenset()

    def __call__(self, request, seeds):
        return [(255 - request.frame // (1 + seed)).astype(np.uint8) for seed in seeds]


class OnTheRight:
    """The right half becomes another, and every pixel brighter by one level."""

    needs = frozenset()

    def __call__(self, request, seeds):
        picture = request.frame.clip(0, 254) + 1
        picture[:, 32:] = 255 - request.frame[:, 32:]
        return [picture.copy() for _ in seeds]


UPPER = np.zeros((48, 64), np.float32)
UPPER[:24] = 1


@pytest.mark.parametrize("keep_unchanged", [False, True])
@pytest.mark.parametrize("mask", [None, UPPER], ids=["no mask", "mask"])
def test_a_mask_and_what_is_kept_hold_together(mask, keep_unchanged, quick):
    found = anyv2v.edit_frame(FRAME, OnTheRight(), mask=mask, keep_unchanged=keep_unchanged)
    same = (found == FRAME).all(-1)
    # far from the rims, by quarters of the frame
    assert not same[:16, 40:].any()
    assert same[:20, :24].all() == keep_unchanged
    assert same[24:, 40:].all() == (mask is not None)
    assert same[24:, :24].all() == (mask is not None or keep_unchanged)
    assert (not same[:20, :24].any()) == (not keep_unchanged)


def test_each_candidate_is_masked(quick):
    request = FrameRequest(FRAME, mask=UPPER)
    found = candidates(Negative(), request, [0, 1])
    assert len(found) == 2 and not np.array_equal(*found)
    for picture in found:
        assert np.array_equal(picture[24:], FRAME[24:])
        assert not (picture[:20] == FRAME[:20]).all(-1).any()
    whole = candidates(Negative(), replace(request, mask=None), [0, 1])
    assert np.array_equal(found[1][:20], whole[1][:20])


def test_the_edit_fades_in_within_the_mask():
    """Within an eightieth of the shorter side, here of 240: 1/4, 2/4, 3/4 and then all of it."""
    frame, edited_ = np.zeros((240, 240, 3), np.uint8), np.full((240, 240, 3), 200, np.uint8)
    mask = np.zeros((240, 240), np.float32)
    mask[:, 100:] = 1
    found = blend(frame, edited_, mask)
    assert found.dtype == np.uint8
    assert found[120, 98:106, 0].tolist() == [0, 0, 50, 100, 150, 200, 200, 200]
    assert (blend(frame, edited_, np.full_like(mask, 0.5)) == 100).all()


def test_a_mask_that_is_enlarged_is_soft():
    mask = np.array([[0, 0, 1, 1]] * 2, np.float32)
    # halfway between the middles of two pixels, and a quarter from either
    assert as_mask(mask, (4, 8))[1].tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]


PATCH = slice(90, 150), slice(90, 150)


def meant(everywhere, within, at=PATCH):
    """What is taken for meant of a grey frame of 240x240 that becomes lighter by so many levels.

    A level is 0.0031 of OKLab's lightness there.
    """
    frame = np.full((240, 240, 3), 128, np.uint8)
    edited_ = frame + np.uint8(everywhere)
    edited_[at] = 128 + within
    return detect_changes(frame, edited_)


def test_what_can_be_seen_may_be_meant_and_what_is_clear_is():
    # 0.012 and 0.031: the limit is 0.02 where nothing else changed
    assert not meant(0, 4).any() and meant(0, 10)[PATCH].all()
    # four times the 0.009 that is everywhere
    assert not meant(3, 9).any() and meant(3, 20)[PATCH].all()
    # 0.12 everywhere
    assert meant(40, 40).all()


def test_specks_are_not_meant_nor_are_small_holes():
    """Of fewer than a thousandth of the pixels, here 57, with what is near them."""
    dot = slice(100, 101), slice(100, 101)
    assert not meant(0, 100, dot).any()
    assert meant(0, 100, (slice(100, 108), slice(100, 108))).any()
    frame = np.full((240, 240, 3), 128, np.uint8)
    edited_ = frame.copy()
    edited_[PATCH] = 200
    edited_[110:114, 110:114] = 128
    assert detect_changes(frame, edited_)[PATCH].all()


def test_the_rim_of_the_blend_lies_around_what_is_meant():
    """An eightieth of the side, 3; what blurring and growing add to it is 3 more at most."""
    mask = meant(0, 60)
    assert mask[87:153, 87:153].all() and mask.dtype == np.float32
    mask[84:156, 84:156] = 0
    assert not mask.any()


@pytest.mark.parametrize(
    "shape, fits", [((200, 400), True), ((200, 403), True), ((200, 405), False)]
)
def test_a_mask_may_be_of_another_size_but_not_of_other_proportions(shape, fits):
    mask = np.zeros(shape, np.float32)
    mask[:, : shape[1] // 2] = 1
    if not fits:
        with pytest.raises(InputError, match=r"405x200 is not of the frame's proportions, 100x50"):
            as_mask(mask, (50, 100))
        return
    found = as_mask(mask, (50, 100))
    assert found.shape == (50, 100) and found.dtype == np.float32
    assert (found[:, :48] == 1).all() and (found[:, 52:] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda frame: [],
        lambda frame: [frame, frame],
        lambda frame: [frame[:-1]],
        lambda frame: [frame[:, :-1]],
        lambda frame: [frame[..., :1]],
        lambda frame: [frame.astype(np.float32)],
    ],
    ids=["none", "two", "lower", "narrower", "grey", "floats"],
)
def test_what_is_no_picture_for_each_seed_is_its_maker_s_mistake(wrong, quick):
    class Wrong:
        needs = frozenset()

        def __call__(self, request, seeds):
            return wrong(request.frame)

    if wrong(FRAME):
        with pytest.raises(TypeError, match="Wrong gave no picture like the frame"):
            candidates(Wrong(), FrameRequest(FRAME), [0])
    else:
        assert candidates(Wrong(), FrameRequest(FRAME), [0]) == []


# what is needed


@pytest.mark.parametrize("blank", ["", " ", "\t\n "])
@pytest.mark.parametrize("name", EDITORS)
def test_an_instruction_of_blanks_is_none(name, blank):
    needed = {n: "{output}" for n, d in DEFAULTS[name].items() if d == NEEDED}
    editor = choose.make(name, needed)
    if "instruction" in editor.needs:
        with pytest.raises(InputError, match="needs instruction"):
            running.request(editor, FRAME, blank, REFERENCE)
    else:
        assert running.request(editor, FRAME, blank, REFERENCE).instruction == blank


NEEDS = {
    "recolour": {"instruction"},
    "palette": {"reference"},
    "posterise": set(),
    "edges": set(),
    "command": set(),
    "instruct-pix2pix": {"instruction"},
    "ip-adapter": {"reference"},
    "t2i-adapter": {"instruction"},
}


@pytest.mark.parametrize("name", EDITORS)
def test_what_an_editor_cannot_do_without(name):
    assert choose.find(name).needs == NEEDS[name]


def test_several_needs_are_all_named():
    class Greedy(Negative):
        needs = frozenset({"mask", "reference", "instruction"})

    with pytest.raises(InputError, match="Greedy needs instruction and mask and reference"):
        running.request(Greedy(), FRAME)
    with pytest.raises(InputError, match="Greedy needs mask$"):
        running.request(Greedy(), FRAME, "red", REFERENCE)
    given = running.request(Greedy(), FRAME, " red ", REFERENCE, UPPER)
    assert given.instruction == " red " and np.array_equal(given.reference, REFERENCE)
    assert np.array_equal(given.frame, FRAME) and np.array_equal(given.mask, UPPER)


def test_an_editor_is_asked_for_the_seed_and_given_the_rest(quick):
    asked = []

    class Noting(Negative):
        def __call__(self, request, seeds):
            asked.append((request, seeds))
            return super().__call__(request, [0 for _ in seeds])

    for seed in (0, 5, np.int64(7), 2**64 - 1):
        anyv2v.edit_frame(FRAME, Noting(), "red", reference=REFERENCE, mask=UPPER, seed=seed)
        request, seeds = asked.pop()
        assert seeds == [seed] and request.instruction == "red"
        assert np.array_equal(request.frame, FRAME) and np.array_equal(request.mask, UPPER)
        assert np.array_equal(request.reference, REFERENCE)
    for wrong in ({"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"keep_unchanged": 1}):
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
            anyv2v.edit_frame(FRAME, Noting(), **wrong)
    assert asked == []


def test_options_go_with_a_name_alone():
    with pytest.raises(InputError, match="^strength: options go with the name of an editor"):
        anyv2v.edit_frame(FRAME, Negative(), strength=1)


# memory


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_editor_held_is_free_for_what_follows(monkeypatch, fails):
    """Even what only the collector of cycles finds, and on a GPU what its allocator holds."""
    emptied, held = [], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[0]() is None))

    class Model:
        pass

    class Heavy(Negative):
        def __call__(self, request, seeds):
            model = Model()
            model.itself = model
            held.append(weakref.ref(model))
            del model
            if fails:
                raise InputError("it will not")
            return super().__call__(request, seeds)

    gc.disable()
    try:
        if fails:
            with pytest.raises(InputError, match="it will not"):
                anyv2v.edit_frame(FRAME, Heavy())
        else:
            anyv2v.edit_frame(FRAME, Heavy())
    finally:
        gc.enable()
    # first the tensors go, then the memory that was theirs
    assert emptied == [True]


def test_a_gpu_that_nobody_uses_is_left_alone(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    anyv2v.edit_frame(FRAME, Negative())
    assert not emptied


# what the networks are told


@pytest.fixture
def told(monkeypatch):
    """The editors that paint, without weights: what they load and how they paint is noted."""
    seen = SimpleNamespace(painted=[], loaded=[], features=[], scales=[])
    unet = SimpleNamespace(
        config=SimpleNamespace(level_channels=(8, 8), context_dim=4, heads=2),
        **{"named_modules": lambda: ()},
    )
    config = SimpleNamespace(spatial_compression=8, latent_channels=4)
    model = SimpleNamespace(vae=SimpleNamespace(config=config), unet=unet, device="cpu")

    def load(weights, device, dtype, in_channels):
        seen.loaded.append((weights, str(device), dtype, in_channels))
        return model

    def load_adapter(folder, reference, device, dtype):
        seen.loaded.append((folder, str(device), dtype, reference))
        config = SimpleNamespace(level_channels=(8, 8), context_dim=4)
        return SimpleNamespace(config=config, read=lambda tokens, heads: tokens), "tokens"

    def paint(model, pixels, prompt, noise, how, image=None, residuals=()):
        seen.painted.append(
            SimpleNamespace(
                **{"pixels": pixels, "prompt": prompt, "noise": noise, "how": how},
                **{"image": image, "residuals": residuals},
            )
        )
        return pixels

    def features(*args):
        seen.features.append(args[:4])
        return ["features"]

    for module in (t2i_adapter, ip_adapter):
        monkeypatch.setattr(module, "load", load)
        monkeypatch.setattr(module, "adapter_residuals", features)
    monkeypatch.setattr(painting, "paint", paint)
    monkeypatch.setattr(ip_adapter, "load_ip_adapter", load_adapter)
    monkeypatch.setattr(ip_adapter, "cross_sites", lambda unet: SITES)
    monkeypatch.setattr(ip_adapter, "image_context", lambda tokens, scales: (tokens, scales))
    return seen


OWN = {"strength": 0.25, "guidance": 3.5, "steps": 12, "negative": "blur"}
SETUP = {"device": "cpu", "dtype": torch.bfloat16}


@pytest.mark.parametrize("name", ["ip-adapter", "t2i-adapter"])
def test_painting_is_told_every_option_and_the_request(told, name):
    options = {"weights": "w", "adapter": "a", "kind": "colour", **OWN}
    editor = choose.make(name, {**options, "size": 32}, **SETUP)
    frame, reference = FRAME[:32, :48].copy(), REFERENCE
    found = editor(FrameRequest(frame, "a robot", reference), [3, 9])
    assert len(told.painted) == len(found) == 2
    for seed, told_, picture in zip((3, 9), told.painted, found, strict=True):
        assert told_.how == Painting(12, 0.25, 3.5, "blur")
        assert told_.prompt == "a robot"
        # 48x32 with its longer side at 32 is 32x24, in multiples of 8
        assert told_.pixels.shape == (1, 3, 24, 32)
        noise = torch.randn((1, 4, 3, 4), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(told_.noise, noise)
        assert picture.shape == frame.shape and picture.dtype == np.uint8
    assert ("w", "cpu", torch.bfloat16, 4) in told.loaded
    if name == "t2i-adapter":
        assert told.features == [("a", "colour", "", 1.0)]
        assert told.painted[0].residuals == ["features"] and told.painted[0].image is None
    else:
        assert told.loaded[0][:3] == ("a", "cpu", torch.bfloat16)
        assert told.loaded[0][3] is reference and told.features == []
        assert not told.painted[0].residuals
        assert told.painted[0].image == ("tokens", dict.fromkeys(SITES, 1.0))


def test_an_ip_adapter_tells_its_t2i_adapter(told):
    options = {"weights": "w", "adapter": "a", "t2i": "b", "kind": "depth", "condition": "c.png"}
    editor = choose.make("ip-adapter", {**options, "condition_scale": 0.3, "scale": 0.7}, **SETUP)
    editor(FrameRequest(FRAME, "", REFERENCE), [0])
    assert told.features == [("b", "depth", "c.png", 0.3)]
    assert told.painted[0].residuals == ["features"]
    assert set(told.painted[0].image[1].values()) == {0.7}
    assert told.painted[0].how == Painting(50, 0.6, 7.5, "")
    for alone in ({"condition": "c.png"}, {"condition_scale": 0.3}):
        with pytest.raises(InputError, match="no effect without t2i"):
            choose.make("ip-adapter", {"weights": "w", "adapter": "a", **alone})


def test_instruct_pix2pix_is_told_every_option_and_the_request(monkeypatch):
    seen, loaded = [], []
    config = SimpleNamespace(spatial_compression=8, latent_channels=4)
    model = SimpleNamespace(vae=SimpleNamespace(config=config), device="cpu")

    def edit(model, pixels, instruction, noise, fresh, *rest, **options):
        drawn = [noise, fresh(), fresh()]
        seen.append((pixels.shape, instruction, drawn, (*rest, *options.values())))
        return pixels

    monkeypatch.setattr(instruct_pix2pix, "load", lambda *a, **o: loaded.append((a, o)) or model)
    monkeypatch.setattr(instruct_pix2pix, "edit", edit)
    options = {"weights": "w", "steps": 12, "guidance": 3.5, "image_guidance": 1.25, "size": 32}
    editor = choose.make("instruct-pix2pix", options, **SETUP)
    found = editor(FrameRequest(FRAME[:32, :48].copy(), "make it red"), [3, 9])
    assert [picture.shape for picture in found] == [(32, 48, 3)] * 2
    (args, named) = loaded[0]
    assert args[0] == "w" and args[2] == torch.bfloat16 and named == {"in_channels": 8}
    for seed, (shape, instruction, drawn, rest) in zip((3, 9), seen, strict=True):
        assert shape == (1, 3, 24, 32) and instruction == "make it red"
        assert rest == (12, 3.5, 1.25)
        generator = torch.Generator().manual_seed(seed)
        for noise in drawn:
            assert torch.equal(noise, torch.randn((1, 4, 3, 4), generator=generator))


# recolour, by its definition


def tint(lab):
    return (lab[..., 1] + 1j * lab[..., 2]) / lab[..., 0]


def grey(levels):
    return oklab.from_rgb(np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1))


BLUE = oklab.from_rgb(np.array([40, 60, 200], np.uint8))


def test_a_grey_part_is_dye():
    """It has no hue to turn: every shade of it takes the tint of the new colour."""
    lab = grey(np.linspace(60, 200, 15)[None].repeat(4, axis=0))
    found = dye(lab, np.ones(lab.shape[:2]), BLUE, lightness=0)
    assert np.allclose(found[..., 0], lab[..., 0])
    wanted = complex(*BLUE[1:]) / max(BLUE[0], lab[..., 0].mean())
    assert np.allclose(tint(found), wanted, atol=1e-3)
    shown = edited("recolour", oklab.to_rgb(lab), "#808080 > #283cc8", tolerance=4.0, lightness=0)
    chroma = np.hypot(*np.moveaxis(oklab.from_rgb(shown)[..., 1:], -1, 0))
    assert chroma.min() > 0.05


def test_grey_within_a_coloured_part_stays_grey_and_what_is_between_is_between():
    red = oklab.from_rgb(np.array([190, 40, 35], np.uint8))
    lab = np.stack([red, red, red, red * (1, 0.5, 0.5), red * (1, 0, 0)])[None]
    region = np.array([[1.0, 1, 1, 0, 0]])
    found = dye(lab, region, BLUE, lightness=0)
    wanted = complex(*BLUE[1:]) / max(BLUE[0], red[0])
    share = abs(tint(red)) ** 2 / (abs(tint(red)) ** 2 + 0.04**2)
    assert np.allclose(tint(found)[0, :3], wanted, atol=1e-6)
    assert abs(tint(found)[0, 4]) < (1 - share) * abs(wanted) + (1 - share) * abs(tint(red)) + 1e-9
    assert abs(tint(found)[0, 4]) < 0.1 * abs(wanted)
    assert abs(tint(found)[0, 3]) == pytest.approx(abs(wanted) / 2, rel=0.1)


@pytest.mark.parametrize("new", [230, 40])
@pytest.mark.parametrize("lightness", [0.0, 0.5, 1.0])
def test_a_part_becomes_as_light_as_it_is_told(new, lightness):
    lab = grey(np.full((3, 5), 128))
    target = grey([new])[0]
    found = dye(lab, np.ones((3, 5)), target, lightness)
    assert np.allclose(found[..., 0], lab[0, 0, 0] + lightness * (target[0] - lab[0, 0, 0]))


def test_black_stays_black_and_white_white_where_a_part_becomes_lighter():
    lab = grey([[0, 100, 110, 120, 255]])
    found = dye(lab, np.array([[0, 1.0, 1, 1, 0]]), grey([200])[0], 1.0)[..., 0]
    assert abs(found[0, 0]) < 1e-9 and found[0, -1] == pytest.approx(1, abs=1e-4)
    assert (np.diff(found[0]) > 0).all() and found[0, 2] > lab[0, 2, 0]


def test_what_is_lighter_than_white_counts_as_white_and_darker_than_black_as_black():
    tints = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2))
    for end, beyond in ((1.0, (1.02, 1.5)), (0.0, (-0.02, -0.5))):
        least, *others = (
            oklab.to_rgb(np.concatenate([np.full((50, 1), x), tints], axis=1))
            for x in (end, *beyond)
        )
        assert np.abs(least - 255.0 * end).max() <= 3
        for other in others:
            assert np.array_equal(other, least)


@pytest.mark.parametrize("named", ["red", "#808080"], ids=["coloured", "grey"])
def test_tolerance_takes_in_more_and_a_mask_less(named):
    old, _ = parse_colors(f"{named} > blue")
    rng = np.random.default_rng(0)
    if named == "red":
        old = oklab.from_rgb(np.array([200, 40, 40], np.uint8))
        rgb = np.stack([rng.integers(120, 256, 900), *rng.integers(0, 160, (2, 900))], -1)
    else:
        rgb = rng.integers(60, 200, (900, 1)) + rng.integers(-12, 13, (900, 3))
    lab = oklab.from_rgb(rgb.reshape(30, 30, 3).astype(np.uint8))
    all_, half = np.ones((30, 30)), np.zeros((30, 30))
    half[:15] = 1
    sums = [find_region(lab, old, all_, t, 0.0).sum() for t in (0.6, 1.0, 2.0)]
    assert sums == sorted(sums) and 0 < sums[0] < 0.8 * sums[-1], sums
    part = find_region(lab, old, half, 1.0, 0.0)
    assert not part[15:].any() and part[:15].any()


GREY, RED = (128, 128, 128), oklab.from_rgb(np.array([200, 40, 40], np.uint8))


def region_of(frame, mask=None):
    mask = np.ones(frame.shape[:2]) if mask is None else mask
    return find_region(oklab.from_rgb(frame), RED, mask, 1.0, 0.1)


def test_shade_belongs_to_a_part_and_a_rim_fades_out():
    frame = np.full((24, 24, 3), GREY, np.uint8)
    frame[4:10, 4:20] = (210, 45, 45)
    # of four tenths of the light, and of a part larger than what is lit
    frame[10:20, 4:20] = (100, 20, 20)
    assert (region_of(frame)[4:20, 4:20] == 1).all()
    # pixels that are red by two, three and five tenths
    for red, least, most in ((0.2, 0.0, 0.05), (0.3, 0.1, 0.7), (0.5, 0.8, 1.0)):
        frame[3, 4:20] = np.rint(red * np.array([210, 45, 45]) + (1 - red) * 128)
        found = region_of(frame)
        assert least <= found[3, 8] <= most and not found[2].any(), red


def test_what_lies_outside_the_mask_has_no_say():
    """Neither in which colour is looked for nor in what is found of it."""
    frame = np.full((24, 24, 3), GREY, np.uint8)
    # red becomes orange, so that where the hue ends makes a difference
    frame[2:11, :, 0], frame[2:11, :, 1], frame[2:11, :, 2] = 200, 40 + 5 * np.arange(24), 40
    mask, alone = np.zeros((24, 24)), frame.copy()
    mask[:11] = 1
    frame[11:] = (220, 30, 90)
    assert 20 < region_of(alone, mask).sum() < 200
    assert np.array_equal(region_of(frame, mask), region_of(alone, mask))
    lab = oklab.from_rgb(frame)
    assert np.array_equal(most_colorful(lab, mask), most_colorful(lab[:11], mask[:11]))


def test_the_most_colourful_is_not_the_commonest():
    frame = np.full((40, 40, 3), GREY, np.uint8)
    frame[:24], frame[30:34] = (80, 150, 80), (220, 20, 20)
    red = oklab.from_rgb(frame[30, 0])
    assert np.allclose(most_colorful(oklab.from_rgb(frame), np.ones((40, 40))), red)


@pytest.mark.parametrize("method", ["gaussian", "transport"])
def test_a_palette_is_carried_over_to_all_that_a_mask_selects(method):
    """Faintly too; of what is not selected neither colours count nor does it change."""
    mask = UPPER / 4
    frame, other = FRAME[::2, ::2].copy(), FRAME[::2, ::2].copy()
    mask, request = mask[::2, ::2], FrameRequest(frame, reference=REFERENCE)
    other[12:] = (250, 250, 0)
    editor = choose.make("palette", {"method": method})
    upper, both = editor(replace(request, mask=mask), [0])[0], editor(request, [0])[0]
    assert np.array_equal(upper[12:], frame[12:]) and not np.array_equal(upper[:12], both[:12])
    found = editor(replace(request, frame=other, mask=mask), [0])[0]
    assert np.array_equal(found[:12], upper[:12]) and np.array_equal(found[12:], other[12:])
    lab, wanted = (oklab.from_rgb(x).reshape(-1, 3) for x in (upper[:12], REFERENCE))
    assert np.abs(lab.mean(0) - wanted.mean(0)).max() < 0.02


def test_least_says_which_pieces_go_with_the_foremost():
    frame = np.full((80, 80, 3), 90, np.uint8)
    large, middle, small = (slice(4, 44), slice(4, 44)), (slice(60, 75), slice(4, 24)), None
    small = slice(60, 64), slice(60, 64)
    for piece in (large, middle, small):
        frame[piece] = (200, 40, 40)
    # 1600, 300 and 16 pixels
    for least, count in ((0.0, 3), (0.005, 3), (0.05, 2), (0.15, 2), (0.25, 1), (1.0, 1)):
        found = edited("recolour", frame, "#c82828 > blue", least=least)
        seen = [not np.array_equal(found[p], frame[p]) for p in (large, middle, small)]
        assert seen == [True, count > 1, count > 2], least


@pytest.mark.parametrize("text", ["red > ", "> red", ">", "a > b > c", "12", "#12"])
def test_what_names_no_colours(text):
    with pytest.raises(InputError, match="recolour: "):
        parse_colors(text)


# few colours


def test_k_means_finds_clouds_that_lie_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[0.2, 0, 0], [0.8, 0.1, 0], [0.5, -0.2, 0.2]])
    points = (centres[:, None] + rng.normal(0, 0.01, (3, 50, 3))).reshape(-1, 3)
    for seed in range(3):
        found = k_means(points, 3, np.random.default_rng(seed))
        found = found[np.argsort(found[:, 0])]
        assert np.allclose(found, centres[[0, 2, 1]], atol=0.01)
    assert len(k_means(np.ones((9, 3)), 4, np.random.default_rng(0))) == 1


def test_k_means_begins_far_apart_and_ends_where_nothing_moves():
    rng = np.random.default_rng(0)
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).T.reshape(-1, 3)
    # by numbers drawn alike, the small clouds would be missed
    clouds = corners.repeat([300, 300, 300, 300, 3, 3, 3, 3], axis=0)
    clouds = clouds + rng.normal(0, 1e-3, clouds.shape)
    points = rng.random((200, 3))
    for seed in range(3):
        found = k_means(clouds, 8, np.random.default_rng(seed))
        apart = np.linalg.norm(corners[:, None] - found, axis=-1)
        assert apart.min(1).max() < 0.01
        centres = k_means(points, 3, np.random.default_rng(seed))
        index = vq(points, centres)[0]
        means = np.stack([points[index == i].mean(0) for i in range(3)])
        assert np.allclose(centres, means, atol=1e-3)


def test_an_edge_is_as_dark_in_a_larger_picture():
    found = []
    for side in (256, 384):
        ramp = np.interp(np.arange(side), [side * 0.5, side * 0.53], [250, 110])
        frame = np.broadcast_to(ramp[None, :, None], (side, side, 3)).astype(np.uint8)
        drawn = edited("edges", frame, paper=True)
        found.append(drawn[side // 4, side // 2 : int(side * 0.53)].mean())
    assert 50 < found[0] < 230 and abs(found[0] - found[1]) < 10


def test_posterise_evens_out_before_it_counts_and_takes_seeds():
    frame = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    found = [edited("posterise", frame, colours=4, seed=s) for s in (0, 0, 1)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    even = edited("posterise", frame, colours=2, smooth=1.0)
    assert (
        np.abs(np.diff(even.astype(int), axis=0)).sum()
        < np.abs(np.diff(found[0].astype(int), axis=0)).sum()
    )


def test_edges_are_as_dark_as_they_are_told():
    frame = np.full((64, 64, 3), 255, np.uint8)
    frame[:, 32:] = 0
    frame[40:, :16] = 225
    row = [
        int(edited("edges", frame, strength=s, paper=True)[20, 30:34].min())
        for s in (0.0, 0.4, 1.0)
    ]
    assert row[0] == 255 > row[1] > row[2] + 40 and row[2] < 10
    faint = [edited("edges", frame, detail=d, paper=True) for d in (0.0, 1.0)]
    assert (faint[0][36:44, 4:12] == 255).all() and not (faint[1][36:44, 4:12] == 255).all()


# other tools

BY_SIGNAL = "import os, sys; os.kill(os.getpid(), {})"


def tool(code, *placeholders):
    words = " ".join(placeholders)
    return Command(f"'{sys.executable}' -S -c '{code}' {{output}} {words}")


@pytest.mark.parametrize(
    "code, status", [("import sys; sys.exit(3)", 3), (BY_SIGNAL.format(9), -9)]
)
def test_a_tool_that_failed_gives_no_picture_even_if_it_wrote_one(code, status):
    """A negative status is that of a signal, such as the kernel's to who takes too much memory."""
    written = "import shutil, sys; shutil.copy(sys.argv[2], sys.argv[1]); " + code
    with pytest.raises(InputError, match=f"failed with status {status}, without a word"):
        tool(written, "{input}")(FrameRequest(FRAME), [0])
    copied = tool("import shutil, sys; shutil.copy(sys.argv[2], sys.argv[1])", "{input}")
    assert np.array_equal(copied(FrameRequest(FRAME), [0])[0], FRAME)


def test_a_tool_is_given_the_pictures_and_the_seed():
    """Of a mask half a level is rounded, not cut."""
    mask = np.linspace(0, 1, FRAME[..., 0].size, dtype=np.float32).reshape(FRAME.shape[:2])
    request = FrameRequest(FRAME, "two words", REFERENCE, mask)
    copy = "import shutil, sys; shutil.copy(sys.argv[2], sys.argv[1])"
    small = Image.fromarray(REFERENCE).resize((64, 48), Image.Resampling.NEAREST)
    request = replace(request, reference=np.array(small))
    for what, truth in (
        ("{input}", FRAME),
        ("{reference}", np.array(small)),
        ("{mask}", np.rint(mask * 255).astype(np.uint8)[..., None].repeat(3, -1)),
    ):
        assert np.array_equal(tool(copy, what)(request, [4])[0], truth)
    assert tool(copy, "{seed}", "{mask}").uses == {"output", "seed", "mask"}


@pytest.mark.parametrize("width, height", [(1009, 1000), (1000, 1009), (50, 50), (100, 100)])
def test_a_tool_s_picture_may_be_of_another_size(width, height, caplog):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    resized = Image.fromarray(picture).resize((100, 100), Image.Resampling.LANCZOS)
    assert np.array_equal(_resized(picture, (100, 100)), np.array(resized))
    assert len(caplog.records) == ((width, height) != (100, 100))


@pytest.mark.parametrize("width, height", [(1011, 1000), (1000, 1011), (1050, 1000), (50, 100)])
def test_a_tool_s_picture_has_the_frame_s_proportions_up_to_a_hundredth(width, height):
    with pytest.raises(InputError, match=f"{width}x{height}, which has not the proportions"):
        _resized(np.zeros((height, width, 3), np.uint8), (100, 100))


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "soon"])
def test_a_time_that_a_tool_cannot_have(timeout):
    with pytest.raises(InputError, match="timeout: "):
        Command("tool {output}", timeout)


def test_what_radius_means_to_a_mask():
    mask = np.zeros((9, 9))
    mask[4, 4] = 1
    grown = regions.dilate(mask, 2)
    assert grown.sum() == 25 and grown[2:7, 2:7].all()
    assert np.array_equal(regions.erode(grown, 2), mask)
    assert np.array_equal(regions.dilate(mask, 0), mask)
