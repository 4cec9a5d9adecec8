"""The original release's files: names, contents, and what is refused in them."""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.convert import bpe, files
from anyv2v.convert.formats import huggingface, vgen, vgen_names
from anyv2v.convert.model import write_model
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.errors import InputError
from anyv2v.loading import expected_shapes
from tests.interpreter import WITH_TESTS
from tests.oracles import original as release
from tests.oracles import snapshot as hf

ROOT = Path(__file__).parents[2]
FILE = {"unet": "unet", "vae": "vae", "text": "clip", "vision": "clip"}


def released(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one of the released files."""
    shapes = json.loads((ROOT / "tests" / "goldens" / "original" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def parts(names) -> list[str]:
    """With what holds query, key and value as three."""
    return [
        new
        for name in names
        for new in ([f"{name}[{p}]" for p in "qkv"] if name.endswith(vgen_names.FUSED) else [name])
    ]


def needed(component: str) -> list[str]:
    return [n for n in parts(released(FILE[component])) if vgen._is_needed(component)(n)]


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """One random model in both published forms."""
    folder = tmp_path_factory.mktemp("published")
    release.write_huggingface(folder / "huggingface", "tiny")
    release.write_original(folder / "original", folder / "huggingface")
    return folder


@pytest.fixture
def src(both, tmp_path):
    """The original form, to be spoilt: its files are links."""
    folder = tmp_path / "src"
    folder.mkdir()
    for name in release.FILES:
        (folder / name).symlink_to(both / "original" / name)
    return folder


@pytest.fixture(scope="session")
def config(both):
    return huggingface.read(both / "huggingface", None).config


def state_of(src: Path, name: str) -> dict:
    return torch.load(src / name, weights_only=True)


def put(src: Path, name: str, state) -> None:
    (src / name).unlink()
    torch.save(state, src / name)


def write(src: Path, dst: Path, config: dict, dtype=None) -> None:
    model = vgen.read(src, config=config)
    write_model(model, dst, expected_shapes(config), dtype, False, None)


def refused(src: Path, config: dict) -> str:
    with pytest.raises(InputError) as refusal:
        write(src, src.parent / "out", config)
    assert "\n" not in str(refusal.value)
    assert not (src.parent / "out").exists()
    return str(refusal.value)


# names


@pytest.mark.parametrize("component", vgen.TABLES)
def test_every_released_name_goes_there_and_back_and_every_rule_is_used(component):
    _, table = vgen.TABLES[component]
    names = needed(component)
    ours = {name: new.name for name, new in rename(names, table).items()}
    assert set(ours.values()) == expected_shapes(vgen.CONFIG)[component].keys()
    back = rename(ours.values(), table, "theirs")
    assert {new: old.name for new, old in back.items()} == {v: k for k, v in ours.items()}
    assert unused_rules(names, table) == []
    assert unused_rules(ours.values(), table, "theirs") == []


@pytest.mark.parametrize("component", vgen.TABLES)
def test_every_released_shape_is_what_the_network_wants(component):
    shapes = {}
    for name, shape in released(FILE[component]).items():
        for part in parts([name]):
            shapes[part] = (shape[0] // 3, *shape[1:]) if part != name else shape
    wanted = expected_shapes(vgen.CONFIG)[component]
    for ours, new in rename(wanted, vgen.TABLES[component][1], "theirs").items():
        assert new.their_shape(wanted[ours]) == shapes[new.name], ours


def test_the_writer_of_the_tests_writes_the_released_names_and_shapes():
    shapes = hf.component_shapes(hf.PRESETS["full"], vocab_size=49408)
    with torch.device("meta"):
        tensors = {c: {n: torch.empty(s) for n, s in of.items()} for c, of in shapes.items()}
        unet = release.renamed(tensors["unet"], release.unet_name)
        vae = release.renamed(tensors["vae"], release.vae_name)
        towers = release.renamed(
            {**tensors["text_encoder"], **tensors["image_encoder"]}, release.clip_name
        )
    for name, state in (("unet", unet), ("vae", vae), ("clip", towers)):
        wanted = released(name)
        for extra in vgen_names.PROJECTION if name == "clip" else ():
            del wanted[extra]
        assert {n: tuple(t.shape) for n, t in state.items()} == wanted


def test_what_is_left_is_left_knowingly():
    """Every pattern for the CLIP file matches something of it, and no needed tensor."""
    names = released("clip")
    for component in ("text", "vision"):
        left = [n for n in names if not vgen._is_needed(component)(n)]
        for pattern in vgen_names.NOT_NEEDED[component]:
            assert any(vgen.fnmatchcase(n, pattern) for n in left), pattern
    assert not [n for n in released("vae") if not vgen._is_needed("vae")(n)]


# contents


def test_both_forms_give_the_same_bytes(both, config, tmp_path):
    convert(both / "huggingface", tmp_path / "a", expected_shapes)
    write(both / "original", tmp_path / "b", config)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 8
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_constant_config_is_that_of_the_published_folder(tmp_path):
    with torch.device("meta"):
        vocab, _ = bpe.tokenizer()
    for component, values in hf.component_configs(hf.PRESETS["full"], vocab).items():
        hf.write_json(tmp_path / component / "config.json", values)
    hf.write_json(tmp_path / "scheduler" / "scheduler_config.json", hf.SCHEDULER_CONFIG)
    images = {"crop_size": 224, "image_mean": hf.OPENAI_MEAN, "image_std": hf.OPENAI_STD}
    hf.write_json(tmp_path / "feature_extractor" / "preprocessor_config.json", images)
    assert huggingface.read_config(tmp_path, vocab) == vgen.CONFIG
    assert vgen.CONFIG["tokenizer"]["pad"] == hf.PRESETS["full"]["pad_token"]


def test_a_state_dict_alone_will_do(src, config, both, tmp_path):
    put(src, release.UNET, state_of(src, release.UNET)["state_dict"])
    write(src, tmp_path / "a", config)
    write(both / "original", tmp_path / "b", config)
    a, b = ((tmp_path / x / "unet.safetensors").read_bytes() for x in "ab")
    assert a == b


RAN = []


class ModelCheckpoint:
    """Pickled under the name of PyTorch Lightning's."""

    def __init__(self):
        RAN.append("callback")


def test_the_state_of_a_training_run_is_passed_over(src, config, both, tmp_path, monkeypatch):
    """The published autoencoder's file holds Lightning's callbacks and scalars of numpy 1."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for i in range(1, 4):
        module = ".".join(name.split(".")[:i])
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    sys.modules[name].ModelCheckpoint = ModelCheckpoint
    monkeypatch.setattr(ModelCheckpoint, "__module__", name)
    state = state_of(src, release.VAE)
    callbacks = {ModelCheckpoint: {"best_model_score": np.float64(0.5), "best": np.int64(3)}}
    put(src, release.VAE, {**state, "callbacks": callbacks, "epoch": 3, "optimizer_states": []})
    monkeypatch.delitem(sys.modules, name)
    with zipfile.ZipFile(src / release.VAE) as file:
        pickle = next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))
        entries = {n: file.read(n) for n in file.namelist()}
    assert b"numpy._core.multiarray" in pickle and b"ModelCheckpoint" in pickle
    with zipfile.ZipFile(src / release.VAE, "w") as file:
        for entry, data in entries.items():
            old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            file.writestr(entry, old if data == pickle else data)
    RAN.clear()
    write(src, tmp_path / "a", config)
    write(both / "original", tmp_path / "b", config)
    a, b = ((tmp_path / x / "vae.safetensors").read_bytes() for x in "ab")
    assert a == b and not RAN
    # what is inert in a checkpoint of training is nothing that weights may be
    put(src, release.VAE, {"state_dict": {**state["state_dict"], "betas": np.float64(1)}})
    assert "wants numpy._core" in refused(src, config)


def test_inert_is_not_for_hugging_face(tmp_path):
    torch.save({"a": np.dtype("f8")}, tmp_path / "model.bin")
    with pytest.raises(InputError, match="model.bin"):
        files.BinFile(tmp_path / "model.bin")


# the tokenizer

PROMPTS = [
    "",
    "darth vader walking",
    "A MAN  doing\texercises\n for the body & mind, 4k",
    "it's they'll I'VE don't!!! ...",
    "naïve café ÅNGSTRÖM ﬁn ½ ²",
    "a_b-c/d 12345 #hash @home 100% $5",
    "привет мир ελληνικά שלום",
    "<|endoftext|> in the middle",
    "supercalifragilisticexpialidocious " * 20,
    "x" * 300,
]


def test_the_tokenizer_is_transformers_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab, merges = bpe.tokenizer()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:-1]]
    ours = Tokenizer(vocab, pairs, TokenizerConfig(**vgen.CONFIG["tokenizer"]))
    for prompt in PROMPTS:
        wanted = theirs(prompt, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert ours(prompt)[0].tolist() == wanted, prompt


def test_the_vocabulary_is_clips():
    """Ids that are known from CLIP: "a photo of a cat" is 320 1125 539 320 2368."""
    vocab, merges = bpe.tokenizer()
    assert len(vocab) == 49408 and merges.count("\n") == 48895
    assert [vocab[f"{w}</w>"] for w in ("a", "photo", "of", "cat")] == [320, 1125, 539, 2368]
    assert (vocab["<|startoftext|>"], vocab["<|endoftext|>"], vocab["!"]) == (49406, 49407, 0)
    assert list(vocab)[:256] == hf.byte_symbols()
    assert merges.split("\n")[1:-1] == [" ".join(pair) for pair in release.clip_merges()]
    licence = (bpe.MERGES.parent / "README.md").read_text()
    assert "MIT" in licence and "OpenAI" in licence


# what is refused


@pytest.mark.parametrize("name", release.FILES)
def test_a_missing_file_is_named(src, config, name):
    (src / name).unlink()
    assert f"has no {name};" in refused(src, config)


def test_an_unknown_tensor_is_named(src, config):
    for name, key in (
        (release.VAE, "first_stage_model.loss.logvar"),
        (release.UNET, "ema.out.0.bias"),
        (release.CLIP, "visual.head.weight"),
    ):
        state = state_of(src, name)
        state.get("state_dict", state)[key] = torch.zeros(3)
        put(src, name, state)
        message = refused(src, config)
        assert f"{src / name}: extra: {key} (3,)" in message


def test_something_unknown_beside_the_weights(src, config):
    put(src, release.UNET, {**state_of(src, release.UNET), "secrets": 1})
    assert f"{src / release.UNET}: beside state_dict there is 'secrets'" in refused(src, config)


def test_fused_projections_that_cannot_be_split(src, config):
    state = state_of(src, release.CLIP)
    name = "transformer.resblocks.0.attn.in_proj_weight"
    state[name] = state[name][:-1].clone()
    put(src, release.CLIP, state)
    message = refused(src, config)
    assert f"missing: {name}[q] (32, 32)" in message and f"extra: {name} (95, 32)" in message


class Ours:
    def __init__(self):
        RAN.append("init")

    def __setstate__(self, state):
        RAN.append("setstate")


class Payload:
    def __reduce__(self):
        return os.system, ("touch evil",)


def zipped(path: Path, pickle: bytes) -> None:
    """A file as torch.save writes it, around a pickle of ours."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as file:
        entries = {n: file.read(n) for n in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, pickle if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("name", release.FILES)
@pytest.mark.parametrize(
    "pickle, message",
    [
        (Payload(), "wants (posix|nt|os).system; nothing was run"),
        ({"state_dict": {"a": Payload()}}, "wants (posix|nt|os).system; nothing was run"),
        (Ours(), r"wants \S*Ours; nothing was run"),
        ({"a": collections.Counter()}, "wants collections.Counter; nothing was run"),
        # tuples in tuples as a key, which would be hashed
        (b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.", "nests deeper than 50"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "nests deeper than 50"),
        (b"\x80\x02" + b"N0" * 5_000_000 + b".", "longer than 8388608 bytes"),
        (b"\x80\x02h\x07.", "its pickle is malformed"),
        (b"cos\nsystem\n(S'touch evil'\ntR.", "wants os.system; nothing was run"),
        (
            b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
            "wants builtins.bytearray",
        ),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "has STACK_GLOBAL"),
    ],
    ids=[
        "system",
        "nested",
        "ours",
        "counter",
        "tuples",
        "lists",
        "long",
        "memo",
        "raw",
        "memory",
        "protocol 4",
    ],
)
def test_a_pickle_that_wants_more_than_tensors(
    src, config, tmp_path, monkeypatch, name, pickle, message
):
    monkeypatch.chdir(tmp_path)
    RAN.clear()
    (src / name).unlink()
    if isinstance(pickle, bytes):
        zipped(src / name, pickle)
    else:
        torch.save(pickle, src / name)
    said = refused(src, config)
    assert said.startswith(f"{src / name}: ")
    assert re.search(message, said), said
    assert not (tmp_path / "evil").exists() and not RAN


# files of other models


def test_a_vae_of_16_channels(src, config):
    """Both names under which it is met: with the prefix of Stable Diffusion, and without."""
    for prefix in ("first_stage_model.", ""):
        state = {
            f"{prefix}encoder.conv_in.weight": torch.zeros(128, 3, 3, 3),
            f"{prefix}encoder.conv_out.weight": torch.zeros(32, 512, 3, 3),
            f"{prefix}decoder.conv_in.weight": torch.zeros(512, 16, 3, 3),
        }
        put(src, release.VAE, state)
        message = refused(src, config)
        assert f"{src / release.VAE}: is a VAE of 16 channels, as SD3 and Flux have: " in message
        found = f"{prefix}encoder.conv_out.weight"
        assert f"{found} is (32, 512, 3, 3), should be (8, 32, 3, 3)" in message or (
            f"holds {found} (32, 512, 3, 3); there should be first_stage_model." in message
        )


@pytest.mark.parametrize(
    "name, key, shape, what",
    [
        (
            release.UNET,
            "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight",
            (320,),
            "Stable Video Diffusion's UNet",
        ),
        (release.UNET, "model.diffusion_model.label_emb.0.0.weight", (1280, 2816), "SDXL's UNet"),
        (release.CLIP, "token_embedding.weight", (49408, 768), "CLIP ViT-L's text tower"),
        (release.CLIP, "visual.class_embedding", (1024,), "CLIP ViT-L's vision tower"),
        (
            release.UNET,
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            (4, 320),
            "a LoRA",
        ),
        (release.UNET, "unet.mid_block.attentions.0.to_q.lora_A.weight", (4, 320), "a LoRA"),
        (
            release.UNET,
            "mid_block.attentions.0.attn1.processor.to_q_lora.down.weight",
            (4, 1280),
            "a LoRA",
        ),
    ],
)
def test_another_model(src, config, name, key, shape, what):
    put(src, name, {key: torch.zeros(shape)})
    message = refused(src, config)
    assert f"{src / name}: is {what}" in message
    assert f"{key} {shape}" in message or f"{key} is {shape}" in message
    assert "there should be" in message or "should be (" in message


@pytest.mark.parametrize(
    "component, stem, key, shape, what",
    [
        (
            "vae",
            "diffusion_pytorch_model",
            "encoder.conv_out.weight",
            (32, 512, 3, 3),
            "a VAE of 16 channels",
        ),
        (
            "unet",
            "diffusion_pytorch_model",
            "down_blocks.0.resnets.0.spatial_res_block.conv1.weight",
            (320, 320, 3, 3),
            "Stable Video Diffusion's UNet",
        ),
        (
            "unet",
            "diffusion_pytorch_model",
            "add_embedding.linear_1.weight",
            (1280, 2816),
            "SDXL's UNet",
        ),
        (
            "text_encoder",
            "model",
            "text_model.embeddings.token_embedding.weight",
            (49408, 768),
            "CLIP ViT-L's text tower",
        ),
        (
            "image_encoder",
            "model",
            "vision_model.embeddings.class_embedding",
            (1024,),
            "CLIP ViT-L's vision tower",
        ),
        (
            "unet",
            "diffusion_pytorch_model",
            "down_blocks.0.attentions.0.to_k.lora.up.weight",
            (320, 4),
            "a LoRA",
        ),
    ],
)
def test_another_model_in_a_hugging_face_folder(
    snapshot, tmp_path, component, stem, key, shape, what
):
    folder = tmp_path / "src"
    (folder / component).mkdir(parents=True)
    for path in snapshot.iterdir():
        if path.name != component:
            (folder / path.name).symlink_to(path)
    (folder / component / "config.json").symlink_to(snapshot / component / "config.json")
    path = folder / component / f"{stem}.safetensors"
    save_file({key: torch.zeros(shape)}, path)
    with pytest.raises(InputError) as refusal:
        convert(folder, tmp_path / "out", expected_shapes)
    message = str(refusal.value)
    assert f"{path}: is {what}" in message and f"{key}" in message and f"{shape}" in message
    assert "\n" not in message and "should be" in message
    for text, reason in (
        ("<!DOCTYPE html>\n<html>access to this model is restricted</html>" * 9, "is text"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456789\n",
            "a Git LFS pointer, the file itself was not downloaded",
        ),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason) as refusal:
            convert(folder, tmp_path / "out", expected_shapes)
        assert str(path) in str(refusal.value)


def test_a_file_that_is_cut_off(src, config, both):
    for name in release.FILES:
        data = (both / "original" / name).read_bytes()
        (src / name).unlink()
        (src / name).write_bytes(data[: len(data) // 2])
        assert refused(src, config).startswith(f"{src / name}: cannot be read")
        (src / name).write_bytes(data)


# full size

CONVERT = """
import sys, time, torch
from anyv2v.convert.published import convert
from anyv2v.loading import expected_shapes
from tests.unit.test_convert import peak_mb
torch.set_num_threads(1)
before, began = peak_mb(), time.monotonic()
convert(sys.argv[1], sys.argv[2], expected_shapes, dtype=torch.float16)
print(peak_mb() - before, time.monotonic() - began)
"""


@pytest.fixture
def room(tmp_path):
    """A folder for 30 GB, which pytest would keep."""
    if shutil.disk_usage(tmp_path).free < 35e9:
        pytest.skip("30 GB of disk are needed")
    yield tmp_path
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


@pytest.mark.slow
def test_both_forms_of_a_model_of_full_size(room):
    """Writing them takes 10 GB of memory, and all of it minutes."""
    release.write_huggingface(room / "huggingface", "full")
    release.write_original(room / "original", room / "huggingface")
    for form in ("huggingface", "original"):
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                WITH_TESTS + CONVERT,
                str(room / form),
                str(room / f"from-{form}"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert run.returncode == 0, run.stderr
        added, seconds = map(float, run.stdout.split())
        print(f"{form}: {added:.0f} MB, mapped pages included, {seconds:.0f} s")
        assert added < 2.5 * 1024
    for name in ("config.json", "manifest.json"):
        # the manifest has the sha256 of everything else
        one, other = (room / f"from-{form}" / name for form in ("huggingface", "original"))
        assert one.read_bytes() == other.read_bytes()
