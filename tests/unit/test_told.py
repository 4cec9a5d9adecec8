"""What every call tells the network, starts from, asks of the memory, and gives back.

One matrix over all calls for each: of a value that a call takes, of what it leaves to the weights,
and of what it has from its source.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection, InputError, Record
from anyv2v import editor as editor_module
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.errors import NotFiniteError
from anyv2v.pipeline import editing, planning
from anyv2v.pipeline import source as source_module
from anyv2v.pipeline.source import Unfinished
from anyv2v.runtime import memory
from anyv2v.vae.codec import ImageCodec

SIZE, FRAMES, STEPS = (24, 16), 2, 2
OWN = {"fps": 11, "guidance": {"text": 4.0}, "negative_prompt": "dull"}
OWN_INJECTION = Injection(conv=0.5, spatial=0.5, temporal=1.0)
INVERTED = {"prompt": "sea", "negative_prompt": "fog", "fps": 3}
RATE = 7.5
"""Of the clip, which is neither what a network is told nor the weights' own."""


def flat(value):
    """A picture whose values say which it is."""
    return np.full((SIZE[1], SIZE[0], 3), value, np.uint8)


CLIP = anyv2v.Video(np.stack([flat(50), flat(90)]), RATE)
EDITED, OTHER = flat(200), flat(230)


ASKED = []
"""(latents, timestep, taps) of each prediction."""


def predict_nothing(self, latents, t, conditions, taps):
    """In place of the network: zeros; whoever records gets three numbers at each site."""
    ASKED.append((latents.clone(), t, taps))
    if isinstance(taps, Record):
        taps.features.update({site: (torch.zeros(3),) for site in taps.sites})
    return torch.zeros(len(conditions.samples), *latents.shape[1:])


def condition_on_nothing(self, prompt, first, options, negative=False):
    return Conditions({}, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))


def decode_to_black(self, latents, at_once=1):
    yield torch.zeros(latents.shape[2], 3, *(8 * n for n in latents.shape[3:]))


@pytest.fixture(scope="module", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(I2VGen, "predict", predict_nothing)
        patch.setattr(I2VGen, "condition", condition_on_nothing)
        patch.setattr(ImageCodec, "decode", decode_to_black)
        yield


@pytest.fixture
def begun():
    """What is predicted from now on."""
    ASKED.clear()
    return ASKED


@pytest.fixture(scope="module")
def own(editor):
    """An editor whose weights' own values are none of I2VGen-XL's."""
    defaults = replace(
        editor.defaults, size=SIZE, frames=FRAMES, steps=STEPS, injection=OWN_INJECTION, **OWN
    )
    own = anyv2v.Editor(replace(editor.backbone, defaults=defaults), "these weights")
    own._shapes.features = lambda frames, size, sites, compact: {
        s: (torch.zeros(3),) for s in sites
    }
    return own


@pytest.fixture(scope="module")
def source(own):
    return own.invert(CLIP, "ddim", STEPS, guidance=2.0, **INVERTED)


class Told(NamedTuple):
    """What one branch is conditioned on."""

    prompt: str
    negative: bool
    fps: int
    picture: int
    width: int = SIZE[0]
    frames: int = FRAMES


@pytest.fixture
def told(monkeypatch, own):
    """What branches are conditioned on, from now on."""
    seen, condition = [], I2VGen.condition
    encoded = {value: own.encode_frames(flat(value)[None]) for value in (50, 200, 230)}

    def look(self, prompt, first, options, negative=False):
        assert (first.image == first.image[0, 0, 0]).all()
        picture = int(first.image[0, 0, 0])
        assert torch.equal(first.latents, encoded[picture])
        seen.append(Told(prompt, negative, options["fps"], picture, first.width, first.frames))
        return condition(self, prompt, first, options, negative)

    monkeypatch.setattr(I2VGen, "condition", look)
    return seen


ONE, TWO = EditRequest(EDITED, "a robot", "rust", 5.0), EditRequest(OTHER, "a bear")

CALLS = {
    "invert": (
        lambda e, s, **x: e.invert(CLIP, "ddim", STEPS, "sun", "rain", 3.0, **x),
        [("sun", False, 50), ("rain", True, 50)],
    ),
    "solve": (
        lambda e, s, **x: e.invert(CLIP, prompt="sun", **x),
        [("sun", False, 50)],
    ),
    "edit": (
        lambda e, s, **x: e.edit(s, EDITED, "a robot", "rust", guidance=5.0, **x),
        [("sea", False, 50), ("a robot", False, 200), ("rust", True, 200)],
    ),
    "edit alone": (
        lambda e, s, **x: e.edit(s, EDITED, "a robot", guidance=1.0, **x),
        [("sea", False, 50), ("a robot", False, 200)],
    ),
    "edit many": (
        lambda e, s, **x: e.edit_many(s, [ONE, TWO], **x),
        [
            ("sea", False, 50),
            ("a robot", False, 200),
            ("rust", True, 200),
            ("a bear", False, 230),
            ("dull", True, 230),
        ],
    ),
    "edit each": (
        lambda e, s, **x: list(e.edit_each(s, [TWO, ONE], **x)),
        [
            ("sea", False, 50),
            ("a bear", False, 230),
            ("dull", True, 230),
            ("a robot", False, 200),
            ("rust", True, 200),
        ],
    ),
    "reconstruct": (
        lambda e, s, **x: e.reconstruct(s, "sun", "rain", guidance=2.0, **x),
        [("sun", False, 50), ("rain", True, 50)],
    ),
    "reconstruct plainly": (
        lambda e, s, **x: e.reconstruct(s, **x),
        [("", False, 50)],
    ),
    "generate": (
        lambda e, s, **x: e.generate(EDITED, "a robot", negative_prompt="rust", **x),
        [("a robot", False, 200), ("rust", True, 200)],
    ),
    "generate by default": (
        lambda e, s, **x: e.generate(EDITED, "a robot", **x),
        [("a robot", False, 200), ("dull", True, 200)],
    ),
    "condition": (
        lambda e, s, **x: e.condition("a robot", EDITED, FRAMES, SIZE, **x),
        [("a robot", False, 200)],
    ),
    "condition negative": (
        lambda e, s, **x: e.condition("rust", OTHER, FRAMES, SIZE, negative=True, **x),
        [("rust", True, 230)],
    ),
}
RATES = {"own": ({}, 11), "fps": ({"fps": 5}, 5), "options": ({"options": {"fps": 5}}, 5)}


def test_a_picture_is_cropped_or_stretched_as_the_call_says(own, source, monkeypatch):
    """Of 48x16 for a clip of 24x16: the middle, or the whole at half its width."""
    wide = np.random.default_rng(0).integers(0, 256, (16, 48, 3), np.uint8)
    stretched = Image.fromarray(wide).resize(SIZE, Image.Resampling.LANCZOS)
    wanted = {"crop": wide[:, 12:36], "stretch": np.asarray(stretched)}
    seen, branches = [], I2VGen.branches

    def look(self, prompt, negative_prompt, first, *rest):
        seen.append(first)
        return branches(self, prompt, negative_prompt, first, *rest)

    monkeypatch.setattr(I2VGen, "branches", look)
    for fit, image in wanted.items():
        requests = [EditRequest(wide, "a", fit=fit), EditRequest(Image.fromarray(wide), "b")]
        for call in (
            lambda fit=fit: own.edit(source, wide, "a", fit=fit),
            lambda requests=requests: own.edit_many(source, requests),
            lambda requests=requests: next(own.edit_each(source, requests)),
            lambda fit=fit: own.generate(wide, "a", fit=fit),
        ):
            seen.clear()
            call()
            for first, right in zip(seen, (image, wanted["crop"]), strict=False):
                assert np.array_equal(first.image, right)
                assert torch.equal(first.latents, own.encode_frames(right[None]))


@pytest.mark.parametrize("name", CALLS)
def test_each_branch_is_told_what_the_call_says(own, source, told, name):
    """Prompt, picture, and frame rate; the source's branch has the prompt of its inversion."""
    call, branches = CALLS[name]
    for given, fps in RATES.values():
        told.clear()
        found = call(own, source, **given)
        assert sorted(told) == sorted(Told(p, n, fps, x) for p, n, x in branches)
        if name in ("invert", "solve"):
            assert found.settings.steps == STEPS
            assert found.video.fps == RATE and dict(found.settings.options) == {"fps": fps}
        # a clip keeps its rate; one that is made has the rate that the network was told
        edits = found if isinstance(found, list) else [found]
        for edit in (x for x in edits if isinstance(x, anyv2v.Edit)):
            assert edit.fps == (fps if name.startswith("generate") else RATE)
            assert edit.frames.shape == CLIP.frames.shape


def test_a_recording_is_told_what_the_inversion_was(own, source, told):
    recording = own.recording(CLIP)
    recorded = own.record(source, recording)
    assert told == [Told("sea", False, 3, 50)]
    assert set(recorded.features.by_step) == {0, 1}
    # so it serves edits at that rate alone
    ways = {
        fps: [s.way for s in own.step_plan(source=recorded, options={"fps": fps}).steps]
        for fps in (3, 11)
    }
    assert ways == {3: ["replayed"] * 2, 11: ["batched"] * 2}


def test_frames_without_a_rate_have_that_of_the_weights(own):
    for frames in (CLIP.frames, torch.from_numpy(CLIP.frames.copy())):
        source = own.invert(frames, "ddim", STEPS)
        assert source.video.fps == own.edit(source, EDITED, "a").fps == 11
        assert np.array_equal(source.video.frames, CLIP.frames)


def test_latents_are_means_or_samples_drawn_by_the_generator_that_is_given(own):
    def encoded(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return own.encode_frames(CLIP.frames, generator)

    found = {seed: encoded(seed) for seed in (None, 1, 2)}
    for seed, latents in found.items():
        assert latents.dtype == torch.float32 and latents.is_contiguous()
        assert [torch.equal(encoded(seed), x) for x in found.values()].count(True) == 1
        assert torch.equal(encoded(seed), latents)


# how an inversion or an edit is guided, and by what


@pytest.fixture
def guided(monkeypatch):
    """The scales that branches are made for, from now on."""
    seen, branches = [], I2VGen.branches

    def look(self, prompt, negative_prompt, first, guidance, options):
        seen.append((prompt, guidance["text"]))
        return branches(self, prompt, negative_prompt, first, guidance, options)

    monkeypatch.setattr(I2VGen, "branches", look)
    return seen


def test_each_call_is_guided_as_it_says_or_as_the_weights_are(own, source, guided):
    for call, wanted in (
        (lambda: own.invert(CLIP, "ddim", STEPS, prompt="a"), [("a", 1.0)]),
        (lambda: own.invert(CLIP, "ddim", STEPS, prompt="a", guidance=3.0), [("a", 3.0)]),
        (lambda: own.reconstruct(source, "a"), [("a", 1.0)]),
        (lambda: own.reconstruct(source, "a", guidance=3.0), [("a", 3.0)]),
        (lambda: own.edit(source, EDITED, "a"), [("a", 4.0)]),
        (lambda: own.edit(source, EDITED, "a", guidance={"text": 3.0}), [("a", 3.0)]),
        (lambda: own.edit_many(source, [ONE, TWO]), [("a robot", 5.0), ("a bear", 4.0)]),
        (lambda: list(own.edit_each(source, [TWO, ONE])), [("a bear", 4.0), ("a robot", 5.0)]),
        (lambda: own.generate(EDITED, "a"), [("a", 4.0)]),
        (lambda: own.generate(EDITED, "a", guidance=3.0), [("a", 3.0)]),
    ):
        guided.clear()
        call()
        assert guided == wanted


def test_plain_inversion_takes_500_steps_as_the_originals(own):
    class Enough(Exception):
        pass

    def stop(i, t, x):
        timesteps.append(t)
        if i == 1:
            raise Enough

    for method, wanted in (("ddim", [1, 3]), ("fixed-point", [1, 501])):
        timesteps = []
        with pytest.raises(Enough):
            own.invert(CLIP, method, on_step=stop)
        assert timesteps == wanted


def test_what_an_inversion_was_told_is_kept_with_its_source(source):
    assert source.settings.method == "ddim" and source.settings.steps == STEPS
    assert source.settings.prompt == "sea" and source.settings.negative_prompt == "fog"
    assert source.settings.guidance == {"text": 2.0} and source.settings.options == {"fps": 3}
    assert source.settings.tolerance == 3e-3 and source.fingerprint == "these weights"
    assert source.evaluations == 2 * STEPS


# which latents a run begins with


def drawn(seed, shape=(1, 4, FRAMES, 2, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_run_begins_with_its_own_noise_and_latents(own, source, begun):
    given = drawn(9).double()
    plain = {"injection": Injection.none()}
    requests = [
        EditRequest(EDITED, "a", random_ratio=ratio, seed=seed, noise=noise)
        for ratio, seed, noise in (
            (0.0, 0, None),
            (0.25, 7, None),
            (0.25, 8, None),
            (0.5, 0, given),
        )
    ]
    mixed = [
        r * (drawn(seed) if noise is None else noise.float()) + (1 - r) * source.at(0)
        for r, seed, noise in ((0.0, 0, None), (0.25, 7, None), (0.25, 8, None), (0.5, 0, given))
    ]
    for start, call, wanted in (
        (0, lambda: own.edit_many(source, requests, **plain), torch.cat(mixed)),
        (0, lambda: next(own.edit_each(source, requests[1:], **plain)), mixed[1]),
        (0, lambda: own.edit(source, EDITED, "a", random_ratio=0.25, seed=7, **plain), mixed[1]),
        (
            0,
            lambda: own.edit(source, EDITED, "a", random_ratio=0.5, noise=given, **plain),
            mixed[3],
        ),
        (1, lambda: own.edit(source, EDITED, "a", start=1, **plain), source.at(1)),
        (0, lambda: own.reconstruct(source, seed=7), source.at(0)),
        (1, lambda: own.reconstruct(source, start=1), source.at(1)),
        (0, lambda: own.generate(EDITED, "a", seed=7), drawn(7)),
        (0, lambda: own.generate(EDITED, "a"), drawn(0)),
        (0, lambda: own.generate(EDITED, "a", noise=given), given.float()),
        (
            0,
            lambda: own.generate(EDITED, "a", frames=3, size=(16, 8), seed=7),
            drawn(7, (1, 4, 3, 1, 2)),
        ),
    ):
        begun.clear()
        call()
        latents = begun[0][0]
        assert latents.shape == wanted.shape and torch.allclose(latents, wanted, atol=1e-6)
        assert [t for _, t, _ in begun] == own.schedule.timesteps(STEPS)[start:]


def test_a_step_that_injects_has_the_sources_latents_first(own, source, begun):
    for steps in ({}, {"source_pass": "always", "injection": Injection.none()}):
        begun.clear()
        own.edit(source, EDITED, "a", **steps)
        assert [len(x) for x, *_ in begun] == [2, 2]
        for i, (latents, t, _) in enumerate(begun):
            assert t == own.schedule.timesteps(STEPS)[i]
            assert torch.equal(latents[:1], source.at(i))


def or_raise(found):
    if isinstance(found, Exception):
        raise found
    return found


def test_on_step_and_after_step_get_what_there_is_after_each_step(own, source, begun):
    """Of every call; what `after_step` gives is what goes on, whatever the caller does with it."""
    timesteps, memory = own.schedule.timesteps(STEPS), torch.empty(1, 4, FRAMES, 2, 3)

    def after(i, x):
        calls.append(i)
        return memory.fill_(i + 1.0)

    def on(i, t, x):
        assert t == timesteps[i] and (x == i + 1.0).all()
        memory.fill_(99.0)
        calls.append(t)

    for call in (
        lambda **x: own.edit(source, EDITED, "a", **x),
        lambda **x: own.edit_many(source, [TWO], **x)[0],
        lambda **x: or_raise(next(own.edit_each(source, [TWO], **x))),
        lambda **x: own.reconstruct(source, **x),
        lambda **x: own.generate(EDITED, "a", **x),
    ):
        calls = []
        found = call(on_step=on, after_step=after)
        assert calls == [0, timesteps[0], 1, timesteps[1]]
        assert (found.latents == 2.0).all() and found.latents.shape == (1, 4, FRAMES, 2, 3)
        for wrong, says in (
            (torch.zeros(1, 4, 1, 2, 3), r"it gave \(1, 4, 1, 2, 3\)"),
            (torch.full_like(memory, torch.inf), "not finite in step 0"),
            (3, "after_step: what it gave"),
        ):
            with pytest.raises((InputError, RuntimeError), match=says):
                call(after_step=lambda i, x, wrong=wrong: wrong)


# what memory is asked for


NEEDS = {
    "invert": (1, lambda e, s: e.invert(CLIP, "ddim", STEPS)),
    "invert guided": (2, lambda e, s: e.invert(CLIP, "ddim", STEPS, guidance=3.0)),
    "edit plainly": (2, lambda e, s: e.edit(s, EDITED, "a", guidance=1.0)),
    "edit": (3, lambda e, s: e.edit(s, EDITED, "a")),
    "edit many": (3, lambda e, s: e.edit_many(s, [replace(TWO, guidance=1.0), ONE])),
    "edit each": (3, lambda e, s: list(e.edit_each(s, [replace(TWO, guidance=1.0), ONE]))),
    "reconstruct": (1, lambda e, s: e.reconstruct(s)),
    "reconstruct guided": (2, lambda e, s: e.reconstruct(s, guidance=2.0)),
    "generate": (2, lambda e, s: e.generate(EDITED, "a")),
    "generate plainly": (1, lambda e, s: e.generate(EDITED, "a", guidance=1.0)),
    "check": (3, lambda e, s: e.check_memory(SIZE, FRAMES)),
    "check one": (1, lambda e, s: e.check_memory(SIZE, FRAMES, 1)),
}


@pytest.mark.parametrize("name", NEEDS)
def test_memory_that_is_a_byte_short_is_refused(own, source, begun, monkeypatch, name):
    """Of the branches that there are, or of the autoencoder where that needs more."""
    branches, call = NEEDS[name]
    of_unet = own.backbone.activation_bytes(branches, FRAMES, 2, 3)
    of_codec = own.backbone.codec.activation_bytes(SIZE[1], SIZE[0])
    for scale, need in ((0, of_unet), (100, 100 * of_codec)):
        assert need >= of_unet
        codec = type(own.backbone.codec)
        monkeypatch.setattr(codec, "activation_bytes", lambda self, h, w, s=scale: s * of_codec)
        monkeypatch.setattr(memory, "free_bytes", lambda device: need - 1)  # noqa: B023
        begun.clear()
        with pytest.raises(InputError, match="not enough memory: 24x16 with 2 frames"):
            call(own, source)
        assert not begun
        monkeypatch.setattr(memory, "free_bytes", lambda device: need)  # noqa: B023
        call(own, source)


def test_what_networks_that_may_leave_take_counts_as_free(own, monkeypatch):
    need = own.backbone.activation_bytes(3, FRAMES, 2, 3)
    monkeypatch.setattr(type(own.backbone.codec), "activation_bytes", lambda self, h, w: 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: need - 10)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="not enough memory"):
        patch.setattr(type(own.offload), "freeable", 9)
        own.check_memory(SIZE, FRAMES)
    monkeypatch.setattr(type(own.offload), "freeable", 10)
    own.check_memory(SIZE, FRAMES)


def test_a_job_says_what_it_will_hold(own, source, begun, monkeypatch):
    """So that networks leave the device in time: twice the least, or with graphs four times."""
    asked = []
    monkeypatch.setattr(own.offload, "begin", asked.append)

    def least(branches):
        return own.backbone.activation_bytes(branches, FRAMES, 2, 3)

    recording = own.recording(CLIP)
    assert recording.bytes("device") > 0
    for graphs, times in ((None, 4), (False, 2)):
        monkeypatch.setattr(own, "graphs", graphs)
        asked.clear()
        own.invert(CLIP, "ddim", STEPS, guidance=3.0)
        own.edit(source, EDITED, "a")
        own.reconstruct(source)
        own.generate(EDITED, "a")
        assert asked == [times * least(n) for n in (2, 3, 1, 2)]
    asked.clear()
    monkeypatch.undo()
    monkeypatch.setattr(own.offload, "begin", asked.append)
    own.invert(CLIP, recording=recording)
    assert asked == [4 * least(1) + recording.bytes("device")]


# where features are kept


@pytest.mark.parametrize("memory", [None, 0, 1, 2, 4, 5, 100])
def test_features_go_to_the_device_then_to_the_host_and_never_beyond_half(own, monkeypatch, memory):
    every = dict(injection=Injection(conv=1, spatial=1, temporal=1), steps=10)
    (each,) = set(own.recording(CLIP, **every).sizes.values())
    free = {"cuda": 2 * 3 * each + 1, "cpu": 2 * 2 * each + 1}
    monkeypatch.setattr(planning, "free_bytes", lambda device: free[device.type])
    monkeypatch.setattr(I2VGen, "device", torch.device("cuda"))
    limit = None if memory is None else memory * each
    found = own.recording(CLIP, memory=limit, **every)
    here = min(3, 100 if memory is None else memory)
    there = min(2, 100 if memory is None else memory - here)
    # the earliest of equal ones first
    assert found.placement == {i: "device" if i < here else "host" for i in range(here + there)}
    assert found.bytes("device") == here * each and found.bytes("host") == there * each
    assert found.bytes() == (here + there) * each
    # where the device is the host there is one place, whatever it is called
    monkeypatch.setattr(I2VGen, "device", torch.device("cpu"))
    found = own.recording(CLIP, memory=limit, **every)
    count = min(2, 100 if memory is None else memory)
    assert found.placement == dict.fromkeys(range(count), "device") and found.bytes("host") == 0


def test_features_are_fetched_in_the_order_of_the_steps(own, source, monkeypatch):
    recorded, orders, playback = own.record(source, own.recording(CLIP)), [], editing.open_playback

    def look(cache, order, device):
        orders.append(list(order))
        return playback(cache, orders[-1], device)

    monkeypatch.setattr(editing, "open_playback", look)
    own.edit(recorded, EDITED, "a", options={"fps": 3})
    own.edit(recorded, EDITED, "a", options={"fps": 3}, start=1)
    own.edit(recorded, EDITED, "a")
    assert orders == [[0, 1], [1], []]


def test_a_recording_runs_no_further_than_its_last_site(own, source, begun):
    """Of a source by itself, and of one that is run before each step; compact as it was planned."""

    def seen():
        found = [(x.stop, x.compact, x.sites) for *_, x in begun if isinstance(x, Record)]
        begun.clear()
        return found

    for compact in (True, False):
        recording = own.recording(CLIP, compact=compact)
        own.record(source, recording)
        assert seen() == [(True, compact, recording.sites[i]) for i in recording.placement]
    own.edit(source, EDITED, "a", source_pass="separate")
    assert seen() == [(True, False, recording.sites[i]) for i in range(STEPS)]
    # on the way the inversion needs the prediction
    for compact in (True, False):
        begun.clear()
        own.invert(CLIP, recording=own.recording(CLIP, compact=compact))
        assert {(x.stop, x.compact) for *_, x in begun if x.sites} == {(False, compact)}


# what is refused


def test_features_are_recorded_on_the_way_by_a_fixed_point_alone(own, told):
    recording = own.recording(CLIP)
    for change in ({"method": "ddim"}, {"guidance": 3.0}, {"guidance": {"text": 1.5}}):
        with pytest.raises(InputError, match="only a fixed-point inversion without guidance"):
            own.invert(CLIP, **{"method": "fixed-point", "recording": recording, **change})
    with pytest.raises(InputError, match="recording: taps may change"):
        own.invert(CLIP, recording=recording, taps=anyv2v.Taps())
    assert not told


TAKES_A_SOURCE = {
    "edit": lambda e, s: e.edit(s, EDITED, "a"),
    "edit many": lambda e, s: e.edit_many(s, [ONE]),
    "edit each": lambda e, s: next(e.edit_each(s, [ONE])),
    "reconstruct": lambda e, s: e.reconstruct(s),
    "record": lambda e, s: e.record(s, e.recording(CLIP)),
}


def with_latents(source, change):
    trajectory = source.trajectory
    kept = {i: change(x) for i, x in trajectory.latents.items()}
    return replace(
        source, trajectory=type(trajectory)(change(trajectory.clean), kept, trajectory.levels)
    )


WRONG = {
    "other weights": lambda s: replace(s, fingerprint="others"),
    "no weights": lambda s: replace(s, fingerprint=""),
    "frames": lambda s: with_latents(s, lambda x: x[:, :, :1]),
    "height": lambda s: with_latents(s, lambda x: x[:, :, :, :1]),
    "width": lambda s: with_latents(s, lambda x: x[..., :2]),
    "channels": lambda s: with_latents(s, lambda x: x[:, :3]),
    "rows": lambda s: with_latents(s, lambda x: torch.cat([x, x])),
    "levels": lambda s: replace(
        s,
        trajectory=type(s.trajectory)(
            s.trajectory.clean,
            s.trajectory.latents,
            [replace(x, sigma=0.9 * x.sigma) for x in s.trajectory.levels],
        ),
    ),
    "steps": lambda s: replace(s, settings=replace(s.settings, steps=3)),
}


@pytest.mark.parametrize("name", TAKES_A_SOURCE)
def test_a_source_that_is_not_of_these_weights_serves_no_call(own, source, told, tmp_path, name):
    for wrong, change in WRONG.items():
        with pytest.raises(InputError, match="other weights|do not fit|noise levels"):
            TAKES_A_SOURCE[name](own, change(source))
        if name == "edit" and wrong != "steps":
            change(source).save(tmp_path / "a.safetensors")
            with pytest.raises(InputError, match="a.safetensors: "):
                own.load_source(tmp_path / "a.safetensors")
    assert not told


@pytest.mark.parametrize("name", TAKES_A_SOURCE)
def test_latents_that_a_run_reads_have_to_be_there(own, source, told, name):
    trajectory = source.trajectory
    for left in (0, 1):
        part = type(trajectory)(trajectory.clean, {left: source.at(left)}, trajectory.levels)
        with pytest.raises(InputError, match="holds no latents of timestep"):
            if name == "reconstruct" and left == 0:
                own.reconstruct(replace(source, trajectory=part), start=1)
            else:
                TAKES_A_SOURCE[name](own, replace(source, trajectory=part))
    assert not told


def test_latents_that_a_run_does_not_read_need_not_be_there(own, source):
    trajectory = source.trajectory
    for only in (0, 1):
        part = type(trajectory)(trajectory.clean, {only: source.at(only)}, trajectory.levels)
        kept = replace(source, trajectory=part)
        for run in (
            lambda source, start: own.reconstruct(source, start=start),
            lambda source, start: own.edit(
                source, EDITED, "a", start=start, injection=Injection.none()
            ),
            lambda source, start: own.edit(
                source, EDITED, "a", start=start, injection=Injection(0, 0, 0)
            ),
        ):
            assert torch.equal(run(kept, only).latents, run(source, only).latents)


def test_only_the_latents_that_a_run_will_read_are_kept(own):
    """In steps without injection those of the source are read if it is there in every step."""
    none = Injection.none()
    plans = {
        (0, 1): own.step_plan(),
        (0,): own.step_plan(injection=none),
        (1,): own.step_plan(start=1),
        (0, 1, None): own.step_plan(injection=none, source_pass="always"),
    }
    for wanted, plan in plans.items():
        kept = own.invert(CLIP, "ddim", STEPS, plan=plan).trajectory.latents
        assert set(kept) == {i for i in wanted if i is not None}


def test_half_an_inversion_goes_on_with_the_weights_it_was_begun_with(
    own, tmp_path, monkeypatch, told
):
    monkeypatch.setattr(source_module, "SAVE_EVERY", 0.0)
    other = anyv2v.Editor(own.backbone, "others")
    bright = anyv2v.Video(CLIP.frames + np.uint8(1), RATE)
    asked = {
        "video": CLIP,
        "method": "ddim",
        "steps": 3,
        "prompt": "a",
        "negative_prompt": "b",
        "guidance": 1.0,
        "fps": 4,
        "tolerance": 1e-2,
    }
    path = tmp_path / "half"

    class Killed(Exception):
        pass

    def stop(i, t, x):
        if i == 1:
            raise Killed

    with pytest.raises(Killed):
        own.invert(**asked, unfinished=Unfinished(path), on_step=stop)
    with pytest.raises(InputError, match="other settings or weights"):
        other.invert(**asked, unfinished=Unfinished(path))
    for change in (
        {"method": "fixed-point"},
        {"steps": 2},
        {"prompt": "x"},
        {"negative_prompt": "x"},
        {"guidance": 0.5},
        {"fps": 5},
        {"tolerance": 1e-3},
    ):
        with pytest.raises(InputError, match="other settings or weights"):
            own.invert(**asked | change, unfinished=Unfinished(path))
    monkeypatch.undo()
    with pytest.raises(InputError, match="another video"):
        own.invert(**asked | {"video": bright}, unfinished=Unfinished(path))
    steps = []
    own.invert(**asked, unfinished=Unfinished(path), on_step=lambda i, t, x: steps.append(i))
    assert steps == [1, 2]


def test_half_an_inversion_is_not_written_before_it_is_due(own, tmp_path):
    path = tmp_path / "half"
    own.invert(CLIP, "ddim", 3, unfinished=Unfinished(path))
    assert not path.exists()


def test_a_start_beyond_the_last_step_and_a_clip_of_one_frame_are_refused(own, source, told):
    for start in (STEPS, STEPS + 1, -1):
        for call in (
            lambda **x: own.edit(source, EDITED, "a", **x),
            lambda **x: own.edit_many(source, [ONE], **x),
            lambda **x: next(own.edit_each(source, [ONE], **x)),
            lambda **x: own.reconstruct(source, **x),
            lambda **x: own.recording(CLIP, **x),
            lambda **x: own.step_plan(**x),
        ):
            with pytest.raises(InputError, match=f"start: {start} is not .* from 0 to 1"):
                call(start=start)
    with pytest.raises(InputError, match="the video has 1 frame"):
        own.invert(anyv2v.Video(CLIP.frames[:1], RATE))
    assert not told


def test_a_batch_has_as_many_edits_as_memory_holds_twice(own, source, monkeypatch, begun):
    """At least one; the source and the branches of each are counted."""
    requests, each = [ONE] * 5, own.backbone.activation_bytes(1, FRAMES, 2, 3)
    for rows, batches in ((3, [1] * 5), (5, [2, 2, 1]), (8, [3, 2]), (10, [4, 1]), (11, [5])):
        monkeypatch.setattr(editor_module, "free_bytes", lambda d, n=rows: 2 * n * each)
        begun.clear()
        assert len(own.edit_many(source, requests, injection=Injection.none(), start=1)) == 5
        assert [len(x) for x, *_ in begun] == batches


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_refused_wherever_it_is(own, source, begun, wrong):
    latents = source.at(0).clone()
    latents[0, 3, 1, 1, 2] = wrong
    noise = {"noise": latents, "random_ratio": 0.5}
    for call, says in (
        (lambda: own.decode(latents), "latents to be decoded are not finite"),
        (lambda: own.edit(source, EDITED, "a", **noise), "noise: it holds values"),
        (lambda: own.edit_many(source, [ONE, replace(TWO, **noise)]), "noise: it holds values"),
        (lambda: own.generate(EDITED, "a", noise=latents), "noise: it holds values"),
    ):
        with pytest.raises((InputError, RuntimeError), match=says):
            call()
    assert not begun


def test_what_a_network_spoils_is_told_by_every_run(own, source, monkeypatch):
    """With the step, or the site, in which it appears, in whichever call."""
    last = own.schedule.timesteps(STEPS)[1]

    def spoil(self, latents, t, conditions, taps):
        found = predict_nothing(self, latents, t, conditions, taps)
        if t == last:
            found[-1, -1, -1, -1, -1] = torch.inf
            for parts in taps.features.values() if isinstance(taps, Record) else ():
                parts[0][2] = torch.nan
        return found

    recording = own.recording(CLIP)
    monkeypatch.setattr(I2VGen, "predict", spoil)
    for call, says in (
        (lambda: own.invert(CLIP, "ddim", STEPS), "inversion: the network .* in step 0"),
        (lambda: own.invert(CLIP), "inversion: the network .* in step 0"),
        (lambda: own.edit(source, EDITED, "a"), "sampling: the network .* in step 1"),
        (lambda: own.edit_many(source, [ONE, TWO]), "in step 1 .* of edit 1 .*'a bear'"),
        (lambda: or_raise(next(own.edit_each(source, [ONE]))), "sampling: .* in step 1"),
        (lambda: own.reconstruct(source), "sampling: the network .* in step 1"),
        (lambda: own.generate(EDITED, "a"), "sampling: the network .* in step 1"),
        (lambda: own.record(source, recording), f"features: .* at up.*, timestep {last}"),
    ):
        with pytest.raises(NotFiniteError, match=says):
            call()


def test_a_recording_serves_the_sites_it_will_have_at_the_levels_it_has(own):
    few = {"injection": Injection(conv=0, spatial=0, temporal=1)}
    whole, some = own.recording(CLIP), own.recording(CLIP, **few)
    for recording, asked, ways in (
        (whole, {}, ["replayed", "replayed"]),
        (whole, few, ["replayed", "replayed"]),
        (some, few, ["replayed", "replayed"]),
        # the first step injects more than there will be
        (some, {}, ["batched", "replayed"]),
        (own.recording(CLIP, memory=0), {}, ["batched", "batched"]),
        # 667, 334 and 1, where two steps are at 501 and 1
        (whole, {"steps": 3}, ["batched", "batched", "replayed"]),
    ):
        plan = own.step_plan(recording=recording, **asked)
        assert [step.way for step in plan.steps] == ways
