"""The pre-norm transformer layer of both CLIP encoders (Radford et al. 2021)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.kernels.attention import attention
from anyv2v.nn.linear import Linear


def quick_gelu(x: Tensor) -> Tensor:
    """Computes x * sigmoid(1.702 x), OpenAI's approximation of the GELU, for any shape of x."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}
"""Name -> activation of an MLP: the exact GELU of OpenCLIP's encoders, or that of OpenAI's."""


class SelfAttention(nn.Module):
    """Multi-head self-attention whose projections have biases."""

    def __init__(self, hidden_size: int, heads: int, *, causal: bool):
        """Builds an attention with `heads` heads on tokens of length `hidden_size`.

        causal: whether a token attends only to itself and the tokens before it, rather than to all.
        Raises InputError if `heads` does not divide `hidden_size`.
        """
        super().__init__()
        if hidden_size % heads:
            raise InputError(f"width {hidden_size} cannot be shared evenly by {heads} heads")
        self.heads, self.causal = heads, causal
        self.q = Linear(hidden_size, hidden_size)
        self.k = Linear(hidden_size, hidden_size)
        self.v = Linear(hidden_size, hidden_size)
        self.out = Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens x (b, n, hidden_size) to the same shape."""
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.q, self.k, self.v))
        return self.out(attention(q, k, v, causal=self.causal).flatten(-2))


class MLP(nn.Module):
    """A two-layer perceptron: linear, activation, linear."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str):
        """Builds a perceptron from `hidden_size` to `intermediate_size` and back.

        activation: "gelu" or "quick_gelu", see `ACTIVATIONS`. Raises InputError if `activation` is
        neither of the two.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(hidden_size, intermediate_size)
        self.down = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., hidden_size) to the same shape."""
        return self.down(self.activation(self.up(x)))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer: x + attention(norm(x)), then the same with an MLP."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        intermediate_size: int,
        activation: str,
        norm_eps: float,
        *,
        causal: bool,
    ):
        """Builds the layer from a `SelfAttention` and an `MLP`, which share most arguments.

        norm_eps: epsilon of both layer normalizations. Raises InputError if `norm_eps` is not
        between 0 and 1, or if `SelfAttention` or `MLP` raises it for the other arguments.
        """
        super().__init__()
        if not 0 < norm_eps < 1:
            raise InputError(f"norm_eps {norm_eps} is not between 0 and 1")
        self.norm1 = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.self = SelfAttention(hidden_size, heads, causal=causal)
        self.norm2 = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.mlp = MLP(hidden_size, intermediate_size, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens x (b, n, hidden_size) to the same shape."""
        x = x + self.self(self.norm1(x))
        return x + self.mlp(self.norm2(x))
