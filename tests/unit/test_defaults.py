"""What weights work best with, from their config.json over their backbone's own."""

import json
import shutil

import pytest
import torch

import anyv2v
from anyv2v import Injection, InputError, loading
from anyv2v.backbones.defaults import published_defaults, read_defaults
from anyv2v.diffusion.inversion import TOLERANCE, default_budget
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.demo import FOLDER
from anyv2v.weights.demo.recipe import PRESETS, config

OWN = {
    "steps": 50,
    "guidance": {"text": 35.0, "image": 1.0},
    "negative_prompt": "blurry",
    "injection": {"conv": 0.2, "cross": 0.1},
}
CLIP = {"size": [64, 32], "frames": 4, "fps": 8}
OLD_FINGERPRINT = "fbe2056d2f3bcb20c5384f4365b398a80ad360c1f8b43f1036a06cd6705c1294"
"""Of the demo weights at commit 5afa655, before their config said how they edit."""


def test_what_a_config_leaves_out_is_the_backbones_own():
    found = read_defaults({"defaults": CLIP}, OWN)
    assert (found.size, found.frames, found.fps, found.steps) == ((64, 32), 4, 8, 50)
    assert found.guidance == OWN["guidance"] and found.negative_prompt == "blurry"
    assert found.injection == Injection(conv=0.2, cross=0.1)
    said = {"guidance": {"image": 2}, "injection": {"conv": 0.8, "spatial": 0}, "steps": 7}
    found = read_defaults({"defaults": CLIP | said | {"negative_prompt": ""}}, OWN)
    assert found.guidance == {"text": 35.0, "image": 2.0} and found.steps == 7
    assert found.injection == Injection(conv=0.8, spatial=0.0, cross=0.1)
    # --paper
    assert published_defaults(found, OWN) == read_defaults({"defaults": CLIP}, OWN)


def test_an_edit_starts_as_noisy_in_any_number_of_steps():
    found = read_defaults({"defaults": CLIP}, OWN | {"start": 4})
    assert [found.start_of(steps) for steps in (50, 25, 100, 10, 1)] == [4, 2, 8, 0, 0]
    assert read_defaults({"defaults": CLIP}, OWN).start_of(50) == 0
    # nor does it matter whether a config states the number, or the caller
    for steps, start in ((100, 8), (25, 2), (4, 0)):
        stated = read_defaults({"defaults": CLIP | {"steps": steps}}, OWN | {"start": 4})
        assert stated.start == stated.start_of(steps) == found.start_of(steps) == start
    with pytest.raises(InputError, match="section 'defaults': start: 4 is not .* from 0 to 3"):
        read_defaults({"defaults": CLIP | {"steps": 4, "start": 4}}, OWN | {"start": 4})


def test_how_exactly_an_inversion_solves_may_be_the_weights_own():
    usual = read_defaults({"defaults": CLIP}, OWN)
    assert (usual.tolerance, default_budget(50, usual.evaluations)) == (TOLERANCE, 75)
    published = OWN | {"tolerance": 1e-2, "evaluations": 4.0}
    found = read_defaults({"defaults": CLIP | {"tolerance": 0.02}}, published)
    assert (found.tolerance, found.evaluations) == (0.02, 4.0)
    assert read_defaults({"defaults": CLIP | {"tolerance": 0.02, "start": 3}}, OWN).start == 3
    with pytest.raises(InputError, match="section 'defaults': evaluations: 0.5 is not 1 or more"):
        read_defaults({"defaults": CLIP | {"evaluations": 0.5}}, OWN)
    with pytest.raises(InputError, match="section 'defaults': tolerance: 0"):
        read_defaults({"defaults": CLIP | {"tolerance": 0}}, published)


def test_guide_and_protection_are_on_where_the_config_says_so():
    usual = read_defaults({"defaults": CLIP}, OWN)
    assert usual.guide is None and usual.protect is False
    said = {"guide": "patches", "protect": True}
    found = read_defaults({"defaults": CLIP | said}, OWN)
    assert found.guide == "patches" and found.protect is True
    assert read_defaults({"defaults": CLIP | {"guide": None}}, OWN) == usual
    # --paper
    assert published_defaults(found, OWN) == usual


@pytest.mark.parametrize(
    "said, words",
    [
        ({"guide": "flow"}, "section 'defaults': guide: 'flow' is not one of auto, patches"),
        ({"protect": 1}, "section 'defaults': protect: 1 is neither True nor False"),
        ({"fraems": 3}, "section 'defaults': fraems is not known"),
        ({"steps": "50"}, "section 'defaults': steps: '50' is not a whole number"),
        ({"steps": 0}, "steps: 0 is not a whole number"),
        ({"steps": 1000}, "steps: 1000 is not a whole number from 1 to 999"),
        ({"guidance": 9.0}, "guidance: 9.0 is not a list of scales"),
        ({"guidance": {"txt": 9.0}}, "guidance: no such scale: txt; there is text"),
        ({"guidance": {"text": "9"}}, "guidance: text: '9' is not a finite number"),
        ({"negative_prompt": None}, "negative_prompt: None is not a text"),
        ({"injection": [0.2]}, "injection: [0.2] is not a list of fractions"),
        ({"injection": {"conv": 2}}, "injection: conv: 2 is not between 0 and 1"),
        ({"injection": {"map": 0.1}}, "no group map; there are conv, spatial, temporal"),
        ({"injection": {"sites": {}}}, "is not a list of fractions"),
    ],
)
def test_what_a_config_says_wrong_is_one_line(tmp_path, said, words):
    shutil.copytree(FOLDER, tmp_path / "w")
    values = json.loads((tmp_path / "w" / "config.json").read_text())
    values["defaults"] |= said
    (tmp_path / "w" / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        anyv2v.load(tmp_path / "w", device="cpu")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'w' / 'config.json'}: ")
    # what takes no network to find is found by `weights verify` too
    if "999" not in words and "map" not in said.get("injection", ()):
        with pytest.raises(InputError) as again:
            loading.inspect(tmp_path / "w")
        assert str(again.value) == str(caught.value)


def test_the_demo_weights_say_how_they_edit_and_stay_who_they_were(tmp_path):
    checkpoint = Checkpoint.open(FOLDER)
    assert checkpoint.config == config(PRESETS["cpu"])
    assert checkpoint.fingerprint == OLD_FINGERPRINT
    editor = anyv2v.load("demo", device="cpu")
    assert editor.fingerprint == OLD_FINGERPRINT
    assert editor.defaults.guidance == {"text": 1.0} and editor.defaults.negative_prompt == ""
    assert editor.defaults.injection == Injection(0.8, 0.0, 0.0)
    # the published weights' own are those of the original
    known = loading.peek(FOLDER)
    assert known.defaults == editor.defaults
    assert known.original.guidance == {"text": 9.0}
    assert known.original.negative_prompt == anyv2v.NEGATIVE_PROMPT
    assert known.original.injection == Injection(0.2, 0.2, 0.5)
    assert known.multiple == editor.backbone.codec.size_multiple
    # a folder of an older version says nothing of it, and is the same weights
    shutil.copytree(FOLDER, tmp_path / "old")
    old = config(PRESETS["cpu"])
    old["defaults"] = {name: old["defaults"][name] for name in ("size", "frames", "fps")}
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    again = anyv2v.load(tmp_path / "old", device="cpu")
    assert again.fingerprint == OLD_FINGERPRINT
    assert again.defaults == known.original


def test_components_are_those_of_the_backbone(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "w")
    values = config(PRESETS["cpu"])
    (tmp_path / "w" / "config.json").write_text(
        json.dumps(values | {"components": ["unet", "vae", "text", "vision"]})
    )
    anyv2v.load(tmp_path / "w", device="cpu", dtype=torch.float32)
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    del manifest["files"]["vision.safetensors"]
    (tmp_path / "w" / "manifest.json").write_text(json.dumps(manifest))
    named = values | {"components": ["unet", "vae", "text"]}
    (tmp_path / "w" / "config.json").write_text(json.dumps(named))
    with pytest.raises(InputError, match="config.json: components: unet, vae, text are not those"):
        anyv2v.load(tmp_path / "w", device="cpu")
