"""What the tests of attention share: tensors drawn, how far a dtype may be off, the closed form."""

import torch
import torch.nn.functional as F

from anyv2v.kernels import gpu
from anyv2v.kernels.trust import bound as bound

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Triton's kernels run on the GPU, or where there is none in Triton's interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def names(table):
    """The implementations that this machine can test."""
    return [i.name for i in table if i.name != "triton" or gpu.INSTALLED]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def within_nan(x):
    """The same numbers as a part of a larger tensor, NaN all around: odd strides, no overrun."""
    return F.pad(x, (1, 2) * x.ndim, value=float("nan"))[(slice(1, -2),) * x.ndim]


def guarded(x):
    """The same numbers in one piece of memory with NaN before and after (conftest.py)."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def softmax(q, k):
    """The weights of one head, q (n, d) · k (m, d) -> (n, m), by hand."""
    scores = q @ k.T / q.shape[-1] ** 0.5
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def softmax_attention(q, k, v):
    """One row and head at a time."""
    rows, out = q.shape[0], torch.empty(v.shape[0], *q.shape[1:3], v.shape[-1], dtype=q.dtype)
    for i in range(v.shape[0]):
        for h in range(q.shape[2]):
            out[i, :, h] = softmax(q[i % rows, :, h], k[i % rows, :, h]) @ v[i, :, h]
    return out
