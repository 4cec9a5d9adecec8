"""GEGLU on a CPU by oneDNN, which applies GELU and the product within its matrix products."""

from torch import Tensor

from anyv2v.kernels.linear import onednn


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `geglu` by two oneDNN operators, without gradients.

    Returns value * GELU(gate), with [value | gate] = x W^T + b; the arguments are those of
    `anyv2v.kernels.geglu.geglu`.
    """
    (w_value, w_gate), (b_value, b_gate) = weight.chunk(2), bias.chunk(2)
    gate = onednn.product(x, w_gate, b_gate, "gelu")
    return onednn.product_times(x, w_value, b_value, gate)


def refuses(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Returns the reason why oneDNN cannot run this call of `geglu`, or None if it can."""
    if onednn.wants_gradients(x, weight, bias):
        return "it has no gradients"
    return onednn.refuses(x, weight, bias)
