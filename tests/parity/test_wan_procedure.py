"""AnyV2V on Wan against diffusers, live, from pixels and text to pixels, in float32.

The weights are random, in the layout of the published ones, which could not be had here.
"""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection
from anyv2v.backbones.wan.defaults import NEGATIVE_PROMPT
from anyv2v.convert.published import convert
from anyv2v.loading import expected_shapes
from tests.draw import normal
from tests.oracles.golden import relative_error

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
# they need both
from tests.oracles import wan_pipeline, wan_published  # noqa: E402

STEPS, SIZE, FRAMES, GUIDANCE = 10, (96, 64), 9, 5.0
SOURCE, NEGATIVE, PROMPT = "a man is walking", "a red car", "a robot is walking"
UNSOLVED = 2
"""Steps of which the noise is drawn, with which an inversion begins: those to sigma below 0.5."""
SITES = {
    "map": ["block.1.self", "block.2.self"],
    "value": ["block.1.self.value", "block.2.self.value"],
    "context": ["block.1.self.context", "block.2.self.context"],
    "hidden": ["block.1.ff"],
}
"""What is injected, of 3 blocks; the groups of published weights do not overlap."""
CLOSE = 5e-5
"""Largest error of latents; float32 explains what was seen, 2.0e-5."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "hub"
    wan_published.write_hub(folder, seed=2)
    wan_pipeline.sharpen(folder)
    return folder


@pytest.fixture(scope="module")
def load(hub):
    """Function of settings of the weights -> an editor with the converted weights."""
    folder = hub.parent / "weights"
    convert(hub, folder, expected_shapes, torch.float32)
    config = json.loads((folder / "config.json").read_text())

    def load(**defaults):
        told = config["defaults"] | {"size": SIZE, "frames": FRAMES, "noise_range": None} | defaults
        (folder / "config.json").write_text(json.dumps(config | {"defaults": told}))
        return anyv2v.load(folder, device="cpu", dtype=torch.float32)

    return load


@pytest.fixture(scope="module")
def editor(load):
    return load(steps=STEPS, evaluations=8, solved_from=0.5)


@pytest.fixture(scope="module")
def oracle(hub):
    return wan_pipeline.Oracle(wan_pipeline.load(hub), text_tokens=512)


@pytest.fixture(scope="module")
def inverted(editor):
    """Case -> the clip, inverted with its options to the usual tolerance."""

    @functools.cache
    def invert(case):
        return editor.invert(clip(), prompt=SOURCE, options=arguments(case)["options"])

    return invert


@pytest.fixture(scope="module")
def source(inverted):
    """The clip, inverted with the usual options."""
    return inverted(None)


@pytest.fixture(scope="module")
def strict(editor):
    """The same, solved as far as float32 goes."""
    return editor.invert(clip(), prompt=SOURCE, tolerance=2e-6)


def pictures(count, seed):
    """Random pictures of 8x8 squares, uint8 (count, h, w, 3)."""
    random, (width, height) = np.random.RandomState(seed), SIZE
    small = random.randint(0, 256, (count, height // 8, width // 8, 3)).astype(np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def clip():
    return anyv2v.Video(pictures(FRAMES, 1), 24)


EDITED = pictures(1, 2)[0]
OTHER = pictures(1, 3)[0]


def compared(found, truth):
    """The largest error of all steps, without latent frame 0, which theirs noise in between."""
    pairs = zip(found, truth, strict=True)
    return max(relative_error(mine[:, :, 1:], other[:, :, 1:]) for mine, other in pairs)


def arguments(case):
    """How `edit` is told of a case, a name in `CASES`; None: nothing is injected."""
    groups = CASES[case] if case else {}
    fractions = dict.fromkeys(SITES, 0.0) | {group: x for group, (x, _) in groups.items()}
    options = {f"{group}_tokens": tokens for group, (_, tokens) in groups.items()}
    return {"injection": Injection(**fractions, sites=SITES), "options": options}


def edited(editor, source, case, **others):
    """The latents of an edit after each step."""
    steps = []
    (edit,) = editor.edit_each(
        source,
        [EditRequest(EDITED, PROMPT, NEGATIVE, GUIDANCE)],
        on_step=lambda i, t, x: steps.append(x.clone()),
        decode=False,
        **arguments(case),
        **others,
    )
    assert edit.latents.equal(steps[-1])
    return steps


@pytest.fixture(scope="module")
def batched(editor, inverted):
    """Case -> the latents of its edit after each step, with the source in the batch."""
    return functools.cache(lambda case: edited(editor, inverted(case), case))


@pytest.fixture(scope="module")
def generated(oracle):
    """What their pipeline makes of noise and the edited frame: frames, and latents of each step."""
    noise, latents = normal(1, oracle.channels, 3, 4, 6), []
    texts = NEGATIVE, PROMPT
    frames = oracle.generate(EDITED, texts, FRAMES, STEPS, GUIDANCE, noise, latents.append)
    return noise, frames, latents


@torch.no_grad()
def test_the_oracle_is_their_pipeline_if_nothing_is_injected(oracle, generated):
    """Its loop and its attentions, which are written here."""
    noise, _, truth = generated
    first = oracle.encode(Image.fromarray(EDITED))
    texts = SOURCE, NEGATIVE, PROMPT
    found = list(oracle.edit([noise] * STEPS, first, texts, GUIDANCE, {}))
    assert compared(found, truth) <= CLOSE


@torch.no_grad()
def test_from_pixels_and_text_to_pixels(editor, oracle, generated):
    """Sampling: guidance, the negative prompt, the first frame, the tokenizer, all networks."""
    noise, pixels, truth = generated
    found = []
    made = editor.generate(
        EDITED,
        PROMPT,
        guidance=GUIDANCE,
        negative_prompt=NEGATIVE,
        noise=noise,
        on_step=lambda i, t, x: found.append(x.clone()),
    )
    error = compared(found, truth)
    assert relative_error(made.latents[:, :, :1], oracle.encode(Image.fromarray(EDITED))) <= CLOSE
    difference = np.abs(made.frames.astype(int) - pixels.astype(int))
    print(f"latents {error:.1e}; {(difference > 0).mean():.1e} of the pixels differ")
    assert error <= CLOSE
    assert made.frames.shape == pixels.shape == (FRAMES, *SIZE[::-1], 3)
    # where the last step rounds to the other side
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert pixels.std() > 5 and np.isin(pixels, (0, 255)).mean() < 0.1


@torch.no_grad()
def test_the_inversion_solves_sampling_with_their_network(oracle, source):
    """At every level: its residual, by their network alone."""
    timesteps, sigmas = oracle.levels(STEPS)
    first, text = source.trajectory.clean[:, :, :1], oracle.embed(SOURCE)
    levels = [*map(source.at, range(STEPS)), source.trajectory.clean]
    drawn, solutions = {*range(STEPS - UNSOLVED, STEPS)}, {}
    assert {*source.offsets} == drawn and {*source.residuals} == {*range(STEPS)}
    for i in reversed(range(STEPS)):
        # the latents that sampling shall arrive at: those that the step before has solved for
        below = solutions.get(i + 1, levels[i + 1])
        step = sigmas[i + 1] - sigmas[i]
        solution = below - step * oracle.velocity(levels[i], timesteps[i], text)
        truth = relative_error(solution[:, :, 1:], levels[i][:, :, 1:])
        assert source.residuals[i] == pytest.approx(truth, rel=0.02, abs=2e-6)
        assert levels[i][:, :, :1].equal(first)
        if i not in drawn:
            solutions[i] = solution
            assert truth <= 1e-3
    print("residuals: " + " ".join(f"{source.residuals[i]:.1e}" for i in reversed(range(STEPS))))


@torch.no_grad()
def test_sampling_with_their_network_follows_the_trajectory(editor, oracle, strict):
    """From the noise that inversion found, down to the clip."""
    first = strict.trajectory.clean[:, :, :1]
    assert relative_error(first, oracle.encode(Image.fromarray(clip().frames[0]))) <= 1e-5
    begin, text = strict.at(0), oracle.embed(SOURCE)
    found = list(oracle.sample(begin, first, text, STEPS, strict.offsets))
    levels = [*map(strict.at, range(1, STEPS)), strict.trajectory.clean]
    error = compared(found, levels)
    print(f"there and back: {error:.1e}")
    assert error <= CLOSE
    assert relative_error(begin[:, :, 1:], levels[-1][:, :, 1:]) > 0.1
    # what is added is not the clip itself
    assert all(x.norm() < 0.5 * levels[-1].norm() for x in strict.offsets.values())


CASES = {
    # the default of each group's tokens, for a part of the steps that is not that of another case
    "map": {"map": (0.2, "all")},
    "map of the rest": {"map": (0.2, "rest")},
    "value": {"value": (0.2, "rest")},
    "value of all": {"value": (0.4, "all")},
    "context": {"context": (0.2, "rest")},
    "context of all": {"context": (0.4, "all")},
    "hidden": {"hidden": (0.2, "all")},
    "hidden of the rest": {"hidden": (0.4, "rest")},
    "together": {
        "map": (0.3, "all"),
        "value": (0.5, "rest"),
        "context": (0.4, "rest"),
        # also in the steps of which the noise of the source is drawn
        "hidden": (1.0, "all"),
    },
    "together, otherwise": {
        "map": (0.5, "rest"),
        "value": (0.2, "all"),
        "context": (0.6, "all"),
        "hidden": (0.3, "rest"),
    },
}

# those of one group, whose options are among those of the two with all groups
ALONE = [name for name in CASES if name != "map" and "together" not in name]


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [pytest.param(x, marks=pytest.mark.slow) if x in ALONE else x for x in CASES]
)
def test_edits(oracle, source, batched, case):
    """The source in the batch, its tensors in the edit's rows, in blocks 1 and 2 of 3."""
    groups = {
        group: (round(STEPS * until), tokens == "rest")
        for group, (until, tokens) in CASES[case].items()
    }
    truth = oracle.edit(
        [source.at(i) for i in range(STEPS)],
        oracle.encode(Image.fromarray(EDITED)),
        (SOURCE, NEGATIVE, PROMPT),
        GUIDANCE,
        groups,
    )
    found = batched(case)
    error = compared(found, list(truth))
    effect = relative_error(found[-1], batched(None)[-1])
    print(f"{case}: {error:.1e}; the injection changes {effect:.1e}")
    assert error <= CLOSE
    assert effect > 400 * CLOSE


@torch.no_grad()
@pytest.mark.slow
def test_an_edit_with_the_settings_of_the_weights(load, oracle):
    """50 steps, guidance 5, the original's negative prompt, and the map in the first 40 steps."""
    editor = load()
    source = editor.invert(clip())
    steps = []
    editor.edit(source, EDITED, PROMPT, on_step=lambda i, t, x: steps.append(x.clone()))
    truth = oracle.edit(
        [source.at(i) for i in range(50)],
        oracle.encode(Image.fromarray(EDITED)),
        ("", NEGATIVE_PROMPT, PROMPT),
        5.0,
        {"map": (40, False)},
    )
    error = compared(steps, list(truth))
    print(f"own settings: {error:.1e}")
    assert error <= CLOSE
    assert {*source.offsets} == {48, 49}


def test_default_tokens(editor):
    """What things look like is in values and tokens of context, not of the source's first frame."""
    defaults = {"map": "all", "value": "rest", "context": "rest", "hidden": "all"}
    assert editor.backbone.options({}) == {f"{group}_tokens": x for group, x in defaults.items()}


WAYS = ("always", "separate", "recorded", "recorded compactly", "recorded on the way")


@torch.no_grad()
@pytest.mark.parametrize("case", ["together", "together, otherwise"])
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_running(editor, inverted, batched, case, way):
    """All give what the source in the batch gives, with which the oracle was compared."""
    source, settings = inverted(case), arguments(case)
    plan = {"injection": settings["injection"], "options": settings["options"]}
    if way in ("always", "separate"):
        found = edited(editor, source, case, source_pass=way)
    else:
        recording = editor.recording(clip(), **plan, compact="compactly" in way)
        if way == "recorded on the way":
            given = {"recording": recording, "options": settings["options"]}
            source = editor.invert(clip(), prompt=SOURCE, **given)
        else:
            source = editor.record(source, recording)
        ways = [step.way for step in editor.step_plan(**plan, source=source).steps]
        count = round(STEPS * max(until for until, _ in CASES[case].values()))
        assert ways == ["replayed"] * count + ["plain"] * (STEPS - count)
        found = edited(editor, source, case)
    error = compared(found, batched(case))
    print(f"{case}, {way}: {error:.1e}")
    assert error <= CLOSE


@torch.no_grad()
@pytest.mark.parametrize("recorded", [False, True])
def test_several_edits_in_one_batch(editor, source, batched, recorded):
    settings = arguments("together")
    common = {"injection": settings["injection"], "options": settings["options"]}
    if recorded:
        source = editor.record(source, editor.recording(clip(), **common))
    requests = [
        EditRequest(OTHER, SOURCE, guidance=1),
        EditRequest(EDITED, PROMPT, NEGATIVE, GUIDANCE),
    ]
    found = []
    editor.edit_many(source, requests, **common, on_step=lambda i, t, x: found.append(x.clone()))
    assert all(len(x) == 2 for x in found)
    error = compared([x[1:] for x in found], batched("together"))
    (alone,) = editor.edit_each(source, requests[:1], **common, decode=False)
    other = relative_error(found[-1][:1], alone.latents)
    print(f"two edits, recorded {recorded}: {error:.1e}, {other:.1e}")
    assert max(error, other) <= CLOSE
    assert relative_error(found[-1][:1], found[-1][1:]) > 100 * CLOSE
