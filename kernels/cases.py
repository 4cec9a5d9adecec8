"""The kernel calls of one UNet forward pass on 16 frames of 512x512, to explain, check and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anyv2v.kernels import (
    attention,
    geglu,
    group_norm_silu,
    layer_norm,
    linear,
    residual_sum,
    short_attention,
)
from anyv2v.kernels.choose import Implementation

HEAD_DIM, GROUPS, CONTEXT = 64, 32, 145
"""The UNet's head dim, groups of each group normalization, and tokens that cross-attention
reads."""
LEVELS = ((64, 320), (32, 640), (16, 1280), (8, 1280))
"""(side of the square latents, channels) of each resolution of the UNet; the last has no
attention."""


@dataclass(frozen=True)
class Case:
    """One call of an operation, described by shapes in place of tensors."""

    operation: str
    """Name of the operation, such as "group_norm_silu"."""
    name: str
    """Distinguishes the call from others of the same operation, such as "cross 64x64"."""
    table: tuple[Implementation, ...]
    """The implementations of the operation, in the order in which they are considered."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the first positional arguments, which are tensors."""
    rest: tuple[Any, ...] = ()
    """The remaining positional arguments."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments; a tuple stands for a tensor of that shape."""

    def draw(self, device: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns positional and keyword arguments, with tensors drawn from a normal distribution.

        Values have mean 0 and variance 1. Matrices are divided by sqrt(columns), so that a product
        with one has about the variance of its input.
        """

        def drawn(shape: tuple[int, ...]) -> Tensor:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return torch.randn(shape, device=device, dtype=dtype) * scale

        options = {k: drawn(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        return (*map(drawn, self.shapes), *self.rest), options


def cases(frames: int = 16, levels: tuple[tuple[int, int], ...] = LEVELS) -> Iterator[Case]:
    """Yields the calls of one UNet forward pass on a batch of one clip of so many frames.

    levels: as `LEVELS`. In the name of a call of attention, `g` is the number of clips (such as a
    source and its edits) whose values share one softmax.
    """
    for side, c in levels[:3]:
        n, heads = side * side, c // HEAD_DIM
        for g in (1, 2, 3):
            q, v = (frames, n, heads, HEAD_DIM), (g * frames, n, heads, HEAD_DIM)
            yield Case("attention", f"self {side}x{side} g={g}", attention.TABLE, (q, q, v))
        q, k = (1, frames * n, heads, HEAD_DIM), (1, CONTEXT, heads, HEAD_DIM)
        yield Case("attention", f"cross {side}x{side}", attention.TABLE, (q, k, k))

    for side, c in levels[:3]:
        n, heads = side * side, c // HEAD_DIM
        q = (1, frames, n, heads, HEAD_DIM)
        for g in (1, 3):
            v = (g, *q[1:])
            yield Case("short_attention", f"{side}x{side} g={g}", short_attention.TABLE, (q, q, v))
        weights = (1, n, heads, frames, frames)
        yield Case(
            "short_probabilities", f"{side}x{side}", short_attention.PROBABILITIES_TABLE, (q, q)
        )
        yield Case(
            "apply_probabilities",
            f"{side}x{side} g=2",
            short_attention.APPLY_TABLE,
            (weights, (2, *q[1:])),
        )

    for side, c in levels:
        n = side * side
        for name, shape, options in (
            (f"frames {side}x{side}x{c}", (frames, n, c), {}),
            (f"frames {side}x{side}x{c} shifted", (frames, n, c), {"shift": (1, c)}),
            (f"skips {side}x{side}x{2 * c}", (frames, n, 2 * c), {}),
            (f"video {side}x{side}x{c}", (1, frames, n, c), {}),
        ):
            channels = (shape[-1],)
            yield Case(
                "group_norm_silu",
                name,
                group_norm_silu.TABLE,
                (shape, channels, channels),
                (GROUPS, 1e-5),
                options,
            )

    for side, c in levels:
        x = (frames, side, side, c)
        yield Case("residual_sum", f"{side}x{side}x{c}", residual_sum.TABLE, (x, x, (c,)))

    for side, c in levels[:3]:
        x = (frames, side * side, c)
        yield Case("geglu", f"{side}x{side}", geglu.TABLE, (x, (8 * c, c), (8 * c,)))
        norm = (c,), (c,)
        yield Case("layer_norm", f"{side}x{side}", layer_norm.TABLE, (x, *norm), (1e-5,))
        yield Case("add_layer_norm", f"{side}x{side}", layer_norm.ADD_TABLE, (x, x, *norm), (1e-5,))
        yield Case("linear", f"{side}x{side}", linear.TABLE, (x, (c, c), (c,)))
