"""The definition of short attention in plain PyTorch, which every implementation must match."""

import torch
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes `short_attention` in float32, or float64 for float64 inputs; returns v's dtype.

    Returns softmax(q k^T / sqrt(d)) v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_attention`.
    """
    return _apply_weights(_softmax(q, k), v)


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Computes `short_probabilities` in float32, or float64 for float64; returns q's dtype.

    Returns softmax(q k^T / sqrt(d)) at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_probabilities`.
    """
    return _softmax(q, k).to(q.dtype).contiguous()


def apply(weights: Tensor, v: Tensor) -> Tensor:
    """Computes `apply_probabilities` in float32, or float64 for float64; returns v's dtype.

    Returns the probabilities times v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.apply_probabilities`.
    """
    return _apply_weights(weights, v)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("rnphd,rmphd->rphnm", q.to(wide), k.to(wide)) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


def _apply_weights(weights: Tensor, v: Tensor) -> Tensor:
    wide = torch.promote_types(v.dtype, torch.float32)
    values = v.to(wide).unflatten(0, (-1, weights.shape[0]))
    out = torch.einsum("rphnm,grmphe->grnphe", weights.to(wide), values)
    return out.flatten(0, 1).to(v.dtype).contiguous()
