"""The blocks of code of README and the documents run, on small weights and clips."""

import ast
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from anyv2v.cli.main import main
from anyv2v.cli.model import Model
from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks, command_parser

# large -> small, in commands and in Python
SMALLER = {"48:later.png": "3:later.png", "{48:": "{3:", "(512, 512)": "(64, 64)"}
SMALLER |= {"frames=16": "frames=4", 'load("demo")': 'load("weights/demo")'}
SMALLER |= {"ours,paper,copy": "ours,plain,copy", "--blind paper,": "--blind plain,"}
SMALLER |= {"=weights/ip-adapter": "=weights/ip-adapter --editor-option size=64"}
LANGUAGES = {"bash", "python", "yaml", "bibtex", "{toctree}"}


def test_no_block_is_of_a_language_that_nobody_runs():
    assert {block.language for block in blocks()} == LANGUAGES


def test_at_most_three_blocks_are_not_run_each_with_a_reason():
    left = [block for block in blocks() if block.not_run is not None]
    assert len(left) <= 3 and all(len(block.not_run.split()) >= 3 for block in left)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.document)
def test_python_parses(block):
    # a block that holds comments alone shows nothing
    assert ast.parse(block.text).body


@pytest.mark.parametrize("block", blocks("bash"), ids=lambda block: block.document)
def test_commands_are_accepted(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out.mp4.json").write_text('{"video": "man-walking.mp4", "prompt": "a man"}')
    for words in block.commands:
        if words[0] == "anyv2v":
            command_parser().parse_args(words[1:])
        else:
            assert words[0] in CHECKED, f"nobody checks {words[0]}"


def is_of_readme(words: list[str], block: Block) -> None:
    """.ci/run takes these commands from README and runs them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert block.text.strip() in [line for line in readme if line.startswith("python3 -m venv")]


def is_installable(words: list[str], block: Block) -> None:
    assert words[:4] == ["pip", "install", "-c", "constraints.txt"]
    assert (ROOT / "constraints.txt").exists()
    (what,) = words[4:]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert what[:2] == ".[" and f"\n{what[2:-1]} = [" in extras


def runs(words: list[str], block: Block) -> None:
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def is_of_the_suite(words: list[str], block: Block) -> None:
    """Without options these tests run beside this one."""
    assert len(words) == 2 and (ROOT / words[1]).is_file()


CHECKED = {"python3": is_of_readme, "pip": is_installable, "python": runs}
CHECKED |= {"pytest": is_of_the_suite}


@pytest.fixture(scope="module")
def world(tmp_path_factory, weights):
    """A folder with all files that the documents name."""
    pytest.importorskip("av")
    # it needs PyAV
    from tests.docs.world import make

    folder = tmp_path_factory.mktemp("world")
    make(folder, weights)
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """What is loaded is kept, because most commands name the same weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "load", cache(Model.load))
        yield


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A folder of its own for each document, with links to the files of the world."""
    for path in world.iterdir():
        # an output of the world is replaced, so it is copied
        if path.name.startswith("out.mp4"):
            shutil.copy(path, tmp_path)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    # the demo's, with fewer steps by default
    monkeypatch.setenv("ANYV2V_WEIGHTS", "weights/demo")
    return tmp_path


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def run(block: Block, scope: dict) -> None:
    text = smaller(block.text)
    if block.language == "python":
        exec(compile(text, block.document, "exec"), scope)
        return
    for words in Block(block.document, "bash", text, None).commands:
        if words[0] != "anyv2v":
            CHECKED[words[0]](words, block)
            continue
        # to plan what is recorded takes longer than an edit by these weights
        fewer = ["--feature-memory", "0"] if words[1] == "edit" else []
        assert main([*words[1:], *fewer, "--force", "-q"]) == 0, words
        args = command_parser().parse_args(words[1:])
        made = getattr(args, "output", None) or []
        if not getattr(args, "dry_run", False):
            for path in [made] if isinstance(made, str) else made:
                assert Path(path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("document", [p.name for p in DOCUMENTS])
def test_blocks_run(document, here):
    scope: dict = {}
    own = [block for block in blocks("bash", "python") if block.document == document]
    for block in own:
        if block.not_run is None:
            run(block, scope)
    # Python that assigns nothing has shown nothing
    assert any(block.language == "python" for block in own) == bool(scope)
