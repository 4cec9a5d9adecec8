"""Networks without data, to find out shapes and costs."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn


def blank(network: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """The same network with empty weights on `device`, in `dtype` if given; strides are kept.

    Nothing is allocated if the device is "meta", or inside a `FakeTensorMode`. No data is read, so
    `network` may itself be on the meta device.
    """

    def twin(x: Tensor) -> Tensor:
        cast = dtype if dtype is not None and x.is_floating_point() else x.dtype
        empty = torch.empty_strided(x.shape, x.stride(), dtype=cast, device=device)
        return nn.Parameter(empty, requires_grad=False) if isinstance(x, nn.Parameter) else empty

    # a copy takes what it finds under an object's id for that object's copy
    twins = {id(x): twin(x) for x in chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, twins)
