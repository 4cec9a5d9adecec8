"""Published folders of whole CLIPs become folders of ours, and both are loaded."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from anyv2v.cli.main import main
from anyv2v.clip.model import CLIPModel, size_name
from anyv2v.clip.vision import VisionConfig
from anyv2v.convert.formats import clip, open_clip, vgen, whole_clip
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename
from anyv2v.errors import InputError
from anyv2v.evaluation.clip_model import load
from anyv2v.loading import load as load_editor
from anyv2v.weights_folders import expected_shapes, inspect
from tests.oracles import clip_snapshot, snapshot

TEXTS = ["A robot is dancing", "", "a cat 🚀, isn't it?"]


@pytest.fixture(scope="module", params=["openai", "open_clip"])
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(preset, tmp_path_factory):
    return clip_snapshot.write(tmp_path_factory.mktemp("clip") / "published", preset)


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "ours"
    convert(theirs, folder, expected_shapes)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return clip_snapshot.write(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    return clip_snapshot.write_open_clip(tmp_path_factory.mktemp("clip") / "tiny")


def frames(count=2, height=40, width=56):
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def same(a: CLIPModel, b: CLIPModel) -> bool:
    """Whether two models give the same bits."""
    return torch.equal(a.encode_images(frames()), b.encode_images(frames())) and torch.equal(
        a.encode_text(TEXTS), b.encode_text(TEXTS)
    )


def edit_json(folder: Path, name: str, **changes) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_converted_folder_holds_every_tensor(ours, preset):
    sizes = clip_snapshot.PRESETS[preset]
    vocab_size = 512 + sizes["merges"] + 2
    published = clip_snapshot.tensors(sizes, vocab_size, seed=0)
    text, vision = load_file(ours / "text.safetensors"), load_file(ours / "vision.safetensors")
    assert len(text) + len(vision) == len(published)
    np.testing.assert_array_equal(text["projection.weight"], published["text_projection.weight"])
    np.testing.assert_array_equal(
        vision["projection.weight"], published["visual_projection.weight"]
    )
    assert text["logit_scale"] == np.float32(clip_snapshot.LOGIT_SCALE)
    name = "encoder.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(text["layers.1.self.k.weight"], published[f"text_model.{name}"])


def test_a_published_folder_loads_as_the_converted_one(theirs, ours):
    converted, direct = load(ours, "cpu"), load(theirs, "cpu")
    assert same(converted, direct)
    assert converted.fingerprint == direct.fingerprint
    assert converted.fingerprint == inspect(ours).checkpoint.fingerprint
    assert converted.name == direct.name
    assert converted.logit_scale == pytest.approx(np.exp(clip_snapshot.LOGIT_SCALE))


def test_embeddings_are_unit_vectors_in_float32(ours, preset):
    length = clip_snapshot.PRESETS[preset]["projection"]
    for dtype in (torch.float32, torch.bfloat16):
        model = load(ours, "cpu", dtype)
        assert model.dtype == dtype
        for made in (model.encode_images(frames(3)), model.encode_text(TEXTS)):
            assert made.shape == (3, length) and made.dtype == torch.float32
            torch.testing.assert_close(made.norm(dim=1), torch.ones(3))


def test_many_are_encoded_in_batches_as_one_by_one(ours):
    model = load(ours, "cpu")
    clip, texts = frames(18), [f"robot {i}" for i in range(18)]
    torch.testing.assert_close(
        model.encode_images(clip), torch.cat([model.encode_images(x[None]) for x in clip])
    )
    torch.testing.assert_close(
        model.encode_text(texts), torch.cat([model.encode_text([x]) for x in texts])
    )


def test_a_text_is_read_at_its_first_end_whatever_follows(ours):
    model = load(ours, "cpu")
    ids = model.tokenizer("a robot")
    end = model.tokenizer.end
    first = (ids[0] == end).nonzero()[0, 0]
    other = ids.clone()
    other[0, first + 1 :] = torch.arange(76 - first) % end
    assert torch.equal(model.text.embed(ids, end), model.text.embed(other, end))
    other[0, first - 1] = 5
    assert not torch.equal(model.text.embed(ids, end), model.text.embed(other, end))
    with pytest.raises(InputError, match=f"no end token, {end}"):
        model.text.embed(torch.zeros(1, 77, dtype=torch.int64), end)


def test_a_long_text_is_cut_and_that_is_logged(ours, caplog):
    model = load(ours, "cpu")
    # 75 words of one token, the start and the end fill all 77 places
    short, full = model.encode_text(["a " * 74]), model.encode_text(["a " * 75])
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        assert torch.equal(model.encode_text(["a " * 90]), full)
    assert "cut after 77 tokens" in caplog.text
    assert not torch.equal(short, full)


@pytest.mark.parametrize(("factor", "works"), [(1e-30, True), (1e30, True), (0, False)])
def test_embeddings_of_any_length_become_unit_vectors(ours, factor, works):
    model = load(ours, "cpu")
    before = model.encode_images(frames())
    model.vision.projection.weight.mul_(factor)
    if works:
        torch.testing.assert_close(model.encode_images(frames()), before)
        return
    with pytest.raises(InputError, match="zero or not finite, computed in torch.float32"):
        model.encode_images(frames())


def test_what_is_no_list_of_texts_is_refused(ours):
    model = load(ours, "cpu")
    for wrong in ("a robot", []):
        with pytest.raises(InputError, match="a list of one text or more is needed"):
            model.encode_text(wrong)


def test_a_pickle_of_an_older_version_gives_the_same(tiny, tmp_path):
    old = clip_snapshot.write(tmp_path / "tiny", form="bin")
    config = json.loads((old / "config.json").read_text())
    # where both are given the second counts; and nobody reads their classes
    changes = {
        f"{x}_config_dict": config[f"{x}_config"] | {"architectures": ["Any"]}
        for x in ("text", "vision")
    }
    changes |= {f"{x}_config": {"hidden_size": 7} for x in ("text", "vision")}
    edit_json(old, "config.json", **changes)
    assert load(old, "cpu").fingerprint == load(tiny, "cpu").fingerprint


def test_open_clip_s_tensors_become_those_of_transformers(tiny_open_clip, tmp_path):
    convert(tiny_open_clip, tmp_path / "out", expected_shapes)
    right = clip_snapshot.tensors(clip_snapshot.PRESETS["open_clip"], 49408, seed=0)
    for component, table in (("text", whole_clip.TEXT), ("vision", clip.VISION)):
        made = load_file(tmp_path / "out" / f"{component}.safetensors")
        for name, theirs in rename(made, table, to="theirs").items():
            np.testing.assert_array_equal(made[name], right.pop(theirs.name))
    assert not right


def test_the_activation_of_an_open_clip_is_read(tiny_open_clip):
    values = json.loads((tiny_open_clip / open_clip.CONFIG).read_text())
    for quick, activation in ((True, "quick_gelu"), (False, "gelu")):
        values["model_cfg"]["quick_gelu"] = quick
        ours = open_clip.translate("x", values)
        assert ours["text"]["activation"] == ours["vision"]["activation"] == activation


@pytest.mark.slow
def test_both_forms_of_a_model_give_the_same(preset, tmp_path):
    """The same weights with CLIP's whole vocabulary, once as each library publishes them."""
    sizes = clip_snapshot.PRESETS[preset]
    published = clip_snapshot.write_open_clip(tmp_path / "a", preset, form="safetensors")
    vocab, merges = open_clip.bpe.tokenizer()
    other = tmp_path / "b"
    other.mkdir()
    (other / "vocab.json").write_text(json.dumps(vocab))
    (other / "merges.txt").write_text(merges)
    snapshot.write_json(other / "config.json", clip_snapshot.config(sizes, vocab))
    clip_snapshot._write_preprocessor(other, sizes)
    save_file(clip_snapshot.tensors(sizes, len(vocab), 0), other / "model.safetensors")
    one, two = load(published, "cpu"), load(other, "cpu")
    assert same(one, two)
    assert one.fingerprint == two.fingerprint


def test_of_two_forms_the_one_with_weights_is_read(tiny, tiny_open_clip, tmp_path):
    both = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    shutil.copytree(tiny_open_clip, both, dirs_exist_ok=True)

    def file_read() -> str:
        return whole_clip.read(both, None).networks["vision"].weights.origin.name

    assert file_read() == "model.safetensors"
    (both / "model.safetensors").unlink()
    assert file_read() == "open_clip_pytorch_model.bin"
    (both / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match="holds no weights: neither model.safetensors nor"):
        file_read()


def test_an_image_encoder_without_texts_scores_images(weights):
    """A folder of I2VGen-XL has CLIP's image encoder."""
    model = load(weights, "cpu")
    assert model.name == "ViT-32x2/8@32 i2vgen"
    assert model.encode_images(frames()).shape == (2, 32)
    with pytest.raises(InputError, match="i2vgen has no text encoder with a projection"):
        model.encode_text(["a robot"])


def test_a_folder_without_an_image_encoder_is_refused(seine_weights, tmp_path):
    with pytest.raises(InputError, match="holds seine, without CLIP's image encoder"):
        load(seine_weights, "cpu")
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "none", "cpu")


SIZE_NAMES = {
    (768, 12, 32, 224): "ViT-B/32",
    (768, 12, 16, 224): "ViT-B/16",
    (1024, 24, 14, 224): "ViT-L/14",
    (1024, 24, 14, 336): "ViT-L/14@336",
    (1280, 32, 14, 224): "ViT-H/14",
    (1664, 48, 14, 224): "ViT-bigG/14",
    (1024, 12, 14, 224): "ViT-1024x12/14",
}


@pytest.mark.parametrize(("sizes", "name"), SIZE_NAMES.items(), ids=SIZE_NAMES.values())
def test_a_model_is_named_by_its_sizes(sizes, name):
    width, layers, patch, image = sizes
    config = VisionConfig(image, patch, width, 16, layers, 4 * width, "gelu", 1e-5, 512)
    assert size_name(config) == name


ORIGINS = {
    "clip-vit-base-patch32": "openai",
    "clip-vit-large-patch14-336": "openai",
    "CLIP-ViT-H-14-laion2B-s32B-b79K": "laion2B-s32B-b79K",
    "CLIP-ViT-B-32-256x256-DataComp-s34B-b86K": "256x256-DataComp-s34B-b86K",
    "models--openai--clip-vit-base-patch16/snapshots/3b5c": "openai",
    "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/0": "laion2B-s34B-b79K",
    "my own": "my-own",
}


@pytest.mark.parametrize(("path", "origin"), ORIGINS.items())
def test_the_origin_is_what_the_folder_is_called(tmp_path, path, origin):
    assert whole_clip.origin(tmp_path / path, {}) == origin


def test_the_origin_may_be_the_name_in_the_config(tmp_path):
    named = {"_name_or_path": "openai/clip-vit-base-patch32/"}
    assert whole_clip.origin(tmp_path / "b32", named) == "openai"
    assert whole_clip.origin(tmp_path / "b32", {"_name_or_path": "somebody/b32-new"}) == "b32"
    assert whole_clip.origin(tmp_path / "b32", {"_name_or_path": None}) == "b32"
    assert len(whole_clip.origin(tmp_path / ("x" * 200), {})) == whole_clip.LONGEST_ORIGIN


def test_the_origin_is_no_part_of_the_fingerprint(tiny, tmp_path):
    other = Path(shutil.copytree(tiny, tmp_path / "clip-vit-base-patch32"))
    one, two = load(tiny, "cpu"), load(other, "cpu")
    assert (one.name, two.name) == ("ViT-48x2/8@32 tiny", "ViT-48x2/8@32 openai")
    assert one.fingerprint == two.fingerprint


def test_a_name_stays_on_one_short_line(tiny, tmp_path):
    convert(tiny, tmp_path / "ours", expected_shapes)
    edit_json(tmp_path / "ours", "config.json", origin="a\nb\t" + "x" * 500)
    name = load(tmp_path / "ours", "cpu").name
    assert name.startswith("ViT-48x2/8@32 a b xxx") and len(name) < 80


def test_sections_that_do_not_match_are_refused(tiny, tmp_path):
    convert(tiny, tmp_path / "ours", expected_shapes)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    edit_json(tmp_path / "ours", "config.json", preprocess=config["preprocess"] | {"size": 33})
    for read in (load, inspect):
        with pytest.raises(InputError, match="size 33 is not vision: image_size 32"):
            read(tmp_path / "ours")


def test_convert_and_verify_by_command(tiny, tmp_path, capfd):
    assert main(["convert", str(tiny), str(tmp_path / "out"), "--dtype", "float16"]) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'out'}: ready for --clip\n", "")
    assert main(["weights", "verify", str(tmp_path / "out")]) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.splitlines()[0].endswith("out: CLIP, origin tiny, which scores clips")
    assert "text.safetensors: 54 tensors" in out and "F16" in out
    with pytest.raises(InputError, match="holds clip, which scores clips"):
        load_editor(tmp_path / "out")


WRONG_CONFIGS = {
    "one encoder": (
        "config.json",
        {"architectures": ["CLIPVisionModelWithProjection"]},
        "only ['CLIPModel'], a whole CLIP, is supported",
    ),
    "no object": ("config.json", {"text_config": [1]}, "text_config is [1], not a JSON object"),
    "activation": (
        "config.json",
        {"vision_config_dict": {"hidden_act": "relu"}},
        "hidden_act is 'relu'; only 'gelu' or 'quick_gelu' is supported",
    ),
    "projection": ("config.json", {"projection_dim": 0}, "projection_dim is 0"),
    "other projection": ("config.json", {"projection_dim": 23}, "text_projection.weight is (24"),
    "filter": ("preprocessor_config.json", {"resample": 2}, "resample is 2; only 3 is supported"),
    "no crop": ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop is False"),
    "scale": (
        "preprocessor_config.json",
        {"size": {"shortest_edge": 36}},
        "it must be crop_size, 32",
    ),
    "image size": (
        "preprocessor_config.json",
        {"size": 36, "crop_size": 36},
        "crop_size is 36; image_size is 32",
    ),
    "other tokens": ("tokenizer_config.json", {"model_max_length": 64}, "model_max_length is 64"),
}


@pytest.mark.parametrize(("name", "changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_what_is_not_implemented_is_refused(tiny, tmp_path, name, changes, message):
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    edit_json(folder, name, **changes)
    with pytest.raises(InputError, match=re.escape(message)):
        load(folder, "cpu")


def test_the_end_of_a_text_must_be_the_tokenizer_s(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for end, works in ((813, True), (812, False), (True, False)):
        edit_json(folder, "config.json", text_config=text | {"eos_token_id": end})
        if works:
            assert load(folder, "cpu").tokenizer.end == end
            continue
        with pytest.raises(InputError, match=f"eos_token_id is {end}; only 813 is supported"):
            load(folder, "cpu")


def test_an_old_end_of_a_text_is_the_greatest_id(tiny, tmp_path):
    """With the wrong id of old configs, transformers would read this text at its start."""
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    vocab = json.loads((folder / "vocab.json").read_text())
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocab[start], vocab[end] = vocab[end], vocab[start]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match="eos_token_id is 2; only 812 is supported"):
        load(folder, "cpu")


def test_a_processor_of_a_newer_version_is_read(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    path = folder / "preprocessor_config.json"
    inner = json.loads(path.read_text())
    path.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert load(folder, "cpu").fingerprint == load(tiny, "cpu").fingerprint
    edit_json(folder, "processor_config.json", image_processor=3)
    with pytest.raises(InputError, match="image_processor is 3, not a JSON object"):
        load(folder, "cpu")


WRONG_OPEN_CLIPS = {
    "timm": ("vision_cfg", {"timm_model_name": "vit"}, "only None is supported"),
    "pooling": ("vision_cfg", {"pool_type": "avg"}, "pool_type is 'avg'; only 'tok' is supported"),
    "unknown": ("vision_cfg", {"new": 1}, "new is 1; no such field of an OpenCLIP is known"),
    "heads": ("vision_cfg", {"head_width": 7}, "head_width is 7; it must divide width, 40"),
    "sigmoid": ("text_cfg", {"no_causal_mask": True}, "no_causal_mask is True"),
    "short": ("text_cfg", {"context_length": 64}, "context_length is 64; only 77 is supported"),
    "vocabulary": ("text_cfg", {"vocab_size": 64000}, "CLIP's tokenizer has 49408 tokens"),
    "bias": (None, {"init_logit_bias": -10}, "init_logit_bias is -10; only None is supported"),
    "custom": (None, {"custom_text": True}, "custom_text is True; only False is supported"),
    "other width": (
        "text_cfg",
        {"width": 48},
        "positional_embedding is (77, 24), should be (77, 48)",
    ),
}


@pytest.mark.parametrize(
    ("section", "changes", "message"), WRONG_OPEN_CLIPS.values(), ids=WRONG_OPEN_CLIPS
)
def test_what_is_not_implemented_of_open_clip_is_refused(
    tiny_open_clip, tmp_path, section, changes, message
):
    for path in tiny_open_clip.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tiny_open_clip / open_clip.CONFIG).read_text())
    inner = config["model_cfg"] if section is None else config["model_cfg"][section]
    inner |= changes
    (tmp_path / open_clip.CONFIG).unlink()
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, "cpu")


def test_open_clip_s_preprocessing_is_read(tiny_open_clip):
    values = json.loads((tiny_open_clip / open_clip.CONFIG).read_text())
    values["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert open_clip.translate("x", values)["preprocess"] == {
        "size": 42,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    del values["preprocess_cfg"]
    assert open_clip.translate("x", values)["preprocess"]["mean"] == snapshot.OPENAI_MEAN
    values["preprocess_cfg"] = {"resize_mode": "squash"}
    with pytest.raises(InputError, match="resize_mode is 'squash'; only 'shortest'"):
        open_clip.translate("x", values)


# open_clip_config.json of two repositories of laion: sizes of the image encoder, then of the text's
SIZES_OF_H = {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14, "image_size": 224}
SIZES_OF_BIG_G = {"layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231}
SIZES_OF_BIG_G |= {"patch_size": 14, "image_size": 224}


def sizes_of_open_clip(embed_dim, vision, **text):
    text |= {"context_length": 77, "vocab_size": 49408}
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    return open_clip.translate("x", {"model_cfg": model})


def test_the_sizes_of_vit_h_14_are_those_of_i2vgen_xl_s_encoders():
    ours = sizes_of_open_clip(1024, SIZES_OF_H, width=1024, heads=16, layers=24)
    assert ours == {name: vgen.CONFIG[name] for name in ours}
    assert set(ours) == {"text", "vision", "tokenizer", "preprocess"}


def test_the_sizes_of_vit_big_g_14_are_those_of_transformers():
    """As the config.json of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k has them."""
    ours = sizes_of_open_clip(1280, SIZES_OF_BIG_G, width=1280, heads=20, layers=32)
    assert (ours["vision"]["heads"], ours["vision"]["mlp_width"]) == (16, 8192)
    assert (ours["text"]["heads"], ours["text"]["mlp_width"]) == (20, 5120)
    assert ours["vision"]["projection_width"] == 1280


def test_a_folder_of_i2vgen_xl_s_release_is_no_clip(tmp_path):
    """It holds OpenCLIP's file of weights, and may hold its config too."""
    (tmp_path / open_clip.CONFIG).write_text("{}")
    (tmp_path / "i2vgen_xl_00854500.pth").touch()
    with pytest.raises(InputError, match="has no v2-1_512-ema-pruned.ckpt, open_clip_pytorch_mod"):
        convert(tmp_path, tmp_path.parent / "out", expected_shapes)
