"""Write a complete, small, randomly initialized I2VGen-XL snapshot.

    python tests/oracles/snapshot.py OUT_DIR --preset tiny --seed 0

The folder has the layout that `DiffusionPipeline.save_pretrained` writes (model_index.json and one
folder per component), so everything that loads the published checkpoint can load this one. Needs
numpy and safetensors alone: names and shapes are spelled out here instead of being taken from a
model library, so this file is a map of the checkpoint, too.

Every tensor is drawn from a generator of its own, seeded by (seed, component, name). So its values
do not depend on the order of the tensors, nor on any library but numpy's frozen legacy generator.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]

PRESETS: dict[str, dict] = {
    # all switches as in the published model, fewer channels
    "tiny": {
        "unet": {
            "block_out_channels": [16, 32, 48, 48],
            "norm_num_groups": 8,
            "head_dim": 8,
            "cross_attention_dim": 32,
            "sample_size": 16,
        },
        "vae": {
            "block_out_channels": [16, 32, 32, 32],
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "sample_size": 64,
        },
        "text": {"hidden": 32, "heads": 4, "layers": 3, "intermediate": 128, "act": "gelu"},
        "vision": {
            "hidden": 32,
            "heads": 2,
            "layers": 2,
            "intermediate": 96,
            "act": "gelu",
            "image_size": 32,
            "patch_size": 8,
        },
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
        "pad_token": "<|endoftext|>",
        "merges": 300,
    },
    # every number differs from `tiny`, to catch anything that is hard-coded
    "odd": {
        "unet": {
            "block_out_channels": [24, 36, 60, 72],
            "norm_num_groups": 12,
            "head_dim": 12,
            "cross_attention_dim": 40,
            "sample_size": 8,
        },
        "vae": {
            "block_out_channels": [8, 16, 24, 32],
            "norm_num_groups": 4,
            "layers_per_block": 2,
            "sample_size": 48,
        },
        "text": {"hidden": 40, "heads": 4, "layers": 5, "intermediate": 96, "act": "quick_gelu"},
        "vision": {
            "hidden": 48,
            "heads": 3,
            "layers": 4,
            "intermediate": 128,
            "act": "quick_gelu",
            "image_size": 28,
            "patch_size": 7,
        },
        "image_mean": [0.5, 0.45, 0.4],
        "image_std": [0.25, 0.26, 0.27],
        "pad_token": "!",
        "merges": 412,
    },
    # the published sizes: 10 GB of float32, a minute or two to draw (--half: 5 GB)
    "full": {
        "unet": {
            "block_out_channels": [320, 640, 1280, 1280],
            "norm_num_groups": 32,
            "head_dim": 64,
            "cross_attention_dim": 1024,
            "sample_size": 32,
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "norm_num_groups": 32,
            "layers_per_block": 2,
            "sample_size": 512,
        },
        "text": {"hidden": 1024, "heads": 16, "layers": 24, "intermediate": 4096, "act": "gelu"},
        "vision": {
            "hidden": 1280,
            "heads": 16,
            "layers": 32,
            "intermediate": 5120,
            "act": "gelu",
            "image_size": 224,
            "patch_size": 14,
        },
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
        "pad_token": "<|endoftext|>",
        "merges": 48894,
    },
}

LATENT_CHANNELS = 4
MAX_TOKENS = 77
# the sites of plug-and-play injection assume three layers in each block of the way up
UNET_LAYERS_PER_BLOCK = 2

# the published scheduler: see scripts/convert_i2vgen_to_diffusers.py in diffusers, and VGen's
# configs/i2vgen_xl_train.yaml (cosine, zero_terminal_snr, mean_type v)
SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.26.3",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def _affine(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _linear(name: str, fan_in: int, fan_out: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (fan_out, fan_in)}
    return shapes | {f"{name}.bias": (fan_out,)} if bias else shapes


def _conv(name: str, fan_in: int, fan_out: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (fan_out, fan_in, *kernel), f"{name}.bias": (fan_out,)}


def _attention(name: str, query_dim: int, inner: int, context_dim: int | None = None) -> Shapes:
    context_dim = query_dim if context_dim is None else context_dim
    return {
        **_linear(f"{name}.to_q", query_dim, inner, bias=False),
        **_linear(f"{name}.to_k", context_dim, inner, bias=False),
        **_linear(f"{name}.to_v", context_dim, inner, bias=False),
        **_linear(f"{name}.to_out.0", inner, query_dim),
    }


def _transformer(name: str, channels: int, inner: int, context_dim: int | None) -> Shapes:
    """A spatial (context_dim set) or temporal (None: two self-attentions) transformer."""
    block = f"{name}.transformer_blocks.0"
    return {
        **_affine(f"{name}.norm", channels),
        **_linear(f"{name}.proj_in", channels, inner),
        **_affine(f"{block}.norm1", inner),
        **_attention(f"{block}.attn1", inner, inner),
        **_affine(f"{block}.norm2", inner),
        **_attention(f"{block}.attn2", inner, inner, context_dim),
        **_affine(f"{block}.norm3", inner),
        **_linear(f"{block}.ff.net.0.proj", inner, inner * 8),  # GEGLU: value and gate
        **_linear(f"{block}.ff.net.2", inner * 4, inner),
        **_linear(f"{name}.proj_out", inner, channels),
    }


def _resnet(name: str, fan_in: int, fan_out: int, temb: int | None) -> Shapes:
    out = {
        **_affine(f"{name}.norm1", fan_in),
        **_conv(f"{name}.conv1", fan_in, fan_out, 3, 3),
        **_affine(f"{name}.norm2", fan_out),
        **_conv(f"{name}.conv2", fan_out, fan_out, 3, 3),
    }
    if temb is not None:
        out |= _linear(f"{name}.time_emb_proj", temb, fan_out)
    if fan_in != fan_out:
        out |= _conv(f"{name}.conv_shortcut", fan_in, fan_out, 1, 1)
    return out


def _temporal_conv(name: str, channels: int) -> Shapes:
    out: dict = {}
    for index in range(1, 5):
        # there is a dropout before all convolutions but the first
        place = 2 if index == 1 else 3
        out |= _affine(f"{name}.conv{index}.0", channels)
        out |= _conv(f"{name}.conv{index}.{place}", channels, channels, 3, 1, 1)
    return out


def unet_shapes(cfg: dict) -> Shapes:
    """Return the shapes of I2VGenXLUNet; all levels but the deepest have transformers."""
    level_channels, head_dim = cfg["block_out_channels"], cfg["head_dim"]
    context_dim, time_dim = cfg["cross_attention_dim"], 4 * level_channels[0]
    deepest = len(level_channels) - 1

    def transformers(prefix: str, index: int, channels: int) -> Shapes:
        inner = channels // head_dim * head_dim
        return {
            **_transformer(f"{prefix}.attentions.{index}", channels, inner, context_dim),
            **_transformer(f"{prefix}.temp_attentions.{index}", channels, inner, None),
        }

    def layer(prefix: str, index: int, fan_in: int, fan_out: int, attention: bool) -> Shapes:
        out = _resnet(f"{prefix}.resnets.{index}", fan_in, fan_out, time_dim)
        out |= _temporal_conv(f"{prefix}.temp_convs.{index}", fan_out)
        return out | transformers(prefix, index, fan_out) if attention else out

    out = _unet_inputs(level_channels[0], head_dim, context_dim)
    # skips: the channels that the way up concatenates
    channels, skips = level_channels[0], [level_channels[0]]
    for level, level_out in enumerate(level_channels):
        for index in range(UNET_LAYERS_PER_BLOCK):
            out |= layer(f"down_blocks.{level}", index, channels, level_out, level < deepest)
            channels = level_out
            skips.append(channels)
        if level < deepest:
            out |= _conv(f"down_blocks.{level}.downsamplers.0.conv", channels, channels, 3, 3)
            skips.append(channels)
    for index in range(2):
        out |= layer("mid_block", index, channels, channels, attention=False)
    out |= transformers("mid_block", 0, channels)
    for level, level_out in enumerate(reversed(level_channels)):
        for index in range(UNET_LAYERS_PER_BLOCK + 1):
            fan_in = channels + skips.pop()
            out |= layer(f"up_blocks.{level}", index, fan_in, level_out, level > 0)
            channels = level_out
        if level < deepest:
            out |= _conv(f"up_blocks.{level}.upsamplers.0.conv", channels, channels, 3, 3)
    assert not skips
    out |= _affine("conv_norm_out", level_channels[0])
    return out | _conv("conv_out", level_channels[0], LATENT_CHANNELS, 3, 3)


def _unet_inputs(channels: int, head_dim: int, context_dim: int) -> Shapes:
    """The layers before the first level, and those that make the conditions."""
    c, time_dim = LATENT_CHANNELS, 4 * channels
    return {
        **_conv("conv_in", 2 * c, channels, 3, 3),
        **_transformer("transformer_in", channels, 8 * head_dim, None),
        **_conv("image_latents_proj_in.0", c, 4 * c, 3, 3),
        **_conv("image_latents_proj_in.2", 4 * c, 4 * c, 3, 3),
        **_conv("image_latents_proj_in.4", 4 * c, c, 3, 3),
        **_affine("image_latents_temporal_encoder.norm1", c),
        **_attention("image_latents_temporal_encoder.attn1", c, 2 * c),
        **_linear("image_latents_temporal_encoder.ff.net.0.proj", c, 4 * c),
        **_linear("image_latents_temporal_encoder.ff.net.2", 4 * c, c),
        **_conv("image_latents_context_embedding.0", c, 8 * c, 3, 3),
        **_conv("image_latents_context_embedding.3", 8 * c, 16 * c, 3, 3),
        **_conv("image_latents_context_embedding.5", 16 * c, context_dim, 3, 3),
        **_linear("time_embedding.linear_1", channels, time_dim),
        **_linear("time_embedding.linear_2", time_dim, time_dim),
        **_linear("context_embedding.0", context_dim, time_dim),
        **_linear("context_embedding.2", time_dim, context_dim * c),
        **_linear("fps_embedding.0", channels, time_dim),
        **_linear("fps_embedding.2", time_dim, time_dim),
    }


def vae_shapes(cfg: dict) -> Shapes:
    """Return the shapes of AutoencoderKL."""
    level_channels, layers, c = cfg["block_out_channels"], cfg["layers_per_block"], LATENT_CHANNELS

    def middle(name: str, channels: int) -> Shapes:
        out = _resnet(f"{name}.resnets.0", channels, channels, None) | _resnet(
            f"{name}.resnets.1", channels, channels, None
        )
        out |= _affine(f"{name}.attentions.0.group_norm", channels)
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            out |= _linear(f"{name}.attentions.0.{projection}", channels, channels)
        return out

    out = _conv("encoder.conv_in", 3, level_channels[0], 3, 3)
    channels = level_channels[0]
    for level, level_out in enumerate(level_channels):
        for index in range(layers):
            out |= _resnet(
                f"encoder.down_blocks.{level}.resnets.{index}", channels, level_out, None
            )
            channels = level_out
        if level < len(level_channels) - 1:
            out |= _conv(
                f"encoder.down_blocks.{level}.downsamplers.0.conv", channels, channels, 3, 3
            )
    out |= middle("encoder.mid_block", channels)
    out |= _affine("encoder.conv_norm_out", channels) | _conv(
        "encoder.conv_out", channels, 2 * c, 3, 3
    )
    out |= _conv("quant_conv", 2 * c, 2 * c, 1, 1) | _conv("post_quant_conv", c, c, 1, 1)

    out |= _conv("decoder.conv_in", c, channels, 3, 3) | middle("decoder.mid_block", channels)
    for level, level_out in enumerate(reversed(level_channels)):
        for index in range(layers + 1):
            out |= _resnet(f"decoder.up_blocks.{level}.resnets.{index}", channels, level_out, None)
            channels = level_out
        if level < len(level_channels) - 1:
            out |= _conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", channels, channels, 3, 3)
    return (
        out
        | _affine("decoder.conv_norm_out", channels)
        | _conv("decoder.conv_out", channels, 3, 3, 3)
    )


def _clip_layers(prefix: str, cfg: dict) -> Shapes:
    out: dict = {}
    hidden_size = cfg["hidden"]
    for index in range(cfg["layers"]):
        name = f"{prefix}.encoder.layers.{index}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            out |= _linear(f"{name}.self_attn.{projection}", hidden_size, hidden_size)
        out |= _affine(f"{name}.layer_norm1", hidden_size) | _affine(
            f"{name}.layer_norm2", hidden_size
        )
        out |= _linear(f"{name}.mlp.fc1", hidden_size, cfg["intermediate"])
        out |= _linear(f"{name}.mlp.fc2", cfg["intermediate"], hidden_size)
    return out


def text_shapes(cfg: dict, vocab_size: int) -> Shapes:
    """Return the shapes of CLIPTextModel."""
    return {
        "text_model.embeddings.token_embedding.weight": (vocab_size, cfg["hidden"]),
        "text_model.embeddings.position_embedding.weight": (MAX_TOKENS, cfg["hidden"]),
        **_clip_layers("text_model", cfg),
        **_affine("text_model.final_layer_norm", cfg["hidden"]),
    }


def vision_shapes(cfg: dict, projection_dim: int) -> Shapes:
    """Return the shapes of CLIPVisionModelWithProjection."""
    hidden_size, patch = cfg["hidden"], cfg["patch_size"]
    positions = (cfg["image_size"] // patch) ** 2 + 1
    return {
        "vision_model.embeddings.class_embedding": (hidden_size,),
        "vision_model.embeddings.patch_embedding.weight": (hidden_size, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (positions, hidden_size),
        # the misspelling is the checkpoint's
        **_affine("vision_model.pre_layrnorm", hidden_size),
        **_clip_layers("vision_model", cfg),
        **_affine("vision_model.post_layernorm", hidden_size),
        "visual_projection.weight": (projection_dim, hidden_size),
    }


# Component -> (pattern, gain) relative to 1/sqrt(fan in); the first pattern in the name counts.
# The gains keep activations of order one, make attention maps far from uniform, and leave no layer
# at zero (the original's last temporal layers begin at zero, which would hide mistakes in them).
GAINS = {
    "unet": [
        (r"\.to_[qk]\.weight", 1.5),
        (r"attn1\.to_out\.0\.weight", 1.0),
        # keeps guidance at scale 9 in range
        (r"\.attentions\.\d+\..*attn2\.to_out\.0\.weight", 0.4),
        (r"attn2\.to_out\.0\.weight", 0.8),
        (r"ff\.net\.2\.weight", 0.8),
        (r"proj_out\.weight", 0.35),
        (r"resnets\.\d+\.conv1|temp_convs\.\d+\.conv[123]\.", 1.6),
        (r"resnets\.\d+\.conv2", 0.6),
        (r"temp_convs\.\d+\.conv4\.", 0.5),
        (r"conv_shortcut", 0.8),
        (r"samplers\.0\.conv", 0.8),
        (r"conv_out", 0.5),
        (r"(time_embedding\.linear_1|fps_embedding\.0|context_embedding\.0)\.", 1.4),
        (r"(time_embedding\.linear_2|fps_embedding\.2)\.", 1.4),
        (r"time_emb_proj", 1.2),
        (r"image_latents_context_embedding\.[35]", 1.8),
        (r"context_embedding\.2", 1.6),
        (r"image_latents_proj_in\.[24]", 1.7),
    ],
    "vae": [
        (r"\.to_[qk]\.weight", 1.5),
        (r"\.conv1\.", 1.6),
        (r"\.conv2\.", 0.8),
        (r"conv_shortcut", 0.9),
        (r"samplers\.0\.conv", 0.9),
        (r"encoder\.conv_out", 1.6),
        (r"decoder\.conv_out", 0.6),
        (r"^quant_conv", 5.5),
        (r"^post_quant_conv", 1 / 5.5),
    ],
    "text_encoder": [(r"[qk]_proj", 1.5), (r"out_proj", 1.2), (r"fc2", 1.4)],
    "image_encoder": [(r"[qk]_proj", 1.5), (r"out_proj", 1.2), (r"fc2", 1.4)],
}

NORM = re.compile(
    r"(^|[._])(norm\d?|group_norm|conv_norm_out|layer_norm\d|final_layer_norm|pre_layrnorm"
    r"|post_layernorm|temp_convs\.\d+\.conv\d\.0)\.(weight|bias)$"
)
# far below the clamp at -30, so a sample is the mean to about 1e-7
POSTERIOR_LOG_VARIANCE = -40.0


def make_tensor(seed: int, component: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw one tensor, float32, with a scale that suits its layer; see GAINS."""
    digest = hashlib.sha256(f"{seed}/{component}/{name}".encode()).digest()
    random = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
    value = random.standard_normal(shape)

    if NORM.search(name):
        value = 1 + 0.25 * np.tanh(value) if name.endswith("weight") else 0.15 * value
    elif name.endswith(".bias"):
        value *= 0.1
    elif "embeddings" in name and "patch" not in name:
        value *= 0.5 if "position" in name else 0.9
    else:
        gain = next((g for pattern, g in GAINS[component] if re.search(pattern, name)), 1.0)
        value *= gain / math.sqrt(math.prod(shape[1:]))

    if component == "vae" and name.startswith("quant_conv"):
        value[LATENT_CHANNELS:] = POSTERIOR_LOG_VARIANCE if name.endswith("bias") else 0.0
    return np.ascontiguousarray(value, dtype=np.float32)


TRAINING_TEXT = """
A man is doing exercises for the body and mind in the park while an old woman walks past with her
little dog.
A robot is turning its head on a wooden floor, and the kitten follows the red ball with its eyes.
The girl is dancing ballet in the style of a famous painting; the stars are bright over the quiet
village at night.
Two people are walking along the beach in the morning, the waves are breaking and the sand is wet
and dark.
The camera moves slowly over the mountains, the clouds are drifting, and the light on the snow is
warm and golden.
Papers were floating in the air on a table in the library, near the window that looks out on the
street.
A car is driving down the road through the forest; it is autumn, the leaves are falling and the wind
is strong.
Distorted, discontinuous, ugly, blurry, low resolution, motionless, static, disfigured, disconnected
limbs, ugly faces,
incomplete arms. The video is smooth, sharp and high quality, with natural motion and a stable
background.
She doesn't know that they're coming; he'll say it's nothing, and I've heard that we'd better wait
until 10 o'clock.
A fish is swimming in the clear water of the river, turning around the stones and the green plants
below.
The children are playing football on the grass, running, jumping and shouting, and the sun is going
down behind them.
An astronaut is riding a horse on the moon. A cat is wearing a hat and sitting on a chair in the
kitchen.
Change his clothes to red, turn his hair white, add a party hat on his head, and make it look like
an oil painting.
The train is leaving the station, smoke is rising from the engine, and a boy is waving from the open
window.
A chef is cutting vegetables with a large knife, then he puts them into the pan and stirs them with
a spoon.
Flowers are opening in the garden, a bee is flying from one to another, and the picture is in slow
motion.
The dancer is spinning on the stage under a single lamp, her dress is moving in the air like water
or smoke.
"""


def byte_symbols() -> list[str]:
    """List the printable symbols of the 256 bytes in the order of CLIP's vocabulary."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Learn `count` merges of byte-pair encoding from a text, and invent the rest if needed."""
    pieces = re.findall(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())
    words = Counter(tuple(piece[:-1]) + (piece[-1] + "</w>",) for piece in pieces)
    merges = []
    while len(merges) < count:
        pairs: Counter = Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += times
        if not pairs:
            # the text is used up: fill the vocabulary with pairs and triples of unusual letters
            return merges + invented_merges(count - len(merges), {"".join(m) for m in merges})
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter = Counter()
        for word, times in words.items():
            merged[_merge(word, best)] += times
        words = merged
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The pieces of a word with every occurrence of a pair of them joined."""
    out, i = [], 0
    while i < len(word):
        length = 2 if word[i : i + 2] == pair else 1
        out.append("".join(word[i : i + length]))
        i += length
    return tuple(out)


def invented_merges(count: int, taken: set[str]) -> list[tuple[str, str]]:
    """List merges of symbols that no plain text has; `taken`: tokens to leave out."""
    rare = byte_symbols()[94:]  # symbols of bytes that plain text does not have
    pairs = [(a, b) for a in rare for b in rare]
    triples = [(a + b, c) for a, b in pairs for c in rare]
    fresh = [m for m in (*pairs, *triples) if "".join(m) not in taken]
    return fresh[:count]


def write_tokenizer(folder: Path, preset: dict) -> dict[str, int]:
    """Write the files of a tokenizer; returns its vocabulary, token -> id."""
    folder.mkdir(parents=True)
    merges = learn_merges(TRAINING_TEXT, preset["merges"])
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise AssertionError("two merges made the same token")

    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def special(token: str) -> dict:
        return {
            "content": token,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }

    write_json(
        folder / "special_tokens_map.json",
        {
            "bos_token": special("<|startoftext|>"),
            "eos_token": special("<|endoftext|>"),
            "pad_token": preset["pad_token"],
            "unk_token": special("<|endoftext|>"),
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **special("<|startoftext|>")},
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **special("<|endoftext|>")},
            "errors": "replace",
            "model_max_length": MAX_TOKENS,
            "pad_token": preset["pad_token"],
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **special("<|endoftext|>")},
        },
    )
    return vocab


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file as Hugging Face's libraries do, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def component_configs(preset: dict, vocab: dict[str, int]) -> dict[str, dict]:
    """Return component -> its config.json."""
    projection_dim = preset["unet"]["cross_attention_dim"]
    return {
        "unet": _unet_config(preset["unet"]),
        "vae": _vae_config(preset["vae"]),
        "text_encoder": _text_config(preset["text"], projection_dim, vocab, preset["pad_token"]),
        "image_encoder": _vision_config(preset["vision"], projection_dim),
    }


def _unet_config(unet: dict) -> dict:
    attending = len(unet["block_out_channels"]) - 1
    return {
        "_class_name": "I2VGenXLUNet",
        "_diffusers_version": "0.26.3",
        # two names for the dim of a head: diffusers up to 0.26 reads num_attention_heads; later
        # versions ignore that and read attention_head_dim
        "attention_head_dim": unet["head_dim"],
        "num_attention_heads": unet["head_dim"],
        "block_out_channels": unet["block_out_channels"],
        "cross_attention_dim": unet["cross_attention_dim"],
        "down_block_types": [*["CrossAttnDownBlock3D"] * attending, "DownBlock3D"],
        "in_channels": LATENT_CHANNELS,
        "layers_per_block": UNET_LAYERS_PER_BLOCK,
        "norm_num_groups": unet["norm_num_groups"],
        "out_channels": LATENT_CHANNELS,
        "sample_size": unet["sample_size"],
        "up_block_types": ["UpBlock3D", *["CrossAttnUpBlock3D"] * attending],
    }


def _vae_config(vae: dict) -> dict:
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.26.3",
        "act_fn": "silu",
        "block_out_channels": vae["block_out_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * len(vae["block_out_channels"]),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": vae["layers_per_block"],
        "norm_num_groups": vae["norm_num_groups"],
        "out_channels": 3,
        "sample_size": vae["sample_size"],
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * len(vae["block_out_channels"]),
    }


CLIP_CONFIG = {
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
}


def _text_config(text: dict, projection_dim: int, vocab: dict[str, int], pad_token: str) -> dict:
    return {
        **CLIP_CONFIG,
        "architectures": ["CLIPTextModel"],
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab[pad_token],
        "hidden_act": text["act"],
        "hidden_size": text["hidden"],
        "intermediate_size": text["intermediate"],
        "max_position_embeddings": MAX_TOKENS,
        "model_type": "clip_text_model",
        "num_attention_heads": text["heads"],
        "num_hidden_layers": text["layers"],
        "projection_dim": projection_dim,
        "torch_dtype": "float32",
        "vocab_size": len(vocab),
    }


def _vision_config(vision: dict, projection_dim: int) -> dict:
    return {
        **CLIP_CONFIG,
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_act": vision["act"],
        "hidden_size": vision["hidden"],
        "image_size": vision["image_size"],
        "intermediate_size": vision["intermediate"],
        "model_type": "clip_vision_model",
        "num_attention_heads": vision["heads"],
        "num_channels": 3,
        "num_hidden_layers": vision["layers"],
        "patch_size": vision["patch_size"],
        "projection_dim": projection_dim,
        "torch_dtype": "float32",
    }


def component_shapes(preset: dict, vocab_size: int) -> dict[str, Shapes]:
    """Return component -> the shapes of its tensors."""
    return {
        "unet": unet_shapes(preset["unet"]),
        "vae": vae_shapes(preset["vae"]),
        "text_encoder": text_shapes(preset["text"], vocab_size),
        "image_encoder": vision_shapes(preset["vision"], preset["unet"]["cross_attention_dim"]),
    }


INDEX = {
    "_class_name": "I2VGenXLPipeline",
    "_diffusers_version": "0.26.3",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "I2VGenXLUNet"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _preprocessor_config(preset: dict) -> dict:
    size = preset["vision"]["image_size"]
    return {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": preset["image_mean"],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": preset["image_std"],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def write_snapshot(folder: Path, preset_name: str, seed: int, half: bool = False) -> int:
    """Write the snapshot; returns the number of bytes of its weight files."""
    preset = PRESETS[preset_name]
    if preset["text"]["hidden"] != preset["unet"]["cross_attention_dim"]:
        raise AssertionError(
            "the text encoder's hidden size must be the UNet's cross_attention_dim"
        )
    folder.mkdir(parents=True)
    vocab = write_tokenizer(folder / "tokenizer", preset)

    write_json(folder / "feature_extractor/preprocessor_config.json", _preprocessor_config(preset))
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER_CONFIG)
    write_json(folder / "model_index.json", INDEX)
    total = 0
    configs = component_configs(preset, vocab)
    for component, shapes in component_shapes(preset, len(vocab)).items():
        stem = "diffusion_pytorch_model" if component in ("unet", "vae") else "model"
        dtype = np.float16 if half else np.float32
        tensors = {
            name: make_tensor(seed, component, name, shape).astype(dtype)
            for name, shape in shapes.items()
        }
        path = folder / component / (stem + (".fp16" if half else "") + ".safetensors")
        write_json(folder / component / "config.json", configs[component])
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
        total += path.stat().st_size
    return total


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="folder to write; it must not exist")
    parser.add_argument("--preset", choices=[*PRESETS], default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--half",
        action="store_true",
        help="write float16 files named like the released fp16 variant",
    )
    parser.add_argument(
        "--count", action="store_true", help="only print the number of tensors and of parameters"
    )
    args = parser.parse_args()
    if args.count:
        preset = PRESETS[args.preset]
        for component, shapes in component_shapes(preset, 512 + preset["merges"] + 2).items():
            parameters = sum(map(math.prod, shapes.values()))
            print(f"{component:14} {len(shapes):5} tensors {parameters:>13,} parameters")
        return
    if args.out is None:
        parser.error("give a folder to write")
    size = write_snapshot(args.out, args.preset, args.seed, args.half)
    print(f"{size / 1e6:.2f} MB of weights in {args.out}")


if __name__ == "__main__":
    main()
