"""Matrix products in 8 bits: e4m3 with a scale for every token and every output (README.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from anyv2v.kernels import gpu

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type not in ("cpu", "cuda"):
        return f"it needs a CUDA device, or a CPU to measure its error, not {x.device}"
    if not hasattr(torch, "_scaled_mm"):
        return "this PyTorch has no product of scaled 8-bit matrices"
    if x.device.type == "cuda":
        if x.dtype not in (torch.float16, torch.bfloat16):
            return f"{x.dtype} is not float16 or bfloat16"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(x.device) < (8, 9):
            return "the GPU is older than compute capability 8.9"
    elif x.dtype not in gpu.DTYPES:
        return f"{x.dtype} is not float16, bfloat16 or float32"
    if any(size % 16 for size in weight.shape):
        return f"a weight of {tuple(weight.shape)} is not made of multiples of 16"
    given = [t for t in (x, weight, bias) if t is not None]
    if any(t.dtype != x.dtype or t.device != x.device for t in given):
        return "its tensors differ in dtype or device"
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return "it has no gradients; call it under torch.no_grad()"
    if x.numel() == 0:
        return "the input is empty"
    return None


def yields(*_: Tensor | None) -> str:
    return "8 bits lose a few percent of every product"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens, scale = rounded(x.reshape(-1, x.shape[-1]))
    kept, kept_scale = _rounded_once(weight)
    out = torch._scaled_mm(
        tokens, kept.t(), scale_a=scale, scale_b=kept_scale.t(), bias=bias, out_dtype=x.dtype
    )
    return out.view(*x.shape[:-1], -1)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, c) as e4m3 numbers and a float32 scale (n, 1) for each row."""
    wide = x.float()
    # a row of zeros must not be divided by zero
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    # the largest of a row may come out a rounding above what e4m3 holds, which would be NaN
    return (wide / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def _rounded_once(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight, kept beside it: as long as it lives and is not written to."""
    version = None if weight.is_inference() else weight._version
    kept = getattr(weight, "_anyv2v_fp8", None)
    if kept is None or kept[0] != version:
        kept = version, rounded(weight)
        weight._anyv2v_fp8 = kept
    return kept[1]
