"""Write a complete, small, randomly initialized SEINE in the form in which it is published.

    python tests/oracles/seine_snapshot.py OUT_DIR --preset a

The folder holds `seine.pt`, with the UNet under the key "ema", and `stable-diffusion-v1-4`. Names
and shapes of what SEINE adds to Stable Diffusion's UNet are spelled out here; everything else is
taken from `snapshot.py` and `sd_snapshot.py`.

Every tensor is drawn from a generator of its own. Preset "a" with seed 11 is the model that the
goldens were made with. Its last convolution was fitted, so that the network takes out part of the
noise; it is kept in goldens/seine/fitted.safetensors, with the first convolution of Stable
Diffusion's UNet, which the original code loads and overwrites.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.oracles import sd_snapshot, snapshot
from tests.oracles.snapshot import Shapes

FITTED = Path(__file__).parents[1] / "goldens" / "seine" / "fitted.safetensors"
SEED = 11
"""The seed of the goldens' model."""
VAE = {"block_out_channels": [8, 12, 16, 20], "norm_num_groups": 4, "layers_per_block": 1}
PRESETS: dict[str, dict] = {
    "a": {
        "unet": {"widths": [36, 40, 72, 40], "groups": 4, "layers": 2, "context": 40},
        "heads": [1, 1, 2, 1],
        "vae": VAE,
        "text": {"hidden": 40, "heads": 4, "layers": 3, "intermediate": 96, "act": "quick_gelu"},
        "merges": 300,
    },
    # the released UNet, with a small autoencoder and text encoder: those of Stable Diffusion are
    # tested at their full size elsewhere
    "full": {
        "unet": {"widths": [320, 640, 1280, 1280], "groups": 32, "layers": 2, "context": 768},
        "heads": 8,
        "vae": VAE,
        "text": {"hidden": 768, "heads": 12, "layers": 1, "intermediate": 96, "act": "quick_gelu"},
        "merges": 300,
    },
}
BUCKETS, PAIRS = 32, 16
"""Rows of a table of relative positions; frequencies of the rotary positions."""
BLOCK = re.compile(r"(.*\.transformer_blocks\.0)\.norm3\.weight")

# pattern -> gain, relative to 1/sqrt(fan in); the first pattern in the name counts
GAINS = [
    (r"conv_in|time_emb_proj", 1.2),
    (r"time_embedding", 1.4),
    (r"attn_temp\.to_[qk]", 1.6),
    (r"attn\d\.to_[qk]", 1.5),
    # keeps guidance in range
    (r"attn2\.to_out\.0", 0.35),
    (r"ff\.net\.2", 0.8),
    (r"proj_out", 0.5),
    (r"resnets\.\d+\.conv1", 1.6),
    (r"resnets\.\d+\.conv2", 0.6),
    (r"up_blocks\.3\..*conv_shortcut", 1.5),
    (r"conv_shortcut|samplers\.0\.conv", 0.8),
]
NORM = re.compile(r"(^|\.)(norm\d?|norm_temp|conv_norm_out)\.(weight|bias)$")

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    **sd_snapshot.BETAS,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def unet_shapes(preset: dict) -> Shapes:
    """Return the shapes of SEINE's UNet: Stable Diffusion's, with attention along the frames."""
    shapes = sd_snapshot.unet_shapes(preset["unet"], 9)
    heads = preset["heads"]
    if not isinstance(heads, int):
        by_width = dict(zip(preset["unet"]["widths"], heads, strict=True))
    for name in list(shapes):
        if match := BLOCK.fullmatch(name):
            block, (channels,) = match[1], shapes[name]
            count = heads if isinstance(heads, int) else by_width[channels]
            positions = f"{block}.attn_temp.time_rel_pos_bias.relative_attention_bias.weight"
            shapes |= {
                **snapshot._affine(f"{block}.norm_temp", channels),
                **snapshot._attention(f"{block}.attn_temp", channels, channels),
                positions: (BUCKETS, count),
                f"{block}.attn_temp.rotary_emb.freqs": (PAIRS,),
            }
    return shapes


def _normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4")).standard_normal(shape)


def make_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw one tensor of the UNet, float16, with a scale that suits its layer; see GAINS."""
    if name.endswith("rotary_emb.freqs"):
        # one parameter, saved in every block, and off its formula to show that it is read
        formula = 10000.0 ** (-np.arange(PAIRS) / PAIRS)
        value = formula * (1 + 0.25 * np.tanh(_normal(f"{seed}/freqs", shape)))
        return value.astype(np.float32).astype(np.float16)
    value = _normal(f"{seed}/{name}", shape)
    if NORM.search(name):
        value = 1 + 0.25 * np.tanh(value) if name.endswith("weight") else 0.15 * value
    elif name.endswith("relative_attention_bias.weight"):
        value *= 0.9
    elif name.endswith(".bias"):
        value *= 0.1
    else:
        gain = next((g for pattern, g in GAINS if re.search(pattern, name)), 1.0)
        value *= gain / math.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32).astype(np.float16)


def unet_config(preset: dict) -> dict:
    """Return the config.json of Stable Diffusion's UNet."""
    # the number of heads, despite its name
    like = {**preset["unet"], "heads": preset["heads"]}
    return {**sd_snapshot.unet_config(like, 4), "_diffusers_version": "0.2.2", "sample_size": 8}


def old_name(name: str) -> str:
    """Return the name of a tensor of the autoencoder in the files of diffusers before 0.17."""
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def write(
    folder: str | Path,
    preset: str = "a",
    seed: int = SEED,
    draw: Callable[[int, str, tuple[int, ...]], np.ndarray] = make_tensor,
) -> Path:
    """Write the folder, which must not exist; returns it.

    draw: makes a tensor of the UNet from (seed, name, shape).
    """
    folder, sizes = Path(folder), PRESETS[preset]
    sd = folder / "stable-diffusion-v1-4"
    fitted = load_file(FITTED)
    own = {name: x for name, x in fitted.items() if name.startswith("conv_out")}
    is_golden = (preset, seed) == ("a", SEED)
    ema = {
        name: torch.from_numpy(own[name] if is_golden and name in own else draw(seed, name, shape))
        for name, shape in unet_shapes(sizes).items()
    }
    _write_stable_diffusion(sd, sizes, seed)
    first = {
        name.removeprefix("sd."): torch.from_numpy(x)
        for name, x in fitted.items()
        if name.startswith("sd.")
    }
    torch.save(first, sd / "unet" / "diffusion_pytorch_model.bin")
    torch.save({"ema": ema}, folder / "seine.pt")
    return folder


def _write_stable_diffusion(folder: Path, sizes: dict, seed: int) -> None:
    """Write the folder of Stable Diffusion without the weights of its UNet."""
    special = {"merges": sizes["merges"], "pad_token": "<|endoftext|>"}
    vocab = snapshot.write_tokenizer(folder / "tokenizer", special)
    like = {
        **snapshot.PRESETS["tiny"],
        "unet": {
            **snapshot.PRESETS["tiny"]["unet"],
            "cross_attention_dim": sizes["text"]["hidden"],
        },
        "vae": {**sizes["vae"], "sample_size": 64},
        "text": sizes["text"],
        "pad_token": "<|endoftext|>",
    }
    configs = snapshot.component_configs(like, vocab)
    # two fields that Stable Diffusion 1.4 does not have
    vae = {k: x for k, x in configs["vae"].items() if k not in ("scaling_factor", "force_upcast")}
    vae["_diffusers_version"] = "0.2.2"
    text = {**configs["text_encoder"], "transformers_version": "4.22.0.dev0"}
    snapshot.write_json(folder / "model_index.json", INDEX)
    snapshot.write_json(folder / "vae" / "config.json", vae)
    snapshot.write_json(folder / "text_encoder" / "config.json", text)
    snapshot.write_json(folder / "unet" / "config.json", unet_config(sizes))
    snapshot.write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    shapes = {
        "vae": snapshot.vae_shapes(sizes["vae"]),
        "text_encoder": snapshot.text_shapes(sizes["text"], len(vocab)),
    }
    drawn = {
        component: {
            name: snapshot.make_tensor(seed, component, name, shape) for name, shape in each.items()
        }
        for component, each in shapes.items()
    }
    positions = np.arange(snapshot.MAX_TOKENS, dtype=np.int64)[None]
    drawn["text_encoder"]["text_model.embeddings.position_ids"] = positions
    vae_file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({old_name(name): x for name, x in drawn["vae"].items()}, vae_file, {"format": "pt"})
    text_file = folder / "text_encoder" / "model.safetensors"
    save_file(drawn["text_encoder"], text_file, {"format": "pt"})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--preset", choices=[*PRESETS], default="a")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    write(args.out, args.preset, args.seed)


if __name__ == "__main__":
    main()
