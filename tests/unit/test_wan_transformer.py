"""Wan's transformer beyond parity: branches, timesteps, dtypes, injection, memory, refusals."""

from contextlib import suppress
from dataclasses import asdict, replace

import pytest
import torch

from anyv2v import InputError, Record, Replay, ShareSource, Taps
from anyv2v.backbones.wan.conditioning import Conditions
from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.rotary import axis_dims, rotate, rotations
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.config import section
from anyv2v.injection.taps import Recorded
from anyv2v.kernels.attention import TABLE
from anyv2v.runtime.accounting import count, fake_mode
from anyv2v.runtime.meta import meta_copy
from tests.draw import normal, redraw
from tests.oracles.golden import relative_error
from tests.oracles.wan_sizes import TI2V_5B, TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return redraw(Transformer(TINY), seed=3)


@pytest.fixture(scope="module")
def branches(network):
    with torch.no_grad():
        return [network.condition(normal(1, 5, TINY.text_dim, seed=i)) for i in range(3)]


def latents(samples=2, frames=3):
    return normal(samples, TINY.in_channels, frames, 8, 6, seed=4)


T = torch.tensor([500, 500])


# branches and timesteps


@torch.no_grad()
def test_a_batch_equals_each_branch_alone(network, branches):
    """Two samples at timesteps of their own, of which the second has two branches."""
    x, t, samples = latents(), torch.tensor([301, 701]), [0, 1, 1]
    together = network(x, t, Conditions.stack(branches, samples))
    assert together.shape == (3, TINY.out_channels, 3, 8, 6)
    for i, sample in enumerate(samples):
        alone = network(x[sample : sample + 1], t[sample : sample + 1], branches[i])
        assert relative_error(together[i : i + 1], alone) <= 2e-6
    assert relative_error(together[2:], together[1:2]) > 1e-2


@torch.no_grad()
def test_one_timestep_is_that_of_all_samples_in_any_number_type(network, branches):
    x, conditions = latents(), Conditions.stack(branches[:2])
    truth = network(x, torch.tensor([937, 937]), conditions)
    for t in (
        torch.tensor(937),
        torch.tensor(937.0, dtype=torch.float64),
        torch.tensor([937.0] * 2),
    ):
        assert torch.equal(network(x, t, conditions), truth)
    assert relative_error(network(x, torch.tensor(936), conditions), truth) > 1e-5


@torch.no_grad()
def test_the_first_frame_is_told_timestep_zero(network, branches):
    """What is said of one frame is what all frames are told where none is clean."""
    plain = Transformer(replace(TINY, clean_first_frame=False))
    plain.load_state_dict(network.state_dict())
    x, seen = latents(1), {}
    for name, each in (("clean", network), ("plain", plain)):
        hook = each.block[0].self.q.register_forward_hook(
            lambda _, given, out, name=name: seen.setdefault(name, []).append(given[0])
        )
        for t in (0, 500):
            each(x, torch.tensor(t), branches[0])
        hook.remove()
    (zero, some), (all_zero, all_some) = seen["clean"], seen["plain"]
    assert torch.equal(zero, all_zero)
    assert torch.equal(some[:, :1], all_zero[:, :1])
    assert torch.equal(some[:, 1:], all_some[:, 1:])
    assert not torch.isclose(all_some[:, :1], all_zero[:, :1]).all()


@torch.no_grad()
def test_a_single_frame(network, branches):
    """It is the clean one: its prediction does not depend on the timestep."""
    each = [network(latents(1, 1), torch.tensor(t), branches[0]) for t in (0, 500)]
    assert torch.equal(*each)


@torch.no_grad()
def test_texts_are_padded_with_zeros_that_are_attended_to(network):
    text = normal(1, 5, TINY.text_dim)
    padded = torch.cat([text, torch.zeros(1, 7, TINY.text_dim)], 1)
    found, truth = network.condition(text), network.condition(padded)
    for site, (key, value) in found.context.items():
        assert key.shape == value.shape == (1, 12, TINY.heads, TINY.head_dim)
        assert torch.equal(key, truth.context[site][0])
        assert torch.equal(value, truth.context[site][1])
    assert found.context.keys() == {f"block.{i}.cross" for i in range(TINY.layers)}
    short = Conditions(
        {s: (k[:, :5], v[:, :5]) for s, (k, v) in found.context.items()}, found.samples
    )
    x = latents(1)
    assert relative_error(network(x, T[:1], short), network(x, T[:1], found)) > 1e-3
    with pytest.raises(InputError, match="text: 13 vectors are over 12"):
        network.condition(normal(1, 13, TINY.text_dim))


# dtypes


@torch.no_grad()
def test_what_is_added_up_stays_float32_in_bfloat16(network, branches):
    """The same rounded weights in float32 are the truth."""
    half = meta_copy(network, CPU, torch.bfloat16)
    half.load_state_dict(network.state_dict())
    whole = meta_copy(network, CPU)
    whole.load_state_dict(half.state_dict())
    # a timestep that bfloat16 would round to 936
    t = torch.tensor([937])
    x, text, seen = latents(1).bfloat16(), normal(1, 5, TINY.text_dim).bfloat16(), []
    for each in (whole, half):
        for module in (each.time_projection, each.out):
            module.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    truth = whole(x.float(), t, whole.condition(text.float()))
    found = half(x, t, half.condition(text))
    assert all(x.dtype == torch.float32 for both in seen for x in both)
    # the embedding of the time is not rounded at all
    assert relative_error(seen[2][0], seen[0][0]) <= 1e-7
    assert relative_error(seen[2][1], seen[0][1]) <= 1e-7
    assert found.dtype == torch.float32
    error = relative_error(found, truth)
    print(f"bfloat16: {error:.1e}")
    assert 1e-3 < error <= 6e-3


@torch.no_grad()
def test_queries_and_keys_are_rounded_once(network):
    """Norm and rotation in between are those of float64, but for the products."""
    half = meta_copy(network, CPU, torch.bfloat16)
    half.load_state_dict(network.state_dict())
    layer, x = half.block[0].self, normal(1, 3, 4, 3, TINY.dim).bfloat16()
    by = rotations((3, 4, 3), TINY.head_dim, CPU)
    for product, norm, found in zip(
        (layer.q, layer.k), (layer.norm_q, layer.norm_k), layer.project(x), strict=True
    ):
        y = product(x).double()
        y = y / (y.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * norm.weight.double()
        truth = rotate(y.unflatten(-1, (TINY.heads, -1)), by).flatten(1, 3)
        assert found.dtype == torch.bfloat16
        assert relative_error(found, truth.bfloat16()) <= 1e-4


# positions


def test_axes_of_the_published_heads():
    assert axis_dims(128) == (44, 42, 42)
    assert axis_dims(32) == (12, 10, 10)


def test_rotation_is_that_of_each_axis():
    """Angles by their definition, for a token that is at another position on each axis."""
    x = normal(1, 4, 5, 6, 2, 32).double()
    found = rotate(x, rotations((4, 5, 6), 32, CPU))
    place, start = (3, 1, 5), 0
    for position, dim in zip(place, (12, 10, 10), strict=True):
        for pair in range(dim // 2):
            angle = torch.tensor(position / 10000 ** (2 * pair / dim), dtype=torch.float64)
            first, second = x[0][place][:, start + 2 * pair : start + 2 * pair + 2].unbind(-1)
            turned = (
                first * angle.cos() - second * angle.sin(),
                first * angle.sin() + second * angle.cos(),
            )
            mine = found[0][place][:, start + 2 * pair : start + 2 * pair + 2].unbind(-1)
            assert torch.allclose(torch.stack(mine), torch.stack(turned), rtol=1e-12, atol=1e-12)
        start += dim


def test_scores_depend_on_distances_alone():
    """In float32 as well, at the far end of the positions."""
    q, k = normal(2, 1, 1, 1, 1, 1, 32).unbind()

    def score(query, key):
        grid = rotations((1024, 2, 3), 32, CPU)
        q_, k_ = (rotate(x, grid[place][None, None, None]) for x, place in ((q, query), (k, key)))
        return (q_ * k_).sum()

    truth = score((3, 0, 2), (1, 1, 1))
    assert torch.isclose(score((1023, 0, 1), (1021, 1, 0)), truth, rtol=1e-4)
    assert not torch.isclose(score((1023, 0, 1), (1020, 1, 0)), truth, rtol=1e-2)


# injection


def sharing(sites, branches):
    """[source, negative, edit]: the source is the first sample."""
    return ShareSource(sites, 3), Conditions.stack(branches, [0, 1, 1])


@torch.no_grad()
def test_sites_are_in_the_order_of_the_forward_pass(network, branches):
    class Look(Taps):
        seen = []

        def feature(self, site, feature):
            self.seen.append(site)
            return super().feature(site, feature)

    network(latents(1), T[:1], branches[0], Look())
    assert tuple(Look.seen) == network.sites
    kinds = "self", "self.value", "self.context", "cross", "ff"
    assert network.sites[:5] == tuple(f"block.0.{kind}" for kind in kinds)
    assert len(network.sites) == 5 * TINY.layers


@torch.no_grad()
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "ff", ""])
def test_replaying_equals_sharing(network, branches, kind, compact):
    sites = [site for site in network.sites if site.endswith(kind)]
    taps, stacked = sharing(sites, branches)
    x = latents()
    shared = network(x, T, stacked, taps)
    recorder = Record(sites, compact, stop=True)
    with suppress(Recorded):
        network(x[:1], T[:1], branches[0], recorder)
    if kind == "self":
        tokens, channels = 3 * 4 * 3, TINY.dim
        sizes = [tokens * channels] if compact else [tokens * channels] * 2
        assert [[y.numel() for y in recorder.features[s]] for s in sites] == [sizes] * len(sites)
    edits = Conditions.stack(branches[1:], [0, 0])
    replayed = network(x[1:], T[:1], edits, Replay(recorder.features))
    assert relative_error(replayed, shared[1:]) <= 1e-6
    assert relative_error(network(x[1:], T[:1], edits), shared[1:]) > 1e-2
    # the source itself is as it is alone
    assert relative_error(shared[:1], network(x[:1], T[:1], branches[0])) <= 1e-6


@torch.no_grad()
def test_hooks_see_what_is_multiplied(network, branches):
    """The output follows from query, key and value by attention alone; and hooks replace it."""
    seen = {}

    class Look(Taps):
        sites = frozenset({"block.0.self", "block.0.cross"})

        def qkv(self, site, q, k, v):
            weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(TINY.head_dim**0.5).softmax(-1)
            mixed = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
            seen[site] = network.get_submodule(site).out(mixed)
            return q, k, v

        def output(self, site, y):
            assert relative_error(y, seen[site]) <= 1e-6
            return torch.zeros_like(y)

    x = latents(1)
    found = network(x, T[:1], branches[0], Look())
    assert {y.shape for y in seen.values()} == {(1, 36, TINY.dim)}
    assert relative_error(found, network(x, T[:1], branches[0])) > 1e-2


@torch.no_grad()
def test_source_that_replaces_values_and_hidden_features(network, branches):
    """Of a source that is in the batch; its own prediction stays as it is."""

    class Source(Taps):
        branches = 3

        def hidden(self, site, h):
            return self.source(h)[:1]

        def qkv(self, site, q, k, v):
            return q, k, self.source(v)

    x, stacked = latents(), Conditions.stack(branches, [0, 1, 1])
    plain, found = network(x, T, stacked), network(x, T, stacked, Source())
    assert relative_error(found[:1], plain[:1]) <= 1e-6
    assert relative_error(found[1:], plain[1:]) > 1e-2


def test_features_of_another_size_are_refused(network, branches):
    recorder = Record(["block.0.ff"])
    network(latents(1), T[:1], branches[0], recorder)
    with pytest.raises(ValueError, match="do not fit"):
        network(latents(1, 2), T[:1], branches[0], Replay(recorder.features))


# size


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_tensor_of_the_published_size_is_a_map(device):
    """At 1280x704 and 121 frames a block needs no more than its feed-forward network does."""
    config, (frames, height, width) = replace(TI2V_5B, layers=1), (31, 44, 80)
    tokens, rows, half = frames * height * width // 4, 2, torch.bfloat16
    with torch.device("meta"):
        network = Transformer(config).to(half)
    with fake_mode(device) as where:
        network = meta_copy(network, where)
        conditions = network.condition(torch.empty(rows, 512, 4096, dtype=half, device=where))
        x = torch.empty(rows, 48, frames, height, width, dtype=half, device=where)
        t = torch.empty((), dtype=torch.int64, device=where)
        cost = count(lambda: network(x, t, conditions))
    # the tokens in float32, the network's input, and its hidden vectors before and after GELU
    need = rows * tokens * (4 * 3072 + 2 * 3072 + 2 * 2 * 14336)
    assert need <= cost.peak_bytes <= 1.05 * need
    # tokens times the weights of block, embedding and output; attention to tokens and text
    products = 2 * tokens * (6 * 3072**2 + 2 * 3072 * 14336 + 2 * 192 * 3072)
    attention = 4 * tokens * (tokens + 512) * 3072
    assert cost.flops == pytest.approx(rows * (products + attention), rel=1e-3)


def test_kernels_take_attention_of_the_published_size():
    """A clip of 121 frames at 1280x704: nothing is too large, with one map for three branches."""
    one = torch.empty(1, 1, 1, 128, dtype=torch.bfloat16)
    q, v = one.expand(1, 27_280, 24, 128), one.expand(3, 27_280, 24, 128)
    if not torch.cuda.is_available():
        assert {i.name: i.refuses(q, q, v) for i in TABLE} == dict.fromkeys(
            ("triton", "sdpa", "reference")
        )


def test_nothing_is_read_from_the_device(network):
    """Tensors on the meta device have no numbers that the host could ask for."""
    meta = meta_copy(network, torch.device("meta"))
    with torch.device("meta"):
        conditions = Conditions.stack([meta.condition(torch.empty(1, 5, TINY.text_dim))] * 2)
        out = meta(torch.empty(2, 8, 3, 8, 6), torch.empty((), dtype=torch.int64), conditions)
    assert out.shape == (2, 8, 3, 8, 6)


# refusals


def test_latents_that_are_no_whole_patches_are_refused(network, branches):
    with pytest.raises(
        InputError, match=r"latents: \(3, 7, 6\) are not whole patches of \(1, 2, 2\)"
    ):
        network(normal(1, 8, 3, 7, 6), T[:1], branches[0])
    small = Transformer(replace(TINY, positions=3))
    with pytest.raises(InputError, match="latents: .* have 4 patches along one axis, more than 3"):
        small(normal(1, 8, 3, 8, 6), T[:1], branches[0])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"dim": 66}, "dim 66 is not 24 heads of an even number"),
        ({"dim": 24}, "dim 24 is not 24 heads of an even number"),
        ({"time_dim": 255}, "time_dim 255 is not an even number"),
        ({"patch": [2, 2]}, r"patch \(2, 2\) is not \(1, height, width\)"),
        ({"patch": [2, 2, 2]}, r"patch \(2, 2, 2\) is not \(1, height, width\)"),
        ({"layers": 65}, "layers: 65 is not a whole number from 1 to 64"),
        ({"clean_first_frame": 1}, "clean_first_frame: 1 is not of type bool"),
        ({"image_dim": 1280}, "image_dim is not known"),
    ],
)
def test_configs_that_are_refused(wrong, told):
    values = {**asdict(TI2V_5B), "patch": [1, 2, 2]}
    assert section({"transformer": values}, "transformer", TransformerConfig) == TI2V_5B
    with pytest.raises(InputError, match=told):
        section({"transformer": {**values, **wrong}}, "transformer", TransformerConfig)
