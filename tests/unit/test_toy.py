"""A backbone that differs from I2VGen-XL in everything goes through the same editor.

tests/toy has its networks and, in float64 without the product, what they have to give. Registering
it is one line, as it is in anyv2v/backbones/registry.py.
"""

import ast
import gc
import re
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection, InputError, Taps
from anyv2v.backbones.registry import BACKBONES
from anyv2v.cli.main import main
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.pipeline import planning
from anyv2v.pipeline.cost import predict_cost
from anyv2v.pipeline.cuda_graphs import Graphs
from anyv2v.pipeline.planning import recording_is_free
from anyv2v.pipeline.source import Unfinished
from tests.oracles import golden
from tests.toy import folder, truth
from tests.toy.backbone import Toy
from tests.toy.codec import ToyCodec
from tests.toy.schedule import Flow
from tests.unit.test_graphs import Taped

ROOT = Path(__file__).parents[2]
STEPS = 5
PROMPT = "red"
EXACT = 1e-6
"""Relative error of float32 against float64; no more is lost in ten passes of this network."""


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", Toy)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy"
    folder.write(path)
    return path


@pytest.fixture(scope="module")
def editor(weights):
    return anyv2v.load(weights, device="cpu", graphs=False)


@pytest.fixture(scope="module")
def exact(weights):
    return truth.Truth.read(weights)


@pytest.fixture(scope="module")
def video():
    """9 frames of 36x24, of random squares."""
    colors = np.random.default_rng(0).integers(0, 256, (9, 6, 9, 3), np.uint8)
    return anyv2v.Video(np.kron(colors, np.ones((1, 4, 4, 1), np.uint8)), 12)


@pytest.fixture(scope="module")
def frame(video):
    return 255 - video.frames[0]


@pytest.fixture(scope="module")
def source(editor, video):
    return editor.invert(video, "ddim", steps=STEPS)


@pytest.fixture(scope="module")
def solved(editor, video):
    return editor.invert(video, steps=STEPS)


@pytest.fixture(scope="module")
def trajectory(exact, video):
    return exact.invert(exact.encode(video.frames), STEPS)


def edit(editor, source, frame, **options):
    return editor.edit(source, frame, PROMPT, **options)


def error(latents, wanted):
    return golden.relative_error(latents[0], torch.from_numpy(wanted))


def same(a, b):
    return torch.equal(a.latents, b.latents) and np.array_equal(a.frames, b.frames)


# the closed form


def test_the_latents_are_those_of_the_definition(editor, exact, video):
    latents = editor.encode_frames(video.frames)
    wanted = exact.encode(video.frames)
    assert latents.shape == (1, 4, 3, 6, 9)
    assert error(latents, wanted) < EXACT
    decoded = editor.decode(latents)
    assert decoded.shape == video.frames.shape
    assert np.array_equal(decoded, exact.decode(wanted))


@pytest.mark.parametrize("guide", ["auto", "patches", "clip"])
def test_an_edit_may_start_from_a_guess(editor, exact, source, video, frame, guide, monkeypatch):
    """A token is nine latents, and a latent frame four frames; the first is never noised."""
    begun = []
    monkeypatch.setattr(
        "anyv2v.pipeline.editing.sample", lambda predict, x, *rest: begun.append(x) or x
    )
    clip = anyv2v.Video(255 - video.frames, video.fps)
    for way in (None, clip if guide == "clip" else guide):
        edit(editor, source, frame, guide=way, start=2, steps=STEPS)
    plain, guided = begun
    assert guided.shape == plain.shape == (1, 4, 2, 6, 9)
    # every color is turned round: so is every latent, but for what the encoder adds to it
    latents = torch.from_numpy(exact.encode(clip.frames) - exact.encode(video.frames))[:, 1:]
    wanted = Flow().levels(STEPS)[2].alpha * latents
    shift = guided - plain
    if guide == "auto":
        # features of random weights match anything; what they carry is what frame 0 changes in
        first = exact.encode(255 - video.frames[:1]) - exact.encode(video.frames[:1])
        assert 0 < shift.abs().max() <= Flow().levels(STEPS)[2].alpha * np.abs(first).max() + 1e-6
    else:
        assert (shift - wanted).norm() < {"clip": 1e-5, "patches": 0.9}[guide] * wanted.norm()


def test_memory_is_asked_for_the_branches_that_there_are(editor, source, frame, monkeypatch):
    """Three of an edit and the source's, or as few as its guidance needs."""
    asked = []
    monkeypatch.setattr(Toy, "activation_bytes", lambda self, n, *shape: asked.append(n) or 1)
    edit(editor, source, frame)
    edit(editor, source, frame, guidance=1.0)
    editor.reconstruct(source)
    editor.generate(frame, PROMPT)
    editor.check_memory((36, 24), 9)
    assert [n for i, n in enumerate(asked) if n not in asked[i - 1 : i]] == [4, 2, 1, 3, 4]


def test_memory_is_asked_for_the_frames_that_there_are(editor, video, monkeypatch):
    """Three latents are a token and four pixels a latent: sides in pixels are of the second."""
    asked = []
    monkeypatch.setattr(ToyCodec, "activation_bytes", lambda self, *size: asked.append(size) or 1)
    editor.decode(editor.encode_frames(video.frames))
    assert set(asked) == {(24, 36)}


def test_the_inversion_is_that_of_the_definition(source, trajectory):
    assert source.evaluations == STEPS
    for i, wanted in enumerate(trajectory):
        assert error(source.at(i), wanted) < EXACT
        # the pinned frame is as it was
        assert torch.equal(source.at(i)[:, :, 0], source.trajectory.clean[:, :, 0])


def test_an_edit_is_that_of_the_definition(editor, exact, source, trajectory, video, frame):
    """Its defaults are all the weights' own."""
    found = edit(editor, source, frame)
    wanted = exact.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    assert error(found.latents, wanted) < EXACT
    assert np.array_equal(found.frames, exact.decode(wanted))
    assert found.frames.shape == video.frames.shape and found.fps == video.fps


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"guidance": 2.0}, {"scales": {"text": 2.0, "image": 1.5}}),
        ({"guidance": {"image": 2.5}}, {"scales": {"text": 3.0, "image": 2.5}}),
        ({"guidance": 1.0}, {"scales": {"text": 1.0, "image": 1.0}}),
        ({"negative_prompt": "blue"}, {"negative_prompt": "blue"}),
        ({"injection": Injection(cross=0.8)}, {"fractions": dict(map=0.6, hidden=0.4, cross=0.8)}),
        ({"injection": Injection(map=0, hidden=0, cross=0)}, {"fractions": {}}),
        ({"injection": Injection.none()}, {"fractions": {}}),
        (
            {"injection": Injection(sites={"cross": ["blocks.0.cross", "blocks.1.hidden"]})},
            {"cross": {"blocks.0.cross", "blocks.1.hidden"}},
        ),
    ],
)
def test_so_is_one_with_other_settings(
    editor, exact, source, trajectory, video, frame, given, settings
):
    if "cross" in settings:
        settings = {"groups": {**exact.groups, **settings}}
    found = edit(editor, source, frame, **given)
    other = replace(exact, **settings)
    assert error(found.latents, other.edit(video.frames, frame, PROMPT, trajectory, STEPS)) < EXACT
    own = exact.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    assert error(found.latents, own) > 1e-4


def test_a_run_may_begin_later(editor, exact, source, trajectory, video, frame):
    found = edit(editor, source, frame, start=2)
    wanted = exact.edit(video.frames, frame, PROMPT, trajectory, STEPS, start=2)
    assert error(found.latents, wanted) < EXACT


def test_the_source_keeps_its_own_prompt(editor, exact, source, trajectory, video, frame):
    told = replace(source, settings=replace(source.settings, prompt="sea"))
    wanted = exact.edit(video.frames, frame, PROMPT, trajectory, STEPS, source_prompt="sea")
    recorded = editor.record(told, editor.recording(video))
    for found in (edit(editor, told, frame), edit(editor, recorded, frame)):
        assert error(found.latents, wanted) < EXACT
    assert error(edit(editor, source, frame).latents, wanted) > 1e-4


def test_guidance_of_the_inversion_depends_on_the_step_too(editor, exact, video):
    asked = dict(prompt="sea", negative_prompt="bad", guidance={"text": 2.0, "image": 1.5})
    source = editor.invert(video, "ddim", STEPS, **asked)
    assert source.evaluations == 3 * STEPS and source.settings.guidance == asked["guidance"]
    other = replace(exact, scales=asked["guidance"])
    wanted = other.invert(exact.encode(video.frames), STEPS, prompt="sea")
    assert all(error(source.at(i), wanted[i]) < EXACT for i in range(STEPS))


def test_one_prediction_is_that_of_the_definition(editor, exact, frame):
    conditions = editor.condition(PROMPT, frame, 9, (36, 24), options={"speed": 3})
    latents = torch.randn(1, 4, 3, 6, 9, generator=torch.Generator().manual_seed(7))
    found = editor.predict(latents, 8.76543, conditions)
    context = exact.context(PROMPT, exact.encode(frame[None]))
    z = latents[0].double().numpy()
    wanted, _ = replace(exact, speed=3.0).network(z, 0.876543, context)
    assert error(found, wanted) < EXACT


def test_an_option_of_its_own_reaches_the_network(editor, exact, video, frame):
    fast = {"speed": 2}
    source = editor.invert(video, "ddim", steps=STEPS, options=fast)
    found = edit(editor, source, frame, options=fast)
    other = replace(exact, speed=2.0)
    trajectory = other.invert(exact.encode(video.frames), STEPS)
    wanted = other.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    assert error(found.latents, wanted) < EXACT
    assert source.settings.options["speed"] == 2
    recorded = editor.record(source, editor.recording(video))
    assert error(edit(editor, recorded, frame, options=fast).latents, wanted) < EXACT
    # what was recorded at one speed serves no edit at another
    slow = exact.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    assert error(edit(editor, recorded, frame).latents, slow) < EXACT


def test_a_sampler_that_adds_noise(editor, exact, source, trajectory, video, frame):
    """Of one step it is Euler's method; of more it differs by what the noise of each step is."""
    drawn = torch.randn(STEPS, *source.at(0).shape, generator=torch.Generator().manual_seed(3))
    noisy = edit(editor, source, frame, options={"sampler": "ancestral"}, step_noise=list(drawn))
    wanted = exact.edit(
        video.frames, frame, PROMPT, trajectory, STEPS, [x[0].double().numpy() for x in drawn]
    )
    assert error(noisy.latents, wanted) < EXACT
    # drawn from the seed otherwise
    first, again = (edit(editor, source, frame, options={"sampler": "ancestral"}) for _ in range(2))
    assert same(first, again) and not same(first, noisy)
    for way in (lambda **x: edit(editor, source, frame, **x), partial(editor.reconstruct, source)):
        one, other = (way(options={"sampler": "ancestral"}, seed=seed) for seed in (0, 1))
        assert not same(one, other)
    # each step adds its own
    other = torch.cat([drawn[:1], drawn[1:].flip(0)])
    one, other = (
        editor.reconstruct(source, options={"sampler": "ancestral"}, step_noise=list(x))
        for x in (drawn, other)
    )
    assert not same(one, other)


class Late(truth.Truth):
    """Its network is told of a tenth less noise than there is, in sampling."""

    def network(self, z, sigma, context, injected=None):
        return super().network(z, 0.9 * sigma, context, injected)


def test_a_sampler_may_read_its_source_at_other_levels_than_its_own(
    editor, exact, source, trajectory, video, frame, monkeypatch
):
    """As SEINE's: its network is told another timestep than the inversion's was."""

    class LateFlow(Flow):
        def levels(self, steps):
            return tuple(replace(x, t=0.9 * x.t, inversion_level=x) for x in super().levels(steps))

    monkeypatch.setattr(Toy, "sampler", lambda self, options: LateFlow())
    late = Late(**vars(exact))
    wanted = late.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    recording = editor.recording(video)
    recorded = editor.record(source, recording)
    for found in (edit(editor, source, frame), edit(editor, recorded, frame)):
        assert error(found.latents, wanted) < EXACT
    assert error(found.latents, exact.edit(video.frames, frame, PROMPT, trajectory, STEPS)) > 1e-3
    # what the inversion passes are other features
    with pytest.raises(InputError, match="the run asks about timestep 8.30769 where the inversion"):
        editor.invert(video, steps=STEPS, recording=recording)
    assert not recording_is_free(editor.backbone, "fixed-point", STEPS, STEPS, None)
    monkeypatch.setattr(Toy, "sampler", lambda self, options: Flow())
    assert recording_is_free(editor.backbone, "fixed-point", STEPS, STEPS, None)
    assert not recording_is_free(editor.backbone, "fixed-point", STEPS, STEPS + 1, None)
    assert not recording_is_free(editor.backbone, "ddim", STEPS, STEPS, None)


def test_the_source_may_begin_with_the_edited_frame(
    editor, exact, source, trajectory, video, frame, monkeypatch
):
    """As ConsistI2V's original has it: each edit has a source of its own, which is not recorded."""
    monkeypatch.setattr(Toy, "uses_edited_source_frame", lambda self, options: True)
    requests = [EditRequest(frame, PROMPT), EditRequest(frame[::-1].copy(), PROMPT)]
    recorded = replace(source, features=FeatureCache({0: "device"}, {0: {"blocks.0.map": ()}}))
    for request, found in zip(requests, editor.edit_many(recorded, requests), strict=True):
        first = exact.encode(request.frame[None])
        mistaken = [truth.with_first(z, first) for z in trajectory]
        clip = np.concatenate([request.frame[None], video.frames[1:]])
        wanted = exact.edit(clip, request.frame, PROMPT, mistaken, STEPS)
        assert error(found.latents, wanted) < EXACT
        own = exact.edit(video.frames, request.frame, PROMPT, trajectory, STEPS)
        assert error(found.latents, own) > 1e-4
    assert not editor.recording(video).placement


@pytest.fixture(scope="module")
def exactly(editor, video):
    """An inversion whose steps are solved as far as float32 goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyv2v.pipeline.inverting.default_budget", lambda steps, _: 12 * steps)
        return editor.invert(video, steps=STEPS, tolerance=3e-7)


def test_the_fixed_point_is_that_of_the_definition(editor, exact, exactly, video, frame):
    """Solved by plain iteration; an error in the latents shrinks by a third in each one."""
    wanted = exact.invert(exact.encode(video.frames), STEPS, iterations=60)
    for i, each in enumerate(wanted):
        assert error(exactly.at(i), each) < 3 * EXACT
    edited = exact.edit(video.frames, frame, PROMPT, wanted, STEPS)
    assert error(edit(editor, exactly, frame).latents, edited) < 3 * EXACT


def test_what_is_edited_is_what_was_found(editor, exact, solved, video, frame):
    """Where a tolerance leaves the latents of an inversion beside its fixed point."""
    assert 1e-3 < max(solved.residuals.values()) < 1e-1
    found = [solved.at(i)[0].double().numpy() for i in range(STEPS)]
    edited = exact.edit(video.frames, frame, PROMPT, found, STEPS)
    assert error(edit(editor, solved, frame).latents, edited) < EXACT


def test_a_clip_from_noise_is_that_of_the_definition(editor, exact, frame):
    noise = torch.randn(1, 4, 3, 6, 9, generator=torch.Generator().manual_seed(5))
    found = editor.generate(frame, PROMPT, noise=noise)
    wanted = exact.generate(frame, PROMPT, noise[0].double().numpy(), STEPS)
    assert error(found.latents, wanted) < EXACT
    assert found.frames.shape == (9, 24, 36, 3) and found.fps == 12
    assert editor.generate(frame, PROMPT, frames=5).frames.shape == (5, 24, 36, 3)


# the ways through the editor


def test_a_clip_of_its_pinned_frame_alone_is_refused(editor, frame):
    with pytest.raises(InputError, match="frames: 1 is the given frame alone"):
        editor.generate(frame, PROMPT, frames=1)


def test_nothing_of_a_run_outlives_it(editor, source, frame, monkeypatch):
    """Not even until Python looks for what holds itself: on a GPU it would be memory."""
    made, condition = [], Toy.condition

    def noted(*args, **options):
        conditions = condition(*args, **options)
        made.append(weakref.ref(conditions))
        return conditions

    monkeypatch.setattr(Toy, "condition", noted)
    gc.disable()
    try:
        edit(editor, source, frame)
        assert len(made) == 4 and not any(conditions() for conditions in made)
    finally:
        gc.enable()


def test_a_source_that_serves_no_whole_run_says_so(editor, video, frame):
    kept = editor.invert(video, "ddim", STEPS, plan=editor.step_plan(start=1))
    with pytest.raises(InputError, match="serves runs of no number of steps"):
        editor.edit(kept, frame, PROMPT)


def test_the_source_comes_back(editor, exactly, source):
    clean = exactly.trajectory.clean
    for start in (0, 2):
        back = editor.reconstruct(exactly, start=start).latents
        assert golden.relative_error(back, clean) < 3 * EXACT
    assert golden.relative_error(editor.reconstruct(source).latents, clean) > 2e-2


def test_levels_that_one_number_would_mix_up_are_kept_apart(editor, exact, video, frame):
    source = editor.invert(video, "ddim", steps=10)
    told = [level.t for level in source.trajectory.levels]
    assert len(set(told)) == 11 and len(set(map(round, told))) < 8
    assert not torch.equal(source.at(0), source.at(1))
    with pytest.raises(InputError, match=r"source\.at"):
        list(source.trajectory)
    # every second level of ten is one of five
    every_second = exact.invert(exact.encode(video.frames), 10)[::2]
    wanted = exact.edit(video.frames, frame, PROMPT, every_second, STEPS)
    recorded = editor.record(source, editor.recording(video))
    assert set(recorded.features.by_step) == {0, 2, 4}
    for found in (edit(editor, source, frame), edit(editor, recorded, frame)):
        assert error(found.latents, wanted) < EXACT
    on_the_way = editor.invert(video, steps=10, recording=editor.recording(video))
    sites = [
        {index: set(at) for index, at in x.features.by_step.items()} for x in (on_the_way, recorded)
    ]
    assert sites[0] == sites[1]
    ways = [step.way for step in editor.step_plan(source=recorded).steps]
    assert ways == ["replayed"] * 3 + ["plain"] * 2
    # the last step of five begins at the eighth level of ten
    first, sigmas = exact.encode(video.frames[:1]), truth.levels(STEPS)
    f, _ = exact.network(every_second[4], sigmas[4], exact.context("", first))
    wanted = truth.with_first(truth.step(every_second[4], f, sigmas[4], sigmas[5]), first)
    again = editor.reconstruct(source, steps=STEPS, start=4)
    assert error(again.latents, wanted) < EXACT
    with pytest.raises(InputError, match="1, 2, 5, 10"):
        editor.edit(source, frame, PROMPT, steps=4)


def test_several_edits_are_each_alone(editor, source, frame):
    requests = [
        EditRequest(frame, "red"),
        EditRequest(frame[::-1].copy(), "blue", guidance=1.0),
        EditRequest(frame, "green", guidance={"text": 5.0, "image": 1.0}, negative_prompt="x"),
    ]
    alone = [
        editor.edit(source, r.frame, r.prompt, r.negative_prompt, guidance=r.guidance)
        for r in requests
    ]
    for found, one in zip(editor.edit_many(source, requests), alone, strict=True):
        assert golden.relative_error(found.latents, one.latents) < EXACT
    assert all(map(same, editor.edit_each(source, requests), alone))


def test_several_edits_have_noise_of_their_own(editor, source, frame):
    """What each begins with, and what each of its steps adds, is its own seed's or as given."""
    drawn = torch.randn(STEPS, *source.at(0).shape, generator=torch.Generator().manual_seed(3))
    requests = [
        EditRequest(frame, "red", seed=1, random_ratio=0.5),
        EditRequest(frame, "red", seed=2, random_ratio=0.5),
        EditRequest(frame, "red", step_noise=list(drawn)),
    ]
    options = {"options": {"sampler": "ancestral"}}
    alone = [
        editor.edit(
            source,
            r.frame,
            r.prompt,
            random_ratio=r.random_ratio,
            seed=r.seed,
            step_noise=r.step_noise,
            **options,
        )
        for r in requests
    ]
    assert golden.relative_error(alone[0].latents, alone[1].latents) > 1e-2
    for found, one in zip(editor.edit_many(source, requests, **options), alone, strict=True):
        assert golden.relative_error(found.latents, one.latents) < EXACT
    assert all(map(same, editor.edit_each(source, requests, **options), alone))


def test_a_saved_source_is_the_same(editor, solved, video, frame, tmp_path):
    recorded = editor.record(solved, editor.recording(video))
    recorded.save(tmp_path / "a.safetensors", features=True)
    loaded = editor.load_source(tmp_path / "a.safetensors")
    assert torch.equal(loaded.trajectory.clean, solved.trajectory.clean)
    assert all(torch.equal(loaded.at(i), solved.at(i)) for i in range(STEPS))
    assert loaded.trajectory.levels == solved.trajectory.levels
    assert loaded.residuals == solved.residuals and loaded.settings == solved.settings
    assert set(loaded.features.by_step) == set(recorded.features.by_step) == {0, 1, 2}
    assert same(edit(editor, loaded, frame), edit(editor, recorded, frame))


@pytest.mark.parametrize("method", ["ddim", "fixed-point"])
def test_an_inversion_goes_on_where_it_was(editor, video, tmp_path, monkeypatch, method):
    monkeypatch.setattr("anyv2v.pipeline.source.SAVE_EVERY", 0.0)

    def stop(i, t, latents):
        if i == 2:
            raise KeyboardInterrupt

    whole = editor.invert(video, method, STEPS)
    unfinished = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        editor.invert(video, method, STEPS, on_step=stop, unfinished=Unfinished(unfinished))
    steps = []
    resumed = editor.invert(
        video,
        method,
        STEPS,
        on_step=lambda i, t, latents: steps.append(i),
        unfinished=Unfinished(unfinished),
    )
    assert steps == [2, 3, 4]
    assert (resumed.evaluations, resumed.residuals) == (whole.evaluations, whole.residuals)
    assert all(torch.equal(resumed.at(i), whole.at(i)) for i in range(STEPS))


def test_all_ways_to_the_features_give_the_same(editor, solved, video, frame):
    shared = edit(editor, solved, frame)
    for source_pass in ("always", "separate"):
        other = edit(editor, solved, frame, source_pass=source_pass)
        assert golden.relative_error(other.latents, shared.latents) < EXACT
    recording = editor.recording(video)
    on_the_way = editor.invert(video, steps=STEPS, recording=recording)
    assert all(torch.equal(on_the_way.at(i), solved.at(i)) for i in range(STEPS))
    afterwards = editor.record(solved, recording)
    for recorded in (on_the_way, afterwards):
        assert set(recorded.features.by_step) == {0, 1, 2}
    replayed = edit(editor, afterwards, frame)
    assert golden.relative_error(replayed.latents, shared.latents) < EXACT
    # of what was recorded an edit takes what it injects, and no more
    less = dict(injection=Injection(hidden=0.0))
    replayed, batched = edit(editor, afterwards, frame, **less), edit(editor, solved, frame, **less)
    assert golden.relative_error(replayed.latents, batched.latents) < EXACT
    assert golden.relative_error(replayed.latents, shared.latents) > 1e-3
    # a fixed point's features are of its last iterate, which its latents miss by the tolerance
    assert golden.relative_error(edit(editor, on_the_way, frame).latents, shared.latents) < 1e-2


def test_the_plan_says_what_each_step_injects(editor, solved, video):
    map_, hidden, cross = (editor.backbone.groups[name] for name in ("map", "hidden", "cross"))
    sites = [map_ | hidden | cross, map_ | hidden, map_, set(), set()]
    recorded = editor.record(solved, editor.recording(video))
    for source, source_pass, ways in (
        (solved, "shared", ["batched"] * 3 + ["plain"] * 2),
        (solved, "separate", ["separate"] * 3 + ["plain"] * 2),
        (solved, "always", ["batched"] * 5),
        (recorded, "shared", ["replayed"] * 3 + ["plain"] * 2),
    ):
        plan = editor.step_plan(source=source, source_pass=source_pass)
        assert [step.sites for step in plan.steps] == sites
        assert [step.way for step in plan.steps] == ways
        assert [step.level.index for step in plan.steps] == list(range(STEPS))
    # of other options other features were recorded
    plan = editor.step_plan(source=recorded, options={"speed": 2})
    assert [step.way for step in plan.steps] == ["batched"] * 3 + ["plain"] * 2
    kept = editor.invert(video, "ddim", STEPS, plan=editor.step_plan(start=1, source=None))
    assert set(kept.trajectory.latents) == {1, 2}


def test_its_cost_is_predicted(editor, exact, video):
    plan = predict_cost(editor, video, method="ddim", inversion_steps=STEPS)
    assert plan.inversion_evaluations == STEPS
    # three branches, and in three of the steps the source
    assert plan.sampling_branches == 3 * STEPS + 3
    # those that are read when they are needed too
    # all but the words, which are read from the folder
    numbers = sum(x.size for part in exact.parts for x in part.values())
    assert plan.weights == 4 * (numbers - editor.backbone.words.table.weight.numel())
    assert plan.offloaded == 0
    replayed = predict_cost(editor, video, guidance=1.0, feature_memory=10**9)
    assert replayed.sampling_branches == STEPS and len(replayed.recording.placement) == 3


def test_features_leave_room_for_networks_that_are_read_again(editor, exact, video, monkeypatch):
    size = editor.recording(video).bytes()
    words = sum(4 * x.size for x in exact.words.values())
    for free, fits in ((words + 2 * size, True), (words + 2 * size - 2, False), (words - 1, False)):
        monkeypatch.setattr(planning, "free_bytes", lambda device, free=free: free)
        assert (editor.recording(video).bytes() == size) == fits


def test_captured_passes_are_the_same_to_the_bit(editor, video, frame, monkeypatch):
    """Levels are fractions, of which a graph that held whole numbers would read another."""

    def runs():
        source = editor.invert(video, steps=10, recording=editor.recording(video, steps=10))
        bare = editor.invert(video, steps=10)
        ways = ((source, "shared"), (bare, "shared"), (bare, "separate"))
        return [
            editor.edit(s, frame, PROMPT, steps=10, source_pass=source_pass)
            for s, source_pass in ways
        ]

    eager, backends = runs(), []

    @contextmanager
    def captured_forward(forward, device, graphs):
        backends.append(Taped())
        yield Graphs(forward, device, backends[-1], strict=True)

    monkeypatch.setattr("anyv2v.pipeline.stages.captured_forward", captured_forward)
    assert all(map(same, runs(), eager))
    # three sets of sites and none; the source by itself three times more
    assert [len(b.tapes) for b in backends if b.tapes] == [4, 1, 4, 4, 7]


# a caller's own taps


class Own(Taps):
    """One more site of the source's, in the first step."""

    sites = frozenset({"blocks.1.hidden", "blocks.0.cross"})

    def __init__(self):
        self.seen = []

    def active(self, step, steps):
        return step < 1

    def hidden(self, site, h):
        self.seen.append((self.step, self.steps, self.branches, len(h)))
        return self.source(h)

    def qk(self, site, q, k):
        return self.source(q), self.source(k)


@pytest.mark.parametrize("source_pass", ["shared", "separate", "always"])
def test_taps_of_ones_own_inject_too(editor, exact, source, trajectory, video, frame, source_pass):
    taps = Own()
    found = edit(editor, source, frame, taps=taps, source_pass=source_pass)
    more = replace(
        exact,
        groups={**exact.groups, "own": set(Own.sites)},
        fractions={**exact.fractions, "own": 0.2},
    )
    wanted = more.edit(video.frames, frame, PROMPT, trajectory, STEPS)
    assert error(found.latents, wanted) < EXACT
    assert taps.seen == [(0, STEPS, 4, 4)]


def test_what_a_step_left_can_be_replaced(editor, source, frame):
    steps = []

    def after(step, latents):
        steps.append((step, tuple(latents.shape)))
        return torch.zeros_like(latents) if step == STEPS - 1 else None

    found = edit(editor, source, frame, after_step=after)
    assert steps == [(i, (1, 4, 3, 6, 9)) for i in range(STEPS)]
    assert not found.latents[:, :, 1:].any()


def test_the_inversion_can_be_looked_at(editor, video):
    class Watch(Taps):
        sites = frozenset({"blocks.1.map"})
        seen = ()

        def qkv(self, site, q, k, v):
            self.seen += (tuple(v.shape),)
            return q, k, v

        def output(self, site, y):
            self.seen += (tuple(y.shape),)
            return y

    taps = Watch()
    editor.invert(video, "ddim", STEPS, taps=taps)
    # 2x3 tokens of each of three frames
    assert taps.seen == ((1, 18, 2, 8), (1, 18, 16)) * STEPS
    taps = Watch()
    taps.active = lambda step, steps: step == 1 and steps == STEPS
    editor.invert(video, "ddim", STEPS, taps=taps)
    assert taps.seen == ((1, 18, 2, 8), (1, 18, 16))


# what is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fps": 8}, "fps"),
        ({"options": {"fps": 8}}, "fps; there is sampler and speed"),
        ({"options": {"speed": 5}}, "speed"),
        ({"options": {"sampler": "ddpm"}}, "euler, ancestral"),
        ({"guidance": {"txt": 3.0}}, "txt; there is image and text"),
        ({"guidance": {"image": "much"}}, "image.*much"),
        ({"injection": Injection(conv=0.2)}, "conv.*map, hidden, cross"),
        ({"injection": Injection(crossed=0.2)}, "crossed.*map, hidden, cross"),
        ({"injection": Injection(sites={"map": ["blocks.2.map"]})}, r"blocks\.2\.map"),
    ],
)
def test_what_it_does_not_have_is_refused_in_a_line(editor, source, frame, given, told):
    with pytest.raises(InputError, match=told) as refused:
        edit(editor, source, frame, **given)
    assert "\n" not in str(refused.value)


def test_clips_that_its_codec_does_not_take_are_refused(editor, video, frame):
    with pytest.raises(InputError, match=r"8 .*\b5\b.*\b9\b"):
        editor.invert(anyv2v.Video(video.frames[:8], 12))
    with pytest.raises(InputError, match=r"8 .*\b5\b.*\b9\b"):
        editor.recording(anyv2v.Video(video.frames[:8], 12))
    with pytest.raises(InputError, match=r"8 .*\b5\b.*\b9\b"):
        editor.generate(frame, PROMPT, frames=8)
    with pytest.raises(InputError, match="32x24 .*12.*36x24"):
        editor.invert(anyv2v.Video(video.frames[:, :, :32], 12))
    with pytest.raises(InputError, match="40x24 .*12.*36x24"):
        editor.generate(frame, PROMPT, size=(40, 24))


# the folder


def test_its_words_are_read_for_conditions_only(editor, weights, frame, monkeypatch):
    table = editor.backbone.words.table.weight

    def held():
        return table.untyped_storage().nbytes()

    # one number of float32
    assert held() == 4 and table.isnan().all()
    read, opened = [], anyv2v.weights.checkpoint.open_file
    monkeypatch.setattr(
        "anyv2v.weights.checkpoint.open_file", lambda path: read.append(path.name) or opened(path)
    )
    first = editor.generate(frame, PROMPT, steps=1)
    assert read == ["words.safetensors"] and held() == 4
    again = editor.generate(frame, PROMPT, steps=1)
    assert read == ["words.safetensors"] * 2 and held() == 4
    assert same(first, again)


def test_words_that_stay_give_the_same_and_take_their_room(editor, weights, video, frame):
    class Whole(Toy):
        loaded_on_demand = frozenset()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", Whole)
        whole = anyv2v.load(weights, device="cpu")
    assert same(*(e.generate(frame, PROMPT, steps=1) for e in (editor, whole)))
    table = whole.backbone.words.table.weight
    # of one edit the most is needed to encode the clip, of many to predict
    for edits in (1, 8):
        apart, stays = (predict_cost(e, video, edits, steps=2) for e in (editor, whole))
        assert stays.peak - apart.peak == stays.weights - apart.weights == table.nbytes


def test_a_folder_may_have_defaults_of_its_own(tmp_path, video, frame):
    own = {"steps": 3, "guidance": {"image": 2.0}, "injection": {"map": 1.0, "cross": 0}}
    folder.write(tmp_path / "own", **own)
    folder.write(tmp_path / "plain")
    given, plain = (anyv2v.load(tmp_path / name, device="cpu") for name in ("own", "plain"))
    assert given.defaults.steps == 3 and given.defaults.guidance == {"text": 3.0, "image": 2.0}
    # how one edits is not what a source depends on
    assert given.fingerprint == plain.fingerprint
    source = plain.invert(video, "ddim", steps=3)
    asked = {**own, "injection": Injection(map=1.0, hidden=0.4, cross=0.0)}
    assert same(edit(given, source, frame), edit(plain, source, frame, **asked))


@pytest.fixture
def run(capfd, monkeypatch, tmp_path, weights, video, frame):
    """run(*args) -> (status, stderr), in a folder with a clip and a frame."""
    monkeypatch.chdir(tmp_path)
    anyv2v.write_video("clip.mp4", video.frames, 12)
    Image.fromarray(frame).save("frame.png")

    def run(*args):
        capfd.readouterr()
        status = main([*map(str, args), "--quiet"])
        return status, capfd.readouterr().err

    return run


def test_the_command_line_takes_its_folder(run, weights, tmp_path):
    of = ("--weights", weights, "--device", "cpu")
    assert run("weights", "verify", weights) == (0, "")
    assert run("plan", "clip.mp4", *of)[0] == 0
    assert run("invert", "clip.mp4", "-o", "clip.safetensors", *of) == (0, "")
    assert run("reconstruct", "clip.safetensors", *of)[0] == 0
    asked = ("--prompt", PROMPT, "--frame", "frame.png", "--steps", STEPS)
    more = ("--inject", "map=0.4,cross=1", "--option", "speed=1.5", "--guidance", "text=2,image=1")
    assert run("edit", "clip.safetensors", *asked, "-o", "a.mp4", *of) == (0, "")
    assert run("edit", "clip.mp4", *asked, *more, "-o", "b.mp4", *of)[0] == 0
    assert len(anyv2v.read_video(tmp_path / "b.mp4").frames) == 9
    for wrong, told in (
        (("--inject", "conv=0.2"), "map, hidden, cross"),
        (("--option", "fps=8"), "fps"),
        (("--guidance", "txt=2"), "txt"),
        (("--frames", 8), "9"),
    ):
        status, said = run("edit", "clip.mp4", *asked, *wrong, "-o", "c.mp4", *of)
        assert status == 2 and told in said and said.count("\n") == 1
        assert not (tmp_path / "c.mp4").exists()


# what it took


def test_nothing_of_the_product_knows_it():
    files = [p for part in ("anyv2v", "kernels", "weights", "convert") for p in sources(part)]
    assert len(files) > 80
    assert not [p for p in files if re.search(r"\btoy\b", p.read_text("utf-8"), re.IGNORECASE)]


KNOWN = {
    "anyv2v/backbones/registry.py": "where backbones are registered: the one line",
    "anyv2v/backbones/consisti2v/defaults.py": "the original has one negative prompt for both",
    "anyv2v/backbones/consisti2v/unet.py": "its sites are called like I2VGen-XL's",
    "anyv2v/__init__.py": "NEGATIVE_PROMPT, a public name, is I2VGen-XL's",
    "anyv2v/batch/original.py": "the original has files of its own for each of its three backbones",
    "anyv2v/batch/original_keys.py": "likewise: the keys of those files",
    "anyv2v/batch/original_paths.py": "likewise: the paths in those files",
    "anyv2v/cli/info.py": "without weights it tells which kernels I2VGen-XL would take",
    "anyv2v/cli/kernel_facts.py": "likewise: its calls of kernels",
    "anyv2v/cli/options.py": "its settings are the examples of defaults in help texts",
    "anyv2v/pipeline/source_upgrade.py": "files of older versions are all of I2VGen-XL",
}
"""Files of the product that mention I2VGen-XL in code, and why they may."""


def test_a_backbone_is_registered_in_one_place_only():
    ours = ("anyv2v/backbones/i2vgen/", "convert/", "weights/")
    found = {
        str(path.relative_to(ROOT))
        for part in ("anyv2v", "kernels", "weights", "convert")
        for path in sources(part)
        if knows(path.read_text("utf-8"))
    }
    assert {name for name in found if not name.startswith(ours)} == set(KNOWN)


def knows(text):
    """Whether a module mentions it elsewhere than in comments and docstrings."""
    if "i2vgen" not in text.lower():
        return False
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [x for x in body if not is_text(x)] or [ast.Pass()]
    return "i2vgen" in ast.unparse(tree).lower()


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def sources(part):
    return sorted((ROOT / part).rglob("*.py"))
