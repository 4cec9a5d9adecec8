"""What a computation costs, counted without doing it: its own code, run on tensors without data.

A fake tensor has a shape, strides, a dtype and a device, and no memory. Code that runs on it takes
the branches that it takes on that device, the choice of kernels included, so nothing here repeats
what a network does and nothing goes stale when it changes.

    with fakes("cuda") as device:
        unet = blank(editor.backbone.unet, device)
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
    flops: int
    """Of matrix products, convolutions and attention; a multiplication and addition are two."""
    peak_bytes: int
    """The most that tensors made on the way take at one time; what was there before is left out.

    Kernels' own workspaces, and what an allocator cannot fill between tensors, come on top: on a
    CPU with glibc 1 to 35 % in the first forward pass, 12 to 47 % after several (measured).
    """


@contextmanager
def fakes(device: str | torch.device) -> Iterator[torch.device]:
    """Inside, new tensors are fake; gives the device to make them on.

    It is `device`, but for CUDA: then it is the meta device, which to code that asks is no CPU.
    Triton's kernels refuse it, since they cannot run without data, and what stands in for them
    does the same operations; attention runs as on a GPU, keeping no scores.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    # torch.tensor makes no fakes on the meta device, but what it makes there is as good
    with (
        FakeTensorMode(allow_non_fake_inputs=on_gpu),
        _FusedAttention() if on_gpu else nullcontext(),
    ):
        yield torch.device("meta") if on_gpu else device


def count(run: Callable[[], Any]) -> Cost:
    """What run() costs, without gradients: predicted inside `fakes`, else while it really runs."""
    # under inference mode some operations arrive in a form that has no formula
    with torch.inference_mode(False), torch.no_grad(), _Tally() as tally:
        run()
    return Cost(tally.flops, tally.peak)


class _Tally(TorchDispatchMode):
    """Sees every operation: adds up what they compute and follows the bytes that are alive."""

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
        given, made = _storages((args, kwargs)), _storages(out)
        for key in made.keys() - given.keys():
            self._follow(made[key])
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed():
            self.live -= size

        # views share the storage: it goes with the last of them
        weakref.finalize(storage, freed).atexit = False


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor))
    return {id(s): s for s in (x.untyped_storage() for x in tensors)}


class _FusedAttention(TorchFunctionMode):
    """Attention by a kernel that keeps no scores; on the meta device PyTorch would keep them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        run = _fused_attention if func is F.scaled_dot_product_attention else func
        return run(*args, **(kwargs or {}))


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(q, k, v, None, False, is_causal=is_causal)[0]


# what PyTorch lacks for operators that run on a CPU only: (x W^T + b) * other without data, and
# the operations of oneDNN's products and of attention
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
