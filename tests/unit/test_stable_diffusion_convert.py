"""Hugging Face folders of Stable Diffusion 1.x and InstructPix2Pix become folders of ours."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anyv2v
from anyv2v.cli.main import main
from anyv2v.convert.formats import clip, stable_diffusion, vae
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.errors import InputError
from anyv2v.stable_diffusion.loading import KINDS, load
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights_folders import expected_shapes
from tests.oracles import sd_snapshot

TABLES = {
    "unet": ("unet", stable_diffusion.UNET, 686),
    "vae": ("vae", vae.VAE, 248),
    "text_encoder": ("text", clip.TEXT, 196),
}
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return sd_snapshot.write(tmp_path_factory.mktemp("theirs") / "tiny", channels_in=8)


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "tiny"
    convert(theirs, folder, expected_shapes)
    return folder


@pytest.fixture
def src(theirs, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(theirs, tmp_path / "source"))


def edit(src, file, **changes):
    """Change fields of a config; ... takes one away."""
    values = {**json.loads((src / file).read_text()), **changes}
    (src / file).write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def weights(folder, component):
    return next((folder / component).glob("*.safetensors"))


def check_refused(src, message):
    with pytest.raises(InputError, match=message) as refusal:
        convert(src, src.parent / "out", expected_shapes)
    assert "\n" not in str(refusal.value)
    assert not (src.parent / "out").exists()


@pytest.mark.parametrize("channels_in", [4, 8])
@pytest.mark.parametrize("component", TABLES)
@pytest.mark.parametrize("preset", sd_snapshot.PRESETS)
def test_every_name_goes_there_and_back_and_every_rule_is_used(preset, component, channels_in):
    _, table, count = TABLES[component]
    shapes = sd_snapshot.component_shapes(sd_snapshot.PRESETS[preset], channels_in)[component]
    ours = {name: new.name for name, new in rename(shapes, table).items()}
    back = {name: new.name for name, new in rename(ours.values(), table, "theirs").items()}
    assert back == {new: name for name, new in ours.items()}
    assert unused_rules(shapes, table) == unused_rules(ours.values(), table, "theirs") == []
    if preset == "full":
        assert len(shapes) == count


@pytest.mark.parametrize("component", TABLES)
def test_every_tensor_is_the_original_under_its_name(theirs, ours, component):
    check_tensors(theirs, ours, component)


def check_tensors(theirs, ours, component):
    name, table, _ = TABLES[component]
    their_tensors = load_file(weights(theirs, component))
    our_tensors = load_file(ours / f"{name}.safetensors")
    assert len(our_tensors) == len(their_tensors)
    for key, new in rename(their_tensors, table).items():
        wanted = their_tensors[key]
        if key.endswith(("proj_in.weight", "proj_out.weight")):
            wanted = wanted[:, :, 0, 0]
        assert torch.equal(our_tensors[new.name], wanted), key


def test_the_config(ours, tmp_path):
    config = Checkpoint.open(ours).config
    assert config.keys() == {"format", "model", "unet", "vae", "text", "tokenizer", "schedule"}
    assert config["model"] == "stable-diffusion"
    assert config["unet"] == {
        "channels_in": 8,
        "channels_out": 4,
        "widths": [16, 32, 48, 48],
        "attention": [True, True, True, False],
        "layers": 2,
        "heads": 4,
        "context_width": 32,
        "groups": 8,
    }
    # the published folder leaves it out, and the class of its scheduler takes this
    assert config["schedule"] == {"spacing": "linspace"}
    assert config["text"]["activation"] == "quick_gelu"
    sd_snapshot.write(tmp_path / "odd", 4, "odd")
    convert(tmp_path / "odd", tmp_path / "out", expected_shapes)
    config = Checkpoint.open(tmp_path / "out").config
    assert config["unet"] == {
        "channels_in": 4,
        "channels_out": 4,
        "widths": [24, 36, 60],
        "attention": [True, True, False],
        "layers": 1,
        "heads": 3,
        "context_width": 40,
        "groups": 12,
    }
    assert config["schedule"] == {"spacing": "leading"}
    load(tmp_path / "out", torch.device("cpu"), torch.float32, in_channels=4)


def test_halves_are_read_under_their_published_names(tmp_path):
    half = sd_snapshot.write(tmp_path / "half", 8, half=True)
    convert(half, tmp_path / "out", expected_shapes)
    for component in TABLES:
        check_tensors(half, tmp_path / "out", component)
    found = load_file(tmp_path / "out" / "unet.safetensors").values()
    assert {tensor.dtype for tensor in found} == {torch.float16}


def test_old_names_in_the_vae_and_a_buffer_in_the_text_tower(src, ours, tmp_path):
    path = weights(src, "vae")
    old = load_file(path)
    spelled = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in spelled.items():
        old = {n.replace(f".{new_name}.", f".{old_name}."): t for n, t in old.items()}
    assert "decoder.mid_block.attentions.0.query.weight" in old
    save_file(old, path)
    path = weights(src, "text_encoder")
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file({**load_file(path), **ids}, path)
    convert(src, tmp_path / "out", expected_shapes)
    assert files_of(tmp_path / "out") == files_of(ours)


def test_what_judges_pictures_is_left_out(src, ours, tmp_path):
    for name in ("safety_checker", "feature_extractor"):
        (src / name).mkdir()
        (src / name / "config.json").write_text("{")
    edit(src, "model_index.json", safety_checker=["stable_diffusion", "SafetyChecker"])
    convert(src, tmp_path / "out", expected_shapes)
    assert files_of(tmp_path / "out") == files_of(ours)


@pytest.mark.parametrize(
    "file, changes",
    [
        (UNET, {"act_fn": ..., "out_channels": ..., "up_block_types": ..., "freq_shift": ...}),
        (UNET, {"mid_block_scale_factor": 1.0, "class_embed_type": None, "sample_size": 32}),
        (UNET, {"use_linear_projection": False, "upcast_attention": False}),
        (SCHEDULER, {"timestep_spacing": "linspace", "steps_offset": 0}),
        (SCHEDULER, {"prediction_type": ..., "trained_betas": ...}),
    ],
)
def test_a_config_that_means_the_same(src, ours, tmp_path, file, changes):
    edit(src, file, **changes)
    convert(src, tmp_path / "out", expected_shapes)
    assert files_of(tmp_path / "out") == files_of(ours)


@pytest.mark.parametrize(
    "file, changes, message",
    [
        (UNET, {"_class_name": "I2VGenXLUNet"}, "_class_name is 'I2VGenXLUNet'"),
        (UNET, {"use_linear_projection": True}, "this is Stable Diffusion 2; only Stable Diff"),
        (UNET, {"addition_embed_type": "text_time"}, "this is SDXL"),
        (UNET, {"in_channels": 9}, "in_channels is 9; this is an inpainting model"),
        (UNET, {"in_channels": 7}, "in_channels is 7; only 4 or 8"),
        (UNET, {"out_channels": 8}, "out_channels is 8"),
        (UNET, {"attention_head_dim": [4, 4, 4, 4]}, "attention_head_dim is"),
        (UNET, {"attention_head_dim": 5}, "heads, 5, must divide each"),
        (UNET, {"norm_num_groups": 32}, "groups, 32, must divide each"),
        (UNET, {"up_block_types": ["UpBlock2D"] * 4}, "it must mirror down_block_types"),
        (UNET, {"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types is"),
        (UNET, {"cross_attention_dim": 768}, "hidden_size is 32; unet: cross_attention_dim is 768"),
        (UNET, {"cross_attention_dim": ...}, "unet: cross_attention_dim is 1280"),
        (UNET, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is"),
        (UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type is"),
        (UNET, {"transformer_layers_per_block": 2}, "transformer_layers_per_block is 2"),
        (UNET, {"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        (VAE, {"latent_channels": 16}, "latent_channels is 16"),
        (TEXT, {"architectures": ["CLIPTextModelWithProjection"]}, "architectures is"),
        (TEXT, {"vocab_size": 800}, "ids go up to 813; text_encoder: vocab_size is 800"),
        (SCHEDULER, {"_class_name": "DPMSolverSDEScheduler"}, "_class_name is 'DPM"),
        (SCHEDULER, {"prediction_type": "v_prediction"}, "prediction_type is 'v_pred"),
        (SCHEDULER, {"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        (SCHEDULER, {"beta_end": ...}, "beta_end is 0.02 .the default"),
        (SCHEDULER, {"timestep_spacing": "trailing"}, "timestep_spacing is 'trailing'"),
        (SCHEDULER, {"timestep_spacing": "leading", "steps_offset": 0}, "steps_offset is 0"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        (SCHEDULER, {"_class_name": "DDIMScheduler"}, "set_alpha_to_one|thresholding|clip_sample"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "XLPipeline'; one of"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "one of I2VGenXL"),
        ("model_index.json", {"_class_name": ["x"]}, r"holds \['x'\]; one of I2VGenXLPipeline"),
    ],
)
def test_a_config_that_means_another_computation(src, file, changes, message):
    edit(src, file, **changes)
    if changes.get("_class_name") == "DDIMScheduler":
        edit(src, file, set_alpha_to_one=True)
    check_refused(src, message)


def test_weights_that_are_another_models(src):
    path = weights(src, "unet")
    tensors = load_file(path)
    save_file({**tensors, "add_embedding.linear_1.weight": torch.zeros(4, 4)}, path)
    check_refused(src, "unet.*is SDXL's UNet: it holds add_embedding.linear_1.weight")
    lora = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"
    save_file({lora: torch.zeros(4, 4)}, path)
    check_refused(src, "is a LoRA, not a whole model")
    less = {name: tensor for name, tensor in tensors.items() if name != "conv_out.bias"}
    save_file({**less, "conv_in.bias": torch.zeros(3)}, path)
    check_refused(src, r"missing: conv_out.bias \(4,\); misshapen: conv_in.bias is \(3,\)")


def test_a_folder_that_is_a_lora(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").touch()
    check_refused(folder, "is a LoRA, not a whole model")


def test_absent_fields_are_what_diffusers_takes_for_them():
    diffusers = pytest.importorskip("diffusers")
    unet = stable_diffusion.UNET_DEFAULTS | stable_diffusion.UNET_FIXED
    kinds = {name: getattr(diffusers, name) for name in stable_diffusion.SCHEDULERS}
    tables = [(diffusers.UNet2DConditionModel, unet)]
    tables += [
        (kind, stable_diffusion.SCHEDULER_DEFAULTS | stable_diffusion.SCHEDULERS[name])
        for name, kind in kinds.items()
    ]
    for kind, table in tables:
        given = inspect.signature(kind.__init__).parameters
        assert table.keys() <= given.keys()
        for name, value in table.items():
            default = given[name].default
            assert value == (list(default) if isinstance(default, tuple) else default), name


# the commands


@pytest.fixture
def run(capfd):
    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_convert_and_verify(run, theirs, tmp_path):
    status, out, err = run("convert", theirs, tmp_path / "out")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: ready for --editor-weights\n"
    status, out, err = run("weights", "verify", tmp_path / "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        f"{tmp_path / 'out'}: stable-diffusion with 8 channels in, which edits pictures"
    )
    assert lines[1].startswith("unet.safetensors: 686 tensors, 1,391,380 parameters, F32")
    assert len(lines) == 6


@pytest.mark.parametrize("changes", [{"heads": 7}, {"heads": 0}, {"widths": []}, {"more": 1}])
def test_verify_names_a_config_that_is_wrong(run, ours, tmp_path, changes):
    folder = Path(shutil.copytree(ours, tmp_path / "spoilt"))
    config = json.loads((folder / "config.json").read_text())
    config["unet"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    status, out, err = run("weights", "verify", folder)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and str(folder / "config.json") in err


def test_verify_finds_one_changed_bit(run, ours, tmp_path):
    folder = Path(shutil.copytree(ours, tmp_path / "spoilt"))
    data = bytearray((folder / "unet.safetensors").read_bytes())
    data[-2] ^= 1
    (folder / "unet.safetensors").write_bytes(data)
    status, _, err = run("weights", "verify", folder)
    assert status == 2 and "unet.safetensors: sha256" in err


@pytest.mark.parametrize("command", ["edit", "reconstruct", "invert", "plan"])
def test_it_makes_no_videos(run, ours, tmp_path, command):
    frame = tmp_path / "frame.png"
    Image.new("RGB", (64, 64)).save(frame)
    options = ["--frame", frame, "--prompt", "x"] if command == "edit" else []
    output = tmp_path / ("out.safetensors" if command == "invert" else "out.mp4")
    options += [] if command == "plan" else ["-o", output]
    status, out, err = run(command, __file__, "--weights", ours, *options)
    assert (status, out) == (2, "")
    assert err == (
        f"anyv2v: {ours / 'config.json'}: holds stable-diffusion, which edits pictures "
        "(--editor-weights); weights that make videos are needed\n"
    )
    with pytest.raises(InputError, match="which edits pictures"):
        anyv2v.load(ours)


@pytest.mark.slow
@pytest.mark.parametrize("channels_in", KINDS)
def test_full_size(channels_in, tmp_path):
    """2.1 GB of random halves in the published form, and as many converted."""
    theirs = sd_snapshot.write(tmp_path / "theirs", channels_in, "full", half=True)
    convert(theirs, tmp_path / "ours", expected_shapes)
    for component in TABLES:
        check_tensors(theirs, tmp_path / "ours", component)
    shutil.rmtree(theirs)
    device, dtype = torch.device("cpu"), torch.float16
    model = load(tmp_path / "ours", device, dtype, channels_in)
    counts = {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in ("unet", "vae", "text")
    }
    # of the published models
    unet = 859_520_964 + (channels_in - 4) * 320 * 9
    assert counts == {"unet": unet, "vae": 83_653_863, "text": 123_060_480}
    shutil.rmtree(tmp_path / "ours")
