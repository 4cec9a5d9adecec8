"""The study of what to inject in a flow model: its candidates, cases, and what its tables say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import anyv2v
from anyv2v.backbones.base import Defaults
from anyv2v.errors import InputError
from anyv2v.protection.protect import protect
from anyv2v.weights.demo.scenes import KINDS
from bench.edit_quality.rows import with_defaults
from bench.flow_edits import __main__ as command
from bench.flow_edits.candidates import NOTHING, Candidate, everywhere, grid
from bench.flow_edits.cases import Case
from bench.flow_edits.studies import LEVELS, Study, guides, levels, sites
from tests import wan

LAYERS = 8


def test_the_grid_has_each_block_alone_and_ranges_of_them_with_each_set_of_tokens():
    candidates = [*grid(LAYERS)]
    assert len({*map(str, candidates)}) == len(candidates) == 288
    singly = {
        (part.group, part.blocks[0], part.tokens)
        for c in candidates
        for part in c.parts
        if part.blocks[0] == part.blocks[1]
    }
    assert len(singly) == 4 * LAYERS * 2
    assert {c.parts[0].blocks for c in candidates} >= {(0, 7), (0, 3), (4, 7), (2, 7)}
    assert all(Candidate.read(str(c)) == c for c in candidates)


def test_a_candidate_injects_what_its_name_says():
    text = "map 2-4 0.6 all + hidden 5 0.25 rest"
    candidate = Candidate.read(text)
    assert str(candidate) == text
    own = dict.fromkeys(("map", "value", "context", "hidden"), frozenset())
    groups = {g.until: g.sites for g in candidate.injection.groups(own)}
    assert groups == {
        0.6: {"block.2.self", "block.3.self", "block.4.self"},
        0.25: {"block.5.ff"},
    }
    expected = {"map": "all", "value": "all", "context": "all", "hidden": "rest"}
    assert candidate.options == {f"{g}_tokens": x for g, x in expected.items()}
    value, context = (Candidate.read(f"{g} 1 1 rest").injection for g in ("value", "context"))
    assert value.sites["value"] == {"block.1.self.value"}
    assert context.sites["context"] == {"block.1.self.context"}
    recorded = {site for sites in everywhere(2).sites.values() for site in sites}
    assert recorded == {
        f"block.{i}.{site}" for i in (0, 1) for site in ("self", "self.value", "self.context", "ff")
    }


@pytest.mark.parametrize(
    "text, why",
    [
        ("map 0 0.5 all + map 1 1 all", "a group has two parts"),
        ("map 5-2 0.6 all", "block 2 is before 5"),
        ("maps 2 0.6 all", "'maps' is"),
        ("map 2 0.6 some", "'some' is"),
        ("map 2 1.6 all", "1.6 is"),
        ("map 2 all", "is not as in"),
    ],
)
def test_a_row_that_says_nothing_clear_is_refused(text, why):
    with pytest.raises(InputError, match=why):
        Candidate.read(text)


@pytest.fixture(scope="module")
def case():
    return Case(with_defaults(wan.editor(), noise_range=()), 4, steps=2)


INJECTIONS = {
    "map 0-1 1 all + value 1 0.5 rest": {
        **{"map": 1.0, "value": 0.5, "context": 0.0, "hidden": 0.0},
        "sites": {"map": ["block.0.self", "block.1.self"], "value": ["block.1.self.value"]},
    },
    "context 0-1 1 rest + hidden 2 0.5 all": {
        **{"map": 0.0, "value": 0.0, "context": 1.0, "hidden": 0.5},
        "sites": {
            "context": ["block.0.self.context", "block.1.self.context"],
            "hidden": ["block.2.ff"],
        },
    },
}


@pytest.mark.parametrize("text", INJECTIONS)
def test_an_edit_of_a_case_is_that_of_an_editor_that_was_given_the_same(case, text):
    """Features are recorded in the case and taken from the batch in the other."""
    candidate = Candidate.read(text)
    source = case.inverted(with_defaults(case.editor, evaluations=3), options=candidate.options)
    assert not source.features.by_step and case.source(candidate.options).features.by_step
    expected = case.editor.edit(
        source,
        case.truth.frames[0],
        case.edit.truth.caption,
        steps=2,
        injection=anyv2v.Injection(**INJECTIONS[text]),
        options=candidate.options,
    )
    found = case.edited(candidate).astype(int)
    assert abs(found - expected.frames).max() <= 1
    assert abs(found - case.edited(NOTHING)).max() > 1


@pytest.mark.slow
def test_inversions_are_measured_by_what_they_solve(case):
    found, clips = levels(case, [])
    assert (
        {*found}
        == {*clips}
        == {*map("{:g}".format, LEVELS)}
        | {
            "0, 3 a step",
            "euler",
            "euler, 500 steps",
        }
    )
    assert found["0"]["drawn"] == 0 < found["0.7"]["drawn"]
    assert found["euler, 500 steps"]["evaluations"] == 500
    assert found["euler"]["residual"] is None
    # what sampling misses where nothing was solved is what the offsets hold
    assert found["0.7"]["reconstruction"] > found["0.7"]["without offsets"]
    assert found["0"]["reconstruction"] == found["0"]["without offsets"]


def test_a_study_of_rows_has_them_and_the_edit_without_an_injection(case):
    found, clips = sites(case, ["map 0 1 all"])
    assert [*found] == [*clips] == ["none", "map 0 1 all"]
    assert found["none"] == case.scores(case.edited(NOTHING))
    assert found["none"] != found["map 0 1 all"]


@pytest.mark.slow
def test_guided_edits_are_protected_too(case):
    found, clips = guides(case, [])
    assert len(found) == len(clips) == 2 * 9
    assert [*found][:2] == ["edit", "edit, protected"]
    source = case.source({})
    plain = case.edit_of(source)
    guided = case.edit_of(source, guide="patches", start=1)
    for name, edit in {"edit": plain, "patches from 0.6": guided}.items():
        assert (clips[name] == edit.frames).all()
        assert (clips[f"{name}, protected"] == protect(edit, source).frames).all()
    assert (plain.frames != guided.frames).any()


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
    told = command.table([*rows.values()]).splitlines()
    assert [line.partition("  ")[0] for line in told] == ["none", "map 0 1 all"]
    assert "gain 0.833 [-1, 3]" in told[1] and told[1].endswith("| colour +1.0 shape +0.5")


def test_rows_that_are_compared_with_the_source_have_no_gain_over_edits(tmp_path):
    scores = {"edit": {"psnr": 25.0}, "reconstruction": {"psnr": 35.0}}
    kept = {"fingerprint": "abc", "scenes": {"3": {"kind": "background", "scores": scores}}}
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    scenes = command.held_out(tmp_path)
    assert scenes[0]["about"] == {"fingerprint": "abc"}
    rows = command.condense(scenes, "edit")
    assert {row["kind"] for row in rows} == {"all", "background", "colour+background"}
    again = [row for row in rows if row["name"] == "reconstruction"]
    assert all(row["psnr"] == [35.0] * 3 and "gain" not in row for row in again)
    assert command.table(rows).splitlines()[1].endswith("psnr 35 [35, 35] | ")


def test_scenes_are_made_once_and_those_of_other_weights_are_refused(tmp_path, monkeypatch):
    made = []

    def study(case, names):
        made.append(case.kind)
        clip = np.zeros((2, 32, 32, 3), np.uint8)
        return {"none": {"psnr": 1.0}}, {"none": clip}

    truth = SimpleNamespace(source=np.zeros((2, 32, 32, 3), np.uint8))
    truth.frames = truth.source
    edit = SimpleNamespace(truth=SimpleNamespace(caption="a word"))
    monkeypatch.setattr(
        command, "Case", lambda e, i, s: SimpleNamespace(kind=KINDS[i % 6], truth=truth, edit=edit)
    )
    args = SimpleNamespace(steps=2, rows=["none"], first=3, scenes=2)
    own = Defaults((32, 32), 9, 8)
    editor = SimpleNamespace(fingerprint="abc", defaults=own)
    found = Study(study, "none", first=0, steps=2)
    command.run(editor, found, args, tmp_path)
    command.run(editor, found, args, tmp_path)
    assert made == [KINDS[3], KINDS[4]]
    kept = json.loads((tmp_path / "00003.json").read_text())
    assert kept["kind"] == KINDS[3] and kept["scores"] == {"none": {"psnr": 1.0}}
    assert (tmp_path / "00004.png").exists()
    other = SimpleNamespace(fingerprint="abc", defaults=replace(own, solved_from=0.5))
    for changed in (SimpleNamespace(fingerprint="abd", defaults=own), other):
        with pytest.raises(SystemExit, match="of other weights, settings or rows"):
            command.run(changed, found, args, tmp_path)
    (tmp_path / "00009.json").write_text(json.dumps({**kept, "about": {}}))
    with pytest.raises(SystemExit, match="00009.json: is of other weights"):
        command.read(tmp_path)
