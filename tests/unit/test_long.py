"""Clips longer than the model's window: the plan, the cross-fade, runs and their folders."""

import subprocess
import sys
import weakref
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import EditRequest, InputError, Video
from anyv2v.backbones.registry import BACKBONES
from anyv2v.long.merging import merged
from anyv2v.long.run import LongRun
from anyv2v.long.windows import Window, nearest_keyframes, plan_windows, predictions
from anyv2v.pipeline import source as source_module
from tests.toy import folder, framewise
from tests.toy.backbone import Toy

slow = pytest.mark.slow
STEPS = 3
PLAIN = [(0, 1, 5), (0, 4, 8), (0, 7, 11)]
"""Eleven frames in windows of 5 that share 1: anchor, start, stop."""


def spans(windows):
    return [(window.anchor, window.start, window.stop) for window in windows]


def clip(frames=11, seed=0):
    """36x24: two colors, between which a line moves; and noise, so that no two frames are equal."""
    noise = np.random.default_rng(seed).integers(0, 60, (frames, 24, 36, 3), np.uint8)
    for k in range(frames):
        noise[k, :, : 4 + 2 * k] += 150
    return Video(noise, 8)


def edited(k=0):
    return clip(seed=9).frames[k, ::-1].copy()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return framewise.load(tmp_path_factory.mktemp("weights") / "toy", frames=5)


# the plan


def test_windows_are_the_anchor_and_consecutive_frames():
    assert Window(0, 6, 13).indices == (0, 6, 7, 8, 9, 10, 11, 12)
    assert Window(7, 3, 7).indices == (7, 3, 4, 5, 6) and len(Window(7, 3, 7)) == 5


@pytest.mark.parametrize(
    "frames, window, shared, expected",
    [
        (8, 8, None, [(0, 1, 8)]),
        (5, 8, None, [(0, 1, 5)]),
        (9, 8, None, [(0, 1, 8), (0, 2, 9)]),
        (20, 8, None, [(0, 1, 8), (0, 6, 13), (0, 11, 18), (0, 13, 20)]),
        (18, 8, 2, [(0, 1, 8), (0, 6, 13), (0, 11, 18)]),
        (15, 8, 0, [(0, 1, 8), (0, 8, 15)]),
        (38, 16, None, [(0, 1, 16), (0, 12, 27), (0, 23, 38)]),
        (30, 0, None, [(0, 1, 30)]),
        (11, 5, 1, PLAIN),
    ],
)
def test_a_plain_clip_is_divided_with_a_stride(frames, window, shared, expected):
    assert spans(plan_windows(frames, window, shared)) == expected


def test_evaluations_per_frame_stay_within_what_is_promised():
    for window, most in ((8, 2.0), (16, 1.5)):
        plan = plan_windows(64, window)
        assert sum(map(len, plan)) / 64 <= most


def test_a_window_has_the_nearest_keyframe_as_its_anchor():
    plan = plan_windows(20, 8, 2, [12])
    # 0 to 6 are nearer to 0; 6 and 7 are shared by both; the frames after 12 are few
    assert spans(plan) == [(0, 1, 8), (12, 5, 12), (12, 13, 20)]
    anchors = [{plan[i].anchor for i, _ in pairs} for pairs in predictions(plan)]
    assert anchors == [{0}] * 6 + [{0, 12}] * 2 + [{12}] * 12
    assert nearest_keyframes(20, [12]) == (0,) * 7 + (12,) * 13


@pytest.mark.parametrize("keys", [[], [5], [1, 17]])
@pytest.mark.parametrize("shared", [None, 0, 7])
@pytest.mark.parametrize("frames", [18, 19, 20, 21, 22, 40])
def test_windows_hold_whole_groups_of_frames_and_cover_the_clip(frames, shared, keys):
    plan = plan_windows(frames, 21, shared, keys, group=4)
    assert keys or frames == 40 or len(plan) == 1 + (frames != 21)
    assert {len(window) for window in plan} == {frames - (frames - 1) % 4 if frames < 21 else 21}
    assert all(predictions(plan)) and len(predictions(plan)) == frames
    if shared is None and not keys:
        assert all(window.start % 4 == 1 for window in plan[:-1])


def test_a_clip_shorter_than_what_windows_share_is_two_windows():
    assert spans(plan_windows(7, 21, group=4)) == [(0, 1, 5), (0, 3, 7)]
    assert spans(plan_windows(9, 21, group=4)) == [(0, 1, 9)]


def test_a_clip_shorter_than_a_group_is_refused():
    with pytest.raises(InputError, match="frames: 3 is not 1 more than a multiple of 4"):
        plan_windows(3, 21, group=4)


def test_a_keyframe_counts_in_a_clip_of_one_window():
    plan = plan_windows(8, 8, 2, [5])
    assert all(len(window) == 8 for window in plan)
    anchors = [{plan[i].anchor for i, _ in pairs} for pairs in predictions(plan)]
    assert anchors == [{0}, {0}, {0, 5}, {0, 5}, {5}, {5}, {5}, {5}]
    # a keyframe is the first frame of the window that goes on with the next one
    assert [(plan[i].start, j) for i, j in predictions(plan)[5]] == [(1, 0)]


def test_every_plan_covers_every_frame_by_its_own_keyframe():
    rng = np.random.default_rng(0)
    for _ in range(300):
        frames, window = int(rng.integers(2, 60)), int(rng.integers(2, 20))
        shared, keys = int(rng.integers(0, window - 1)), rng.integers(0, frames, rng.integers(4))
        plan = plan_windows(frames, window, shared, keys)
        for window_ in plan:
            assert len(window_) == min(frames, window)
            assert 0 <= window_.start < window_.stop <= frames
        nearest, found = nearest_keyframes(frames, keys), predictions(plan)
        assert len(found) == frames
        for frame, pairs in enumerate(found):
            assert nearest[frame] in {plan[i].anchor for i, _ in pairs}
            assert all(plan[i].indices[j] == frame for i, j in pairs)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((20, 1), "window: 1 is the keyframe alone"),
        ((20, 8, 7), "shared: 7 is not a whole number from 0 to 6"),
        ((20, 8, 2, [20]), "keyframe: 20 is not a whole number from 0 to 19"),
        ((0, 8), "frames: 0"),
    ],
)
def test_impossible_plans_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        plan_windows(*arguments)


# the cross-fade


def test_shared_frames_are_means_of_windows_that_are_held_while_needed():
    windows, most, held = plan_windows(23, 8, 2), 0, []

    def load(i):
        nonlocal most
        most = max(most, i)
        # frame f of window i has the value 100 i + f
        values = (100.0 * i + torch.tensor(windows[i].indices)).view(1, 1, -1, 1, 1)
        held.append(weakref.ref(values))
        return values

    values, needed = [], []
    for latents in merged(windows, load):
        assert latents.shape == (1, 1, 1, 1, 1)
        values.append(latents.item())
        assert sum(each() is not None for each in held) <= 2
        needed.append(most)
    owners = [[0]] * 6 + [[0, 1]] * 2 + [[1]] * 3 + [[1, 2]] * 2 + [[2]] * 3 + [[2, 3]] * 2
    owners += [[3]] * 5
    assert values == [100 * np.mean(own) + f for f, own in enumerate(owners)]
    # a window is loaded when its first frame is due
    assert needed == [max(own) for own in owners]


def test_a_frame_of_one_window_is_unchanged_to_the_bit():
    latents = torch.randn(1, 4, 5, 2, 3)
    together = torch.cat([*merged(plan_windows(5, 5), lambda i: latents)], 2)
    assert torch.equal(together, latents)


# inversion and edit


def by_hand(editor, video, plan, keyframes, **settings):
    """The latents of each window, edited as a clip of its own."""
    done = []
    for anchor, start, stop in plan:
        indices = [anchor, *range(start, stop)]
        source = editor.invert(Video(video.frames[indices], video.fps), steps=STEPS, prompt="a")
        edit = editor.edit(source, keyframes[anchor], "b", steps=STEPS, **settings)
        done.append(edit.latents.double().numpy())
    return done


def joined(done):
    """Windows `PLAIN`, joined by hand in float64."""
    a, b, c = done
    first = [a[:, :, :4], (a[:, :, 4:] + b[:, :, 1:2]) / 2, b[:, :, 2:4]]
    return np.concatenate([*first, (b[:, :, 4:] + c[:, :, 1:2]) / 2, c[:, :, 2:]], 2)


def test_windows_are_edited_each_by_itself(toy):
    expected = joined(by_hand(toy, clip(), PLAIN, {0: edited()}))
    source = toy.invert_long(clip(), shared=1, steps=STEPS, prompt="a")
    edit = toy.edit_long(source, edited(), "b", steps=STEPS)
    np.testing.assert_allclose(edit.latents.numpy(), expected, atol=1e-6)
    assert np.array_equal(edit.frames, toy.decode(edit.latents)) and edit.fps == 8
    assert np.array_equal(edit.references[0], edited())


def test_a_clip_of_one_window_is_edited_as_ever(toy):
    source = toy.invert(clip(5), steps=STEPS)
    expected = toy.edit(source, edited(), "b", steps=STEPS, random_ratio=0.3, seed=2)
    long = toy.invert_long(clip(5), steps=STEPS)
    edit = toy.edit_long(long, edited(), "b", steps=STEPS, random_ratio=0.3, seed=2)
    assert torch.equal(edit.latents, expected.latents)
    assert np.array_equal(edit.frames, expected.frames)


def test_a_keyframe_changes_only_the_frames_that_belong_to_it(toy):
    source = toy.invert_long(clip(), shared=1, steps=STEPS)
    assert len(source.kept) == 3
    one = toy.edit_long(source, edited(), "b", {8: edited(1)}, steps=STEPS)
    other = toy.edit_long(source, edited(), "b", {8: edited(2)}, steps=STEPS)
    # windows of frame 8 are inverted when they are needed, and kept
    assert len(source.kept) == 3 + sum(window.anchor == 8 for window in source.windows([8]))
    same = [torch.equal(a, b) for a, b in zip(one.latents[0, 0], other.latents[0, 0], strict=True)]
    # 0 to 4 belong to frame 0, and frame 5 is shared
    assert same == [True] * 5 + [False] * 6
    # the toy's first latent frame is the encoded keyframe itself
    assert torch.equal(one.latents[:, :, 8:9], toy.encode_frames(edited(1)[None]))


def test_a_frame_has_the_same_noise_in_every_window(toy, monkeypatch):
    options = {"sampler": "ancestral"}
    source = toy.invert_long(clip(), shared=1, steps=STEPS, options=options)
    seen, edit_each = [], type(toy).edit_each

    def noted(self, source, edits, **common):
        seen.extend(edits)
        return edit_each(self, source, edits, **common)

    monkeypatch.setattr(type(toy), "edit_each", noted)
    settings = {"steps": STEPS, "random_ratio": 0.5, "options": options}
    edits = [toy.edit_long(source, edited(), "b", **settings, seed=s) for s in (1, 1, 2)]
    a, b = seen[:2]
    for x, y in zip((a.noise, *a.step_noise), (b.noise, *b.step_noise), strict=True):
        assert torch.equal(x[:, :, 4], y[:, :, 1]) and torch.equal(x[:, :, 0], y[:, :, 0])
        assert not torch.equal(x[:, :, 3], y[:, :, 1])
    every = torch.stack([a.noise, *a.step_noise]).flatten()
    assert abs(every.mean()) < 0.05 and abs(every.std() - 1) < 0.05
    assert len({x.sum().item() for x in (a.noise, *a.step_noise)}) == 1 + STEPS
    assert torch.equal(edits[0].latents, edits[1].latents)
    assert not torch.equal(edits[0].latents, edits[2].latents)


def test_noise_of_the_caller_is_divided(toy):
    source = toy.invert_long(clip(), shared=1, steps=STEPS, prompt="a")
    noise = torch.randn(1, 4, 11, 6, 9)
    edit = toy.edit_long(source, edited(), "b", steps=STEPS, random_ratio=1.0, noise=noise)
    window = toy.invert(Video(clip().frames[[0, 7, 8, 9, 10]], 8), steps=STEPS, prompt="a")
    own = noise[:, :, [0, 7, 8, 9, 10]]
    expected = toy.edit(window, edited(), "b", steps=STEPS, random_ratio=1.0, noise=own)
    assert torch.equal(edit.latents[:, :, 8:], expected.latents[:, :, 2:])
    with pytest.raises(InputError, match="noise: it has 9 frames, the clip has 11"):
        toy.edit_long(source, edited(), "b", steps=STEPS, noise=noise[:, :, 2:])


def test_a_guide_knows_the_keyframes_on_both_sides(toy, monkeypatch):
    source, seen = toy.invert_long(clip(), shared=1, steps=STEPS), []
    edit_each = type(toy).edit_each

    def noted(self, source, edits, **common):
        seen.append((source.video.frames[0], *edits))
        return edit_each(self, source, edits, **common)

    monkeypatch.setattr(type(toy), "edit_each", noted)
    edit = toy.edit_long(source, edited(), "b", {8: edited(1)}, steps=STEPS, start=1, guide="auto")
    assert len(seen) == len(source.windows([8])) == 4
    for first, request in seen:
        anchor, other = (0, 8) if np.array_equal(first, clip().frames[0]) else (8, 0)
        pairs = request.guide.keyframes
        # nothing is on the other side of the last window
        assert len(pairs) == (request is not seen[-1][1])
        for before, after in pairs:
            assert np.array_equal(before, clip().frames[other])
            assert np.array_equal(after, edited(other // 8))
        assert np.array_equal(request.frame, edited(anchor // 8))
    plain = toy.edit_long(source, edited(), "b", {8: edited(1)}, steps=STEPS, start=1)
    assert not torch.equal(plain.latents, edit.latents)


def test_a_guide_that_is_a_clip_is_divided(toy, monkeypatch):
    source, guess = toy.invert_long(clip(), shared=1, steps=STEPS, prompt="a"), clip(seed=5)
    edit = toy.edit_long(source, edited(), "b", steps=STEPS, start=1, guide=guess)
    indices = [0, 7, 8, 9, 10]
    window = toy.invert(Video(clip().frames[indices], 8), steps=STEPS, prompt="a")
    own = Video(guess.frames[indices], 8)
    expected = toy.edit(window, edited(), "b", steps=STEPS, start=1, guide=own)
    assert torch.equal(edit.latents[:, :, 8:], expected.latents[:, :, 2:])
    with pytest.raises(InputError, match="guide: it has 9 frames, the clip has 11"):
        toy.edit_long(source, edited(), "b", steps=STEPS, guide=clip(9))


def test_frames_that_are_encoded_together_are_joined_as_pixels(tmp_path):
    folder.write(tmp_path / "toy")
    with patch.dict(BACKBONES, {"toy": Toy}):
        toy = anyv2v.load(tmp_path / "toy", device="cpu", graphs=False)
    # each window is one frame and two groups of four
    parts = [[0, *range(1, 9)], [0, *range(3, 11)]]
    inverted = [toy.invert(Video(clip().frames[part], 8), steps=STEPS) for part in parts]
    alone = [toy.edit(source, edited(), "b", steps=STEPS) for source in inverted]
    first, second = (edit.frames.astype(float) for edit in alone)
    shared = np.rint((first[3:] + second[1:7]) / 2)
    expected = np.concatenate([first[:3], shared, second[7:]])

    edit = toy.edit_long(toy.invert_long(clip(), steps=STEPS), edited(), "b", steps=STEPS)
    assert np.array_equal(edit.frames, expected)
    assert torch.equal(edit.latents, torch.cat([each.latents for each in alone], 2))
    request, steps = EditRequest(edited(), "b"), {"steps": STEPS}
    run = LongRun.prepare(toy, clip(), [request], tmp_path / "run", inversion=steps, settings=steps)
    run.run()
    assert np.array_equal(np.concatenate([*run.frames(0)]), expected)
    assert torch.equal(torch.cat([*run.latents(0)], 2), edit.latents)

    drawn = EditRequest(edited(), "b", random_ratio=0.5)
    noise = [
        run._requests().request(drawn, {0: edited()}, part).noise
        for part in plan_windows(13, 9, 4, group=4)
    ]
    assert noise[0] is not None and noise[1] is not None and noise[0].shape[2] == 3
    # the second window begins with the last group of the first one
    assert torch.equal(noise[0][:, :, 2], noise[1][:, :, 1])

    with pytest.raises(
        InputError, match="window: 10 is not 1 more than a multiple of 4; .* 9 and 13"
    ):
        toy.invert_long(clip(), window=10, steps=STEPS)
    with pytest.raises(InputError, match="frames: 11 is not 1 more than a multiple of 4"):
        toy.invert_long(clip(), window=0, steps=STEPS)


@slow
@pytest.mark.parametrize("name", ["editor", "consisti2v", "seine"])
def test_every_backbone_is_edited_by_windows(name, request, video, seine_video):
    editor = request.getfixturevalue(name)
    frames = (seine_video if name == "seine" else video).frames
    long = Video(np.concatenate([frames, frames[::-1]])[:7], 8)
    options = {"sampler": "ddim"} if name == "seine" else {}
    told = {"steps": STEPS, "options": options}
    source = editor.invert_long(long, window=4, shared=0, **told)
    first = frames[0, :, ::-1].copy()
    edit = editor.edit_long(source, first, "b", start=0, **told)
    for indices, part in (([0, 1, 2, 3], slice(0, 4)), ([0, 4, 5, 6], slice(4, 7))):
        window = editor.invert(Video(long.frames[indices], 8), **told)
        expected = editor.edit(window, first, "b", start=0, **told).latents
        assert torch.equal(edit.latents[:, :, part], expected[:, :, 4 - len(range(7)[part]) :])
    assert edit.frames.shape == long.frames.shape


# folders


def test_sources_in_a_folder_are_read_again(toy, tmp_path, monkeypatch):
    told = {"shared": 1, "steps": STEPS, "prompt": "a"}
    expected = toy.edit_long(toy.invert_long(clip(), **told), edited(), "b", steps=STEPS)
    monkeypatch.setattr(source_module, "SAVE_EVERY", 0)
    calls = 0

    def kill(*_):
        nonlocal calls
        calls += 1
        if calls == STEPS + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.invert_long(clip(), folder=tmp_path / "sources", on_step=kill, **told)
    calls = -100
    source = toy.invert_long(clip(), folder=tmp_path / "sources", on_step=kill, **told)
    # one window was done, and a step of the second: that is where it goes on
    assert calls == -100 + STEPS - 1 + STEPS
    assert not source.kept and len([*source.folder.glob("source-*.safetensors")]) == 3
    edit = toy.edit_long(source, edited(), "b", steps=STEPS)
    assert torch.equal(edit.latents, expected.latents)
    with pytest.raises(InputError, match="holds windows of a run with other settings"):
        toy.invert_long(clip(), folder=tmp_path / "sources", **{**told, "prompt": "c"})
    with pytest.raises(InputError, match="holds windows of a run with other clip"):
        toy.invert_long(clip(seed=1), folder=tmp_path / "sources", **told)


def run_of(toy, path, video=None, **changed):
    edits = [EditRequest(edited(), "b"), EditRequest(edited(1), "c", random_ratio=0.3, seed=4)]
    arguments = {
        "shared": 1,
        "inversion": {"steps": STEPS, "prompt": "a"},
        "settings": {"steps": STEPS},
        "keyframes": {8: [edited(2), edited(3)]},
    }
    return LongRun.prepare(toy, video or clip(), edits, path, **{**arguments, **changed})


def latents_of(run, edit):
    return torch.cat([*run.latents(edit)], 2)


def test_a_run_is_that_of_edit_long(toy, tmp_path):
    run = run_of(toy, tmp_path / "run")
    assert run.anchors == (0,) * 5 + (8,) * 6
    assert np.array_equal(run.reference(1, 8), edited(3))
    with pytest.raises(InputError, match="the window is not edited yet"):
        latents_of(run, 0)
    steps, calls = run.steps(), []
    assert run.run(on_step=lambda *call: calls.append(call)) == {}
    assert len(calls) == steps == len(run.windows) * (STEPS + 2 * STEPS)
    assert run.missing() == {} and run.steps() == 0
    source = toy.invert_long(clip(), shared=1, steps=STEPS, prompt="a")
    expected = toy.edit_long(
        source, edited(1), "c", {8: edited(3)}, steps=STEPS, random_ratio=0.3, seed=4
    )
    # features that are replayed, and the source in the batch, agree up to rounding
    torch.testing.assert_close(latents_of(run, 1), expected.latents, atol=1e-5, rtol=0)
    assert run.evaluations() >= len(run.windows) * STEPS
    pieces = [*run.frames(1)]
    assert max(map(len, pieces)) <= 5
    assert np.array_equal(np.concatenate(pieces), toy.decode(latents_of(run, 1)))


def test_an_interrupted_run_goes_on_to_the_same_bits(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "SAVE_EVERY", 0)
    whole, broken = run_of(toy, tmp_path / "whole"), run_of(toy, tmp_path / "broken")
    whole.run()
    # in the inversion of the first window, in an edit of it, in the second, and so on
    for steps in (2, 9, 12):
        calls = iter(range(steps))

        def kill(*_, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_of(toy, tmp_path / "broken").run(on_step=kill)
    assert broken.missing()
    run_of(toy, tmp_path / "broken").run()
    for edit in (0, 1):
        assert torch.equal(latents_of(broken, edit), latents_of(whole, edit))
    assert not [*(tmp_path / "broken").glob("*.unfinished")]


def test_features_are_recorded_and_only_what_edits_read_is_inverted(toy, tmp_path, monkeypatch):
    run, seen = run_of(toy, tmp_path / "run", settings={"steps": STEPS, "start": 1}), []
    edit_each = type(toy).edit_each

    def noted(self, source, edits, **common):
        seen.append(source)
        return edit_each(self, source, edits, **common)

    monkeypatch.setattr(type(toy), "edit_each", noted)
    steps, calls = run.steps(), []
    run.run(on_step=lambda *call: calls.append(call))
    # each window takes two steps of its inversion, and two of each edit
    assert len(calls) == steps == len(run.windows) * 2 * 3
    plan = toy.step_plan(STEPS, 1)
    for source in seen:
        assert [*source.trajectory.latents] == [1]
        assert {*source.features.by_step} == {s.level.index for s in plan.steps if s.sites}


def test_an_interrupted_window_does_not_hinder_another(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "SAVE_EVERY", 0)

    def kill(index, *_):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(toy, tmp_path / "run").run(on_step=kill)
    run = run_of(toy, tmp_path / "run")
    run.run(windows=[1])
    assert 1 not in run.missing() and 0 in run.missing()


def test_windows_may_run_in_several_places(toy, tmp_path):
    whole = run_of(toy, tmp_path / "whole")
    whole.run()
    one, two = run_of(toy, tmp_path / "one"), run_of(toy, tmp_path / "two")
    one.run(windows=slice(0, None, 2))
    two.run(windows=range(1, len(two.windows), 2))
    assert [*one.missing()] == [*range(1, len(one.windows), 2)]
    for path in (tmp_path / "two").glob("window-*"):
        path.rename(tmp_path / "one" / path.name)
    for edit in (0, 1):
        assert torch.equal(latents_of(one, edit), latents_of(whole, edit))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"video": clip(seed=1)}, "clip"),
        ({"shared": 2}, "windows"),
        ({"inversion": {"steps": STEPS, "prompt": "b"}}, "inversion"),
        ({"settings": {"steps": STEPS, "guidance": 2.0}}, "settings"),
        ({"keyframes": {8: [edited(2), edited(4)]}}, "keyframes"),
    ],
)
def test_a_folder_of_another_run_is_refused(toy, tmp_path, changed, words):
    run_of(toy, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(InputError, match=f"holds windows of a run with other {words}; give"):
        run_of(toy, tmp_path / "run", **changed)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_folder_of_other_weights_is_refused(toy, tmp_path):
    run_of(toy, tmp_path / "run")
    other = framewise.load(tmp_path / "other", frames=5, seed=1)
    with pytest.raises(InputError, match="holds windows of a run with other weights"):
        run_of(other, tmp_path / "run")


def test_files_of_another_run_and_damaged_ones_are_refused(toy, tmp_path):
    run = run_of(toy, tmp_path / "run")
    other = run_of(toy, tmp_path / "other", inversion={"steps": STEPS, "prompt": "x"})
    run.run(windows=[0])
    path = run.files.path(0, 0)
    copy = other.files.path(0, 0)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="is of another run; remove it"):
        other.run()
    path.rename(run.files.path(1, 0))
    with pytest.raises(InputError, match="is of another run"):
        run.missing()
    run.files.path(1, 0).write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="window-00001-edit-000.*remove it"):
        run.missing()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json is damaged"):
        run_of(toy, tmp_path / "run")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"keyframes": {8: [edited()]}}, "1 edited frames 8 are given for 2 edits"),
        ({"keyframes": {11: [edited()] * 2}}, "keyframe: 11 is not a whole number"),
        ({"settings": {"after_step": print}}, "settings: after_step: .* cannot be recorded"),
        ({"settings": {"options": {"speed": 9}}}, "speed 9 is above"),
        ({"video": clip(1)}, "at least 2 are needed"),
    ],
)
def test_wrong_arguments_leave_no_folder(toy, tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        run_of(toy, tmp_path / "run", **changed)
    assert not (tmp_path / "run").exists()


def test_a_missing_parent_of_the_folder_is_told(toy, tmp_path):
    with pytest.raises(InputError, match="folder: .*No such file"):
        run_of(toy, tmp_path / "no" / "run")


def test_an_edit_that_fails_does_not_stop_the_others(toy, tmp_path, monkeypatch):
    run, edit_each = run_of(toy, tmp_path / "run"), type(toy).edit_each

    def failing(self, source, edits, **common):
        for request, edit in zip(edits, edit_each(self, source, edits, **common), strict=True):
            yield RuntimeError("no memory") if request.prompt == "b" else edit

    monkeypatch.setattr(type(toy), "edit_each", failing)
    failed = run.run()
    assert list(failed) == [0] and str(failed[0]) == "no memory"
    assert run.missing() == {i: [0] for i in range(len(run.windows))}
    assert len(latents_of(run, 1)[0, 0]) == 11


# memory

PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from anyv2v import EditRequest
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.long.run import LongRun
from tests.toy import folder, framewise
from tests.toy.backbone import Toy
torch.set_num_threads(1)
folder, count, side = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class Drawn:
    fps = 30.0
    def __len__(self):
        return count
    def frames_at(self, indices):
        return np.stack([np.full((side, side, 3), k % 251, np.uint8) for k in indices])

editor = framewise.load(folder / "toy", idle=True, frames=16)
run = LongRun.prepare(
    editor, Drawn(), [EditRequest(Drawn().frames_at([0])[0], "a")], folder / "run",
    inversion={"steps": 2}, settings={"steps": 2, "injection": NO_INJECTION},
)
run.run()
assert sum(frames.shape[1:] == (side, side, 3) for frames in run.frames(0) for _ in frames) == count
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


def peak(path, frames, side):
    path.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(path), str(frames), str(side)]
    root = Path(__file__).parents[2]
    return int(subprocess.run(command, stdout=-1, check=True, text=True, cwd=root).stdout) / 1e3


@slow
def test_memory_does_not_grow_with_the_clip(tmp_path):
    """96 frames more of 256x256 are 19 MB, and their latents 6 MB for each level."""
    assert peak(tmp_path / "long", 112, 256) - peak(tmp_path / "short", 16 * 2, 256) < 8


@pytest.mark.acceptance
def test_memory_of_full_size(tmp_path):
    """512x512, 64 and 512 frames: less than 50 MB apart."""
    assert peak(tmp_path / "long", 512, 512) - peak(tmp_path / "short", 64, 512) < 50
