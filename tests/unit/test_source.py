"""Saved sources and halves of inversions: this version's, and those of the version before.

tests/goldens/old was written by that version, with the demo weights: see its make.py.
"""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import anyv2v
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.diffusion.inversion import InversionState, fixed_point
from anyv2v.diffusion.samplers import sample
from anyv2v.diffusion.schedule import Level
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.media.frames import Video
from anyv2v.pipeline import source as source_module
from anyv2v.pipeline.source import InversionSettings, Source, Unfinished
from tests.draw import normal
from tests.oracles import golden

OLD = Path(__file__).parents[1] / "goldens" / "old"
VALUES = json.loads((OLD / "values.json").read_text(encoding="utf-8"))
LEVELS = [
    Level(0, 999.5, 0.0, 1.0),
    Level(1, 750, 0.25, 0.75),
    Level(2, 1 / 3, 0.7, math.sqrt(0.51)),
    Level(3, 0, 1, 0.0),
]


def digest(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def settings_of(old):
    """The settings of the version before, as they are now."""
    now = {name: value for name, value in old.items() if name not in ("guidance", "fps")}
    return InversionSettings(**now, guidance={"text": old["guidance"]}, options={"fps": old["fps"]})


@pytest.mark.parametrize("name", ["recorded", "ddim"])
def test_a_source_of_the_version_before_loads_to_the_same_numbers(name):
    source, then = Source.load(OLD / f"{name}.safetensors"), VALUES[name]
    steps = then["settings"]["steps"]
    stride = 1000 // steps
    index = {str(1 + (steps - 1 - i) * stride): i for i in range(steps)}
    assert {str(t): digest(x) for t, x in source.trajectory.items()} == then["trajectory"]
    assert digest(source.trajectory.clean) == then["trajectory"]["0"]
    by_step = {index[t]: found for t, found in then["trajectory"].items() if t != "0"}
    assert list(source.trajectory.latents) == sorted(by_step, reverse=True)
    assert {i: digest(source.at(i)) for i in by_step} == by_step
    assert {
        i: {site: [digest(x) for x in parts] for site, parts in sites.items()}
        for i, sites in source.features.by_step.items()
    } == {index[t]: sites for t, sites in then["features"].items()}
    assert source.features.placement == dict.fromkeys(source.features.by_step, "host")
    assert source.residuals == {index[t]: r for t, r in then["residuals"].items()}
    assert source.trajectory.levels == schedule().levels(steps)
    assert source.settings == settings_of(then["settings"])
    assert source.evaluations == then["evaluations"]
    assert source.fingerprint == then["fingerprint"]
    assert digest(torch.from_numpy(source.video.frames.copy())) == then["frames"]
    assert source.video.fps == then["fps"]


def test_the_files_of_the_version_before_hold_what_these_tests_are_about():
    recorded, ddim = VALUES["recorded"], VALUES["ddim"]
    assert len(recorded["features"]) == 2 and len(recorded["residuals"]) == 3
    assert ddim["settings"]["guidance"] == 3 and ddim["settings"]["fps"] == 7
    assert len(ddim["trajectory"]) == 4 < ddim["settings"]["steps"]
    for name, wanted in (("recorded.safetensors", "source 2"), ("half.unfinished", "inversion 1")):
        with safe_open(OLD / name, "pt") as file:
            assert json.loads(file.metadata()["source"])["format"].endswith(wanted)


def half(**changed):
    """The old half of an inversion as this version reads it: (state, begin, video, settings)."""
    whole = Source.load(OLD / "recorded.safetensors")
    given = {
        "begin": InversionState.start(whole.trajectory.clean),
        "video": whole.video,
        "settings": whole.settings,
        "fingerprint": whole.fingerprint,
    } | changed
    return Unfinished(OLD / "half.unfinished").load(**given), whole


def test_half_an_inversion_of_the_version_before_goes_on_where_it_was():
    state, whole = half()
    assert list(state.trajectory) == [2, 1] and state.latest == 1 and state.steps == 2
    for index, x in state.trajectory.items():
        assert torch.equal(x, whole.at(index))
    assert torch.equal(state.clean, whole.trajectory.clean)
    # the next step's iterate after the one that was kept, and the slopes of both steps
    assert state.latents.shape == state.clean.shape and len(state.predictions) == 2
    assert not torch.equal(state.latents, state.trajectory[1])
    assert state.residuals == {i: whole.residuals[i] for i in (2, 1)}
    below, level = schedule().levels(3)[2], schedule().levels(3)[1]
    back = sample(lambda *_: state.predictions[1], state.latents, Two(level, below), 1)
    assert golden.relative_error(back, state.trajectory[2]) < 0.01
    # and on it goes: one step more, whatever the network
    *_, last = fixed_point(lambda level, x: 0.1 * x, state, schedule(), 3)
    assert list(last.trajectory) == [2, 1, 0] and last.evaluations > state.evaluations


class Two:
    """A run of one step, between two levels of I2VGen-XL."""

    def __init__(self, *levels):
        self.levels, self.coefficients = lambda steps: levels, schedule().coefficients


def test_half_an_inversion_of_the_version_before_is_of_its_own_settings_alone():
    _, whole = half()
    other = {"guidance": {"text": 2.0}}, {"options": {"fps": 9}}, {"prompt": "x"}, {"steps": 4}
    for change in other:
        with pytest.raises(InputError, match="half.unfinished.*other settings"):
            half(settings=replace(whole.settings, **change))
    with pytest.raises(InputError, match=r"latents are \(1, 8, 3, 8, 8\), not \(1, 8, 2, 8, 8\)"):
        half(begin=InversionState.start(whole.trajectory.clean[:, :, :2]))


def made(**changed):
    """A source of a schedule with fractions, a codec that compresses time, two scales, options."""
    trajectory = Trajectory(
        normal(1, 6, 3, 4, 5), {i: normal(1, 6, 3, 4, 5, seed=1 + i) for i in (0, 2)}, LEVELS
    )
    kept = {
        2: {"a.b": (normal(2, 3), normal(4, seed=1).half())},
        1: {"c": (normal(2, seed=3).bfloat16(),), "d": (normal(2, 1),)},
    }
    facts = {
        "video": Video(np.arange(9 * 24 * 12 * 3, dtype=np.uint8).reshape(9, 12, 24, 3), 7.5),
        "trajectory": trajectory,
        "evaluations": 12,
        "settings": InversionSettings(
            "ddim", 3, "é", "", {"text": 3.0, "image": 1}, {"stride": 3, "frame": "own"}, 3e-3
        ),
        "fingerprint": "abc",
        "residuals": {2: 1e-3, 0: 0.1 + 0.2},
        "features": FeatureCache(dict.fromkeys(kept, "host"), kept),
    }
    return Source(**(facts | changed))


def check_equal(again, source):
    """To the bit, and of the same types."""
    assert again.settings == source.settings and again.evaluations == source.evaluations
    assert again.fingerprint == source.fingerprint and again.residuals == source.residuals
    assert again.trajectory.levels == source.trajectory.levels
    # ints stay ints: a network that was trained on whole numbers is told whole numbers
    kinds = [[type(level.t) for level in s.trajectory.levels] for s in (again, source)]
    assert kinds[0] == kinds[1]
    assert list(again.trajectory.latents) == list(source.trajectory.latents)
    assert torch.equal(again.trajectory.clean, source.trajectory.clean)
    for index in source.trajectory.latents:
        assert torch.equal(again.at(index), source.at(index))
    assert np.array_equal(again.video.frames, source.video.frames)
    assert again.video.fps == source.video.fps
    assert again.features.by_step.keys() == source.features.by_step.keys()
    for index, sites in source.features.by_step.items():
        found = again.features.by_step[index]
        assert found.keys() == sites.keys()
        for site, parts in sites.items():
            for x, y in zip(found[site], parts, strict=True):
                assert x.dtype == y.dtype and torch.equal(x, y)


@pytest.mark.parametrize("name", [None, "recorded", "ddim"])
def test_a_source_comes_back_from_its_file_to_the_bit(tmp_path, name):
    source = Source.load(OLD / f"{name}.safetensors") if name else made()
    source.save(tmp_path / "a.safetensors", features=True)
    again = Source.load(tmp_path / "a.safetensors")
    check_equal(again, source)
    again.save(tmp_path / "b.safetensors", features=True)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == (tmp_path / "b.safetensors").read_bytes() and b"source 3" in data
    source.save(tmp_path / "c.safetensors")
    assert not Source.load(tmp_path / "c.safetensors").features.by_step


def test_a_source_gives_its_latents_by_step():
    source = made()
    assert torch.equal(source.at(2), source.trajectory.latents[2])
    with pytest.raises(InputError, match="no latents of step 1 were kept; there are 2, 0"):
        source.at(1)
    with pytest.raises(InputError, match="not different whole numbers; source.at"):
        list(source.trajectory)


def test_half_an_inversion_comes_back_from_its_file_to_the_bit(tmp_path):
    source = made()
    clean = source.trajectory.clean
    state = InversionState(
        clean,
        source.at(0) * 2,
        {2: source.at(2), 1: source.at(0)},
        5,
        {2: 1e-3, 1: 0.3},
        (clean * 3,),
    )
    unfinished = Unfinished(tmp_path / "a.unfinished")
    about = source.video, source.settings, source.fingerprint
    unfinished.save(state, *about)
    again = unfinished.load(InversionState.start(clean), *about)
    for one, other in (
        (again.clean, clean),
        (again.latents, state.latents),
        (again.predictions[0], clean * 3),
    ):
        assert torch.equal(one, other)
    assert list(again.trajectory) == [2, 1] and len(again.predictions) == 1
    assert all(torch.equal(x, state.trajectory[i]) for i, x in again.trajectory.items())
    assert again.evaluations == 5 and again.residuals == state.residuals
    # what it holds has to be the beginning of its run, whole
    for kept in ({1: clean, 0: clean * 2}, {2: clean, 0: clean * 2}, {}):
        unfinished.save(replace(state, trajectory={i: x.clone() for i, x in kept.items()}), *about)
        with pytest.raises(InputError, match="not the first of an inversion"):
            unfinished.load(InversionState.start(clean), *about)


def test_half_an_inversion_is_written_every_thirty_seconds(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(source_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    source, unfinished = made(), Unfinished(tmp_path / "a.unfinished")
    state = InversionState(
        source.trajectory.clean, source.at(0) * 2, {2: source.at(2)}, 5, {2: 1e-3}
    )
    for _ in range(2):
        for seconds, due in ((0, False), (29, False), (1, True), (100, True)):
            now[0] += seconds
            assert unfinished.due == due
        unfinished.save(state, source.video, source.settings, source.fingerprint)
    assert not unfinished.due


def test_half_an_inversion_is_of_its_own_video_settings_and_weights_alone(tmp_path):
    source = made()
    begin, unfinished = (
        InversionState.start(source.trajectory.clean),
        Unfinished(tmp_path / "a.unfinished"),
    )
    state = InversionState(
        source.trajectory.clean, source.at(0) * 2, {2: source.at(2)}, 5, {2: 1e-3}
    )
    about = {"video": source.video, "settings": source.settings, "fingerprint": source.fingerprint}
    unfinished.save(state, **about)
    brighter = Video(source.video.frames ^ np.uint8(1), source.video.fps)
    for change in (
        {"fingerprint": "abd"},
        {"fingerprint": ""},
        {"video": brighter},
        {"video": Video(source.video.frames[:5], source.video.fps)},
        *(
            {"settings": replace(source.settings, **{name: value})}
            for name, value in {
                "method": "fixed-point",
                "prompt": "e",
                "negative_prompt": "x",
                "guidance": {"text": 3.0, "image": 2},
                "options": {"stride": 3, "frame": "edited"},
                "tolerance": 4e-3,
            }.items()
        ),
    ):
        with pytest.raises(InputError, match="of another video, other settings or weights"):
            unfinished.load(begin, **about | change)
    assert unfinished.load(begin, **about).steps == 1
    # who begins again, or has nothing yet, has what it would begin with
    for other in (Unfinished(unfinished.path, resume=False), Unfinished(tmp_path / "none")):
        assert other.load(begin, **about) is begin
    unfinished.remove()
    unfinished.remove()
    assert unfinished.load(begin, **about) is begin


def rewritten(path, target, facts=None, **tensors):
    """The file with other facts and tensors; None takes one away."""
    with safe_open(path, "pt") as file:
        own = json.loads(file.metadata()["source"])
        kept = {name: file.get_tensor(name) for name in file.keys()}
    kept = {name: x for name, x in {**kept, **tensors}.items() if x is not None}
    save_file(kept, target, metadata={"source": json.dumps(own | (facts or {}))})
    return target


ROWS = [[level.t, level.alpha, level.sigma] for level in LEVELS]


@pytest.mark.parametrize(
    "levels, says",
    [
        (ROWS[1:], "levels: there are not 4 of them, for 3 steps"),
        (3, "levels: there are not 4"),
        ([*ROWS[:3], [0, 1.0]], r"levels: \[0, 1.0\] are not three numbers"),
        ([*ROWS[:3], "abc"], "levels: 'abc' are not three numbers"),
        ([*ROWS[:3], [0, True, 0.0]], "not three numbers"),
        ([*ROWS[:3], [0, math.nan, 0.0]], "not three numbers"),
        ([*ROWS[:3], [10**400, 1.0, 0.0]], "not three numbers"),
        ([*ROWS[:3], [0, -1.0, 0.0]], "below 0"),
    ],
)
def test_levels_that_are_none_are_refused(tmp_path, levels, says):
    made().save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"b.safetensors.*{says}"):
        Source.load(
            rewritten(tmp_path / "a.safetensors", tmp_path / "b.safetensors", {"levels": levels})
        )


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"guidance": 3.0}, "guidance: 3.0 is not a mapping of names"),
        ({"guidance": {"text": "9"}}, "guidance: text: '9' is not a finite number"),
        ({"guidance": {"text": math.inf}}, "guidance: text: inf is not a finite number"),
        ({"options": [8]}, r"options: \[8\] is not a mapping of names"),
        ({"options": {"fps": [8]}}, r"options: fps: \[8\] is not a finite number"),
        ({"steps": 4}, "levels: there are not 5"),
        ({"steps": 2**30}, "steps"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path, settings, says):
    made().save(tmp_path / "a.safetensors")
    facts = {"settings": asdict(made().settings) | settings}
    with pytest.raises(InputError, match=f"b.safetensors.*{says}"):
        Source.load(rewritten(tmp_path / "a.safetensors", tmp_path / "b.safetensors", facts))


def every_latents(*shape):
    """All latents of a source, in another shape."""
    return {name: normal(*shape) for name in ("clean", "latents.0", "latents.2")}


@pytest.mark.parametrize(
    "tensors, says",
    [
        ({"clean": None}, "clean"),
        ({"clean": normal(1, 6, 2, 4, 5)}, "shapes of the latents differ"),
        (every_latents(1, 6, 3, 4), r"latents are \(1, 6, 3, 4\), not"),
        (every_latents(2, 6, 3, 4, 5), r"latents are \(2, 6, 3, 4, 5\), not"),
        (every_latents(1, 6, 0, 4, 5), r"latents are \(1, 6, 0, 4, 5\), not"),
        ({"clean": normal(1, 6, 3, 4, 5) * 1e5}, "clean latents are not finite, or beyond"),
        ({"latents.2": normal(1, 6, 3, 4, 5).half()}, "latents of step 2 are torch.float16"),
        ({"features.2.a.b.0": normal(2).double()}, "features of step 2, a.b are torch.float64"),
        ({"features.2.a.b.0": normal(2) * math.inf}, "features of step 2, a.b are not finite"),
        ({"clean": normal(1, 6, 3, 4, 5).double()}, "clean latents are torch.float64"),
        ({"latents.0": normal(1, 6, 3, 4, 5) * math.nan}, "latents of step 0 are not finite"),
        ({"latents.3": normal(1, 6, 3, 4, 5)}, "there is no step 3 of 3"),
        ({"latents.-1": normal(1, 6, 3, 4, 5)}, "there is no step -1 of 3"),
        ({"latents.01": normal(1, 6, 3, 4, 5)}, "'1'"),
        ({"features.3.a.0": normal(2)}, "features of step: 3 is not a whole number from 0 to 2"),
        ({"features.1.d.2": normal(2)}, "1"),
    ],
)
def test_tensors_that_no_source_has_are_refused(tmp_path, tensors, says):
    made().save(tmp_path / "a.safetensors", features=True)
    with pytest.raises(InputError, match=f"b.safetensors.*{says}"):
        Source.load(rewritten(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **tensors))


@pytest.mark.parametrize("name", ["latents.335", "latents.0334", "features.2.a.0"])
def test_an_old_source_has_only_the_timesteps_of_its_run(tmp_path, name):
    tensors = {name: normal(1, 8, 3, 8, 8)}
    with pytest.raises(
        InputError, match="holds something of timestep '.*'; a run of 3 steps visits"
    ):
        Source.load(rewritten(OLD / "recorded.safetensors", tmp_path / "a.safetensors", **tensors))


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"fps": 2**30}, "fps"),
        ({"fps": "8"}, "fps"),
        ({"guidance": "3"}, "guidance: '3' is not a finite number"),
        ({"steps": 1000}, "steps: 1000 is not a whole number from 1 to 999"),
        ({"options": {}}, "options is not known"),
    ],
)
def test_an_old_source_has_the_settings_of_its_version(tmp_path, changed, says):
    facts = {"settings": VALUES["recorded"]["settings"] | changed}
    with pytest.raises(InputError, match=says):
        Source.load(rewritten(OLD / "recorded.safetensors", tmp_path / "a.safetensors", facts))


@pytest.fixture(scope="module")
def demo():
    return anyv2v.load("demo", device="cpu")


def test_the_weights_of_the_version_before_load_and_know_their_sources(demo, tmp_path):
    """Their config says nothing of how to edit, so that is I2VGen-XL's."""
    folder = Path(anyv2v.__file__).parent / "weights" / "demo" / "files"
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_bytes((OLD / "config.json").read_bytes())
    editor = anyv2v.load(tmp_path, device="cpu")
    assert editor.fingerprint == VALUES["recorded"]["fingerprint"] == demo.fingerprint
    own = {"text": 9.0}, anyv2v.NEGATIVE_PROMPT, anyv2v.Injection(0.2, 0.2, 0.5)
    assert editor.defaults == anyv2v.Defaults((32, 32), 8, 8, 50, *own)


@pytest.mark.parametrize("name", ["recorded", "ddim"])
def test_an_edit_of_an_old_source_is_what_it_was(demo, name):
    """The recorded one is edited from its features, the other with the source in the batch."""
    then = load_file(OLD / "edit.safetensors")
    injection = anyv2v.Injection(
        conv=0, spatial=0, temporal=0.7, sites={"temporal": ["mid.temporal.0.block.self"]}
    )
    made = demo.edit(
        demo.load_source(OLD / f"{name}.safetensors"),
        then["frame"].numpy(),
        VALUES["prompt"],
        negative_prompt="",
        steps=3,
        guidance=2.0,
        injection=injection,
        fps=8,
    )
    assert golden.relative_error(made.latents, then[name]) < 1e-5


def test_an_old_half_of_an_inversion_ends_as_the_whole_did(demo, tmp_path):
    whole = Source.load(OLD / "recorded.safetensors")
    path = tmp_path / "half.unfinished"
    path.write_bytes((OLD / "half.unfinished").read_bytes())
    done = []
    again = demo.invert(
        whole.video,
        steps=3,
        fps=8,
        unfinished=Unfinished(path),
        on_step=lambda *step: done.append(step[0]),
    )
    assert len(done) == 1 and again.evaluations == whole.evaluations
    assert list(again.trajectory) == list(whole.trajectory)
    for index in range(3):
        assert golden.relative_error(again.at(index), whole.at(index)) < 1e-5
