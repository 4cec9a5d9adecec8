"""Who imports whom, which names are public, and the folders that must not become packages."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import anyv2v

ROOT = Path(__file__).parents[2]
PLAIN = ("kernels", "weights", "convert", "bench", "tests")

STAGE_ONE = ("anyv2v.stable_diffusion", "anyv2v.editors")
STAGE_TWO = (
    "anyv2v.accounting",
    "anyv2v.demo",
    "anyv2v.edit",
    "anyv2v.editor",
    "anyv2v.finite",
    "anyv2v.loading",
    "anyv2v.memory",
    "anyv2v.notices",
    "anyv2v.offload",
    "anyv2v.pipeline",
    "anyv2v.plan",
    "anyv2v.settings",
    "anyv2v.source",
    "anyv2v.source_upgrade",
)
VIDEO_FILES = (
    "anyv2v.media.color",
    "anyv2v.media.container",
    "anyv2v.media.ffmpeg",
    "anyv2v.media.fields",
    "anyv2v.media.frame",
    "anyv2v.media.seek",
    "anyv2v.media.timing",
)
# part -> what it must not import; the parts of README's picture
FORBIDDEN = {
    "anyv2v.kernels": ("anyv2v.",),
    "anyv2v.injection": (
        "anyv2v.nn",
        "anyv2v.backbones",
        "anyv2v.kernels",
        "anyv2v.diffusion",
        *STAGE_ONE,
    ),
    "anyv2v.diffusion": (
        "anyv2v.nn",
        "anyv2v.backbones",
        "anyv2v.kernels",
        "anyv2v.injection",
        "anyv2v.weights",
        "anyv2v.convert",
        "anyv2v.media",
        "anyv2v.vae",
        "anyv2v.clip",
        *STAGE_ONE,
    ),
    "anyv2v.nn": ("anyv2v.backbones", "anyv2v.diffusion", "anyv2v.weights", *STAGE_ONE),
    "anyv2v.backbones": (
        "anyv2v.diffusion.inversion",
        "anyv2v.diffusion.samplers",
        "anyv2v.diffusion.trajectory",
        "anyv2v.pipeline",
        "anyv2v.weights",
        "anyv2v.convert",
        "anyv2v.media.video",
        *VIDEO_FILES,
        "anyv2v.editor",
        *STAGE_ONE,
    ),
    # each of these has one concern, and the module that reads and writes is on top of them
    **dict.fromkeys(VIDEO_FILES, ("anyv2v.media.video", "anyv2v.editor", *STAGE_ONE)),
    "anyv2v.vae": ("anyv2v.backbones", "anyv2v.diffusion", "anyv2v.weights", *STAGE_ONE),
    "anyv2v.clip": ("anyv2v.backbones", "anyv2v.diffusion", "anyv2v.weights", *STAGE_ONE),
    # the other way round: a network of stage one, and what edits with it
    "anyv2v.stable_diffusion": (
        "anyv2v.backbones",
        "anyv2v.diffusion",
        "anyv2v.convert",
        "anyv2v.media",
        "anyv2v.editor",
        "anyv2v.editors",
        "anyv2v.loading",
    ),
    "anyv2v.editors": ("anyv2v.backbones", "anyv2v.diffusion", "anyv2v.editor", "anyv2v.convert"),
    "anyv2v.weights": (
        "anyv2v.backbones",
        "anyv2v.diffusion",
        "anyv2v.nn",
        "anyv2v.editor",
        *STAGE_ONE,
    ),
    "anyv2v.convert": (
        "anyv2v.backbones",
        "anyv2v.kernels",
        "anyv2v.nn",
        "triton",
        *STAGE_ONE,
    ),
    # the modules of stage two that are no part of one of these
    **dict.fromkeys(STAGE_TWO, STAGE_ONE),
    "anyv2v": ("diffusers", "transformers", "accelerate", "kernels", "weights", "convert"),
}

STAGE_ONE = "anyv2v.editors"


def modules():
    for path in sorted((ROOT / "anyv2v").rglob("*.py")):
        yield path, ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("kernels", "weights", "convert"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, "anyv2v." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part if part.endswith(".") else part + ".")


def test_every_part_imports_only_what_it_may_know():
    seen, wrong = set(), []
    for path, module in modules():
        for part, forbidden in FORBIDDEN.items():
            if not within(module, part):
                continue
            seen.add(part)
            for name in imports(path):
                inside = within(name, part) and part != "anyv2v"
                # the recipe of the demo model is where weights come from, so it knows networks
                inside |= within(module, "anyv2v.weights.demo.train") and part == "anyv2v.weights"
                if not inside and any(within(name, f) for f in forbidden):
                    wrong.append(f"{module} imports {name}")
    assert seen == set(FORBIDDEN)
    assert not wrong


def test_stage_two_knows_nothing_of_stage_one():
    users = {
        module
        for path, module in modules()
        if any(within(name, STAGE_ONE) for name in imports(path)) and not within(module, STAGE_ONE)
    }
    # the package itself passes `edit_frame` on, when it is asked for
    assert users == {"anyv2v.__init__", "anyv2v.cli", "anyv2v.options"}


def test_only_media_knows_av():
    users = {module for path, module in modules() if "av" in imports(path)}
    assert users == {"anyv2v.media.ffmpeg"}


def test_folders_at_the_top_are_no_packages():
    """transformers and diffusers look for a package called kernels and must not find ours."""
    assert not [folder for folder in PLAIN if (ROOT / folder / "__init__.py").exists()]
    for folder in ("kernels", "weights", "convert"):
        assert (ROOT / "anyv2v" / folder).resolve() == ROOT / folder
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or ROOT not in Path(found.origin).parents


def test_importing_defines_and_does_nothing_else(tmp_path):
    code = (
        "import os, sys, anyv2v, anyv2v.__main__; assert 'torch' not in sys.modules\n"
        "import torch; before = torch.get_num_threads(), torch.is_grad_enabled()\n"
        "import anyv2v, anyv2v.cli\n"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled())\n"
        "assert not os.listdir(), os.listdir()\n"
        "assert not {'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names_are_frozen():
    """To change a public name, change the list in the same commit."""
    frozen = json.loads((ROOT / "tests" / "goldens" / "public_names.json").read_text())
    assert sorted(anyv2v.__all__) == frozen["anyv2v"]
    members = [n for n in dir(anyv2v.Editor) if not n.startswith("_")]
    assert sorted(members) == frozen["Editor"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = set(re.findall(r"[\w./-]+/[\w.-]+\.(?:py|md|txt)\b", text))
    assert paths, "the document names no file at all"
    assert not [p for p in paths if not (ROOT / p).exists()]
