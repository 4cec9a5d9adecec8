"""The recipe of the demo model, on networks so small that they learn nothing."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import anyv2v
from anyv2v.diffusion.prediction import velocity
from anyv2v.diffusion.schedule import Coefficients, Level, advance
from anyv2v.weights.demo.recipe import PRESETS
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_scene
from anyv2v.weights.demo.train import run as training_run
from anyv2v.weights.demo.train import vae as autoencoder
from anyv2v.weights.demo.train.__main__ import editor, export
from anyv2v.weights.demo.train.muon import orthogonal
from anyv2v.weights.demo.train.run import Run
from anyv2v.weights.demo.train.unet import Networks, diffuse, encode, train_unet

TINY = replace(
    PRESETS["cpu"],
    size=16,
    frames=3,
    vae_level_channels=(8, 8, 8),
    level_channels=(16, 16, 16),
    context_dim=16,
    images=4,
    clips=2,
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return autoencoder.build(TINY).requires_grad_(False)


def test_a_run_goes_on_where_it_stopped(tmp_path, vae, monkeypatch):
    """Its networks, steps, clock and place among the scenes; and it sees no scene twice."""
    drawn = []
    # 0.2 s at each look at the clock, so that the steps that fit do not depend on the machine
    clock = SimpleNamespace(monotonic=itertools.count(0, 0.2).__next__)
    monkeypatch.setattr(training_run, "time", clock)

    def train(minutes: float) -> Run:
        run = Run(tmp_path, "unet", minutes, "cpu")
        networks, scenes = Networks(TINY, "cpu"), run.scenes
        run.scenes = lambda count: drawn.append((run.drawn, count)) or scenes(count)
        train_unet(run, networks, vae)
        run.kept = {k: x.clone() for k, x in networks.unet.state_dict().items()}
        return run

    first = train(0.01)
    still = train(0.01)
    assert still.steps == first.steps > 0, "the time was over"
    assert all(torch.equal(first.kept[k], x) for k, x in still.kept.items())
    second = train(0.02)
    assert second.steps > first.steps and second.spent >= first.spent
    assert [start for start, _ in drawn] == list(range(0, second.drawn, TINY.clips))


def test_what_is_left_of_a_run_can_be_loaded(tmp_path, vae):
    networks = Networks(TINY, "cpu")
    export(tmp_path / "weights", TINY, {**networks.modules, "vae": vae})
    loaded = anyv2v.load(tmp_path / "weights", device="cpu")
    injection = anyv2v.Injection(0.8, 0.0, 0.0)
    own = anyv2v.Defaults((16, 16), 3, 8, injection=injection, protect=True)
    assert loaded.defaults == own == editor(networks, vae).defaults
    wanted = networks.text.token_embedding.weight.half().float()
    assert torch.equal(loaded.backbone.text.token_embedding.weight, wanted)


def test_training_builds_conditions_as_the_editor_does(vae):
    """Text, first frame, image embedding and frame rate; both left out as guidance leaves them."""
    torch.manual_seed(1)
    networks = Networks(TINY, "cpu")
    whole = editor(networks, vae)
    scenes = [draw_scene("train", i) for i in range(3)]
    clips = render(scenes, (16, 16), 3).frames
    latents = encode(vae, clips)
    told = [(scenes[0].caption, False), ("", False), (scenes[2].caption, True)]
    keep = torch.tensor([[1.0], [1.0], [0.0]])
    with torch.no_grad():
        ours = networks.conditions(
            [text for text, _ in told],
            clips[:, 0],
            latents[:, :, :1],
            keep,
            torch.tensor([8, 9, 7]),
        )
    for i, ((text, negative), fps) in enumerate(zip(told, (8, 9, 7), strict=True)):
        theirs = whole.condition(text, clips[i, 0].numpy(), 3, (16, 16), fps, negative)
        pairs = [(ours.latents, theirs.latents), (ours.fps, theirs.fps)]
        for site, read in theirs.context.items():
            pairs += zip(ours.context[site], read, strict=True)
        assert len(pairs) > 2
        for found, wanted in pairs:
            torch.testing.assert_close(found[i], wanted[0], atol=1e-5, rtol=1e-4)


def test_latents_of_a_clip_are_the_editors(vae):
    clips = render([draw_scene("train", 7)], (16, 16), 3).frames
    whole = editor(Networks(TINY, "cpu"), vae)
    wanted = whole.encode_frames(clips[0].numpy())
    torch.testing.assert_close(encode(vae, clips), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0.99, 0.5, 0.0])
def test_the_target_leads_back_to_the_clean_latents(level):
    """By the sampler's own step, also where nothing of them is left."""
    clean = torch.randn(1, 4, 3, 2, 2)
    noisy, v = diffuse(clean, torch.tensor([level]))
    by = velocity(Level(0, 0, level**0.5, (1 - level) ** 0.5), Level(1, -1, 1.0, 0.0))
    back = advance(noisy, v, Coefficients(*by))
    torch.testing.assert_close(back, clean, atol=1e-5, rtol=1e-5)


def test_normalising_changes_latents_and_not_pictures(vae):
    clips = render([draw_scene("train", i) for i in range(512)], (16, 16), 4).frames
    pixels = autoencoder.to_pixels(clips)
    before = vae.decode(vae.encode(pixels[:8]))
    log_variance = vae.posterior(pixels[:8])[1]
    autoencoder.normalize_latents(vae, TINY)
    torch.testing.assert_close(vae.decode(vae.encode(pixels[:8])), before, atol=1e-4, rtol=1e-4)
    latents = vae.encode(pixels)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)
    # noise and signal are scaled alike
    shift = vae.posterior(pixels[:8])[1] - log_variance
    assert shift.std() < 1e-4 and shift.abs().mean() > 0.1


def test_muon_makes_matrices_orthogonal():
    for shape in ((3, 16, 64), (2, 40, 12)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3
