"""AnyV2V on Wan against diffusers, live, from pixels and text to pixels, in float32.

The weights are random, in the layout of the published ones, which could not be had here.
"""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.convert.formats.wan_names import TRANSFORMER, VAE
from anyv2v.editor import Editor
from tests.draw import normal
from tests.oracles import wan_names
from tests.oracles.golden import relative_error
from tests.wan import CONFIG, DEFAULTS

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
# they need both
from tests.oracles import wan_pipeline, wan_published  # noqa: E402

STEPS, SIZE, FRAMES, GUIDANCE = 10, (96, 64), 9, 5.0
SOURCE, NEGATIVE, PROMPT = "a man is walking", "a red car", "a robot is walking"
GROUPS = ("map", "value", "context", "hidden")
CLOSE = 1e-5
"""Largest error of latents; float32 explains what was seen, 1.4e-6."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "hub"
    wan_published.write_hub(folder, seed=2)
    wan_pipeline.sharpen(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(hub):
    return wan_pipeline.load(hub)


@pytest.fixture(scope="module")
def editor(hub, pipeline):
    vae, text, tokens = pipeline.vae.config, pipeline.text_encoder.config, 512
    config = copy.deepcopy(CONFIG)
    config["transformer"] |= {"text_tokens": tokens}
    config["vae"] |= {
        "decoder_channels": [vae.decoder_base_dim * m for m in vae.dim_mult],
        "layers": vae.num_res_blocks,
        "mean": vae.latents_mean,
        "std": vae.latents_std,
    }
    config["text"] = {
        "vocab_size": text.vocab_size,
        "tokens": tokens,
        "width": text.d_model,
        "heads": text.num_heads,
        "head_dim": text.d_kv,
        "layers": text.num_layers,
        "mlp_width": text.d_ff,
        "buckets": text.relative_attention_num_buckets,
        "max_distance": text.relative_attention_max_distance,
        "norm_eps": text.layer_norm_epsilon,
    }
    networks = {name: build().eval() for name, build in Wan.networks(config).items()}
    states = {
        "transformer": wan_names.renamed(pipeline.transformer.state_dict(), TRANSFORMER),
        "vae": wan_names.renamed(pipeline.vae.state_dict(), VAE),
        "text": wan_names.hub_state(pipeline.text_encoder.state_dict()),
    }
    for name, network in networks.items():
        shapes = network.state_dict()
        network.load_state_dict({k: x.reshape(shapes[k].shape) for k, x in states[name].items()})
        network.requires_grad_(False)
    defaults = replace(DEFAULTS, steps=STEPS, evaluations=8)
    return Editor(Wan.assemble(config, networks, hub, defaults))


@pytest.fixture(scope="module")
def oracle(pipeline):
    return wan_pipeline.Oracle(pipeline, 512)


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
    fractions = dict.fromkeys(GROUPS, 0.0) | {group: x for group, (x, _) in groups.items()}
    options = {f"{group}_tokens": tokens for group, (_, tokens) in groups.items()}
    return {"injection": Injection(**fractions), "options": options}


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
    # a step of guided sampling from pure noise grows rounding more than those of an edit
    assert error <= 4 * CLOSE
    assert made.frames.shape == pixels.shape == (FRAMES, *SIZE[::-1], 3)
    # where the last step rounds to the other side
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert pixels.std() > 5 and np.isin(pixels, (0, 255)).mean() < 0.1


@torch.no_grad()
def test_the_inversion_solves_sampling_with_their_network(oracle, source):
    """At every level that is solved: its residual, by their network alone."""
    timesteps, sigmas = oracle.levels(STEPS)
    first, text = source.trajectory.clean[:, :, :1], oracle.embed(SOURCE)
    levels = [*map(source.at, range(STEPS)), source.trajectory.clean]
    solutions, solved = {}, sorted(source.residuals, reverse=True)
    assert len(solved) >= STEPS - 2
    for i in solved:
        # the latents that sampling shall arrive at: those that the step before has solved for
        below = solutions.get(i + 1, levels[i + 1])
        step = sigmas[i + 1] - sigmas[i]
        solutions[i] = below - step * oracle.velocity(levels[i], timesteps[i], text)
        truth = relative_error(solutions[i][:, :, 1:], levels[i][:, :, 1:])
        assert source.residuals[i] == pytest.approx(truth, rel=0.02, abs=2e-6)
        assert levels[i][:, :, :1].equal(first)
    print("residuals: " + " ".join(f"{source.residuals[i]:.1e}" for i in solved))


@torch.no_grad()
def test_sampling_with_their_network_follows_the_trajectory(editor, oracle, strict):
    """From the noise that inversion found, down to the first level that it solved for."""
    first = strict.trajectory.clean[:, :, :1]
    assert relative_error(first, oracle.encode(Image.fromarray(clip().frames[0]))) <= 1e-5
    found = list(oracle.sample(strict.at(0), first, oracle.embed(SOURCE), STEPS))
    levels = [*map(strict.at, range(1, STEPS)), strict.trajectory.clean]
    count = max(strict.residuals) + 1
    error = compared(found[:count], levels[:count])
    print(f"there and back: {error:.1e}")
    assert error <= CLOSE
    assert relative_error(strict.at(0)[:, :, 1:], levels[-1][:, :, 1:]) > 0.1


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
        "hidden": (0.6, "all"),
    },
    "together, otherwise": {
        "map": (0.5, "rest"),
        "value": (0.2, "all"),
        "context": (0.6, "all"),
        "hidden": (0.3, "rest"),
    },
}

# without those that are part of the last
OTHERWISE = [name for name in CASES if " of " in name]


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [pytest.param(x, marks=pytest.mark.slow) if x in OTHERWISE else x for x in CASES]
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
    assert effect > 100 * CLOSE


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
        assert ways == ["replayed"] * 6 + ["plain"] * 4
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
