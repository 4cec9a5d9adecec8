"""Taps of one's own: what they see and replace, against attention written out in float64."""

import inspect
import math

import pytest
import torch

from anyv2v import NO_TAPS, InputError, Record, Replay, ShareSource, Taps
from anyv2v.injection.taps import Capturable, Chain, Recorded, repeat_to_batch
from anyv2v.nn.attention import Attention, TemporalAttention
from anyv2v.nn.resnet import ResnetBlock
from anyv2v.pipeline.cuda_graphs import Graphs
from tests.oracles import golden
from tests.unit.test_graphs import CPU, Taped

SITES = golden.tensors("pnp_sites")
BRANCHES, FRAMES, TOKENS, DIM = 3, 2, 5, 8


def draw(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def drawn(layer):
    for x in layer.double().requires_grad_(False).parameters():
        x.copy_(draw(*x.shape) / math.sqrt(x[0].numel()))
    return layer


def spatial():
    layer = drawn(Attention("a", DIM, 2, 4))
    return layer, draw(BRANCHES * FRAMES, TOKENS, DIM), None


def cross():
    layer = drawn(Attention("a", DIM, 2, 4, context_dim=6))
    return layer, draw(BRANCHES, FRAMES * TOKENS, DIM), layer.read(draw(BRANCHES, 7, 6))


def temporal():
    layer = drawn(TemporalAttention("a", DIM, 2, 4))
    return layer, draw(BRANCHES, FRAMES, TOKENS, DIM), None


KINDS = pytest.mark.parametrize("make", [spatial, cross, temporal])


def projected(layer, x, context):
    """Query, key and value of all branches, (g, rest, tokens, heads, d), by their definition."""

    def heads(x, weight):
        y = (x @ weight.T).unflatten(-1, (2, 4))
        # along the frames each place is a row by itself
        y = y.transpose(1, 2) if y.ndim == 5 else y[:, None]
        return y.reshape(BRANCHES, -1, *y.shape[2:])

    if context is None:
        return [heads(x, part.weight) for part in (layer.q, layer.k, layer.v)]
    return [heads(x, layer.q.weight), *(y[:, None] for y in context)]


def attended(layer, q, k, v, shape):
    scores = torch.einsum("grnhd,grmhd->grhnm", q, k) / 2
    mixed = torch.einsum("grhnm,grmhd->grnhd", scores.softmax(-1), v).flatten(-2)
    y = mixed @ layer.out.weight.T + layer.out.bias
    if len(shape) == 4:
        y = y.transpose(1, 2)
    return y.reshape(shape)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def of_source(x):
    """By the definition: the first branch in place of each, (g, ...)."""
    return x[:1].expand_as(x)


class Own(Taps):
    branches = BRANCHES


class SourceValues(Own):
    def qkv(self, site, q, k, v):
        return q, k, self.source(v)


class SourceQueries(Own):
    def qk(self, site, q, k):
        return self.source(q), k


class SharedQueriesAndKeys(Own):
    def qk(self, site, q, k):
        return q[: len(q) // BRANCHES], k[: len(k) // BRANCHES]


class SourceTokens(Own):
    """The first two tokens of keys and values are the source's."""

    def qkv(self, site, q, k, v):
        k, v = k.clone(), v.clone()
        k[:, :2], v[:, :2] = self.source(k)[:, :2], self.source(v)[:, :2]
        return q, k, v


def first_two(x):
    x = x.clone()
    x[:, :, :2] = x[:1, :, :2]
    return x


TRUTHS = {
    Own: lambda q, k, v: (q, k, v),
    SourceValues: lambda q, k, v: (q, k, of_source(v)),
    SourceQueries: lambda q, k, v: (of_source(q), k, v),
    SharedQueriesAndKeys: lambda q, k, v: (of_source(q), of_source(k), v),
    SourceTokens: lambda q, k, v: (q, first_two(k), first_two(v)),
}


@KINDS
@pytest.mark.parametrize("taps", TRUTHS, ids=lambda taps: taps.__name__)
def test_query_key_and_value_may_be_replaced(make, taps):
    layer, x, context = make()
    truth = attended(layer, *TRUTHS[taps](*projected(layer, x, context)), x.shape)
    assert close(layer(x, context, taps=taps()), truth)
    if taps is not Own:
        assert not close(layer(x, context, taps=NO_TAPS), truth)


@KINDS
def test_the_output_may_be_replaced_before_it_is_added(make):
    layer, x, context = make()
    plain = layer(x, context, taps=NO_TAPS)

    class Halves(Own):
        def output(self, site, y):
            assert site == "a" and close(y, plain)
            return self.source(y) / 2

    truth = attended(layer, *projected(layer, x, context), x.shape).unflatten(0, (BRANCHES, -1))
    assert close(layer(x, context, taps=Halves()), of_source(truth).flatten(0, 1) / 2)


def test_an_output_without_anything_is_a_layer_without_weights(editor):
    site, x = "up.2.temporal.0.block.self", SITES["unet_in"][:1]
    unet = editor.backbone.unet
    told = (SITES["encoder_hidden_states"], SITES["image_embeddings"][:, 0], SITES["image_latents"])
    one = unet.condition(*(y[:1] for y in (*told, SITES["fps"])))
    seen = []

    class Zero(Taps):
        def output(self, at, y):
            seen.append(at)
            return 0 * y if at == site else y

    found = editor.predict(x, 901, one, Zero())
    assert seen == [at for at in editor.backbone.sites if ".res." not in at]
    out = unet.get_submodule(site).out
    kept = out.weight.clone(), out.bias.clone()
    try:
        out.weight.zero_(), out.bias.zero_()
        assert golden.relative_error(editor.predict(x, 901, one), found) < 1e-6
    finally:
        out.weight.copy_(kept[0]), out.bias.copy_(kept[1])
    assert golden.relative_error(editor.predict(x, 901, one), found) > 1e-4


def resnet():
    block = drawn(ResnetBlock("a", DIM, DIM, groups=2, eps=1e-5, time_dim=6))
    return block, draw(BRANCHES * FRAMES, 2, 4, DIM), draw(BRANCHES, 6)


def test_residual_features_may_be_replaced_or_shared():
    block, x, emb = resnet()
    residual = (block(x, emb, taps=NO_TAPS) - x).unflatten(0, (BRANCHES, -1))
    truth = x + of_source(residual).flatten(0, 1)

    class Repeats(Own):
        def hidden(self, site, h):
            return self.source(h)

    class Shares(Own):
        def hidden(self, site, h):
            return h[:FRAMES]

    for taps in (Repeats(), Shares(), ShareSource(["a"], BRANCHES)):
        assert close(block(x, emb, taps=taps), truth)


def test_features_that_do_not_fit_are_refused():
    block, x, emb = resnet()

    class Short(Own):
        def hidden(self, site, h):
            return h[:4]

    with pytest.raises(ValueError, match=r"hidden gave .*\(4, 2, 4, 8\) at a, not .*\(6, 2"):
        block(x, emb, taps=Short())
    with pytest.raises(ValueError, match="features .* do not fit"):
        block(x, emb, taps=Replay({"a": (x[:2, :1],)}))
    with pytest.raises(ValueError, match="batch of 6 is not a multiple of 4 branches"):
        ShareSource(["a"], 4).source(x)


def test_taps_are_called_at_their_sites_alone():
    layer, x, _ = spatial()
    block, y, emb = resnet()

    class Fails(Taps):
        sites = frozenset({"b"})

        def feature(self, site, feature):
            raise AssertionError(site)

        output = feature

    assert close(layer(x, taps=Fails()), layer(x, taps=NO_TAPS))
    assert close(block(y, emb, taps=Fails()), block(y, emb, taps=NO_TAPS))
    for module, args in ((layer, (x,)), (block, (y, emb))):
        module.site = "b"
        with pytest.raises(AssertionError, match="b"):
            module(*args, taps=Fails())


class Noted(SourceValues):
    """Whose rows are counted, by `hidden` and `qkv` or by a `feature` of its own."""

    def __init__(self, sites=None):
        self.sites, self.rows = sites, []

    def hidden(self, site, h):
        self.rows.append(len(h))
        return 2 * h

    def qkv(self, site, q, k, v):
        self.rows += [len(q), len(k), len(v)]
        return super().qkv(site, q, k, v)


class NotedByFeature(Noted):
    def feature(self, site, feature):
        (*others, last) = tensors = feature.compute()
        assert feature.batch == len(last)
        self.rows += map(len, tensors)
        return (*others, self.source(last)) if others else (2 * last,)


@KINDS
@pytest.mark.parametrize("own", [Noted, NotedByFeature])
def test_after_the_injection_the_callers_taps_see_all_rows(make, own):
    layer, x, context = make()
    q, k, v = projected(layer, x, context)
    truth = attended(layer, of_source(q), of_source(k), of_source(v), x.shape)
    for sites in (None, frozenset("a")):
        taps = own(sites)
        both = Chain(ShareSource(["a"], BRANCHES), taps)
        assert both.sites == sites
        assert close(layer(x, context, taps=both), truth)
        assert taps.rows == [len(x)] * 3
    elsewhere = Chain(ShareSource(["b"], BRANCHES), own())
    alone = attended(layer, q, k, of_source(v), x.shape)
    assert close(layer(x, context, taps=elsewhere), alone)
    unseen = Chain(ShareSource(["a"], BRANCHES), own(frozenset("b")))
    assert unseen.sites == {"a", "b"} and unseen.then.rows == []
    shared = attended(layer, of_source(q), of_source(k), v, x.shape)
    assert close(layer(x, context, taps=unseen), shared)


@pytest.mark.parametrize("own", [Noted, NotedByFeature])
def test_the_same_of_residual_features(own):
    block, x, emb = resnet()
    taps = own()
    residual = (block(x, emb, taps=NO_TAPS) - x)[:FRAMES].repeat(BRANCHES, 1, 1, 1)
    assert close(block(x, emb, taps=Chain(ShareSource(["a"], BRANCHES), taps)), x + 2 * residual)
    assert taps.rows == [len(x)]


@KINDS
@pytest.mark.parametrize("compact", [False, True])
def test_a_record_comes_before_the_callers_taps(make, compact):
    """What is kept is the layer's own, what goes on is the caller's."""
    layer, x, context = make()
    record, alone = Record(["a"], compact), Record(["a"], compact)
    found = layer(x, context, taps=Chain(record, SourceQueries()))
    assert close(found, layer(x, context, taps=SourceQueries()))
    layer(x, context, taps=alone)
    assert all(map(torch.equal, record.features["a"], alone.features["a"]))


@KINDS
def test_the_callers_taps_may_be_those_of_the_package(make):
    layer, x, context = make()
    q, k, v = projected(layer, x, context)
    first = SourceValues()
    record = Record(["a"], compact=True)
    layer(x, context, taps=Chain(SourceQueries(), record))
    # not the compact form: it would be made of queries that are not the source's
    again = layer(x, context, taps=Chain(first, Replay(record.features)))
    assert close(again, attended(layer, of_source(q), k, of_source(v), x.shape))
    shared = layer(x, context, taps=Chain(first, ShareSource(["a"], BRANCHES)))
    truth = attended(layer, of_source(q), of_source(k), of_source(v), x.shape)
    assert close(shared, truth)


@KINDS
def test_outputs_go_from_one_to_the_other(make):
    layer, x, context = make()

    class Adds(Taps):
        def output(self, site, y):
            return y + 1

    class Doubles(Taps):
        def output(self, site, y):
            return 2 * y

    plain = layer(x, context, taps=NO_TAPS)
    assert close(layer(x, context, taps=Chain(Adds(), Doubles())), 2 * (plain + 1))
    Adds.sites = frozenset()
    assert close(layer(x, context, taps=Chain(Adds(), Doubles())), 2 * plain)


def test_only_what_promises_is_captured():
    """A subclass that overrides something would not be called when a graph is replayed."""
    kept = {"a": (torch.zeros(2),)}

    class Heir(Replay):
        def feature(self, site, feature):
            return super().feature(site, feature)

    class Silent(Heir):
        pass

    class Promises(Heir):
        def cache_key(self):
            return "heir"

    every = [NO_TAPS, ShareSource(["a"], 2), Record(["a"]), Replay(kept), Promises(kept)]
    others = [Taps(), Capturable(), Heir(kept), Silent(kept), Chain(NO_TAPS, NO_TAPS)]
    for captured, kinds in ((2, every), (0, others)):
        for taps in kinds:
            backend, seen = Taped(), []
            graphs = Graphs(
                lambda x, t, c, taps, seen=seen: (seen.append(taps), x + t)[1],
                CPU,
                backend,
                strict=True,
            )
            for t in (3, 2, 1):
                assert torch.equal(graphs(torch.ones(2), t, None, taps), torch.ones(2) + t)
            # once to warm up and once to capture, or each time the very object
            assert len(seen) == (captured or 3), taps
            assert captured or all(x is taps for x in seen)


def test_rows_that_are_shared_are_repeated_whole():
    x = draw(2, 3)
    assert repeat_to_batch(x, 2) is x
    assert torch.equal(repeat_to_batch(x, 6), torch.cat([x, x, x]))
    for batch in (1, 3, 5):
        with pytest.raises(ValueError, match=f"batch 2 cannot be shared by a batch of {batch}$"):
            repeat_to_batch(x, batch)


def test_an_author_meets_few_names():
    """Those of `Taps`, its own included; who decides what is computed meets `Feature` besides."""
    members = {n for n in (*vars(Taps), *Taps.__annotations__) if not n.startswith("_")}
    assert len({"Taps", *members}) <= 12
    assert {n for n in members if inspect.isfunction(vars(Taps)[n])} == {
        "active",
        "feature",
        "hidden",
        "output",
        "qk",
        "qkv",
        "source",
    }
    taps = Taps()
    assert (taps.sites, taps.step, taps.steps, taps.branches) == (None, -1, 0, 1)
    assert taps.active(3, 50) is True


@pytest.mark.parametrize(
    ("method", "wrong", "told"),
    [
        ("hidden", lambda h: h[..., 1:], r"hidden gave Tensor \S+ \(6, 2, 4, 7\) at a, not "),
        ("hidden", lambda h: None, "hidden gave None at a"),
        ("hidden", lambda h: h.float(), "hidden gave Tensor torch.float32"),
        ("qk", lambda q, k: (q[..., 1:], k), r"qk gave Tensor \S+ \(6, 5, 2, 3\) at a"),
        ("qk", lambda q, k: q, "qk gave Tensor"),
        ("qk", lambda q, k: (q[:4], k[:4]), r"qk gave Tensor \S+ \(4, "),
        (
            "qkv",
            lambda q, k, v: (q, k),
            r"qkv gave Tensor .*, Tensor \S+ \S+ \S+ \S+ \S+ at a, not",
        ),
        ("qkv", lambda q, k, v: (q, k, v[:3]), r"qkv gave Tensor \S+ \(3, "),
        ("output", lambda y: y[:1], r"output gave Tensor \S+ \(1, "),
        ("output", lambda y: None, "output gave None at a"),
    ],
)
def test_what_methods_give_is_of_the_shape_that_is_said(method, wrong, told):
    own = type("Wrong", (Own,), {method: lambda self, site, *x: wrong(*x)})()
    with pytest.raises(InputError, match=f"taps: {told}"):
        if method == "hidden":
            block, x, emb = resnet()
            block(x, emb, taps=own)
        else:
            layer, x, context = spatial()
            layer(x, context, taps=Chain(NO_TAPS, own))


def test_a_method_that_would_never_be_called_is_refused():
    for base in (ShareSource, Record, Replay):
        with pytest.raises(InputError, match="Heir: its qk would never be called"):
            type("Heir", (base,), {"qk": lambda self, site, q, k: (q, k)})
        decides = {"feature": lambda self, site, feature: feature.compute()}
        type("Heir", (base,), {"qk": lambda self, site, q, k: (q, k), **decides})


class Numbered:
    """A feature of which nothing is known but that it was computed."""

    batch = 2

    def compute(self, branches=1):
        return (torch.ones(2),)

    def record(self, tensors, compact):
        return (*tensors, compact)


@pytest.mark.parametrize("compact", [False, True])
def test_a_recording_ends_at_the_last_of_its_sites(compact):
    for stop in (False, True):
        record = Record(["a", "b", "c"], compact, stop)
        for site in "ba":
            assert torch.equal(record.feature(site, Numbered())[0], torch.ones(2))
        if stop:
            with pytest.raises(Recorded):
                record.feature("c", Numbered())
        else:
            record.feature("c", Numbered())
        assert {site: parts[1] for site, parts in record.features.items()} == dict.fromkeys(
            "abc", compact
        )


def test_taps_that_read_other_tensors_are_of_the_same_kind():
    """So that a pass that was captured with them serves all of it."""
    for taps in (
        NO_TAPS,
        ShareSource(["a", "b"], 3),
        Record(["a"]),
        Record(["a", "b"], compact=True),
        Record(["a"], stop=True),
        Record(["a"], compact=True, stop=True),
        Replay({"a": (torch.ones(2),), "b": (torch.ones(1), torch.ones(3).half())}),
    ):
        others = {
            site: tuple(map(torch.zeros_like, xs)) for site, xs in taps.graph_inputs().items()
        }
        again = taps.with_inputs(others)
        assert type(again) is type(taps) and again.cache_key() == taps.cache_key() is not None
        assert again.sites == taps.sites and not again.graph_outputs()
        assert all(again.graph_inputs()[site] is xs for site, xs in others.items())
