"""The cost of a computation, counted by running its own code on tensors without data.

A fake tensor has a shape, strides, a dtype and a device, but no memory. Code that runs on fake
tensors takes the same branches as on real ones on that device, the choice of kernels included. So
nothing here repeats what a network does, and nothing becomes outdated when a network changes.

    with fake_mode("cuda") as device:
        unet = meta_copy(editor.backbone.unet, device)
        latents = torch.empty(1, 4, 16, 64, 64, dtype=torch.float16, device=device)
        cost = count(lambda: unet(latents, ...))
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and memory of a computation."""

    flops: int
    """Floating-point operations of matrix products, convolutions and attention; a multiply-add
    counts as two."""
    peak_bytes: int
    """The most bytes that tensors made by the computation, and not its inputs, occupy at one time.

    Workspaces of kernels, and gaps that an allocator cannot fill, come on top: on a CPU with glibc
    they took 1 to 35 % more in the first forward pass and 12 to 47 % after several (measured).
    """


@contextmanager
def fake_mode(device: str | torch.device) -> Iterator[torch.device]:
    """Makes all new tensors inside the block fake; yields the device to make them on.

    For a CPU that device is `device` itself. For CUDA it is the meta device, which code that asks
    for the type can tell from a CPU. Triton kernels refuse the meta device, because they cannot run
    without data, and PyTorch does the same operations in their place. Attention does not
    materialize its scores, as on a GPU.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    # torch.tensor makes no fake tensor on the meta device, but a meta tensor has no data either
    with (
        FakeTensorMode(allow_non_fake_inputs=on_gpu),
        _FusedAttention() if on_gpu else nullcontext(),
    ):
        yield torch.device("meta") if on_gpu else device


def count(run: Callable[[], Any]) -> Cost:
    """Returns the cost of run(), which is called once, without gradients.

    Inside `fake_mode` the cost is a prediction for tensors without data; elsewhere run() really
    computes.
    """
    # under inference mode some operations arrive in a form that has no formula
    with torch.inference_mode(False), torch.no_grad(), _Tally() as tally:
        run()
    return Cost(tally.flops, tally.peak)


class _Tally(TorchDispatchMode):
    """Intercepts every operation, to add up the FLOPs and to follow the bytes that are alive."""

    def __init__(self):
        super().__init__()
        self.flops = self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(func) == _PRODUCT_TIMES and isinstance(args[0], FakeTensor):
            out = torch.empty_like(args[1])
        else:
            out = func(*args, **kwargs)
        if formula := _FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        inputs, outputs = _storages((args, kwargs)), _storages(out)
        for key in outputs.keys() - inputs.keys():
            self._follow(outputs[key])
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed():
            self.live -= size

        # views share the storage, which is freed with the last of them
        weakref.finalize(storage, freed).atexit = False


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor))
    return {id(s): s for s in (x.untyped_storage() for x in tensors)}


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by the operator of a fused kernel.

    On the meta device PyTorch would choose one that materializes the scores.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        run = _fused_attention if func is F.scaled_dot_product_attention else func
        return run(*args, **(kwargs or {}))


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(q, k, v, None, False, is_causal=is_causal)[0]


# what PyTorch lacks for operators that exist on a CPU only: a fake implementation of
# (x W^T + b) * other, and the FLOPs of oneDNN's products and of attention
_PRODUCT_TIMES = "mkldnn._linear_pointwise.binary"


def _product_flops(x: Tensor, *_: Any, out_val: Tensor) -> int:
    return 2 * x.numel() * out_val.shape[-1]


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


_FORMULAS = {
    **flop_registry,
    getattr(torch.ops.mkldnn, "_linear_pointwise", None): _product_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
