"""What is predicted of a run, against what is counted while it runs."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import EditRequest, Injection
from anyv2v.backbones.registry import BACKBONES
from anyv2v.pipeline import cost as plan
from anyv2v.pipeline.cost import predict_cost
from anyv2v.runtime import offload
from anyv2v.runtime.accounting import Cost, count, fake_mode
from anyv2v.runtime.meta import meta_copy
from tests.toy import folder
from tests.toy.backbone import Toy
from tests.toy.network import DIM
from tests.unit.test_accounting import prediction, unet

STEPS = 5
CLIP = anyv2v.Video(np.random.default_rng(0).integers(0, 256, (9, 24, 36, 3), np.uint8), 12)
PICTURE = CLIP.frames[4]
CONDITION = 2 * 4 * DIM
"""Operations of one branch's conditions: a matrix from four channels."""
LATENTS = 4 * 4 * 3 * 6 * 9
"""Bytes of the clip's latents."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy"
    folder.write(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", Toy)
        return anyv2v.load(path, device="cpu", graphs=False)


@pytest.fixture(autouse=True)
def conditions_cost(monkeypatch):
    """What the toy gives for conditions without data costs nothing; here it costs what it does."""
    given = Toy.meta_conditions

    def meta_conditions(self, *shape):
        like = self.transformer.place
        self.transformer.image(torch.empty(1, 4, dtype=like.dtype, device=like.device))
        return given(self, *shape)

    monkeypatch.setattr(Toy, "meta_conditions", meta_conditions)


def in_half_precision(toy):
    """An editor without data that computes in bfloat16."""
    backbone, codec = toy.backbone, toy.backbone.codec

    def half(network):
        return meta_copy(network, torch.device("cpu"), torch.bfloat16)

    with fake_mode("cpu"):
        codec = replace(codec, net=half(codec.net))
        transformer, words = half(backbone.transformer), half(backbone.words)
        return anyv2v.Editor(replace(backbone, transformer=transformer, words=words, codec=codec))


@pytest.mark.parametrize(
    "asked, half",
    [
        ({}, False),
        # of a source that is run by itself before each step
        ({"edits": 2, "guidance": 1.0, "source_pass": "separate"}, True),
        pytest.param({"source_pass": "always", "start": 1}, False, marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_of_the_run(toy, asked, half):
    """Whatever the network computes in."""
    run = {k: v for k, v in asked.items() if k in ("source_pass", "start")}
    requests = [EditRequest(PICTURE, "a", guidance=asked.get("guidance"))] * asked.get("edits", 1)

    def whole():
        source = toy.invert(CLIP, "ddim", STEPS, plan=toy.step_plan(**run))
        toy.edit_many(source, requests, **run)

    planned = in_half_precision(toy) if half else toy
    predicted = predict_cost(planned, CLIP, method="ddim", inversion_steps=STEPS, **asked)
    assert predicted.total == sum(predicted.flops.values()) == count(whole).flops
    assert predicted.inversion_evaluations == STEPS - asked.get("start", 0)
    # the toy reads its words from the folder, the editor in half precision has no folder
    words = (toy.backbone.words,) if half else ()
    networks = toy.backbone.transformer, toy.backbone.codec.net, *words
    numbers = sum(x.numel() for network in networks for x in network.parameters())
    assert predicted.weights == numbers * (2 if half else 4)


def test_operations_of_an_edit_that_replays_are_those_of_the_run(toy):
    source = toy.invert(CLIP, recording=toy.recording(CLIP))
    replayed = predict_cost(toy, CLIP, feature_memory=10**9, evaluations=0)
    # the conditions of the inversion are counted in any case
    ran = count(lambda: toy.edit(source, PICTURE, "a")).flops
    assert replayed.total - CONDITION == ran
    # of the clip only the edited picture is encoded
    assert (replayed.flops["invert"], replayed.flops["encode"]) == (0, 2 * 6 * 9 * 3 * 4)


@pytest.fixture
def uncounted(monkeypatch):
    """Nothing is counted: every part costs nothing, and the peak is what is held."""

    class Uncounted:
        latents, weights = LATENTS // 4, 0
        conditions = encode = first_frame = decode = Cost(0, 0)

        def __init__(self, *_):
            pass

        def step(self, sites, way):
            return Cost(0, 0)

        def recording(self, sites):
            return Cost(0, 0)

        def peak(self, passes, stored, features):
            return stored, features

    monkeypatch.setattr(plan, "_Parts", Uncounted)


def test_evaluations_are_those_of_the_method_at_most(toy, uncounted):
    for asked, most in (
        ({}, 8),
        ({"start": 2}, 6),
        ({"method": "ddim"}, 500),
        ({"method": "ddim", "inversion_steps": 10}, 10),
        ({"steps": 2}, 3),
        ({"evaluations": 7}, 7),
        ({"evaluations": 0}, 0),
    ):
        assert predict_cost(toy, CLIP, **asked).inversion_evaluations == most


def test_features_that_are_recorded_are_replayed(toy, uncounted):
    """By an inversion that passes them, for edits that may do without the source."""
    for asked, places, rows in (
        ({}, 3, 3 * STEPS),
        ({"edits": 2}, 3, 6 * STEPS),
        ({"feature_memory": 0}, 0, 3 * STEPS + 3),
        ({"method": "ddim"}, 0, 3 * STEPS + 3),
        ({"method": "ddim", "inversion_steps": STEPS}, 0, 3 * STEPS + 3),
        ({"inversion_steps": 2 * STEPS}, 0, 3 * STEPS + 3),
        ({"source_pass": "separate"}, 0, 3 * STEPS),
        ({"source_pass": "always"}, 0, 4 * STEPS),
        ({"edits": 2, "guidance": 1.0, "feature_memory": 0}, 0, 2 * STEPS + 3),
        ({"injection": Injection.none()}, 0, 3 * STEPS),
    ):
        found = predict_cost(toy, CLIP, **asked)
        assert (len(found.recording.placement), found.sampling_branches) == (places, rows), asked


def test_what_is_held_is_counted_where_it_lies(toy, uncounted, monkeypatch):
    """The clean latents, those that the run reads, and the features that lie on the device."""
    known = {"method": "ddim", "inversion_steps": STEPS}
    for asked, count_of in (({}, 4), ({"start": 2}, 2), ({"source_pass": "always"}, 6)):
        found = predict_cost(toy, CLIP, **known, **asked)
        assert (found.peak, found.offloaded) == (count_of * LATENTS, 0)
    recording = toy.recording(CLIP)
    assert recording.bytes() > 0
    for place, here in (("device", recording.bytes()), ("host", 0)):
        moved = replace(recording, placement=dict.fromkeys(recording.placement, place))
        monkeypatch.setattr(toy, "recording", lambda *_, moved=moved, **__: moved)
        found = predict_cost(toy, CLIP)
        assert (found.peak, found.offloaded) == (4 * LATENTS + here, here)


@pytest.mark.parametrize("graphs, times", [(None, 4), (False, 2)])
def test_networks_that_wait_elsewhere_are_not_on_the_device(graphs, times, monkeypatch):
    """Towers while frames are encoded; towers and encoder while it predicts or decodes.

    What is read for the conditions, 5 bytes, is there for them alone, if it fits.
    """
    asked, free = [], []
    monkeypatch.setattr(offload, "free_bytes", lambda device: free[-1])

    def peak(wait, told=0, first=0, encode=0, decode=0, passes=(0,), device="cuda"):
        offload = mock.Mock(applies_to=lambda n: asked.append(n) or wait)
        editor = mock.Mock(graphs=graphs, offload=offload)
        editor._least_bytes = lambda size, frames, branches: 1000 * branches * frames
        editor.backbone.device.type = device
        costs = {"conditions": told, "first_frame": first, "encode": encode, "decode": decode}
        counted = mock.Mock(
            **{name: Cost(0, n) for name, n in costs.items()},
            weights=10**6,
            _editor=editor,
            _frames=(9, 24, 36, 3),
            _branches=3,
            _towers=40,
            _reloaded=5,
            _encoder=7,
        )
        return plan._Parts.peak(counted, list(passes), 300, 20)

    weights_and_held = 10**6 + 300
    for wait, towers, encoder, room in ((False, 0, 0, 336), (True, 40, 7, 335)):
        free.append(room)
        read = 5 if room > 1.1 * 305 else 0
        for case, work in (
            ({"told": 900, "encode": 50}, 900 + read),
            ({"first": 900, "encode": 50}, 900 + read),
            ({"encode": 900}, 900 - towers),
            ({"decode": 900}, 900 - towers - encoder),
            ({"passes": (900, 30)}, 900 - towers - encoder),
        ):
            assert peak(wait, **case) == (weights_and_held + work, towers + encoder)
    # the source is in the batch
    assert set(asked) == {times * 1000 * 4 * 9 + 20}
    on_cpu, _ = peak(False, told=900, device="cpu")
    assert on_cpu == weights_and_held + 5 + 1.35 * 900 + 100e6


def test_the_least_that_a_prediction_needs_is_near_what_it_takes(editor):
    """Of I2VGen-XL, whose temporal transformer at full resolution needs the most."""
    network = unet((32,), 16, 32, 32)
    with fake_mode("cpu") as device:
        taken = count(prediction(meta_copy(network, device), 2, 8, 16)).peak_bytes
    backbone = replace(editor.backbone, unet=network)
    least = backbone.activation_bytes(2, 8, 16, 16)
    assert least <= taken <= 1.3 * least
    half = replace(backbone, unet=meta_copy(network, torch.device("meta"), torch.float16))
    assert half.activation_bytes(2, 8, 16, 16) == least // 2
