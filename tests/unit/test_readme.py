"""README's Python runs as it stands there, at a smaller size."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.injection import taps
from tests.oracles import golden

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALLER = {"(512, 512)": "(64, 64)", "frames=16": "frames=4"}
SMALLER |= {'invert_long("man-walking.mp4",': "invert_long(video, window=3, steps=2,"}
SMALLER |= {'keyframes={48: "later.png"}': 'steps=2, keyframes={3: "edited.png"}'}


@pytest.mark.slow
def test_the_python_examples_run(weights, tmp_path, monkeypatch, video):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
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
    assert scope["long"].frames.shape == (4, 64, 64, 3) and 0 <= scope["long"].kept <= 1
    out = anyv2v.read_video("out.mp4")
    assert out.frames.shape == (4, 64, 64, 3) and out.fps == 8
    # the injection of one's own is the paper's, at half of the sites
    sites = [
        site for site in scope["editor"].sites if "up.2.spatial" in site and "cross" not in site
    ]
    same = anyv2v.Injection(conv=0.5, spatial=0.5, temporal=0, sites={"spatial": sites})
    edits = [
        scope["editor"].edit(scope["source"], "edited.png", "a man", steps=10, injection=injection)
        for injection in (same, anyv2v.Injection.none())
    ]
    mine, theirs, without = (edit.latents for edit in (scope["edit"], *edits))
    assert golden.relative_error(mine, theirs) < 1e-5
    assert golden.relative_error(mine, without) > 1e-2


def test_an_author_of_an_injection_meets_few_names():
    """Classes and methods that the example and its base mention, but for those of any edit."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (example,) = (block for block in blocks if "(anyv2v.Taps)" in block)
    first, base = ast.parse(blocks[0]), ast.parse(inspect.getsource(anyv2v.Taps))
    others = {node.attr for node in ast.walk(first) if isinstance(node, ast.Attribute)}
    found = set()
    for node in (*ast.walk(ast.parse(example)), *ast.walk(base)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    classes = {name for name in vars(taps) if name[0].isupper()} | {*anyv2v.__all__}
    methods = [anyv2v.Taps, anyv2v.Injection, taps.Feature, anyv2v.Editor]
    callables = {n for of in methods for n, x in vars(of).items() if inspect.isfunction(x)}
    callables |= {"none"}
    private = {name for name in found if name.startswith("_")}
    met = (found & (classes | callables)) - (others - {"Injection"}) - private - {"Tensor"}
    assert "qkv" in met and "Injection" in met
    assert len(met) <= 12, sorted(met)


def test_the_commands_make_their_own_environment():
    commands = re.findall(r"```bash\n(python3 -m venv .*)\n```", README)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)


@pytest.mark.parametrize("option", re.findall(r"`(anyv2v \w+)", README))
def test_commands_that_readme_names_exist(option, capsys):
    from anyv2v.cli.main import main

    command = option.split()[1]
    if command == "COMMAND":
        return
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert command in capsys.readouterr().out
