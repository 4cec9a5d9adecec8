"""The layer that both towers of CLIP are stacks of (Radford et al. 2021, pre-norm transformer)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.kernels.attention import attention
from anyv2v.nn.linear import Linear


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# OpenCLIP's towers use the exact gelu, OpenAI's the quick one
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool):
        super().__init__()
        if width % heads:
            raise InputError(f"width {width} cannot be shared evenly by {heads} heads")
        self.heads, self.causal = heads, causal
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.q, self.k, self.v))
        return self.out(attention(q, k, v, causal=self.causal).flatten(-2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each behind a norm and with a residual: (b, n, width) -> the same."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: str,
        norm_eps: float,
        *,
        causal: bool,
    ):
        super().__init__()
        if not 0 < norm_eps < 1:
            raise InputError(f"norm_eps {norm_eps} is not between 0 and 1")
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.self = SelfAttention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self(self.norm1(x))
        return x + self.mlp(self.norm2(x))
