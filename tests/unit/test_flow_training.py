"""The recipe of the small flow model, on networks so small that they learn nothing."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v.backbones.wan.schedule import FlowSchedule
from anyv2v.media.psnr import psnr
from anyv2v.vae.causal import CausalConv3d
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_edit, draw_scene
from anyv2v.weights.demo.scores import Truth
from anyv2v.weights.flow import recipe
from anyv2v.weights.flow.recipe import PRESETS, TRAIN_SHIFT
from anyv2v.weights.flow.train import __main__ as command
from anyv2v.weights.flow.train import run as training
from anyv2v.weights.flow.train import scores, velocity
from anyv2v.weights.flow.train import vae as autoencoder
from anyv2v.weights.flow.train.velocity import Velocity, batch_loss, draw_sigmas, prepare, shifted

TINY = replace(
    PRESETS["cpu"],
    size=16,
    frames=3,
    vae_channels=(8, 8),
    dim=24,
    heads=2,
    ff_dim=16,
    layers=2,
    text_dim=16,
    images=4,
    vae_steps=2,
    clips=2,
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = autoencoder.restrict_to_pictures(autoencoder.build(TINY))
    return vae.requires_grad_(False)


@pytest.fixture
def tiny(monkeypatch):
    """The command trains the tiny model, and 0.5 s pass whenever it looks at the clock."""
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    look = itertools.count(0, 0.5).__next__
    clock = SimpleNamespace(monotonic=look, process_time=look)
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(command, "time", clock)
    monkeypatch.setattr(command, "VALIDATE_EVERY", 4)
    monkeypatch.setattr(velocity, "VALIDATED", 8)
    monkeypatch.setattr(autoencoder, "MEASURED", 8)
    monkeypatch.setattr(scores, "STEPS", 5)


def advance(run, vae, steps):
    for _ in range(steps):
        torch.manual_seed(run.steps)
        run.step(batch_loss(run, vae, TINY, "cpu"))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, vae):
    whole = prepare(tmp_path / "whole.pt", TINY, "cpu")
    advance(whole, vae, 5)
    killed = prepare(tmp_path / "killed.pt", TINY, "cpu")
    advance(killed, vae, 2)
    killed.save()
    advance(killed, vae, 1)
    again = prepare(tmp_path / "killed.pt", TINY, "cpu")
    assert (again.steps, again.drawn) == (2, 2 * TINY.clips)
    advance(again, vae, 3)
    assert again.drawn == whole.drawn == 5 * TINY.clips
    states = [(r.network.state_dict(), r.average, r.optimizer.state_dict()) for r in (whole, again)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_the_command_trains_in_slices(tmp_path, tiny):
    """Of the same end as one slice; and what it leaves is a model that can be loaded."""

    def call(folder, minutes, *options):
        args = ["--out", str(tmp_path / folder), "--minutes", str(minutes), *options]
        assert command.main([*args, "--device", "cpu"]) == 0

    call("one", 0.4)
    one = prepare(tmp_path / "one" / "transformer.pt", TINY, "cpu")
    assert one.steps > 2
    for _ in range(100):
        call("more", 0.1)
        more = prepare(tmp_path / "more" / "transformer.pt", TINY, "cpu")
        if more.steps >= one.steps:
            break
    advance(
        one, command.trained_vae(tmp_path / "one", TINY, "cpu", None, 0), more.steps - one.steps
    )
    torch.testing.assert_close(one.network.state_dict(), more.network.state_dict(), rtol=0, atol=0)

    call("more", 9, "--finish")
    finished = prepare(tmp_path / "more" / "finish.pt", TINY, "cpu")
    assert finished.over and finished.steps == more.steps + more.steps // command.FINISH
    assert finished.optimizer.param_groups[0]["lr"] < finished.rates[0]
    assert prepare(tmp_path / "more" / "transformer.pt", TINY, "cpu").steps == more.steps

    call("more", 2)
    further = prepare(tmp_path / "more" / "transformer.pt", TINY, "cpu").steps
    assert further > finished.fall_from
    call("more", 9, "--finish")
    last = prepare(tmp_path / "more" / "finish.pt", TINY, "cpu")
    assert last.over and last.fall_from == further

    call("started", 0.3, "--start", str(tmp_path / "more"), "--score", "1")
    started = prepare(tmp_path / "started" / "transformer.pt", TINY, "cpu")
    assert started.began == further < started.steps
    assert started.drawn == started.steps * TINY.clips

    scored = json.loads((tmp_path / "started" / "scores.jsonl").read_text())
    truth = Truth.of(draw_edit("colour", "validation", 0), (16, 16), 3).frames
    static = np.stack([truth[0], truth[0]])
    assert scored["steps"] == started.steps and scored["norm"] > 0
    assert scored["static"] == pytest.approx(psnr(static, truth[1:]), abs=1e-3)
    check_scores(scored, tmp_path / "started" / "weights")

    editor = anyv2v.load(tmp_path / "more" / "finished", device="cpu")
    assert (editor.defaults.size, editor.defaults.frames) == ((16, 16), 3)
    found = editor.backbone.transformer.state_dict()
    wanted = {k: x.half().float() for k, x in last.average.items()}
    for name, x in found.items():
        torch.testing.assert_close(x, wanted[f"transformer.{name}"], rtol=0, atol=0)


def check_scores(scored, folder):
    """Those of clips that an editor makes here."""
    editor, edit = scores.load(folder), draw_edit("colour", "validation", 0)
    truth = Truth.of(edit, (16, 16), 3)
    source = editor.invert(truth.source, steps=5, prompt=edit.source.caption)
    first, caption = truth.frames[0], edit.truth.caption
    none = anyv2v.Injection.none()
    own = editor.edit(source, first, caption, steps=5)
    inverted = editor.edit(source, first, caption, steps=5, injection=none)
    noise = editor.edit(source, first, caption, steps=5, injection=none, random_ratio=1, seed=0)
    clips = {"edit": own, "inverted": inverted, "random": noise}
    found = {name: psnr(clip.frames[1:], truth.frames[1:]) for name, clip in clips.items()}
    assert found["inverted"] != found["random"]
    assert {name: scored[name] for name in found} == pytest.approx(found, abs=1e-3)


def test_training_asks_the_networks_what_the_editor_asks(tmp_path, vae):
    """The latents of a clip, the encoded captions, the timestep, and the clean first frame."""
    torch.manual_seed(1)
    run = prepare(tmp_path / "transformer.pt", TINY, "cpu")
    for parameter in run.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    run.average = {k: x.detach().half().float() for k, x in run.network.state_dict().items()}
    run.network.load_state_dict(run.average)
    vae.load_state_dict({k: x.half().float() for k, x in vae.state_dict().items()})
    command.export(tmp_path / "weights", TINY, run, vae)
    editor = anyv2v.load(tmp_path / "weights", device="cpu")

    scenes = [draw_scene("train", i) for i in (1, 2, 5)]
    captions = [scenes[0].caption, "", scenes[2].caption]
    clips = render(scenes, (16, 16), 3).frames
    clean = autoencoder.latents_of(vae, clips)
    noise, level = torch.randn_like(clean), editor.schedule.levels(10)[6]
    sigmas = torch.full((3,), level.sigma)
    with torch.no_grad():
        errors = run.network(clean, noise, sigmas, captions)
    for i, caption in enumerate(captions):
        latents = editor.encode_frames(clips[i].numpy())
        torch.testing.assert_close(clean[i : i + 1], latents, atol=1e-5, rtol=1e-5)
        conditions = editor.condition(caption, clips[i, 0].numpy(), 3, (16, 16))
        noisy = (1 - level.sigma) * latents + level.sigma * noise[i : i + 1]
        noisy[:, :, 0] = latents[:, :, 0]
        found = editor.predict(noisy, level.t, conditions)
        wanted = (found - (noise[i] - latents))[:, :, 1:].square().mean()
        torch.testing.assert_close(errors[i], wanted, atol=1e-5, rtol=1e-4)


def test_the_autoencoder_takes_every_frame_for_itself(tmp_path):
    """Before the training and after it, so that it can be trained on pictures."""
    run = autoencoder.prepare_vae(tmp_path / "vae.pt", TINY, "cpu")
    before = [p.clone() for p in run.network.parameters()]
    autoencoder.train_vae(run, TINY, "cpu", minutes=9)
    assert run.steps == TINY.vae_steps and run.over
    changed = [not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True)]
    assert all(changed)
    convs = [m for m in run.network.modules() if isinstance(m, CausalConv3d)]
    assert convs and all(not m.weight[:, :, :-1].any() for m in convs)

    pixels = torch.randn(2, 3, 4, 16, 16)
    plain = autoencoder.build(TINY)
    plain.load_state_dict(run.network.vae.state_dict())
    alone = [run.network.vae.posterior(x, {})[0] for x in pixels.split(1, 2)]
    torch.testing.assert_close(plain.posterior(pixels, {})[0], torch.cat(alone, 2))


def test_normalizing_changes_latents_and_not_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "MEASURED", 64)
    run = autoencoder.prepare_vae(tmp_path / "vae.pt", TINY, "cpu")
    vae = autoencoder.normalized(run, TINY, "cpu")
    scenes = [draw_scene("train", autoencoder.VAE_SCENES + i) for i in range(64)]
    clips = render(scenes, (16, 16), 4).frames
    latents = autoencoder.latents_of(vae, clips)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)
    pixels = autoencoder.to_pixels(clips[:4])[:, :, None]
    before, after = (x.decode(x.posterior(pixels, {})[0], {}) for x in (run.network.vae, vae))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_every_caption_is_known():
    tokenizer = Velocity(TINY).tokenizer
    unknown = recipe.pieces().index(recipe.UNKNOWN)
    for i in range(300):
        caption = draw_scene("train", i).caption
        ids = tokenizer.ids(caption)
        # each word and the comma; the end
        assert len(ids) == len(caption.split()) + 2 <= recipe.TOKENS
        assert unknown not in ids
    assert unknown in tokenizer.ids("a zebra")


def test_training_draws_a_level_from_each_part_of_the_grid():
    levels = FlowSchedule(TRAIN_SHIFT).levels(999)[:-1]
    wanted = torch.tensor([level.sigma for level in levels])
    torch.testing.assert_close(shifted(torch.linspace(1, 0.001, 1000)[:-1], TRAIN_SHIFT), wanted)
    torch.manual_seed(0)
    drawn, edges = draw_sigmas(16, "cpu"), shifted(torch.arange(17) / 16, TRAIN_SHIFT)
    order = drawn.argsort()
    assert (edges[:-1] <= drawn[order]).all() and (drawn[order] <= edges[1:]).all()
    assert not torch.equal(order, torch.arange(16))


def test_the_average_reaches_back_over_a_share_of_the_steps(tmp_path):
    """Of weights that are the number of the step, it is behind by a tenth of the steps."""
    weight = torch.nn.Linear(1, 1, bias=False)
    still = SimpleNamespace(param_groups=[], zero_grad=lambda: None, step=lambda: None)
    run = training.Run(tmp_path / "x.pt", weight, still)
    for n in range(1, 2001):
        weight.weight.data.fill_(n)
        run.step(0 * weight.weight.sum())
    share = 1 - run.average["weight"].item() / 2000
    assert share == pytest.approx(1 / (training.AVERAGED + 1), rel=0.01)
