import hashlib
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert import files
from anyv2v.convert.formats import clip, huggingface, i2vgen, vae
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename
from anyv2v.errors import InputError
from anyv2v.loading import expected_shapes
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.tensors import read_header
from anyv2v.weights.verify import verify
from tests.interpreter import WITH_TESTS
from tests.oracles import snapshot as hf

TABLES = {
    "unet": ("unet", i2vgen.UNET),
    "vae": ("vae", vae.VAE),
    "text_encoder": ("text", clip.TEXT),
    "image_encoder": ("vision", clip.VISION),
}
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
}


def expected(preset: str = "tiny"):
    """Our names and shapes without our networks: from the checkpoint's, renamed."""
    sizes = hf.PRESETS[preset]
    shapes = hf.component_shapes(sizes, vocab_size=512 + sizes["merges"] + 2)
    ours = {
        TABLES[component][0]: {
            new.name: theirs[name][: len(theirs[name]) - new.squeeze]
            for name, new in rename(theirs, TABLES[component][1]).items()
        }
        for component, theirs in shapes.items()
    }
    return lambda config: ours


def ours_of(folder: Path) -> dict[str, bytes]:
    """Every file of a converted folder but its name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def src(snapshot, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(snapshot, tmp_path / "source"))


@pytest.fixture(scope="session")
def converted(snapshot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(snapshot, folder, expected())
    return folder


def edit(src: Path, file: str, **changes):
    """Change fields of a config; ... takes one away."""
    path = src / file
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def weights(src: Path, component: str) -> Path:
    return src / component / f"{STEMS[component]}.safetensors"


def check_refused(src, message, **options):
    """Converting is refused, in one line, and leaves nothing behind."""
    dst = src.parent / "out"
    with pytest.raises(InputError, match=message) as refusal:
        convert(src, dst, expected(), **options)
    assert "\n" not in str(refusal.value)
    assert not dst.exists()
    assert not [path for path in src.parent.iterdir() if path.name.startswith(".")]
    return str(refusal.value)


# what comes out


@pytest.mark.parametrize("component", TABLES)
def test_every_tensor_is_the_original_under_its_name(snapshot, converted, component):
    name, table = TABLES[component]
    theirs = load_file(weights(snapshot, component))
    ours = load_file(converted / f"{name}.safetensors")
    assert len(ours) == len(theirs)
    for key, renamed in rename(theirs, table).items():
        value = ours[renamed.name]
        assert value.dtype == torch.float32
        wanted = theirs[key].squeeze(-1) if theirs[key].ndim == 5 else theirs[key]
        assert torch.equal(value, wanted), key


def test_the_folder_is_complete(converted):
    verify(converted)
    checkpoint = Checkpoint.open(converted)
    config = checkpoint.config
    assert config["unet"] == {
        "channels": 4,
        "widths": [16, 32, 48, 48],
        "attention": [True, True, True, False],
        "layers": 2,
        "head_dim": 8,
        "context_width": 32,
        "groups": 8,
    }
    assert config["vae"] == {
        "channels": 3,
        "latent_channels": 4,
        "widths": [16, 32, 32, 32],
        "layers": 1,
        "groups": 8,
        "scaling_factor": 0.18215,
    }
    tower = {"width": 32, "activation": "gelu", "norm_eps": 1e-5}
    assert config["text"] == {
        "vocab_size": 814,
        "tokens": 77,
        "heads": 4,
        "layers": 3,
        "mlp_width": 128,
        **tower,
    }
    assert config["vision"] == {
        "image_size": 32,
        "patch_size": 8,
        "heads": 2,
        "layers": 2,
        "mlp_width": 96,
        "projection_width": 32,
        **tower,
    }
    end = "<|endoftext|>"
    assert config["tokenizer"] == {
        "start": "<|startoftext|>",
        "end": end,
        "pad": end,
        "unknown": end,
    }
    assert config["preprocess"] == {"size": 32, "mean": hf.OPENAI_MEAN, "std": hf.OPENAI_STD}
    assert config["schedule"] == {"train_steps": 1000, "steps_offset": 1}
    assert config["defaults"] == {"size": [512, 512], "frames": 16, "fps": 8}
    assert (config["format"], config["backbone"]) == (1, "i2vgen")


def test_the_manifest_says_what_is_there(converted):
    manifest = json.loads((converted / "manifest.json").read_text())
    assert manifest["format"] == 1
    found = {path for path in ours_of(converted)} - {"config.json", "manifest.json"}
    assert set(manifest["files"]) == found
    for name, facts in manifest["files"].items():
        data = (converted / name).read_bytes()
        assert facts["bytes"] == len(data)
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    listed = manifest["files"]["unet.safetensors"]["tensors"]
    assert len(listed) == 1511
    assert listed["mid.temporal_conv.0.conv2.weight"] == ["F32", [48, 48, 3, 1]]
    assert listed.keys() == read_header(converted / "unet.safetensors").keys()


def test_another_size_of_model(tmp_path):
    hf.write_snapshot(tmp_path / "odd", "odd", seed=1)
    convert(tmp_path / "odd", tmp_path / "out", expected("odd"))
    config = Checkpoint.open(tmp_path / "out").config
    assert config["unet"]["widths"] == [24, 36, 60, 72]
    assert config["unet"]["head_dim"] == 12
    assert config["tokenizer"]["pad"] == "!"
    assert config["text"]["activation"] == "quick_gelu"
    assert config["preprocess"] == {
        "size": 28,
        "mean": [0.5, 0.45, 0.4],
        "std": [0.25, 0.26, 0.27],
    }


def test_the_same_again_gives_the_same_bytes(snapshot, converted, tmp_path):
    convert(str(snapshot), str(tmp_path / "again"), expected())
    assert ours_of(tmp_path / "again") == ours_of(converted)


def test_sites_of_the_injection(converted):
    places = [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert Checkpoint.open(converted).config["injection"] == {
        "conv": ["up.1.res.1"],
        "spatial": [f"up.{level}.spatial.{layer}.block.self" for level, layer in places],
        "temporal": [f"up.{level}.temporal.{layer}.block.self" for level, layer in places],
    }


def test_sites_of_other_depths():
    three = paper_sites([True, True, False], layers=1)
    assert three["conv"] == ["up.1.res.1"]
    assert three["temporal"] == [
        "up.1.temporal.1.block.self",
        "up.2.temporal.0.block.self",
        "up.2.temporal.1.block.self",
    ]
    low = paper_sites([True, False, False], layers=1)
    assert low["spatial"] == ["up.2.spatial.0.block.self", "up.2.spatial.1.block.self"]
    one = paper_sites([True], layers=2)
    assert one == {"conv": [], "spatial": [], "temporal": []}


def test_progress_counts_bytes(snapshot, tmp_path):
    seen = []
    convert(snapshot, tmp_path / "out", expected(), progress=lambda *at: seen.append(at))
    total = sum(4 * math.prod(s) for shapes in expected()(None).values() for s in shapes.values())
    assert len(seen) == sum(len(shapes) for shapes in expected()(None).values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total) and {whole for _, whole in seen} == {total}


# other forms of the same weights


def split(tensors: dict, parts: int) -> list[dict]:
    names = list(tensors)
    return [{n: tensors[n] for n in names[i::parts]} for i in range(parts)]


def rewrite(src: Path, component: str, form: str):
    """Put the weights of a component into another of the forms that the libraries write."""
    path = weights(src, component)
    tensors, stem, folder = load_file(path), STEMS[component], path.parent
    path.unlink()
    if form == "sharded":
        shards = {f"{stem}-{i + 1:05}-of-00003": s for i, s in enumerate(split(tensors, 3))}
        index, suffix = f"{stem}.safetensors.index.json", "safetensors"
    elif form == "sharded fp16":
        shards = {f"{stem}.fp16-{i + 1:05}-of-00002": s for i, s in enumerate(split(tensors, 2))}
        index, suffix = f"{stem}.safetensors.index.fp16.json", "safetensors"
    elif form == "sharded fp16, other index":
        shards = {f"{stem}-{i + 1:05}-of-00002.fp16": s for i, s in enumerate(split(tensors, 2))}
        index, suffix = f"{stem}.fp16.safetensors.index.json", "safetensors"
    elif form == "fp16":
        shards, index, suffix = {f"{stem}.fp16": tensors}, None, "safetensors"
    else:
        stem = "pytorch_model" if stem == "model" else stem
        suffix, index = "bin", f"{stem}.bin.index.json" if form == "sharded bin" else None
        shards = {stem: tensors}
        if index:
            shards = {f"{stem}-{i + 1:05}-of-00002": s for i, s in enumerate(split(tensors, 2))}
    for name, part in shards.items():
        save = save_file if suffix == "safetensors" else torch.save
        save(part, folder / f"{name}.{suffix}")
    if index:
        names = {n: f"{name}.{suffix}" for name, part in shards.items() for n in part}
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
        (folder / index).write_text(text)


@pytest.mark.parametrize(
    "form",
    ["sharded", "fp16", "sharded fp16", "sharded fp16, other index", "bin", "sharded bin"],
)
def test_every_form_of_the_files_gives_the_same_bytes(src, converted, tmp_path, form):
    for component in TABLES:
        rewrite(src, component, form)
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_a_bin_file_that_is_let_go_in_between(src, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(files.BinFile, "REMAP_AFTER", 500_000)
    rewrite(src, "unet", "bin")
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_parameters_and_strided_tensors_in_a_bin_file(src, converted, tmp_path):
    path = weights(src, "vae")
    state = {
        name: torch.nn.Parameter(value.T.contiguous().T if value.ndim == 2 else value)
        for name, value in load_file(path).items()
    }
    torch.save(state, path.with_suffix(".bin"))
    path.unlink()
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def both_precisions(src):
    """fp16 files that can be told from the full ones: half of them."""
    for component in TABLES:
        path = weights(src, component)
        halves = {name: (value / 2).half() for name, value in load_file(path).items()}
        save_file(halves, path.with_name(path.stem + ".fp16.safetensors"))


@pytest.mark.parametrize(
    "dtype, factor", [(None, 1), (torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 0.5)]
)
def test_full_precision_is_taken_unless_half_is_wanted(src, tmp_path, dtype, factor):
    both_precisions(src)
    convert(src, tmp_path / "out", expected(), dtype=dtype)
    found = load_file(tmp_path / "out" / "unet.safetensors")["conv_in.weight"]
    full = load_file(weights(src, "unet"))["conv_in.weight"]
    assert found.dtype == (dtype or torch.float32)
    assert torch.equal(found, (full * factor).to(dtype or torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(snapshot, converted, tmp_path, dtype):
    convert(snapshot, tmp_path / "out", expected(), dtype=dtype)
    for name, wanted in load_file(converted / "text.safetensors").items():
        assert torch.equal(load_file(tmp_path / "out" / "text.safetensors")[name], wanted.to(dtype))


def test_a_half_source_stays_half(tmp_path):
    hf.write_snapshot(tmp_path / "half", "tiny", seed=0, half=True)
    convert(tmp_path / "half", tmp_path / "out", expected())
    entries = read_header(tmp_path / "out" / "unet.safetensors")
    assert {entry.dtype for entry in entries.values()} == {torch.float16}


def test_mixed_dtypes_stay(src, tmp_path):
    path = weights(src, "vae")
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"] = tensors["decoder.conv_out.weight"].half()
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"][:].bfloat16()
    save_file(tensors, path)
    convert(src, tmp_path / "out", expected())
    found = load_file(tmp_path / "out" / "vae.safetensors")
    for name in ("decoder.conv_out.weight", "encoder.conv_in.bias", "quant_conv.weight"):
        assert found[name].dtype == tensors[name].dtype
        assert torch.equal(found[name], tensors[name])


def test_position_ids_are_dropped(src, converted, tmp_path):
    for component, prefix, count in (
        ("text_encoder", "text_model", 77),
        ("image_encoder", "vision_model", 17),
    ):
        path = weights(src, component)
        ids = torch.arange(count)[None]
        save_file({**load_file(path), f"{prefix}.embeddings.position_ids": ids}, path)
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_an_autoencoder_with_the_old_names(src, converted, tmp_path):
    path = weights(src, "vae")
    tensors = load_file(path)
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        tensors = {name.replace(f".{new}.", f".{old}."): t for name, t in tensors.items()}
    save_file(tensors, path)
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_what_diffusers_and_transformers_save_today(src, converted, tmp_path):
    diffusers, transformers = (pytest.importorskip(name) for name in ("diffusers", "transformers"))
    for component, kind in (
        ("unet", diffusers.I2VGenXLUNet),
        ("vae", diffusers.AutoencoderKL),
        ("text_encoder", transformers.CLIPTextModel),
        ("image_encoder", transformers.CLIPVisionModelWithProjection),
        ("tokenizer", transformers.CLIPTokenizer),
    ):
        loaded = kind.from_pretrained(src / component)
        shutil.rmtree(src / component)
        loaded.save_pretrained(src / component)
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_the_order_of_keys_does_not_matter(src, converted, tmp_path):
    backwards = {
        component: dict(reversed(shapes.items())) for component, shapes in expected()(None).items()
    }
    path = src / "tokenizer" / "vocab.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    convert(src, tmp_path / "out", lambda config: backwards)
    assert Checkpoint.open(tmp_path / "out").fingerprint == Checkpoint.open(converted).fingerprint
    for name in ("unet.safetensors", "text.safetensors", "tokenizer/vocab.json"):
        assert (tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes()


# keys and values that are wrong


def test_every_missing_extra_and_misshapen_key_is_named(src):
    gone, swapped = {}, {}
    for component, extra in (("unet", "up_blocks.9.conv.weight"), ("text_encoder", "logit_scale")):
        path = weights(src, component)
        tensors = load_file(path)
        names = sorted(tensors)
        gone[component] = names[3:40:3]
        for name in gone[component]:
            del tensors[name]
        swapped[component] = next(n for n in tensors if tensors[n].ndim == 2)
        tensors[swapped[component]] = tensors[swapped[component]][:, :-1].contiguous()
        tensors[extra] = torch.zeros(3)
        save_file(tensors, path)
    message = check_refused(src, "missing: .*; extra: .*; misshapen: .*")
    for component in gone:
        for name in gone[component]:
            assert f"{name} (" in message
        assert f"{swapped[component]} is (" in message
    assert "up_blocks.9.conv.weight (3,)" in message and "logit_scale (3,)" in message
    assert str(src / "unet") in message and str(src / "text_encoder") in message
    assert str(src / "vae") not in message


def test_a_temporal_convolution_must_be_one(src):
    path, name = weights(src, "unet"), "mid_block.temp_convs.0.conv1.2.weight"
    tensors = load_file(path)
    tensors[name] = tensors[name].squeeze(-1)
    save_file(tensors, path)
    check_refused(src, rf"{name} is \(48, 48, 3, 1\), should be \(48, 48, 3, 1, 1\)")


def spoil(src, component, name, value):
    path = weights(src, component)
    tensors = load_file(path)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(src, value):
    spoil(src, "image_encoder", "visual_projection.weight", value)
    check_refused(src, "visual_projection.weight holds values that are not finite")


def test_a_value_too_large_for_half_precision(src, tmp_path):
    spoil(src, "vae", "decoder.conv_in.weight", -70000.0)
    check_refused(
        src,
        "decoder.conv_in.weight: its largest value, 70000, becomes infinite in torch.float16",
        dtype=torch.float16,
    )
    convert(src, tmp_path / "brain", expected(), dtype=torch.bfloat16)


def test_weights_of_a_dtype_that_is_none(src):
    path = weights(src, "text_encoder")
    tensors = load_file(path)
    tensors["text_model.final_layer_norm.bias"] = torch.zeros(32, dtype=torch.int64)
    save_file(tensors, path)
    check_refused(src, "text_model.final_layer_norm.bias is torch.int64")


def test_a_dtype_that_weights_are_not_kept_in(src):
    check_refused(src, "dtype is torch.int8", dtype=torch.int8)


# files that are wrong


def test_weights_that_are_not_there(src):
    weights(src, "vae").unlink()
    check_refused(src, "vae: holds no weights: neither diffusion_pytorch_model.safetensors nor")


def test_a_missing_shard(src):
    rewrite(src, "unet", "sharded")
    (src / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    check_refused(src, "missing shards: diffusion_pytorch_model-00002-of-00003.safetensors")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "x/y.bin", 7, "a.pkl"])
def test_an_index_leads_nowhere_else(src, name):
    rewrite(src, "unet", "sharded")
    index = src / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    check_refused(src, "names the shard")


def test_an_index_that_is_wrong(src):
    rewrite(src, "unet", "sharded")
    index = src / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    shards["conv_in.weight"], shards["conv_in.bias"] = (
        shards["conv_in.bias"],
        shards["conv_in.weight"],
    )
    index.write_text(json.dumps({"weight_map": shards}))
    check_refused(src, "conv_in.* is not in diffusion_pytorch_model-0000")
    index.write_text("{}")
    check_refused(src, "has no weight_map")


def test_a_name_in_two_shards(src):
    rewrite(src, "unet", "sharded")
    first, second = (
        src / "unet" / f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2)
    )
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    check_refused(src, f"{name} is in .*00001-of-00003.safetensors and in .*00002-of")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


@pytest.mark.parametrize(
    "content, message",
    [
        (Evil(), "cannot be read as tensors alone"),
        ([torch.zeros(1)], "is not a dict of names and tensors"),
        ({"state_dict": {"a": torch.zeros(1)}}, "is not a dict of names and tensors"),
        ({"step": 7}, "is not a dict of names and tensors"),
        (b"", "cannot be read as tensors alone"),
        (b"hello", "cannot be read as tensors alone"),
    ],
)
def test_a_bin_file_that_is_none(src, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    weights(src, "vae").unlink()
    path = src / "vae" / "diffusion_pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    check_refused(src, message)
    assert not (tmp_path / "evil").exists()


def test_a_bin_file_of_the_old_kind(src):
    path = weights(src, "vae")
    torch.save(load_file(path), path.with_suffix(".bin"), _use_new_zipfile_serialization=False)
    path.unlink()
    check_refused(src, "the zip format that torch writes since 1.6")


@pytest.mark.parametrize("component", TABLES)
def test_a_cut_off_file(src, component):
    path = weights(src, component)
    path.write_bytes(path.read_bytes()[:-100])
    check_refused(src, f"{path}: cut off")


# configs that mean something else

UNET, VAE = "unet/config.json", "vae/config.json"
TEXT, VISION = "text_encoder/config.json", "image_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
IMAGES = "feature_extractor/preprocessor_config.json"
TOKENS = "tokenizer/tokenizer_config.json"
BLOCKS = ["CrossAttnUpBlock3D"] * 3


@pytest.mark.parametrize(
    "file, changes, message",
    [
        (UNET, {"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'"),
        (UNET, {"_class_name": ...}, "has no _class_name"),
        (UNET, {"in_channels": 9}, "in_channels is 9; only 4 is supported"),
        (UNET, {"out_channels": 8}, "out_channels is 8; only 4 is supported"),
        (UNET, {"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu' is supported"),
        (UNET, {"norm_num_groups": None}, "norm_num_groups is None"),
        (UNET, {"layers_per_block": [2, 2, 2, 2]}, "layers_per_block is"),
        (UNET, {"layers_per_block": 0}, "layers_per_block is 0"),
        (UNET, {"layers_per_block": True}, "layers_per_block is True"),
        (UNET, {"block_out_channels": [16, 32, 48, 0]}, "block_out_channels is"),
        (UNET, {"block_out_channels": 16}, "block_out_channels is 16"),
        (UNET, {"block_out_channels": [16, 32, 48]}, "one block per width is needed, that is 3"),
        (UNET, {"down_block_types": ["DownBlock2D"] * 4}, "down_block_types is"),
        (UNET, {"down_block_types": [["x"]] * 4}, "down_block_types is"),
        (UNET, {"up_block_types": [*BLOCKS, "UpBlock3D"]}, "it must mirror down_block_types"),
        (UNET, {"attention_head_dim": 16}, "attention_head_dim is 16 and num_attention_heads is 8"),
        (UNET, {"attention_head_dim": [8, 8, 8, 8]}, "attention_head_dim is"),
        (UNET, {"cross_attention_dim": 64}, "hidden_size is 32; unet: cross_attention_dim is 64"),
        (VAE, {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
        (VAE, {"act_fn": "relu"}, "act_fn is 'relu'"),
        (VAE, {"in_channels": 4}, "in_channels is 4"),
        (VAE, {"out_channels": 1}, "out_channels is 1"),
        (VAE, {"latent_channels": 16}, "latent_channels is 16"),
        (VAE, {"shift_factor": 0.1}, "shift_factor is 0.1"),
        (VAE, {"latents_mean": [0, 0, 0, 0]}, "latents_mean is"),
        (VAE, {"use_quant_conv": False}, "use_quant_conv is False"),
        (VAE, {"use_post_quant_conv": False}, "use_post_quant_conv is False"),
        (VAE, {"mid_block_add_attention": False}, "mid_block_add_attention is False"),
        (VAE, {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types is"),
        (VAE, {"block_out_channels": ...}, r"down_block_types is .*only \['DownEnc"),
        (VAE, {"scaling_factor": 0}, "scaling_factor is 0; a positive number"),
        (VAE, {"scaling_factor": math.inf}, "scaling_factor is inf"),
        (TEXT, {"architectures": ["CLIPTextModelWithProjection"]}, "architectures is"),
        (TEXT, {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only 'gelu' or 'quick_gelu'"),
        (TEXT, {"max_position_embeddings": 248}, "max_position_embeddings is 248; only 77"),
        (TEXT, {"num_attention_heads": 5}, "num_attention_heads is 5; it must divide"),
        (TEXT, {"hidden_size": ...}, r"hidden_size is 512|hidden_size is .* unet"),
        (TEXT, {"vocab_size": 800}, "ids go up to 813; text_encoder: vocab_size is 800"),
        (TEXT, {"text_config": 3}, "text_config is 3, not a JSON object"),
        (VISION, {"architectures": ["CLIPVisionModel"]}, "architectures is"),
        (VISION, {"num_channels": 4}, "num_channels is 4"),
        (VISION, {"image_size": [32, 16]}, r"image_size is \[32, 16\]; the side of a square"),
        (VISION, {"image_size": 224}, "crop_size is 32; image_encoder: image_size is 224"),
        (VISION, {"projection_dim": ...}, "projection_dim is 512; unet: cross_attention_dim is 32"),
        (VISION, {"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        (SCHEDULER, {"_class_name": "PNDMScheduler"}, "_class_name is 'PNDMScheduler'"),
        (SCHEDULER, {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'; only 'v_pred"),
        (SCHEDULER, {"prediction_type": ...}, r"is 'epsilon' \(the default, it is not given\)"),
        (SCHEDULER, {"beta_schedule": "scaled_linear"}, "beta_schedule is 'scaled_linear'"),
        (SCHEDULER, {"rescale_betas_zero_snr": False}, "rescale_betas_zero_snr is False"),
        (SCHEDULER, {"timestep_spacing": "trailing"}, "timestep_spacing is 'trailing'"),
        (SCHEDULER, {"steps_offset": 0}, "steps_offset is 0; only 1"),
        (SCHEDULER, {"set_alpha_to_one": False}, "set_alpha_to_one is False"),
        (SCHEDULER, {"clip_sample": True}, "clip_sample is True"),
        (SCHEDULER, {"clip_sample": ...}, "clip_sample is True .the default"),
        (SCHEDULER, {"thresholding": True}, "thresholding is True"),
        (SCHEDULER, {"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        (SCHEDULER, {"trained_betas": [0.1]}, "trained_betas is"),
        (IMAGES, {"crop_size": {"height": 32, "width": 16}}, "crop_size is"),
        (IMAGES, {"crop_size": ...}, "crop_size is 224; image_encoder: image_size is 32"),
        (IMAGES, {"image_mean": [0.5]}, "image_mean is"),
        (IMAGES, {"image_std": [0.5, 0, 0.5]}, "image_std is"),
        (TOKENS, {"do_lower_case": False}, "do_lower_case is False"),
        (TOKENS, {"model_max_length": 248}, "model_max_length is 248"),
    ],
)
def test_a_config_that_means_another_computation(src, file, changes, message):
    edit(src, file, **changes)
    assert str(src) in check_refused(src, message)


@pytest.mark.parametrize(
    "file, changes",
    [
        (UNET, {"attention_head_dim": ...}),
        (UNET, {"num_attention_heads": None}),
        (UNET, {"sample_size": None, "_name_or_path": "x", "act_fn": "silu"}),
        (UNET, {"in_channels": ..., "out_channels": ..., "layers_per_block": ...}),
        (UNET, {"down_block_types": ..., "up_block_types": ...}),
        (VAE, {"act_fn": ..., "in_channels": ..., "out_channels": ..., "layers_per_block": ...}),
        (VAE, {"latent_channels": ..., "scaling_factor": ..., "force_upcast": False}),
        (VAE, {"latents_mean": None, "shift_factor": None, "use_quant_conv": True}),
        (TEXT, {"layer_norm_eps": ..., "max_position_embeddings": ..., "architectures": ...}),
        (TEXT, {"dropout": 0.0, "eos_token_id": 2, "projection_dim": 99}),
        (VISION, {"layer_norm_eps": ..., "num_channels": ..., "architectures": None}),
        (VISION, {"image_size": [32, 32]}),
        (SCHEDULER, {"thresholding": ..., "timestep_spacing": ..., "set_alpha_to_one": ...}),
        (SCHEDULER, {"num_train_timesteps": ..., "trained_betas": ..., "beta_end": 0.5}),
        (IMAGES, {"crop_size": 32, "image_mean": ..., "image_std": ..., "do_resize": False}),
        (TOKENS, {"do_lower_case": ..., "model_max_length": ..., "pad_token": ...}),
    ],
)
def test_a_config_that_means_the_same(src, converted, tmp_path, file, changes):
    edit(src, file, **changes)
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


def test_no_head_size_at_all_is_64():
    config = i2vgen.unet_config("here", {"_class_name": "I2VGenXLUNet"})
    assert config == {
        "channels": 4,
        "widths": [320, 640, 1280, 1280],
        "attention": [True, True, True, False],
        "layers": 2,
        "head_dim": 64,
        "context_width": 1024,
        "groups": 32,
    }


def test_absent_fields_of_a_tower_are_what_transformers_takes_for_them():
    transformers = pytest.importorskip("transformers")
    text, vision = transformers.CLIPTextConfig(), transformers.CLIPVisionConfig()
    assert clip.text_config("here", {}) == {
        "vocab_size": text.vocab_size,
        "tokens": text.max_position_embeddings,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_width": text.intermediate_size,
        "activation": text.hidden_act,
        "norm_eps": text.layer_norm_eps,
    }
    assert clip.vision_config("here", {}) == {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "heads": vision.num_attention_heads,
        "layers": vision.num_hidden_layers,
        "mlp_width": vision.intermediate_size,
        "activation": vision.hidden_act,
        "norm_eps": vision.layer_norm_eps,
        "projection_width": vision.projection_dim,
    }


def test_absent_fields_are_what_diffusers_takes_for_them():
    diffusers = pytest.importorskip("diffusers")
    for kind, ours in (
        (diffusers.DDIMScheduler, i2vgen.SCHEDULER_DEFAULTS),
        (diffusers.AutoencoderKL, vae.DEFAULTS),
        (diffusers.I2VGenXLUNet, i2vgen.UNET_DEFAULTS),
    ):
        theirs = inspect.signature(kind.__init__).parameters
        for name in ours.keys() & theirs.keys() - {"attention_head_dim"}:
            default = theirs[name].default
            assert ours[name] == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("file, part", [(TEXT, "text_config"), (VISION, "vision_config")])
def test_nested_configs(src, converted, tmp_path, file, part):
    values = json.loads((src / file).read_text())
    outer = {"model_type": "clip", "projection_dim": 99, "architectures": values["architectures"]}
    (src / file).write_text(json.dumps({**outer, part: values}))
    convert(src, tmp_path / "out", expected())
    assert ours_of(tmp_path / "out") == ours_of(converted)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT, VISION, SCHEDULER, IMAGES])
def test_a_config_that_is_not_there_or_not_json(src, file):
    (src / file).write_text("{")
    check_refused(src, f"{src / file}: is not JSON")
    (src / file).unlink()
    check_refused(src, f"{src / file}: cannot be read")


# the tokenizer


def test_special_tokens_of_the_map_count_until_there_is_a_list_of_added_ones(src, tmp_path):
    edit(src, "tokenizer/special_tokens_map.json", pad_token={"content": "!"})
    convert(src, tmp_path / "old", expected())
    assert Checkpoint.open(tmp_path / "old").config["tokenizer"]["pad"] == "!"
    edit(src, TOKENS, added_tokens_decoder={})
    convert(src, tmp_path / "new", expected())
    assert Checkpoint.open(tmp_path / "new").config["tokenizer"]["pad"] == "<|endoftext|>"


@pytest.mark.parametrize("token", ["<|nothing|>", None, 5])
def test_a_special_token_outside_the_vocabulary(src, token):
    edit(src, "tokenizer/special_tokens_map.json", pad_token=token)
    check_refused(src, "pad_token is .*; a token of vocab.json is needed")


def test_a_tokenizer_that_is_not_there(src):
    (src / "tokenizer" / "merges.txt").unlink()
    check_refused(src, "has neither vocab.json and merges.txt nor tokenizer.json")


@pytest.mark.parametrize("vocab", ["[]", '{"a": "b"}', "{}", "{"])
def test_a_vocabulary_that_is_none(src, vocab):
    (src / "tokenizer" / "vocab.json").write_text(vocab)
    check_refused(src, "vocab.json: (is|holds)")


@pytest.mark.parametrize("ids, fits", [((0, 4), True), ((0, 5), False), ((5, 0), False)])
def test_the_largest_id_is_one_less_than_the_size_of_the_vocabulary(tmp_path, ids, fits):
    vocab = dict(zip("ab", ids, strict=True))
    if fits:
        huggingface.check_vocabulary(tmp_path, vocab, 5)
    else:
        told = f"{tmp_path}: tokenizer: ids go up to 5; text_encoder: vocab_size is 5"
        with pytest.raises(InputError, match=told):
            huggingface.check_vocabulary(tmp_path, vocab, 5)


def test_a_vocabulary_without_room_for_its_last_token(src):
    path = src / "text_encoder" / "config.json"
    size = json.loads(path.read_text())["vocab_size"]
    edit(src, "text_encoder/config.json", vocab_size=size - 1)
    check_refused(src, f"ids go up to {size - 1}; text_encoder: vocab_size is {size - 1}")


# folders that are wrong


def test_sources_that_are_none(src, converted, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pth").touch()
    for source, message in (
        (tmp_path / "no", "no such folder"),
        (tmp_path / "file", "is a file; needed is a Hugging Face folder of I2VGen-XL"),
        (tmp_path / "empty", "is empty; needed is a Hugging Face folder"),
        (tmp_path / "other", "has no model_index.json; needed is a Hugging Face folder"),
        (converted, "is converted already"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            convert(source, tmp_path / "out", expected())
        assert str(source) in str(refusal.value)
    edit(src, "model_index.json", _class_name="StableVideoDiffusionPipeline")
    check_refused(
        src, "holds 'StableVideoDiffusionPipeline'; one of I2VGenXLPipeline, .* is needed"
    )


def test_targets_that_are_none(src, tmp_path):
    (tmp_path / "file").touch()
    for target, force, message in (
        (src, False, "the output cannot be the source"),
        (src, True, "the output cannot be the source"),
        (src / "inside", False, "or inside it"),
        (tmp_path, True, "the output cannot hold the source"),
        (tmp_path / "no" / "out", False, "no such folder for the output"),
        (tmp_path / "file" / "out", False, "no such folder for the output"),
        (tmp_path / "file", False, "exists already"),
        (tmp_path / "file", True, "is a file, only a converted folder is replaced"),
    ):
        with pytest.raises(InputError, match=message):
            convert(src, target, expected(), force=force)
    assert (tmp_path / "file").exists() and not (src / "inside").exists()


def test_the_source_behind_a_link_is_the_source(src, tmp_path):
    (tmp_path / "link").symlink_to(src)
    with pytest.raises(InputError, match="the output cannot be the source"):
        convert(src, tmp_path / "link", expected(), force=True)
    with pytest.raises(InputError, match="or inside it"):
        convert(tmp_path / "link", src / "inside", expected())


def test_a_target_is_replaced_only_by_force(src, converted, tmp_path):
    out = tmp_path / "out"
    convert(src, out, expected(), dtype=torch.float16)
    half = ours_of(out)
    with pytest.raises(InputError, match="exists already; replacing it takes force"):
        convert(src, out, expected())
    assert ours_of(out) == half
    convert(src, out, expected(), force=True)
    assert ours_of(out) == ours_of(converted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_folder_with_anything_else_in_it_is_not_replaced(src, tmp_path):
    out = tmp_path / "out"
    convert(src, out, expected())
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not replaced: it also holds thesis.txt"):
        convert(src, out, expected(), force=True)
    assert (out / "thesis.txt").read_text() == "years of work"


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stop, OSError(28, "No space left on device")])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_of_a_conversion_that_stops(src, tmp_path, stop, force):
    out = tmp_path / "out"
    if force:
        convert(src, out, expected(), dtype=torch.bfloat16)
    before = ours_of(tmp_path)

    def progress(done, total):
        assert any(path.name.startswith(".") for path in tmp_path.iterdir())
        assert out.exists() == force
        if done > total / 2:
            raise stop

    kind = InputError if isinstance(stop, OSError) else stop
    with pytest.raises(kind) as error:
        convert(src, out, expected(), force=force, progress=progress)
    if kind is InputError:
        assert "No space left on device" in str(error.value)
    assert ours_of(tmp_path) == before


def test_bad_values_leave_the_old_folder(src, tmp_path):
    out = tmp_path / "out"
    convert(src, out, expected())
    spoil(src, "image_encoder", "visual_projection.weight", math.nan)
    before = ours_of(tmp_path)
    with pytest.raises(InputError, match="not finite"):
        convert(src, out, expected(), force=True)
    assert ours_of(tmp_path) == before


def test_a_full_disk_is_noticed_first(src, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10**6))
    check_refused(src, "GB are needed, 1.00 MB are free")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(src, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="closed: cannot be written to"):
        convert(src, tmp_path / "closed" / "out", expected())


# memory

CONVERT = """
import sys, torch
from anyv2v.convert.published import convert
from tests.unit.test_convert import expected, peak_mb, widened
torch.set_num_threads(1)
before = peak_mb()
convert(sys.argv[1], sys.argv[2], widened(expected()), dtype=torch.float16)
print(peak_mb() - before)
"""
LARGE = (20_000, 2048)
LARGE_NAMES = [f"encoder.down_blocks.{n}.resnets.0.norm1.weight" for n in range(4)]


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def widened(expect):
    """Four tensors of 164 MB each in place of small ones."""
    ours = expect(None)
    for renamed in rename(LARGE_NAMES, vae.VAE).values():
        ours["vae"][renamed.name] = LARGE
    return lambda config: ours


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
@pytest.mark.parametrize("form", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_converting_holds_one_tensor_at_a_time(src, tmp_path, monkeypatch, form):
    path = weights(src, "vae")
    big = torch.from_numpy(np.full(LARGE, 0.5, np.float32))
    tensors = {**load_file(path), **{name: big.clone() for name in LARGE_NAMES}}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        path.unlink()
        torch.save(tensors, path.with_suffix(".bin"))
    del tensors
    run = subprocess.run(
        [sys.executable, "-c", WITH_TESTS + CONVERT, str(src), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    added = float(run.stdout)
    print(f"{form}: {added:.0f} MB for 655 MB")
    # the tensor, its half, and from a .bin what is mapped of it at once
    assert added < 164 * 1.5 + (0 if form == "safetensors" else 128) + 40


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("vae/config.json", {"norm_num_groups": ...}, "norm_num_groups is 32.*default"),
        ("vae/config.json", {"norm_num_groups": 3}, "norm_num_groups is 3; it must divide"),
        ("vae/config.json", {"block_out_channels": [8, 12, 8, 8]}, "norm_num_groups"),
        ("vae/config.json", {"scaling_factor": 10**400}, "scaling_factor"),
        ("unet/config.json", {"layers_per_block": 65}, "layers"),
        ("unet/config.json", {"norm_num_groups": 3}, "norm_num_groups is 3; it must divide"),
        ("unet/config.json", {"norm_num_groups": 2**40}, "norm_num_groups"),
        ("unet/config.json", {"layers_per_block": 10**30}, "layers_per_block"),
        ("text_encoder/config.json", {"vocab_size": 2**63}, "vocab_size"),
        ("unet/config.json", {"attention_head_dim": 5}, None),
        ("feature_extractor/preprocessor_config.json", {"image_std": [1, 1, 10**400]}, "image_std"),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [0, 0, math.nan]}, "mean"),
        ("tokenizer/tokenizer_config.json", {"eos_token": "\ud800"}, "half a character"),
        ("scheduler/scheduler_config.json", {"\udc00": 1}, "half a character"),
    ],
)
def test_what_cannot_be_built_or_written_is_blamed_on_its_file(src, file, changes, message):
    edit(src, file, **changes)
    with pytest.raises(InputError, match=message) as refusal:
        convert(src, src.parent / "out", expected_shapes)
    # what torch alone knows to be wrong shows when the networks are built, of all configs together
    assert str(src if "make no network" in str(refusal.value) else src / file) in str(refusal.value)
    assert os.listdir(src.parent) == [src.name]


@pytest.mark.parametrize("token", ["\ud800", "a\udfff</w>"])
def test_a_token_that_is_no_text(src, token):
    path = src / "tokenizer" / "vocab.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))
    vocab[token] = vocab.pop(next(iter(vocab)))
    path.write_text(json.dumps(vocab))
    check_refused(src, f"{path}: holds .*, half a character")


@pytest.mark.parametrize("merges", [5, None, [5], [["a"]], [None]])
def test_merges_that_are_none(src, merges):
    folder = src / "tokenizer"
    model = {"type": "BPE", "vocab": json.loads((folder / "vocab.json").read_text("utf-8"))}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model | {"merges": merges}}))
    (folder / "merges.txt").unlink()
    check_refused(src, f"{folder / 'tokenizer.json'}: its merges are no list of pairs")
