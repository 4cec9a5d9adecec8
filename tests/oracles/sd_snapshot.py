"""Write a complete, small, randomly initialised Stable Diffusion 1.x in Hugging Face's layout.

The counterpart of `snapshot.py`: the names and shapes of the UNet are spelled out here, everything
else is the same as there. InstructPix2Pix with 8 input channels, plain Stable Diffusion with 4.
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
# what the published folders have
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


def _transformer(name: str, width: int, context: int) -> snapshot.Shapes:
    block = f"{name}.transformer_blocks.0"
    return {
        **_affine(f"{name}.norm", width),
        **_conv(f"{name}.proj_in", width, width, 1, 1),
        **_affine(f"{block}.norm1", width),
        **_attention(f"{block}.attn1", width, width),
        **_affine(f"{block}.norm2", width),
        **_attention(f"{block}.attn2", width, width, context),
        **_affine(f"{block}.norm3", width),
        **_linear(f"{block}.ff.net.0.proj", width, 8 * width),
        **_linear(f"{block}.ff.net.2", 4 * width, width),
        **_conv(f"{name}.proj_out", width, width, 1, 1),
    }


def unet_shapes(cfg: dict, channels_in: int) -> snapshot.Shapes:
    """All levels attend but the deepest."""
    widths, layers, context = cfg["widths"], cfg["layers"], cfg["context"]
    time, deepest = 4 * widths[0], len(widths) - 1

    def layer(prefix: str, i: int, width_in: int, width: int, attends: bool) -> snapshot.Shapes:
        out = _resnet(f"{prefix}.resnets.{i}", width_in, width, time)
        return out | _transformer(f"{prefix}.attentions.{i}", width, context) if attends else out

    out = {
        **_conv("conv_in", channels_in, widths[0], 3, 3),
        **_linear("time_embedding.linear_1", widths[0], time),
        **_linear("time_embedding.linear_2", time, time),
    }
    width, skips = widths[0], [widths[0]]
    for level, level_width in enumerate(widths):
        for i in range(layers):
            out |= layer(f"down_blocks.{level}", i, width, level_width, level < deepest)
            width = level_width
            skips.append(width)
        if level < deepest:
            out |= _conv(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3, 3)
            skips.append(width)
    for i in range(2):
        out |= _resnet(f"mid_block.resnets.{i}", width, width, time)
    out |= _transformer("mid_block.attentions.0", width, context)
    for level, level_width in enumerate(reversed(widths)):
        for i in range(layers + 1):
            width_in = width + skips.pop()
            out |= layer(f"up_blocks.{level}", i, width_in, level_width, level > 0)
            width = level_width
        if level < deepest:
            out |= _conv(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3, 3)
    return out | _affine("conv_norm_out", widths[0]) | _conv("conv_out", widths[0], 4, 3, 3)


def component_shapes(preset: dict, channels_in: int) -> dict[str, snapshot.Shapes]:
    return {
        "unet": unet_shapes(preset["unet"], channels_in),
        "vae": snapshot.vae_shapes(preset["vae"]),
        "text_encoder": snapshot.text_shapes(preset["text"], 512 + preset["merges"] + 2),
    }


def unet_config(cfg: dict, channels_in: int) -> dict:
    attending = len(cfg["widths"]) - 1
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        # the number of heads, whatever its name says
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
    """Write the folder, which must not exist; 8 channels: InstructPix2Pix, 4: Stable Diffusion.

    half: float16, in files that are named like the published ones.
    """
    folder, sizes = Path(folder), PRESETS[preset]
    folder.mkdir(parents=True)
    vocab = snapshot.write_tokenizer(
        folder / "tokenizer", {"merges": sizes["merges"], "pad_token": "<|endoftext|>"}
    )
    # of the four components, two are as in the other snapshot
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
