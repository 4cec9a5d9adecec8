"""The conversion of a published ConsistI2V: names, configs, refusals, the released size."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import anyv2v
from anyv2v import InputError
from anyv2v.backbones.consisti2v.backbone import ConsistI2V
from anyv2v.convert.files import Weights
from anyv2v.convert.formats import clip, consisti2v, vae
from anyv2v.convert.model import PublishedNetwork
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.loading import expected_shapes
from anyv2v.weights.checkpoint import Checkpoint
from tests.oracles import consisti2v_golden, consisti2v_snapshot, snapshot

UNET = "unet/diffusion_pytorch_model.safetensors"
TABLES = {
    "unet": ("unet", consisti2v.UNET),
    "vae": ("vae", vae.VAE),
    "text_encoder": ("text", clip.TEXT),
}
"""Their name of a component -> ours, and its rules."""


@pytest.fixture
def src(consisti2v_snapshot_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(consisti2v_snapshot_folder, tmp_path / "hf")


def spoil(src, file, **fields):
    path = src / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def check_refused(src, message):
    with pytest.raises(InputError, match=message) as refusal:
        convert(src, src.parent / "out", expected_shapes)
    assert "\n" not in str(refusal.value)
    assert not (src.parent / "out").exists()


def test_every_tensor_is_the_original_under_its_name(
    consisti2v_snapshot_folder, consisti2v_weights
):
    """In its own dtype: the UNet is published in float16."""
    for theirs, (name, table) in TABLES.items():
        (file,) = (consisti2v_snapshot_folder / theirs).glob("*.safetensors")
        published, ours = load_file(file), load_file(consisti2v_weights / f"{name}.safetensors")
        if name == "unet":
            sizes = Checkpoint.open(consisti2v_weights).config["unet"]
            unused = consisti2v.unused_shapes(sizes)
            assert len(unused) == 44 + 30
            published = {name: x for name, x in published.items() if name not in unused}
            assert {x.dtype for x in ours.values()} == {torch.float16}
        renamed = rename(published, table)
        assert {new.name for new in renamed.values()} == set(ours)
        for key, new in renamed.items():
            assert torch.equal(ours[new.name], published[key].reshape(ours[new.name].shape)), key


def test_the_config(consisti2v_weights):
    config = Checkpoint.open(consisti2v_weights).config
    assert config["backbone"] == "consisti2v" and config["components"] == ["unet", "vae", "text"]
    assert config["defaults"] == {"size": [256, 256], "frames": 5, "fps": 8}
    assert config["schedule"] == {"train_steps": 1000, "steps_offset": 1}
    assert config["unet"] == {
        "channels": 4,
        "widths": [32, 32, 64, 64],
        "attention": [True, True, True, False],
        "layers": 2,
        "spatial_heads": [2, 2, 4, 4],
        "temporal_heads": 4,
        "context_width": 32,
        "groups": 16,
    }


def test_names_and_shapes_are_those_of_the_released_unet():
    """Those of our network, mapped back, with what is left out: 1397 tensors, 1.25e9 numbers."""
    config = consisti2v_snapshot.unet_config(consisti2v_snapshot.PRESETS["full"]["unet"])
    sizes = consisti2v.unet_config("config.json", config)
    with torch.device("meta"):
        network = ConsistI2V.networks({"unet": sizes})["unet"]()
    ours = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    theirs = rename(ours, consisti2v.UNET, to="theirs")
    shapes = {new.name: new.their_shape(ours[name]) for name, new in theirs.items()}
    unused = consisti2v.unused_shapes(sizes)
    assert not shapes.keys() & unused.keys()
    assert not unused_rules(shapes, consisti2v.UNET)
    released = {name: tuple(x) for name, x in consisti2v_golden.released_shapes().items()}
    assert shapes | unused == released
    assert len(released) == 1397 and sum(map(math.prod, released.values())) == 1_249_975_241
    assert sum(map(math.prod, unused.values())) == 10_342_080 + 7_680
    assert consisti2v_snapshot.unet_shapes(consisti2v_snapshot.PRESETS["full"]["unet"]) == released


def test_the_pipeline_of_consisti2v_itself_is_known_too(src, tmp_path):
    """And a dtype may be asked for."""
    spoil(src, "model_index.json", _class_name="ConditionalAnimationPipeline")
    convert(src, tmp_path / "ours", expected_shapes, torch.float32)
    unet = load_file(tmp_path / "ours/unet.safetensors")
    assert {x.dtype for x in unet.values()} == {torch.float32}


TIME = "mid_block.conv3ds.1.time_emb_proj.weight"
BIAS = "up_blocks.3.tempo_attns.2.transformer_blocks.0.attn2.rotary_bias"
TABLE = f"{BIAS}.relative_attention_bias.weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({TIME: None}, f"^unet.safetensors: {TIME} missing, should be .64, 512.$"),
        ({TIME: (64, 128)}, f"{TIME} .64, 128., should be .64, 512.$"),
        ({TABLE: None}, f"{TABLE} missing, should be .32, 4.$"),
        ({TABLE: None, TIME: None}, f"{TIME} missing.*; {TABLE} missing"),
        ({"a.lora_up.weight": (1,), TIME: None}, "is a LoRA, not a whole model"),
    ],
)
def test_unused_tensors_have_to_be_there(changes, message):
    shapes = consisti2v_snapshot.unet_shapes(consisti2v_snapshot.PRESETS["tiny"]["unet"])
    config = consisti2v_snapshot.unet_config(consisti2v_snapshot.PRESETS["tiny"]["unet"])
    unused = consisti2v.unused_shapes(consisti2v.unet_config("config.json", config))

    def select(shapes):
        layout = {name: (torch.float16, x) for name, x in shapes.items() if x is not None}
        weights = Weights(Path("unet.safetensors"), layout, {})
        return consisti2v.without_unused(PublishedNetwork(weights, consisti2v.UNET), unused)

    assert select(shapes).weights.layout.keys() == shapes.keys() - unused.keys()
    with pytest.raises(InputError, match=message):
        select({**shapes, **changes})


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (f"{BIAS}.bias", (4,), f"{BIAS}.bias"),
        ("conv_in.weight", (32, 8, 3, 3), "conv_in.weight.*8, 3, 3"),
    ],
)
def test_tensors_that_are_extra_or_misshapen(src, name, shape, message):
    tensors = load_file(src / UNET)
    tensors[name] = torch.ones(shape, dtype=torch.float16)
    save_file(tensors, src / UNET)
    check_refused(src, message)


@pytest.mark.parametrize(
    "field, value",
    [
        ("_class_name", "UNet3DConditionModel"),
        ("use_temporal", False),
        ("first_frame_condition_mode", "conv2d"),
        ("augment_temporal_attention", False),
        ("temp_pos_embedding", "sinusoidal"),
        ("use_frame_stride_condition", False),
        ("use_linear_projection", False),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("act_fn", "gelu"),
        ("norm_eps", 1e-6),
        ("in_channels", 9),
        ("n_frames", 1),
        ("n_temp_heads", 3),
        ("attention_head_dim", [2, 2, 4]),
        ("attention_head_dim", [2, 2, 4, 5]),
        ("attention_head_dim", 5),
        ("norm_num_groups", 24),
        ("flip_sin_to_cos", False),
        ("num_class_embeds", 2),
        ("addition_embed_type", "text_time"),
        ("transformer_layers_per_block", 2),
        ("up_block_types", ["UpBlock2D"] * 4),
    ],
)
def test_networks_that_are_not_implemented(field, value):
    config = consisti2v_snapshot.unet_config(consisti2v_snapshot.PRESETS["tiny"]["unet"])
    with pytest.raises(InputError, match=rf"^unet/config.json: {field} is "):
        for read in (consisti2v.unet_config, consisti2v.clip_config):
            read("unet/config.json", {**config, field: value})


@pytest.mark.parametrize(
    "field, value",
    [
        ("beta_schedule", "scaled_linear"),
        ("beta_start", 0.0001),
        ("beta_end", 0.02),
        ("prediction_type", "v_prediction"),
        ("set_alpha_to_one", False),
        ("steps_offset", 0),
        ("clip_sample", True),
        ("timestep_spacing", "trailing"),
        ("rescale_betas_zero_snr", True),
        ("_class_name", "PNDMScheduler"),
    ],
)
def test_schedules_that_are_not_implemented(field, value):
    config = {**consisti2v_snapshot.SCHEDULER_CONFIG, field: value}
    with pytest.raises(InputError, match=rf"^scheduler_config.json: {field} is "):
        consisti2v.schedule_config("scheduler_config.json", config)


def test_what_is_absent_is_what_the_published_class_assumes(consisti2v_snapshot_folder):
    """And that is another network, but for the sizes of Stable Diffusion."""
    path = consisti2v_snapshot_folder / "unet/config.json"
    config = json.loads(path.read_text())
    for name in ("temp_pos_embedding", "first_frame_condition_mode", "use_linear_projection"):
        rest = {key: value for key, value in config.items() if key != name}
        with pytest.raises(InputError, match=f"{name} is .*the default, it is not given"):
            consisti2v.unet_config("config.json", rest)
    sizes = ("block_out_channels", "norm_num_groups", "n_temp_heads", "attention_head_dim")
    rest = {key: value for key, value in config.items() if key not in sizes}
    read = consisti2v.unet_config("config.json", {**rest, "upcast_attention": True})
    assert read["widths"] == [320, 640, 1280, 1280] and read["groups"] == 32
    assert read["temporal_heads"] == 8 and read["spatial_heads"] == [8] * 4


def test_networks_that_do_not_fit_each_other(src):
    spoil(src, "unet/config.json", cross_attention_dim=48)
    check_refused(src, "hidden_size is 32; unet: cross_attention_dim is 48")


def test_a_folder_of_another_schedule_is_not_loaded(consisti2v_weights, tmp_path):
    ours = shutil.copytree(consisti2v_weights, tmp_path / "ours")
    spoil(ours, "config.json", schedule={"train_steps": 1000, "steps_offset": 0})
    with pytest.raises(InputError, match="schedule .* is not"):
        anyv2v.load(ours, device="cpu")


@pytest.mark.slow
def test_the_released_size(tmp_path):
    """Converted, loaded, and one forward pass; all tensors are parts of the same random halves."""
    src, ours = tmp_path / "hf", tmp_path / "ours"
    vocab = consisti2v_snapshot.write_configs(src, "full")
    preset = consisti2v_snapshot.PRESETS["full"]
    halves = torch.randn(2**25, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for path, shapes in (
        ("unet/diffusion_pytorch_model.bin", consisti2v_golden.released_shapes()),
        ("vae/diffusion_pytorch_model.bin", snapshot.vae_shapes(preset["vae"])),
        ("text_encoder/pytorch_model.bin", snapshot.text_shapes(preset["text"], len(vocab))),
    ):
        # a table of tokens is larger than the halves, and each of its rows may be the same
        torch.save(
            {
                name: halves[: math.prod(shape)].view(*shape)
                if math.prod(shape) <= len(halves)
                else halves[: shape[-1]].expand(*shape)
                for name, shape in shapes.items()
            },
            src / path,
        )
    assert sum(x.stat().st_size for x in src.rglob("*") if x.is_file()) < 300e6
    convert(src, ours, expected_shapes)
    editor = anyv2v.load(ours, device="cpu", dtype=torch.float16)
    assert isinstance(editor.backbone, ConsistI2V)
    parameters = sum(x.numel() for x in editor.backbone.unet.parameters())
    assert parameters == 1_249_975_241 - 10_342_080 - 7_680
    assert editor.defaults.frames == 16
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    with torch.no_grad():
        latents = editor.encode_frames(np.stack([frame] * 2)).half()
        conditions = editor.condition("a robot", frame, frames=2, size=(128, 64))
        prediction = editor.predict(latents, 501, conditions)
    assert prediction.shape == (1, 4, 2, 8, 16) and prediction.isfinite().all()
    assert prediction.float().std() > 0
    shutil.rmtree(ours)
