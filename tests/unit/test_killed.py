"""kill -9 at random moments: no half file under the final name, and the same command succeeds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import anyv2v
from anyv2v.loading import inspect
from tests.oracles import golden

ROOT = Path(__file__).parents[2]

# one process loads the package; a child of it runs the command as the command line would
RUNNER = """
import json, os, random, signal, sys, time
import torch
import anyv2v.pipeline.source
from anyv2v.cli.main import main
torch.set_num_threads(1)
anyv2v.pipeline.source.SAVE_EVERY = 0.0

def start(args):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(args))
    return child

def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

random.seed(int(sys.argv[1]))
args = json.loads(sys.argv[2])
began = time.monotonic()
assert status(start(args)) == 0, "the command fails when nobody kills it"
takes = time.monotonic() - began
print("ready", flush=True)
for line in sys.stdin:
    order, share = line.split()
    began = time.monotonic()
    child = start(args)
    if order == "kill":
        time.sleep((float(share) + random.random() * (1 - float(share))) * takes)
        os.kill(child, signal.SIGKILL)
    ended = status(child)
    if order == "again":
        # how long it takes now: other work on the machine comes and goes
        takes = time.monotonic() - began
    print(ended, flush=True)
"""


class Commands:
    """Runs one command again and again, killed or not."""

    def __init__(self, seed, args, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(seed), json.dumps([str(a) for a in args])],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def run(self, order, share=0.0):
        self._process.stdin.write(f"{order} {share}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def check_killed(args, folder, output, check, moments, seed, late, beside=()):
    """Kills the command at so many moments; every other one in its last part, from `late` on."""
    commands, hit = Commands(seed, args, folder), 0
    try:
        check(output)
        for moment in range(moments):
            remove(output)
            status = commands.run("kill", late if moment % 2 else 0.0)
            assert status in (-signal.SIGKILL, 0)
            hit += status != 0
            # whole or not at all
            if output.exists():
                check(output)
                remove(output)
            assert commands.run("again") == 0
            check(output)
            # what the killed run left is gone too
            assert sorted(os.listdir(folder)) == [output.name, *beside]
    finally:
        commands.close()
    # a run that ended before its moment shows nothing
    assert hit >= moments * 2 // 3


def remove(path):
    if path.is_dir():
        for each in sorted(path.rglob("*"), reverse=True):
            each.rmdir() if each.is_dir() else each.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, video):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    anyv2v.write_video(path, np.concatenate([video.frames] * 8), fps=16)
    return path


OPTIONS = ("--size", "32x32", "--frames", "3", "--device", "cpu", "--quiet")


@pytest.mark.slow
def test_a_conversion_is_killed(snapshot, tmp_path):
    output = tmp_path / "weights"
    check_killed(["convert", snapshot, output], tmp_path, output, inspect, 16, 1, 0.5)


@pytest.mark.slow
def test_an_inversion_is_killed(clip, weights, tmp_path):
    output = tmp_path / "clip.safetensors"
    args = ["invert", clip, "-o", output, "--weights", weights, "--inversion-steps", "8", *OPTIONS]

    def check(path):
        with safe_open(path, "pt") as file:
            assert sum(name.startswith("latents.") for name in file.keys()) == 8
            assert "clean" in file.keys()
        anyv2v.Source.load(path)

    beside = [f"{output.name}.json"]
    check_killed(args, tmp_path, output, check, 17, 2, 0.5, beside)


@pytest.mark.slow
def test_an_edit_is_killed(clip, weights, tmp_path, tmp_path_factory):
    frame = tmp_path_factory.mktemp("frame") / "edited.png"
    Image.fromarray(golden.tensors("inputs")["edited_raw"].numpy()).save(frame)
    output = tmp_path / "out.mp4"
    args = ["edit", clip, "-o", output, "--frame", frame, "--prompt", "a robot", *OPTIONS]
    args += ["--weights", weights, "--steps", "1", "--inversion-steps", "1", "--fit", "crop"]

    def check(path):
        assert anyv2v.read_video(path).frames.shape == (3, 32, 32, 3)

    beside = [f"{output.name}.json"]
    check_killed(args, tmp_path, output, check, 17, 3, 0.7, beside)
