"""Attention layers, which call taps (hooks) with their tensors and dispatch to a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from anyv2v.injection.taps import Taps, branch_size, calls
from anyv2v.kernels.attention import attention
from anyv2v.kernels.short_attention import (
    apply_probabilities,
    short_attention,
    short_probabilities,
)
from anyv2v.nn.linear import Linear


class Attention(nn.Module):
    """Self-attention among the tokens of each batch entry, or cross-attention to a context.

    `site` is the module's own path in the network, such as "up.1.spatial.1.block.self". Taps
    (hooks, see `Taps`) are called under this name with query, key and value, and with the output;
    if `site` is None, no taps are called.
    """

    def __init__(
        self,
        site: str | None,
        dim: int,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        bias: bool = False,
    ):
        """Builds the projections of an attention with `heads` heads of `head_dim` dims each.

        dim: length of the tokens, in and out. context_dim: length of the context's vectors in a
        cross-attention; None makes a self-attention. bias: whether query, key and value have one.
        """
        super().__init__()
        self.site, self.heads, self.is_cross = site, heads, context_dim is not None
        inner_dim = heads * head_dim
        self.q = Linear(dim, inner_dim, bias)
        self.k = Linear(context_dim or dim, inner_dim, bias)
        self.v = Linear(context_dim or dim, inner_dim, bias)
        self.out = Linear(inner_dim, dim)

    def forward(
        self, x: Tensor, context: tuple[Tensor, Tensor] | None = None, *, taps: Taps
    ) -> Tensor:
        """Maps tokens x (b, n, c) to the same shape.

        context: key and value (b, m, heads, d) that `read` computed from a context, which a
        cross-attention needs; None for self-attention. taps: the hooks to call at the layer's site.
        """
        feature = AttentionFeature(self, x, context)
        if self.site is None or not calls(taps, self.site):
            return self.attend(*feature.compute())
        return taps.output(self.site, self.attend(*taps.feature(self.site, feature)))

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Computes key and value of a context (b, m, c'), (b, m, heads, d) each."""
        return self._heads(self.k(context)), self.value(context)

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes query and key of tokens x (b, n, c), (b, n, heads, d) each.

        If `key` is given, as in a cross-attention, it is returned instead of the key of x.
        """
        return self._heads(self.q(x)), self._heads(self.k(x)) if key is None else key

    def value(self, x: Tensor) -> Tensor:
        """Computes the value (b, n, heads, d) of tokens x (b, n, c), or of a context (b, n, c')."""
        return self._heads(self.v(x))

    def attend(self, *tensors: Tensor) -> Tensor:
        """Computes the layer's output (b, n, c) from query, key and value, by `mix`.

        tensors: the arguments of `mix`. All but the value may have fewer batch entries, a divisor r
        of b: each run of r entries of the value then uses the same r entries of the others.
        """
        return self.out(self.mix(*tensors).flatten(-2))

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns the smallest tensors from which `restore` can recover query and key.

        x: the layer's input, of which q and k are the query and key. The result is (x,) for a
        self-attention and (q, k) for a cross-attention.
        """
        # q and k are linear in x: for a self-attention x is half their size
        return (q, k) if self.is_cross else (x,)

    def restore(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns query and key: computed if `recorded` is (x,), as it is if it is (q, k)."""
        return recorded if len(recorded) == 2 else self.project(*recorded)

    @staticmethod
    def mix(*tensors: Tensor) -> Tensor:
        """Computes softmax(q k^T / sqrt(d)) v: (b, n, heads, d).

        tensors: query (b, n, heads, d), then key and value (b, m, heads, d).
        """
        return attention(*tensors)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class TemporalAttention(Attention):
    """Self-attention among the f frames at each position of x (b, f, h w, c), without permuting x.

    Query, key and value are (b, f, h w, heads, d).
    """

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns a tuple of one tensor, the attention probabilities (b, h w, heads, f, f).

        They have f numbers per query and head, where query and key together have 2 d.
        """
        return (short_probabilities(q, k),)

    def restore(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns `recorded`, (probabilities,) or (q, k): `mix` takes either before the value."""
        return recorded

    @staticmethod
    def mix(*tensors: Tensor) -> Tensor:
        """Computes softmax(q k^T / sqrt(d)) v along the frames: (b, f, h w, heads, d).

        tensors: (q, k, v), or (probabilities, v) with the result of `compact`.
        """
        return (short_attention if len(tensors) == 3 else apply_probabilities)(*tensors)


@dataclass(frozen=True)
class AttentionFeature:
    """Query, key and value of an attention, which are computed on demand.

    Taps (hooks) receive this object and decide what is computed; it implements
    `anyv2v.injection.taps.Feature`.
    """

    layer: Attention
    """The attention whose query, key and value these are."""
    x: Tensor
    """The layer's input: (b, n, c), or (b, f, h w, c) for a temporal attention. A subclass of
    `Attention` may take other shapes with b videos in dim 0."""
    context: tuple[Tensor, Tensor] | None
    """Key and value (b, m, heads, d) of a cross-attention's context; None for self-attention."""

    @property
    def batch(self) -> int:
        """Number of batch entries of the layer's input, b."""
        return len(self.x)

    @property
    def unmodified(self) -> AttentionFeature:
        """The feature before any taps changed it, which is this object itself."""
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes (q, k, v).

        branches: number of branches that the batch consists of. With more than one, query and key
        are computed for the first branch alone, and the value for all. Raises ValueError if the
        batch is not a multiple of `branches`.
        """
        one = branch_size(self.x, branches)
        key = None if self.context is None else self.context[0][:one]
        return *self.layer.project(self.x[:one], key), self._value()

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns what `replay` needs of computed `tensors` (q, k, v).

        This is (q, k) or, if `compact`, the smaller form that `Attention.compact` returns.
        """
        q, k, _ = tensors
        return self.layer.compact(self.x, q, k) if compact else (q, k)

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the arguments of `Attention.attend`, with the recorded query and key.

        recorded: the result of `record`, perhaps in another pass. The value is computed anew from
        this feature's input.
        """
        return *self.layer.restore(recorded), self._value()

    def _value(self) -> Tensor:
        return self.layer.value(self.x) if self.context is None else self.context[1]
