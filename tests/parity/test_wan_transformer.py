"""Wan's transformer against diffusers, live, on random weights in float32."""

import pytest
import torch

from anyv2v import ShareSource
from anyv2v.backbones.wan.conditioning import Conditions
from anyv2v.backbones.wan.schedule import FlowSchedule
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.convert.formats.wan_names import ORIGINAL_TRANSFORMER, TRANSFORMER
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.diffusion.samplers import sample
from anyv2v.runtime.meta import meta_copy
from tests.draw import normal, redraw
from tests.oracles import wan_names
from tests.oracles.golden import relative_error
from tests.oracles.wan_sizes import SIZES, TI2V_5B, TINY

diffusers = pytest.importorskip("diffusers")
# imported here, which takes seconds, and not in the first test
WanTransformer3DModel = diffusers.WanTransformer3DModel


def oracle(config):
    return WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.time_dim,
        ffn_dim=config.ff_dim,
        num_layers=config.layers,
        eps=config.eps,
        rope_max_seq_len=config.positions,
    )


def pair(config):
    """Their transformer with random weights, and ours on the same tensors."""
    theirs = redraw(oracle(config), seed=1)
    with torch.device("meta"):
        ours = Transformer(config)
    wan_names.share(theirs, ours, TRANSFORMER)
    return theirs, ours


def predicted(theirs, config, latents, t, text):
    """Their prediction, for timesteps and texts as their pipeline makes them."""
    if config.clean_first_frame:
        # one timestep for each token, zero for those of latent frame 0
        area = latents[0, 0, 0].numel() // (config.patch[1] * config.patch[2])
        tokens = torch.ones(len(latents), latents.shape[2], area)
        tokens[:, 0] = 0
        t = tokens.flatten(1) * t[:, None]
    padding = text.new_zeros(len(text), config.text_tokens - text.shape[1], text.shape[2])
    return theirs(latents, t, torch.cat([text, padding], 1)).sample


def inputs(config, batch=2):
    height, width = 4 * config.patch[1], 3 * config.patch[2]
    latents = normal(batch, config.in_channels, 3, height, width)
    return latents, torch.tensor([937, 12.0])[:batch], normal(batch, 5, config.text_dim, seed=1)


@pytest.fixture(scope="module")
def tiny():
    return pair(TINY)


@pytest.fixture(scope="module")
def published():
    """Name of a tensor of the published size -> its shape, theirs and ours."""
    with torch.device("meta"):
        networks = oracle(TI2V_5B), Transformer(TI2V_5B)
    return [{name: x.shape for name, x in each.state_dict().items()} for each in networks]


def test_names_and_shapes_of_the_published_size(published):
    """Every tensor has one rule, in both directions, and no rule is unused."""
    theirs, ours = published
    table = TRANSFORMER
    assert wan_names.renamed(theirs, table) == ours
    assert {new.name for new in rename(ours, table, to="theirs").values()} == theirs.keys()
    assert not unused_rules(theirs, table)
    assert len(theirs) == 825
    assert sum(shape.numel() for shape in ours.values()) == 4_999_787_712


def test_names_of_the_original_files(published):
    """By diffusers' own reader of such files, which knows their names and not ours."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    theirs, ours = published
    table = ORIGINAL_TRANSFORMER
    original = {new.name: name for name, new in rename(ours, table, to="theirs").items()}
    assert wan_names.renamed(original, table) == {name: name for name in ours}
    assert not unused_rules(original, table)
    found = utils.convert_wan_transformer_to_diffusers(original)
    assert found.keys() == theirs.keys()
    truth = {name: new.name for name, new in rename(theirs, TRANSFORMER).items()}
    assert found == truth


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["tiny", "one timestep", "odd", "middle", pytest.param("full", marks=pytest.mark.slow)]
)
def test_every_block_and_the_prediction(name, monkeypatch):
    config = SIZES[name]
    theirs, ours = pair(config)
    latents, t, text = inputs(config)
    found, truth = [], []
    for block in theirs.blocks:
        block.register_forward_hook(lambda *given: truth.append(given[-1]))
    for block in ours.block:

        def feed(*given, last=block.feed, **options):
            found.append(x := last(*given, **options))
            return x

        monkeypatch.setattr(block, "feed", feed)
    truth.append(predicted(theirs, config, latents, t, text))
    prediction = ours(latents, t, ours.condition(text))
    found = [*(x.flatten(1, 3) for x in found), prediction]
    errors = [relative_error(*both) for both in zip(found, truth, strict=True)]
    print(f"{name}: {' '.join(f'{error:.1e}' for error in errors)}")
    assert len(errors) == config.layers + 1
    assert max(errors) <= 5e-6


@torch.no_grad()
def test_bfloat16_loses_less_than_theirs():
    """They round what blocks add up, and keep fewer weights in float32."""
    theirs, ours = pair(config := SIZES["middle"])
    latents, t, text = (x.bfloat16() if x.ndim > 1 else x for x in inputs(config))
    truth = predicted(theirs, config, latents.float(), t, text.float())
    halves = [meta_copy(ours, torch.device("cpu"), torch.bfloat16) for _ in range(2)]
    for name, x in halves[0].named_parameters():
        # as a folder is loaded
        x.data = x.data.float() if ours.float32.fullmatch(name) else x.data
    for half in halves:
        half.load_state_dict(ours.state_dict())
    for name, x in theirs.named_parameters():
        # what `from_pretrained` leaves in float32
        if not any(part in name for part in theirs._keep_in_fp32_modules):
            x.data = x.data.bfloat16()
    found = [half(latents, t, half.condition(text)) for half in halves]
    error, rounded = (relative_error(x, truth) for x in found)
    other = relative_error(predicted(theirs, config, latents, t, text), truth)
    print(f"bfloat16: ours {error:.1e}, all weights rounded {rounded:.1e}, theirs {other:.1e}")
    assert error <= 5e-3
    assert error < 0.9 * rounded
    assert error < 0.6 * other


@torch.no_grad()
@pytest.mark.parametrize("group", ["self", "cross", "ff"])
def test_injection(group):
    """Against their attentions and hooks: the source is the first row of the batch."""
    theirs, ours = pair(TINY)
    (source, edit), t, _ = inputs(TINY)
    text, samples = normal(3, 5, TINY.text_dim, seed=1), [0, 1, 1]
    rows, t = torch.stack([source, edit, edit]), t[:1].expand(3)
    conditions = Conditions.stack([ours.condition(row[None]) for row in text], samples)
    plain = predicted(theirs, TINY, rows, t, text)
    assert relative_error(ours(rows[:2], t[:2], conditions), plain) <= 5e-6
    for block in theirs.blocks:
        names = {"self": "attn1.norm_{}", "cross": "attn2.norm_{}", "ff": "ffn"}[group]
        for name in {names.format(x) for x in "qk"}:
            # what the rows of the batch get is that of the first row
            block.get_submodule(name).register_forward_hook(
                lambda *given: given[-1][:1].expand_as(given[-1])
            )
    truth = predicted(theirs, TINY, rows, t, text)
    sites = [site for site in ours.sites if site.endswith(group)]
    found = ours(rows[:2], t[:2], conditions, ShareSource(sites, 3))
    error = relative_error(found, truth)
    print(f"{group}: {error:.1e}")
    assert error <= 5e-6
    assert relative_error(found[:1], plain[:1]) <= 5e-6
    assert relative_error(found[1:], plain[1:]) > 1e-2


def test_gradients(tiny):
    """Those of every weight, for a network that is to be trained."""
    theirs = oracle(TINY)
    theirs.load_state_dict(tiny[0].state_dict())
    ours = Transformer(TINY)
    ours.load_state_dict(tiny[1].state_dict())
    latents, t, text = inputs(TINY)
    predicted(theirs, TINY, latents, t, text).square().mean().backward()
    ours(latents, t, ours.condition(text)).square().mean().backward()
    names = rename(theirs.state_dict(), TRANSFORMER)
    pairs = ((ours.get_parameter(names[k].name), x) for k, x in theirs.named_parameters())
    errors = [relative_error(mine.grad, other.grad) for mine, other in pairs]
    print(f"gradients: {max(errors):.1e}")
    assert max(errors) <= 1e-5


@torch.no_grad()
def test_trajectory_of_eulers_method(tiny):
    """Over the levels of their sampler, with a clean first frame that is never sampled."""
    theirs, ours = tiny
    steps, guidance = 6, 5.0
    noise, first = normal(1, 8, 3, 8, 6), normal(1, 8, 1, 8, 6, seed=2)
    text = normal(2, 5, TINY.text_dim, seed=1)
    grid = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    grid.set_timesteps(steps)
    x = torch.cat([first, noise[:, :, 1:]], 2)
    for i, t in enumerate(grid.timesteps):
        rows = predicted(theirs, TINY, torch.cat([x, x]), t.expand(2), text)
        velocity = rows[:1] + guidance * (rows[1:] - rows[:1])
        x = x + (grid.sigmas[i + 1] - grid.sigmas[i]) * velocity
        x[:, :, :1] = first

    conditions = Conditions.stack([ours.condition(row[None]) for row in text], [0, 0])

    def predict(level, latents):
        latents = torch.cat([first, latents], 2)
        unwanted, wanted = ours(latents, torch.tensor(level.t), conditions)[:, :, 1:].split(1)
        return unwanted + guidance * (wanted - unwanted)

    found = sample(predict, noise[:, :, 1:], FlowSchedule(5.0), steps)
    error = relative_error(found, x[:, :, 1:])
    print(f"trajectory: {error:.1e}")
    assert error <= 1e-5
    assert relative_error(found, noise[:, :, 1:]) > 0.1
