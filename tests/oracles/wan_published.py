"""Small published folders of Wan 2.2 TI2V-5B's form, with random weights, in both layouts.

`write_hub` writes what the Hugging Face hub has for diffusers, by the classes of diffusers and
transformers themselves; `write_original` the same weights as the original release names and files
them (https://github.com/Wan-Video/Wan2.2: wan/modules/model.py, vae2_2.py and t5.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.draw import normal, redraw
from tests.oracles import umt5_tokenizer

# heads of 32 turn 12, 10 and 10 of their channels by frame, row and column
TRANSFORMER = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 3,
}
VAE = {
    "base_dim": 8,
    "decoder_base_dim": 12,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
TEXT = {
    "d_model": 20,
    "d_kv": 10,
    "num_heads": 2,
    "d_ff": 32,
    "num_layers": 2,
    "dropout_rate": 0.0,
}
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.35.0.dev0",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
# of the 48 channels of TI2V-5B's latents, as scripts/convert_wan_to_diffusers.py of diffusers has
# them (vae22_diffusers_config)
MEAN = """
-0.2289 -0.0052 -0.1323 -0.2339 -0.2799  0.0174  0.1838  0.1557 -0.1382  0.0542  0.2813  0.0891
 0.1570 -0.0098  0.0375 -0.1825 -0.2246 -0.1207 -0.0698  0.5109  0.2665 -0.2108 -0.2158  0.2502
-0.2055 -0.0322  0.1109  0.1567 -0.0729  0.0899 -0.2799 -0.1230 -0.0313 -0.1649  0.0117  0.0723
-0.2839 -0.2083 -0.0520  0.3748  0.0152  0.1957  0.1433 -0.2944  0.3573 -0.0548 -0.1681 -0.0667
"""
STD = """
 0.4765  1.0364  0.4514  1.1677  0.5313  0.4990  0.4818  0.5013  0.8158  1.0344  0.5894  1.0901
 0.6885  0.6165  0.8454  0.4978  0.5759  0.3523  0.7135  0.6804  0.5833  1.4146  0.8986  0.5659
 0.7069  0.5338  0.4889  0.4917  0.4069  0.4999  0.6866  0.4093  0.5709  0.6065  0.6415  0.4944
 0.5726  1.2042  0.5458  1.6887  0.3971  1.0600  0.3943  0.5537  0.5444  0.4089  0.7468  0.7744
"""
SECOND_NAME = "encoder.embed_tokens.weight"
"""The second name of the embedding, which the published text encoder has."""

RESIDUAL = (
    (r"norm1\.gamma", "residual.0.gamma"),
    (r"conv1\.(weight|bias)", r"residual.2.\1"),
    (r"norm2\.gamma", "residual.3.gamma"),
    (r"conv2\.(weight|bias)", r"residual.6.\1"),
    (r"conv_shortcut\.(weight|bias)", r"shortcut.\1"),
)
# patterns of diffusers' and transformers' whole names, and what the original has instead
ORIGINAL = {
    "transformer": (
        *(
            (rf"blocks\.(\d+)\.{theirs}\.to_{k}\.(\w+)", rf"blocks.\1.{original}.{k}.\2")
            for theirs, original in (("attn1", "self_attn"), ("attn2", "cross_attn"))
            for k in "qkv"
        ),
        (r"blocks\.(\d+)\.attn1\.to_out\.0\.(\w+)", r"blocks.\1.self_attn.o.\2"),
        (r"blocks\.(\d+)\.attn2\.to_out\.0\.(\w+)", r"blocks.\1.cross_attn.o.\2"),
        (r"blocks\.(\d+)\.attn1\.(norm_[qk]\.weight)", r"blocks.\1.self_attn.\2"),
        (r"blocks\.(\d+)\.attn2\.(norm_[qk]\.weight)", r"blocks.\1.cross_attn.\2"),
        (r"blocks\.(\d+)\.norm2\.(\w+)", r"blocks.\1.norm3.\2"),
        (r"blocks\.(\d+)\.ffn\.net\.0\.proj\.(\w+)", r"blocks.\1.ffn.0.\2"),
        (r"blocks\.(\d+)\.ffn\.net\.2\.(\w+)", r"blocks.\1.ffn.2.\2"),
        (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
        (r"(patch_embedding\.\w+)", r"\1"),
        (r"condition_embedder\.(time|text)_embedder\.linear_1\.(\w+)", r"\1_embedding.0.\2"),
        (r"condition_embedder\.(time|text)_embedder\.linear_2\.(\w+)", r"\1_embedding.2.\2"),
        (r"condition_embedder\.time_proj\.(\w+)", r"time_projection.1.\1"),
        (r"scale_shift_table", "head.modulation"),
        (r"proj_out\.(\w+)", r"head.head.\1"),
    ),
    "vae": (
        (r"quant_conv\.(\w+)", r"conv1.\1"),
        (r"post_quant_conv\.(\w+)", r"conv2.\1"),
        (r"(\w+)\.conv_in\.(\w+)", r"\1.conv1.\2"),
        (r"(\w+)\.norm_out\.gamma", r"\1.head.0.gamma"),
        (r"(\w+)\.conv_out\.(\w+)", r"\1.head.2.\2"),
        (r"(\w+)\.mid_block\.attentions\.0\.(.*)", r"\1.middle.1.\2"),
        *(
            (rf"(\w+)\.mid_block\.resnets\.{i}\.{theirs}", rf"\g<1>.middle.{2 * i}.{original}")
            for i in (0, 1)
            for theirs, original in [(a, b.replace("\\1", "\\2")) for a, b in RESIDUAL]
        ),
        *(
            (
                rf"(\w+)\.{way}_blocks\.(\d+)\.resnets\.(\d+)\.{theirs}",
                rf"\1.{way}samples.\2.{way}samples.\3.{original}",
            )
            for way in ("down", "up")
            for theirs, original in [(a, b.replace("\\1", "\\4")) for a, b in RESIDUAL]
        ),
        # the resampler follows the resnets in one list
        (
            r"encoder\.down_blocks\.(\d+)\.downsampler\.(.*)",
            rf"encoder.downsamples.\1.downsamples.{VAE['num_res_blocks']}.\2",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsampler\.(.*)",
            rf"decoder.upsamples.\1.upsamples.{VAE['num_res_blocks'] + 1}.\2",
        ),
    ),
    "text": (
        (r"shared\.weight", "token_embedding.weight"),
        (r"encoder\.final_layer_norm\.weight", "norm.weight"),
        (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight", r"blocks.\1.norm1.weight"),
        (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight", r"blocks.\1.norm2.weight"),
        (
            r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight",
            r"blocks.\1.attn.\2.weight",
        ),
        (
            r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
            r"blocks.\1.pos_embedding.embedding.weight",
        ),
        (
            r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.weight",
            r"blocks.\1.ffn.gate.0.weight",
        ),
        (
            r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.weight",
            r"blocks.\1.ffn.fc1.weight",
        ),
        (
            r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight",
            r"blocks.\1.ffn.fc2.weight",
        ),
    ),
}


def networks(seed: int = 0, latents: int = 6) -> dict[str, torch.nn.Module]:
    """The transformer, the autoencoder and the text encoder, each by the name of its component.

    latents: channels of the latents. With 48 of them, as in TI2V-5B, they have its moments, else
    random ones.
    """
    moments = {
        "latents_mean": normal(latents, seed=seed + 3).tolist(),
        "latents_std": normal(latents, seed=seed + 4).abs().add(0.5).tolist(),
    }
    if latents == 48:
        known = {"latents_mean": MEAN, "latents_std": STD}
        moments = {name: list(map(float, text.split())) for name, text in known.items()}
    transformer = {**TRANSFORMER, "in_channels": latents, "out_channels": latents}
    with torch.device("meta"):
        vocabulary = len(umt5_tokenizer.settings()["model"]["vocab"])
        text = transformers.UMT5Config(vocab_size=vocabulary + 5, **TEXT)
        made = {
            "transformer": diffusers.WanTransformer3DModel(**transformer),
            "vae": diffusers.AutoencoderKLWan(**VAE, z_dim=latents, **moments),
            "text": transformers.UMT5EncoderModel(text),
        }
    # what is not a parameter is made of numbers, which the meta device has not
    made["transformer"].rope = diffusers.WanTransformer3DModel(**transformer).rope
    for i, network in enumerate(made.values()):
        for name, x in list(network.named_parameters()):
            module = network.get_submodule(name.rpartition(".")[0])
            module._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(
                torch.empty_like(x, device="cpu")
            )
        if hasattr(network, "shared"):
            network.encoder.embed_tokens = network.shared
        redraw(network, 10 * seed + i)
    # decoded pixels stay within -1..1, where they are not clamped
    made["vae"].decoder.conv_out.weight *= 0.2
    return made


def write_hub(
    folder: str | Path,
    seed: int = 0,
    latents: int = 6,
    text_dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a folder in the hub's layout, with sharded weights; returns it.

    text_dtype: of the text encoder, whose published weights are bfloat16.
    """
    folder, made = Path(folder), networks(seed, latents)
    made["transformer"].save_pretrained(folder / "transformer", max_shard_size="200KB")
    made["vae"].save_pretrained(folder / "vae")
    made["text"].to(text_dtype).save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    _add_second_name(folder / "text_encoder")
    scheduler = diffusers.UniPCMultistepScheduler(**SCHEDULER)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    umt5_tokenizer.write(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2))
    return folder


def write_original(
    folder: str | Path, seed: int = 0, text_dtype: torch.dtype = torch.float32
) -> Path:
    """Writes a folder in the layout of the original release, of `write_hub`'s weights."""
    folder, made = Path(folder), networks(seed, 48)
    tokenizer = folder / "google" / "umt5-xxl"
    tokenizer.mkdir(parents=True)
    umt5_tokenizer.write(tokenizer)
    made["text"].to(text_dtype)
    states = {name: original(name, network.state_dict()) for name, network in made.items()}
    write_shards(folder, "diffusion_pytorch_model", states["transformer"], 2)
    torch.save(states["vae"], folder / "Wan2.2_VAE.pth")
    torch.save(states["text"], folder / "models_t5_umt5-xxl-enc-bf16.pth")
    sizes = TRANSFORMER
    config = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.33.0",
        "dim": sizes["num_attention_heads"] * sizes["attention_head_dim"],
        "eps": 1e-06,
        "ffn_dim": sizes["ffn_dim"],
        "freq_dim": sizes["freq_dim"],
        "in_dim": 48,
        "model_type": "ti2v",
        "num_heads": sizes["num_attention_heads"],
        "num_layers": sizes["num_layers"],
        "out_dim": 48,
        "text_len": 512,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def original(component: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network by their names in the original release."""
    renamed = {}
    for name, x in state.items():
        if name == SECOND_NAME:
            continue
        found = [
            match.expand(instead)
            for pattern, instead in ORIGINAL[component]
            if (match := re.fullmatch(pattern, name))
        ]
        assert len(found) == 1, f"{name}: {found}"
        renamed[found[0]] = x.clone()
    return renamed


def write_shards(folder: Path, stem: str, state: dict[str, Tensor], count: int) -> None:
    """Writes tensors to so many safetensors files with an index, as the original's are."""
    names = sorted(state)
    shards = {f"{stem}-{i + 1:05}-of-{count:05}.safetensors": names[i::count] for i in range(count)}
    for file, inside in shards.items():
        save_file({name: state[name].contiguous() for name in inside}, folder / file)
    total = sum(x.nbytes for x in state.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, inside in shards.items() for name in inside},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _add_second_name(folder: Path) -> None:
    """Stores the embedding a second time in another shard, as in the published folder."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = index["weight_map"]
    if SECOND_NAME in shards:
        return
    home = shards["shared.weight"]
    other = next(file for file in sorted(set(shards.values())) if file != home)
    embedding = load_file(folder / home)["shared.weight"]
    save_file(
        {**load_file(folder / other), SECOND_NAME: embedding}, folder / other, {"format": "pt"}
    )
    shards[SECOND_NAME] = other
    path.write_text(json.dumps(index))
