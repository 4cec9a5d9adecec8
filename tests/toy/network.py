"""The toy's networks: two blocks over all tokens of a clip, and a table of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from tests.toy.codec import CHANNELS

DIM, HEADS, PATCH, WORDS, LETTERS = 16, 2, 3, 6, 29
"""Of a token; of an attention; latents per side of a token; tokens of a prompt; different words."""
SITES = tuple(f"blocks.{i}.{kind}" for i in range(2) for kind in ("map", "hidden", "cross"))
TIMES = (1.0, 0.5, 0.25, 0.125)
"""Frequencies at which the network is told its level."""


class Words(nn.Module):
    """The text part: one token for each of a prompt's first letters."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(LETTERS, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (1, WORDS) -> (1, WORDS, DIM)."""
        return self.table(ids).tanh()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))


class Block(nn.Module):
    """Attention among all tokens of the clip, a residual branch, and attention to the context."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.map, self.cross = Attention(), Attention()
        self.hidden = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, context: Tensor, taps: Taps) -> Tensor:
        x = x + _attend(f"{self.name}.map", self.map, x, x, taps)
        (h,) = _tapped(f"{self.name}.hidden", Residual(self.hidden, x), taps)
        x = x + h.repeat(len(x) // len(h), 1, 1)
        return x + _attend(f"{self.name}.cross", self.cross, x, context, taps)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(CHANNELS * PATCH**2, DIM)
        self.time = nn.Linear(len(TIMES), DIM)
        self.place = nn.Parameter(torch.empty(DIM))
        """Of a frame, as often as it has frames before it."""
        self.speed = nn.Parameter(torch.empty(DIM))
        self.image = nn.Linear(CHANNELS, DIM)
        self.blocks = nn.ModuleList(Block(f"blocks.{i}") for i in range(2))
        self.outward = nn.Linear(DIM, CHANNELS * PATCH**2)

    def forward(
        self, latents: Tensor, t: float | Tensor, context: Tensor, speed: Tensor, taps: Taps
    ) -> Tensor:
        """latents (g, c, f, h, w), context (g, m, DIM), speed (g,) -> (g, c, f, h, w)."""
        g, c, f, h, w = latents.shape
        cells = latents.view(g, c, f, h // PATCH, PATCH, w // PATCH, PATCH)
        x = self.inward(cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4))
        t = t.to(x.dtype) if isinstance(t, Tensor) else x.new_full((), t)
        waves = torch.stack([(t * time).cos() for time in TIMES])
        x = x + self.time(waves) + self.speed * speed.view(g, 1, 1, 1, 1)
        x = x + torch.arange(f, device=x.device).view(1, f, 1, 1, 1) * self.place
        grid = x.shape[:-1]
        x = x.flatten(1, 3)
        for block in self.blocks:
            x = block(x, context, taps)
        cells = self.outward(x).view(*grid, c, PATCH, PATCH)
        return cells.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape)


@dataclass(frozen=True)
class Residual:
    """The residual branch's feature, as taps are given it."""

    layer: nn.Linear
    x: Tensor

    @property
    def batch(self) -> int:
        return len(self.x)

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        return (self.layer(_first(self.x, branches)).tanh(),)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        return tensors

    def replay(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return kept


@dataclass(frozen=True)
class Projected:
    """Query, key and value of an attention, as taps are given them."""

    layer: Attention
    x: Tensor
    context: Tensor

    @property
    def batch(self) -> int:
        return len(self.x)

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        x, context = _first(self.x, branches), _first(self.context, branches)
        return _heads(self.layer.q(x)), _heads(self.layer.k(context)), self._value()

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        return tensors[:2]

    def replay(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *kept, self._value()

    def _value(self) -> Tensor:
        return _heads(self.layer.v(self.context))


def _attend(site: str, layer: Attention, x: Tensor, context: Tensor, taps: Taps) -> Tensor:
    q, k, v = _tapped(site, Projected(layer, x, context), taps)
    # rows of q and k that branches share
    q, k = (y.repeat(len(v) // len(y), 1, 1, 1) for y in (q, k))
    scores = torch.einsum("gnhd,gmhd->ghnm", q, k) / q.shape[-1] ** 0.5
    mixed = torch.einsum("ghnm,gmhd->gnhd", scores.softmax(-1), v)
    y = layer.out(mixed.flatten(-2))
    return taps.output(site, y) if _called(taps, site) else y


def _tapped(site: str, feature: Residual | Projected, taps: Taps) -> tuple[Tensor, ...]:
    return taps.feature(site, feature) if _called(taps, site) else feature.compute()


def _called(taps: Taps, site: str) -> bool:
    return taps.sites is None or site in taps.sites


def _first(x: Tensor, branches: int) -> Tensor:
    return x[: len(x) // branches]


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1))
