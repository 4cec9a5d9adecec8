"""T2, T4, T6: experiments with other tiles, switches, larger products and a compiler."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v.kernels.attention.reference import reference
from bench.rental.lab import Lab
from bench.rental.network import (
    one_branch,
    profile_kernels,
    random_inputs,
    use_attention,
    use_pytorch,
)
from bench.truth import CHOICES, relative
from bench.unet import ALLOWED, ways_of_steps

TILES = {
    1: [(128, 128, 8, 3), (128, 64, 4, 3)],
    2: [(128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3)]
    + [(64, 128, 4, 2)],
    3: [(128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (64, 64, 4, 2)]
    + [(64, 64, 4, 3), (64, 128, 4, 2)],
}
"""Groups -> tiles (queries, keys, warps, stages) that compile without spilling registers."""


@torch.no_grad()
def tiles(lab: Lab) -> None:
    """T2: check and time the attention kernel with different tiles."""
    from anyv2v.kernels.attention import fused

    for tokens, heads in ((16, 1),) if lab.dry else ((4096, 5), (1024, 10)):
        batch, head_dim = (1, 16) if lab.dry else (16, 64)
        for groups, table in TILES.items():
            shape = batch, tokens, heads, head_dim
            q, k = (torch.randn(shape, device=lab.device, dtype=torch.float16) for _ in range(2))
            v = torch.randn(groups * batch, *shape[1:], device=lab.device, dtype=torch.float16)
            truth = reference(q[:1].double(), k[:1].double(), v[::batch].double())
            case = f"attention, {tokens} tokens, g={groups}"
            flops = 2 * heads * tokens**2 * head_dim * (batch + groups * batch)
            for tile in table[:1] if lab.dry else table:
                chosen = fused.Tiles(*tile)
                if lab.dry:
                    chosen = fused.Tiles(16, 16, 4, 1)
                every = dict.fromkeys((1, 2, 3, 4), chosen)

                def run(every=every, q=q, k=k, v=v) -> Tensor:
                    with mock.patch.object(fused, "tiles_by_groups", lambda *_: every):
                        return fused.attention(q, k, v)

                name = "x".join(map(str, tile[:2])) + f", {tile[2]} warps, {tile[3]} stages"
                try:
                    off = relative(run()[::batch], truth)
                    right = off <= 1e-3
                    times = lab.clock(lab.captured(run), 0.0 if lab.dry else 0.1) if right else None
                except Exception as e:
                    lab.fact(case, name, "failed", reason=f"{type(e).__name__}: {e}"[:200])
                    continue
                rate = flops / times.median_s / 1e12 if times else None
                lab.fact(
                    case,
                    name,
                    "ok" if right else "wrong",
                    times=times,
                    error=off,
                    tflops=rate,
                    headline=True,
                )


@contextmanager
def use_implementation(kernel: str, name: str) -> Iterator[None]:
    """Use the implementation of that name for one kernel."""
    module = importlib.import_module(f"anyv2v.kernels.{kernel}")
    patches = [mock.patch.object(module, place, name) for place in CHOICES[kernel]]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def small_norm_tiles() -> Iterator[None]:
    """Use smaller tiles in the group norm kernel."""
    from anyv2v.kernels.group_norm_silu import fused

    with mock.patch.object(fused, "POSITIONS", 64):
        yield


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Turn off cuDNN's attention."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def switches(lab: Lab) -> None:
    """T4: time a captured forward with one thing changed; the first and last change nothing."""
    with torch.no_grad():
        _switches(lab)
        _products(lab)


def _switches(lab: Lab) -> None:
    inputs = random_inputs(lab)
    run = one_branch(inputs)
    truth = run()
    ways: dict[str, Callable[[], AbstractContextManager]] = {
        "as it is": nullcontext,
        "cudnn.benchmark": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True),
        "no attention by cuDNN": without_cudnn_attention,
        "attention by triton": lambda: use_attention("sdpa" if lab.dry else "triton"),
        "group norm by PyTorch": lambda: use_implementation("group_norm_silu", "eager"),
        "GEGLU by PyTorch": lambda: use_implementation("geglu", "eager"),
        "short attention by PyTorch": lambda: use_implementation("short_attention", "eager"),
        "layer norm by PyTorch": lambda: use_implementation("layer_norm", "eager"),
        "group norm in tiles of 64x64": nullcontext if lab.dry else small_norm_tiles,
        "nothing by Triton": use_pytorch,
        "as it is, again": nullcontext,
    }
    for name, way in ways.items():
        try:
            with way():
                off = relative(run(), truth)
                right = off <= ALLOWED[lab.dtype]
                times = lab.clock(lab.captured(run)) if right else None
        except Exception as e:
            lab.fact("switch", name, "failed", reason=f"{type(e).__name__}: {e}"[:200])
            continue
        lab.fact("switch", name, "ok" if right else "wrong", times=times, error=off, headline=True)
    step = ways_of_steps(inputs)["step that injects"]["replayed, compact (the default)"]
    kinds = profile_kernels(lab, step, "profile2.csv")
    for kind, (ms, launches) in sorted(kinds.items(), key=lambda x: -x[1][0]):
        lab.fact("profile of a step that injects", kind, ms=ms, launches=launches)


def _products(lab: Lab) -> None:
    """Time fused matrix products, and a temporal convolution as a matrix product."""
    for tokens, c in ((32, 16),) if lab.dry else ((65536, 320), (16384, 640), (4096, 1280)):

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=lab.device, dtype=lab.dtype) * shape[-1] ** -0.5

        x, h = normal(tokens, c), normal(tokens, c)
        w, b, wide = normal(c, c), normal(c), normal(3 * c, c)
        weights = wide.split(c)
        frames = 4 if lab.dry else 16
        video = x.view(1, frames, tokens // frames, c)
        kernel = normal(c, c, 3, 1).to(memory_format=torch.channels_last)
        flat = kernel.squeeze(-1).permute(0, 2, 1).reshape(c, 3 * c).contiguous()

        def convolve(video=video, kernel=kernel) -> Tensor:
            out = F.conv2d(video.permute(0, 3, 1, 2), kernel, padding=(1, 0))
            return out.permute(0, 2, 3, 1)

        def as_product(video=video, flat=flat) -> Tensor:
            padded = F.pad(video, (0, 0, 0, 0, 1, 1))
            f = video.shape[1]
            joined = torch.cat([padded[:, i : i + f] for i in range(3)], dim=-1)
            return F.linear(joined, flat)

        def as_three_products(x=x, kernel=kernel, frames=frames) -> Tensor:
            rows = x.shape[0] // frames
            before, here, after = (kernel[:, :, i, 0].t().contiguous() for i in range(3))
            out = x @ here
            out[rows:].addmm_(x[:-rows], before)
            out[:-rows].addmm_(x[rows:], after)
            return out.view(1, frames, rows, -1)

        pairs = {
            "residual sum": (
                ("product, then sum", lambda h=h, w=w, b=b, x=x: x + F.linear(h, w, b)),
                ("product that adds", lambda h=h, w=w, b=b, x=x: torch.addmm(x + b, h, w.t())),
            ),
            "query, key, value": (
                ("three products", lambda x=x, ws=weights: torch.cat([x @ y.t() for y in ws], 1)),
                ("one product", lambda x=x, wide=wide: F.linear(x, wide)),
            ),
            "temporal convolution": (
                ("cuDNN", convolve),
                ("joined frames, one product", as_product),
                ("three products that add", as_three_products),
            ),
        }
        for what, ways in pairs.items():
            _compare(lab, f"{what}, {tokens} tokens of {c}", ways)


def _compare(lab: Lab, case: str, ways: Sequence[tuple[str, Callable[[], Tensor]]]) -> None:
    """Time the ways to compute one result that agree with the first of them."""
    first = None
    for name, run in ways:
        out = run()
        first = out if first is None else first
        off = relative(out, first)
        right = off <= (1e-4 if lab.dry else 5e-3)
        times = lab.clock(lab.captured(run), 0.0 if lab.dry else 0.1) if right else None
        lab.fact(case, name, "ok" if right else "wrong", times=times, error=off)


@torch.no_grad()
def compiled(lab: Lab) -> None:
    """T6: time torch.compile of the whole network, with and without our kernels."""
    inputs = random_inputs(lab)
    arguments = inputs.latents[:1], inputs.t[:1], inputs.condition(slice(1))
    truth = inputs.unet(*arguments)
    backend = "eager" if lab.dry else "inductor"
    ways = {"ours traced as they are": nullcontext, "nothing by Triton": use_pytorch}
    if lab.dry:
        # tracing takes up to a minute each time
        del ways["nothing by Triton"]
    for name, way in ways.items():
        torch._dynamo.reset()
        try:
            with way():
                network = torch.compile(
                    inputs.unet, fullgraph=not lab.dry, dynamic=False, backend=backend
                )
                begin = lab.stopwatch()
                off = relative(network(*arguments), truth)
                building = lab.stopwatch() - begin
                run = lambda network=network: network(*arguments)  # noqa: E731
                right = off <= ALLOWED[lab.dtype]
                times = lab.clock(lab.captured(run)) if right else None
        except Exception as e:
            first = str(e).strip().splitlines()
            lab.fact(
                "torch.compile", name, "failed", reason=f"{type(e).__name__}: {first[:1]}"[:300]
            )
            continue
        lab.fact(
            "torch.compile",
            name,
            "ok" if right else "wrong",
            times=times,
            error=off,
            building_s=building,
            headline=True,
        )
