"""Write IP-Adapters and T2I-Adapters with random weights in the published formats.

Names and shapes are spelled out here. The sizes match those of `sd_snapshot.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.oracles import snapshot

Shapes = dict[str, tuple[int, ...]]

IP_PRESETS: dict[str, dict] = {
    "tiny": {
        "widths": (16, 32, 48, 48),
        "context": 32,
        "tokens": 4,
        "projection": 20,
        "vision": snapshot.PRESETS["tiny"]["vision"],
    },
    # every number differs from `tiny`, to catch anything that is hard-coded
    "odd": {
        "widths": (24, 36, 60, 72),
        "context": 40,
        "tokens": 3,
        "projection": 28,
        "vision": snapshot.PRESETS["odd"]["vision"],
    },
    # h94/IP-Adapter, models/ip-adapter_sd15.safetensors and models/image_encoder
    "full": {
        "widths": (320, 640, 1280, 1280),
        "context": 768,
        "tokens": 4,
        "projection": 1024,
        "vision": snapshot.PRESETS["full"]["vision"],
    },
}
# type, channels of the picture, channels of the levels in its config, blocks per level, pixels per
# latent pixel
T2I_PRESETS: dict[str, tuple] = {
    "tiny": ("full_adapter", 1, (16, 32, 48, 48), 2, 8),
    "tiny light": ("light_adapter", 3, (16, 32, 48), 4, 8),
    "odd": ("full_adapter", 3, (12, 20, 20), 3, 4),
    "odd light": ("light_adapter", 1, (8, 20), 1, 2),
    # TencentARC's t2iadapter_canny_sd15v2, _depth_sd15v2 and _color_sd14v1
    "canny": ("full_adapter", 1, (320, 640, 1280, 1280), 2, 8),
    "depth": ("full_adapter", 3, (320, 640, 1280, 1280), 2, 8),
    "color": ("light_adapter", 3, (320, 640, 1280), 4, 8),
}


def ip_adapter_shapes(preset: str = "tiny") -> Shapes:
    """Return the shapes of an IP-Adapter.

    Attentions are numbered on the way down, then on the way up, then in the middle block;
    cross-attentions have the odd numbers.
    """
    sizes = IP_PRESETS[preset]
    level_channels, context = sizes["widths"], sizes["context"]
    levels = [0, 0, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3]
    shapes = {
        "image_proj.proj.weight": (sizes["tokens"] * context, sizes["projection"]),
        "image_proj.proj.bias": (sizes["tokens"] * context,),
        "image_proj.norm.weight": (context,),
        "image_proj.norm.bias": (context,),
    }
    for i, level in enumerate(levels):
        for x in "kv":
            shapes[f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight"] = level_channels[level], context
    return shapes


def t2i_adapter_shapes(preset: str = "tiny") -> Shapes:
    """Return the shapes of a T2I-Adapter."""
    kind, channels, level_channels, layers, factor = T2I_PRESETS[preset]
    light, cells = kind == "light_adapter", channels * factor**2
    shapes = {} if light else snapshot._conv("adapter.conv_in", cells, level_channels[0], 3, 3)
    outs = [*level_channels, level_channels[-1]] if light else level_channels
    ins = [cells if light else level_channels[0], *outs]
    for i, (channels_in, channels_out) in enumerate(zip(ins, outs, strict=False)):
        body, inner = f"adapter.body.{i}", channels_out // 4 if light else channels_out
        if light or channels_in != channels_out:
            shapes |= snapshot._conv(f"{body}.in_conv", channels_in, inner, 1, 1)
        for j in range(layers):
            block, last = f"{body}.resnets.{j}", 3 if light else 1
            shapes |= snapshot._conv(f"{block}.block1", inner, inner, 3, 3)
            shapes |= snapshot._conv(f"{block}.block2", inner, inner, last, last)
        if light:
            shapes |= snapshot._conv(f"{body}.out_conv", inner, channels_out, 1, 1)
    return shapes


def draw(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    """Draw random tensors with a scale that keeps features of order one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            x *= x[0].numel() ** -0.5
        else:
            x = 0.2 * x + float("norm" in name and name.endswith("weight"))
        state[name] = x.to(dtype)
    return state


def nested(state: dict) -> dict:
    """Group tensors by the first part of their names, as a .bin file does."""
    groups: dict = {}
    for name, x in state.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = x
    return groups


def write_ip_adapter(
    folder: Path, preset: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write an adapter's file and its vision tower to a new folder; returns the file."""
    sizes = IP_PRESETS[preset]
    vision = sizes["vision"]
    tower = folder / "image_encoder"
    tower.mkdir(parents=True)
    snapshot.write_json(
        tower / "config.json",
        {
            "architectures": ["CLIPVisionModelWithProjection"],
            "hidden_act": vision["act"],
            "hidden_size": vision["hidden"],
            "image_size": vision["image_size"],
            "intermediate_size": vision["intermediate"],
            "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model",
            "num_attention_heads": vision["heads"],
            "num_channels": 3,
            "num_hidden_layers": vision["layers"],
            "patch_size": vision["patch_size"],
            "projection_dim": sizes["projection"],
        },
    )
    shapes = snapshot.vision_shapes(vision, sizes["projection"])
    save_file(draw(shapes, seed + 1, dtype), tower / "model.safetensors", {"format": "pt"})
    file = folder / "ip-adapter_sd15.safetensors"
    save_file(draw(ip_adapter_shapes(preset), seed, dtype), file)
    return file


def t2i_adapter_config(preset: str) -> dict:
    """Return the config.json of a T2I-Adapter."""
    kind, channels, level_channels, layers, factor = T2I_PRESETS[preset]
    config = {
        "_class_name": "T2IAdapter",
        "_diffusers_version": "0.18.0.dev0",
        "adapter_type": kind,
        "channels": list(level_channels),
        "in_channels": channels,
        "num_res_blocks": layers,
    }
    # the published configs leave out this field
    return config if factor == 8 else {**config, "downscale_factor": factor}


def write_t2i_adapter(folder: Path, preset: str = "tiny", seed: int = 0) -> Path:
    """Write a T2I-Adapter's folder; returns it."""
    folder.mkdir(parents=True)
    snapshot.write_json(folder / "config.json", t2i_adapter_config(preset))
    state = draw(t2i_adapter_shapes(preset), seed)
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder
