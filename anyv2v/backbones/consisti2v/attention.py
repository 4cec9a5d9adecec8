"""The attentions of ConsistI2V (arXiv 2402.04324), most of which look at the first frame.

Their input is (b, f, h, w, c), the f frames of each of b videos. Taps (hooks) see query and key as
they are projected, before rotary position embedding turns them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.injection.taps import Taps, calls
from anyv2v.nn.attention import Attention, AttentionFeature, TemporalAttention
from anyv2v.nn.rotary import rotate_by_frame

NEIGHBORS = tuple((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1))
"""(row, column) in a 3x3 window of the eight positions around its center."""


class FirstFrameAttention(Attention):
    """Self-attention of each frame to its own positions and to those of the video's first frame.

    The query is (b f, h w, heads, d). Key and value are (b f, 2 h w, heads, d), with the frame's
    own positions first; the first frame therefore attends to each of its positions twice.
    """

    def forward(
        self, x: Tensor, context: tuple[Tensor, Tensor] | None = None, *, taps: Taps
    ) -> Tensor:
        """Maps x (b, f, h, w, c) to tokens (b f, h w, c).

        context: None, because this is a self-attention. taps: the hooks to call at the layer's
        site.
        """
        feature = FirstFrameFeature(self, x, context)
        if self.site is None or not calls(taps, self.site):
            return self.attend(*feature.compute())
        return taps.output(self.site, self.attend(*taps.feature(self.site, feature)))

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes query (b f, h w, heads, d) and key (b f, 2 h w, heads, d) of x (b, f, h, w, c).

        key: None, because this is a self-attention.
        """
        query = self._heads(self.q(x)).flatten(2, 3).flatten(0, 1)
        return query, self._with_first(self.k(x))

    def value(self, x: Tensor) -> Tensor:
        """Computes the value (b f, 2 h w, heads, d) of x (b, f, h, w, c)."""
        return self._with_first(self.v(x))

    def _with_first(self, x: Tensor) -> Tensor:
        x = self._heads(x).flatten(2, 3)
        return torch.cat([x, x[:, :1].expand_as(x)], dim=2).flatten(0, 1)


class FirstFrameFeature(AttentionFeature):
    """Query, key and value of a `FirstFrameAttention`, which are computed on demand."""

    @property
    def batch(self) -> int:
        """Length of dim 0 of query, key and value: the number of frames of all videos, b f."""
        return self.x.shape[0] * self.x.shape[1]


class ClipCrossAttention(Attention):
    """Cross-attention of all positions of all frames, as one sequence of f h w queries."""

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the query (b, f h w, heads, d) of x (b, f, h, w, c), and returns `key` too."""
        return super().project(x.flatten(1, 3), key)


class NeighborAttention(TemporalAttention):
    """Self-attention along the frames at each position, and to its neighbors in the first frame.

    The query is (b, f, h w, heads, d). Key and value are (b, f + 8, h w, heads, d): those of the
    position in all f frames, then those of the eight positions around it in the first frame, row by
    row. Beyond the border of the frame lie repetitions of the positions at the border.

    Query and key have a rotary position embedding (arXiv 2104.09864) by the number of the frame.
    It turns the first half of the channels, before they are split into heads: half of the heads
    therefore know nothing of the frames' order. The neighbors count as positions in frame 0.
    """

    def __init__(self, site: str, dim: int, heads: int):
        super().__init__(site, dim, heads, dim // heads)
        self.frequencies = nn.Parameter(torch.empty(dim // 4))

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes query (b, f, h w, heads, d) and key (b, f + 8, h w, heads, d) of x.

        x: (b, f, h, w, c). key: None, because this is a self-attention.
        """
        return self._heads(self.q(x)).flatten(2, 3), self._with_neighbors(self.k(x))

    def value(self, x: Tensor) -> Tensor:
        """Computes the value (b, f + 8, h w, heads, d) of x (b, f, h, w, c)."""
        return self._with_neighbors(self.v(x))

    def attend(self, *tensors: Tensor) -> Tensor:
        """Computes the output (b, f, h w, c) from (query, key, value) or (probabilities, value).

        Query and key are not yet rotated. They, or the probabilities, may have fewer batch entries
        than the value, as in `Attention.attend`.
        """
        if len(tensors) == 3:
            q, k, v = tensors
            tensors = (*self._rotate(q, k), v)
        return super().attend(*tensors)

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns a tuple of one tensor, the attention probabilities (b, h w, heads, f, f + 8)."""
        return super().compact(x, *self._rotate(q, k))

    def _rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        frames = q.shape[1]
        # what lies in frame 0, as the neighbors do, is turned by no angle
        own, neighbors = k[:, :frames], k[:, frames:]
        own = rotate_all_heads(own, self.frequencies)
        return rotate_all_heads(q, self.frequencies), torch.cat([own, neighbors], dim=1)

    def _with_neighbors(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:4]
        first = F.pad(x[:, 0].permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
        first = first.permute(0, 2, 3, 1)
        neighbors = torch.stack([first[:, i : i + h, j : j + w] for i, j in NEIGHBORS], dim=1)
        return self._heads(torch.cat([x, neighbors], dim=1)).flatten(2, 3)


class FrameCrossAttention(Attention):
    """Cross-attention whose query has a rotary position embedding by the number of the frame.

    It is that of `NeighborAttention`; the key, of the context, has none. The query is
    (b, f, h w, heads, d).
    """

    def __init__(self, site: str, dim: int, heads: int, context_dim: int):
        super().__init__(site, dim, heads, dim // heads, context_dim)
        self.frequencies = nn.Parameter(torch.empty(dim // 4))

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the query (b, f, h w, heads, d) of x (b, f, h, w, c), and returns `key` too."""
        q, key = super().project(x, key)
        return q.flatten(2, 3), key

    def attend(self, *tensors: Tensor) -> Tensor:
        """Computes the output (b, f, h w, c) from query, not yet rotated, key and value.

        Key and value are (b, m, heads, d). Query and key may have fewer batch entries than the
        value, as in `Attention.attend`.
        """
        q, k, v = tensors
        # all positions of all frames read the same context: one sequence of queries
        queries = rotate_all_heads(q, self.frequencies).flatten(1, 2)
        return super().attend(queries, k, v).unflatten(1, q.shape[1:3])


def rotate_all_heads(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotates x (b, f, p, heads, d) by `rotate_by_frame`, with its heads as one row of channels."""
    return rotate_by_frame(x.flatten(-2), frequencies).unflatten(-1, x.shape[-2:])
