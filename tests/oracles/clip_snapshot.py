"""Write a small, randomly initialized whole CLIP, as transformers or OpenCLIP publish it.

Both forms hold the same weights. The names and shapes of transformers' CLIPModel come from
`snapshot.py`; those of OpenCLIP are made from them here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.oracles import snapshot

PRESETS: dict[str, dict] = {
    # like OpenAI's ViT-B/32: quick_gelu, heads of the towers with the same length
    "openai": {
        "text": {"hidden": 32, "heads": 2, "layers": 3, "intermediate": 128, "act": "quick_gelu"},
        "vision": {
            "hidden": 48,
            "heads": 3,
            "layers": 2,
            "intermediate": 192,
            "act": "quick_gelu",
            "image_size": 32,
            "patch_size": 8,
        },
        "projection": 24,
        "merges": 300,
        # wrong, as in OpenAI's configs
        "eos_token_id": 2,
    },
    # like OpenCLIP's ViT-H/14: gelu, heads of the image encoder longer than those of the text's
    "open_clip": {
        "text": {"hidden": 24, "heads": 3, "layers": 2, "intermediate": 96, "act": "gelu"},
        "vision": {
            "hidden": 40,
            "heads": 2,
            "layers": 3,
            "intermediate": 160,
            "act": "gelu",
            "image_size": 42,
            "patch_size": 14,
        },
        "projection": 20,
        "merges": 412,
        "eos_token_id": None,
    },
}
LOGIT_SCALE = 4.5
"""The logarithm of the factor of the cosines in CLIP's logits; the published ones are 4.605."""


def shapes(preset: dict, vocab_size: int) -> snapshot.Shapes:
    """Return the shapes of CLIPModel but for logit_scale, a single number."""
    return {
        **snapshot.text_shapes(preset["text"], vocab_size),
        "text_projection.weight": (preset["projection"], preset["text"]["hidden"]),
        **snapshot.vision_shapes(preset["vision"], preset["projection"]),
    }


def tensors(preset: dict, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Return the weights of CLIPModel by name, float32."""
    component = {"text_model": "text_encoder", "text_projection": "text_encoder"}
    drawn = {
        name: snapshot.make_tensor(
            seed, component.get(name.split(".")[0], "image_encoder"), name, shape
        )
        for name, shape in shapes(preset, vocab_size).items()
    }
    return drawn | {"logit_scale": np.array(LOGIT_SCALE, np.float32)}


def config(preset: dict, vocab: dict[str, int]) -> dict:
    """Return transformers' config.json."""
    like = {**preset, "unet": {"cross_attention_dim": 1}, "pad_token": "<|endoftext|>"}
    text = snapshot._text_config(preset["text"], preset["projection"], vocab, like["pad_token"])
    # other lengths of the projection than the model's, which does not read these
    text |= {"architectures": None, "projection_dim": 512}
    if preset["eos_token_id"] is not None:
        text["eos_token_id"] = preset["eos_token_id"]
    vision = snapshot._vision_config(preset["vision"], 512) | {"architectures": None}
    return {
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": preset["projection"],
        "text_config": text,
        "text_config_dict": None,
        "torch_dtype": "float32",
        "vision_config": vision,
        "vision_config_dict": None,
    }


def write(folder: str | Path, preset: str = "openai", seed: int = 0, form: str = "safetensors"):
    """Write a folder as transformers does, which must not exist; returns it.

    form: "safetensors", or "bin" for pytorch_model.bin with the buffers of older versions.
    """
    folder, sizes = Path(folder), PRESETS[preset]
    vocab = snapshot.write_tokenizer(
        folder, {"merges": sizes["merges"], "pad_token": "<|endoftext|>"}
    )
    snapshot.write_json(folder / "config.json", config(sizes, vocab))
    _write_preprocessor(folder, sizes)
    weights = tensors(sizes, len(vocab), seed)
    if form == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    positions = (sizes["vision"]["image_size"] // sizes["vision"]["patch_size"]) ** 2 + 1
    buffers = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(positions)[None],
    }
    state = {name: torch.from_numpy(x) for name, x in weights.items()} | buffers
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def _write_preprocessor(folder: Path, sizes: dict) -> None:
    means = {"image_mean": snapshot.OPENAI_MEAN, "image_std": snapshot.OPENAI_STD}
    values = snapshot._preprocessor_config({"vision": sizes["vision"], **means})
    snapshot.write_json(folder / "preprocessor_config.json", values)


def open_clip_name(name: str) -> str:
    """Return OpenCLIP's name of a parameter of CLIPModel, without query, key and value."""
    prefix, places = "", []
    if name.startswith(("vision_model", "visual_projection")):
        prefix = "visual."
    places = [
        (r"^(text_model|vision_model)\.", ""),
        (r"^embeddings\.class_embedding", "class_embedding"),
        (r"^embeddings\.patch_embedding", "conv1"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^embeddings\.token_embedding", "token_embedding"),
        (r"^encoder\.layers", "transformer.resblocks"),
        (r"layer_norm([12])", r"ln_\1"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"^final_layer_norm", "ln_final"),
        (r"^pre_layrnorm", "ln_pre"),
        (r"^post_layernorm", "ln_post"),
        (r"^text_projection\.weight", "text_projection"),
        (r"^visual_projection\.weight", "proj"),
    ]
    for theirs, ours in places:
        name = re.sub(theirs, ours, name)
    return prefix + name


def open_clip_tensors(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of CLIPModel as those of OpenCLIP's model."""
    out = {}
    for name, value in weights.items():
        if re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        if ".self_attn.q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused = open_clip_name(name.split(".self_attn")[0]) + ".attn.in_proj_"
            out[fused + name.rpartition(".")[2]] = np.concatenate(parts)
        elif name in ("text_projection.weight", "visual_projection.weight"):
            out[open_clip_name(name)] = np.ascontiguousarray(value.T)
        else:
            out[open_clip_name(name)] = value
    return out


def write_open_clip(
    folder: str | Path, preset: str = "open_clip", seed: int = 0, form: str = "bin"
):
    """Write the model of `write` as OpenCLIP does; returns the folder.

    Its vocabulary is CLIP's whole one. form: "bin" or "safetensors".
    """
    folder, sizes = Path(folder), PRESETS[preset]
    folder.mkdir(parents=True, exist_ok=True)
    text, vision = sizes["text"], sizes["vision"]
    weights = open_clip_tensors(tensors(sizes, 49408, seed))
    model = {
        "embed_dim": sizes["projection"],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["layers"],
            "width": vision["hidden"],
            "head_width": vision["hidden"] // vision["heads"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": text["hidden"],
            "heads": text["heads"],
            "layers": text["layers"],
        },
    }
    if vision["act"] == "quick_gelu":
        model["quick_gelu"] = True
    means = {"mean": snapshot.OPENAI_MEAN, "std": snapshot.OPENAI_STD}
    snapshot.write_json(
        folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": means}
    )
    if form == "safetensors":
        save_file(weights, folder / "open_clip_model.safetensors")
    else:
        state = {name: torch.from_numpy(x) for name, x in weights.items()}
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


def redraw(model, seed):
    """Every tensor anew, so that none is zero or one and none is alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        with torch.no_grad():
            value.normal_(generator=generator)
            if "norm" in name:
                value.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                value.mul_(0.3)
            elif "embedding" not in name or "patch" in name:
                value.mul_(value[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)
