"""Every kernel compared with its peers, on the calls of one UNet forward on 16 frames of 512x512.

A result is compared with the operation's definition in float64. On a GPU each call is replayed from
a CUDA graph, with the cache flushed before it. Peers: PyTorch operation by operation, each backend
of its attention (on q and k repeated beforehand, where a softmax is shared), and torch.compile. On
a CPU: 8 frames of 256x256, a quarter of the channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anyv2v.kernels.cases import Case, cases
from bench.core import Bench, Contender
from bench.truth import relative

OURS = ("triton", "onednn")
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ON_CPU = (8, ((32, 128), (16, 256), (8, 256), (4, 256)))


@torch.no_grad()
def run(bench: Bench) -> None:
    """Measure the subject "kernels"."""
    torch.manual_seed(0)
    bench.seconds = min(bench.seconds, 0.3)  # the cases are many and short
    for case in cases() if bench.cuda else cases(*ON_CPU):
        measure(bench, case)


def measure(bench: Bench, case: Case) -> None:
    """Measure one case: the implementations of its table, and the peers that are not in it."""
    args, options = case.draw(bench.device, bench.dtype)
    contenders = [
        Contender(
            i.name,
            lambda i=i: i.run(*args, **options),
            peer=i.name not in OURS,
            flops=lambda: flops(case),
            moved=lambda out: moved(args, options, out),
        )
        for i in case.table
        # on a CPU a Triton kernel would run in the interpreter
        if i.name not in ("reference",) + (() if bench.cuda else ("triton",))
        and i.refuses(*args, **options) is None
    ]
    contenders += [
        Contender(
            name,
            run,
            peer=True,
            flops=lambda: flops(case),
            moved=lambda out: moved(args, options, out),
        )
        for name, run in peers(bench, case, args, options)
    ]
    if len(contenders) == 1 and not bench.cuda:
        return  # no peer to compare with
    eps = torch.finfo(bench.dtype).eps
    own = 0.0

    def off(name: str, out: Any) -> float:
        nonlocal own
        found = error(case, args, options, out)
        if name in ("eager", "sdpa") and found <= 8 * eps:
            own = max(own, found)
        return found

    # ours may have twice the error of PyTorch's own; peers a few roundings
    contenders.sort(key=lambda c: c.name in OURS)

    def allowed(name: str) -> float:
        return max(2 * own, eps) + eps / 8 if name in OURS else 8 * eps

    bench.case(f"{case.operation} {case.name}", contenders, off, allowed, captured=True)


def tensors(value: Any) -> list[Tensor]:
    """List all tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for v in value for t in tensors(v)] if not isinstance(value, (int, float)) else []


def moved(*values: Any) -> int:
    """Bytes of all tensors among the values, which must be read or written at least once."""
    return sum(t.numel() * t.element_size() for t in tensors(values))


def flops(case: Case) -> int:
    """Count the operations of the matrix products that cannot be left out."""
    if case.operation == "attention":
        (rows, n, heads, d), (_, m, _, _), (values, *_) = case.shapes
        return 2 * heads * n * m * d * (rows + values)
    if case.operation in ("linear", "geglu"):
        (*tokens, _), (channels_out, channels_in), _ = case.shapes
        return 2 * channels_in * channels_out * torch.Size(tokens).numel()
    return 0


def peers(bench: Bench, case: Case, args: tuple, options: dict) -> Iterator[tuple[str, Any]]:
    """Give what would run without these kernels, where the table does not have it already."""
    by_name = {i.name: i.run for i in case.table}
    if case.operation == "attention":
        q, k, v = (x.transpose(1, 2) for x in args)
        groups = v.shape[0] // q.shape[0]
        # the cost of repeating them is not counted
        q, k = (x.repeat(groups, 1, 1, 1) if groups > 1 else x for x in (q, k))

        def attend(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return out.transpose(1, 2)

    elif "sdpa" in by_name:

        def attend(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                return by_name["sdpa"](*args, **options)

    if "sdpa" in by_name:
        for name, backend in BACKENDS.items():
            if bench.cuda or backend is SDPBackend.FLASH_ATTENTION:
                yield name, lambda backend=backend: attend(backend)
    if bench.compiling and "eager" in by_name and case.operation != "linear":
        torch._dynamo.reset()
        run = torch.compile(by_name["eager"], fullgraph=True, dynamic=False)
        yield "compiled", lambda: run(*args, **options)


def error(case: Case, args: tuple, options: dict, out: Any) -> float:
    """Return ||out - definition|| / ||definition||, with the definition in float64."""
    truth_of = next(i.run for i in case.table if i.name == "reference")
    if case.operation == "attention":
        # one row and its groups of values: all rows would not fit in memory
        rows = args[0].shape[0]
        args, out = (args[0][:1], args[1][:1], args[2][::rows]), out[::rows]

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) else x

    truth = truth_of(*map(wide, args), **{k: wide(v) for k, v in options.items()})
    pairs = zip(tensors([out]), tensors([truth]), strict=True)
    return max(relative(ours, wanted) for ours, wanted in pairs)
