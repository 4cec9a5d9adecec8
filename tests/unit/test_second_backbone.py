"""The thinnest second backbone: other sites, three branches, its own guidance, same editor."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import anyv2v
from anyv2v import NO_TAPS, InputError
from anyv2v.backbones.base import Branches
from anyv2v.injection.plan import Group
from anyv2v.injection.taps import calls
from tests import golden


@dataclass(frozen=True)
class Conditions:
    shift: Tensor
    samples: tuple[int, ...] = (0,)

    @staticmethod
    def stack(branches, samples=None):
        samples = range(len(branches)) if samples is None else samples
        return Conditions(torch.cat([b.shift for b in branches]), tuple(samples))


@dataclass(frozen=True)
class Mixing:
    """What `Toy` attends by: queries that are their own keys and values."""

    x: Tensor

    @property
    def rows(self):
        return len(self.x)

    def compute(self, branches=1):
        shared = self.x[: self.rows // branches]
        return shared, shared, self.x

    def keep(self, tensors, compact):
        return tensors[:2]

    def restore(self, kept):
        return *kept, self.x


class Toy(nn.Module):
    """Two guidance scales, a kind of site that I2VGen-XL has not, no CLIP at all."""

    name = "toy"
    sites = ("mix.cross",)
    groups = {"cross": frozenset(sites)}
    device, dtype = torch.device("cpu"), torch.float32
    conditioners = ()

    def condition(self, prompt, first, negative=False):
        place = first.latents.mean().view(1)
        return Conditions(place * 0 if negative else place + len(prompt))

    def branches(self, prompt, negative_prompt, first, guidance):
        both = self.condition(prompt, first)
        image = self.condition("", first)
        none = self.condition(negative_prompt, first, negative=True)
        return Branches(
            (none, image, both), lambda v: v[0] + 2 * (v[1] - v[0]) + guidance * (v[2] - v[1])
        )

    def activation_bytes(self, rows, frames, height, width):
        return 0

    def predict(self, latents, t, conditions, taps=NO_TAPS):
        latents = latents[list(conditions.samples)]
        mixing = Mixing(latents.flatten(2).transpose(1, 2)[:, :, None])
        at_site = calls(taps, "mix.cross")
        q, k, v = taps.feature("mix.cross", mixing) if at_site else mixing.compute()
        mixed = q.tanh().repeat(latents.shape[0] // q.shape[0], 1, 1, 1)
        mixed = mixed[:, :, 0].transpose(1, 2).unflatten(2, latents.shape[2:])
        return 0.1 * mixed + 0.01 * conditions.shift.view(-1, 1, 1, 1, 1)


@dataclass(frozen=True)
class CrossInjection:
    cross: float

    def groups(self, default):
        return (Group(default["cross"], self.cross),)


@pytest.fixture
def toy(editor):
    return anyv2v.Editor(Toy(), editor.backbone.codec.vae, editor.defaults)


def test_it_runs_through_the_same_editor(toy, video, edited_frame):
    source = toy.invert(video, "ddim", steps=10)
    assert source.evaluations == 30
    results = {
        source_pass: toy.edit(
            source,
            edited_frame,
            "an edit",
            steps=5,
            injection=CrossInjection(0.6),
            source_pass=source_pass,
        ).latents
        for source_pass in ("shared", "always", "separate")
    }
    for latents in results.values():
        assert golden.relative_error(latents, results["shared"]) < 1e-6
    off = toy.edit(source, edited_frame, "an edit", steps=5, injection=CrossInjection(0.0))
    assert golden.relative_error(off.latents, results["shared"]) > 1e-4


def test_the_default_injection_says_what_this_model_lacks(toy, video, edited_frame):
    source = toy.invert(video, steps=5)
    with pytest.raises(InputError, match="no group conv, spatial, temporal"):
        toy.edit(source, edited_frame, "an edit", steps=5)
