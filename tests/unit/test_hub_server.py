"""Models named as repositories of the hub, which a server on this machine stands in for."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyv2v
from anyv2v.cli.main import main
from anyv2v.convert import cache
from anyv2v.convert.fetch import fetch
from anyv2v.convert.published import convert
from anyv2v.errors import InputError
from anyv2v.evaluation import clip_model
from anyv2v.loading import folder_of
from anyv2v.stable_diffusion import adapters
from anyv2v.stable_diffusion import loading as stable_diffusion
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights_folders import expected_shapes, inspect
from tests.hub_server import COMMIT, HubServer
from tests.oracles import adapter_snapshot, clip_snapshot, sd_snapshot

WHY = "huggingface_hub, which downloads, is not installed"
library = pytest.importorskip("huggingface_hub", reason=WHY)
constants = pytest.importorskip("huggingface_hub.constants", reason=WHY)

I2VGEN = "ali-vilab/i2vgen-xl"
OTHER = "89abcdef" * 5
CPU = torch.device("cpu")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub and empty caches; all is asked of the hub in this process."""
    with HubServer() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloads"))
        monkeypatch.setenv("ANYV2V_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def published(hub, snapshot):
    hub.publish(I2VGEN, snapshot)
    return hub


@pytest.fixture(scope="module")
def half(snapshot, tmp_path_factory):
    """The published form of I2VGen-XL, converted by hand."""
    folder = tmp_path_factory.mktemp("half") / "folder"
    convert(snapshot, folder, expected_shapes, torch.float16)
    return Checkpoint.open(folder)


def fingerprint(folder: Path) -> str:
    return Checkpoint.open(folder).fingerprint


def by_hand(published: Path, folder: Path, dtype: torch.dtype | None = torch.float16) -> str:
    """The fingerprint of what `anyv2v convert` makes of a published form."""
    convert(published, folder, expected_shapes, dtype)
    return fingerprint(folder)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


# each form


def test_a_video_model_by_its_name(published, half, tmp_path, caplog):
    editor = anyv2v.load(I2VGEN, device="cpu")
    expected = anyv2v.load(half.folder, device="cpu")
    assert editor.fingerprint == expected.fingerprint
    assert same(editor.backbone.unet, expected.backbone.unet)
    # warnings are what reaches stderr without any configuration
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    folder = tmp_path / "cache" / "weights" / "ali-vilab--i2vgen-xl" / f"{COMMIT}-float16"
    assert str(tmp_path / "downloads") in said and str(folder) in said and "0.01 GB" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, name",
    [("consisti2v_snapshot_folder", "TIGER-Lab/ConsistI2V"), ("seine_folder", "xinyuanc91/SEINE")],
)
def test_the_other_video_models(hub, request, tmp_path, form, name):
    folder = request.getfixturevalue(form)
    hub.publish(name, folder)
    if name.endswith("SEINE"):
        hub.publish("CompVis/stable-diffusion-v1-4", folder / "stable-diffusion-v1-4")
        # the first repository has the file alone
        alone = tmp_path / "alone"
        alone.mkdir()
        shutil.copy(folder / "seine.pt", alone)
        hub.publish(name, alone)
    assert fingerprint(folder_of(name)) == by_hand(folder, tmp_path / "folder")
    assert not hub.sent("unet/diffusion_pytorch_model.bin")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hub", "original"])
def test_wan_becomes_bfloat16(hub, tmp_path, layout):
    pytest.importorskip("diffusers")
    from tests.oracles import wan_published

    name = "Wan-AI/Wan2.2-TI2V-5B" + ("-Diffusers" if layout == "hub" else "")
    write = wan_published.write_hub if layout == "hub" else wan_published.write_original
    folder = write(tmp_path / "published")
    tokenizer = folder / ("tokenizer" if layout == "hub" else "google/umt5-xxl")
    (tokenizer / "spiece.model").write_bytes(b"much")
    hub.publish(name, folder)
    with pytest.raises(InputError, match="overflows in float16; take bfloat16"):
        fetch(name, tmp_path / "half", expected_shapes, torch.float16)
    assert not [request for request in hub.requests if ".safetensors" in request]
    found = folder_of(name)
    assert found.name == f"{COMMIT}-bfloat16" and not hub.sent("spiece.model")
    assert fingerprint(found) == by_hand(folder, tmp_path / "folder", torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 8])
def test_an_editor_of_the_first_frame_of_any_name(hub, tmp_path, channels):
    """A fine-tuned model is one whose name nobody knew."""
    published = sd_snapshot.write(tmp_path / "published", channels)
    (published / "README.md").write_text("# A model")
    (published / "safety_checker").mkdir()
    (published / "safety_checker" / "model.safetensors").write_bytes(b"much")
    hub.publish("somebody/fine-tuned.2", published)
    model = stable_diffusion.load("somebody/fine-tuned.2", CPU, torch.float32, channels)
    by_hand(published, tmp_path / "folder")
    expected = stable_diffusion.load(tmp_path / "folder", CPU, torch.float32, channels)
    for network in ("unet", "vae", "text"):
        assert same(getattr(model, network), getattr(expected, network))
    assert not hub.sent("README.md") and not hub.sent("safety_checker/model.safetensors")


def test_adapters(hub, tmp_path):
    file = adapter_snapshot.write_ip_adapter(tmp_path / "page" / "models")
    shutil.copy(file, file.with_name("ip-adapter-plus_sd15.safetensors"))
    hub.publish("h94/IP-Adapter", tmp_path / "page")
    hub.publish("TencentARC/canny", adapter_snapshot.write_t2i_adapter(tmp_path / "t2i"))
    loaded = adapters.load_t2i_adapter("TencentARC/canny", CPU, torch.float32)
    by_hand(tmp_path / "t2i", tmp_path / "t2i folder")
    assert same(loaded, adapters.load_t2i_adapter(tmp_path / "t2i folder", CPU, torch.float32))
    found = cache.located("h94/IP-Adapter", expected_shapes)
    assert fingerprint(found) == by_hand(file, tmp_path / "ip folder")
    assert not hub.sent("ip-adapter-plus_sd15.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["transformers", "open_clip", "both"])
def test_a_clip_keeps_its_dtypes(hub, tmp_path, form):
    published = tmp_path / "clip-vit-tiny-patch8"
    if form != "open_clip":
        clip_snapshot.write(published)
    if form != "transformers":
        clip_snapshot.write_open_clip(published, form="safetensors")
    hub.publish("openai/clip-vit-tiny-patch8", published)
    loaded = clip_model.load("openai/clip-vit-tiny-patch8", "cpu")
    expected = clip_model.load(published, "cpu")
    assert loaded.fingerprint == expected.fingerprint and loaded.name == expected.name
    assert same(loaded.vision, expected.vision)
    assert bool(hub.sent("open_clip_model.safetensors")) == (form == "open_clip")


# the cache


def test_what_is_converted_needs_no_hub(published, monkeypatch, caplog):
    folder = folder_of(I2VGEN)
    published.shutdown()
    published.server_close()
    asked = list(published.requests)
    caplog.clear()
    for name in (I2VGEN, f"{I2VGEN}@{COMMIT}", f"{I2VGEN}@{COMMIT[:9]}"):
        assert folder_of(name) == folder
    # not even the package that downloads
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert anyv2v.load(I2VGEN, device="cpu").fingerprint == fingerprint(folder)
    assert published.requests == asked and not caplog.records
    with pytest.raises(InputError, match="pip install huggingface_hub; or"):
        folder_of("TIGER-Lab/ConsistI2V")


def test_a_damaged_folder_in_the_cache(hub, tmp_path):
    name = "TencentARC/canny"
    hub.publish(name, adapter_snapshot.write_t2i_adapter(tmp_path / "t2i"))
    folder = cache.located(name, expected_shapes)
    whole = fingerprint(folder)
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"has .* bytes.*; remove {folder}, after which it is"):
        cache.located(name, expected_shapes)
    # without a manifest it is not there, and is made again
    (folder / "manifest.json").unlink()
    assert cache.located(name, expected_shapes) == folder and fingerprint(folder) == whole
    # what is somebody's own is not replaced, and nothing is downloaded first
    (folder / "manifest.json").unlink()
    (folder / "own.txt").write_text("")
    before = hub.sent()
    with pytest.raises(InputError, match=f"also holds own.txt; remove {folder}, after"):
        cache.located(name, expected_shapes)
    assert hub.sent() == before
    shutil.rmtree(folder)
    assert fingerprint(cache.located(name, expected_shapes)) == whole


def test_a_damaged_name_of_a_commit_is_written_anew(hub, tmp_path):
    name = "TencentARC/canny"
    hub.publish(name, adapter_snapshot.write_t2i_adapter(tmp_path / "t2i"))
    folder = cache.located(f"{name}@main", expected_shapes)
    ref = folder.parent / "refs" / "main"
    ref.write_bytes(b"\xff\xfe")
    assert cache.located(f"{name}@main", expected_shapes) == folder
    assert ref.read_text() == COMMIT


@pytest.mark.skipif(os.name == "nt", reason="no file has this name")
def test_a_listed_name_that_is_no_path(hub, tmp_path):
    published = adapter_snapshot.write_t2i_adapter(tmp_path / "t2i")
    (published / "..\\x.json").write_text("{}")
    hub.publish("TencentARC/canny", published)
    with pytest.raises(InputError, match="TencentARC/canny cannot be downloaded: .*x.json"):
        cache.located("TencentARC/canny", expected_shapes)


def test_nothing_is_written_for_folders_and_the_demo(hub, weights, tmp_path):
    anyv2v.load("demo", device="cpu")
    anyv2v.load(weights, device="cpu")
    with pytest.raises(InputError, match="no such folder"):
        anyv2v.load(tmp_path / "nowhere" / "i2vgen-xl")
    # the folder in which it could have been tells a path from a name
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match="weights/i2vgen-xl: no such folder"):
        anyv2v.load("weights/i2vgen-xl")
    assert not hub.requests and not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_revisions(published, half, snapshot, tmp_path):
    other = Path(shutil.copytree(snapshot, tmp_path / "other"))
    file = other / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    published.publish(I2VGEN, other, OTHER, "v2", "refs/pr/1")
    published.publish(I2VGEN, snapshot)
    old, new = half.fingerprint, by_hand(other, tmp_path / "new")
    assert fingerprint(folder_of(f"{I2VGEN}@{OTHER}")) == new
    # of what is converted a plain name takes the newest
    assert fingerprint(folder_of(I2VGEN)) == new
    assert fingerprint(folder_of(f"{I2VGEN}@{COMMIT}")) == old
    os.utime(folder_of(f"{I2VGEN}@{COMMIT}") / "manifest.json", (2e9, 2e9))
    assert fingerprint(folder_of(I2VGEN)) == old
    # another name of a commit that is there
    before = len(published.sent())
    for name in ("v2", "refs/pr/1"):
        assert fingerprint(folder_of(f"{I2VGEN}@{name}")) == new
    assert len(published.sent()) == before
    asked = len(published.requests)
    assert fingerprint(folder_of(f"{I2VGEN}@v2")) == new and len(published.requests) == asked
    assert cache.pinned(f"{I2VGEN}@v2") == f"{I2VGEN}@{OTHER}"
    assert cache.pinned("some/folder") == "some/folder"
    with pytest.raises(InputError, match="cannot be downloaded: it has no revision v3"):
        folder_of(f"{I2VGEN}@v3")


@pytest.mark.slow
def test_a_connection_that_is_cut(published, half, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    # what has come is written chunk by chunk
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**10)
    name = "unet/diffusion_pytorch_model.safetensors"
    size = (published.pages[I2VGEN]["main"].folder / name).stat().st_size
    published.cut[name] = size // 2
    assert fingerprint(folder_of(I2VGEN)) == half.fingerprint
    # what had been written was not sent again
    first, second, *_ = [r for r in published.requests if r.startswith("GET") and name in r]
    assert second.removeprefix(first) == f" bytes={size // 2 // 2**10 * 2**10}-"


@pytest.mark.slow
def test_an_interrupted_download_goes_on(published, half, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    name = "unet/diffusion_pytorch_model.safetensors"
    published.cut[name] = 0
    with pytest.raises(InputError, match="run it again to go on") as refused:
        folder_of(I2VGEN)
    assert "\n" not in str(refused.value) and not cache.converted()
    published.cut.clear()
    before = {path for path in published.sent() if name not in path}
    published.requests.clear()
    assert fingerprint(folder_of(I2VGEN)) == half.fingerprint
    # files that were whole are not sent again
    assert not before & set(published.sent()) and published.sent(name)


def test_a_forged_file_is_refused(published, tmp_path):
    name = "vae/diffusion_pytorch_model.safetensors"
    data = bytearray((published.pages[I2VGEN]["main"].folder / name).read_bytes())
    data[-1] ^= 1
    published.forged[name] = bytes(data)
    with pytest.raises(InputError, match=f"{name}: sha256 .* published is .*; delete it"):
        folder_of(I2VGEN)
    assert not cache.converted()


def test_what_the_hub_refuses(published, tmp_path):
    published.gated.add(I2VGEN)
    with pytest.raises(InputError, match="license has to be accepted on .*hf auth login"):
        folder_of(I2VGEN)
    with pytest.raises(InputError, match="no/such: no such folder; as a repository: .*no such rep"):
        folder_of("no/such")
    assert not (tmp_path / "cache" / "weights" / "no--such").exists()
    published.publish("some/text", tmp_path)
    with pytest.raises(InputError, match="some/text: holds no model that can be converted.*CLIP"):
        folder_of("some/text")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="'FluxPipeline'; one of I2VGenXLPipeline"):
        folder_of("some/text")
    published.publish("some/evil", tmp_path, "../../../etc")
    with pytest.raises(InputError, match="its commit is '../../../etc', which is none"):
        folder_of("some/evil")


def test_a_model_for_another_option_is_not_downloaded(hub, tmp_path):
    hub.publish("openai/clip-tiny", clip_snapshot.write(tmp_path / "clip"))
    with pytest.raises(InputError, match="is for --clip; weights for --weights are needed"):
        anyv2v.load("openai/clip-tiny")
    assert not hub.sent(".safetensors")


def test_no_room_for_the_download(published, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="needs 0.0. GB, 100 bytes are free; .*HF_HUB_CACHE"):
        folder_of(I2VGEN)
    assert not published.sent(".safetensors")


def test_a_cache_that_cannot_be_written(published, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANYV2V_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be made: .*ANYV2V_CACHE"):
        folder_of(I2VGEN)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("ANYV2V_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.root() == tmp_path / ".cache" / "anyv2v"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "anyv2v"
    monkeypatch.setenv("ANYV2V_CACHE", "~/own")
    assert cache.root() == tmp_path / "own"


# the command line


@pytest.mark.slow
def test_commands_take_names(published, half, capfd, video):
    assert main(["weights", "verify", I2VGEN]) == 0
    out = capfd.readouterr().out
    assert half.fingerprint in out and f"{COMMIT}-float16: i2vgen" in out
    assert main(["weights", "fetch", f"{I2VGEN}@{COMMIT}", "fetched", "--dtype", "float32"]) == 0
    assert inspect("fetched").components[0].dtypes == ("F32",)
    anyv2v.write_video("clip.mp4", video.frames, fps=8)
    run = ["--steps", "2", "--weights", I2VGEN, "--size", "64x64", "--frames", "3", "-o", "out.mp4"]
    assert main(["reconstruct", "clip.mp4", *run]) == 0
    # a sidecar repeats the run with the same commit
    made = json.loads(Path("out.mp4.json").read_text())
    assert made["settings"]["weights"] == made["weights"]["path"] == f"{I2VGEN}@{COMMIT}"
    assert main(["reconstruct", "--config", "out.mp4.json", "-o", "again.mp4"]) == 0
    again = json.loads(Path("again.mp4.json").read_text())
    assert again["latents_sha256"] == made["latents_sha256"]


CODE = "import anyv2v; print(anyv2v.load('ali-vilab/i2vgen-xl', device='cpu').fingerprint)"


@pytest.fixture
def begin(tmp_path):
    """begin(hub, *words): a process of Python that asks this hub, with caches of its own."""
    begun = []

    def begin(hub, *words):
        caches = {"HF_HOME": str(tmp_path / "home"), "ANYV2V_CACHE": str(tmp_path / "cache")}
        environment = {**os.environ, "HF_ENDPOINT": hub.url, **caches}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen([sys.executable, *words], env=environment, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


@pytest.mark.slow
def test_a_signal_ends_a_download(published, begin):
    published.stalled.add("unet/diffusion_pytorch_model.safetensors")
    run = begin(published, "-m", "anyv2v", "weights", "verify", I2VGEN)
    assert published.stalling.wait(60)
    run.send_signal(signal.SIGINT)
    # the file never comes
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "") and err.endswith("anyv2v: interrupted\n")
    assert not cache.converted()


def test_who_waits_is_told_so(published, half, tmp_path, monkeypatch, caplog):
    """Another process has the lock, and has converted when it frees it."""
    folder = tmp_path / "cache" / "weights" / "ali-vilab--i2vgen-xl"
    made, locked = folder / f"{COMMIT}-float16", [False, True]

    @contextmanager
    def hold(path, wait=False):
        assert path == folder / ".lock"
        if wait:
            shutil.copytree(half.folder, made)
        yield locked.pop(0)

    monkeypatch.setattr(cache, "hold", hold)
    assert folder_of(I2VGEN) == made and not published.sent()
    (record,) = caplog.records
    assert "waiting for another process" in record.getMessage()


@pytest.mark.slow
def test_two_processes_at_once(published, half, begin):
    runs = [begin(published, "-c", CODE) for _ in range(2)]
    results = [run.communicate() for run in runs]
    assert [out.strip() for out, _ in results] == [half.fingerprint] * 2, results
    # one of them has downloaded and converted
    assert sorted(err.count("downloading") for _, err in results) == [0, 1], results
    sent = published.sent()
    assert len(sent) == len(set(sent))
