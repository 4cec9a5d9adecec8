"""Injection: which steps, which sites, and that sharing, recording and replaying agree."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from anyv2v import NO_TAPS, Injection, InputError, Record, Replay, ShareSource, Taps
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.defaults import PUBLISHED_SETTINGS
from anyv2v.injection.fractions import Group, sites_per_step
from anyv2v.injection.taps import Recorded
from anyv2v.runtime.accounting import count
from tests.oracles import golden

FROZEN = Path(__file__).parent.parent / "goldens" / "i2vgen_sites.json"
SITES = golden.tensors("pnp_sites")


@pytest.mark.parametrize("case", golden.facts("injected_timesteps"), ids=str)
def test_injected_steps_equal_the_original(editor, case):
    steps = case["n_steps"]
    groups = (Group(frozenset({"a"}), case["fraction"]),)
    active = sites_per_step(groups, steps, 0, frozenset({"a"}))
    timesteps = editor.schedule.timesteps(steps)
    assert list(active) == list(range(steps))
    injected = [timesteps[step] for step, sites in active.items() if sites]
    assert injected == case["injected_timesteps"]


def test_skipped_steps_are_dropped_after_counting():
    groups = Injection(conv=0.2, spatial=0.2, temporal=0.5).groups(
        {"conv": frozenset("a"), "spatial": frozenset("b"), "temporal": frozenset("c")}
    )
    plan = sites_per_step(groups, 50, 1, frozenset("abc"))
    assert list(plan) == list(range(1, 50))
    assert [len(s) for s in plan.values()] == [3] * 9 + [1] * 15 + [0] * 25


def test_a_site_that_does_not_exist_is_refused():
    injection = Injection(0.2, 0.2, 0.5, sites={"conv": ["up.9.res.0"]})
    groups = injection.groups({"spatial": frozenset("b"), "temporal": frozenset("c")})
    with pytest.raises(InputError, match="no such site: up.9.res.0"):
        sites_per_step(groups, 10, 0, frozenset("bc"))


@pytest.mark.parametrize("name", ["conv", "spatial", "temporal"])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_fractions_outside_0_to_1_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}: {value} is not between 0 and 1"):
        Injection(**{name: value})


def test_groups_that_a_model_lacks_are_refused_unless_off():
    with pytest.raises(InputError, match="no group conv"):
        Injection(0.2, 0.2, 0.5).groups({"spatial": frozenset("b"), "temporal": frozenset("c")})
    off = Injection(0.0, 0.2, 0.5)
    groups = off.groups({"spatial": frozenset("b"), "temporal": frozenset("c")})
    assert len(groups) == 2


def test_site_names_are_frozen(editor):
    """To change a name that others rely on, change the list in the same commit."""
    assert sorted(editor.sites) == json.loads(FROZEN.read_text())


def test_default_groups_are_the_originals(editor):
    attention = {"spatial": "attentions", "temporal": "temp_attentions"}
    for group, theirs in attention.items():
        places = {
            name.split(".transformer_blocks")[0]
            for name in golden.facts("about")["injection_sites"]["sites"]
            if f".{theirs}." in name
        }
        ours = {
            f"up_blocks.{s.split('.')[1]}.{theirs}.{s.split('.')[3]}"
            for s in editor.backbone.groups[group]
        }
        assert ours == places
        assert all(s.endswith(".block.self") for s in editor.backbone.groups[group])
    assert editor.backbone.groups["conv"] == {"up.1.res.1"}


@pytest.fixture(scope="module")
def stacked(editor):
    """The golden's three branches [source, plain, edited] at t = 901."""
    with torch.no_grad():
        return editor.backbone.unet.condition(
            SITES["encoder_hidden_states"],
            SITES["image_embeddings"][:, 0],
            SITES["image_latents"],
            SITES["fps"],
        )


def rows(conditions, part):
    context = {site: (k[part], v[part]) for site, (k, v) in conditions.context.items()}
    latents, fps = conditions.latents[part], conditions.fps[part]
    return Conditions(context, latents, fps, torch.arange(len(fps)))


def every_default_site(editor):
    return frozenset().union(*editor.backbone.groups.values())


def test_injected_features_equal_the_original(editor, stacked):
    """Query and key of the source at every site, the residual feature before and after."""
    before = {}

    class Look(Plainly):
        def hidden(self, site, h):
            before[site] = h
            before[site + " after"] = self.source(h)
            return before[site + " after"]

        def qk(self, site, q, k):
            before[site] = super().qk(site, q, k)
            return before[site]

    out = editor.predict(SITES["unet_in"], 901, stacked, Look(every_default_site(editor), 3))
    assert golden.relative_error(out, SITES["unet_out"]) < 1e-5
    for when, theirs in (("up.1.res.1", "before"), ("up.1.res.1 after", "after")):
        truth = SITES[f"up_blocks.1.resnets.1.conv2.{theirs}"]
        assert golden.relative_error(before[when].permute(0, 3, 1, 2), truth) < 1e-5
    checked = 0
    for site in every_default_site(editor) - {"up.1.res.1"}:
        _, level, kind, layer, *_ = site.split(".")
        kind = {"spatial": "attentions", "temporal": "temp_attentions"}[kind]
        place = f"up_blocks.{level}.{kind}.{layer}.transformer_blocks.0.attn1"
        for x, name in zip(before[site], ("query", "key"), strict=True):
            # ours: (b f) n heads d, and b f (h w) heads d; theirs: rows, heads, tokens, d
            x = x.transpose(1, 2) if x.ndim == 4 else x.permute(0, 2, 3, 1, 4).flatten(0, 1)
            assert golden.relative_error(x, SITES[f"{place}.{name}"]) < 1e-5
            checked += 1
    assert checked == 32


def test_the_source_is_untouched_by_what_is_injected(editor, stacked):
    taps = ShareSource(every_default_site(editor), 3)
    out = editor.predict(SITES["unet_in"], 901, stacked, taps)
    plain = editor.predict(SITES["unet_in"], 901, stacked)
    assert golden.relative_error(out[:1], plain[:1]) < 1e-6
    assert golden.relative_error(out[1:], plain[1:]) > 1e-3


GROUPS = [("conv",), ("spatial",), ("temporal",), ("conv", "spatial", "temporal"), ()]


@pytest.mark.parametrize("groups", GROUPS, ids="+".join)
@pytest.mark.parametrize("branches", [1, 2], ids=["no guidance", "guidance"])
def test_sharing_equals_recording_and_replaying(editor, stacked, groups, branches):
    sites = frozenset().union(*(editor.backbone.groups[g] for g in groups))
    part = slice(0, 1 + branches)
    x, c = SITES["unet_in"][part], rows(stacked, part)
    shared = editor.predict(x, 901, c, ShareSource(sites, 1 + branches))[1:]
    record = Record(sites)
    editor.predict(x[:1], 901, rows(c, slice(0, 1)), record)
    assert set(record.features) == sites
    edit = slice(1, None)
    replayed = editor.predict(x[edit], 901, rows(c, edit), Replay(record.features))
    assert golden.relative_error(replayed, shared) < 1e-5


@pytest.mark.parametrize("groups", GROUPS, ids="+".join)
@pytest.mark.parametrize("branches", [1, 2], ids=["no guidance", "guidance"])
@pytest.mark.parametrize("compact", [False, True], ids=["qk", "compact"])
def test_every_saving_equals_the_plain_way(editor, stacked, groups, branches, compact):
    """The plain way computes everything for every row, and then throws away."""
    sites = frozenset().union(*(editor.backbone.groups[g] for g in groups))
    part = slice(0, 1 + branches)
    x, c = SITES["unet_in"][part], rows(stacked, part)
    truth = editor.predict(x, 901, c, Plainly(sites, 1 + branches))[1:]

    together = ShareSource(sites, 1 + branches)
    assert golden.relative_error(editor.predict(x, 901, c, together)[1:], truth) < 1e-5

    record = Record(sites, compact, stop=bool(sites))
    with suppress(Recorded):
        editor.predict(x[:1], 901, rows(c, slice(0, 1)), record)
    assert set(record.features) == sites
    edit = slice(1, None)
    replayed = editor.predict(x[edit], 901, rows(c, edit), Replay(record.features))
    assert golden.relative_error(replayed, truth) < 1e-5


class Plainly(Taps):
    """Sharing as the original does it, on features that were computed for all rows."""

    def __init__(self, sites, branches):
        self.sites, self.branches = frozenset(sites), branches

    def hidden(self, site, h):
        return self.source(h)

    def qk(self, site, q, k):
        # fewer rows than branches need are shared by all
        return q[: len(q) // self.branches], k[: len(k) // self.branches]


def cost(editor, x, c, taps=NO_TAPS) -> int:
    def run():
        with suppress(Recorded):
            editor.predict(x, 901, c, taps)

    return count(run).flops


def product(layer, tokens) -> int:
    return 2 * tokens * layer.in_features * layer.out_features


def test_what_rows_take_over_is_not_projected_for_them(editor, stacked):
    site = "up.2.spatial.0.block.self"
    x = SITES["unet_in"]
    plain = cost(editor, x, stacked, Plainly({site}, 3))
    shared = cost(editor, x, stacked, ShareSource({site}, 3))
    layer = editor.backbone.unet.get_submodule(site)
    frames, height, width = x.shape[2:]
    # half of the full resolution, query and key, two branches
    tokens = 2 * frames * (height // 2) * (width // 2)
    assert plain - shared == product(layer.q, tokens) + product(layer.k, tokens)


def test_convolutions_are_not_computed_for_rows_that_discard_them(editor, stacked):
    site, x = "up.1.res.1", SITES["unet_in"]
    plain = cost(editor, x, stacked, Plainly({site}, 3))
    shared = cost(editor, x, stacked, ShareSource({site}, 3))
    block = editor.backbone.unet.get_submodule(site)
    frames, height, width = x.shape[2:]
    places = 2 * frames * (height // 4) * (width // 4)
    convolved = sum(2 * places * conv.weight.numel() for conv in (block.conv1, block.conv2))
    assert plain - shared == convolved + product(block.time, 2)
    record = Record({site})
    editor.predict(x[:1], 901, rows(stacked, slice(0, 1)), record)
    edit = slice(1, None)
    replayed = cost(editor, x[edit], rows(stacked, edit), Replay(record.features))
    without = cost(editor, x[edit], rows(stacked, edit))
    assert without - replayed == convolved + product(block.time, 2)


def test_keys_and_values_of_the_context_are_computed_once(editor, stacked):
    called = []
    crosses = [m for m in editor.backbone.unet.modules() if getattr(m, "is_cross", False)]
    assert len(crosses) == 16
    hooks = [
        layer.register_forward_hook(lambda *_: called.append(1))
        for cross in crosses
        for layer in (cross.k, cross.v)
    ]
    try:
        editor.predict(SITES["unet_in"], 901, stacked)
        editor.predict(SITES["unet_in"], 881, stacked)
        assert called == []
        editor.condition("x", np.zeros((64, 64, 3), np.uint8), frames=3, size=(64, 64))
        assert len(called) == 32
    finally:
        for hook in hooks:
            hook.remove()


def test_branches_are_one_until_they_read_their_contexts(editor, stacked):
    x = SITES["unet_in"][1:2]
    both = rows(stacked, slice(1, 3))
    twice = both.latents[:1].repeat(2, 1, 1, 1, 1)
    apart = Conditions(both.context, twice, both.fps, torch.tensor([0, 1]))
    shared = Conditions(both.context, both.latents[:1], both.fps[:1], torch.tensor([0, 0]))
    truth = editor.predict(x.repeat(2, 1, 1, 1, 1), 901, apart)
    assert golden.relative_error(editor.predict(x, 901, shared), truth) < 1e-5
    site = "down.0.spatial.0.block.cross"
    until = cost(editor, x, rows(stacked, slice(1, 2)), Record({site}, stop=True))
    projected = product(editor.backbone.unet.get_submodule(site).q, x[0, 0].numel())
    saved = cost(editor, x.repeat(2, 1, 1, 1, 1), apart) - cost(editor, x, shared)
    # the embedding of the timestep is computed once too
    assert saved == until - projected > 0
    # where something is done before that, every branch has its own row from the start
    for early in ("transformer_in.block.self", "down.0.spatial.0.block.self"):
        twice = editor.predict(x, 901, shared, ShareSource({early}, 2))
        plain = editor.predict(x.repeat(2, 1, 1, 1, 1), 901, apart, ShareSource({early}, 2))
        assert torch.equal(twice, plain)


def test_sites_are_in_the_order_of_the_forward_pass(editor, stacked):
    seen = []

    class Watch(Taps):
        def hidden(self, site, h):
            seen.append(site)
            return h

        def qk(self, site, q, k):
            seen.append(site)
            return q, k

    editor.predict(SITES["unet_in"][:1], 901, rows(stacked, slice(0, 1)), Watch())
    assert tuple(seen) == editor.backbone.sites


def test_every_site_alone_changes_the_output(editor, stacked):
    part = slice(0, 2)
    x, c = SITES["unet_in"][part], rows(stacked, part)
    plain = editor.predict(x, 901, c)
    for site in sorted(editor.sites):
        out = editor.predict(x, 901, c, ShareSource({site}, 2))
        assert golden.relative_error(out[:1], plain[:1]) < 3e-6, site
        assert golden.relative_error(out[1:], plain[1:]) > 1e-6, site


def test_taps_that_change_nothing_are_the_plain_network(editor, stacked):
    class Watch(Taps):
        seen = set()

        def hidden(self, site, h):
            self.seen.add(site)
            return super().hidden(site, h)

        def qk(self, site, q, k):
            self.seen.add(site)
            return super().qk(site, q, k)

    watch = Watch()
    out = editor.predict(SITES["unet_in"], 901, stacked, watch)
    assert torch.equal(out, editor.predict(SITES["unet_in"], 901, stacked, NO_TAPS))
    assert watch.seen == editor.sites


def test_a_batch_that_is_not_whole_branches_is_refused(editor, stacked):
    part = slice(0, 2)
    taps = ShareSource(every_default_site(editor), 3)
    with pytest.raises(ValueError, match="batch of 2 is not a multiple of 3 branches"):
        editor.predict(SITES["unet_in"][part], 901, rows(stacked, part), taps)


def test_a_block_that_forgets_its_taps_fails_at_once(editor):
    block = editor.backbone.unet.up[1].res[1]
    with pytest.raises(TypeError, match="taps"):
        block(torch.zeros(1, 2, 2, block.conv1.in_channels), None)


def test_the_default_edit_runs_as_many_rows_as_the_documents_say():
    groups = Injection(**PUBLISHED_SETTINGS["injection"]).groups(
        {name: frozenset({name}) for name in ("conv", "spatial", "temporal")}
    )
    known = frozenset({"conv", "spatial", "temporal"})
    plan = sites_per_step(groups, 50, 0, known)
    assert sum(3 if sites else 2 for sites in plan.values()) == 125
    page = Path(__file__).parents[2] / "docs" / "how-it-works.md"
    assert "125 single-branch" in page.read_text(encoding="utf-8")
