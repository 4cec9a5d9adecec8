"""What linear is, in plain PyTorch: the definition that implementations are held to."""

import torch
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.einsum("...c,ec->...e", x.to(wide), weight.to(wide))
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)
