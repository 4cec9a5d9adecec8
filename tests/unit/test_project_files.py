"""What the files around the code say of the project is true of the code."""

import re
from pathlib import Path

import pytest
import yaml

import anyv2v
from anyv2v.long import editor as long_editor
from anyv2v.long import run as long_run
from anyv2v.pipeline import source
from anyv2v.umt5 import embeddings
from anyv2v.weights import manifest

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_written_once():
    written = f'"{anyv2v.__version__}"'
    for name in ("pyproject.toml", "setup.py", "CITATION.cff", "constraints.txt"):
        assert f"version = {written}" not in text(name) and f"version={written}" not in text(name)
    assert re.search(r"^version:", text("CITATION.cff"), re.MULTILINE) is None
    assert 'dynamic = ["version"]' in text("pyproject.toml")


def test_the_changelog_has_the_formats_that_the_code_writes_and_reads():
    rows = dict(
        re.findall(r"^\| ([^|(]+?) (?:\([^|]*\) )?\| `([^|]+)` \|", text("CHANGELOG.md"), re.M)
    )
    before = re.findall(r"\| `[^|]+` \| `([^|]+)` \|", text("CHANGELOG.md"))
    assert rows == {
        "folder of weights": str(manifest.FORMAT),
        "inverted clip": source.FORMAT,
        "unfinished inversion": source.UNFINISHED,
        "inverted long clip": long_editor.FORMAT,
        "unfinished edit of a long clip": long_run.FORMAT,
        "prompts' embeddings": embeddings.FORMAT,
    }
    assert before == list(source.BEFORE.values())


def test_the_changelog_tells_of_this_version():
    assert anyv2v.__version__ in text("CHANGELOG.md")


def test_the_citation_is_complete():
    citation = yaml.safe_load(text("CITATION.cff"))
    # what CFF 1.2.0 requires, and what a reference needs
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Ku",
        "Wei",
        "Ren",
        "Yang",
        "Chen",
    ]
    assert paper["url"].endswith("2403.14468") and paper["year"] == 2024
    assert citation["license"] == "Apache-2.0" and 'license = "Apache-2.0"' in text(
        "pyproject.toml"
    )


def test_the_model_card_has_a_block_of_metadata_with_the_scores_of_its_tables():
    _, block, card = text("weights/demo/README.md").split("---\n", 2)
    facts = yaml.safe_load(block)
    assert facts["license"] == "apache-2.0"
    (result,) = facts["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    everything = re.findall(r"^\| all \| (.*) \|$", card, re.MULTILINE)
    assert everything[0].startswith(f"{found['psnr']} ")
    assert everything[1].startswith(f"{found['ssim']} ")


@pytest.mark.parametrize("name", ["SECURITY.md", "CHANGELOG.md"])
def test_links_within_the_project_lead_somewhere(name):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", text(name)):
        assert (ROOT / target).exists()
        headings = re.findall(r"^#+ (.+)$", text(target), re.MULTILINE)
        assert not anchor or anchor in [h.lower().replace(" ", "-") for h in headings]
