"""The examples of taps against attention written out in float64, alone and after an injection."""

import ast
import inspect

import pytest
import torch

from anyv2v import InputError, ShareSource
from anyv2v.injection import examples
from anyv2v.injection.examples import OutsideOfMask, SourceQueries, SourceValues, token_mask
from anyv2v.injection.taps import NO_TAPS, Chain
from tests.oracles import golden
from tests.unit.test_own_taps import (
    BRANCHES,
    FRAMES,
    KINDS,
    SITES,
    attended,
    close,
    of_source,
    projected,
    resnet,
    spatial,
    temporal,
)

EDITED = torch.tensor([True, False, False, True, True])
ALONE_OR_AFTER = pytest.mark.parametrize("after", [False, True], ids=["alone", "after Injection"])


def told(taps, after=False):
    """As a run passes them on, alone or after the injection's own."""
    taps.step, taps.steps, taps.branches = 1, 10, BRANCHES
    return Chain(ShareSource(["a"], BRANCHES), taps) if after else taps


@KINDS
@ALONE_OR_AFTER
def test_values_or_queries_of_the_source(make, after):
    layer, x, context = make()
    q, k, v = projected(layer, x, context)
    injected = (of_source(q), of_source(k)) if after else (q, k)
    truth = attended(layer, *injected, of_source(v), x.shape)
    assert close(layer(x, context, taps=told(SourceValues(["a"]), after)), truth)
    truth = attended(layer, of_source(q), injected[1], v, x.shape)
    assert close(layer(x, context, taps=told(SourceQueries(["a"]), after)), truth)


@ALONE_OR_AFTER
@pytest.mark.parametrize("make", [spatial, temporal])
def test_edited_tokens_keep_their_own_features(make, after):
    layer, x, context = make()
    q, k, v = projected(layer, x, context)
    # (g, f, h w, heads, d) within frames, (g, h w, f, heads, d) along them
    mask = EDITED[:, None, None] if make is spatial else EDITED[:, None, None, None]
    q, k = (torch.where(mask, y, of_source(y)) for y in (q, k))
    taps = told(OutsideOfMask(["a"], EDITED[:, None].numpy()), after)
    assert close(layer(x, context, taps=taps), attended(layer, q, k, v, x.shape))


@ALONE_OR_AFTER
def test_edited_places_keep_their_own_residual_features(after):
    block, x, emb = resnet()
    mask = torch.zeros(4, 8)
    mask[1, 2:5] = 255
    residual = (block(x, emb, taps=NO_TAPS) - x).unflatten(0, (BRANCHES, FRAMES))
    truth = of_source(residual).clone()
    # the mask has four pixels for each place of 2x4
    truth[:, :, 0, 1:3] = residual[:, :, 0, 1:3]
    found = block(x, emb, taps=told(OutsideOfMask(["a"], mask), after))
    assert close(found, x + truth.flatten(0, 1))


def test_a_mask_of_all_is_no_injection_and_one_of_nothing_the_papers(editor):
    sites = frozenset().union(*editor.backbone.groups.values())
    x, unet = SITES["unet_in"], editor.backbone.unet
    three = unet.condition(
        SITES["encoder_hidden_states"],
        SITES["image_embeddings"][:, 0],
        SITES["image_latents"],
        SITES["fps"],
    )
    height, width = (8 * side for side in x.shape[3:])
    injected = editor.predict(x, 901, three, ShareSource(sites, BRANCHES))
    plain = editor.predict(x, 901, three)
    for edited, truth in ((torch.ones, plain), (torch.zeros, injected)):
        taps = told(OutsideOfMask(sites, edited(height, width)))
        assert golden.relative_error(editor.predict(x, 901, three, taps), truth) < 1e-5
    assert golden.relative_error(injected, plain) > 1e-3


def test_masks_are_read_on_the_grid_of_tokens():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[4, 0] = mask[1, 5] = True
    assert torch.equal(token_mask(mask, 30), mask.flatten())
    # odd sizes are rounded up on the way down
    truth = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert torch.equal(token_mask(mask, 9), truth.flatten())
    assert token_mask(mask, 1).tolist() == [True]
    with pytest.raises(ValueError, match="a mask of 5x6 has no grid of 7 tokens"):
        token_mask(mask, 7)


@pytest.mark.parametrize("make", [SourceValues, SourceQueries, OutsideOfMask])
def test_they_are_active_in_the_first_part_of_the_steps(make):
    args = (["a"], EDITED[:, None])[: 1 + (make is OutsideOfMask)]
    taps = make(*args, until=0.58)
    assert [taps.active(step, 50) for step in (0, 27, 28, 49)] == [True, True, False, False]
    with pytest.raises(InputError, match="until: 1.5"):
        make(*args, until=1.5)


def test_each_is_at_most_fifteen_lines():
    for cls in (SourceValues, SourceQueries, OutsideOfMask):
        (tree,) = ast.parse(inspect.getsource(cls)).body
        tree.body = tree.body[1:]  # without the docstring
        for method in tree.body:
            if ast.get_docstring(method):
                method.body = method.body[1:]
        assert len(ast.unparse(tree).replace("\n\n", "\n").splitlines()) <= 15
        assert "arXiv" in cls.__doc__
    assert inspect.getdoc(examples)
