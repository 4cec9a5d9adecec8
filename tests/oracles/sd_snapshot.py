"""Write a complete, small, randomly initialized Stable Diffusion 1.x in Hugging Face's layout.

The names and shapes of the UNet are spelled out here; everything else is taken from `snapshot.py`.
InstructPix2Pix with 8 input channels, plain Stable Diffusion with 4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.oracles import snapshot
from tests.oracles.snapshot import _affine, _attention, _conv, _linear, _resnet

PRESETS: dict[str, dict] = {
    "tiny": {
        "unet": {"widths": [16, 32, 48, 48], "groups": 8, "heads": 4, "layers": 2, "context": 32},
        "vae": snapshot.PRESETS["tiny"]["vae"],
        "text": {"hidden": 32, "heads": 4, "layers": 3, "intermediate": 128, "act": "quick_gelu"},
        "merges": 300,
    },
    # every number differs from `tiny`, to catch anything that is hard-coded
    "odd": {
        "unet": {"widths": [24, 36, 60], "groups": 12, "heads": 3, "layers": 1, "context": 40},
        "vae": snapshot.PRESETS["odd"]["vae"],
        "text": {"hidden": 40, "heads": 5, "layers": 2, "intermediate": 96, "act": "gelu"},
        "merges": 412,
    },
    # the released model's sizes
    "full": {
        "unet": {
            "widths": [320, 640, 1280, 1280],
            "groups": 32,
            "heads": 8,
            "layers": 2,
            "context": 768,
        },
        "vae": snapshot.PRESETS["full"]["vae"],
        "text": {
            "hidden": 768,
            "heads": 12,
            "layers": 12,
            "intermediate": 3072,
            "act": "quick_gelu",
        },
        "merges": 48894,
    },
}
# as in the published folders
BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
SCHEDULERS = {
    4: {
        "_class_name": "PNDMScheduler",
        **BETAS,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    8: {
        "_class_name": "EulerAncestralDiscreteScheduler",
        **BETAS,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
}
PIPELINES = {4: "StableDiffusionPipeline", 8: "StableDiffusionInstructPix2PixPipeline"}


def _transformer(name: str, channels: int, context_dim: int) -> snapshot.Shapes:
    block = f"{name}.transformer_blocks.0"
    return {
        **_affine(f"{name}.norm", channels),
        **_conv(f"{name}.proj_in", channels, channels, 1, 1),
        **_affine(f"{block}.norm1", channels),
        **_attention(f"{block}.attn1", channels, channels),
        **_affine(f"{block}.norm2", channels),
        **_attention(f"{block}.attn2", channels, channels, context_dim),
        **_affine(f"{block}.norm3", channels),
        **_linear(f"{block}.ff.net.0.proj", channels, 8 * channels),
        **_linear(f"{block}.ff.net.2", 4 * channels, channels),
        **_conv(f"{name}.proj_out", channels, channels, 1, 1),
    }


def unet_shapes(cfg: dict, channels_in: int) -> snapshot.Shapes:
    """Return the shapes of UNet2DConditionModel; all levels but the deepest have transformers."""
    level_channels, layers, context_dim = cfg["widths"], cfg["layers"], cfg["context"]
    time_dim, deepest = 4 * level_channels[0], len(level_channels) - 1

    def layer(prefix: str, i: int, fan_in: int, channels: int, attention: bool) -> snapshot.Shapes:
        out = _resnet(f"{prefix}.resnets.{i}", fan_in, channels, time_dim)
        return (
            out | _transformer(f"{prefix}.attentions.{i}", channels, context_dim)
            if attention
            else out
        )

    out = {
        **_conv("conv_in", channels_in, level_channels[0], 3, 3),
        **_linear("time_embedding.linear_1", level_channels[0], time_dim),
        **_linear("time_embedding.linear_2", time_dim, time_dim),
    }
    channels, skips = level_channels[0], [level_channels[0]]
    for level, level_out in enumerate(level_channels):
        for i in range(layers):
            out |= layer(f"down_blocks.{level}", i, channels, level_out, level < deepest)
            channels = level_out
            skips.append(channels)
        if level < deepest:
            out |= _conv(f"down_blocks.{level}.downsamplers.0.conv", channels, channels, 3, 3)
            skips.append(channels)
    for i in range(2):
        out |= _resnet(f"mid_block.resnets.{i}", channels, channels, time_dim)
    out |= _transformer("mid_block.attentions.0", channels, context_dim)
    for level, level_out in enumerate(reversed(level_channels)):
        for i in range(layers + 1):
            fan_in = channels + skips.pop()
            out |= layer(f"up_blocks.{level}", i, fan_in, level_out, level > 0)
            channels = level_out
        if level < deepest:
            out |= _conv(f"up_blocks.{level}.upsamplers.0.conv", channels, channels, 3, 3)
    return (
        out
        | _affine("conv_norm_out", level_channels[0])
        | _conv("conv_out", level_channels[0], 4, 3, 3)
    )


def component_shapes(preset: dict, channels_in: int) -> dict[str, snapshot.Shapes]:
    """Return component -> the shapes of its tensors."""
    return {
        "unet": unet_shapes(preset["unet"], channels_in),
        "vae": snapshot.vae_shapes(preset["vae"]),
        "text_encoder": snapshot.text_shapes(preset["text"], 512 + preset["merges"] + 2),
    }


def unet_config(cfg: dict, channels_in: int) -> dict:
    """Return the UNet's config.json."""
    attending = len(cfg["widths"]) - 1
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        # the number of heads, despite its name
        "attention_head_dim": cfg["heads"],
        "block_out_channels": cfg["widths"],
        "center_input_sample": False,
        "cross_attention_dim": cfg["context"],
        "down_block_types": [*["CrossAttnDownBlock2D"] * attending, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": channels_in,
        "layers_per_block": cfg["layers"],
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": cfg["groups"],
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * attending],
    }


def write(
    folder: str | Path,
    channels_in: int = 8,
    preset: str = "tiny",
    seed: int = 0,
    half: bool = False,
) -> Path:
    """Write the folder, which must not exist; returns it.

    channels_in: 8 for InstructPix2Pix, 4 for Stable Diffusion. half: float16, in files that are
    named like the published ones.
    """
    folder, sizes = Path(folder), PRESETS[preset]
    folder.mkdir(parents=True)
    vocab = snapshot.write_tokenizer(
        folder / "tokenizer", {"merges": sizes["merges"], "pad_token": "<|endoftext|>"}
    )
    # autoencoder and text encoder have configs like those of the other snapshot
    like = {
        **snapshot.PRESETS["tiny"],
        "unet": {**snapshot.PRESETS["tiny"]["unet"], "cross_attention_dim": 768},
        "vae": sizes["vae"],
        "text": sizes["text"],
        "pad_token": "<|endoftext|>",
    }
    configs = snapshot.component_configs(like, vocab)
    configs["unet"] = unet_config(sizes["unet"], channels_in)
    snapshot.write_json(folder / "scheduler/scheduler_config.json", SCHEDULERS[channels_in])
    snapshot.write_json(
        folder / "model_index.json",
        {
            "_class_name": PIPELINES[channels_in],
            "_diffusers_version": "0.6.0",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", SCHEDULERS[channels_in]["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    dtype = np.float16 if half else np.float32
    for component, shapes in component_shapes(sizes, channels_in).items():
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        tensors = {
            name: snapshot.make_tensor(seed, component, name, shape).astype(dtype)
            for name, shape in shapes.items()
        }
        snapshot.write_json(folder / component / "config.json", configs[component])
        path = folder / component / (stem + (".fp16" if half else "") + ".safetensors")
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)
    return folder
