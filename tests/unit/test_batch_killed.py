"""Batches that are killed: no edit is made twice or missing, and all are as without a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anyv2v
from tests.unit.test_batch import environment, is_alive, lines

# a process that loads the package once, whose children run the command as the command line would
RUNNER = """
import json, os, sys
import torch
import anyv2v.pipeline.source
from anyv2v.cli.main import main
torch.set_num_threads(1)
anyv2v.pipeline.source.SAVE_EVERY = 0.0
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Runs `anyv2v batch` in one child process after the other."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            cwd=folder,
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def start(self, *args):
        """Starts a run, and returns the id of its process."""
        self._process.stdin.write(json.dumps(["batch", *map(str, args)]) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def status(self):
        """The exit status of the run, once it has ended."""
        return int(self._line())

    def _line(self):
        return self._process.stdout.readline().strip()

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def write_jobs(folder, clips, edits):
    """Writes a file of jobs with its clips and pictures, and returns the paths of its outputs."""
    rng, text = np.random.default_rng(0), ""
    for i in range(clips):
        frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        anyv2v.write_video(folder / f"c{i}.mp4", frames, fps=8)
        Image.fromarray(255 - frames[0]).save(folder / f"f{i}.png")
        for j in range(edits):
            edit = {"video": f"c{i}.mp4", "frame": f"f{i}.png", "prompt": f"thing {j}"}
            edit |= {"output": f"c{i}/e{j}.mp4", "guidance": 2 + j, "conv": j / 2}
            small = {"size": "32x32", "frames": 3, "steps": 2, "method": "fixed-point"}
            text += json.dumps(edit | small) + "\n"
    (folder / "jobs.jsonl").write_text(text)
    return [f"c{i}/e{j}.mp4" for i in range(clips) for j in range(edits)]


def check(folder, outputs, others):
    """All outputs are there, were made once, and have the same latents in the other folder."""
    made = Counter(line["output"] for line in lines(folder / "done.jsonl"))
    # a run that dies between an output and its line leaves it without one
    assert set(made) <= set(outputs) and set(made.values()) == {1}
    for output in outputs:
        mine, other = (
            json.loads((place / f"{output}.json").read_text()) for place in (folder, others)
        )
        assert mine["latents_sha256"] == other["latents_sha256"], output
        assert mine["key"] == other["key"] and mine["evaluations"] == other["evaluations"]
        assert len(anyv2v.read_video(folder / output).frames) == 3
    parts = [path for path in folder.rglob("*") if path.name.endswith((".part", ".unfinished"))]
    assert not parts and not (folder / "failed.jsonl").exists()


@pytest.mark.acceptance
def test_runs_are_killed_ten_times(weights, tmp_path):
    outputs, runs = write_jobs(tmp_path, 12, 3), Runs(tmp_path)
    chance, killed, done = random.Random(1), 0, tmp_path / "out" / "done.jsonl"
    given = "jobs.jsonl", "--weights", weights, "--device", "cpu", "-q"
    try:
        began = time.monotonic()
        runs.start(*given, "-o", "whole")
        assert runs.status() == 0
        takes = time.monotonic() - began
        for _ in range(10):
            before, pid = len(lines(done)), runs.start(*given, "-o", "out")
            # at any moment of the second edit, or of the fourth
            more = chance.choice((1, 3))
            while len(lines(done)) < before + more and is_alive(pid):
                time.sleep(0.03)
            time.sleep(chance.random() * takes / 36)
            os.kill(pid, signal.SIGKILL)
            killed += runs.status() == -signal.SIGKILL
        runs.start(*given, "-o", "out")
        assert runs.status() == 0
    finally:
        runs.close()
    assert killed == 10
    check(tmp_path / "out", outputs, tmp_path / "whole")
    assert len({line["pid"] for line in lines(tmp_path / "out" / "done.jsonl")}) > 3


@pytest.mark.slow
def test_two_runs_side_by_side(tmp_path):
    outputs, given = write_jobs(tmp_path, 4, 2), ("jobs.jsonl", "--device", "cpu", "-q")
    both = [Runs(tmp_path), Runs(tmp_path)]
    try:
        for one in both:
            one.start(*given, "-o", "out")
        assert [one.status() for one in both] == [0, 0]
        both[0].start(*given, "-o", "whole")
        assert both[0].status() == 0
    finally:
        for one in both:
            one.close()
    check(tmp_path / "out", outputs, tmp_path / "whole")
    assert len({line["pid"] for line in lines(tmp_path / "out" / "done.jsonl")}) == 2


def killed_workers(folder, engine, kills):
    """Runs with two workers, of which some are killed; returns the ids of all that made edits."""
    command = [sys.executable, "-m", "anyv2v", "batch", "jobs.jsonl", "-o", "out", "-q"]
    command += ["--device", "cpu", "--engine", engine, "--workers", "2"]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
    done, dead = folder / "out" / "done.jsonl", set()
    while run.poll() is None and len(dead) < kills:
        pids = {line["pid"] for line in lines(done)} - dead
        for pid in sorted(pids)[:1]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
        time.sleep(0.05)
    error = run.communicate()[1]
    assert run.returncode == 0, error
    assert len(dead) == kills
    return {line["pid"] for line in lines(done)}


def undisturbed(folder):
    runs = Runs(folder)
    runs.start("jobs.jsonl", "--device", "cpu", "-q", "-o", "whole")
    assert runs.status() == 0
    runs.close()


@pytest.mark.slow
def test_processes_are_killed(tmp_path):
    outputs = write_jobs(tmp_path, 4, 2)
    pids = killed_workers(tmp_path, "local", 2)
    undisturbed(tmp_path)
    check(tmp_path / "out", outputs, tmp_path / "whole")
    assert len(pids) >= 3 and os.getpid() not in pids


@pytest.mark.slow
def test_actors_of_ray_are_killed(tmp_path):
    pytest.importorskip("ray")
    outputs = write_jobs(tmp_path, 4, 2)
    pids = killed_workers(tmp_path, "ray", 2)
    undisturbed(tmp_path)
    check(tmp_path / "out", outputs, tmp_path / "whole")
    assert len(pids) >= 3


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(tmp_path):
    write_jobs(tmp_path, 6, 3)
    command = [sys.executable, "-m", "anyv2v", "batch", "jobs.jsonl", "-o", "out"]
    command += ["--device", "cpu", "--workers", "2"]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    done = tmp_path / "out" / "done.jsonl"
    while not lines(done):
        time.sleep(0.05)
    # as a terminal does: to the driver and its children
    os.killpg(run.pid, signal.SIGINT)
    error = run.communicate()[1]
    assert run.returncode == 128 + signal.SIGINT
    assert [x for x in error.splitlines() if "demo weights" not in x] == ["anyv2v: interrupted"]
    assert not any(is_alive(line["pid"]) for line in lines(done))
    assert not list((tmp_path / "out").rglob("*.part"))


def test_jobs_of_these_tests_are_one_clip_each(tmp_path):
    from anyv2v.batch.jobs import read_jobs

    outputs = write_jobs(tmp_path, 2, 3)
    tasks = read_jobs(tmp_path / "jobs.jsonl")
    assert [[edit.output for edit in task.edits] for task in tasks] == [outputs[:3], outputs[3:]]
    assert Path(tasks[1].video) == tmp_path / "c1.mp4"
