"""The benchmark of edits: baselines without a network, rows in slices, and what the table says."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anyv2v.backbones.base import Defaults
from anyv2v.comparison import baselines
from anyv2v.weights.demo.hard import HARDSHIPS
from anyv2v.weights.demo.scenes import KINDS, draw_edit
from anyv2v.weights.demo.scores import Truth
from bench.edit_quality import __main__ as command
from bench.edit_quality import rows, table

STEP = (2, -1)
"""How far the texture of `moving` goes to the right and down from frame to frame, in pixels."""
INSIDE = np.s_[:, 8:-8, 8:-8]
EDITOR = SimpleNamespace(
    fingerprint="abc",
    defaults=Defaults((32, 32), 8, 8),
    sites=frozenset(),
    backbone=SimpleNamespace(name="wan"),
)


@pytest.fixture
def moving():
    """A smooth random texture (4, 48, 48, 3) that moves by `STEP` from frame to frame."""
    waves = np.random.default_rng(0).normal(size=(5, 5, 3, 2))
    y, x = np.mgrid[:48, :48] / 48 * 2 * np.pi

    def picture(frame):
        at_x, at_y = (p - frame * s * 2 * np.pi / 48 for p, s in ((x, STEP[0]), (y, STEP[1])))
        phases = [(i * at_x + j * at_y, waves[i, j]) for i in range(5) for j in range(5)]
        return sum(
            np.cos(p)[..., None] * w[:, 0] + np.sin(p)[..., None] * w[:, 1] for p, w in phases
        )

    frames = np.stack([picture(k) for k in range(4)])
    return (128 + 60 * frames / np.abs(frames).max()).round().astype(np.uint8)


@pytest.mark.slow
def test_flow_finds_where_each_pixel_was_in_the_first_frame(moving):
    pytest.importorskip("cv2")
    found = baselines.places(moving)
    at = np.stack(np.meshgrid(np.arange(48), np.arange(48)), -1)
    for k, places in enumerate(found):
        error = (places - (at - k * np.array(STEP)))[8:-8, 8:-8]
        assert np.sqrt((error**2).sum(-1)).mean() < 0.2 * max(1, k)
    assert (found[0] == at).all()


@pytest.mark.parametrize(
    "name", ["warp", pytest.param("difference", marks=pytest.mark.slow), "copy"]
)
def test_baselines_carry_an_edit_along(moving, name):
    """The truth of an edit that swaps the colors of everything moves as the source does."""
    if rows.ROWS[name].needs:
        pytest.importorskip(rows.ROWS[name].needs)
    truth = moving[..., ::-1]
    clip = getattr(baselines, name)(moving, truth[0])
    assert clip.dtype == np.uint8 and clip.shape == moving.shape
    assert (clip[0] == truth[0]).all()
    error = clip[INSIDE].astype(float) - truth[INSIDE]
    still = truth[:1][INSIDE].astype(float) - truth[INSIDE]
    assert np.sqrt((error**2).mean()) < 0.06 * np.sqrt((still**2).mean())


def test_the_difference_leaves_alone_what_the_edit_leaves_alone(moving):
    pytest.importorskip("cv2")
    assert (baselines.difference(moving, moving[0]) == moving).all()


def scene(kind, edit, copy=None, **more):
    scores = {"edit": edit} if copy is None else {"edit": edit, "copy": copy}
    scores = {k: dict.fromkeys(table.SCORES) | {"psnr": v} for k, v in scores.items()}
    return {"kind": kind, "caption": "", "scores": scores} | more


def test_the_table_compares_the_edit_with_each_row_scene_by_scene():
    results = {
        "0": scene("colour", 20.0, 30.0),
        "1": scene("colour", 22.0, 21.0, hardship="noise"),
        "2": scene("shape", 25.0, 24.0, hardship="noise"),
        "3": scene("shape", 27.0),
    }
    lines = table.table(results).splitlines()
    heads = [line for line in lines if "scenes" in line]
    assert heads == [
        "all, 4 scenes",
        "colour, 2 scenes",
        "shape, 2 scenes",
        "colour+background, 2 scenes",
        "noise, 2 scenes",
    ]
    everything, colour = (
        {line.split()[0]: line for line in lines[lines.index(head) + 2 :][:2]} for head in heads[:2]
    )
    assert everything["edit"].split()[1] == "23.50"
    assert everything["copy"].split()[1] == "25.00"
    assert "   -2.67 [" in everything["copy"]
    assert everything["copy"].endswith("better in 2 of 3")
    # each of the two scenes is drawn twice in a quarter of the draws
    assert colour["copy"].endswith("-4.50 [-10.00, +1.00], better in 1 of 2")


def arguments(folder, **more):
    given = {"scenes": 3, "first": 0, "frames": 8, "rows": ["static", "copy"], "hard": False}
    given["kinds"] = KINDS
    return argparse.Namespace(**(given | {"output": folder} | more))


def test_slices_of_scenes_and_rows_are_collected(tmp_path, capsys):
    command.run(EDITOR, arguments(tmp_path, scenes=2))
    command.run(EDITOR, arguments(tmp_path, first=2, scenes=1))
    before = json.loads((tmp_path / "scores.json").read_text())["scenes"]
    command.run(EDITOR, arguments(tmp_path, rows=["source"]))
    after = json.loads((tmp_path / "scores.json").read_text())["scenes"]
    assert list(after) == ["0", "1", "2"]
    for i, found in after.items():
        assert found["kind"] == KINDS[int(i)]
        assert list(found["scores"]) == ["static", "copy", "source"]
        sheet = Image.open(tmp_path / f"scene-{int(i):03}.png")
        assert sheet.size == (table.MARGIN + 8 * 32 * 2, 2 * 32 * 2)
        assert {k: found["scores"][k] for k in ("static", "copy")} == before[i]["scores"]
    truth = Truth.of(draw_edit("texture", "held-out", 1), (32, 32), 8)
    error = (truth.source[1:].astype(float) - truth.frames[1:]) ** 2
    expected = 10 * np.log10(255**2 / error.mean())
    assert after["1"]["scores"]["source"]["psnr"] == pytest.approx(expected)
    assert "all, 3 scenes" in capsys.readouterr().out


def test_scores_of_other_scenes_are_not_mixed_in(tmp_path):
    command.run(EDITOR, arguments(tmp_path, scenes=1))
    with pytest.raises(SystemExit, match="of other weights, settings or scenes"):
        command.run(EDITOR, arguments(tmp_path, scenes=1, hard=True))
    other = SimpleNamespace(**(vars(EDITOR) | {"fingerprint": "abd"}))
    with pytest.raises(SystemExit, match="of other weights, settings or scenes"):
        command.run(other, arguments(tmp_path, scenes=1))


def test_what_a_missing_package_would_make_is_left_out_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    command.run(EDITOR, arguments(tmp_path, scenes=1, rows=["static", "warp"]))
    scores = json.loads((tmp_path / "scores.json").read_text())["scenes"]["0"]["scores"]
    assert list(scores) == ["static"]
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "warp: left out, because cv2 is missing: pip install '.[bench]'"
    with pytest.raises(SystemExit, match="no row is left"):
        command.run(EDITOR, arguments(tmp_path, scenes=1, rows=["warp"]))


def test_rows_of_other_backbones_and_scenes_of_other_kinds_are_left_out(tmp_path, capsys):
    names = ["static", "original sites"]
    command.run(EDITOR, arguments(tmp_path, scenes=12, rows=names, kinds=["colour", "style"]))
    scenes = json.loads((tmp_path / "scores.json").read_text())["scenes"]
    assert {i: s["kind"] for i, s in scenes.items()} == {
        str(i): KINDS[i % 6] for i in range(12) if KINDS[i % 6] in ("colour", "style")
    }
    assert all(list(s["scores"]) == ["static"] for s in scenes.values())
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "original sites: left out, because only weights of i2vgen have these sites"


def test_hard_scenes_take_all_kinds_and_hardships_in_turn():
    drawn = [command.draw(i, True) for i in range(24)]
    pairs = {(about["kind"], about["hardship"]) for about, _ in drawn}
    assert pairs == {(kind, hardship) for kind in KINDS for hardship in HARDSHIPS}
    for about, edit in drawn:
        spin = edit.truth.sprites[0].motion.spin
        found = {
            "noise": edit.truth.noise > 0,
            "shading": edit.truth.light.falloff > 0,
            "light": edit.truth.light.first != edit.truth.light.last,
            "depth": spin > 0,
        }
        assert [name for name in HARDSHIPS if found[name]] == [about["hardship"]]
    ordinary = [command.draw(i, False)[1] for i in range(6)]
    assert ordinary == [draw_edit(kind, "held-out", i) for i, kind in enumerate(KINDS)]
