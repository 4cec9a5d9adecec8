"""What short attention is, in plain PyTorch: the definition that implementations are held to."""

import torch
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = v.shape[0] // q.shape[0]
    scores = torch.einsum("rnphd,rmphd->rphnm", q.to(wide), k.to(wide)) * q.shape[-1] ** -0.5
    values = v.to(wide).unflatten(0, (groups, q.shape[0]))
    out = torch.einsum("rphnm,grmphe->grnphe", scores.softmax(dim=-1), values)
    return out.flatten(0, 1).to(v.dtype).contiguous()
