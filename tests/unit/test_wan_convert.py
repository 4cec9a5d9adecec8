"""Conversion of Wan 2.2 TI2V-5B from both layouts in which it is published."""

import json
import logging
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import (
    AutoencoderKLWan,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

import anyv2v
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.cli.main import main
from anyv2v.convert.detect import detect_foreign
from anyv2v.convert.formats import wan_config
from anyv2v.convert.published import convert
from anyv2v.convert.repositories import PUBLISHED, needed_files, recognize
from anyv2v.errors import InputError
from anyv2v.loading import expected_shapes, inspect
from anyv2v.weights.checkpoint import Checkpoint
from tests.draw import normal
from tests.oracles import umt5_tokenizer, wan_published
from tests.oracles.golden import relative_error

TI2V_5B = "Wan-AI/Wan2.2-TI2V-5B"
HUB_INDEX = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors.index.json",
    "text": "text_encoder/model.safetensors.index.json",
}
SCHEDULER = "scheduler/scheduler_config.json"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Name of a layout -> a folder in it, of the same weights."""
    folder = tmp_path_factory.mktemp("published")
    hub = wan_published.write_hub(folder / "hub", latents=48)
    return {"hub": hub, "original": wan_published.write_original(folder / "original")}


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    """The folder in the hub's layout, converted."""
    folder = tmp_path_factory.mktemp("converted") / "wan"
    convert(published["hub"], folder, expected_shapes)
    return folder


@pytest.fixture(scope="module")
def configs(published):
    """Name of a published config -> its content, and the sizes of the weights."""
    hub, original = published["hub"], published["original"]
    sizes = {
        "transformer": {
            **{"in_channels": 48, "out_channels": 48, "dim": 64, "ff_dim": 96, "layers": 3},
            **{"text_dim": 20, "time_dim": 32, "patch": [1, 2, 2]},
        },
        "vae": {
            **{"channels": 3, "patch": 2, "latent_channels": 48, "layers": 2, "residual": True},
            "encoder_channels": [8, 16, 32, 32],
            "decoder_channels": [12, 24, 48, 48],
            "temporal": [False, True, True],
        },
        "text": {
            "vocab_size": len(umt5_tokenizer.settings()["model"]["vocab"]) + 5,
            **{"width": 20, "heads": 2, "head_dim": 10, "layers": 2, "mlp_width": 32},
            "buckets": 32,
        },
    }
    paths = {
        "transformer": hub / "transformer" / "config.json",
        "vae": hub / "vae" / "config.json",
        "text": hub / "text_encoder" / "config.json",
        "original": original / "config.json",
        "schedule": hub / SCHEDULER,
        "index": hub / "model_index.json",
    }
    sizes["original"] = sizes["transformer"]
    return {k: (json.loads(path.read_text()), sizes.get(k, {})) for k, path in paths.items()}


@pytest.fixture
def hub(published, tmp_path):
    """A copy of the folder in the hub's layout, which a test may spoil by writing files anew."""
    return Path(shutil.copytree(published["hub"], tmp_path / "hub", copy_function=os.link))


@pytest.fixture
def original(published, tmp_path):
    src, dst = published["original"], tmp_path / "original"
    return Path(shutil.copytree(src, dst, copy_function=os.link))


def change(path: Path, **fields) -> None:
    """Other fields of a JSON file; ... removes one."""
    rewrite(path, with_fields(json.loads(path.read_text()), fields))


def with_fields(values: dict, fields: dict) -> dict:
    return {name: x for name, x in (values | fields).items() if x is not ...}


def rewrite(path: Path, values: dict) -> None:
    """Writes a file anew, because others may be links to the same."""
    path.unlink()
    path.write_text(json.dumps(values))


def shard(index: Path, name: str) -> Path:
    """The file that holds a tensor."""
    return index.parent / json.loads(index.read_text())["weight_map"][name]


def alter(path: Path, index: Path | None = None, **tensors) -> None:
    """Other tensors in a file, whose dots are two underscores; None removes one."""
    state = torch.load(path) if path.suffix == ".pth" else load_file(path)
    for name, x in ((name.replace("__", "."), x) for name, x in tensors.items()):
        state.pop(name, None) if x is None else state.update({name: x})
        if index is not None:
            shards = json.loads(index.read_text())
            where = shards["weight_map"]
            where.pop(name, None) if x is None else where.update({name: path.name})
            rewrite(index, shards)
    path.unlink()
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path, {"format": "pt"})


def assert_refused(src: Path, message: str, **options) -> str:
    """Converting is refused, in one line, and leaves nothing behind."""
    dst = src.parent / "out"
    with pytest.raises(InputError, match=message) as refusal:
        convert(src, dst, expected_shapes, **options)
    assert "\n" not in str(refusal.value)
    assert not dst.exists()
    assert not [path for path in src.parent.iterdir() if path.name.startswith(".")]
    return str(refusal.value)


def fingerprint(src: Path, dst: Path, **options) -> str:
    convert(src, dst, expected_shapes, **options)
    return Checkpoint.open(dst).fingerprint


# what comes out


@torch.no_grad()
def test_converted_networks_compute_what_was_published(converted):
    theirs = wan_published.networks(latents=48)
    backbone = anyv2v.load(converted, device="cpu").backbone
    assert isinstance(backbone, Wan)
    ours = backbone.transformer
    latents, t, text = normal(1, 48, 2, 4, 6), torch.tensor([500.0]), normal(1, 512, 20, seed=1)
    tokens = torch.cat([torch.zeros(1, 6), t.expand(1, 6)], 1)
    truth = theirs["transformer"](latents, tokens, text).sample
    assert relative_error(ours(latents, t, ours.condition(text)), truth) <= 5e-6

    mean = torch.tensor(theirs["vae"].config.latents_mean)[:, None, None, None]
    std = torch.tensor(theirs["vae"].config.latents_std)[:, None, None, None]
    x = normal(1, 48, 2, 2, 2)
    truth = theirs["vae"].decode(x * std + mean).sample
    found = torch.cat(list(backbone.codec.decode(x))).transpose(0, 1)[None]
    assert relative_error(found, truth) <= 5e-6
    pixels = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    images = (pixels / 127.5 - 1).permute(3, 0, 1, 2)[None]
    truth = (theirs["vae"].encode(images).latent_dist.mode() - mean) / std
    assert relative_error(torch.cat(list(backbone.codec.encode(pixels)), 2), truth) <= 5e-6

    ids = backbone.tokenizer("a man is walking on the beach")
    truth = theirs["text"](ids).last_hidden_state
    network, read = Checkpoint.open(converted).load_later("text", lambda: backbone.text)
    del network, read
    text = Checkpoint.open(converted).load("text", Wan.networks(backbone_config(converted))["text"])
    assert relative_error(text(ids)[:, : ids.shape[1]], truth) <= 5e-6


def backbone_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_both_layouts_make_the_same_folder(published, converted, tmp_path):
    again = tmp_path / "from the original"
    assert fingerprint(published["original"], again) == Checkpoint.open(converted).fingerprint
    assert inspect(again).components == inspect(converted).components
    files = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert files == [
        *("config.json", "manifest.json", "text.safetensors", "tokenizer/tokenizer.json"),
        *("transformer.safetensors", "vae.safetensors"),
    ]


def test_what_the_config_says(converted, configs):
    config = backbone_config(converted)
    assert config["defaults"] == {"size": [1280, 704], "frames": 121, "fps": 24}
    assert config["components"] == ["transformer", "vae", "text"]
    assert config["transformer"] == configs["transformer"][1] | {
        "heads": 2,
        "text_tokens": 512,
        "positions": 1024,
        "eps": 1e-6,
        "clean_first_frame": True,
    }
    moments = [list(map(float, x.split())) for x in (wan_published.MEAN, wan_published.STD)]
    assert config["vae"] == configs["vae"][1] | dict(zip(("mean", "std"), moments, strict=True))
    assert config["text"] == configs["text"][1] | {
        "tokens": 512,
        "max_distance": 128,
        "norm_eps": 1e-6,
    }
    assert config["schedule"] == {"train_steps": 1000, "shift": 5.0}
    assert config["injection"] == {
        "map": ["block.1.self", "block.2.self"],
        "value": ["block.0.self.value"],
        "context": ["block.0.self.context"],
        "hidden": ["block.0.ff"],
    }


# precision


@pytest.mark.parametrize("layout", ["hub", "original"])
def test_float16_is_refused(published, layout, tmp_path, capfd):
    dst = tmp_path / "out"
    assert main(["convert", str(published[layout]), str(dst), "--dtype", "float16"]) == 2
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1 and not dst.exists()
    assert "overflows in float16; take bfloat16 (--dtype bfloat16)" in err


def test_what_is_computed_in_float32_stays_so_in_bfloat16(published, converted, tmp_path):
    """At least what diffusers keeps so, and nothing large."""
    convert(published["hub"], tmp_path / "half", expected_shapes, torch.bfloat16)
    whole, half = (load_file(f / "transformer.safetensors") for f in (converted, tmp_path / "half"))
    kept = {name for name, x in half.items() if x.dtype == torch.float32}
    theirs = ("time.0", "time.2", "modulation", "norm_cross")
    assert {name for name in whole if any(part in name for part in theirs)} < kept
    assert not any(".weight" in name for name in kept if ".ff." in name or name.startswith("text"))
    for name, x in whole.items():
        assert half[name].equal(x if name in kept else x.bfloat16())
    for other in ("vae", "text"):
        state = load_file(tmp_path / "half" / f"{other}.safetensors")
        assert {x.dtype for x in state.values()} == {torch.bfloat16}

    config = backbone_config(converted)
    for folder in (converted, tmp_path / "half"):
        checkpoint, build = Checkpoint.open(folder), Wan.networks(config)["transformer"]
        network = checkpoint.load("transformer", build, dtype=torch.bfloat16)
        assert {n: x for n, x in network.state_dict().items()}.keys() == half.keys()
        assert all(x.equal(half[n]) for n, x in network.state_dict().items())
        empty, read = checkpoint.load_later("transformer", build, dtype=torch.bfloat16)
        assert {n: x.dtype for n, x in empty.named_parameters()} == {
            n: x.dtype for n, x in half.items()
        }
        assert all(x.equal(y) for x, y in zip(read(), network.parameters(), strict=True))


def test_published_dtypes_stay(tmp_path):
    """Those of the real folder: float32, and bfloat16 of the text encoder."""
    src = wan_published.write_hub(tmp_path / "hub", text_dtype=torch.bfloat16)
    convert(src, tmp_path / "out", expected_shapes)
    dtypes = {c.file: c.dtypes for c in inspect(tmp_path / "out").components}
    assert dtypes["text.safetensors"] == ("BF16",)
    assert dtypes["transformer.safetensors"] == dtypes["vae.safetensors"] == ("F32",)


# the embedding's second name


def test_the_embedding_has_two_names_or_one(hub, converted, tmp_path):
    index, name = hub / HUB_INDEX["text"], wan_published.SECOND_NAME
    assert name in json.loads(index.read_text())["weight_map"]
    alter(shard(index, name), index, **{name.replace(".", "__"): None})
    assert fingerprint(hub, tmp_path / "out") == Checkpoint.open(converted).fingerprint


@pytest.mark.parametrize("at", [0, -1])
def test_two_embeddings_that_differ(hub, at):
    index, name = hub / HUB_INDEX["text"], wan_published.SECOND_NAME
    path = shard(index, name)
    other = load_file(path)[name]
    other.view(-1)[at] += 1e-3
    alter(path, **{name.replace(".", "__"): other})
    assert_refused(hub, f"shared.weight and {name} should be equal, and are not")
    alter(path, **{name.replace(".", "__"): other[:-1].contiguous()})
    assert_refused(hub, f"shared.weight and {name} should be equal, and are not")


# tensors and files that are wrong


def test_every_missing_extra_and_misshapen_tensor_is_named(hub):
    index = hub / HUB_INDEX["transformer"]
    for name, x in (
        ("blocks.1.attn1.to_q.weight", None),
        ("blocks.2.ffn.net.2.bias", torch.zeros(63)),
    ):
        alter(shard(index, name), index, **{name.replace(".", "__"): x})
    alter(hub / VAE, **{"encoder__norm_out__gamma": torch.ones(32), "decoder__more": torch.ones(2)})
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    index = hub / HUB_INDEX["text"]
    alter(shard(index, name), index, **{name.replace(".", "__"): None})
    said = assert_refused(hub, "missing: blocks.1.attn1.to_q.weight")
    assert "blocks.2.ffn.net.2.bias is (63,), should be (64,)" in said
    assert "encoder.norm_out.gamma is (32,), should be (32, 1, 1, 1)" in said
    assert "extra: decoder.more (2,)" in said and f"missing: {name} (32, 2)" in said


def test_every_wrong_tensor_of_the_original(original):
    alter(
        original / "Wan2.2_VAE.pth",
        **{
            "encoder__downsamples__1__downsamples__2__time_conv__bias": torch.zeros(15),
            "encoder__head__0__gamma": None,
            "conv3__weight": torch.zeros(1),
        },
    )
    alter(original / "models_t5_umt5-xxl-enc-bf16.pth", norm__weight=None)
    said = assert_refused(original, r"time_conv.bias is \(15,\), should be \(16,\)")
    assert "missing: encoder.head.0.gamma (32, 1, 1, 1)" in said and "extra: conv3.weight" in said
    assert "missing: norm.weight (20,)" in said


@pytest.mark.parametrize(
    "name",
    ["patch_embedding.weight", "blocks.0.ffn.net.0.proj.weight", "proj_out.weight"],
)
def test_tensors_that_tell_the_sizes(hub, name):
    index = hub / HUB_INDEX["transformer"]
    path, key = shard(index, name), name.replace(".", "__")
    was = load_file(path)[name]
    alter(path, index, **{key: was[None].contiguous()})
    assert_refused(hub, rf"{name} is \(1, .* not one of {was.ndim} axes")
    alter(path, index, **{key: was[:0].contiguous()})
    assert_refused(hub, rf"{name} is \(0, ")
    alter(path, index, **{key: None})
    assert_refused(hub, f"missing: {name}")


def test_blocks_without_end(hub):
    index = hub / HUB_INDEX["transformer"]
    path = shard(index, "proj_out.bias")
    alter(path, index, blocks__9999__norm2__bias=torch.zeros(64))
    assert_refused(hub, "layers|num_layers is 3; the weights have 10000")
    change(hub / "transformer" / "config.json", num_layers=...)
    assert_refused(hub, "layers")


def test_files_that_are_missing(hub, original):
    shard(hub / HUB_INDEX["text"], "shared.weight").unlink()
    assert_refused(hub, "missing shards: model-0000")
    shutil.rmtree(hub)
    for name in ("config.json", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.2_VAE.pth"):
        kept = (original / name).read_bytes()
        (original / name).unlink()
        assert_refused(original, f"has no {name}; config.json, Wan2.2_VAE.pth, .* go together")
        (original / name).write_bytes(kept)
    (original / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert_refused(original, "holds no weights")


# other networks


def meta(network, **sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network of diffusers, of one block."""
    with torch.device("meta"):
        state = network(**sizes).state_dict()
    return {name: tuple(x.shape) for name, x in state.items()}


LARGE = {"num_layers": 1, "num_attention_heads": 40, "ffn_dim": 13824}
SMALL = {"num_layers": 1, "num_attention_heads": 12, "ffn_dim": 8960}
PICTURE = {"in_channels": 36, "image_dim": 1280}
STRANGERS = {
    "T2V-14B": (WanTransformer3DModel, LARGE),
    "T2V-1.3B": (WanTransformer3DModel, SMALL),
    "I2V-A14B": (WanTransformer3DModel, {**LARGE, "in_channels": 36}),
    "I2V-14B": (WanTransformer3DModel, {**LARGE, **PICTURE, "added_kv_proj_dim": 5120}),
    "Fun-1.3B": (WanTransformer3DModel, {**SMALL, **PICTURE, "added_kv_proj_dim": 1536}),
    "FLF2V": (
        WanTransformer3DModel,
        {**LARGE, **PICTURE, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
    ),
    "VACE": (WanVACETransformer3DModel, {**SMALL, "vace_layers": [0]}),
    "Animate": (WanAnimateTransformer3DModel, {**LARGE, "in_channels": 36}),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_other_networks_are_told_by_name(name):
    network, sizes = STRANGERS[name]
    assert name in detect_foreign("transformer", meta(network, **sizes), {})


def test_ti2v_itself_is_none_of_them():
    sizes = {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336}
    assert not detect_foreign("transformer", meta(WanTransformer3DModel, num_layers=1, **sizes), {})


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("img_emb.proj.3.weight", (5120, 1280), "I2V-14B"),
        ("img_emb.proj.3.weight", (1536, 1280), "Fun-1.3B"),
        ("img_emb.emb_pos", (1, 514, 1280), "FLF2V"),
        ("vace_patch_embedding.weight", (1536, 96, 1, 2, 2), "VACE"),
        ("patch_embedding.weight", (5120, 16, 1, 2, 2), "T2V-14B"),
        ("blocks.0.self_attn.q.lora_down.weight", (16, 64), "LoRA"),
    ],
)
def test_other_networks_by_the_names_of_the_original(original, name, shape, message):
    index = original / "diffusion_pytorch_model.safetensors.index.json"
    path = shard(index, "patch_embedding.weight")
    # of one value each, as only the shape counts
    x = torch.zeros(()).expand(shape).contiguous() if math.prod(shape) < 10**8 else None
    alter(path, index, **{name.replace(".", "__"): x})
    said = assert_refused(original, message)
    assert "of Wan, 2.2's TI2V-5B alone is supported" in said and f"holds {name} {shape}" in said


def test_the_autoencoder_of_wan_2_1(hub):
    shapes = meta(AutoencoderKLWan)
    assert "Wan 2.1's VAE" in detect_foreign("vae", shapes, {})
    alter(hub / VAE, encoder__conv_in__weight=torch.zeros(8, 3, 3, 3, 3))
    assert_refused(hub, "is Wan 2.1's VAE: .*; of Wan, 2.2's TI2V-5B alone")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"expand_timesteps": False}, "expand_timesteps is False, so .* T2V"),
        ({"expand_timesteps": ...}, "expand_timesteps is None, so .* I2V-14B"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "two transformers.*A14B"),
        ({"boundary_ratio": 0.9}, "two transformers.*A14B"),
        ({"_class_name": "WanVACEPipeline"}, "holds 'WanVACEPipeline'; one of .*WanPipeline"),
        ({"_class_name": ["WanPipeline"]}, "holds .'WanPipeline'"),
    ],
)
def test_other_pipelines(hub, fields, message):
    change(hub / "model_index.json", **fields)
    assert_refused(hub, message)


def test_the_pipeline_that_takes_a_first_frame(hub, converted, tmp_path):
    change(
        hub / "model_index.json", _class_name="WanImageToVideoPipeline", image_encoder=[None] * 2
    )
    assert fingerprint(hub, tmp_path / "out") == Checkpoint.open(converted).fingerprint


def test_an_original_release_of_another(original, converted, tmp_path):
    (original / "Wan2.1_VAE.pth").write_bytes(b"another")
    assert fingerprint(original, tmp_path / "ours") == Checkpoint.open(converted).fingerprint
    (original / "Wan2.2_VAE.pth").rename(original / "Wan2.1_VAE.pth")
    assert_refused(original, "is Wan 2.1 or the A14B of 2.2, as it holds Wan2.1_VAE.pth; of Wan")


# configs


def test_a_config_that_tells_of_layers_which_are_not_there(hub, converted, tmp_path, caplog):
    """One of TI2V-5B does so; the weights are whole, so they are converted."""
    change(hub / "transformer" / "config.json", image_dim=1280, added_kv_proj_dim=5120)
    with caplog.at_level(logging.WARNING):
        made = fingerprint(hub, tmp_path / "out")
    assert made == Checkpoint.open(converted).fingerprint
    (said,) = (record.getMessage() for record in caplog.records)
    assert "tells of image_dim 1280 and added_kv_proj_dim 5120" in said and "\n" not in said


@pytest.mark.parametrize(
    "component, fields, message",
    [
        ("transformer", {"ffn_dim": 14336}, "ffn_dim is 14336; the weights have 96"),
        ("transformer", {"num_layers": 30}, "num_layers is 30; the weights have 3"),
        ("transformer", {"in_channels": 16}, "in_channels is 16; the weights have 48"),
        ("transformer", {"out_channels": 16}, "out_channels is 16; the weights have 48"),
        ("transformer", {"text_dim": 4096}, "text_dim is 4096; the weights have 20"),
        ("transformer", {"freq_dim": 256}, "freq_dim is 256; the weights have 32"),
        ("transformer", {"patch_size": [1, 1, 1]}, "patch_size is .*; the weights have"),
        ("transformer", {"num_attention_heads": 24}, "num_attention_heads is 24; times"),
        ("transformer", {"attention_head_dim": ...}, "num_attention_heads is 2; times"),
        ("transformer", {"qk_norm": None}, "qk_norm is None"),
        ("transformer", {"cross_attn_norm": False}, "cross_attn_norm is False"),
        ("transformer", {"pos_embed_seq_len": 514}, "pos_embed_seq_len is 514"),
        ("transformer", {"eps": 0}, "eps is 0"),
        ("transformer", {"rope_max_seq_len": -1}, "rope_max_seq_len"),
        ("transformer", {"_class_name": "WanVACETransformer3DModel"}, "_class_name is 'WanVACE"),
        ("vae", {"base_dim": 160}, r"base_dim 160 times .*; the weights have \[8, 16"),
        ("vae", {"decoder_base_dim": None}, "decoder_base_dim 8 times"),
        ("vae", {"dim_mult": [2, 4, 8, 8], "base_dim": 4}, "only 1 is supported for the first"),
        ("vae", {"dim_mult": [1, 2, 4]}, "the weights have"),
        ("vae", {"is_residual": False}, "Wan 2.1's autoencoder; of Wan, 2.2's TI2V-5B alone"),
        ("vae", {"is_residual": ...}, "is_residual is False .the default.*Wan 2.1's autoencoder"),
        ("vae", {"temperal_downsample": [True, True, False]}, "temperal_downsample is"),
        ("vae", {"num_res_blocks": 3}, "num_res_blocks is 3; the weights have 2"),
        ("vae", {"z_dim": 16}, "z_dim is 16; the weights have 48"),
        ("vae", {"patch_size": None}, "patch_size is None; the weights have 2"),
        ("vae", {"in_channels": 3}, "in_channels is 3; the weights have 12"),
        ("vae", {"attn_scales": [0.5]}, "attn_scales"),
        ("vae", {"latents_mean": [0.0] * 16}, "latents_mean is .*; 48 numbers are needed"),
        ("vae", {"latents_std": ...}, "has no latents_std"),
        ("vae", {"latents_mean": [math.nan] * 48}, "finite numbers are needed"),
        ("text", {"model_type": "t5"}, "model_type is 't5'"),
        ("text", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ("text", {"d_ff": 10240}, "d_ff is 10240; the weights have 32"),
        ("text", {"vocab_size": 256384}, "vocab_size is 256384; the weights have"),
        ("text", {"num_heads": 4}, "num_heads is 4; the weights have 2"),
    ],
)
def test_configs_that_contradict_the_weights_or_mean_another_computation(
    configs, component, fields, message
):
    values, sizes = configs[component]
    found = wan_config.HUB[component]("there", values, sizes)
    assert found == found | sizes
    with pytest.raises(InputError, match=f"there: .*{message}"):
        wan_config.HUB[component]("there", with_fields(values, fields), sizes)


@pytest.mark.parametrize(
    "file, fields, message",
    [
        ("transformer", {"ffn_dim": 14336}, "ffn_dim is 14336; the weights have 96"),
        ("transformer", {"num_attention_heads": 64, "attention_head_dim": 1}, "even number"),
        ("vae", {"latents_std": [0.0] * 48}, "std .* is not in"),
        ("text_encoder", {"layer_norm_epsilon": 2.0}, "norm_eps 2.0"),
        ("text_encoder", {"relative_attention_max_distance": 8}, "max_distance 8"),
        ("scheduler", {"flow_shift": 1e400}, "flow_shift is inf; a positive number"),
    ],
)
def test_configs_of_a_folder(hub, file, fields, message):
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    change(hub / file / name, **fields)
    assert_refused(hub, message)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "t2v"}, "model_type is 't2v'; of Wan, 2.2's TI2V-5B alone"),
        ({"model_type": ...}, "model_type is None"),
        ({"dim": 3072}, "dim is 3072; the weights have 64"),
        ({"in_dim": 36}, "in_dim is 36; the weights have 48"),
        ({"num_layers": 40}, "num_layers is 40; the weights have 3"),
        ({"num_heads": 24}, "num_heads is 24; it must divide"),
        ({"text_len": 226}, "text_len is 226"),
        ({"window_size": [8, 8]}, "window_size"),
        ({"_class_name": "CausalWanModel"}, "_class_name"),
    ],
)
def test_configs_of_the_original(configs, fields, message):
    values, sizes = configs["original"]
    assert wan_config.original_config("there", values, sizes)["dim"] == 64
    with pytest.raises(InputError, match=f"there: .*{message}"):
        wan_config.original_config("there", with_fields(values, fields), sizes)


def test_a_config_of_the_original_is_read(original):
    change(original / "config.json", model_type="i2v")
    assert_refused(original, "config.json: model_type is 'i2v'; of Wan, 2.2's TI2V-5B alone")


def test_parts_of_different_models(hub):
    small = wan_published.networks(latents=6)
    shutil.rmtree(hub / "vae")
    small["vae"].save_pretrained(hub / "vae")
    assert_refused(hub, "latents have 6 channels, the transformer's 48")


def test_a_network_that_is_told_more_than_latents(hub):
    """As Fun's of 5 B are, in channels of which there are several forms."""
    sizes = {**wan_published.TRANSFORMER, "in_channels": 100, "out_channels": 48}
    shutil.rmtree(hub / "transformer")
    WanTransformer3DModel(**sizes).save_pretrained(hub / "transformer")
    assert_refused(
        hub, "takes 100 channels and predicts 48, as networks do that are told a picture"
    )


def test_a_network_that_reads_other_texts(hub):
    sizes = {**wan_published.TRANSFORMER, "in_channels": 48, "out_channels": 48, "text_dim": 24}
    shutil.rmtree(hub / "transformer")
    WanTransformer3DModel(**sizes).save_pretrained(hub / "transformer")
    assert_refused(hub, "vectors have the length 20, the transformer reads 24")
    assert "T5's encoder" in detect_foreign("text", {"shared.weight": (32128, 4096)}, {})


def test_another_shift_is_told_and_taken(hub, converted, tmp_path, caplog):
    change(hub / SCHEDULER, flow_shift=3.0)
    with caplog.at_level(logging.WARNING):
        made = fingerprint(hub, tmp_path / "out")
    assert backbone_config(tmp_path / "out")["schedule"] == {"train_steps": 1000, "shift": 3.0}
    assert made != Checkpoint.open(converted).fingerprint
    (said,) = (record.getMessage() for record in caplog.records)
    assert "flow_shift is 3, of TI2V-5B 5; it is kept" in said
    assert anyv2v.load(tmp_path / "out", device="cpu").backbone.schedule.shift == 3.0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ({"use_flow_sigmas": False}, "use_flow_sigmas is False"),
        ({"use_flow_sigmas": ...}, "use_flow_sigmas is False .the default"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        ({"flow_shift": -1}, "flow_shift is -1; a positive number"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "only 'UniPCMultistepScheduler'"),
    ],
)
def test_other_schedules(configs, fields, message):
    values, _ = configs["schedule"]
    with pytest.raises(InputError, match=f"there: .*{message}"):
        wan_config.schedule_config("there", with_fields(values, fields))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FUZZED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("file", ["transformer", "vae", "text", "original", "schedule", "index"])
def test_whatever_a_config_says_it_is_read_or_refused(configs, file):
    """Of any field of a config; what is read is what the weights have."""
    values, sizes = configs[file]
    checks = wan_config.HUB | {
        "original": wan_config.original_config,
        "schedule": lambda where, values, _: wan_config.schedule_config(where, values),
        "index": lambda where, values, _: wan_config.check_index(where, values),
    }

    @FUZZED
    @given(st.sampled_from(sorted(values)), VALUES)
    def tried(field, value):
        try:
            found = checks[file]("there", values | {field: value}, sizes)
        except InputError as error:
            assert "there" in str(error) and "\n" not in str(error)
            return
        for name in ("dim", "layers", "latent_channels", "vocab_size"):
            if found and name in found:
                assert found[name] == sizes[name]
        json.dumps(found, allow_nan=False)

    tried()


# the tokenizer


def test_the_tokenizer_is_part_of_the_folder(hub, converted, tmp_path):
    files = json.loads((converted / "manifest.json").read_text())["files"]
    assert (
        "tokenizer/tokenizer.json" in files and "tensors" not in files["tokenizer/tokenizer.json"]
    )
    theirs = hub / "tokenizer" / "tokenizer.json"
    assert (converted / "tokenizer" / "tokenizer.json").read_bytes() == theirs.read_bytes()
    theirs.unlink()
    umt5_tokenizer.write(hub / "tokenizer", "no strip")
    assert fingerprint(hub, tmp_path / "out") != Checkpoint.open(converted).fingerprint

    shutil.copytree(converted, tmp_path / "changed")
    path = tmp_path / "changed" / "tokenizer" / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="tokenizer.json: sha256"):
        inspect(tmp_path / "changed")
    path.unlink()
    with pytest.raises(InputError, match="tokenizer.json: is missing"):
        Checkpoint.open(tmp_path / "changed")


@pytest.mark.parametrize("layout", ["hub", "original"])
def test_a_tokenizer_that_is_none(request, layout):
    src = request.getfixturevalue(layout)
    path = src / ("tokenizer" if layout == "hub" else "google/umt5-xxl") / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] += [[f"piece {i}", -9.0] for i in range(6)]
    rewrite(path, values)
    assert_refused(src, "tokenizer.json: has the id .*, the text encoder only")
    rewrite(path, {"model": {"type": "BPE", "vocab": {}, "merges": []}})
    assert_refused(src, "tokenizer.json: not a tokenizer of T5's form")
    path.unlink()
    assert_refused(src, "tokenizer.json: cannot be read")
    path.with_name("spiece.model").write_bytes(b"model")
    assert_refused(src, "spiece.model beside it is not read")


# repositories


def names_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_the_published_name_and_its_files(published):
    model = PUBLISHED["wan2.2-ti2v-5b"]
    assert model.dtype == torch.bfloat16
    (repository,) = model.repositories
    assert repository.page == f"https://huggingface.co/{TI2V_5B}-Diffusers"
    names = names_of(published["hub"])
    more = ["README.md", "tokenizer/spiece.model", "assets/a.mp4", "examples/wan.json"]
    assert sorted(needed_files(repository, [*names, *more], half=False)) == sorted(names)
    short = [name for name in names if not name.startswith("text_encoder/model")]
    with pytest.raises(InputError, match="publishes no weights of text_encoder"):
        needed_files(repository, short, half=False)


def test_repositories_are_recognized_by_their_files(published):
    def read(folder):
        return lambda name: json.loads((folder / name).read_text())

    hub, original = published["hub"], published["original"]
    somebody = recognize("somebody/wan", names_of(hub), read(hub))
    assert somebody.dtype == torch.bfloat16
    assert set(needed_files(somebody.repositories[0], names_of(hub), False)) == {*names_of(hub)}
    first = recognize(TI2V_5B, names_of(original), read(original))
    assert first.dtype == torch.bfloat16
    more = ["assets/a.png", "google/umt5-xxl/spiece.model", "examples/x.json"]
    needed = needed_files(first.repositories[0], [*names_of(original), *more], False)
    assert sorted(needed) == sorted(names_of(original))


def test_other_repositories_are_refused_before_their_download(published):
    index = json.loads((published["hub"] / "model_index.json").read_text())
    t2v = {**index, "expand_timesteps": False}
    with pytest.raises(InputError, match="Wan-AI/Wan2.1-T2V-14B-Diffusers: expand_timesteps"):
        recognize("Wan-AI/Wan2.1-T2V-14B-Diffusers", ["model_index.json"], lambda name: t2v)
    with pytest.raises(InputError, match="Wan-AI/Wan2.2-I2V-A14B: is Wan 2.1 or the A14B of 2.2"):
        recognize("Wan-AI/Wan2.2-I2V-A14B", ["Wan2.1_VAE.pth", "configuration.json"], lambda n: {})
