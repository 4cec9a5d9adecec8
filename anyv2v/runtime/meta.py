"""Networks without data, used to find out shapes and costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from anyv2v.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def meta_copy(network: Network, device: torch.device, dtype: torch.dtype | None = None) -> Network:
    """Returns a copy of a network on `device` with uninitialized weights in the same memory layout.

    The layout of weights that are yet to be loaded, which take no memory, is the one that they will
    have: channels-last for those with four axes.

    Nothing is allocated if the device is "meta", or inside a `FakeTensorMode`. No data is read, so
    `network` may itself be on the meta device. dtype: the dtype of the copy's floating-point
    weights; None keeps that of each weight.
    """

    def empty_copy(x: Tensor) -> Tensor:
        cast = dtype if dtype is not None and x.is_floating_point() else x.dtype
        if 0 in x.stride():
            last = torch.channels_last if x.ndim == 4 else torch.contiguous_format
            empty = torch.empty(x.shape, dtype=cast, device=device, memory_format=last)
        else:
            empty = torch.empty_strided(x.shape, x.stride(), dtype=cast, device=device)
        return nn.Parameter(empty, requires_grad=False) if isinstance(x, nn.Parameter) else empty

    # deepcopy takes what its memo holds under the id of an object for that object's copy, so it
    # never copies a weight itself
    memo = {id(x): empty_copy(x) for x in chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, memo)


def shapes_of(
    builders: Mapping[str, Callable[[], nn.Module]],
) -> dict[str, Mapping[str, tuple[int, ...]]]:
    """Returns component -> name of a parameter or buffer -> its shape.

    builders: component -> a function that builds its network, which is called on the meta device,
    without memory for weights. Raises InputError, which names the component, if that fails.
    """
    networks = {}
    with torch.device("meta"):
        for name, build in builders.items():
            try:
                networks[name] = build()
            except InputError:
                raise
            # torch's layers raise all of these for sizes that are impossible
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"{name}: {error}") from error
    return {
        name: {key: tuple(x.shape) for key, x in network.state_dict().items()}
        for name, network in networks.items()
    }
