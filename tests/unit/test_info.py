"""`anyv2v info`: versions, machine, kernels, weights, caches, as a page and as JSON."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anyv2v
from anyv2v import loading
from anyv2v.cli import kernel_facts, machine
from anyv2v.cli.main import main
from anyv2v.convert.published import convert
from anyv2v.kernels import choose
from anyv2v.kernels.choose import USED, Implementation, observed
from anyv2v.kernels.explain import RUNS
from anyv2v.pipeline import cost
from anyv2v.runtime.accounting import fake_mode
from anyv2v.weights_folders import expected_shapes
from tests.oracles import adapter_snapshot

CPU = torch.device("cpu")


@pytest.fixture
def info(capfd, monkeypatch, tmp_path):
    """info(*words) -> status, the object that --json prints, stderr."""
    monkeypatch.setenv("ANYV2V_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def info(*words):
        status = main(["info", *map(str, words), "--json"])
        out, err = capfd.readouterr()
        return status, json.loads(out) if out else None, err

    return info


@pytest.fixture
def without_kernels(monkeypatch):
    """Leaves out what takes the time, which other tests are about."""
    monkeypatch.setattr(kernel_facts, "of_weights", lambda *_: {})


def test_what_is_told_is_what_is_there(info, without_kernels, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYV2V_GRAPHS", "0")
    monkeypatch.setenv("HF_TOKEN", "secret")
    status, found, err = info(weights)
    assert (status, err) == (0, "")
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert found["environment"]["ANYV2V_GRAPHS"] == "0" and "secret" not in str(found)
    held = found["weights"]
    for name, network in held["networks"].items():
        tensors = load_file(weights / name)
        assert network["parameters"] == sum(t.numel() for t in tensors.values())
        assert network["bytes"] == (weights / name).stat().st_size
    assert len(held["networks"]) == 4 and held["option"] == "--weights"
    known = loading.peek(weights)
    assert held["fingerprint"] == known.fingerprint
    assert held["defaults"]["frames"] == known.defaults.frames
    assert found["caches"]["converted"] == {
        "folder": str(tmp_path / "cache" / "weights"),
        "models": [],
    }


@pytest.mark.slow
def test_the_kernels_are_those_that_an_edit_uses(info, own, video):
    """What is told without computing anything is what runs."""
    USED.clear()
    own.edit(own.invert(video, steps=2), video.frames[0], "x", steps=2)
    used = {op: set(names) for op, names in USED.items()}
    _, found, _ = info("demo")
    told = {
        op: {name for name, verdicts in each["verdicts"].items() if RUNS in verdicts}
        for op, each in found["kernels"]["operations"].items()
    }
    assert used and used.items() <= told.items()


@pytest.fixture(scope="module")
def own():
    return loading.load("demo", device="cpu")


@pytest.fixture
def video(own):
    size, count = own.defaults.size, own.defaults.frames
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, size[1], size[0], 3), generator=generator)
    return anyv2v.Video(frames.to(torch.uint8).numpy(), own.defaults.fps)


def test_a_gpu_that_is_not_there():
    """The reasons change with the device: on a GPU in float16 no call declines for the device."""
    found = kernel_facts.of_i2vgen(torch.device("cuda"), torch.float16)
    reasons = [why for each in found.values() for v in each["verdicts"].values() for why in v]
    assert not [why for why in reasons if "CUDA device" in why]
    pytest.importorskip("triton")
    assert found["attention"]["verdicts"]["triton"][RUNS] > 0
    here = kernel_facts.of_i2vgen(CPU, torch.float32)
    assert all(RUNS not in each["verdicts"].get("triton", {}) for each in here.values())


def refusing(name, why):
    return Implementation(name, lambda x: x, lambda *_, **__: why)


def test_a_line_says_what_runs_and_why_nothing_better_does(monkeypatch):
    mixed = [
        ("a", [("fast", "cannot: too long"), ("slow", RUNS), ("last", "could as well")]),
        ("a", [("fast", RUNS), ("slow", "could as well"), ("last", "could as well")]),
        ("b", [("only", RUNS)]),
    ]
    facts = kernel_facts._facts(mixed)
    assert kernel_facts.as_text(facts) == [
        "a  fast (1 of 2), slow (1 of 2); fast cannot: too long",
        "b  only",
    ]
    monkeypatch.setenv("ANYV2V_A", "slow")
    line = kernel_facts.as_text(kernel_facts._facts(mixed))[0]
    assert line.startswith("a  slow, as ANYV2V_A says (without it fast (1 of 2)")


def test_calls_are_observed_inside_the_block_alone():
    table = refusing("no", "it never runs"), refusing("yes", None)
    x = torch.zeros(2)
    with observed() as outer:
        choose.choose("op", table, None, x)
        with observed() as inner:
            choose.choose("op", table, "yes", x, y=1)
    choose.choose("op", table, None, x)
    USED.pop("op")
    assert [call.options for call in outer] == [{}, {"y": 1}] and len(inner) == 1
    assert inner[0].args[0] is x


def test_a_skeleton_has_the_shapes_and_no_weights(own):
    skeleton, editor = loading.skeleton("demo", "cpu"), own
    theirs = editor.backbone.unet.state_dict()
    for name, x in skeleton.backbone.unet.state_dict().items():
        assert x.shape == theirs[name].shape
        assert x.untyped_storage().nbytes() <= 8, name
    # a copy for counting is laid out as loaded weights are
    with torch.device("meta"):
        copies = [each.backbone.meta_copy(torch.device("meta")) for each in (skeleton, editor)]
    one, other = (copy.unet.state_dict() for copy in copies)
    assert {n: x.stride() for n, x in one.items()} == {n: x.stride() for n, x in other.items()}


def test_the_page_fits_a_report(without_kernels, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ANYV2V_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANYV2V_WEIGHTS", str(tmp_path / "mine"))
    made = tmp_path / ".cache/anyv2v/weights/ali-vilab--i2vgen-xl" / f"{'a' * 40}-float16"
    made.mkdir(parents=True)
    (made / "manifest.json").write_bytes(b"x" * 10**7)
    os.symlink(made / "manifest.json", made / "link")
    assert main(["info", "demo"]) == 0
    out = capfd.readouterr().out
    lines = out.splitlines()
    # with a line for each of ten operations
    assert len(lines) <= 30
    # nobody's name is in it
    assert str(tmp_path) not in out
    assert "cache of converted models ~/.cache/anyv2v/weights: 1" in lines
    assert any(x.startswith(f"  ali-vilab/i2vgen-xl@{'a' * 12}, 0.01 GB, made ") for x in lines)
    assert "  ANYV2V_WEIGHTS=~/mine" in lines
    assert f"PyTorch {torch.__version__}" in lines[0]


def test_no_secret_of_the_environment_is_told(info, without_kernels, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://user:p/a@ss@host.example/hub")
    monkeypatch.setenv("ANYV2V_TOKEN", "pass")
    _, found, _ = info("demo")
    assert found["environment"]["HF_ENDPOINT"] == "https://host.example/hub"
    assert "ANYV2V_TOKEN" not in found["environment"] and "user" not in str(found["environment"])


def test_all_variables_of_the_package_are_known():
    named = set()
    for at, _, names in os.walk(Path(anyv2v.__file__).parent, followlinks=True):
        for name in names:
            if name.endswith(".py") and name != Path(machine.__file__).name:
                text = (Path(at) / name).read_text(encoding="utf-8")
                named |= set(re.findall("ANYV2V_[A-Z_]*[A-Z]", text))
    operations = kernel_facts.of_i2vgen(CPU, torch.float32)
    assert named | {f"ANYV2V_{op.upper()}" for op in operations} == set(machine.OWN)


def test_the_home_is_replaced_where_it_is_the_folder(info, without_kernels, monkeypatch):
    values = {
        "HF_HOME": ("/home/me/hf", "~/hf"),
        "HF_HUB_CACHE": ("/home/melissa/hub", "/home/melissa/hub"),
        "XDG_CACHE_HOME": ("/mnt/home/me/x", "/mnt/home/me/x"),
        "TRITON_CACHE_DIR": ("/home/me", "~"),
        "HF_ENDPOINT": ("file:///home/me/hub", "file://~/hub"),
    }
    for name, (value, _) in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/me")
    told = info("demo")[1]["environment"]
    assert {name: told[name] for name in values} == {n: after for n, (_, after) in values.items()}
    # no absolute path: it stays, also in numbers and names
    monkeypatch.setenv("HOME", "1")
    told = info("demo")[1]
    assert told["environment"]["HF_HOME"] == "/home/me/hf"
    assert told["versions"]["torch"] == torch.__version__


def test_what_is_no_text_is_told_as_text(without_kernels, capfdbinary, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", os.fsdecode(b"/x/\xff/\xc3\xa4"))
    text = "/x/\N{REPLACEMENT CHARACTER}/\N{LATIN SMALL LETTER A WITH DIAERESIS}"
    assert main(["info", "demo"]) == 0
    assert f"  HF_HUB_CACHE={text}\n" in capfdbinary.readouterr().out.decode("utf-8")
    assert main(["info", "demo", "--json"]) == 0
    found = json.loads(capfdbinary.readouterr().out.decode("ascii"))
    assert found["environment"]["HF_HUB_CACHE"] == text


def test_weights_of_other_kinds(info, tmp_path):
    source = adapter_snapshot.write_t2i_adapter(tmp_path / "published")
    convert(source, tmp_path / "adapter", expected_shapes)
    status, found, _ = info(tmp_path / "adapter")
    assert status == 0 and found["weights"]["model"] == "t2i-adapter"
    # of weights without a video model the kernels are those of I2VGen-XL
    assert found["kernels"]["of"].startswith("I2VGen-XL") and found["kernels"]["operations"]
    assert "defaults" not in found["weights"]


@pytest.mark.parametrize("folder", ["nowhere", "damaged"])
def test_no_folder_of_weights(info, folder, tmp_path):
    (tmp_path / "damaged").mkdir()
    status, found, err = info(tmp_path / folder)
    assert status == 2 and found is None and err.count("\n") == 1 and folder in err


@pytest.mark.slow
def test_without_anything_optional(tmp_path):
    missing = ("triton", "av", "huggingface_hub", "cv2", "diffusers", "transformers", "gradio")
    code = (
        f"import sys; sys.modules |= dict.fromkeys({missing})\n"
        "from anyv2v.cli.main import main; sys.exit(main(['info', 'demo']))"
    )
    environment = {
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "kernels" in done.stdout
    assert not list(Path(tmp_path).iterdir())


def test_the_driver_is_asked_with_patience(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86\necho 570.86\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine._driver() == "570.86"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(machine, "PATIENCE", 0.1)
    assert machine._driver() is None
    program.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine._driver() is None


@pytest.mark.slow
def test_the_kernels_of_weights_on_a_gpu_that_is_not_there(monkeypatch):
    pytest.importorskip("triton")
    skeleton, gpu = loading.skeleton, torch.device("cuda")
    monkeypatch.setattr(loading, "skeleton", lambda w, _, dtype: skeleton(w, "cpu", dtype))
    monkeypatch.setattr(cost, "fake_mode", lambda _: fake_mode(gpu))
    found = kernel_facts.of_weights("demo", gpu, torch.float16)
    triton = {op: each["verdicts"]["triton"] for op, each in found.items() if op != "linear"}
    # the demo's heads are small, but its layouts are those that the kernels were written for
    reasons = {why for verdicts in triton.values() for why in verdicts}
    assert not [why for why in reasons if "contiguous" in why or "CUDA device" in why]
    assert all(triton[op][RUNS] == found[op]["calls"] for op in ("geglu", "residual_sum"))
