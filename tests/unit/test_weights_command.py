"""`anyv2v weights verify` and `anyv2v weights fetch`; nothing here uses a network."""

import hashlib
import inspect as inspection
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyv2v.cli.main import main
from anyv2v.convert import fetch as fetching
from anyv2v.convert.fetch import asked
from anyv2v.convert.published import convert
from anyv2v.convert.repositories import PUBLISHED, needed_files, recognize
from anyv2v.errors import InputError
from anyv2v.loading import expected_shapes, inspect
from anyv2v.weights.packaged import PACKAGED


@pytest.fixture
def folder(weights, tmp_path):
    """A copy of a converted folder that a test may spoil."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


@pytest.fixture
def run(capfd):
    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def change(folder: Path, name: str, **fields) -> None:
    """Fields of the manifest's entry for a file."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name].update(fields)
    path.write_text(json.dumps(manifest))


def replace(folder: Path, name: str, **tensors) -> None:
    """Tensors of a file, and the sha256 and length of it in the manifest: a careful forger."""
    path = folder / name
    save_file({**load_file(path), **{k.replace("_dot_", "."): t for k, t in tensors.items()}}, path)
    data = path.read_bytes()
    change(folder, name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def refused(run, folder: Path) -> str:
    status, out, err = run("weights", "verify", folder)
    assert status == 2 and not out
    assert err.count("\n") == 1 and str(folder) in err
    return err


def test_a_whole_folder_is_described(run, weights):
    status, out, err = run("weights", "verify", weights)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{weights}: i2vgen, 512x512, 16 frames at 8 fps")
    count = sum(t.numel() for t in load_file(weights / "unet.safetensors").values())
    assert f"unet.safetensors: 1511 tensors, {count:,} parameters, F32, 0.01 GB" in lines
    assert len(lines) == 7
    assert lines[-1] == f"fingerprint {inspect(weights).checkpoint.fingerprint}"


@pytest.mark.parametrize("name", PACKAGED)
def test_the_weights_of_the_package_are_whole(run, name):
    status, out, _ = run("weights", "verify", name)
    assert status == 0 and "fingerprint" in out


def test_progress_is_of_all_bytes(weights):
    seen = []
    inspect(weights, lambda *at: seen.append(at))
    files = json.loads((weights / "manifest.json").read_text())["files"]
    total = sum(facts["bytes"] for facts in files.values())
    assert seen[-1] == (total, total) and len(seen) == len(files)


@pytest.mark.parametrize("name", ["unet.safetensors", "vae.safetensors", "tokenizer/merges.txt"])
def test_one_changed_bit_is_found(run, folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert f"{name}: sha256" in refused(run, folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_behind_a_right_sha256(run, folder, value):
    replace(folder, "text.safetensors", final_norm_dot_bias=torch.full((32,), value))
    message = refused(run, folder)
    assert "text.safetensors: final_norm.bias holds values that are not finite" in message


def test_another_shape_dtype_or_name(run, folder):
    replace(folder, "text.safetensors", final_norm_dot_bias=torch.zeros(31))
    assert "final_norm.bias is (31,), should be (32,)" in refused(run, folder)
    replace(folder, "text.safetensors", final_norm_dot_bias=torch.zeros(32).half())
    assert "final_norm.bias is F16, the manifest says F32" in refused(run, folder)
    replace(folder, "text.safetensors", final_norm_dot_bias=torch.zeros(32), more=torch.zeros(2))
    assert "extra: more (2,)" in refused(run, folder)


def test_a_folder_that_agrees_with_itself_but_not_with_the_network(run, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text"]["mlp_width"] = 64
    path.write_text(json.dumps(config))
    message = refused(run, folder)
    assert "text.safetensors: does not fit the network" in message
    config["text"]["mlp_width"] = "wide"
    path.write_text(json.dumps(config))
    assert "config.json" in refused(run, folder)


def test_files_that_are_cut_off_missing_or_no_folder(run, folder, tmp_path):
    path = folder / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "cut off or replaced" in refused(run, folder)
    path.unlink()
    assert "is missing" in refused(run, folder)
    assert "no such folder" in refused(run, tmp_path / "nowhere")


def test_a_manifest_that_lists_nothing(run, folder):
    change(folder, "vae.safetensors", tensors={"conv": 3})
    assert "lists no dtypes and shapes for vae.safetensors" in refused(run, folder)


# fetch


COMMIT = "0123abc" + 33 * "0"


class Hub(ModuleType):
    """As much of huggingface_hub as is used, with a folder per repository in place of the network.

    `gated` and `missing` are the repositories that answer as such on the hub.
    """

    def __init__(self, pages: Path, cache: Path):
        super().__init__("huggingface_hub")
        self.pages, self.cached = pages, cache
        self.asked, self.copied, self.fail_after, self.spoil = [], [], None, None
        self.gated, self.missing = (), ()
        self.utils = ModuleType("huggingface_hub.utils")
        self.utils.disable_progress_bars = lambda: None
        self.utils.RepositoryNotFoundError = type("RepositoryNotFoundError", (OSError,), {})
        self.utils.RevisionNotFoundError = type("RevisionNotFoundError", (OSError,), {})
        self.utils.GatedRepoError = type(
            "GatedRepoError", (self.utils.RepositoryNotFoundError,), {}
        )
        self.HfApi = lambda: self
        self.constants = ModuleType("huggingface_hub.constants")
        self.constants.HF_HUB_CACHE = str(cache)

    def page(self, repository: str) -> Path:
        return self.pages / repository.replace("/", "--")

    def cache(self, repository: str) -> Path:
        return self.cached / repository.replace("/", "--")

    def model_info(self, repository, revision, files_metadata):
        assert files_metadata and revision is None
        self.asked.append(repository)
        if repository in self.missing:
            raise self.utils.RepositoryNotFoundError("401 Client Error. (Request ID: x)")
        page = self.page(repository)
        files = [path for path in sorted(page.rglob("*")) if path.is_file()]
        facts = [self._facts(path, str(path.relative_to(page))) for path in files]
        return SimpleNamespace(sha=COMMIT, siblings=facts)

    def try_to_load_from_cache(self, repository, name, revision):
        path = self.cache(repository) / name
        return str(path) if revision == COMMIT and path.exists() else None

    def _facts(self, path: Path, name: str):
        data, large = path.read_bytes(), path.suffix in (".safetensors", ".pt")
        return SimpleNamespace(
            rfilename=name,
            size=len(data),
            lfs={"sha256": hashlib.sha256(data).hexdigest()} if large else None,
        )

    def hf_hub_download(self, repository, name, revision):
        assert repository in self.asked and revision == COMMIT
        if repository in self.gated:
            raise self.utils.GatedRepoError("403 Client Error. (Request ID: x)")
        copy = self.cache(repository) / name
        if not copy.exists():
            if self.fail_after is not None and len(self.copied) >= self.fail_after:
                raise ConnectionError("Connection reset by peer\nTraceback and more")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.page(repository) / name, copy)
            self.copied.append(name)
        if name == self.spoil:
            data = bytearray(copy.read_bytes())
            data[-1] ^= 1
            copy.write_bytes(data)
        return str(copy)


I2VGEN = "ali-vilab/i2vgen-xl"


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A hub without any page, and an empty folder to work in."""
    hub = Hub(tmp_path / "pages", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", hub.utils)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", hub.constants)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def hub(empty_hub, snapshot):
    """A page that publishes the tiny model in both precisions, and more that is not needed."""
    published = Path(shutil.copytree(snapshot, empty_hub.page(I2VGEN)))
    for path in list(published.rglob("*.safetensors")):
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path.with_name(f"{path.stem}.fp16.safetensors"))
    (published / "models").mkdir()
    (published / "models" / "i2vgen_xl_00854500.pth").write_bytes(b"much")
    (published / "README.md").write_text("# I2VGen-XL")
    return empty_hub


def test_fetch_downloads_what_is_needed_converts_and_verifies(run, hub, tmp_path):
    status, out, err = run("weights", "fetch")
    assert (status, err) == (0, ""), err
    assert hub.asked == [I2VGEN]
    weights = [name for name in hub.copied if name.endswith("safetensors")]
    assert len(weights) == 4 and all("fp16" in name for name in weights)
    assert not [name for name in hub.copied if name.startswith("models") or "README" in name]
    assert "unet.safetensors: 1511 tensors" in out and "F16" in out
    assert "i2vgen-xl: ready for --weights" in out
    assert inspect(tmp_path / "i2vgen-xl").components[0].dtypes == ("F16",)


def test_fetch_in_full_precision_equals_converting(run, hub, weights, tmp_path):
    status, _, err = run("weights", "fetch", "i2vgen-xl", tmp_path / "full", "--dtype", "float32")
    assert status == 0, err
    assert not [name for name in hub.copied if "fp16" in name]
    assert inspect(tmp_path / "full").checkpoint.fingerprint == (
        inspect(weights).checkpoint.fingerprint
    )


@pytest.mark.parametrize(
    "words, wanted",
    [
        ((None, None), ("i2vgen-xl", "i2vgen-xl")),
        (("weights/out", None), ("i2vgen-xl", "weights/out")),
        (("consisti2v", None), ("consisti2v", "consisti2v")),
        (("seine", "weights/seine"), ("seine", "weights/seine")),
        # the folder alone, in a config file
        ((None, "out"), ("i2vgen-xl", "out")),
    ],
)
def test_which_model_goes_where(words, wanted):
    assert asked(*words) == wanted


def test_a_model_that_is_not_published(run, empty_hub):
    status, _, err = run("weights", "fetch", "seyne", "out")
    assert status == 2 and "seyne" in err and "i2vgen-xl, consisti2v, seine" in err
    # alone it would be a folder for gigabytes of another model
    status, _, err = run("weights", "fetch", "consist2v")
    assert status == 2 and err.count("\n") == 1
    assert "consist2v: is nearly consisti2v, a published model" in err
    assert not empty_hub.asked


@pytest.fixture
def pages(empty_hub):
    """Pages of the two repositories of SEINE, with files of a few bytes, and more in each."""
    files = {
        "xinyuanc91/SEINE": ("seine.pt", "README.md", "other.pt"),
        "CompVis/stable-diffusion-v1-4": (
            *("model_index.json", "vae/config.json", "unet/config.json", "tokenizer/merges.txt"),
            *("tokenizer/vocab.json", "scheduler/scheduler_config.json"),
            *(f"vae/diffusion_pytorch_model{x}" for x in (".safetensors", ".bin")),
            *("text_encoder/config.json", "text_encoder/model.safetensors"),
            *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
            *("safety_checker/config.json", "safety_checker/model.safetensors"),
        ),
    }
    for repository, names in files.items():
        for name in names:
            path = empty_hub.page(repository) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    return empty_hub


NEEDED = {
    "seine.pt",
    *(f"stable-diffusion-v1-4/{folder}/config.json" for folder in ("vae", "text_encoder", "unet")),
    "stable-diffusion-v1-4/vae/diffusion_pytorch_model.safetensors",
    "stable-diffusion-v1-4/text_encoder/model.safetensors",
    "stable-diffusion-v1-4/tokenizer/merges.txt",
    "stable-diffusion-v1-4/tokenizer/vocab.json",
    "stable-diffusion-v1-4/scheduler/scheduler_config.json",
}
"""What `convert` reads of SEINE and of Stable Diffusion 1.4."""


@pytest.mark.parametrize("links", [True, False])
def test_two_repositories_become_the_folder_that_is_converted(pages, tmp_path, monkeypatch, links):
    converted = []

    def looked(src, dst, *_):
        converted.append(dst)
        walk = [(Path(at), names) for at, _, names in os.walk(src, followlinks=True)]
        files = [at / name for at, names in walk for name in names]
        assert {path.relative_to(src).as_posix() for path in files} == NEEDED
        assert {path.read_text() for path in files} == {
            name.removeprefix("stable-diffusion-v1-4/") for name in NEEDED
        }
        assert (src / "seine.pt").is_symlink() == links

    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(fetching, "convert", looked)
    if not links:
        monkeypatch.setattr(os, "symlink", refuse)
    folders = fetching.fetch("seine", "out", dict)
    assert converted == [Path("out")]
    assert {path.name for path in tmp_path.iterdir()} == {"pages", "cache"}
    # the cache is whole after the links are gone
    assert (folders[0] / "seine.pt").is_file() and (folders[1] / "vae/config.json").is_file()
    assert folders == [pages.cache(name) for name in pages.asked]


MODELS = {
    "consisti2v": (
        "consisti2v_snapshot_folder",
        {"TIGER-Lab/ConsistI2V": "."},
        "consisti2v, 256x256, 5 frames at 8 fps",
    ),
    "seine": (
        "seine_folder",
        {
            "xinyuanc91/SEINE": "seine.pt",
            "CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4",
        },
        "seine, 512x512, 16 frames at 8 fps",
    ),
}
"""Name -> (fixture of its published form, repository -> what of the form it holds, its line)."""


@pytest.mark.parametrize("name", MODELS)
def test_the_other_models_are_fetched_converted_and_verified(
    run, empty_hub, request, tmp_path, name
):
    form, repositories, line = MODELS[name]
    published = request.getfixturevalue(form)
    for repository, part in repositories.items():
        page = empty_hub.page(repository)
        if (published / part).is_dir():
            shutil.copytree(published / part, page)
        else:
            page.mkdir(parents=True)
            shutil.copy(published / part, page)
    status, out, err = run("weights", "fetch", name)
    assert (status, err) == (0, ""), err
    assert out.startswith(f"{name}: {line}") and f"{name}: ready for --weights" in out
    assert "unet/diffusion_pytorch_model.bin" not in empty_hub.copied
    convert(published, tmp_path / "converted", expected_shapes, torch.float16)
    assert inspect(tmp_path / name).checkpoint.fingerprint == (
        inspect(tmp_path / "converted").checkpoint.fingerprint
    )


def test_a_license_to_accept_and_a_missing_repository(run, pages, tmp_path):
    pages.gated = ("CompVis/stable-diffusion-v1-4",)
    status, out, err = run("weights", "fetch", "seine", "out")
    assert status == 2 and not out and err.count("\n") == 1
    page = "https://huggingface.co/CompVis/stable-diffusion-v1-4"
    assert f"its license has to be accepted on {page}" in err and "hf auth login" in err
    assert f"{page} (as FOLDER/stable-diffusion-v1-4) by hand" in err
    assert "https://huggingface.co/xinyuanc91/SEINE and" in err
    assert "anyv2v convert FOLDER out" in err and "Client Error" not in err
    # a repository that is not there is noticed before another is downloaded
    pages.gated, pages.missing, before = (), pages.gated, list(pages.copied)
    shutil.rmtree(pages.cached)
    status, _, err = run("weights", "fetch", "seine", "out")
    assert status == 2 and err.count("\n") == 1 and pages.copied == before
    assert "CompVis/stable-diffusion-v1-4 cannot be downloaded: there is no such repo" in err
    assert "by hand" in err and not (tmp_path / "out").exists()


def test_an_interrupted_download_goes_on(run, hub, tmp_path):
    hub.fail_after = 5
    status, out, err = run("weights", "fetch", "out")
    assert status == 2 and err.count("\n") == 1 and not out
    assert "cannot be downloaded: Connection reset by peer; run it again to go on" in err
    assert "anyv2v convert FOLDER out" in err and not (tmp_path / "out").exists()
    hub.fail_after = None
    assert run("weights", "fetch", "out")[0] == 0
    assert len(hub.copied) == len(set(hub.copied))


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.fp16.safetensors"])
def test_a_download_that_differs_from_what_is_published(run, hub, tmp_path, name):
    hub.spoil = name
    status, _, err = run("weights", "fetch", "out")
    cache = hub.cache(I2VGEN)
    assert status == 2 and f"{cache / name}: sha256" in err and "delete it" in err
    assert not (tmp_path / "out").exists()
    hub.spoil = None
    (cache / name).write_bytes(b"short")
    assert "has 5 bytes" in run("weights", "fetch", "out")[2]
    (cache / name).unlink()
    assert run("weights", "fetch", "out")[0] == 0


def test_without_the_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    status, out, err = run("weights", "fetch", "out")
    assert status == 2 and not out and err.count("\n") == 1
    assert "pip install huggingface_hub; or" in err
    assert "download https://huggingface.co/ali-vilab/i2vgen-xl by hand" in err


def test_an_output_that_is_there_is_found_before_the_download(run, hub, tmp_path):
    (tmp_path / "out").mkdir()
    status, _, err = run("weights", "fetch", "out")
    assert status == 2 and "exists already" in err and not hub.asked


@pytest.mark.parametrize("name", PACKAGED)
def test_weights_that_their_name_would_not_find_are_not_written(run, hub, tmp_path, name):
    for words in (("weights", "fetch", name), ("convert", "somewhere", name)):
        status, out, err = run(*words)
        assert (status, out) == (2, "") and not hub.asked
        assert f"{name}: is the name of weights of the package; write ./{name}" in err


def test_what_is_needed_of_a_page():
    names = [
        "model_index.json",
        *(f"{f}/config.json" for f in ("unet", "vae", "text_encoder", "image_encoder")),
        *(f"unet/diffusion_pytorch_model-{i:05}-of-00002.safetensors" for i in (1, 2)),
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.bin",
        *(
            f"{f}/model{v}.safetensors"
            for f in ("text_encoder", "image_encoder")
            for v in ("", ".fp16")
        ),
        "tokenizer/merges.txt",
        "assets/picture.json",
    ]
    (page,) = PUBLISHED["i2vgen-xl"].repositories
    half, full = needed_files(page, names, half=True), needed_files(page, names, half=False)
    assert "assets/picture.json" not in half and "tokenizer/merges.txt" in half
    assert "text_encoder/model.fp16.safetensors" in half
    assert "text_encoder/model.safetensors" in full
    for wanted in (half, full):
        assert {n for n in wanted if n.startswith("unet/")} == {
            n for n in names if n.startswith("unet/")
        }
        assert "vae/diffusion_pytorch_model.bin" in wanted
    with pytest.raises(InputError, match="publishes no weights of vae"):
        needed_files(page, [n for n in names if not n.endswith(".bin")], half=True)
    with pytest.raises(InputError, match="publishes no model_index.json"):
        needed_files(page, names[1:], half=True)


STABLE_DIFFUSION = [
    "model_index.json",
    "v1-5-pruned.safetensors",
    *(f"{folder}/config.json" for folder in ("unet", "vae", "text_encoder", "safety_checker")),
    *(
        f"{folder}/diffusion_pytorch_model{kind}"
        for folder in ("unet", "vae")
        for kind in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
    ),
    *(f"unet/diffusion_pytorch_model.non_ema.{kind}" for kind in ("bin", "safetensors")),
    *(f"text_encoder/{name}" for name in ("model.safetensors", "pytorch_model.bin")),
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt")),
    "scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
]
ADAPTERS = [
    *("models/ip-adapter_sd15.bin", "models/ip-adapter_sd15.safetensors"),
    *("models/ip-adapter-plus_sd15.safetensors", "sdxl_models/ip-adapter_sdxl.safetensors"),
    *(f"{at}/image_encoder/{n}" for at in ("models", "sdxl_models") for n in ("config.json",)),
    *(f"models/image_encoder/{n}" for n in ("model.safetensors", "pytorch_model.bin")),
]
WHOLE_CLIP = ["config.json", "vocab.json", "merges.txt", "preprocessor_config.json"]
WHOLE_CLIP += ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md"]
OPEN_CLIP = [*WHOLE_CLIP, "open_clip_config.json", "open_clip_pytorch_model.bin"]
PAGES = {
    "Stable Diffusion": (STABLE_DIFFUSION, "StableDiffusionPipeline", "--editor-weights"),
    "IP-Adapter": (ADAPTERS, None, "--editor-option adapter"),
    "CLIP": (WHOLE_CLIP, "clip", "--clip"),
    "CLIP in two forms": (OPEN_CLIP, "clip", "--clip"),
    "CLIP of OpenCLIP": ([*OPEN_CLIP[4:], "tokenizer.json"], None, "--clip"),
}
"""What is published -> (files, what its config says of the model, the option that takes it)."""
TAKEN = {
    "Stable Diffusion": {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    },
    "IP-Adapter": {"models/ip-adapter_sd15.safetensors", "models/image_encoder/model.safetensors"},
    "CLIP": {"pytorch_model.bin"},
    "CLIP in two forms": {"pytorch_model.bin"},
    "CLIP of OpenCLIP": {"open_clip_pytorch_model.bin"},
}


@pytest.mark.parametrize("name", PAGES)
def test_what_is_needed_of_a_page_that_nobody_knew(name):
    files, kind, option = PAGES[name]
    model = recognize("a/b", files, lambda file: {"_class_name": kind, "model_type": kind})
    (repository,) = model.repositories
    needed = needed_files(repository, files, half=model.dtype == torch.float16)
    weights = {n for n in needed if n.endswith((".safetensors", ".bin"))}
    assert model.option == option and weights == TAKEN[name]
    assert all(n.endswith((".json", ".txt")) for n in set(needed) - weights)
    assert "safety_checker/config.json" not in needed


def test_the_real_hub_is_called_as_it_wants_to_be():
    hub = pytest.importorskip("huggingface_hub")
    given = inspection.signature(hub.hf_hub_download).bind("repo", "file", revision="a")
    assert given.arguments == {"repo_id": "repo", "filename": "file", "revision": "a"}
    given = inspection.signature(hub.HfApi.model_info).bind(None, "repo", files_metadata=True)
    assert given.arguments["repo_id"] == "repo" and given.arguments["files_metadata"] is True
    assert issubclass(hub.utils.GatedRepoError, hub.utils.RepositoryNotFoundError)


def test_the_real_hub_told_to_stay_offline(tmp_path):
    pytest.importorskip("huggingface_hub")
    done = subprocess.run(
        [sys.executable, "-m", "anyv2v", "weights", "fetch", str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "cannot be downloaded: " in done.stderr
    assert "offline" in done.stderr.lower() and "by hand" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_extra_is_declared():
    root = Path(__file__).parents[2]
    assert 'fetch = ["huggingface_hub' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert "merges/*" in (root / "setup.py").read_text(encoding="utf-8")
