import json

import numpy as np
import pytest
import torch

from anyv2v.clip.preprocess import PreprocessConfig, preprocess
from tests.oracles import golden


@pytest.fixture(scope="module")
def config(snapshot):
    facts = json.loads((snapshot / "feature_extractor" / "preprocessor_config.json").read_text())
    size = facts["crop_size"]
    size = size["height"] if isinstance(size, dict) else size
    return PreprocessConfig(size, tuple(facts["image_mean"]), tuple(facts["image_std"]))


@pytest.mark.parametrize("name", ["photo", "first_frame", "edited"])
@pytest.mark.parametrize("black_edge", [False, True])
def test_equals_the_original(config, name, black_edge):
    inputs, truth = golden.tensors("inputs"), golden.tensors("image")
    image = inputs["frames"][0] if name == "first_frame" else inputs[name]
    ours = preprocess(image.numpy(), 128, config, black_edge)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    torch.testing.assert_close(ours, truth[f"{name}.pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["photo", "first_frame", "edited"])
def test_levels_equal_the_original(name):
    inputs, truth = golden.tensors("inputs"), golden.tensors("image")
    image = inputs["frames"][0] if name == "first_frame" else inputs[name]
    levels = preprocess(image.numpy(), 128, PreprocessConfig(32, (0.0,) * 3, (1.0,) * 3)) * 255
    levels = levels[0].permute(1, 2, 0).round().to(torch.uint8)
    assert torch.equal(levels, truth[f"{name}.clip_input"])


def test_the_black_edge_is_the_original_s_only_on_request():
    # the original resizes 1280x704 to 2327x1279 for a width of 1280: one row short
    white = np.full((704, 1280, 3), 255, np.uint8)
    config = PreprocessConfig(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert preprocess(white, 1280, config).min() == 1.0
    short = preprocess(white, 1280, config, black_edge=True)
    assert short[..., 0, :].max() < 0.9 and short[..., 1:, :].min() > 0.9
