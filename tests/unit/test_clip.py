"""Both CLIP towers against the original's goldens."""

import copy
import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.errors import InputError
from tests.oracles import golden

# Hugging Face's parameter names to ours, in this order
RENAMES = (
    (r"^(text_model|vision_model)\.", ""),
    (r"^(embeddings|encoder)\.", ""),
    (r"self_attn\.([qkv])_proj", r"self.\1"),
    (r"self_attn\.out_proj", "self.out"),
    (r"layer_norm([12])", r"norm\1"),
    (r"mlp\.fc1", "mlp.up"),
    (r"mlp\.fc2", "mlp.down"),
    (r"^final_layer_norm", "final_norm"),
    (r"^pre_layrnorm", "pre_norm"),
    (r"^post_layernorm", "post_norm"),
    (r"^visual_projection", "projection"),
)


def rename(state):
    """The same tensors under our names."""
    out = {}
    for key, value in state.items():
        for theirs, ours in RENAMES:
            key = re.sub(theirs, ours, key)
        out[key] = value
    return out


def text_config(theirs):
    """From the `config.json` of a Hugging Face text encoder, as a dict."""
    return TextConfig(
        vocab_size=theirs["vocab_size"],
        tokens=theirs["max_position_embeddings"],
        hidden_size=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        layers=theirs["num_hidden_layers"],
        intermediate_size=theirs["intermediate_size"],
        activation=theirs["hidden_act"],
        norm_eps=theirs["layer_norm_eps"],
    )


def vision_config(theirs):
    """From the `config.json` of a Hugging Face image encoder, as a dict."""
    return VisionConfig(
        image_size=theirs["image_size"],
        patch_size=theirs["patch_size"],
        hidden_size=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        layers=theirs["num_hidden_layers"],
        intermediate_size=theirs["intermediate_size"],
        activation=theirs["hidden_act"],
        norm_eps=theirs["layer_norm_eps"],
        projection_dim=theirs["projection_dim"],
    )


def load(folder, encoder, config):
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = encoder(config(theirs))
    model.load_state_dict(rename(load_file(folder / "model.safetensors")), strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def text(snapshot):
    return load(snapshot / "text_encoder", TextEncoder, text_config)


@pytest.fixture(scope="module")
def vision(snapshot):
    return load(snapshot / "image_encoder", VisionEncoder, vision_config)


def ids(prompt):
    row = list(golden.facts("tokenizer")["prompts"]).index(prompt)
    return golden.tensors("tokenizer")["ids"][row : row + 1]


@pytest.mark.parametrize("clip_skip, name", [(0, "plain"), (1, "skip1"), (2, "skip2")])
@pytest.mark.parametrize("prompt", ["empty", "plain", "negative", "long", "unicode"])
def test_text_equals_the_original(text, prompt, clip_skip, name):
    truth = golden.tensors("text")[f"{prompt}.{name}"]
    assert golden.relative_error(text(ids(prompt), clip_skip), truth) <= 1e-5


@pytest.mark.parametrize("depth", range(4))
def test_clip_skip_counts_layers_from_the_end(text, depth):
    hidden = golden.tensors("text")[f"plain.hidden_states.{depth}"]
    ours = text(ids("plain"), clip_skip=3 - depth)
    assert golden.relative_error(ours, text.final_norm(hidden)) <= 1e-5


def test_the_default_is_what_the_pipeline_uses(text):
    goldens = golden.tensors("text")
    ours = text(torch.cat([ids("plain"), ids("negative")]))
    truth = [goldens["pipeline.prompt_embeds"], goldens["pipeline.negative_prompt_embeds"]]
    assert golden.relative_error(ours, torch.cat(truth)) <= 1e-5


def test_skipped_layers_do_not_run(text):
    def fail(*_):
        raise AssertionError("the last layer ran")

    hook = text.layers[-1].register_forward_hook(fail)
    try:
        text(ids("plain"), clip_skip=1)
        with pytest.raises(AssertionError, match="the last layer ran"):
            text(ids("plain"), clip_skip=0)
    finally:
        hook.remove()


@pytest.mark.parametrize("image", ["first_frame", "edited", "photo"])
def test_image_equals_the_original(vision, image):
    goldens = golden.tensors("image")
    ours = vision(goldens[f"{image}.pixel_values"])
    assert golden.relative_error(ours, goldens[f"{image}.image_embeddings"][:, 0]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_text_in_half_precision(text, dtype):
    half = copy.deepcopy(text).to(dtype)
    ours = half(ids("plain"))
    assert ours.dtype == dtype
    # some ten roundings, of half an eps at most each, against the same weights in float32
    error = golden.relative_error(ours, half.float()(ids("plain")))
    assert 0 < error <= 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_image_in_half_precision(vision, dtype):
    half = copy.deepcopy(vision).to(dtype)
    pixels = golden.tensors("image")["photo.pixel_values"].to(dtype)
    ours = half(pixels)
    assert ours.dtype == dtype
    error = golden.relative_error(ours, half.float()(pixels.float()))
    assert 0 < error <= 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(77,), (1, 78), (1, 0), (1, 7, 1)])
def test_ids_of_another_shape_are_refused(text, shape):
    with pytest.raises(InputError, match=rf"{re.escape(str(shape))}.* from 1 to 77"):
        text(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("clip_skip", [-1, 4])
def test_clip_skip_beyond_the_layers_is_refused(text, clip_skip):
    with pytest.raises(InputError, match=rf"clip_skip {clip_skip} is not in 0\.\.3"):
        text(ids("plain"), clip_skip)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 31), (1, 3, 64, 64)])
def test_pixels_of_another_shape_are_refused(vision, shape):
    with pytest.raises(InputError, match=rf"{re.escape(str(shape))}.*\(b, 3, 32, 32\)"):
        vision(torch.zeros(shape))


TEXT = TextConfig(
    vocab_size=9,
    tokens=5,
    hidden_size=8,
    heads=2,
    layers=1,
    intermediate_size=8,
    activation="gelu",
    norm_eps=1e-5,
)


def test_an_unknown_activation_is_refused():
    with pytest.raises(InputError, match="'relu' is not one of gelu, quick_gelu"):
        TextEncoder(dataclasses.replace(TEXT, activation="relu"))


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(InputError, match="width 8 cannot be shared evenly by 3 heads"):
        TextEncoder(dataclasses.replace(TEXT, heads=3))
