"""What the package logs, and `-v`, which shows it on stderr."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v.cli.console import verbose
from anyv2v.cli.main import main
from anyv2v.diffusion.schedule import Level
from anyv2v.injection.taps import NO_TAPS
from anyv2v.kernels import choose
from anyv2v.kernels.choose import Implementation
from anyv2v.pipeline.cuda_graphs import Graphs
from anyv2v.pipeline.step_plan import plan_steps
from anyv2v.runtime.offload import Offload
from anyv2v.runtime.stage import stage

CPU = torch.device("cpu")


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(*words) -> status, stdout, lines of stderr, of a short edit."""
    monkeypatch.chdir(tmp_path)
    choose.USED.clear()
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    anyv2v.write_video("clip.mp4", frames, fps=8)
    Image.fromarray(frames[0]).save("clip.png")
    line = "edit clip.mp4 --frame clip.png --prompt x -o out.mp4 --steps 2 --frames 3 --force"

    def run(*words):
        status = main([*line.split(), *words])
        out, err = capfd.readouterr()
        return status, out, err.splitlines()

    return run


def latents() -> str:
    return json.loads(Path("out.mp4.json").read_text())["latents_sha256"]


def test_stages_are_told_and_results_are_the_same(run):
    status, out, said = run("-q", "-v")
    assert status == 0
    with_v = latents()
    # nothing is left for the next command, which says what the demo weights are for
    status, plain, notices = run("-q")
    assert status == 0 and len(notices) == 1 and out == plain and latents() == with_v
    assert all(line.startswith("anyv2v: ") for line in said) and notices[0] in said
    told = [line.removeprefix("anyv2v: ") for line in said]
    for name in ("load", "encode", "invert", "edit", "decode"):
        pattern = rf"{name}: .*: \d+\.\d\d s, peak \d+\.\d\d GB so far"
        assert [line for line in told if re.fullmatch(pattern, line)], name
    assert [line for line in told if line.startswith("kernels: attention is run by sdpa (triton: ")]
    assert any(line.startswith("features: ") for line in told)
    assert not [line for line in told if line.startswith("edit: step ")]


def test_more_detail_and_the_source_in_the_batch(run):
    status, _, said = run("-q", "-vv", "--feature-memory", "0")
    assert status == 0
    assert [line for line in said if re.match(r"anyv2v: edit: step 0, t = \d+: batched, \d+", line)]
    why = [x for x in said if re.search(r"edit: 1 of 2 steps have the source in the batch, ", x)]
    assert len(why) == 1 and why[0].endswith("since the features that they inject are not recorded")


def test_why_the_source_is_in_the_batch(caplog):
    levels = [Level(i, 900 - i, 0.5, 0.5) for i in range(3)]
    sites = {0: frozenset({"a"}), 1: frozenset(), 2: frozenset()}

    def told(*how):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            plan_steps(levels, sites, lambda *_: False, *how).log_to(logging.getLogger("anyv2v.x"))
        return [r.getMessage().removeprefix("edit: ") for r in caplog.records]

    batched = "steps have the source in the batch, "
    assert told("shared") == [
        f"1 of 3 {batched}since the features that they inject are not recorded",
        "2 of 3 steps inject nothing",
    ]
    assert told("always") == [f"3 of 3 {batched}as the caller has chosen"]
    assert told("shared", {1}) == [
        f"1 of 3 {batched}since the features that they inject are not recorded",
        f"1 of 3 {batched}for the caller's own taps",
        "1 of 3 steps inject nothing",
    ]


def test_every_command_takes_it(capfd):
    assert main(["weights", "verify", "demo", "-q", "-v"]) == 0
    capfd.readouterr()
    assert main(["edit", "nowhere.mp4", "-v", "--prompt", "x", "--frame", "y", "-o", "z.mp4"]) == 2


def test_a_job_file_has_no_say_in_it(tmp_path, capfd):
    (tmp_path / "config.yaml").write_text("verbose: 2\n")
    assert main(["info", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "there is no option 'verbose'" in capfd.readouterr().err


def test_warnings_are_told_once_with_and_without_it(capfd, monkeypatch):
    # pytest's own handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = logging.getLogger("anyv2v.media.sound")
    for times in (0, 1):
        with verbose(times):
            log.warning("anyv2v: no %s", "sound")
            log.debug("nothing")
        assert capfd.readouterr().err == "anyv2v: no sound\n"
    with verbose(1):
        log.info("two\nlines")
    assert capfd.readouterr().err == "anyv2v: two lines\n"


def test_python_users_ask_the_logger(caplog):
    with caplog.at_level(logging.INFO, logger="anyv2v"):
        anyv2v.load("demo", device="cpu")
    (record,) = [r for r in caplog.records if r.getMessage().startswith("load: ")]
    assert record.name == "anyv2v.loading"
    caplog.clear()
    anyv2v.load("demo", device="cpu")
    assert not caplog.records


def test_a_stage_that_fails_or_that_nobody_asks_for(caplog):
    log = logging.getLogger("anyv2v.test")
    with pytest.raises(KeyError), caplog.at_level(logging.INFO), stage(log, CPU, "work"):
        raise KeyError
    with stage(log, torch.device("cuda"), "work"):
        pass  # measures nothing, or there would be an error without a GPU
    assert not caplog.records


def test_kernels_that_are_chosen_are_told_with_the_reason_once(caplog, monkeypatch):
    monkeypatch.setattr(choose, "USED", {})
    table = (
        Implementation("fast", lambda x: x, lambda *_: "it is Monday"),
        Implementation("slow", lambda x: x, lambda *_: None),
    )
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            choose.choose("op", table, None, torch.zeros(1))
        choose.choose("other", table, "slow", torch.zeros(1))
        # tensors without data run nothing
        choose.choose("third", table, None, torch.zeros(1, device="meta"))
    assert [r.getMessage() for r in caplog.records] == [
        "kernels: op is run by slow (fast: it is Monday)",
        "kernels: other is run by slow, which was asked for",
    ]


class Tape:
    """Captures by running, and replays nothing."""

    def warm_up(self, run):
        return run()

    def capture(self, run):
        return run(), lambda: None


def test_captures_and_moves_are_told(caplog):
    graphs = Graphs(lambda latents, *_: latents + 1, CPU, Tape())
    conditions = object()
    network = torch.nn.Linear(3, 5)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            graphs(torch.zeros(1, 4, 2, 3, 3), 1, conditions, NO_TAPS)
        offload = Offload([network], CPU, True, host=torch.device("cpu", 1))
        with offload.on_device(network):
            pass
    told = [r.getMessage() for r in caplog.records]
    assert told[0] == "CUDA graphs: captured a step on latents of 1x4x2x3x3"
    assert told[1:] == [
        "offload: 80 bytes of weights to the host",
        "offload: 80 bytes of weights to cpu",
        "offload: 80 bytes of weights to the host",
    ]
    assert sys.modules["anyv2v.runtime.offload"].log.name == "anyv2v.runtime.offload"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_batch_tells_at_once_and_keeps_notes_apart(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    anyv2v.write_video("clip.mp4", frames, fps=8)
    Image.fromarray(frames[0]).save("clip.png")
    edit = {"frame": "clip.png", "prompt": "x", "steps": 2, "frames": 3}
    Path("jobs.jsonl").write_text(json.dumps({"video": "clip.mp4", "edits": [edit]}) + "\n")
    command = [sys.executable, "-m", "anyv2v", "batch", "jobs.jsonl", "-o", "out", "-v"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--workers", workers], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    inverted = [line for line in said if line.startswith("anyv2v: invert: 2 steps")]
    assert len(inverted) == 1, done.stderr
    # what the edit itself has to say comes when it is made
    assert said.index(inverted[0]) < next(i for i, x in enumerate(said) if "demo weights" in x)


@pytest.mark.gpu
def test_a_stage_on_a_gpu_tells_its_own_peak(caplog):
    gpu, log = torch.device("cuda"), logging.getLogger("anyv2v.test")
    with caplog.at_level(logging.INFO):
        with stage(log, gpu, "large"):
            torch.empty(10**9, dtype=torch.uint8, device=gpu)
        with stage(log, gpu, "small"):
            pass
    peaks = [float(re.search(r"peak (\S+) GB$", r.getMessage())[1]) for r in caplog.records]
    assert peaks[0] >= 1 and peaks[0] - peaks[1] == pytest.approx(1, abs=0.02)
