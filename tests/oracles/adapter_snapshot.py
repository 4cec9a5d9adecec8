"""Write an IP-Adapter or a T2I-Adapter with random weights, as they are published.

Names and shapes are spelled out here. The sizes go with those of `sd_snapshot.py`.
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
# type, channels of the picture, widths as its config has them, blocks per level, pixels per latent
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
    """Attentions are numbered going down, then going up, then in the middle; odd ones are cross."""
    sizes = IP_PRESETS[preset]
    widths, context = sizes["widths"], sizes["context"]
    levels = [0, 0, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3]
    shapes = {
        "image_proj.proj.weight": (sizes["tokens"] * context, sizes["projection"]),
        "image_proj.proj.bias": (sizes["tokens"] * context,),
        "image_proj.norm.weight": (context,),
        "image_proj.norm.bias": (context,),
    }
    for i, level in enumerate(levels):
        for x in "kv":
            shapes[f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight"] = widths[level], context
    return shapes


def t2i_adapter_shapes(preset: str = "tiny") -> Shapes:
    kind, channels, widths, layers, factor = T2I_PRESETS[preset]
    light, cells = kind == "light_adapter", channels * factor**2
    shapes = {} if light else snapshot._conv("adapter.conv_in", cells, widths[0], 3, 3)
    outs = [*widths, widths[-1]] if light else widths
    ins = [cells if light else widths[0], *outs]
    for i, (width_in, width) in enumerate(zip(ins, outs, strict=False)):
        body, inner = f"adapter.body.{i}", width // 4 if light else width
        if light or width_in != width:
            shapes |= snapshot._conv(f"{body}.in_conv", width_in, inner, 1, 1)
        for j in range(layers):
            block, last = f"{body}.resnets.{j}", 3 if light else 1
            shapes |= snapshot._conv(f"{block}.block1", inner, inner, 3, 3)
            shapes |= snapshot._conv(f"{block}.block2", inner, inner, last, last)
        if light:
            shapes |= snapshot._conv(f"{body}.out_conv", inner, width, 1, 1)
    return shapes


def draw(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    """Every tensor at random, of a size that keeps features at about one."""
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
    """As a .bin file has it: a dict for each first part of a name."""
    groups: dict = {}
    for name, x in state.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = x
    return groups


def write_ip_adapter(
    folder: Path, preset: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """The file of an adapter in a new folder, and its vision tower beside it."""
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
    kind, channels, widths, layers, factor = T2I_PRESETS[preset]
    config = {
        "_class_name": "T2IAdapter",
        "_diffusers_version": "0.18.0.dev0",
        "adapter_type": kind,
        "channels": list(widths),
        "in_channels": channels,
        "num_res_blocks": layers,
    }
    # the published configs leave it out
    return config if factor == 8 else {**config, "downscale_factor": factor}


def write_t2i_adapter(folder: Path, preset: str = "tiny", seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    snapshot.write_json(folder / "config.json", t2i_adapter_config(preset))
    state = draw(t2i_adapter_shapes(preset), seed)
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder
