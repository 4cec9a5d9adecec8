"""Whole runs against the original AnyV2V code, and what an editor promises besides."""

import re
import threading

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import Injection, InputError, Taps
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.pipeline.source import Unfinished
from anyv2v.runtime import memory
from tests.oracles import golden

ABOUT = golden.facts("about")
INVERSION = golden.tensors("inversion")
RECONSTRUCTION = golden.tensors("reconstruction")
PNP = golden.tensors("pnp")


def follows(latents: list[torch.Tensor], truth: torch.Tensor) -> float:
    """The largest relative error of any step."""
    pairs = zip(latents, truth, strict=True)
    return max(golden.relative_error(x, y[None]) for x, y in pairs)


def check_frames(ours: np.ndarray, truth: torch.Tensor) -> None:
    difference = np.abs(ours.astype(int) - truth.numpy().astype(int))
    assert (difference <= 1).mean() >= 0.999
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("steps", [10, 20])
def test_inversion_equals_the_original(sources, steps):
    source = sources[steps]
    timesteps = INVERSION[f"{steps}.timesteps"].tolist()
    assert list(source.trajectory) == [0, *timesteps]
    assert golden.relative_error(source.trajectory[0], INVERSION[f"{steps}.start"]) < 1e-5
    ours = [source.trajectory[t] for t in timesteps]
    assert follows(ours, INVERSION[f"{steps}.latents"]) < 1e-5
    assert source.evaluations == steps


def test_inversion_under_guidance_equals_the_original(editor, video):
    case = ABOUT["inversion"]["5_cfg3"]
    source = editor.invert(
        video,
        "ddim",
        steps=5,
        prompt=case["prompt"],
        negative_prompt=case["negative_prompt"],
        guidance=case["cfg"],
    )
    ours = [source.trajectory[t] for t in INVERSION["5_cfg3.timesteps"].tolist()]
    assert follows(ours, INVERSION["5_cfg3.latents"]) < 1e-5
    assert source.evaluations == 10


@pytest.mark.parametrize("name", ABOUT["reconstruction"])
def test_reconstruction_equals_the_original(editor, sources, name):
    case, latents = ABOUT["reconstruction"][name], []
    again = editor.reconstruct(
        sources[int(case["inversion"].removeprefix("inv"))],
        case["prompt"],
        case["negative_prompt"],
        steps=case["n_steps"],
        start=case["ddim_init_latents_t_idx"],
        guidance=case["cfg"],
        on_step=lambda i, t, x: latents.append(x),
    )
    assert follows(latents, RECONSTRUCTION[f"{name}.latents"]) < 1e-4
    assert torch.equal(again.latents, latents[-1])
    check_frames(again.frames, RECONSTRUCTION[f"{name}.frames"])


WAYS = [
    "shared",
    "replayed compact",
    *(pytest.param(way, marks=pytest.mark.slow) for way in ("always", "separate", "replayed")),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ABOUT["pnp"])
def test_editing_equals_the_original(editor, sources, edited_frame, name, way):
    case, latents = ABOUT["pnp"][name], []
    mixed = "random_ratio" in name
    source, source_pass = sources[10 if "folder" in case else 20], way
    if way.startswith("replayed"):
        injection, compact = Injection(*case["fractions"]), "compact" in way
        recording = editor.recording(
            source.video, injection, case["n_steps"], case["index"], compact=compact
        )
        source, source_pass = editor.record(source, recording), "shared"
    edit = editor.edit(
        source,
        edited_frame,
        ABOUT["edit_prompt"],
        steps=case["n_steps"],
        start=case["index"],
        guidance=case.get("guidance", 9.0),
        injection=Injection(*case["fractions"]),
        random_ratio=0.3 if mixed else 0.0,
        noise=golden.tensors("inputs")["noise"] if mixed else None,
        on_step=lambda i, t, x: latents.append(x),
        source_pass=source_pass,
    )
    assert follows(latents, PNP[f"{name}.latents"]) < 1e-4
    check_frames(edit.frames, PNP[f"{name}.frames"])


def test_the_negative_prompt_is_the_originals():
    assert anyv2v.NEGATIVE_PROMPT == ABOUT["negative_prompt"]


def edit(editor, source, frame, **changed):
    options = dict(steps=5, guidance=9.0, injection=Injection(0.4, 0.4, 0.8)) | changed
    return editor.edit(source, frame, "a robot", **options)


@pytest.mark.parametrize("fractions", [(0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (1, 1, 1)])
def test_injection_works_without_guidance(editor, sources, edited_frame, fractions):
    """Where the original cuts two branches into thirds; F = 4 is not divisible by 3."""
    results = [
        edit(
            editor,
            sources[10],
            edited_frame,
            guidance=1.0,
            injection=Injection(*fractions),
            source_pass=source_pass,
        ).latents
        for source_pass in ("shared", "separate")
    ]
    assert golden.relative_error(*results) < 1e-5
    plain = edit(editor, sources[10], edited_frame, guidance=1.0, injection=Injection(0, 0, 0))
    assert golden.relative_error(results[0], plain.latents) > 1e-3


@pytest.fixture(scope="module")
def solved(editor, video):
    """InversionState on the way that sampling will take, without and with what it passed."""
    plain = editor.invert(video, steps=10)
    every = Injection(1, 1, 1)
    return plain, {
        compact: editor.invert(
            video, steps=10, recording=editor.recording(video, every, 10, compact=compact)
        )
        for compact in (False, True)
    }


ALONE = [(1, 1, 1), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0, 0, 0)]
CASES = [(0.2, 0.2, 0.5), *(pytest.param(x, marks=pytest.mark.slow) for x in ALONE)]


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 9.0])
@pytest.mark.parametrize("fractions", CASES, ids=str)
def test_every_way_to_inject_gives_the_same(editor, solved, edited_frame, fractions, guidance):
    plain, recorded = solved
    options = dict(steps=10, guidance=guidance, injection=Injection(*fractions))
    truth = edit(editor, plain, edited_frame, source_pass="always", **options).latents
    ways = {
        "shared": edit(editor, plain, edited_frame, **options),
        "separate": edit(editor, plain, edited_frame, source_pass="separate", **options),
        "replay": edit(editor, recorded[False], edited_frame, **options),
        "compact": edit(editor, recorded[True], edited_frame, **options),
    }
    for way, found in ways.items():
        assert golden.relative_error(found.latents, truth) < 1e-5, way


def test_recording_changes_no_inversion_and_costs_no_evaluation(editor, solved):
    plain, recorded = solved
    for source in recorded.values():
        assert source.evaluations == plain.evaluations
        assert all(torch.equal(x, plain.trajectory[t]) for t, x in source.trajectory.items())
        assert set(source.features.by_step) == set(plain.trajectory.latents)
    # what was passed on the way is what a pass of its own would find
    again = editor.record(plain, editor.recording(plain.video, Injection(1, 1, 1), 10))
    for t, kept in again.features.by_step.items():
        for site, tensors in kept.items():
            for x, y in zip(tensors, recorded[True].features.by_step[t][site], strict=True):
                assert golden.relative_error(x, y) < 1e-5


def asked(editor, monkeypatch):
    """Rows of conditions and sites of each prediction that an editor asks for from now on."""
    calls, predict = [], editor.predict

    def look(latents, t, conditions, taps=anyv2v.NO_TAPS):
        calls.append((len(conditions.samples), type(taps), taps.sites))
        return predict(latents, t, conditions, taps)

    monkeypatch.setattr(editor, "predict", look)
    return calls


def test_an_edit_of_a_recorded_source_runs_without_the_source(
    editor, solved, edited_frame, monkeypatch
):
    plain, recorded = solved
    calls = asked(editor, monkeypatch)
    edit(editor, recorded[True], edited_frame, steps=10)
    assert [rows for rows, *_ in calls] == [2] * 10
    assert [taps is anyv2v.Replay for _, taps, _ in calls] == [True] * 8 + [False] * 2
    calls.clear()
    # another frame rate is another source branch
    edit(editor, recorded[True], edited_frame, steps=10, fps=16)
    assert [rows for rows, *_ in calls] == [3] * 8 + [2] * 2
    calls.clear()
    # and so are sites that were not recorded
    sites = {"conv": ["up.0.res.0"]}
    edit(editor, recorded[True], edited_frame, steps=10, injection=Injection(1, 0, 0, sites=sites))
    assert [rows for rows, *_ in calls] == [3] * 10


def test_a_step_that_does_not_fit_has_the_source_in_its_batch(
    editor, solved, edited_frame, monkeypatch
):
    plain, _ = solved
    injection = Injection(0.4, 0.4, 0.8)
    whole = editor.recording(plain.video, injection, 10)
    assert len(whole.placement) == 8 and whole.bytes() == sum(whole.sizes.values())
    part = editor.recording(plain.video, injection, 10, memory=whole.bytes() // 2)
    assert 0 < part.bytes() <= whole.bytes() // 2
    # the steps that inject least are the smallest: more of them fit
    left = [size for t, size in part.sizes.items() if t not in part.placement]
    assert max(part.sizes[t] for t in part.placement) <= min(left)
    assert "are not, there the source is part of the batch" in str(part)
    truth = edit(editor, plain, edited_frame, steps=10, injection=injection).latents
    source = editor.record(plain, part)
    calls = asked(editor, monkeypatch)
    found = edit(editor, source, edited_frame, steps=10, injection=injection).latents
    assert golden.relative_error(found, truth) < 1e-5
    rows = [2 if i in part.placement or i not in part.sizes else 3 for i in range(10)]
    assert [r for r, *_ in calls] == rows
    assert editor.record(plain, editor.recording(plain.video, memory=0)).features.by_step == {}


def test_predicted_bytes_are_those_that_are_kept(solved, editor):
    for compact, source in solved[1].items():
        recording = editor.recording(source.video, Injection(1, 1, 1), 10, compact=compact)
        for t, kept in source.features.by_step.items():
            assert recording.sizes[t] == sum(x.nbytes for xs in kept.values() for x in xs)
    sizes = [editor.recording(source.video, compact=compact).bytes() for compact in (True, False)]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_shapes_that_are_known_are_not_asked_of_the_network_again(editor, video, monkeypatch):
    editor = anyv2v.Editor(editor.backbone)
    meta_copy, asked = type(editor.backbone).meta_copy, []
    monkeypatch.setattr(
        type(editor.backbone),
        "meta_copy",
        lambda self, device: asked.append(1) or meta_copy(self, device),
    )
    shorter = anyv2v.Video(video.frames[:2], video.fps)
    kinds = [(video, 0.2, True), (shorter, 0.2, True), (video, 0.2, False), (video, 0.0, True)]
    kinds = [
        dict(video=v, injection=Injection(conv, 0.2, 0.5), steps=10, compact=compact)
        for v, conv, compact in kinds
    ]
    first = [editor.recording(**kind) for kind in kinds]
    assert len(asked) == 4 and len({r.bytes() for r in first}) == 4
    assert [editor.recording(**kind) for kind in kinds] == first
    assert len(asked) == 4
    # the same sites, at other steps
    editor.recording(**kinds[0] | {"steps": 20})
    assert len(asked) == 4
    # not more and more of them
    monkeypatch.setattr("anyv2v.pipeline.shapes.KNOWN", 3)
    editor._shapes._known.clear()
    for kind, truth in zip(kinds, first, strict=True):
        assert editor.recording(**kind) == truth
    assert len(editor._shapes._known) == 3


def test_features_that_are_on_no_gpu_are_waited_for_on_none(monkeypatch):
    features, asked = FeatureCache({1: "host"}), []
    features.add(1, {"a": (torch.zeros(2),)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: asked.append(device))
    features.wait()
    assert not asked and features.covers(1, frozenset("a"))


def test_only_a_fixed_point_without_guidance_can_record_on_the_way(editor, video):
    recording = editor.recording(video, steps=5)
    for options in (dict(method="ddim"), dict(guidance=3.0)):
        with pytest.raises(InputError, match="only a fixed-point inversion without guidance"):
            editor.invert(video, steps=5, recording=recording, **options)
    # what the inversion would not pass is found before it runs
    end = editor.step_plan(5, 3, NO_INJECTION)
    for options in (dict(steps=4), dict(steps=5, plan=end)):
        with pytest.raises(InputError, match="holds no latents of timestep [68]01"):
            editor.invert(video, recording=recording, on_step=pytest.fail, **options)


def test_features_are_saved_if_asked(editor, solved, edited_frame, tmp_path, monkeypatch):
    _, recorded = solved
    recorded[True].save(tmp_path / "small.safetensors")
    recorded[True].save(tmp_path / "large.safetensors", features=True)
    small, large = (editor.load_source(tmp_path / f"{n}.safetensors") for n in ("small", "large"))
    assert not small.features.by_step
    assert small.residuals == recorded[True].residuals
    calls = asked(editor, monkeypatch)
    results = [edit(editor, s, edited_frame, steps=10).latents for s in (small, large)]
    assert golden.relative_error(*results) < 1e-5
    assert [rows for rows, *_ in calls] == [3] * 8 + [2] * 12


def test_many_edits_share_one_source(editor, solved, edited_frame, video, monkeypatch):
    plain, recorded = solved
    requests = [
        anyv2v.EditRequest(edited_frame, "a robot"),
        anyv2v.EditRequest(video.frames[0], "a man", guidance=1.0, seed=3, random_ratio=0.3),
        anyv2v.EditRequest(edited_frame, "a bear", "blurry", guidance=4.0, seed=1),
    ]
    options = dict(steps=10, injection=Injection(0.4, 0.4, 0.8))
    alone = [editor.edit_many(plain, [r], **options)[0] for r in requests]
    calls = asked(editor, monkeypatch)
    for source, rows in ((plain, [6] * 8 + [5] * 2), (recorded[True], [5] * 10)):
        calls.clear()
        together = editor.edit_many(source, requests, **options)
        assert [r for r, *_ in calls] == rows
        for one, same in zip(together, alone, strict=True):
            assert golden.relative_error(one.latents, same.latents) < 1e-5
            assert (one.frames != same.frames).mean() < 1e-3
    # where memory allows two, the third comes after them
    monkeypatch.setattr(editor, "_batch", lambda s, f, edits, each: min(2, edits))
    calls.clear()
    split = editor.edit_many(plain, requests, **options)
    assert [r for r, *_ in calls] == [4] * 8 + [3] * 2 + [3] * 8 + [2] * 2
    for one, same in zip(split, alone, strict=True):
        assert golden.relative_error(one.latents, same.latents) < 1e-5


def test_batches_are_as_large_as_memory_allows(editor, monkeypatch):
    one_row = 2 * editor.backbone.activation_bytes(1, 4, 8, 16)
    for rows, edits in ((2, 1), (4, 1), (5, 2), (7, 3), (100, 8)):
        monkeypatch.setattr("anyv2v.editor.free_bytes", lambda device, n=rows: n * one_row)
        assert editor._batch((128, 64), 4, 8, 2) == edits


def test_frames_go_through_the_autoencoder_together_where_they_fit(editor, video, monkeypatch):
    each = 2 * editor.backbone.codec.vae.activation_bytes(64, 128)
    for free, count in ((0, 1), (2 * each - 1, 1), (2 * each, 2), (100 * each, 4)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.frames_at_once(each // 2, torch.device("meta")) == count
        # more are no faster there
        assert memory.frames_at_once(each // 2, torch.device("cpu")) == 1

    noise = torch.randn(1, 4, len(video.frames), 8, 16, generator=torch.Generator().manual_seed(0))
    latents, frames = editor.encode_frames(video.frames), editor.decode(noise)
    sampled = editor.encode_frames(video.frames, torch.Generator().manual_seed(1))
    vae, rows = editor.backbone.codec.vae, []
    encode, decode = vae.encode, vae.decode
    monkeypatch.setattr(editor, "_frames_at_once", lambda size: 3 if size == (128, 64) else 0)
    monkeypatch.setattr(
        editor.backbone.codec.vae, "encode", lambda x, g: rows.append(len(x)) or encode(x, g)
    )
    monkeypatch.setattr(
        editor.backbone.codec.vae, "decode", lambda x: rows.append(len(x)) or decode(x)
    )
    assert golden.relative_error(editor.encode_frames(video.frames), latents) < 1e-6
    difference = editor.decode(noise).astype(int) - frames.astype(int)
    assert abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3
    assert rows == [3, 1] * 2
    # samples of the posterior are drawn in the order of the frames, whatever fits
    again = editor.encode_frames(video.frames, torch.Generator().manual_seed(1))
    assert torch.equal(again, sampled) and rows[4:] == [1] * 4


def test_what_is_wrong_with_one_of_many_is_found_before_the_first(editor, solved, edited_frame):
    good = anyv2v.EditRequest(edited_frame, "a robot")
    for wrong in (dict(frame="no.png"), dict(seed=-1), dict(random_ratio=2), dict(fit="x")):
        bad = anyv2v.EditRequest(**{"frame": edited_frame, "prompt": "x", **wrong})

        def never(*_):
            raise AssertionError("an edit has begun")

        with pytest.raises(InputError):
            editor.edit_many(solved[0], [good, bad], steps=10, on_step=never)
    with pytest.raises(InputError, match="edits: the list is empty"):
        editor.edit_many(solved[0], [])


def test_an_inversion_ends_where_sampling_begins(editor, video, sources):
    plan = editor.step_plan(10, 3, Injection(0.4, 0.4, 0.8))
    needed = [level.t for level in plan.source_levels]
    part = editor.invert(video, "ddim", 20, plan=plan)
    assert set(part.trajectory) == {0, *needed}
    assert all(torch.equal(part.trajectory[t], sources[20].trajectory[t]) for t in needed)
    assert part.evaluations == sum(t <= max(needed) for t in editor.schedule.timesteps(20))
    with pytest.raises(InputError, match="holds no latents of timestep 601"):
        editor.invert(video, steps=8, plan=plan)


@pytest.mark.slow
def test_concurrent_edits_of_recorded_sources_equal_the_same_in_sequence(
    editor, solved, edited_frame
):
    source, results = solved[1][True], [None, None]
    fractions = (Injection(1, 1, 1), Injection(0.4, 0.2, 0.8))

    def work(i):
        results[i] = edit(editor, source, edited_frame, steps=10, injection=fractions[i]).latents

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [x.clone() for x in results]
    for i in range(2):
        work(i)
        assert torch.equal(results[i], found[i])


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["fixed-point", pytest.param("ddim", marks=pytest.mark.slow)])
def test_an_interrupted_inversion_goes_on(editor, video, tmp_path, monkeypatch, method):
    monkeypatch.setattr("anyv2v.pipeline.source.SAVE_EVERY", 0.0)
    path = tmp_path / "unfinished"
    whole = editor.invert(video, method, 10)

    def stop(i, t, x):
        if i == 4:
            raise Killed

    with pytest.raises(Killed):
        editor.invert(video, method, 10, on_step=stop, unfinished=Unfinished(path))
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished"]
    steps = []
    recording = None
    if method == "fixed-point":
        recording = editor.recording(video, Injection(1, 1, 1), 10)
    resumed = editor.invert(
        video,
        method,
        10,
        on_step=lambda i, t, x: steps.append(i),
        unfinished=Unfinished(path),
        recording=recording,
    )
    assert steps == list(range(4, 10))
    assert resumed.evaluations == whole.evaluations
    assert resumed.residuals == whole.residuals
    assert list(resumed.trajectory) == list(whole.trajectory)
    assert all(torch.equal(x, whole.trajectory[t]) for t, x in resumed.trajectory.items())
    if recording is not None:
        assert set(resumed.features.by_step) == set(whole.trajectory.latents)
    # of another run it is no use
    with pytest.raises(InputError, match="of another video, other settings or weights"):
        editor.invert(video, method, 10, prompt="x", unfinished=Unfinished(path))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read"):
        editor.invert(video, method, 10, unfinished=Unfinished(path))
    begun = editor.invert(video, method, 10, unfinished=Unfinished(path, resume=False))
    assert begun.evaluations == whole.evaluations


def test_other_sites_may_be_chosen(editor, sources, edited_frame):
    default = edit(editor, sources[10], edited_frame).latents
    same = Injection(0.4, 0.4, 0.8, sites=dict(editor.backbone.groups))
    assert torch.equal(edit(editor, sources[10], edited_frame, injection=same).latents, default)
    other = Injection(0.4, 0.4, 0.8, sites={"conv": ["up.2.res.0"]})
    moved = edit(editor, sources[10], edited_frame, injection=other).latents
    assert golden.relative_error(moved, default) > 1e-3


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(editor, sources, edited_frame):
    one, two, three = (
        edit(editor, sources[10], edited_frame, random_ratio=0.5, seed=seed).latents
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert golden.relative_error(three, one) > 1e-2


def test_an_edit_without_a_source_is_the_plain_model(editor, edited_frame):
    """Generation is sampling from the given noise; here against an inversion-free edit."""
    latents = []
    clip = editor.generate(
        edited_frame,
        "a robot",
        frames=4,
        size=(128, 64),
        steps=5,
        seed=1,
        on_step=lambda i, t, x: latents.append(x),
    )
    assert clip.frames.shape == (4, 64, 128, 3) and clip.frames.dtype == np.uint8
    assert clip.latents.shape == (1, 4, 4, 8, 16)
    assert len(latents) == 5
    # by hand, from the parts
    x = torch.randn(1, 4, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    edited = editor.condition("a robot", edited_frame, frames=4, size=(128, 64))
    plain = editor.condition(
        anyv2v.NEGATIVE_PROMPT, edited_frame, frames=4, size=(128, 64), negative=True
    )
    for t in editor.schedule.timesteps(5):
        away, to = editor.predict(x, t, plain), editor.predict(x, t, edited)
        x = editor.schedule.step(away + 9.0 * (to - away), t, x, 5)
    assert golden.relative_error(clip.latents, x) < 1e-5


def test_a_tap_of_ones_own_needs_no_change_of_the_package(editor, sources, edited_frame):
    """The documents' example: keys of the source, queries of the edit."""

    class SourceKeys(Taps):
        def qk(self, site, q, k):
            if not site.startswith("up.3.spatial"):
                return q, k
            source = k[: k.shape[0] // 2]
            return q, torch.cat([source, source])

    source = sources[10]
    conditions = [
        editor.condition(prompt, frame, frames=4, size=(128, 64))
        for prompt, frame in (("", source.video.frames[0]), ("a robot", edited_frame))
    ]
    both = type(conditions[0]).stack(conditions)
    x = torch.cat([source.trajectory[901]] * 2)
    out = editor.predict(x, 901, both, SourceKeys())
    plain = editor.predict(x, 901, both)
    assert torch.equal(out[:1], plain[:1])
    assert golden.relative_error(out[1:], plain[1:]) > 1e-4


def test_two_edits_at_once_equal_one_after_the_other(editor, sources, edited_frame):
    settings = [dict(injection=Injection(1, 1, 1)), dict(injection=Injection(0, 0, 0), seed=5)]
    alone = [edit(editor, sources[10], edited_frame, **s).latents for s in settings]
    together, barrier = [None, None], threading.Barrier(2)

    def work(i):
        barrier.wait()
        together[i] = edit(editor, sources[10], edited_frame, **settings[i]).latents

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(together[0], alone[0]) and torch.equal(together[1], alone[1])


def test_an_exception_in_the_middle_leaves_the_model_unchanged(editor, sources, edited_frame):
    before = edit(editor, sources[10], edited_frame).latents

    def fail(i, t, x):
        if i == 1:
            raise KeyboardInterrupt

    for source_pass in ("shared", "separate"):
        with pytest.raises(KeyboardInterrupt):
            edit(editor, sources[10], edited_frame, on_step=fail, source_pass=source_pass)
    assert torch.equal(edit(editor, sources[10], edited_frame).latents, before)


def test_a_source_survives_its_file(editor, sources, edited_frame, tmp_path):
    path = tmp_path / "clip.source.safetensors"
    sources[10].save(path)
    again = editor.load_source(path)
    assert list(again.trajectory) and set(again.trajectory) == set(sources[10].trajectory)
    assert all(torch.equal(x, again.trajectory[t]) for t, x in sources[10].trajectory.items())
    assert np.array_equal(again.video.frames, sources[10].video.frames)
    assert again.settings == sources[10].settings and again.evaluations == 10
    ours, theirs = (edit(editor, s, edited_frame).latents for s in (again, sources[10]))
    assert torch.equal(ours, theirs)


def test_a_source_of_other_weights_is_refused(editor, sources, tmp_path):
    path = tmp_path / "clip.safetensors"
    sources[10].save(path)
    other = anyv2v.Editor(editor.backbone, fingerprint="another")
    with pytest.raises(InputError, match="clip.safetensors: .*other weights"):
        other.load_source(path)
    with pytest.raises(InputError, match="other weights"):
        other.reconstruct(sources[10])
    again = tmp_path / "again.safetensors"
    sources[10].save(again)
    assert again.read_bytes() == path.read_bytes()


def test_files_that_are_no_sources_are_refused(editor, weights, tmp_path, sources):
    whole = tmp_path / "whole.safetensors"
    sources[10].save(whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError, match="cut.safetensors"):
            editor.load_source(cut)
    for path in (weights / "vae.safetensors", tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            editor.load_source(path)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(steps=7), "holds no latents of timestep 853"),
        (dict(start=5), "start: 5 is not a whole number from 0 to 4"),
        (dict(start=-1), "start: -1"),
        (dict(steps=5.0), "steps: 5.0"),
        (dict(guidance=float("nan")), "guidance: nan"),
        (dict(seed=1.5), "seed: 1.5"),
        (dict(fps="8"), "fps: '8'"),
        (dict(steps=0), "steps: 0"),
        (dict(random_ratio=1.5), "random_ratio: 1.5"),
        (dict(fps=0), "fps: 0"),
        (dict(source_pass="twice"), "source_pass: 'twice'"),
        (dict(fit="bend"), "fit"),
        (dict(noise=torch.zeros(1, 4, 4, 8, 8)), "noise is"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_impossible_settings_are_refused(editor, sources, edited_frame, changed, message):
    with pytest.raises(InputError, match=message):
        edit(editor, sources[10], edited_frame, **changed)


def test_impossible_videos_are_refused(editor, video):
    with pytest.raises(InputError, match="1 frame"):
        editor.invert(anyv2v.Video(video.frames[:1], 8), steps=5)
    with pytest.raises(InputError, match="63x127 is not divisible by 8.*nearest.*64x128"):
        editor.invert(anyv2v.Video(np.zeros((2, 127, 63, 3), np.uint8), 8), steps=5)
    with pytest.raises(InputError, match="method"):
        editor.invert(video, method="guess", steps=5)
    with pytest.raises(InputError, match="guidance: inf"):
        editor.invert(video, steps=5, guidance=float("inf"))
    with pytest.raises(InputError, match="frames: 0"):
        editor.generate(video.frames[0], "", frames=0)


def test_dtypes_that_no_network_runs_in_are_refused(weights):
    for dtype in ("float16", torch.int8, torch.float64):
        with pytest.raises(InputError, match="dtype: .* is not one of"):
            anyv2v.load(weights, dtype=dtype)


def test_advice_on_steps_is_right(editor, video):
    """30 steps do not serve 10: 1000 // 10 is no multiple of 1000 // 30."""
    source = editor.invert(video, "ddim", steps=30)
    with pytest.raises(InputError, match="serves runs of (.*) steps") as refusal:
        editor.reconstruct(source, steps=10)
    served = re.search("runs of (.*) steps", str(refusal.value))[1].split(", ")
    assert "30" in served and "10" not in served
    for steps in map(int, served):
        assert set(editor.schedule.timesteps(steps)) <= set(source.trajectory)


def test_what_cannot_fit_in_memory_is_refused_with_what_would(editor):
    editor.check_memory((256, 256), 16)
    with pytest.raises(InputError, match="16384x8192 with 64 frames needs") as refusal:
        editor.check_memory((16384, 8192), 64)
    fits = tuple(map(int, str(refusal.value).split("; ")[1].split(" would")[0].split("x")))
    assert fits[0] % 8 == fits[1] % 8 == 0
    editor.check_memory(fits, 64)


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_half_precision_is_as_close_as_its_dtype_allows(
    editor, weights, sources, edited_frame, dtype
):
    """One prediction loses what tens of layers of that precision lose; latents stay float32."""
    half = anyv2v.load(weights, device="cpu", dtype=dtype)
    source = sources[10]
    args = ("a robot", edited_frame, 4, (128, 64))
    truth = editor.predict(source.trajectory[501], 501, editor.condition(*args))
    ours = half.predict(source.trajectory[501], 501, half.condition(*args))
    assert ours.dtype == torch.float32
    assert golden.relative_error(ours, truth) < 8 * torch.finfo(dtype).eps
    out = edit(half, half.invert(source.video, steps=5), edited_frame)
    assert out.latents.dtype == torch.float32 and out.latents.isfinite().all()


def test_latents_that_are_not_finite_are_never_shown_as_a_picture(editor):
    with pytest.raises(RuntimeError, match="not finite"):
        editor.decode(torch.full((1, 4, 1, 8, 8), float("nan")))


def test_a_kernel_that_is_asked_for_by_name_does_not_stop_what_only_looks_at_shapes(
    editor, video, monkeypatch
):
    """ANYV2V_ATTENTION=triton: a recording's size is found on tensors without data."""
    monkeypatch.setattr("anyv2v.kernels.attention._REQUESTED", "triton")
    fresh = anyv2v.Editor(editor.backbone, editor.fingerprint)
    assert fresh.recording(video, steps=10).sizes == editor.recording(video, steps=10).sizes
