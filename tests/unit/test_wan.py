"""Wan behind the editor, tiny and random: what is injected, by which way, and its conditions."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anyv2v import EditRequest, Injection, InputError, Taps
from anyv2v.backbones.base import FirstFrame
from anyv2v.backbones.wan.backbone import OPTIONS, Wan
from anyv2v.injection.taps import NO_TAPS, Record, Recorded, Replay, ShareSource
from anyv2v.pipeline.cuda_graphs import Graphs
from anyv2v.runtime.finite import NotFiniteError
from anyv2v.runtime.meta import meta_copy
from anyv2v.umt5.embeddings import load_embeddings, save_embeddings
from tests import wan
from tests.draw import normal
from tests.oracles import umt5_tokenizer
from tests.oracles.golden import relative_error
from tests.unit.test_graphs import Taped

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 32, 64, 3), dtype=np.uint8)
# of which the conditions need nothing
FIRST = FirstFrame(FRAMES[0], normal(1, wan.LATENTS, 1, 2, 4), 64, 9)
EDIT = EditRequest(FRAMES[0, :, ::-1].copy(), "a red car")
EACH = {
    "map": Injection(map=0.4),
    "value": Injection(map=0, value=0.4),
    "context": Injection(map=0, context=0.4),
    "hidden": Injection(map=0, hidden=0.4),
    "all": Injection(map=0.3, value=0.2, context=0.4, hidden=0.5),
}
TOKENS = {name: dict.fromkeys(OPTIONS, name) for name in ("all", "rest")}


@pytest.fixture(scope="module")
def editor():
    return wan.editor()


@pytest.fixture(scope="module")
def source(editor):
    return editor.invert(FRAMES, method="ddim", steps=3)


@pytest.fixture(scope="module")
def plain(editor, source):
    return edited(editor, source, Injection.none())


def edited(editor, source, injection, **settings):
    run = editor.edit_many(source, [EDIT], steps=3, injection=injection, **settings)
    return run[0].latents


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("group", EACH)
def test_every_way_of_injecting_is_the_same(editor, source, plain, group, tokens):
    injection, options = EACH[group], TOKENS[tokens]
    # features are replayed only if the source was inverted with the same options
    settings = replace(source.settings, options=options)
    source = replace(source, settings=settings)
    batched = edited(editor, source, injection, options=options)
    assert relative_error(batched, plain) > 1e-3
    assert torch.equal(batched[:, :, :1], plain[:, :, :1])
    always = edited(editor, source, injection, options=options, source_pass="always")
    separate = edited(editor, source, injection, options=options, source_pass="separate")
    assert max(relative_error(x, batched) for x in (always, separate)) <= 1e-6
    for compact in (True, False):
        planned = editor.recording(FRAMES, injection, 3, compact=compact, options=options)
        recorded = editor.record(source, planned)
        plan = editor.step_plan(3, None, injection, source=recorded, options=options)
        assert [step.way for step in plan.steps[:1]] == ["replayed"]
        replayed = edited(editor, recorded, injection, options=options)
        assert relative_error(replayed, batched) <= 1e-6


def test_features_that_sites_share_are_saved(editor, source, tmp_path):
    """The compact form of a map, and of the context, is the same input of the attention."""
    recorded = editor.record(source, editor.recording(FRAMES, EACH["all"], 3))
    recorded.save(tmp_path / "s.safetensors", features=True)
    loaded = editor.load_source(tmp_path / "s.safetensors")
    assert loaded.features.by_step.keys() == recorded.features.by_step.keys() == {0}
    for site, parts in recorded.features.by_step[0].items():
        assert all(map(torch.equal, loaded.features.by_step[0][site], parts)), site
    edits = [edited(editor, source, EACH["all"]) for source in (recorded, loaded)]
    assert torch.equal(*edits)


def test_which_tokens_are_injected_makes_a_difference(editor, source):
    for group, injection in EACH.items():
        found = [edited(editor, source, injection, options=o) for o in TOKENS.values()]
        assert relative_error(*found) > 1e-5, group


def test_a_map_of_ones_own_changes_nothing(editor, source):
    """In the first step an edit that equals its source has its features, all but the context."""
    itself = EditRequest(FRAMES[0], "", guidance=1)
    plain, *others = (
        editor.edit_many(source, [itself], steps=3, injection=injection)[0].latents
        for injection in (Injection.none(), EACH["map"], EACH["value"], EACH["hidden"])
    )
    assert all(relative_error(x, plain) <= 1e-6 for x in others)
    context = editor.edit_many(source, [itself], steps=3, injection=EACH["context"])[0].latents
    assert relative_error(context, plain) > 1e-4


class Seen(Taps):
    def __init__(self, sites):
        self.sites, self.shapes = frozenset(sites), {}

    def hidden(self, site, h):
        self.shapes[site] = tuple(h.shape)
        return h

    def qk(self, site, q, k):
        self.shapes[site] = tuple(q.shape), tuple(k.shape)
        return q, k


def test_taps_see_what_they_are_told(editor):
    """At every site of block 1, of three branches and 3 x 2 x 3 tokens; nothing changes."""
    latents = normal(1, wan.LATENTS, 3, 4, 6)
    conditions = conditions_of(editor, 3)
    sites = [site for site in editor.backbone.sites if site.startswith("block.1.")]
    seen = Seen(sites)
    truth = editor.predict(latents, 500, conditions)
    assert torch.equal(editor.predict(latents, 500, conditions, seen), truth)
    tokens = 3, 18, 2, 32
    assert list(seen.shapes.items()) == [
        # the value is computed before its query and key are given to the taps
        ("block.1.self.value", tokens),
        ("block.1.self", (tokens, tokens)),
        ("block.1.self.context", tokens),
        ("block.1.cross", (tokens, (3, wan.TOKENS, 2, 32))),
        ("block.1.ff", (3, 3, 2, 3, 64)),
    ]
    assert sites == [
        "block.1.self",
        "block.1.self.value",
        "block.1.self.context",
        "block.1.cross",
        "block.1.ff",
    ]


def conditions_of(editor, count, samples=None, **options):
    options = editor.backbone.options(options)
    texts = ["a dog", "static", "a red car"][:count]
    each = [editor.backbone.condition(text, FIRST, options) for text in texts]
    return type(each[0]).stack(each, samples or [0] * count)


@pytest.mark.parametrize("tokens", TOKENS)
def test_captured_passes_are_the_same_to_the_bit(editor, tokens):
    """Of one graph for all timesteps; a third pass replays what the second has captured."""
    backbone, given = editor.backbone, TOKENS[tokens]
    with torch.no_grad():
        three = conditions_of(editor, 3, [0, 1, 1], **given)
        alone, two = conditions_of(editor, 1, **given), conditions_of(editor, 2, [0, 0], **given)
        sites = frozenset().union(*backbone.groups.values())
        graphs = Graphs(backbone.predict, torch.device("cpu"), Taped(), strict=True)
        for t in (999, 995, 96):
            x, recorded = normal(2, wan.LATENTS, 3, 2, 4, seed=t), []
            shared = [f(x, t, three, ShareSource(sites, 3)) for f in (graphs, backbone.predict)]
            assert torch.equal(*shared)
            for forward in (graphs, backbone.predict):
                record = Record(sites, compact=True, stop=True)
                with suppress(Recorded):
                    forward(x[:1], t, alone, record)
                recorded.append(record.features)
            assert all(map(torch.equal, *map(flat, recorded)))
            replayed = [f(x[1:], t, two, Replay(recorded[0])) for f in (graphs, backbone.predict)]
            assert torch.equal(*replayed)


def flat(features):
    return [x for site in sorted(features) for x in features[site]]


def test_attention_to_the_source_too(editor):
    """Against the softmax over both, in float64: all tokens of a layer, frame 0 left out or not."""
    layer = editor.backbone.transformer.block[0].self
    x = normal(2, 3, 2, 3, 64)
    for first in (0, 6):
        without_first = frozenset({"context"}) if first else frozenset()
        taps = ShareSource([layer.context_site], 2)
        found = layer(x, taps=taps, without_first=without_first)
        recorder = Record([layer.context_site], compact=bool(first))
        alone = layer(x[:1], taps=recorder)
        again = layer(x[1:], taps=Replay(recorder.features), without_first=without_first)
        q, k = layer.project(x)
        v = layer.value(x)
        k = torch.cat([k[:1, first:], k[1:]], 1)
        v = torch.cat([v[:1, first:], v[1:]], 1)
        scores = torch.einsum("bnhd,bmhd->bhnm", q[1:].double(), k.double()) / 32**0.5
        y = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double()).flatten(2)
        truth = torch.nn.functional.linear(y, layer.out.weight.double(), layer.out.bias.double())
        assert relative_error(found[1:].double(), truth) <= 1e-6
        assert relative_error(again.double(), truth) <= 1e-6
        assert relative_error(found[:1], layer(x[:1], taps=NO_TAPS)) <= 1e-6
        assert torch.equal(alone, layer(x[:1], taps=NO_TAPS))


def test_a_prompt_is_encoded_once(editor, tmp_path):
    """And not at all if its embedding is known, from a file or from an edit before."""
    backbone = wan.tiny()
    calls = []
    backbone.text.register_forward_hook(lambda *given: calls.append(1))
    first = backbone.encode_text("a dog")
    assert torch.equal(backbone.encode_text("a dog"), first) and len(calls) == 1
    # the vectors of the text's own tokens, then zeros
    n = backbone.tokenize("a dog").shape[1]
    assert first.shape == (1, wan.TOKENS, wan.TEXT)
    assert (first[0, :n] != 0).any(1).all() and not first[0, n:].any()
    save_embeddings(path := tmp_path / "dog.safetensors", backbone.embeddings, "weights")
    other = wan.tiny()
    other.text.register_forward_hook(lambda *given: calls.append(2))
    other.embeddings.update(load_embeddings(path, "weights"))
    assert torch.equal(other.encode_text("a dog"), first) and calls == [1]
    for x in other.text.parameters():
        x.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="the text encoder, of 'a cat'"):
        other.encode_text("a cat")
    assert "a cat" not in other.embeddings
    with pytest.raises(InputError, match="clip_skip"):
        other.encode_text("a cat", 1)


def test_what_options_there_are(editor):
    options = editor.backbone.options
    assert options({}) == OPTIONS
    assert options({"map_tokens": "rest"}) == {**OPTIONS, "map_tokens": "rest"}
    with pytest.raises(InputError, match="map_tokens: 'none' is not one of all, rest"):
        options({"map_tokens": "none"})
    with pytest.raises(InputError, match="fps"):
        options({"fps": 24})


@pytest.mark.parametrize(
    "section, change, told",
    [
        ("transformer", {"in_channels": 7}, "in_channels is 7, that of vae 6"),
        ("transformer", {"text_dim": 21}, "text_dim is 21, that of text 20"),
        ("transformer", {"text_tokens": 9}, "text_tokens is 9, that of text 12"),
        ("transformer", {"clean_first_frame": False}, "clean_first_frame is false"),
        ("transformer", {"patch": [1, 1, 2]}, "is not square"),
        ("schedule", {"train_steps": 500}, "train_steps is 500, not 1000"),
        ("schedule", {"shift": 0.0}, "shift"),
        ("text", {"vocab_size": 100}, "has the id"),
    ],
)
def test_networks_that_do_not_fit(section, change, told, tmp_path):
    config = copy.deepcopy(wan.CONFIG)
    config[section].update(change)
    (tmp_path / "tokenizer").mkdir()
    umt5_tokenizer.write(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=told):
        with torch.device("meta"):
            networks = {name: build() for name, build in Wan.networks(config).items()}
        Wan.assemble(config, networks, Path(tmp_path), wan.DEFAULTS)


def test_bad_timesteps(editor):
    conditions = conditions_of(editor, 1)
    latents = normal(1, wan.LATENTS, 3, 4, 6)
    for t in (-1, 1000.5):
        with pytest.raises(InputError, match="t: "):
            editor.predict(latents, t, conditions)
    # a tensor is what a captured graph reads; a fraction is taken as it is
    told = editor.predict(latents, 937.25, conditions)
    assert torch.equal(editor.predict(latents, torch.tensor(937.25).double(), conditions), told)
    assert not torch.equal(editor.predict(latents, 937, conditions), told)


def test_half_precision(editor):
    """An edit in bfloat16: predictions stay float32, and the injection is the same by every way."""
    backbone = wan.tiny()
    half = backbone.meta_copy(torch.device("cpu"))
    for name in ("transformer", "text"):
        network = meta_copy(getattr(backbone, name), torch.device("cpu"), torch.bfloat16)
        network.load_state_dict(getattr(backbone, name).state_dict())
        half = type(half)(**{**vars(half), name: network})
    conditions = half.condition("a dog", FIRST, half.options({}))
    latents = normal(1, wan.LATENTS, 3, 4, 6)
    found = half.predict(latents.bfloat16(), 500, conditions)
    truth = backbone.predict(latents, 500, backbone.condition("a dog", FIRST, half.options({})))
    assert found.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert relative_error(found, truth) <= 2e-2
