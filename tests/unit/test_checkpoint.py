import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anyv2v.errors import InputError
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.folder import Part, check_target, clip_tokenizer, write_folder
from anyv2v.weights.manifest import difference
from anyv2v.weights.tensors import write
from anyv2v.weights.verify import verify
from tests.interpreter import WITH_TESTS

CONFIG = {"format": 1, "backbone": "i2vgen", "note": "made up"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.temporal = nn.Conv2d(6, 6, (3, 1))
        self.norm = nn.GroupNorm(2, 6)
        self.linear = nn.Linear(6, 5, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))


def net(seed=0) -> Net:
    torch.manual_seed(seed)
    made = Net()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def part(module: nn.Module, dtype=torch.float32) -> Part:
    """What is on meta is written as ones."""
    state = module.state_dict()
    layout = {name: (dtype, tuple(value.shape)) for name, value in state.items()}

    def read(name):
        value = state[name]
        return torch.ones(value.shape, dtype=dtype) if value.is_meta else value.to(dtype)

    return Part(layout, read)


def make(folder, config=CONFIG, dtype=torch.float32, vocab=None, **parts):
    parts = {"unet": net(0), "vae": net(1), "text": net(2), "vision": net(3), **parts}
    parts = {name: part(module, dtype) for name, module in parts.items()}
    write_folder(folder, config, clip_tokenizer(vocab or {"a": 0}, "#version: 0.2\n"), parts)
    return folder


def replace(folder, layout, values):
    """Put another unet.safetensors in place, with a manifest that fits."""
    path = folder / "unet.safetensors"
    path.unlink()
    write(path, layout, values.__getitem__)
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = manifest["files"]["unet.safetensors"]
    names = {torch.float32: "F32", torch.int32: "I32"}
    facts["bytes"] = path.stat().st_size
    facts["tensors"] = {name: [names[t], list(shape)] for name, (t, shape) in layout.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "weights")


def test_a_module_gets_its_weights(folder):
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.folder, checkpoint.config) == (folder, CONFIG)
    for component, seed in (("unet", 0), ("vision", 3)):
        loaded, wanted = checkpoint.load(component, Net), net(seed).state_dict()
        assert loaded.state_dict().keys() == wanted.keys()
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, wanted[name]), name
        assert not loaded.training and not loaded.norm.training
        assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("kept", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("used", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(tmp_path, kept, used):
    make(tmp_path / "w", dtype=kept)
    loaded = Checkpoint.open(tmp_path / "w").load("unet", Net, dtype=used)
    for name, wanted in net().state_dict().items():
        value = loaded.state_dict()[name]
        assert value.dtype == used
        assert torch.equal(value, wanted.to(kept).to(used)), name


def test_weights_of_convolutions_lie_channels_last(folder):
    loaded = Checkpoint.open(folder).load("unet", Net)
    for weight in (loaded.conv.weight, loaded.temporal.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert weight.stride(1) == 1
    assert loaded.linear.weight.is_contiguous()


def test_a_rebuilt_folder_has_the_same_fingerprint(folder, tmp_path):
    mine = Checkpoint.open(folder).fingerprint
    assert len(mine) == 64 and int(mine, 16)
    assert Checkpoint.open(make(tmp_path / "again")).fingerprint == mine
    others = [
        make(tmp_path / "weights2", unet=net(9)),
        make(tmp_path / "config2", config={**CONFIG, "note": "other"}),
        make(tmp_path / "dtype2", dtype=torch.float16),
        make(tmp_path / "vocab2", vocab={"b": 0}),
    ]
    found = {Checkpoint.open(other).fingerprint for other in others}
    assert len(found | {mine}) == 5


def test_missing_extra_and_misshapen_names_are_all_named(folder):
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 7)
            self.more = nn.Linear(1, 2, bias=False)
            del self.scale

    with pytest.raises(InputError) as refusal:
        Checkpoint.open(folder).load("unet", Other)
    assert str(refusal.value) == (
        f"{folder / 'unet.safetensors'}: does not fit the network: "
        "missing: linear.bias (7,), more.weight (2, 1); extra: scale (); "
        "misshapen: linear.weight is (5, 6), should be (7, 6)"
    )


def test_ten_names_of_a_kind_are_enough(folder):
    build = lambda: nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(12)])  # noqa: E731
    with pytest.raises(InputError, match=r"9.weight \(1, 1\) and 2 more; extra: .*scale"):
        Checkpoint.open(folder).load("unet", build)


def test_all_names_without_a_limit():
    found, wanted = {f"x{i}": (i,) for i in range(30)}, {f"y{i}": (i,) for i in range(30)}
    text = difference(found, wanted)
    assert all(f"{name} {shape}" in text for name, shape in {**found, **wanted}.items())
    assert difference(wanted, wanted) == ""


def test_a_temporal_convolution_of_five_dims_is_not_taken_for_one_of_four(folder):
    values = {**net().state_dict()}
    values["temporal.weight"] = values["temporal.weight"].unsqueeze(-1)
    layout = {name: (torch.float32, tuple(value.shape)) for name, value in values.items()}
    replace(folder, layout, values)
    with pytest.raises(InputError, match=r"temporal.weight is \(6, 6, 3, 1, 1\), should be"):
        Checkpoint.open(folder).load("unet", Net)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["conv.weight", "scale", "norm.bias"])
def test_values_that_are_not_finite(folder, name, bad):
    values = net().state_dict()
    values[name].view(-1)[-1] = bad
    layout = {n: (torch.float32, tuple(value.shape)) for n, value in values.items()}
    replace(folder, layout, values)
    with pytest.raises(InputError, match=f"unet.safetensors: {name} holds values that are not"):
        Checkpoint.open(folder).load("unet", Net)


def test_a_value_too_large_for_the_dtype(folder):
    values = net().state_dict()
    values["linear.weight"][2, 3] = -1e6
    replace(folder, {n: (torch.float32, tuple(v.shape)) for n, v in values.items()}, values)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(InputError, match="linear.weight holds 1e.06, too large for torch.float16"):
        checkpoint.load("unet", Net, dtype=torch.float16)
    assert checkpoint.load("unet", Net).linear.weight[2, 3] == -1e6


def test_whole_numbers_are_no_weights(folder):
    values = net().state_dict()
    values["norm.bias"] = torch.zeros(6, dtype=torch.int32)
    replace(folder, {n: (v.dtype, tuple(v.shape)) for n, v in values.items()}, values)
    with pytest.raises(InputError, match="norm.bias is I32, weights are floats"):
        Checkpoint.open(folder).load("unet", Net)


def test_a_file_that_is_not_what_the_manifest_says(folder):
    data = (folder / "unet.safetensors").read_bytes()
    (folder / "unet.safetensors").write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(InputError, match=r"is I32 .*, the manifest says \['F32'"):
        Checkpoint.open(folder).load("unet", Net)


def test_a_buffer_that_is_not_saved_is_a_mistake_of_the_module(folder):
    class Buffered(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(3), persistent=False)

    with pytest.raises(TypeError, match="table"):
        Checkpoint.open(folder).load("unet", Buffered)


def broken(folder, name):
    path = folder / name
    return {
        "gone": path.unlink,
        "cut off": lambda: path.write_bytes(path.read_bytes()[:-3]),
        "text": lambda: path.write_text("hello"),
        "list": lambda: path.write_text("[]"),
        "format 2": lambda: path.write_text('{"format": 2}'),
    }


@pytest.mark.parametrize(
    "name, how, message",
    [
        ("config.json", "gone", "has no config.json"),
        ("config.json", "text", "is not JSON"),
        ("config.json", "list", "holds list, not a JSON object"),
        ("config.json", "format 2", "config.json: format 2, this version reads 1"),
        ("manifest.json", "gone", "has no manifest.json"),
        ("manifest.json", "cut off", "is not JSON"),
        ("manifest.json", "format 2", "manifest.json: format 2"),
        ("unet.safetensors", "gone", "unet.safetensors: is missing"),
        ("vae.safetensors", "cut off", "vae.safetensors: has .* bytes, the manifest says"),
        ("tokenizer/merges.txt", "gone", "merges.txt: is missing"),
        ("tokenizer/vocab.json", "text", "vocab.json: has 5 bytes, the manifest says"),
    ],
)
def test_a_broken_folder_is_refused_when_it_is_opened(folder, name, how, message):
    broken(folder, name)[how]()
    with pytest.raises(InputError, match=message) as refusal:
        Checkpoint.open(folder)
    assert "\n" not in str(refusal.value)


def test_a_manifest_without_a_component(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["vae.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not name vae.safetensors"):
        Checkpoint.open(folder).load("vae", lambda: None)


def test_no_folder_of_weights(tmp_path, snapshot):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no such folder"):
        Checkpoint.open(tmp_path / "no")
    with pytest.raises(InputError, match="is a file, not a folder"):
        Checkpoint.open(tmp_path / "file")
    with pytest.raises(InputError, match="anyv2v convert"):
        Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match="is a Hugging Face folder; convert it first"):
        Checkpoint.open(snapshot)


def test_verify_looks_at_the_bytes(folder):
    verify(folder)
    path = folder / "text.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert Checkpoint.open(folder)
    with pytest.raises(InputError, match="text.safetensors: sha256"):
        verify(folder)


FILES = ["text", "unet", "vae", "vision"]
FILES = [*(f"{name}.safetensors" for name in FILES), "tokenizer/vocab.json", "tokenizer/merges.txt"]


@pytest.mark.parametrize("place", [0, 0.5, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_of_any_file_is_found(folder, name, place):
    path = folder / name
    data = bytearray(path.read_bytes())
    at = place if place in (0, -1) else len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=str(path)):
        verify(folder)
    data[at] ^= 1
    path.write_bytes(data)
    verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_another_sum_in_the_manifest_is_found(folder, name):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    real = manifest["files"][name]["sha256"]
    manifest["files"][name]["sha256"] = real[:-1] + ("0" if real[-1] != "0" else "1")
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"{folder / name}: sha256 {real}, manifest: "):
        verify(folder)


def test_the_manifest_is_true_of_every_file(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(files) == sorted(FILES)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == {*FILES, "config.json", "manifest.json"}
    for name, facts in files.items():
        data = (folder / name).read_bytes()
        assert facts["bytes"] == len(data)
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_folder_needs_its_bytes_and_eight_megabytes_for_the_rest(tmp_path, monkeypatch):
    """Headers, configs and a vocabulary: of all together nobody knows before they are written."""
    parts = {"unet": part(net())}
    tensors = sum(parameter.nbytes for parameter in net().parameters())
    for free, enough in ((tensors + 8 * 2**20, True), (tensors + 8 * 2**20 - 1, False), (0, False)):
        asked = []
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda p, u=usage, a=asked: a.append(p) or u)
        target = tmp_path / f"of {free}"
        if enough:
            write_folder(target, CONFIG, clip_tokenizer({"a": 0}, ""), parts)
        else:
            told = "0.01 GB are free" if free else "0 bytes are free"
            with pytest.raises(InputError, match=f"{tmp_path}: 0.01 GB are needed, {told}"):
                write_folder(target, CONFIG, clip_tokenizer({"a": 0}, ""), parts)
        assert asked == [tmp_path] and target.exists() == enough


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_name(
    folder, monkeypatch, error
):
    rename, before = Path.rename, (folder / "manifest.json").read_bytes()

    def stops(self, target):
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stops)
    kind = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind):
        write_folder(
            folder, CONFIG, clip_tokenizer({"b": 0}, ""), {"unet": part(net(7))}, force=True
        )
    monkeypatch.undo()
    assert os.listdir(folder.parent) == [folder.name]
    assert (folder / "manifest.json").read_bytes() == before
    verify(folder)
    write_folder(folder, CONFIG, clip_tokenizer({"b": 0}, ""), {"unet": part(net(7))}, force=True)
    assert (folder / "manifest.json").read_bytes() != before
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_somebody_made_meanwhile(tmp_path, force):
    """It is what `force` says that counts, at the end as at the beginning."""
    target, parts = tmp_path / "w", {"unet": part(net())}

    def meanwhile(done, total):
        if not target.exists():
            make(target)

    if force:
        write_folder(
            target, CONFIG, clip_tokenizer({"a": 0}, ""), parts, force=True, progress=meanwhile
        )
    else:
        with pytest.raises(InputError, match="somebody else has made it meanwhile"):
            write_folder(target, CONFIG, clip_tokenizer({"a": 0}, ""), parts, progress=meanwhile)
        verify(target)
    assert os.listdir(tmp_path) == ["w"]
    assert (target / "vae.safetensors").exists() != force


def test_progress_is_of_the_bytes_of_all_tensors(tmp_path):
    parts = {"unet": part(net()), "vae": part(net(), torch.float16)}
    seen = []
    write_folder(
        tmp_path / "w",
        CONFIG,
        clip_tokenizer({"a": 0}, ""),
        parts,
        False,
        lambda *at: seen.append(at),
    )
    single = sum(parameter.nbytes for parameter in net().parameters())
    assert {total for _, total in seen} == {single * 3 // 2}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == single * 3 // 2 and len(seen) == 2 * len(net().state_dict())


LOAD = """
import sys, torch
from torch import nn
from anyv2v.weights.checkpoint import Checkpoint
from tests.unit.test_checkpoint import SIZES, peak_mb
torch.set_num_threads(1)
before = peak_mb()
folder, dtype, size = sys.argv[1:]
module = Checkpoint.open(folder).load("unet", SIZES[size], dtype=getattr(torch, dtype))
print(peak_mb() - before, sum(p.nbytes for p in module.parameters()) / 2**20)
"""


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def mixed() -> nn.Module:
    """72 million parameters in the sizes that a UNet mixes."""
    sizes = (320, 640, 640, 1280)
    return nn.ModuleList(
        layer
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        for layer in (
            *(nn.Conv2d(a, b, 3), nn.GroupNorm(8, b), nn.Conv2d(b, b, (3, 1)), nn.Linear(b, 8 * b)),
            *(nn.Conv2d(b, b, 3), nn.Linear(4 * b, b)),
        )
    )


def deep() -> nn.Module:
    """A text tower of 12 layers: many weights of 1 and 4 million, and small ones between."""
    layers = [nn.Embedding(49408, 1024), nn.Embedding(77, 1024)]
    for _ in range(12):
        layers += [nn.Linear(1024, 1024) for _ in range(4)]
        layers += [nn.LayerNorm(1024), nn.LayerNorm(1024)]
        layers += [nn.Linear(1024, 4096), nn.Linear(4096, 1024)]
    return nn.ModuleList(layers)


SIZES = {"mixed": mixed, "deep": deep}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
@pytest.mark.parametrize(
    "kept, used, size",
    [
        ("float16", "float32", "mixed"),
        ("float32", "float32", "mixed"),
        ("float16", "float16", "deep"),
    ],
)
def test_loading_takes_no_second_copy(tmp_path, kept, used, size):
    with torch.device("meta"):
        module = SIZES[size]()
    make(tmp_path / "w", dtype=getattr(torch, kept), unet=module)
    run = subprocess.run(
        [sys.executable, "-c", WITH_TESTS + LOAD, str(tmp_path / "w"), used, size],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    added, weights = map(float, run.stdout.split())
    print(f"{size}, {kept} -> {used}: {added:.0f} MB for {weights:.0f} MB")
    assert weights > 200
    # one piece of 4 MB, and what torch loads when it first computes
    assert weights * 0.9 < added < 1.15 * weights


OTHERS = {"format": 1, "backbone": "other", "components": ["transformer", "t5", "vae"]}


def make_others(folder, config=OTHERS):
    parts = {n: part(net(i)) for i, n in enumerate(config["components"])}
    write_folder(folder, config, {}, parts)
    return folder


def test_a_config_may_name_components_of_its_own(tmp_path):
    folder = make_others(tmp_path / "w")
    assert [c.file for c in verify(folder).components] == [
        f"{name}.safetensors" for name in OTHERS["components"]
    ]
    loaded = Checkpoint.open(folder).load("t5", Net)
    assert torch.equal(loaded.conv.weight, net(1).conv.weight)
    # and may be replaced, for nothing in there is anybody else's
    check_target(folder, force=True)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"also holds notes\.txt"):
        check_target(folder, force=True)


@pytest.mark.parametrize(
    "names", ["unet", [], ["unet", 5], ["../unet"], ["a/b"], ["unet", "unet"], ["x"] * 17, {"a": 1}]
)
def test_names_of_components_that_could_lead_elsewhere(tmp_path, names):
    folder = make_others(tmp_path / "w")
    (folder / "config.json").write_text(json.dumps(OTHERS | {"components": names}))
    with pytest.raises(InputError, match="config.json: components: ") as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


def test_how_an_edit_is_made_is_no_part_of_the_fingerprint(tmp_path):
    def fingerprint(name, **defaults):
        config = {**CONFIG, "defaults": {"size": [64, 64], "frames": 4, "fps": 8, **defaults}}
        return Checkpoint.open(make(tmp_path / name, config)).fingerprint

    first = fingerprint("a")
    assert fingerprint("b", steps=20, guidance={"text": 1.0}, injection={"conv": 1}) == first
    assert fingerprint("c", frames=5) != first


def test_a_network_may_be_read_each_time_it_is_needed(folder):
    module, read = Checkpoint.open(folder).load_later("text", Net, dtype=torch.float16)
    assert {x.untyped_storage().nbytes() for x in module.parameters()} == {2}
    assert all(x.isnan().all() for x in module.parameters())
    shapes = [x.shape for x in net(2).parameters()]
    assert [x.shape for x in module.parameters()] == shapes
    assert not any(x.is_meta or x.requires_grad for x in module.parameters())
    for _ in range(2):
        for tensor, wanted in zip(read(), net(2).parameters(), strict=True):
            assert torch.equal(tensor, wanted.half())
    (folder / "text.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="text.safetensors"):
        read()
    with pytest.raises(InputError, match="does not name t5"):
        Checkpoint.open(make(folder.parent / "again")).load_later("t5", Net)
