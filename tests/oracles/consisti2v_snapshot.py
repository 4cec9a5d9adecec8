"""Write a complete, small, randomly initialized ConsistI2V in Hugging Face's layout.

The names and shapes of the UNet are spelled out here; everything else is taken from `snapshot.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.oracles import snapshot
from tests.oracles.snapshot import NORM, Shapes, _affine, _attention, _conv, _linear, _resnet

GOLDENS = Path(__file__).parents[1] / "goldens" / "consisti2v"
ALPHAS = json.loads((GOLDENS / "alphas.json").read_text(encoding="utf-8"))
"""Name of a tensor `alpha` -> its value in the model that the goldens were made with. One is
negative, so that it has to be clamped."""

FULL_TEXT = {**snapshot.PRESETS["full"]["text"], "layers": 23}
PRESETS: dict[str, dict] = {
    # the model that the goldens were made with: UNet of seed 0, the rest of seed 1
    "tiny": {
        "unet": {
            "widths": [32, 32, 64, 64],
            "groups": 16,
            "heads": [2, 2, 4, 4],
            "temporal_heads": 4,
            "context": 32,
            "frames": 5,
        },
        "vae": snapshot.PRESETS["tiny"]["vae"],
        "text": snapshot.PRESETS["tiny"]["text"],
        "merges": 300,
    },
    # the released model's sizes
    "full": {
        "unet": {
            "widths": [320, 640, 1280, 1280],
            "groups": 32,
            "heads": [5, 10, 20, 20],
            "temporal_heads": 8,
            "context": 1024,
            "frames": 16,
        },
        "vae": snapshot.PRESETS["full"]["vae"],
        "text": FULL_TEXT,
        "merges": 48894,
    },
}

# pattern -> gain relative to 1/sqrt(fan in); the first pattern in the name counts, see
# `snapshot.GAINS`
GAINS = (
    (r"tempo_attns.*attn1\.to_[qk]\.", 1.7),
    (r"\.to_[qk]\.", 1.3),
    (r"tempo_attns.*attn2\.to_out\.", 0.35),
    (r"attn2\.to_out\.", 0.3),
    (r"rotary_bias", 0.2),
    (r"ff\.net\.2\.", 0.8),
    (r"proj_out\.", 0.35),
    (r"(resnets|conv3ds)\.\d+\.conv1\.", 1.6),
    (r"resnets\.\d+\.conv2\.", 0.6),
    (r"time_emb_proj", 1.2),
    (r"conv_shortcut|samplers\.0\.conv", 0.8),
    (r"conv_out", 0.22),
    (r"(time|frame_stride)_embedding\.", 1.4),
)
UNUSED_TIME, UNUSED_BUCKETS = 512, 32
"""Sizes of tensors that the network has and never reads."""

SCHEDULER_CONFIG = {
    **snapshot.SCHEDULER_CONFIG,
    "_diffusers_version": "0.21.2",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
INDEX = {
    "_class_name": "ConditionalVideoEditingPipeline",
    "_diffusers_version": "0.21.2",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["consisti2v.models.videoldm_unet", "VideoLDMUNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _temporal_conv(name: str, channels: int) -> Shapes:
    return {
        f"{name}.alpha": (1,),
        **_affine(f"{name}.norm1", channels),
        **_conv(f"{name}.conv1", channels, channels, 3, 1, 1),
        **_linear(f"{name}.time_emb_proj", UNUSED_TIME, channels),
        **_affine(f"{name}.norm2", channels),
        **_conv(f"{name}.conv2", channels, channels, 3, 1, 1),
    }


def _spatial(name: str, channels: int, context_dim: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    return {
        **_affine(f"{name}.norm", channels),
        **_linear(f"{name}.proj_in", channels, channels),
        **_affine(f"{block}.norm1", channels),
        **_attention(f"{block}.attn1", channels, channels),
        **_affine(f"{block}.norm2", channels),
        **_attention(f"{block}.attn2", channels, channels, context_dim),
        **_affine(f"{block}.norm3", channels),
        **_linear(f"{block}.ff.net.0.proj", channels, 8 * channels),
        **_linear(f"{block}.ff.net.2", 4 * channels, channels),
        **_linear(f"{name}.proj_out", channels, channels),
    }


def _temporal(name: str, channels: int, context_dim: int, heads: int) -> Shapes:
    out = {f"{name}.alpha": (1,), **_spatial(name, channels, context_dim)}
    for attention in ("attn1", "attn2"):
        path = f"{name}.transformer_blocks.0.{attention}"
        out[f"{path}.rotary_emb.freqs"] = (channels // 4,)
        out[f"{path}.rotary_bias.relative_attention_bias.weight"] = (UNUSED_BUCKETS, heads)
    return out


def unet_shapes(cfg: dict) -> Shapes:
    """Return the shapes of VideoLDMUNet3DConditionModel; the deepest level has no transformers."""
    widths, context_dim, layers = cfg["widths"], cfg["context"], 2
    time_dim, deepest = 4 * widths[0], len(widths) - 1

    def layer(prefix: str, i: int, fan_in: int, channels: int, attention: bool) -> Shapes:
        out = _resnet(f"{prefix}.resnets.{i}", fan_in, channels, time_dim)
        out |= _temporal_conv(f"{prefix}.conv3ds.{i}", channels)
        if attention:
            out |= _spatial(f"{prefix}.attentions.{i}", channels, context_dim)
            name = f"{prefix}.tempo_attns.{i}"
            out |= _temporal(name, channels, context_dim, cfg["temporal_heads"])
        return out

    out = _conv("conv_in", snapshot.LATENT_CHANNELS, widths[0], 3, 3)
    for name in ("time_embedding", "frame_stride_embedding"):
        out |= _linear(f"{name}.linear_1", widths[0], time_dim)
        out |= _linear(f"{name}.linear_2", time_dim, time_dim)
    channels, skips = widths[0], [widths[0]]
    for level, level_out in enumerate(widths):
        for i in range(layers):
            out |= layer(f"down_blocks.{level}", i, channels, level_out, level < deepest)
            channels = level_out
            skips.append(channels)
        if level < deepest:
            out |= _conv(f"down_blocks.{level}.downsamplers.0.conv", channels, channels, 3, 3)
            skips.append(channels)
    for i in range(2):
        out |= layer("mid_block", i, channels, channels, attention=False)
    out |= _spatial("mid_block.attentions.0", channels, context_dim)
    for level, level_out in enumerate(reversed(widths)):
        for i in range(layers + 1):
            out |= layer(f"up_blocks.{level}", i, channels + skips.pop(), level_out, level > 0)
            channels = level_out
        if level < deepest:
            out |= _conv(f"up_blocks.{level}.upsamplers.0.conv", channels, channels, 3, 3)
    out |= _affine("conv_norm_out", widths[0])
    return out | _conv("conv_out", widths[0], snapshot.LATENT_CHANNELS, 3, 3)


def make_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw one tensor of the UNet, float16; see `snapshot.make_tensor`."""
    if name in ALPHAS:
        return np.full(shape, ALPHAS[name], dtype=np.float16)
    if NORM.search(name) or name.endswith(".bias"):
        return snapshot.make_tensor(seed, "unet", name, shape).astype(np.float16)
    digest = hashlib.sha256(f"{seed}/unet/{name}".encode()).digest()
    value = np.random.RandomState(np.frombuffer(digest, dtype="<u4")).standard_normal(shape)
    if name.endswith(".alpha"):
        value = 0.4 + 0.2 * np.tanh(value)
    elif name.endswith(".freqs"):
        # near those of the formula, and not equal to them: they are to be read from the file
        value = 10000.0 ** (-np.arange(shape[0]) / shape[0]) * (1 + 0.1 * np.tanh(value))
    else:
        gain = next((g for pattern, g in GAINS if re.search(pattern, name)), 1.0)
        value *= gain / math.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32).astype(np.float16)


def unet_config(cfg: dict) -> dict:
    """Return the UNet's config.json."""
    attending = len(cfg["widths"]) - 1
    return {
        "_class_name": "VideoLDMUNet3DConditionModel",
        "_diffusers_version": "0.21.2",
        "sample_size": 16,
        "in_channels": snapshot.LATENT_CHANNELS,
        "out_channels": snapshot.LATENT_CHANNELS,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [*["CrossAttnDownBlock2D"] * attending, "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * attending],
        "only_cross_attention": False,
        "block_out_channels": cfg["widths"],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": cfg["groups"],
        "norm_eps": 1e-05,
        "cross_attention_dim": cfg["context"],
        # the number of heads, despite its name
        "attention_head_dim": cfg["heads"],
        "dual_cross_attention": False,
        "use_linear_projection": True,
        "upcast_attention": False,
        "use_temporal": True,
        "n_frames": cfg["frames"],
        "n_temp_heads": cfg["temporal_heads"],
        "first_frame_condition_mode": "concat",
        "augment_temporal_attention": True,
        "temp_pos_embedding": "rotary",
        "use_frame_stride_condition": True,
    }


def write_configs(folder: Path, preset: str = "tiny") -> dict[str, int]:
    """Write all but the weights to the folder, which must not exist; returns the vocabulary."""
    sizes = PRESETS[preset]
    folder.mkdir(parents=True)
    vocab = snapshot.write_tokenizer(
        folder / "tokenizer", {"merges": sizes["merges"], "pad_token": "<|endoftext|>"}
    )
    # autoencoder and text encoder have configs like those of the other snapshot
    like = {
        **snapshot.PRESETS["tiny"],
        "unet": {
            **snapshot.PRESETS["tiny"]["unet"],
            "cross_attention_dim": sizes["text"]["hidden"],
        },
        "vae": sizes["vae"],
        "text": sizes["text"],
    }
    configs = snapshot.component_configs(like, vocab)
    configs["unet"] = unet_config(sizes["unet"])
    for component in ("unet", "vae", "text_encoder"):
        snapshot.write_json(folder / component / "config.json", configs[component])
    snapshot.write_json(folder / "scheduler/scheduler_config.json", SCHEDULER_CONFIG)
    snapshot.write_json(folder / "model_index.json", INDEX)
    return vocab


def write(folder: Path, preset: str = "tiny", seed: int = 0) -> Path:
    """Write the folder, which must not exist, with the UNet in float16; returns it.

    seed: the UNet's; autoencoder and text encoder have the next one.
    """
    sizes, vocab = PRESETS[preset], write_configs(folder, preset)
    unet = {
        name: make_tensor(seed, name, shape) for name, shape in unet_shapes(sizes["unet"]).items()
    }
    _save(folder / "unet/diffusion_pytorch_model.safetensors", unet)
    others = {
        "vae/diffusion_pytorch_model": snapshot.vae_shapes(sizes["vae"]),
        "text_encoder/model": snapshot.text_shapes(sizes["text"], len(vocab)),
    }
    for path, shapes in others.items():
        component = path.split("/")[0]
        tensors = {
            name: snapshot.make_tensor(seed + 1, component, name, shape)
            for name, shape in shapes.items()
        }
        _save(folder / f"{path}.safetensors", tensors)
    return folder


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
