"""What surrounds a backbone, with Wan: the command line, windows, masks, protection, plans."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import InputError, ShareSource
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.cli.main import main
from anyv2v.cli.sidecar import Inverted
from anyv2v.backbones.wan.attention import SelfAttention
from anyv2v.injection.examples import OutsideOfMask
from anyv2v.injection.taps import NO_TAPS, Chain
from anyv2v.pipeline import cost
from anyv2v.runtime import memory
from anyv2v.umt5.embeddings import load_embeddings, save_embeddings
from anyv2v.weights.folder import Part, write_folder
from tests import wan
from tests.clips import av  # noqa: F401 - where it is missing, videos cannot be read
from tests.draw import normal, redraw
from tests.oracles import golden, umt5_tokenizer

SETTINGS = {"steps": 3, "guidance": {"text": 3.0}, "noise_range": None, "injection": {"map": 0.4}}
OPTIONS = ["--weights", "w", "--quiet", "--device", "cpu", "--fit", "crop"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights, random from a seed."""
    place = tmp_path_factory.mktemp("wan")
    config = {**wan.CONFIG, "defaults": {**wan.CONFIG["defaults"], **SETTINGS}}
    backbone, parts = wan.tiny(), {}
    networks = backbone.transformer, backbone.codec.vae, backbone.text
    for name, network in zip(config["components"], networks, strict=True):
        state = network.state_dict()
        layout = {key: (x.dtype, tuple(x.shape)) for key, x in state.items()}
        parts[name] = Part(layout, state.__getitem__)
    umt5_tokenizer.write(place)
    tokenizer = {"tokenizer/tokenizer.json": (place / "tokenizer.json").read_text()}
    write_folder(place / "w", config, tokenizer, parts)
    return place / "w"


@pytest.fixture(scope="module")
def editor(folder):
    return anyv2v.load(folder, device="cpu")


def frames(count, seed=0):
    """96x64: squares of 8 pixels, which move."""
    squares = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    still = squares.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(still, 2 * i, 1) for i in range(count)])


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capfd):
    """Runs a command in a folder with clips of 9, 10 and 18 frames and an edited first frame."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").symlink_to(folder)
    for count in (9, 10, 18):
        anyv2v.write_video(f"{count}.mp4", frames(count), 24)
    edited = frames(1)[0].copy()
    edited[16:48, 32:64] = 40, 200, 40
    Image.fromarray(edited).save("e.png")

    def run(*words):
        capfd.readouterr()
        status = main([*map(str, words), *OPTIONS])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def edit(run, clip, *words):
    return run("edit", clip, "--frame", "e.png", "--prompt", "a man", *words)


def count_of(path):
    return len(anyv2v.read_video(path).frames)


@pytest.mark.parametrize("clip, read, windows", [(10, "all", 2), (18, "all", 4), (18, 18, 4)])
def test_every_frame_of_a_clip_of_any_length_comes_out(run, clip, read, windows):
    status, out, _ = edit(run, f"{clip}.mp4", "--frames", read, "-o", "o.mp4")
    assert status == 0, _
    assert f"windows: {windows} of 9 frames for {clip} frames" in out
    assert count_of("o.mp4") == clip


REFUSED = [
    (edit, ("9.mp4", "--frames", 7, "-o", "o.mp4"), "frames: 7", "5 and 9"),
    (edit, ("10.mp4", "--frames", "all", "--window", 0, "-o", "o.mp4"), "frames: 10", "9 and 13"),
    (edit, ("18.mp4", "--frames", "all", "--window", 10, "-o", "o.mp4"), "window: 10", "9 and 13"),
    ("invert", ("9.mp4", "--frames", 8, "-o", "s.safetensors"), "frames: 8", "5 and 9"),
    ("reconstruct", ("9.mp4", "--frames", 3), "frames: 3", "1 and 5"),
]


@pytest.mark.parametrize("command, words, what, near", REFUSED)
def test_numbers_of_frames_are_refused_before_weights_are_loaded(
    run, monkeypatch, command, words, what, near
):
    monkeypatch.setattr(anyv2v.loading, "load", mock.Mock(side_effect=AssertionError))
    status, out, err = run(command, *words) if isinstance(command, str) else command(run, *words)
    told = f"anyv2v: {what} is not 1 more than a multiple of 4; the nearest: {near}\n"
    assert (status, out, err) == (2, "", told)


def test_residuals_of_many_steps_have_names_of_their_own(editor):
    """Several of 300 levels are told the same timestep."""
    source = editor.invert(frames(5), method="ddim", steps=2)
    levels = editor.schedule.levels(300)
    assert len({level.t for level in levels}) < 301
    many = replace(
        source,
        trajectory=Trajectory(source.trajectory.clean, {}, levels),
        residuals={i: i / 1000 for i in range(300)},
    )
    assert Inverted.of(many).residuals == {str(i): i / 1000 for i in range(300)}


# masks


@pytest.mark.parametrize("kind", ["map", "value", "hidden"])
@pytest.mark.parametrize("after", [False, True])
def test_features_outside_of_a_mask_are_the_sources_in_every_latent_frame(editor, kind, after):
    """A token is 32x32 pixels; what is edited lies in the second row and the first column."""
    mask = torch.zeros(64, 96)
    mask[40:50, 3:20] = 1
    edited = torch.tensor([[0, 0, 0], [1, 0, 0]]).bool().expand(4, 2, 3).reshape(24, 1, 1)
    block = editor.backbone.transformer.block[1]
    dim = wan.CONFIG["transformer"]["dim"]
    # 4 x 2 x 3 tokens, which are as many as the mask has on a grid of 4 x 6
    x = normal(2, 4, 2, 3, dim, seed=1)
    sites = {"map": block.self.site, "value": block.self.value_site, "hidden": block.ff.site}
    taps = OutsideOfMask([sites[kind]], mask)
    taps.step, taps.steps, taps.branches = 0, 10, 2
    told = Chain(ShareSource([sites[kind]], 2), taps) if after else taps
    if kind == "hidden":
        own = block.ff(x, taps=NO_TAPS)
        truth = torch.where(edited.view(4, 2, 3, 1), own, own[:1])
        assert torch.equal(block.ff(x, taps=told), truth)
        return
    (q, k), v = block.self.project(x), block.self.value(x)
    if kind == "map":
        q, k = (torch.where(edited, y, y[:1]) for y in (q, k))
    else:
        v = torch.where(edited, v, v[:1])
    truth = block.self.out(block.self.mix(q, k, v).flatten(-2))
    assert golden.relative_error(block.self(x, taps=told), truth) < 1e-6
