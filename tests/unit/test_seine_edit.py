"""SEINE's inversions, reconstructions and edits against the original code's."""

from unittest import mock

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import Injection, InputError
from anyv2v.media.image import fit_frame, pixels_of
from anyv2v.pipeline import cost
from anyv2v.runtime.accounting import count, fake_mode
from tests.oracles import golden
from tests.oracles.seine_golden import about, error, tensors

BOUND = 1e-4
FACTS = about()
INVERSIONS, CASES = FACTS["inversions"], FACTS["pnp"]
SIZE = FACTS["width"], FACTS["height"]
DEFAULT = "pnp0.2_0.2_0.5_0"
"""The case of the original's own settings."""
NOTHING = Injection(conv=0, spatial=0, temporal=0, cross=0)
slow = pytest.mark.slow


def cases(names, quick):
    return [pytest.param(name, marks=() if name in quick else slow) for name in names]


@pytest.fixture(scope="module")
def sources(seine, seine_video):
    """The inversions of the clip, made when they are first asked for."""
    made = {}

    def source(tag):
        if tag not in made:
            given = INVERSIONS[tag]
            made[tag] = seine.invert(seine_video, "ddim", given["steps"], prompt=given["prompt"])
        return made[tag]

    return source


@pytest.fixture(scope="module")
def edited_frame():
    """The edited frame at the size that it was given the original in, which stretches it."""
    return tensors("inputs")["edited_raw"].numpy()


def test_the_edited_frame_is_stretched_as_by_the_original(edited_frame):
    stretched = fit_frame(edited_frame, SIZE, "stretch", bilinear=True)
    pixels = pixels_of(torch.from_numpy(stretched[None]))
    assert (pixels - tensors("vae")["edited.pixels"]).abs().max() < 1e-6


@pytest.mark.parametrize("tag", cases(INVERSIONS, ("n10",)))
def test_inversion_equals_the_original(sources, tag):
    source, g = sources(tag), tensors("inversion")
    steps = INVERSIONS[tag]["steps"]
    kept = [source.trajectory[t] for t in g[f"{tag}.timesteps"].tolist()]
    assert list(map(int, g[f"{tag}.timesteps"])) == INVERSIONS[tag]["kept"]
    assert error(torch.stack([x[0] for x in kept])[None], "inversion", f"{tag}.latents") <= BOUND
    assert error(source.at(0), "inversion", f"{tag}.noisiest") <= BOUND
    assert source.evaluations == steps
    if tag == "n10":
        assert error(source.trajectory.clean, "inversion", "n10.start") <= BOUND


@slow
@torch.no_grad()
def test_predictions_of_an_inversion_equal_the_original(seine, seine_video):
    """The network is asked about t with the latents of the timestep before."""
    g = tensors("inversion")
    conditions = seine.condition("", seine_video.frames[0], 4, SIZE)
    before = [g["n10.start"], *g["n10.latents"].unbind(1)]
    for t, latents in zip(g["n10.timesteps"].tolist(), before, strict=False):
        prediction = seine.predict(latents, t, conditions)
        assert error(prediction, "inversion", f"n10.t{t}.eps") <= 3e-5


@slow
@pytest.mark.parametrize("tag", INVERSIONS)
def test_reconstruction_equals_the_original(seine, sources, tag):
    steps, prompt = (INVERSIONS[tag][name] for name in ("steps", "prompt"))
    before = {}
    stride = 1000 // steps
    edit = seine.reconstruct(
        sources(tag),
        prompt=prompt,
        steps=steps,
        options={"sampler": "ddim"},
        on_step=lambda i, t, latents: before.__setitem__(t - stride, latents),
    )
    assert error(edit.latents, "reconstruction", f"{tag}.final") <= BOUND
    if tag == "n10":
        for name in tensors("reconstruction"):
            if name.startswith("n10.before_t"):
                t = int(name.removeprefix("n10.before_t"))
                assert error(before[t], "reconstruction", name) <= BOUND
        assert frames_agree(edit.frames, tensors("reconstruction")["n10.frames"])


def frames_agree(ours, truth):
    off = np.abs(ours.astype(int) - truth[0].numpy().astype(int))
    return (off <= 1).mean() >= 0.999


def noise_of(case):
    """The noise of every step, and of the last one, which adds none."""
    drawn = tensors("noise")[case["noise"]][: case["n_steps"] - 1]
    return [*drawn[:, None], torch.zeros_like(drawn[:1])]


@pytest.mark.parametrize("name", cases(CASES, (DEFAULT,)))
def test_edit_equals_the_original(seine, sources, edited_frame, name):
    case, seen = CASES[name], {}
    common = {
        "steps": case["n_steps"],
        "guidance": case["cfg"],
        "negative_prompt": FACTS["negative"],
        "on_step": lambda i, t, latents: seen.__setitem__(t, latents),
        "options": {"sampler": case.get("sample_method", "ddpm")},
    }
    if "noise" in case:
        common["step_noise"] = noise_of(case)
    start = tensors("pnp")[f"{name}.start"]
    if case.get("enable_pnp") is False:
        frames = FACTS["frames"]
        edit = seine.generate(
            edited_frame,
            FACTS["prompt"],
            frames=frames,
            size=SIZE,
            noise=start,
            fit="stretch",
            **common,
        )
    else:
        source = sources(case["source"])
        first = case["timesteps"][0] + (case.get("sample_method") != "ddim")
        if case.get("init_with_ddim_inversion", True):
            # the original starts from the noisiest latents that were kept
            kept = max(INVERSIONS[case["source"]]["kept"])
            assert error(source.trajectory[kept], "pnp", f"{name}.start") <= BOUND
            start = source.trajectory[kept]
        if first != max(INVERSIONS[case["source"]]["kept"]) or "random" in name:
            common |= {"noise": start, "random_ratio": 1.0}
        groups = ("conv", "spatial", "temporal", "cross")
        injection = Injection(**dict(zip(groups, case["fractions"], strict=True)))
        common |= {"injection": injection, "fit": "stretch"}
        edit = seine.edit(source, edited_frame, FACTS["prompt"], **common)
    assert list(seen) == case["timesteps"]
    assert error(edit.latents, "pnp", f"{name}.final") <= BOUND
    after = [x for x in tensors("pnp") if x.startswith(f"{name}.t")]
    for step in after:
        t = int(step.removeprefix(f"{name}.t").removesuffix(".after"))
        assert error(seen[t], "pnp", step) <= BOUND, step
    if f"{name}.frames" in tensors("pnp"):
        assert frames_agree(edit.frames, tensors("pnp")[f"{name}.frames"])


@slow
def test_rounding_the_edited_frame_changes_the_edit(seine, sources, edited_frame):
    """So the original's stretching has to be met to a fraction of a level, as above."""
    case = CASES[DEFAULT]
    stretched = fit_frame(edited_frame, SIZE, "stretch", bilinear=True)
    edit = seine.edit(
        sources("n10"),
        stretched.round().astype(np.uint8),
        FACTS["prompt"],
        negative_prompt=FACTS["negative"],
        steps=10,
        step_noise=noise_of(case),
    )
    assert 1e-3 < error(edit.latents, "pnp", f"{DEFAULT}.final") < 0.05


@slow
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_ways_to_get_the_features_agree(seine, seine_video, sampler):
    """In the batch, alone before each step, recorded afterwards, and in the inversion."""
    frame = 255 - seine_video.frames[0]
    options = {"sampler": sampler}
    injection = Injection(conv=0.5, spatial=1.0, temporal=1.0, cross=0.5)
    common = {"injection": injection, "options": options}
    source = seine.invert(seine_video, steps=2, options=options)
    requests = [anyv2v.EditRequest(frame, "a robot", guidance=g, seed=3) for g in (1.0, 4.0)]
    truth = seine.edit_many(source, requests, steps=2, source_pass="always", **common)
    recording = seine.recording(seine_video, injection, 2, options=options)
    recorded = seine.record(source, recording)
    ways = [
        seine.edit_many(source, requests, steps=2, **common),
        seine.edit_many(source, requests, steps=2, source_pass="separate", **common),
        seine.edit_many(recorded, requests, steps=2, **common),
        [
            seine.edit(source, frame, "a robot", guidance=g, seed=3, steps=2, **common)
            for g in (1.0, 4.0)
        ],
    ]
    if sampler == "ddim":
        # DDPM's timesteps are not those of the inversion, so its features are not either
        inverted = seine.invert(seine_video, steps=2, recording=recording, options=options)
        ways.append(seine.edit_many(inverted, requests, steps=2, **common))
    for edits in ways:
        for ours, right in zip(edits, truth, strict=True):
            assert golden.relative_error(ours.latents, right.latents) <= 1e-5


@slow
def test_a_seed_gives_the_noise_of_the_steps(seine, sources):
    common = dict(steps=2, injection=NOTHING)
    frame = sources("n10").video.frames[0]
    source, quiet = sources("n10"), {"noise": sources("n10").at(0), "random_ratio": 1.0}
    edits = [seine.edit(source, frame, "", seed=s, **quiet, **common).latents for s in (1, 1, 2)]
    assert torch.equal(edits[0], edits[1])
    assert golden.relative_error(edits[2], edits[0]) > 0.01
    with pytest.raises(InputError, match="add no noise"):
        seine.edit(
            sources("n10"),
            frame,
            "",
            steps=5,
            options={"sampler": "ddim"},
            step_noise=[torch.zeros(1, 4, 4, 8, 16)] * 5,
        )


def test_a_step_whose_latents_were_not_kept_is_refused(seine, sources):
    with pytest.raises(InputError, match="has 10 steps and holds no latents of timestep 951"):
        seine.edit(sources("n10"), sources("n10").video.frames[0], "", steps=20)


@slow
def test_the_encoder_makes_conditions_and_is_counted_once(seine, seine_video, monkeypatch):
    """It is on the device while gray frames are encoded, and leaves it once in a plan."""
    backbone, encoder, users = seine.backbone, seine.backbone.codec.encoder, []
    hook = encoder.register_forward_hook(
        lambda *_: users.append(seine.offload._networks[encoder].users)
    )
    seine.condition("", seine_video.frames[0], 4, SIZE)
    hook.remove()
    assert users == [1, 1]
    waits = mock.Mock(applies_to=lambda _: True, reloads=lambda network: False, freeable=0)
    waits.reloaded = 0
    monkeypatch.setattr(seine, "offload", waits)
    # steps that inject nothing are all of one kind, which saves time
    leaves = sum(x.nbytes for network in (backbone.text, encoder) for x in network.parameters())
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(cost, "fake_mode", lambda _, device=device: fake_mode(device))
        found = cost.predict_cost(seine, seine_video, steps=2, injection=NOTHING)
        assert found.offloaded == leaves


@slow
def test_the_least_memory_of_a_prediction_is_less_than_what_it_takes(seine):
    with fake_mode("cpu") as device:
        backbone = seine.backbone.meta_copy(device)
        conditions = backbone.meta_conditions(4, 8, 16)
        latents = torch.empty(1, 4, 4, 8, 16, device=device)
        # the copy of the network has its own frequencies, which its attentions share
        temporal = backbone.unet.get_submodule("up.1.spatial.1.block.temporal")
        assert temporal._rotary == (backbone.unet.rotary,)
        peak = count(lambda: backbone.predict(latents, 1, conditions)).peak_bytes
    assert peak / 3 < seine.backbone.activation_bytes(1, 4, 8, 16) < peak
