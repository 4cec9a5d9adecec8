"""Matrix products on a CPU by oneDNN, a library that PyTorch contains.

PyTorch itself uses oneDNN for convolutions only, and calls MKL for float32 products. On processors
that are not Intel's, MKL runs at less than half of oneDNN's speed. The operators used here are
those that PyTorch's compiler emits; their gradients are defined here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Returns the reason why oneDNN cannot compute x W^T + b for these tensors, or None."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"it is for float32 on a CPU, not {x.dtype} on {x.device.type}"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return "oneDNN is not there or switched off"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch has no oneDNN linear operator"
    if torch.is_autocast_enabled("cpu"):
        return "autocast does not know it"
    if x.numel() == 0:
        return "the input is empty"
    return None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Computes activation(x W^T + b) by oneDNN, without gradients.

    x (..., c), weight (e, c), bias (e,) or None -> (..., e), float32. activation: "none", or "gelu"
    for the exact GELU.
    """
    algorithm = "none" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


def product_times(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """Computes (x W^T + b) * other by oneDNN, without gradients.

    x (..., c), weight (e, c), bias (e,) or None, other (..., e) -> (..., e), float32.
    """
    # without the overload's name PyTorch tries the other one first, and prints all tensors into the
    # error that it then drops: two milliseconds
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "mul")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t(), None) if needs_x else None,
            product(flat.t(), x.reshape(-1, x.shape[-1]).t(), None) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether gradients are enabled and any of the tensors requires one; None is no tensor."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x W^T + b by oneDNN, with gradients if any of the tensors requires one.

    x (..., c), weight (e, c), bias (e,) or None -> (..., e), float32.
    """
    if wants_gradients(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)
