"""Conversion of SEINE's published form, and what is refused of it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anyv2v
from anyv2v import InputError
from anyv2v.backbones.seine.config import UNetConfig
from anyv2v.backbones.seine.unet import UNet
from anyv2v.config import section
from anyv2v.convert.formats.seine import FREQUENCIES, MID_BLOCK, UNET, unet_config
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.loading import expected_shapes
from tests.draw import normal
from tests.oracles import seine_golden, seine_snapshot

SD = "stable-diffusion-v1-4"
OF_THE_TENSORS = "a03f443e26d90d30"


def digest(folder):
    """A digest of every tensor of a published folder: its name, dtype, shape and bytes."""
    tensors = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            found = load_file(path)
        elif path.suffix in (".pt", ".bin"):
            found = torch.load(path, weights_only=True)
            found = found.get("ema", found)
        else:
            continue
        tensors |= {f"{path.relative_to(folder)}:{name}": x for name, x in found.items()}
    every = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        every.update(f"{name} {x.dtype} {list(x.shape)} ".encode() + x.numpy().tobytes())
    return every.hexdigest()[:16]


def test_the_written_model_is_the_one_that_the_goldens_were_made_with(seine_folder):
    assert digest(seine_folder) == OF_THE_TENSORS


def released():
    """The network of the released sizes without memory for weights."""
    sizes = seine_snapshot.unet_config(seine_snapshot.PRESETS["full"])
    config = unet_config("config.json", sizes)
    with torch.device("meta"):
        return UNet(section({"unet": config}, "unet", UNetConfig))


def test_names_and_shapes_are_those_of_the_release():
    text = (seine_golden.OWN / "released_unet_shapes.json").read_text()
    theirs = {name: tuple(shape) for name, shape in json.loads(text).items()}
    shapes = {name: tuple(x.shape) for name, x in released().state_dict().items()}
    back = rename(shapes, UNET, to="theirs")
    mapped = {new.name: new.their_shape(shapes[ours]) for ours, new in back.items()}
    copies = {name for name in theirs if name.endswith(FREQUENCIES)}
    assert len(theirs) == 830 and len(copies) == 16
    assert mapped.keys() & copies == {f"{MID_BLOCK}.{FREQUENCIES}"}
    assert mapped | {name: (16,) for name in copies} == theirs
    assert rename(mapped, UNET).keys() == mapped.keys()
    assert sum(map(np.prod, shapes.values())) == 909_138_516
    assert not unused_rules(mapped, UNET)
    assert seine_snapshot.unet_shapes(seine_snapshot.PRESETS["full"]) == theirs


def test_config_of_a_converted_folder(seine_weights):
    config = json.loads((seine_weights / "config.json").read_text())
    assert config["backbone"] == "seine" and config["components"] == ["unet", "vae", "text"]
    assert config["unet"] == {
        "channels": 4,
        "widths": [36, 40, 72, 40],
        "heads": [1, 1, 2, 1],
        "layers": 2,
        "context_width": 40,
        "groups": 4,
    }
    assert config["defaults"] == {"size": [512, 512], "frames": 16, "fps": 8}
    assert config["injection"]["conv"] == ["up.1.res.1"]
    assert config["injection"]["cross"][:2] == [
        "up.1.spatial.1.block.cross",
        "up.1.spatial.2.block.cross",
    ]
    assert {len(config["injection"][group]) for group in ("spatial", "temporal", "cross")} == {8}


@pytest.fixture
def published(seine_folder, tmp_path):
    """A copy of the published folder, which a test may change."""
    return Path(shutil.copytree(seine_folder, tmp_path / "published"))


def change_unet(folder, change):
    """Changes what the file of the UNet holds."""
    saved = torch.load(folder / "seine.pt", weights_only=True)
    torch.save(change(saved) or saved, folder / "seine.pt")


def test_the_frequencies_that_count_are_the_middle_blocks(published, tmp_path):
    own = torch.rand(16)

    def change(saved):
        copies = [name for name in saved["ema"] if name.endswith(FREQUENCIES)]
        for i, name in enumerate(copies):
            saved["ema"][name] = own if name.startswith("mid") else own + 1 + i
        # what else a training run saved is ignored
        return {**saved, "step": 7}

    change_unet(published, change)
    convert(published, tmp_path / "out", expected_shapes)
    weights = load_file(tmp_path / "out/unet.safetensors")
    assert torch.equal(weights["rotary.frequencies"], own)
    assert len([name for name in weights if "rotary" in name]) == 1


A_COPY = f"up_blocks.2.attentions.0.transformer_blocks.0.{FREQUENCIES}"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda saved: saved["ema"], "holds no dict with the entry 'ema'"),
        (lambda saved: {"ema": torch.zeros(3)}, "is not a dict of names and tensors"),
        (lambda saved: saved["ema"].__delitem__(A_COPY), f"missing: {A_COPY}"),
        (
            lambda saved: saved["ema"].update({A_COPY: torch.zeros(8)}),
            rf"{A_COPY} is \(8,\), should be \(16,\)",
        ),
    ],
    ids=["no entry", "no dict", "no copy", "short copy"],
)
def test_files_of_other_networks_are_refused(published, tmp_path, change, message):
    change_unet(published, change)
    with pytest.raises(InputError, match=message) as info:
        convert(published, tmp_path / "out", expected_shapes)
    assert "seine.pt" in str(info.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file, changed, message",
    [
        ("unet", {"attention_head_dim": 2}, r"each of at least 32 of the 36 channels"),
        ("unet", {"attention_head_dim": [1, 1, 1]}, "attention_head_dim.*one number, or 4"),
        ("unet", {"block_out_channels": [36, 40, 72]}, "block_out_channels.*4 numbers"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ("unet", {"use_linear_projection": True}, "use_linear_projection"),
        ("unet", {"cross_attention_dim": 24}, "hidden_size is 40.*cross_attention_dim is 24"),
        ("unet", {"norm_num_groups": 5}, "norm_num_groups"),
        ("scheduler", {"_class_name": "EulerDiscreteScheduler"}, "PNDMScheduler"),
        ("scheduler", {"steps_offset": 0}, "steps_offset is 0"),
        ("scheduler", {"set_alpha_to_one": True}, "set_alpha_to_one is True"),
    ],
)
def test_configs_of_other_networks_are_refused(published, tmp_path, file, changed, message):
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    path = published / SD / file / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=message):
        convert(published, tmp_path / "out", expected_shapes)


def test_the_folder_of_stable_diffusion_is_asked_for(published, tmp_path):
    shutil.rmtree(published / SD)
    with pytest.raises(InputError, match=f"not the folder {SD} beside it"):
        convert(published, tmp_path / "out", expected_shapes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"SEINE's seine.pt and {SD}"):
        convert(tmp_path / "empty", tmp_path / "out", expected_shapes)


@pytest.mark.slow
def test_one_number_of_heads_for_all_levels_and_no_unet_weights_are_needed(published, tmp_path):
    (published / SD / "unet" / "diffusion_pytorch_model.bin").unlink()
    path = published / SD / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 1}))

    def one_head(saved):
        for name, x in saved["ema"].items():
            if name.endswith("relative_attention_bias.weight"):
                saved["ema"][name] = x[:, :1].clone()

    change_unet(published, one_head)
    convert(published, tmp_path / "out", expected_shapes)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["unet"]["heads"] == [1, 1, 1, 1]


POOL = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)


def pooled(seed, name, shape):
    """Quick random halves: numbers from a pool, in layers that keep their inputs' size."""
    size = int(np.prod(shape))
    value = np.resize(np.roll(POOL, len(name)), size).reshape(shape)
    if len(shape) == 1:
        value = 1 + 0.1 * value if "norm" in name and name.endswith("weight") else 0.1 * value
    else:
        value = value * np.float32(np.prod(shape[1:]) ** -0.5)
    return value.astype(np.float16)


@pytest.mark.slow
def test_the_released_sizes_convert_load_and_predict(tmp_path):
    folder = seine_snapshot.write(tmp_path / "published", "full", 0, pooled)
    convert(folder, tmp_path / "weights", expected_shapes)
    shutil.rmtree(folder)
    editor = anyv2v.load(tmp_path / "weights", "cpu", torch.float32)
    shutil.rmtree(tmp_path / "weights")
    frame = np.full((16, 16, 3), 200, np.uint8)
    conditions = editor.condition("a robot", frame, 2, (16, 16))
    out = editor.predict(normal(1, 4, 2, 2, 2), 500, conditions)
    assert out.shape == (1, 4, 2, 2, 2) and out.isfinite().all() and out.std() > 1e-3
    frequencies = editor.backbone.unet.rotary.frequencies
    truth = torch.from_numpy(pooled(0, f"{MID_BLOCK}.{FREQUENCIES}", (16,)))
    assert torch.equal(frequencies, truth.float())
