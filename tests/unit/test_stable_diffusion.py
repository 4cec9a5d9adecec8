"""InstructPix2Pix as an editor, its guidance, and the samplers where their answer is known."""

import math
import re
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from anyv2v.convert.published import convert
from anyv2v.errors import InputError, NotFiniteError
from anyv2v.frame_editors import instruct_pix2pix
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.instruct_pix2pix import InstructPix2Pix, guide
from anyv2v.frame_editors.painting import working_size
from anyv2v.stable_diffusion.loading import load
from anyv2v.stable_diffusion.schedule import (
    DiscreteSchedule,
    ddim_step,
    euler_ancestral_step,
    sample_ddim,
    sample_euler_ancestral,
)
from anyv2v.vae.autoencoder import Autoencoder
from anyv2v.weights_folders import expected_shapes
from tests.draw import normal
from tests.oracles import sd_snapshot


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Channels in -> a converted folder."""
    room = tmp_path_factory.mktemp("stable-diffusion")
    for channels in (4, 8):
        sd_snapshot.write(room / f"theirs{channels}", channels)
        convert(room / f"theirs{channels}", room / f"ours{channels}", expected_shapes)
    return {channels: room / f"ours{channels}" for channels in (4, 8)}


@pytest.fixture
def editor(folders):
    return InstructPix2Pix(str(folders[8]), steps=2, size=32)


def asked(height=24, width=40, instruction="change his clothes to red"):
    frame = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return FrameRequest(frame, instruction)


# the editor


def test_a_candidate_for_each_seed_in_the_size_of_the_frame(editor):
    request = asked()
    found = editor(request, [3, 1])
    assert [picture.shape for picture in found] == [(24, 40, 3)] * 2
    assert {picture.dtype for picture in found} == {np.dtype("uint8")}
    assert not np.array_equal(*found)
    again = editor(request, [1])[0]
    assert np.array_equal(again, found[1]), "a seed means the same whatever is asked besides"
    other = editor(asked(instruction="a wooden floor"), [1])[0]
    assert not np.array_equal(other, again)


def test_no_seed_no_candidate(editor):
    assert editor(asked(), []) == []


def test_every_option_counts(folders):
    def edited(steps=2, **options):
        return InstructPix2Pix(str(folders[8]), steps, size=32, **options)(asked(), [0])[0]

    pictures = [edited(), edited(guidance=3.0), edited(image_guidance=1.0), edited(steps=1)]
    for picture in pictures[1:]:
        assert not np.array_equal(picture, pictures[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_come_near(folders, dtype):
    exact, near = (
        InstructPix2Pix(str(folders[8]), steps=2, size=32, guidance=2.0, dtype=kind)(asked(), [0])
        for kind in (torch.float32, dtype)
    )
    assert np.abs(exact[0].astype(int) - near[0]).mean() < 8


def test_nothing_is_held_after_the_call(editor, monkeypatch):
    kept = []

    def watched(*args, **kwargs):
        model = load(*args, **kwargs)
        kept.extend(weakref.ref(x) for x in (model, model.unet, model.vae.decoder, model.text))
        return model

    monkeypatch.setattr(instruct_pix2pix, "load", watched)
    editor(asked(), [0])
    assert len(kept) == 4 and not [x() for x in kept if x() is not None]


def test_values_that_are_not_finite_are_no_picture(editor, monkeypatch):
    decode = Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, x: decode(self, x) * math.inf)
    with pytest.raises(NotFiniteError, match="the image editor's decoder gave"):
        editor(asked(), [0])
    monkeypatch.setattr(instruct_pix2pix, "guide", lambda found, *args: found[:1] * math.nan)
    told = r"the image editor's network gave .* in step 0 \(number 1 of \d+, timestep [\d.]+\)"
    with pytest.raises(NotFiniteError, match=told):
        editor(asked(), [0])
    for run in (sample_ddim, partial(sample_euler_ancestral, fresh=lambda: torch.zeros(2))):
        calls = []

        def predict(t, x, calls=calls):
            calls.append(t)
            return torch.full_like(x, math.nan) if len(calls) == 8 else x

        with pytest.raises(NotFiniteError, match=r"in step 7 \("):
            run(predict, torch.ones(2), DiscreteSchedule("leading"), 10)


@pytest.mark.parametrize("options", [{"guidance": 1e38}, {"image_guidance": -1e38}])
def test_the_guidance_that_is_too_large_is_named(folders, options):
    """Whichever of the two it is: numbers beyond 3e38 are not finite in float32."""
    (value,) = options.values()
    with pytest.raises(NotFiniteError, match=re.escape(f"a guidance of {value:g} is too large")):
        InstructPix2Pix(str(folders[8]), steps=2, size=32, **options)(asked(), [0])


@pytest.mark.parametrize(
    "size, longer, wanted",
    [
        ((640, 360), 512, (512, 288)),
        ((360, 640), 512, (288, 512)),
        ((512, 512), 512, (512, 512)),
        ((100, 60), 512, (512, 304)),
        ((1920, 1), 512, (512, 8)),
        ((40, 30), 30, (32, 24)),
    ],
)
def test_sizes_inside(size, longer, wanted):
    assert working_size(size, longer, 8) == wanted


def test_what_is_wrong_is_said_in_one_line(folders, weights, tmp_path):
    for options, message in (
        ({"steps": 0}, "steps: 0 is not a whole number from 1 to 999"),
        ({"size": 4}, "size: 4 is not"),
        ({"guidance": math.nan}, "guidance: nan is not a finite number"),
        ({"image_guidance": "x"}, "image_guidance: 'x' is not a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            InstructPix2Pix(str(folders[8]), **options)
    with pytest.raises(InputError, match="needs an instruction"):
        InstructPix2Pix(str(folders[8]))(asked(instruction=" "), [0])
    for folder, message in (
        (folders[4], "holds Stable Diffusion; weights of InstructPix2Pix are needed"),
        (weights, "holds i2vgen; weights of InstructPix2Pix are needed"),
        (tmp_path / "nowhere", "no such folder"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            InstructPix2Pix(str(folder))(asked(), [0])
        assert str(folder) in str(refusal.value)
    with pytest.raises(InputError, match="holds InstructPix2Pix; weights of Stable Diffusion"):
        load(folders[8], torch.device("cpu"), torch.float32, in_channels=4)


def test_guidance():
    found = normal(3, 4, 2, 2)
    both, picture, neither = found
    assert torch.equal(guide(found, 0, 0)[0], neither)
    assert torch.allclose(guide(found, 0, 1)[0], picture, atol=1e-6)
    assert torch.allclose(guide(found, 1, 1)[0], both, atol=1e-6)
    wanted = neither + 1.5 * (picture - neither) + 7.5 * (both - picture)
    assert torch.allclose(guide(found, 7.5, 1.5)[0], wanted, atol=1e-5)


# the samplers: of a single picture the noise in any latents is known


@pytest.fixture(scope="module")
def picture():
    return normal(1, 4, 3, 5, seed=9)


def knowing(schedule, picture):
    table = schedule.alphas_cumprod.double().numpy()

    def predict(t, x):
        level = float(np.interp(t, np.arange(1000), np.sqrt((1 - table) / table)))
        alpha = 1 / (1 + level**2)
        return (x - math.sqrt(alpha) * picture) / math.sqrt(1 - alpha)

    return predict


@pytest.mark.parametrize("steps", [3, 40])
def test_ddim_ends_at_the_only_picture(picture, steps):
    schedule = DiscreteSchedule("leading")
    seen = []
    found = sample_ddim(
        knowing(schedule, picture),
        normal(1, 4, 3, 5),
        schedule,
        steps,
        lambda i, latents: seen.append((i, latents)),
    )
    assert [i for i, _ in seen] == list(range(steps)) and seen[-1][1] is found
    # what it calls clean still has the noise of t = 0
    level = schedule.alpha_bar(0)
    assert schedule.alpha_bar(-20) == level < 1
    rest = found - math.sqrt(level) * picture
    assert rest.std() < 3 * math.sqrt(1 - level)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_ancestral_steps_end_at_the_only_picture(picture, steps, spacing):
    schedule = DiscreteSchedule(spacing)
    generator = torch.Generator().manual_seed(0)
    found = sample_euler_ancestral(
        knowing(schedule, picture),
        normal(1, 4, 3, 5),
        schedule,
        steps,
        lambda: torch.randn(1, 4, 3, 5, generator=generator),
    )
    assert torch.allclose(found, picture, atol=1e-4)


def test_an_ancestral_step_keeps_the_variance_of_its_level():
    x, noise, fresh = torch.zeros(1), torch.ones(1), torch.ones(1)
    up = euler_ancestral_step(x, torch.zeros(1), 5.0, 3.0, fresh)
    down = euler_ancestral_step(5.0 * noise, noise, 5.0, 3.0, 0 * fresh)
    assert up.item() ** 2 + down.item() ** 2 == pytest.approx(9.0)
    assert up.item() ** 2 == pytest.approx(9 * (25 - 9) / 25)


def test_a_ddim_step_moves_between_levels():
    clean, noise = normal(2, 3), normal(2, 3, seed=1)

    def at(level):
        return math.sqrt(level) * clean + math.sqrt(1 - level) * noise

    for level, target in ((0.1, 0.6), (0.6, 0.1), (0.3, 0.3)):
        assert torch.allclose(ddim_step(at(level), noise, level, target), at(target), atol=1e-6)


def test_latents_between_the_steps_are_float32():
    schedule = DiscreteSchedule("leading")
    half = normal(1, 4, 2, 2).half()
    assert sample_ddim(lambda t, x: x, half, schedule, 2).dtype == torch.float32
    fresh = lambda: half  # noqa: E731
    assert sample_euler_ancestral(lambda t, x: x, half, schedule, 2, fresh).dtype == torch.float32


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", [0, 1000, 2.5])
def test_steps_that_are_none(spacing, steps):
    schedule = DiscreteSchedule(spacing)
    for ask in (schedule.leading, schedule.timesteps, schedule.sigmas):
        with pytest.raises(InputError, match="steps: .* is not a whole number from 1 to 999"):
            ask(steps)
