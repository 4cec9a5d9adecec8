"""Whatever a file or a caller says, it ends in a result or in our error."""

import json
import math
import resource
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import anyv2v
from anyv2v import checks
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.config import section
from anyv2v.errors import LONGEST, InputError
from anyv2v.media import container, stream, timing
from anyv2v.media import video as videos
from anyv2v.media.image import read_image
from anyv2v.pipeline.source import Source, Unfinished
from anyv2v.runtime.memory import free_bytes
from anyv2v.vae.autoencoder import AutoencoderConfig
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.tensors import open_file, read_header, read_tensor
from tests import fuzz
from tests.hostile import mutate

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
# files are written again for each example, so a folder may serve many
many = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@many
@given(JSON)
def test_checks_give_the_value_or_refuse_it(value):
    def tried(check, *args):
        try:
            return check("x", value, *args)
        except InputError as error:
            assert "x" in str(error) and "\n" not in str(error)
            return None

    if (whole := tried(checks.whole, 1, 9)) is not None:
        assert whole == value and whole in range(1, 10)
    if (finite := tried(checks.finite)) is not None:
        assert math.isfinite(finite) and finite == float(value)
    if (positive := tried(checks.positive)) is not None:
        assert 0 < positive < math.inf
    if (fraction := tried(checks.fraction)) is not None:
        assert 0 <= fraction <= 1
    if (one := tried(checks.one_of, ("crop", "stretch"))) is not None:
        assert one in ("crop", "stretch")


@many
@given(JSON, st.integers(1, 64))
def test_a_size_is_two_whole_numbers_that_the_factor_divides(value, factor):
    try:
        width, height = checks.size(value, factor)
    except InputError:
        return
    assert [width, height] == list(value) and width % factor == height % factor == 0 < width


@dataclass(frozen=True)
class Sample:
    count: int
    layers: int
    rate: float
    name: str
    widths: tuple[int, ...]
    switches: tuple[bool, ...]


GOOD = {
    "count": 1,
    "layers": 2,
    "rate": 0.5,
    "name": "a",
    "widths": [8, 16],
    "switches": [True, False],
}


def test_a_section_is_its_dataclass():
    assert section({"s": GOOD}, "s", Sample) == Sample(**GOOD)
    assert section({"s": GOOD | {"rate": 1}}, "s", Sample).rate == 1


@many
@given(st.sampled_from(sorted(GOOD)), JSON)
def test_a_section_holds_what_its_types_say(key, value):
    try:
        found = section({"s": GOOD | {key: value}}, "s", Sample)
    except InputError as error:
        assert key in str(error)
        return
    assert type(found.count) is type(found.layers) is int and found.count >= 1
    assert 1 <= found.layers <= 64 and math.isfinite(found.rate) and type(found.name) is str
    assert all(type(w) is int for w in found.widths) and 0 < len(found.widths) <= 8
    assert all(type(s) is bool for s in found.switches)


@many
@given(JSON)
def test_a_config_may_be_anything(value):
    # a dictionary drawn at random has not just these keys
    with pytest.raises(InputError):
        section({"s": value}, "s", Sample)
    with pytest.raises(InputError):
        section({}, "s", Sample)


@pytest.mark.parametrize(
    "key, value",
    [
        ("layers", 10**9),
        ("count", True),
        ("count", 2**40),
        ("count", 1.0),
        ("rate", 10**400),
        ("rate", math.nan),
        ("rate", "0.5"),
        ("widths", [8] * 100_000),
        ("widths", []),
        ("widths", "88"),
        ("switches", [1, 0]),
    ],
)
def test_what_would_be_built_for_ever_or_fail_later_is_refused(key, value):
    with pytest.raises(InputError, match=f"section 's': {key}"):
        section({"s": GOOD | {key: value}}, "s", Sample)


def test_numbers_that_no_picture_and_no_latents_have_are_refused():
    with pytest.raises(InputError, match="are not 3 and 3"):
        PreprocessConfig(224, (0.5,) * 4, (0.5,) * 3)
    with pytest.raises(InputError, match="no picture"):
        PreprocessConfig(224, (0.5,) * 3, (0.0,) * 3)
    with pytest.raises(InputError, match="scaling_factor"):
        AutoencoderConfig(3, 4, (8,), 1, 4, 1e-300)


def test_a_message_is_one_line_that_can_be_read():
    with pytest.raises(InputError) as refused:
        checks.whole("x", "a\nb" * 100_000)
    assert len(str(refused.value)) < LONGEST
    assert str(refused.value).endswith("is not a whole number from 1 up")
    assert str(InputError("one\ntwo")) == "one two"


@many
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4), st.binary(max_size=32))
def test_a_header_may_hold_anything(tmp_path, header, data):
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + data)
    check_header(tmp_path / "a")


@many
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_a_weights_file_may_be_anything(tmp_path, data, length):
    (tmp_path / "a").write_bytes(data)
    check_header(tmp_path / "a")
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + data)
    check_header(tmp_path / "a")


@many
@given(st.integers(0, 2**32))
def test_a_header_that_is_accepted_is_read_as_the_library_reads_it(tmp_path, seed):
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2).half()}, tmp_path / "whole")
    (tmp_path / "a").write_bytes(
        mutate.safetensors(Random(seed), (tmp_path / "whole").read_bytes())
    )
    check_header(tmp_path / "a")


def check_header(path):
    """Refused, or read as the reference implementation of the format reads it."""
    try:
        entries = read_header(path)
    except InputError:
        return
    with open_file(path) as file, safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(entries)
        for name, entry in entries.items():
            ours, other = read_tensor(file, entry), theirs.get_tensor(name)
            assert ours.dtype == other.dtype and ours.shape == other.shape
            assert torch.equal(ours.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


@pytest.fixture(scope="module")
def saved(editor, video, tmp_path_factory):
    """A source with features, as its file."""
    path = tmp_path_factory.mktemp("saved") / "clip.safetensors"
    small = anyv2v.Video(video.frames[:2, :32, :32], 8)
    source = editor.invert(small, steps=2)
    source = editor.record(source, editor.recording(small, steps=2))
    assert source.features.by_step
    source.save(path, features=True)
    return path


def rewritten(path, target, facts=None, **tensors):
    """The source with other facts and tensors."""
    with safe_open(path, "pt") as file:
        own = json.loads(file.metadata()["source"])
        kept = {name: file.get_tensor(name) for name in file.keys()}
    text = facts if isinstance(facts, str) else json.dumps(own | (facts or {}))
    save_file({**kept, **tensors}, target, metadata={"source": text})
    return target


@settings(many, max_examples=60)
@given(st.integers(0, 2**32))
def test_a_source_is_whole_or_refused(saved, tmp_path, seed):
    path = tmp_path / "a.safetensors"
    path.write_bytes(mutate.safetensors(Random(seed), saved.read_bytes()))
    try:
        source = Source.load(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    clean, kept = source.trajectory.clean, source.trajectory.latents
    assert kept.keys() <= set(range(source.settings.steps))
    for x in (clean, *kept.values()):
        assert x.dtype == torch.float32 and x.isfinite().all() and x.shape == clean.shape
    for level in source.trajectory.levels:
        assert all(map(math.isfinite, level.identity))


@pytest.mark.parametrize(
    "facts, says",
    [
        ("[" * 100_000, "recursion"),
        ({"evaluations": math.inf}, "infinity"),
        ({"residuals": {"1": 10**400}}, "too large"),
        ({"fps": "eight"}, "fps"),
        ({"fps": math.nan}, "fps"),
        ({"settings": []}, "settings"),
        ({"levels": None}, "levels"),
        ({"levels": [[0, math.nan, 1.0]] * 3}, "levels"),
        ({"settings": {"method": "ddim"}}, "settings"),
    ],
)
def test_facts_of_a_source_that_are_none(saved, tmp_path, facts, says):
    path = rewritten(saved, tmp_path / "a.safetensors", facts)
    with pytest.raises(InputError, match=f"a.safetensors.*{says}"):
        Source.load(path)


def test_a_prompt_that_is_no_text_is_refused(saved, tmp_path):
    own = Source.load(saved).settings
    facts = {"settings": {**own.__dict__, "prompt": ["a"]}}
    with pytest.raises(InputError, match="prompt.*not of type str"):
        Source.load(rewritten(saved, tmp_path / "a.safetensors", facts))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("what", ["clean", "latents.0", "features"])
def test_values_that_no_inversion_gives_are_refused(saved, tmp_path, value, what):
    with safe_open(saved, "pt") as file:
        name = next(name for name in sorted(file.keys()) if name.startswith(what))
        tensor = file.get_tensor(name)
    tensor.view(-1)[0] = value
    with pytest.raises(InputError, match="not finite"):
        Source.load(rewritten(saved, tmp_path / "a.safetensors", **{name: tensor}))


def test_features_of_other_shapes_are_refused_when_they_are_loaded(editor, saved, tmp_path):
    assert editor.load_source(saved).features.by_step
    with safe_open(saved, "pt") as file:
        name = next(name for name in sorted(file.keys()) if name.startswith("features"))
        tensor = file.get_tensor(name)
    turned = tensor.transpose(-1, 1).contiguous()
    assert turned.shape != tensor.shape
    with pytest.raises(InputError, match="a.safetensors: features of step .* of shapes"):
        editor.load_source(rewritten(saved, tmp_path / "a.safetensors", **{name: turned}))


def half(editor, video, path):
    """The file of an inversion after its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyv2v.pipeline.source.SAVE_EVERY", 0.0)
        editor.invert(video, "ddim", 2, unfinished=Unfinished(path))
    assert path.exists()
    return path


@pytest.mark.parametrize("name, says", [("next", "not finite"), ("latents.0", "not the first")])
def test_half_an_inversion_that_is_damaged_is_refused(editor, video, tmp_path, name, says):
    small = anyv2v.Video(video.frames[:2, :32, :32], 8)
    path = half(editor, small, tmp_path / "a.unfinished")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    first = next(key for key in tensors if key.startswith("latents."))
    if name == "next":
        tensors["next"][0, 0, 0, 0, 0] = math.nan
    else:
        tensors[name] = tensors.pop(first)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(InputError, match=says):
        editor.invert(small, "ddim", 2, unfinished=Unfinished(path))


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../elsewhere", "a\0b", "\ud800", "config.json", "x" * 5000]
)
def test_a_manifest_names_the_files_of_a_model_and_no_other(weights, tmp_path, name):
    folder = shutil.copytree(weights, tmp_path / "w")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="manifest.json: (names, as no|holds .* half a char)"):
        Checkpoint.open(folder)


def test_a_manifest_that_forgets_a_file_is_refused(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "w")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["tokenizer/merges.txt"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not name tokenizer/merges.txt"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", ["up.1.res.1", 3, None, {"conv": "up.1.res.1"}])
def test_an_injection_that_is_no_lists_of_sites_is_refused(weights, tmp_path, value):
    folder = shutil.copytree(weights, tmp_path / "w")
    config = json.loads((folder / "config.json").read_text()) | {"injection": value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json: there is no section 'injection'"):
        anyv2v.load(folder, device="cpu")


class Shown:
    """A frame of a clip, as far as time goes."""

    def __init__(self, pts, duration=1):
        self.pts, self.duration, self.time_base = pts, duration, 1 / 8


@pytest.mark.parametrize(
    "frames", [[Shown(0), Shown(1), Shown(2**40)], [Shown(0), Shown(1), Shown(2, 2**60)]]
)
def test_a_timestamp_of_years_does_not_fill_the_memory(frames):
    timed = list(timing.timed(frames, 8.0))
    assert [begin for begin, _, _ in timed] == [0, 1 / 8, 2 / 8]
    assert timed[-1][1] <= 2 / 8 + timing.LONGEST


def test_frames_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    videos.write_video(tmp_path / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    monkeypatch.setattr(stream, "free_bytes", lambda device: 2 * 3 * 16 * 16 * 3)
    assert len(videos.read_video(tmp_path / "a.mp4", frames=3).frames) == 3
    with pytest.raises(InputError, match="more than 4 frames of 16x16 do not fit"):
        videos.read_video(tmp_path / "a.mp4")


def test_frames_that_are_too_large_are_refused(tmp_path, monkeypatch):
    videos.write_video(tmp_path / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    monkeypatch.setattr(container, "MOST_PIXELS", 255)
    with pytest.raises(InputError, match="16x16, too large"):
        videos.read_video(tmp_path / "a.mp4")


def test_a_limit_of_address_space_counts_as_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
        assert free_bytes(torch.device("cpu")) <= 2**28
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert free_bytes(torch.device("cpu")) > 2**28


def test_grey_of_16_bits_is_rounded_as_in_float64(tmp_path):
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(grey).save(tmp_path / "a.png")
    truth = (grey.astype(np.float64) / 257).round()
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], truth)


def test_a_slice_of_the_fuzz_run():
    """The whole of it: python tests/fuzz.py --seed 1 --inputs 20000"""
    tasks = [(kind, index) for index in range(25) for kind in fuzz.KINDS]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz.run(3, tasks, Path(folder))
    assert len(outcomes) == len(tasks)
    assert [o for o in outcomes if o["ended"] in fuzz.DEFECTS] == []
    for kind in fuzz.KINDS:
        # neither reads nothing nor refuses nothing
        assert {o["ended"] for o in outcomes if o["kind"] == kind} == {"result", "InputError"}


@pytest.mark.parametrize("ended", ["crash", "time"])
def test_a_process_that_dies_or_hangs_is_counted_and_replaced(tmp_path, monkeypatch, ended):
    script = (
        "import os, sys\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line == 'clip 1\\n':\n        ACT\n"
        '    print(\'{"ended": "result", "says": "", "seconds": 0, "peak": 0}\', flush=True)\n'
    )
    act = "os.abort()" if ended == "crash" else "while True: pass"
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    command = [fuzz.sys.executable, "-c", script.replace("ACT", act)]
    monkeypatch.setattr(fuzz, "_command", lambda *options: command)
    (tmp_path / "examples").mkdir()
    worker = fuzz.Worker(tmp_path / "examples", 0)
    try:
        assert [worker.read("clip", i)["ended"] for i in range(3)] == ["result", ended, "result"]
    finally:
        worker.close()
