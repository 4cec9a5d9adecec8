"""What surrounds a backbone, with Wan: the command line, windows, masks, protection, plans."""

from dataclasses import fields, replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import ShareSource
from anyv2v.backbones.base import Defaults
from anyv2v.backbones.defaults import published_defaults
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.backbones.wan.schedule import FlowSchedule
from anyv2v.backbones.wan.sites import chosen_sites
from anyv2v.cli.main import main
from anyv2v.cli.sidecar import Inverted
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.editor import Editor
from anyv2v.injection.examples import OutsideOfMask
from anyv2v.injection.taps import NO_TAPS, Chain
from anyv2v.pipeline.cost import predict_cost
from anyv2v.runtime import accounting, memory
from anyv2v.vae.video_codec import VideoCodec
from anyv2v.weights.folder import Part, write_folder
from tests import wan
from tests.clips import av  # noqa: F401 - where it is missing, videos cannot be read
from tests.draw import normal
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
    for length in (9, 10, 18):
        anyv2v.write_video(f"{length}.mp4", frames(length), 24)
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


@pytest.mark.parametrize("clip, read, windows", [(10, "all", 2), (18, 18, 4)])
def test_every_frame_of_a_clip_of_any_length_comes_out(run, clip, read, windows):
    status, out, _ = edit(run, f"{clip}.mp4", "--frames", read, "-o", "o.mp4")
    assert status == 0 and f"windows: {windows} of 9 frames for {clip} frames" in out
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


# what it takes

WIDE = {
    "transformer": wan.CONFIG["transformer"]
    | {"in_channels": 48, "out_channels": 48, "dim": 3072, "heads": 24, "ff_dim": 14336}
    | {"text_dim": 4096, "text_tokens": 512, "time_dim": 256, "positions": 1024},
    "vae": wan.CONFIG["vae"]
    | {"latent_channels": 48, "mean": [0.0] * 48, "std": [1.0] * 48, "layers": 2}
    | {"encoder_channels": [160, 320, 640, 640], "decoder_channels": [256, 512, 1024, 1024]},
    "text": wan.CONFIG["text"]
    | {"vocab_size": 256384, "tokens": 512, "width": 4096, "heads": 64, "head_dim": 64}
    | {"mlp_width": 10240, "buckets": 32, "max_distance": 128},
}
"""The published sizes, but for the numbers of layers of the transformer and the text encoder."""
SIZE = 1280, 704


class OnGPU(Wan):
    """A Wan that says that it is on a GPU, with networks that have no data."""

    device = torch.device("cuda")

    def meta_copy(self, device):
        copied = super().meta_copy(device)
        return Wan(**{field.name: getattr(copied, field.name) for field in fields(Wan)})


def published(layers):
    """An editor of bfloat16 networks without data, whose text encoder is read on demand."""
    parts = {"transformer": layers, "text": min(layers, 24)}
    config = WIDE | {name: WIDE[name] | {"layers": each} for name, each in parts.items()}
    with torch.device("meta"):
        networks = {name: build() for name, build in Wan.networks(config).items()}
    made = {name: x.to(torch.bfloat16).requires_grad_(False) for name, x in networks.items()}
    backbone = OnGPU(
        made["transformer"],
        made["text"],
        mock.Mock(),
        {name: frozenset(sites) for name, sites in chosen_sites(layers).items()},
        VideoCodec(made["vae"], 2),
        published_defaults(Defaults(SIZE, 121, 24), Wan.published_settings),
        FlowSchedule(5.0),
    )
    return Editor(backbone, graphs=False, offload="auto", reload={made["text"]: mock.Mock()})


def gpu_with(monkeypatch, free):
    """Makes it appear that so many bytes are free beside the weights that are loaded."""
    for name, value in (
        ("is_available", lambda: True),
        ("mem_get_info", lambda device: (free, 24 * 2**30)),
        ("memory_reserved", lambda device: 0),
        ("memory_allocated", lambda device: 0),
    ):
        monkeypatch.setattr(torch.cuda, name, value)


def test_the_least_that_a_prediction_needs_is_near_what_it_takes(monkeypatch):
    gpu_with(monkeypatch, 12 * 10**9)
    backbone = published(layers=1).backbone
    c, *shape = backbone.codec.shape(121, *SIZE[::-1])
    with accounting.fake_mode("cuda") as device:
        copied = backbone.meta_copy(device)
        conditions = copied.meta_conditions(*shape)
        three = conditions.stack([conditions] * 3)
        latents = torch.empty(3, c, *shape, dtype=torch.bfloat16, device=device)
        taken = accounting.count(lambda: copied.predict(latents, 999, three)).peak_bytes
    assert 0.9 * taken < backbone.activation_bytes(3, *shape) < taken


@pytest.mark.slow
@pytest.mark.parametrize("frames", [49, 121])
def test_an_edit_of_the_published_size_fits_24_gb(monkeypatch, frames):
    """Of 24 GiB the driver takes half a GB."""
    editor = published(layers=30)
    weights, usable = 2 * (4_999_787_712 + 704_688_668), 24 * 2**30 - 5 * 10**8
    gpu_with(monkeypatch, usable - weights)
    clip = anyv2v.Video(np.zeros((frames, *SIZE[::-1], 3), np.uint8), 24)
    editor.check_memory(SIZE, frames)
    cost = predict_cost(editor, clip)
    assert cost.weights == weights and weights + 5e9 < cost.peak < usable
    # the text encoder is there while the conditions are made
    alone = predict_cost(editor, clip, feature_memory=0)
    assert weights + 11.36e9 < alone.peak < usable
    # where it does not fit, it runs on the host
    gpu_with(monkeypatch, int(11e9))
    assert weights + 5e9 < predict_cost(editor, clip, feature_memory=0).peak < 18.5e9


@pytest.mark.slow
def test_a_plan_says_what_would_fit(run, monkeypatch):
    # a process on a CPU takes a tenth of a GB for the code of PyTorch
    for free, told in ((0.5, ""), (0.1, "not enough memory: 96x64 with 9 frames")):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: int(free * 1e9))
        status, out, err = run("plan", "9.mp4")
        assert status == 0 and "\nmemory: " in out and told in err and bool(err) == bool(told)
