"""Stable Diffusion 1.5 and InstructPix2Pix against diffusers, live, on random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from anyv2v.convert.formats import stable_diffusion
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename
from anyv2v.errors import InputError
from anyv2v.frame_editors.instruct_pix2pix import edit
from anyv2v.media.image import to_pixels
from anyv2v.stable_diffusion.config import UNet2DConfig
from anyv2v.stable_diffusion.loading import load
from anyv2v.stable_diffusion.schedule import (
    DiscreteSchedule,
    sample_ddim,
    sample_euler_ancestral,
)
from anyv2v.stable_diffusion.unet import UNet2D, cross_sites
from anyv2v.weights_folders import expected_shapes
from tests.draw import normal, redraw
from tests.oracles import sd_snapshot
from tests.oracles.golden import relative_error

diffusers = pytest.importorskip("diffusers")
scheduling_euler_ancestral_discrete = pytest.importorskip(
    "diffusers.schedulers.scheduling_euler_ancestral_discrete"
)

KEYS = ("in_channels", "block_out_channels", "attends", "layers_per_block", "heads", "context")
SIZES = {
    "tiny": (4, (16, 32, 48, 48), (True, True, True, False), 2, 4, 24, 8),
    # every number is another one, to catch what is taken for granted
    "odd": (8, (24, 48, 60), (False, True, True), 1, 6, 20, 12),
    "middle": (4, (64, 128, 256, 256), (True, True, True, False), 2, 8, 96, 32),
    "full": (8, (320, 640, 1280, 1280), (True, True, True, False), 2, 8, 768, 32),
}


def pair(name):
    """Their UNet with random weights, and ours on the same tensors."""
    channels, widths, attends, layers, heads, context, groups = SIZES[name]
    theirs = diffusers.UNet2DConditionModel(
        in_channels=channels,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        block_out_channels=widths,
        layers_per_block=layers,
        attention_head_dim=heads,
        cross_attention_dim=context,
        norm_num_groups=groups,
    )
    redraw(theirs, seed=1)
    config = UNet2DConfig(channels, 4, widths, attends, layers, heads, context, groups)
    with torch.device("meta"):
        ours = UNet2D(config)
    state = theirs.state_dict()
    renamed = rename(state, stable_diffusion.UNET)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    for key, (ours_key, _) in renamed.items():
        assert state[key].shape == renamed[key].their_shape(shapes[ours_key]), key
    state = {new.name: state[key].reshape(shapes[new.name]) for key, new in renamed.items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return theirs, ours.eval()


@pytest.fixture(scope="module")
def tiny():
    return pair("tiny")


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["tiny", "odd", "middle", pytest.param("full", marks=pytest.mark.slow)]
)
def test_unet(name):
    theirs, ours = pair(name)
    channels, context = SIZES[name][0], SIZES[name][5]
    # 9 is not a multiple of 8: the way up must follow the sizes of the way down
    x, text = normal(2, channels, 8, 9), normal(2, 77, context, seed=1)
    for t in (501, 998.5):
        t = torch.tensor([t, t])
        truth = theirs(x, t, text).sample
        error = relative_error(ours(x, t, ours.read(text)), truth)
        print(f"{name}: {error:.1e}")
        assert error <= 1e-5


@torch.no_grad()
def test_features_are_added_on_the_way_down(tiny):
    theirs, ours = tiny
    x, text, t = normal(2, 4, 16, 24), normal(2, 77, 24, seed=1), torch.tensor([501, 501])
    sizes = [(16, 16, 24), (32, 8, 12), (48, 4, 6), (48, 2, 3)]
    features = [normal(2, *size, seed=i) for i, size in enumerate(sizes)]
    context = ours.read(text)
    plain = ours(x, t, context)
    for count in range(5):
        given = features[:count]
        truth = theirs(x, t, text, down_intrablock_additional_residuals=list(given)).sample
        residuals = [feature.permute(0, 2, 3, 1) for feature in given]
        found = ours(x, t, context, residuals=residuals)
        assert relative_error(found, truth) <= 1e-5
        assert (relative_error(found, plain) > 0.01) == (count > 0)
    with pytest.raises(InputError, match="5 residuals are given for 4 levels"):
        ours(x, t, context, residuals=[*residuals, residuals[-1]])


@torch.no_grad()
def test_a_picture_is_attended_to_beside_the_text(tiny):
    """By its definition: the same layer with the picture's keys and values, times a factor."""
    _, ours = tiny
    x, t = normal(2, 4, 8, 8), torch.tensor([501, 501])
    context, other = ours.read(normal(2, 77, 24, seed=1)), ours.read(normal(2, 4, 24, seed=2))
    plain = ours(x, t, context)
    site = cross_sites(ours)[0]
    none = ours(x, t, context, image={site: (*other[site], 0.0)})
    assert torch.equal(none, plain)
    some = ours(x, t, context, image={site: (*other[site], 0.5)})
    assert relative_error(some, plain) > 1e-3
    seen = {}
    layer = ours.get_submodule(site)
    hook = layer.out.register_forward_pre_hook(lambda _, given: seen.update(mixed=given[0]))
    ours(x, t, context, image={site: (*other[site], 0.5)})
    both = seen["mixed"]
    ours(x, t, context)
    text = seen["mixed"]
    ours(x, t, {**context, site: other[site]})
    picture = seen["mixed"]
    hook.remove()
    assert relative_error(both, text + 0.5 * picture) <= 1e-5


@torch.no_grad()
def test_cross_sites_are_in_the_order_of_the_forward_pass(tiny):
    _, ours = tiny
    seen = []
    hooks = [
        ours.get_submodule(site).q.register_forward_hook(lambda *_, site=site: seen.append(site))
        for site in sorted(cross_sites(ours))
    ]
    ours(normal(1, 4, 8, 8), torch.tensor([1]), ours.read(normal(1, 3, 24)))
    [hook.remove() for hook in hooks]
    assert tuple(seen) == cross_sites(ours)
    assert len(seen) == 16
    assert seen[0] == "down.0.spatial.0.block.cross"
    assert seen[6] == "mid.spatial.0.block.cross"


# schedules

TRAINED = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
)


def predicted(t, x):
    """Some noise that is neither linear in the latents nor the same at all times."""
    return torch.tanh(x * (0.5 + t / 1000)) + 0.3 * torch.sin(5 * x + t / 100)


@pytest.mark.parametrize("steps", [1, 7, 50, 999])
def test_ddim(steps):
    theirs = diffusers.DDIMScheduler(
        **TRAINED, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    theirs.set_timesteps(steps)
    x = noise = normal(2, 4, 8, 8)
    for t in theirs.timesteps:
        x = theirs.step(predicted(t, x), t, x).prev_sample
    schedule = DiscreteSchedule("leading")
    assert torch.equal(schedule.alphas_cumprod, theirs.alphas_cumprod)
    assert schedule.leading(steps) == theirs.timesteps.tolist()
    error = relative_error(sample_ddim(predicted, noise, schedule, steps), x)
    print(f"{steps} steps: {error:.1e}")
    assert error <= 1e-4


@pytest.fixture
def given_noise(monkeypatch):
    """Lets diffusers draw what is put here, and counts."""
    drawn = []
    given = [normal(1, 4, 8, 8, seed=i) for i in range(100)]

    def draw(*_, **__):
        drawn.append(len(drawn))
        return given[drawn[-1]]

    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", draw)
    return given, drawn


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 100])
def test_euler_ancestral(given_noise, steps, spacing):
    given, drawn = given_noise
    theirs = diffusers.EulerAncestralDiscreteScheduler(
        **TRAINED, steps_offset=1, timestep_spacing=spacing
    )
    theirs.set_timesteps(steps)
    noise = normal(1, 4, 8, 8, seed=1000)
    x = noise * theirs.init_noise_sigma
    for t in theirs.timesteps:
        x = theirs.step(predicted(t, theirs.scale_model_input(x, t)), t, x).prev_sample
    schedule = DiscreteSchedule(spacing)
    assert schedule.timesteps(steps) == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)
    assert schedule.sigmas(steps) == pytest.approx(theirs.sigmas.tolist(), rel=1e-6)
    fresh = iter(given).__next__
    error = relative_error(sample_euler_ancestral(predicted, noise, schedule, steps, fresh), x)
    print(f"{spacing}, {steps} steps: {error:.1e}")
    assert len(drawn) == steps
    assert error <= 1e-4


# the whole pipeline


def test_instruct_pix2pix(given_noise, tmp_path):
    given, drawn = given_noise
    sd_snapshot.write(tmp_path / "theirs", channels_in=8)
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "theirs")
    pipe.set_progress_bar_config(disable=True)
    frame = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    noise, steps = normal(1, 4, 8, 8, seed=1000), 8
    asked = dict(
        prompt="Change his clothes to red, it's nothing!",
        image=Image.fromarray(frame),
        latents=noise,
        num_inference_steps=steps,
    )
    truth = pipe(**asked, output_type="latent").images
    drawn.clear()
    picture = pipe(**asked, output_type="pt").images
    del pipe

    convert(tmp_path / "theirs", tmp_path / "ours", expected_shapes)
    model = load(tmp_path / "ours", torch.device("cpu"), torch.float32, in_channels=8)
    seen = []
    with torch.no_grad():
        pixels = edit(
            model,
            to_pixels(frame[None]),
            asked["prompt"],
            noise,
            iter(given).__next__,
            steps=steps,
            on_step=lambda i, latents: seen.append(latents),
        )
    assert len(seen) == steps
    errors = [
        relative_error(seen[-1], truth),
        relative_error((pixels / 2 + 0.5).clamp(0, 1), picture),
    ]
    print(f"latents {errors[0]:.1e}, picture {errors[1]:.1e}")
    assert max(errors) <= 1e-4
    # what is compared is a picture, not a constant or noise that is cut off
    assert 0.05 < picture.std() < 0.45
