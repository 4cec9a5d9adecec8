"""The study of what to inject in a flow model: its candidates, cases, and what its tables say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import anyv2v
from anyv2v.weights.demo.scenes import KINDS
from bench.flow_edits import __main__ as command
from bench.flow_edits.candidates import NOTHING, Candidate, everywhere, grid
from bench.flow_edits.cases import Case, with_defaults
from tests import wan

LAYERS = 8


def test_the_grid_has_each_block_alone_and_ranges_of_them_with_each_set_of_tokens():
    candidates = [*grid(LAYERS)]
    assert candidates[0] == NOTHING and len({*map(str, candidates)}) == len(candidates) == 289
    singly = {
        (part.group, part.blocks[0], part.tokens)
        for c in candidates
        for part in c.parts
        if part.blocks[0] == part.blocks[1]
    }
    assert len(singly) == 4 * LAYERS * 2
    assert {c.parts[0].blocks for c in candidates[1:]} >= {(0, 7), (0, 3), (4, 7), (2, 7)}
    assert all(Candidate.read(str(c)) == c for c in candidates)


def test_a_candidate_injects_what_its_name_says():
    text = "map 2-4 0.6 all + hidden 5 0.25 rest"
    candidate = Candidate.read(text)
    assert str(candidate) == text
    own = dict.fromkeys(("map", "value", "context", "hidden"), frozenset())
    groups = {g.until: g.sites for g in candidate.injection(LAYERS).groups(own)}
    assert groups == {
        0.6: {"block.2.self", "block.3.self", "block.4.self"},
        0.25: {"block.5.ff"},
    }
    expected = {"map": "all", "value": "all", "context": "all", "hidden": "rest"}
    assert candidate.options == {f"{g}_tokens": x for g, x in expected.items()}
    value, context = (Candidate.read(f"{g} 1 1 rest").injection(4) for g in ("value", "context"))
    assert value.sites["value"] == {"block.1.self.value"}
    assert context.sites["context"] == {"block.1.self.context"}
    recorded = {site for sites in everywhere(2).sites.values() for site in sites}
    assert recorded == {
        f"block.{i}.{site}" for i in (0, 1) for site in ("self", "self.value", "self.context", "ff")
    }


@pytest.fixture(scope="module")
def case():
    return Case(with_defaults(wan.editor(), noise_range=()), 4, steps=2)


def test_an_edit_of_a_case_is_that_of_an_editor_that_was_given_the_same(case):
    """Features are recorded in the case and taken from the batch in the other."""
    candidate = Candidate.read("map 0-1 1 all + value 1 0.5 rest")
    source = case.inverted(options=candidate.options)
    assert not source.features.by_step and case.source(candidate.options).features.by_step
    expected = case.editor.edit(
        source,
        case.truth.frames[0],
        case.edit.truth.caption,
        steps=2,
        injection=anyv2v.Injection(
            map=1.0,
            value=0.5,
            context=0.0,
            hidden=0.0,
            sites={"map": ["block.0.self", "block.1.self"], "value": ["block.1.self.value"]},
        ),
        options=candidate.options,
    )
    found = case.edited(candidate).astype(int)
    assert abs(found - expected.frames).max() <= 1
    assert abs(found - case.edited(NOTHING)).max() > 1


def test_means_and_gains_are_over_scenes_of_a_kind():
    psnr = {"colour": ((20.0, 23.0), (22.0, 21.0)), "shape": ((30.0, 30.5),)}
    scenes = [
        {
            "kind": kind,
            "scores": {
                "none": {"psnr": a, "trajectory": None},
                "map 0 1 all": {"psnr": b, "trajectory": 2.0},
            },
        }
        for kind, pairs in psnr.items()
        for a, b in pairs
    ]
    rows = {(r["kind"], r["name"]): r for r in command.condense(scenes, "none")}
    assert [*dict.fromkeys(kind for kind, _ in rows)] == [
        "all",
        "colour",
        "shape",
        "colour+background",
    ]
    everything = rows["all", "map 0 1 all"]
    assert everything["scenes"] == 3
    assert everything["psnr"][0] == pytest.approx(74.5 / 3, abs=0.005)  # four digits are kept
    assert everything["gain"][0] == pytest.approx((3 - 1 + 0.5) / 3, rel=1e-3)
    # each of the two scenes is drawn twice in a quarter of the draws
    assert rows["colour", "map 0 1 all"]["gain"] == [1.0, -1.0, 3.0]
    assert rows["shape", "none"]["gain"] == [0.0, 0.0, 0.0]
    assert "trajectory" not in rows["all", "none"] and everything["trajectory"] == [2.0, 2.0, 2.0]


def test_scenes_are_made_once_and_those_of_other_weights_are_refused(tmp_path, monkeypatch):
    made = []

    def study(case, names):
        made.append(case.kind)
        clip = np.zeros((2, 32, 32, 3), np.uint8)
        return {"none": {"psnr": 1.0}}, {"none": clip}

    truth = SimpleNamespace(source=np.zeros((2, 32, 32, 3), np.uint8))
    truth.frames = truth.source
    edit = SimpleNamespace(truth=SimpleNamespace(caption="a word"))
    monkeypatch.setitem(command.STUDIES, "settings", study)
    monkeypatch.setattr(
        command, "Case", lambda e, i, s: SimpleNamespace(kind=KINDS[i % 6], truth=truth, edit=edit)
    )
    args = SimpleNamespace(study="settings", steps=2, rows=["none"], first=3, scenes=2)
    editor = SimpleNamespace(fingerprint="abc")
    command.run(editor, args, tmp_path)
    command.run(editor, args, tmp_path)
    assert made == [KINDS[3], KINDS[4]]
    kept = json.loads((tmp_path / "00003.json").read_text())
    assert kept["kind"] == KINDS[3] and kept["scores"] == {"none": {"psnr": 1.0}}
    assert (tmp_path / "00004.png").exists()
    with pytest.raises(SystemExit, match="of other weights, steps or rows"):
        command.run(SimpleNamespace(fingerprint="abd"), args, tmp_path)
