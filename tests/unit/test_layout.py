"""Who imports whom, which names are public, and the folders that must not become packages."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import anyv2v

ROOT = Path(__file__).parents[2]
PLAIN = ("kernels", "weights", "convert", "bench", "tests")

VIDEO_FILES = (
    "anyv2v.media.color",
    "anyv2v.media.container",
    "anyv2v.media.ffmpeg",
    "anyv2v.media.fields",
    "anyv2v.media.frame",
    "anyv2v.media.seek",
    "anyv2v.media.timing",
)
SITES = re.compile(r"anyv2v\.backbones\.\w+\.(sites|precision)(\..*)?")
FOR_ALL = ("runtime", "errors", "checks", "config")
# what the table of parts does not say: module or part -> what it must not import
FORBIDDEN = {
    "anyv2v.backbones": (
        "anyv2v.diffusion.inversion",
        "anyv2v.diffusion.samplers",
        "anyv2v.diffusion.trajectory",
    ),
    # each of these has one concern, and the module that reads and writes is on top of them
    **dict.fromkeys(VIDEO_FILES, ("anyv2v.media.video",)),
    "anyv2v.convert": ("torch.nn", "triton"),
    "anyv2v": ("diffusers", "transformers", "accelerate", "kernels", "weights", "convert"),
}


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


def part_of(module: str) -> str:
    return module.split(".")[1]


def known_parts(path: Path, module: str) -> set[str]:
    """The other parts that a module imports from, but for those that are for all."""
    names = [name for name in imports(path) if within(name, "anyv2v") and "." in name]
    return {part_of(name) for name in names} - {part_of(module), "__init__", *FOR_ALL}


def table_of_parts() -> dict[str, set[str]]:
    """part -> the parts that it imports, in the order of the table in docs/parts.md."""
    text = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    rows = text.split("| part | what it is | imports |")[1].split("\n\n")[0].splitlines()[2:]
    table: dict[str, set[str]] = {}
    for row in rows:
        path, _, names = (cell.strip() for cell in row.strip("|").split("|"))
        name = path.strip("`/").removeprefix("anyv2v/").removesuffix(".py")
        known = set(filter(None, names.split(", ")))
        table[name] = set(table) if known == {"all of these"} else known
    return table


def test_parts_import_what_the_table_says():
    table, seen = table_of_parts(), {}
    for path, module in modules():
        if module.count(".") == 1 and path.name in ("__init__.py", "__main__.py"):
            continue
        seen.setdefault(part_of(module), set()).update(known_parts(path, module))
    assert {part: seen.pop(part) for part in FOR_ALL} == dict.fromkeys(FOR_ALL, set())
    # the command line may import all, and need not
    assert seen.pop("cli") <= table.pop("cli")
    assert seen == table


def test_each_part_stands_on_those_above_it_in_the_table():
    """So no two parts import each other; the training of small models alone asks for an Editor."""
    above = set()
    for part, known in table_of_parts().items():
        assert known <= above, f"{part} comes before {known - above}"
        above.add(part)


def test_modules_do_not_import_what_they_must_not_know():
    seen, wrong = set(), []
    for path, module in modules():
        for part, forbidden in FORBIDDEN.items():
            if within(module, part):
                seen.add(part)
                names = [name for name in imports(path) if any(within(name, f) for f in forbidden)]
                wrong += [f"{module} imports {name}" for name in names]
    assert seen == set(FORBIDDEN)
    assert not wrong


def test_weights_and_conversion_know_sites_and_no_network():
    """But for the training of small models, which is where weights come from."""
    networks = ("backbones", "clip.text", "clip.vision", "editor", "nn", "umt5.encoder", "vae")
    wrong = [
        f"{module} imports {name}"
        for path, module in modules()
        if within(module, "anyv2v.weights") or within(module, "anyv2v.convert")
        if not any(within(module, f"anyv2v.weights.{model}.train") for model in ("demo", "flow"))
        for name in imports(path)
        if any(within(name, f"anyv2v.{x}") for x in networks)
        if not SITES.fullmatch(name)
    ]
    assert not wrong


def test_kernels_import_nothing_of_the_project():
    names = [name for path, m in modules() if within(m, "anyv2v.kernels") for name in imports(path)]
    assert not [n for n in names if within(n, "anyv2v") and not within(n, "anyv2v.kernels")]


def test_only_media_knows_av():
    users = {module for path, module in modules() if "av" in imports(path)}
    assert users == {"anyv2v.media.ffmpeg"}


def test_folders_at_the_top_are_no_packages():
    """transformers and diffusers look for a package called kernels and must not find ours."""
    assert not [folder for folder in PLAIN if (ROOT / folder / "__init__.py").exists()]
    for folder in ("kernels", "weights", "convert"):
        link = ROOT / "anyv2v" / folder
        # a checkout without links has their text instead
        target = os.readlink(link) if link.is_symlink() else link.read_text()
        assert target == f"../{folder}"
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or ROOT not in Path(found.origin).parents


def test_what_is_tested_is_what_is_installed():
    """Not the checkout beside the tests, unless it was installed with `pip install -e`."""
    try:
        installed = importlib.metadata.distribution("anyv2v")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("anyv2v runs in place here")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    in_place = origin.get("dir_info", {}).get("editable", False)
    home = ROOT / "anyv2v" if in_place else Path(installed.locate_file("anyv2v")).resolve()
    assert Path(anyv2v.__file__).resolve().parent == home
    code = "import anyv2v, anyv2v.kernels.choose as c; print(anyv2v.__file__, c.__file__)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert seen.split() == [anyv2v.__file__, sys.modules["anyv2v.kernels.choose"].__file__]


def test_importing_defines_and_does_nothing_else(tmp_path):
    code = (
        "import os, sys, anyv2v, anyv2v.__main__; assert 'torch' not in sys.modules\n"
        "import torch; before = torch.get_num_threads(), torch.is_grad_enabled()\n"
        "import anyv2v, anyv2v.cli.main\n"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled())\n"
        "assert not os.listdir(), os.listdir()\n"
        "assert not {'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
    )
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names_are_frozen():
    """To change a public name, change the list in the same commit."""
    frozen = json.loads((ROOT / "tests" / "goldens" / "public_names.json").read_text())
    assert sorted(anyv2v.__all__) == sorted(anyv2v._MODULE_OF) == frozen["anyv2v"]
    members = [n for n in dir(anyv2v.Editor) if not n.startswith("_")]
    assert sorted(members) == frozen["Editor"]


def test_documents_name_only_files_that_exist():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    documents += [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")]
    wrong, seen = [], 0
    for document in documents:
        text = document.read_text(encoding="utf-8")
        # a link is relative to its document, other names to the repository
        links = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text))
        names = set(re.findall(r"[\w./-]+/[\w.-]+\.(?:py|md|txt)\b", text)) - links
        wrong += [(document.name, x) for x in links if not (document.parent / x).exists()]
        wrong += [(document.name, x) for x in names if not (ROOT / x).exists()]
        seen += len(links)
    assert seen > 100 and not wrong
