"""What the documents say of commands, options, presets and names is true, and the site builds."""

import json
import re
import subprocess
import sys

import pytest

from anyv2v.injection.presets import PUBLISHED, STEPS
from tests.docs.blocks import COMMANDS, DOCUMENTS, FENCE, ROOT, command_parser

PROSE = {p.name: FENCE.sub("", p.read_text(encoding="utf-8")) for p in DOCUMENTS}
API = ROOT / "docs" / "api" / "anyv2v.md"
# options of other programs that the documents name
FOREIGN = {"--reference", "--input", "--output", "--instantid", "--prompt", "--seed", "--check"}
# those of python -m bench, in tables that it writes
FOREIGN |= {"--part", "--rows", "--set", "--threads"}


@pytest.mark.parametrize("name", PROSE)
def test_commands_and_options_that_a_page_names_exist(name):
    parsers = command_parser().commands
    options = {word for sub in parsers.values() for word in sub._option_string_actions}
    code = " ".join(re.findall(r"`([^`]+)`", PROSE[name]))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
    assert named <= options | FOREIGN
    first = {command.split()[0] for command in COMMANDS} | {"COMMAND"}
    assert set(re.findall(r"`anyv2v ([\w-]+)", PROSE[name])) <= first


def test_the_cookbook_has_the_published_edits_with_their_settings():
    page = next(p for p in DOCUMENTS if p.name == "cookbook.md").read_text(encoding="utf-8")
    page = page.split("## The original's fifteen edits")[1].replace("\\\n", " ")
    found = dict(re.findall(r"^# (.+)\nanyv2v edit (.+)$", page, re.MULTILINE))
    published = {name: edit for task in PUBLISHED.values() for name, edit in task.items()}
    assert found.keys() == published.keys() and len(found) == 14
    for name, words in found.items():
        said = dict(re.findall(r"--(\w+) ([\d.]+)", words))
        edit = published[name]
        assert {k: float(v) for k, v in said.items()} == {**edit.fractions, "start": edit.start}
    assert STEPS == 50


def public_names() -> set[str]:
    names = json.loads((ROOT / "tests" / "goldens" / "public_names.json").read_text())
    return {f"anyv2v.{n}" for n in names["anyv2v"]} | {
        f"anyv2v.Editor.{n}" for n in names["Editor"]
    }


def test_the_api_names_every_public_name():
    listed = set(re.findall(r"^\.\. auto\w+:: (anyv2v\.\w+)$", API.read_text(), re.MULTILINE))
    assert listed == {name for name in public_names() if name.count(".") == 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documents as a site, built without a network and without a warning."""
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="the documents need pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    words += ["-d", str(out / "doctrees"), str(ROOT / "docs"), str(out / "html")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=out)
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


@pytest.mark.slow
def test_the_site_asks_no_other_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    asking = r"<(?:link|script|img|iframe|source|video)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*"
    assert not [found for page in pages for found in re.findall(asking, page.read_text())]
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert not [text for text in styles if re.search(r"(url\(|@import)\W*(https?:)?//", text)]


@pytest.mark.slow
def test_the_api_describes_every_public_name_in_words(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, uri: uri)
    described = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    assert public_names() <= described
    page = (site / "api" / "anyv2v.html").read_text()
    for name in public_names():
        text = page.split(f'id="{name}"')[1].split("</dt>")[1]
        assert re.match(r"\s*<dd><p>\w", text), f"{name} has no description"
