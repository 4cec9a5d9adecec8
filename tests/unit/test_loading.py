"""The device and dtype that are chosen where none are asked for."""

import json
from dataclasses import replace

import pytest
import torch

import anyv2v
from anyv2v import InputError, loading
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.cli.source import packaged_notice
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.packaged import PACKAGED

HALF, WHOLE, BRAIN = torch.float16, torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    "asked, device, found",
    [
        (None, "cpu", WHOLE),
        (None, "cuda", HALF),
        (None, "cuda:1", HALF),
        *((dtype, device, dtype) for dtype in (HALF, WHOLE, BRAIN) for device in ("cpu", "cuda")),
    ],
)
def test_a_gpu_has_half_precision_unless_another_is_asked_for(asked, device, found):
    assert choose_dtype(asked, torch.device(device)) == found


@pytest.mark.parametrize("there", [0, 1, 2])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert choose_device(None) == torch.device("cuda" if there else "cpu")
    for device in ("cpu", torch.device("cpu")):
        assert choose_device(device) == torch.device("cpu")
    for index in range(3):
        asked = f"cuda:{index}"
        if index < there:
            assert choose_device(asked) == torch.device(asked)
        else:
            with pytest.raises(InputError, match=f"{asked} was asked for, but there are {there}"):
                choose_device(asked)
    if there:
        assert choose_device("cuda") == torch.device("cuda")
    else:
        with pytest.raises(InputError, match="cuda was asked for"):
            choose_device("cuda")
    for wrong in ("mps", "meta", "gpu", 1.5):
        with pytest.raises(InputError, match="neither cpu nor cuda"):
            choose_device(wrong)


def test_every_network_lies_where_and_as_was_asked(weights, editor):
    brain = anyv2v.load(weights, device="cpu", dtype=BRAIN, graphs=False)
    assert editor.graphs is None and brain.graphs is False
    for dtype, backbone in ((WHOLE, editor.backbone), (BRAIN, brain.backbone)):
        assert (backbone.dtype, backbone.device) == (dtype, torch.device("cpu"))
        for network in (backbone.unet, backbone.text, backbone.vision, backbone.codec.vae):
            assert {x.dtype for x in network.parameters()} == {dtype}
            assert not any(x.requires_grad for x in network.parameters()) and not network.training


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"schedule": {"train_steps": 1000, "steps_offset": 0}}, "schedule .* is not"),
        ({"schedule": None}, "schedule None is not"),
        ({"preprocess": {"size": 8}}, "preprocess: size 8 is not vision: image_size"),
    ],
)
def test_a_config_whose_parts_do_not_fit_is_refused(weights, editor, changed, says):
    config = json.loads((weights / "config.json").read_text())
    for name, value in changed.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    with pytest.raises(InputError, match=says):
        I2VGen.assemble(config, {}, weights, editor.defaults)


@pytest.mark.parametrize("graphs", [None, False])
@pytest.mark.parametrize("offload", ["auto", True, False])
def test_an_editor_is_made_as_was_asked(weights, editor, monkeypatch, graphs, offload):
    made = []
    monkeypatch.setattr(loading, "Editor", lambda *given: made.append(given))
    monkeypatch.setattr(Checkpoint, "load", lambda self, *_: torch.nn.Module())
    monkeypatch.setattr(I2VGen, "assemble", lambda *_: editor.backbone)
    loading.load(weights, "cpu", graphs=graphs, offload=offload)
    loading.load(weights, "cpu")
    given = editor.backbone, editor.fingerprint
    assert made == [(*given, graphs, offload, {}), (*given, None, "auto", {})]


def test_groups_name_sites_that_there_are(weights, editor, monkeypatch):
    groups = {**editor.backbone.groups, "conv": frozenset({"up.1.res.1", "up.9.res.1"})}
    wrong = replace(editor.backbone, groups=groups)
    monkeypatch.setattr(Checkpoint, "load", lambda self, *_: torch.nn.Module())
    monkeypatch.setattr(I2VGen, "assemble", lambda *_: wrong)
    with pytest.raises(InputError, match="injection conv names no site up.9.res.1"):
        loading.load(weights, "cpu")


def test_small_weights_of_the_package_are_said_to_be_small():
    for name in PACKAGED:
        assert packaged_notice(name).startswith(f"the {name} weights know rendered shapes")
        assert packaged_notice(f"./{name}") == ""
