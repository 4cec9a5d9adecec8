"""A machine without PyAV and without the oracles, as one that is rented for its GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MISSING = ("av", "diffusers", "transformers", "huggingface_hub", "cv2")
WITHOUT = f"import sys; sys.modules |= dict.fromkeys({MISSING})\n"


def python(code, folder):
    """Runs code in an interpreter of its own, to which these packages are not installed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_what_needs_no_video_runs_and_the_rest_says_what_is_missing(tmp_path):
    Image.fromarray(np.full((16, 16, 3), (255, 0, 0), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"never read")
    code = """
from anyv2v.cli.main import main

def status(command):
    try:
        return main(command.split())
    except SystemExit as end:
        return end.code

names = "demo", "convert", "weights verify", "weights fetch", "edit", "edit-frame", "plan"
for name in ("", *names, "invert", "reconstruct", "evaluate", "batch", "info"):
    assert status(f"{name} --help") == 0, name
assert status("--version") == 0
assert status("weights verify demo -q") == 0
assert status("edit-frame a.png -o b.png --editor recolour --instruction blue") == 0
for command in (
    "demo -o demo",
    "plan a.mp4",
    "invert a.mp4 -o a.safetensors",
    "edit a.safetensors -o b.mp4 --prompt x --frame a.png",
    "edit-frame a.mp4 -o c.png --editor recolour --instruction blue",
    "evaluate a.mp4",
):
    assert status(command) == 2, command
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 6 and all("pip install av" in line for line in said), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.mp4", "b.png", "b.png.json"}


@pytest.mark.slow
def test_every_module_with_tests_for_a_gpu_is_collected():
    """A module that is skipped for want of an oracle would take them along."""
    code = """
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider"]))
"""
    done = python(code, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__) and "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    }
    assert collected == wanted
