"""README's Python runs as it stands there, at a smaller size."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from tests import golden

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALLER = {"(512, 512)": "(64, 64)", "frames=16": "frames=4"}


def test_the_python_examples_run(weights, tmp_path, monkeypatch, video):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "i2vgen-xl").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    anyv2v.write_video("man-walking.mp4", np.concatenate([video.frames] * 3), fps=12)
    Image.fromarray(golden.tensors("inputs")["edited_raw"].numpy()).save("edited.png")
    scope = {}
    for block in blocks:
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["latents"].shape == (1, 4, 4, 8, 8)
    out = anyv2v.read_video("out.mp4")
    assert out.frames.shape == (4, 64, 64, 3) and out.fps == 8
    plain = scope["editor"].predict(
        torch.cat([scope["source"].trajectory[981]] * 2),
        981,
        type(scope["rows"][0]).stack(scope["rows"]),
    )
    assert torch.equal(plain[0], scope["v"][0])
    assert golden.relative_error(scope["v"][1], plain[1]) > 1e-4


def test_the_commands_make_their_own_environment():
    commands = re.findall(r"```bash\n(python3 -m venv .*)\n```", README)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)


@pytest.mark.parametrize("option", re.findall(r"`(anyv2v \w+)", README))
def test_commands_that_readme_names_exist(option, capsys):
    from anyv2v.cli import main

    command = option.split()[1]
    if command == "COMMAND":
        return
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert command in capsys.readouterr().out
