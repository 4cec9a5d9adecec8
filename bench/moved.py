"""Launches, bytes moved, operations and peak of the published network, before and after a change.

    PYTHONPATH=CHECKOUT python bench/moved.py

Counts what that checkout would start on a GPU, in float16, without one and without data: every
operation of PyTorch that is not a view counts as one launch that reads its inputs once and writes
its outputs once. So does a call that dispatches to a Triton kernel, however many launches it makes.
A convolution with a bias counts as two, because PyTorch adds the bias in a pass of its own. Bytes
that a cache saves or that a library reads twice are not seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import anyv2v
from anyv2v.injection.taps import NO_TAPS
from anyv2v.kernels import gpu
from anyv2v.media.frames import Video
from anyv2v.pipeline import cost
from anyv2v.runtime.accounting import count, fake_mode
from bench.counted import FRAMES, SIZE, published_size

DISPATCHERS = (
    "attention",
    "geglu",
    "group_norm_silu",
    "layer_norm",
    "linear",
    "residual_sum",
    "short_attention",
)

NO_KERNEL = ("prim.", "aten.empty", "aten._unsafe_view", "aten.detach", "aten.lift_fresh")


class Moved(TorchDispatchMode):
    """Adds up launches and the bytes that they read and write."""

    def __init__(self):
        super().__init__()
        self.launches = self.bytes = self.bias_passes = self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.inside and not func.is_view:
            self.launched(func, (args, kwargs), out)
        return out

    def launched(self, func: Any, inputs: Any, out: Any) -> None:
        """Count one operation of PyTorch."""
        name = str(func)
        if name.startswith(NO_KERNEL):
            return
        self.launches += 1
        self.bytes += nbytes(inputs) + nbytes(out)
        if name == "aten.convolution.default" and inputs[0][2] is not None:
            self.launches += 1
            self.bias_passes += 1
            self.bytes += 2 * nbytes(out)


def nbytes(tree: Any) -> int:
    """Bytes of all tensors in a tree; memory that a tensor repeats by stride 0 counts once."""
    return sum(
        x.itemsize * torch.Size(n for n, by in zip(x.shape, x.stride(), strict=True) if by).numel()
        for x in tree_leaves(tree)
        if isinstance(x, Tensor)
    )


def count_kernels(moved: Moved) -> None:
    """From now on, choose Triton kernels as on a GPU, and count each call of one as a launch."""
    never = {gpu.refuses, gpu.avoids_interpreter}
    gpu.refuses = gpu.avoids_interpreter = _never
    for operation in DISPATCHERS:
        try:
            module = importlib.import_module(f"anyv2v.kernels.{operation}")
        except ModuleNotFoundError:
            continue  # the checkout is older
        for name in [n for n in vars(module) if n.endswith("TABLE")]:
            table = getattr(module, name)
            by = {i.name: i for i in table}
            if "triton" not in by:
                continue
            plain = next(by[n] for n in ("eager", "sdpa", "reference") if n in by).run

            def run(*args, plain=plain, **options):
                moved.inside += 1
                out = plain(*args, **options)
                moved.inside -= 1
                moved.launches += 1
                moved.bytes += nbytes((args, options)) + nbytes(out)
                return out

            triton = replace(by["triton"], run=run)
            for rule in ("refuses", "avoids"):
                if getattr(triton, rule) in never:
                    triton = replace(triton, **{rule: _never})
            setattr(module, name, tuple(triton if i.name == "triton" else i for i in table))


def _never(*_: Any, **__: Any) -> None:
    """Replacement for rules that refuse tensors without data."""


class CudnnLayout(TorchDispatchMode):
    """Makes results of convolutions channels-last, as cuDNN does; the meta device does not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and out.ndim == 4:
            out = torch.empty_like(out, memory_format=torch.channels_last)
        return out


@contextmanager
def fake_gpu(_: Any = None) -> Iterator[torch.device]:
    """Fake mode for tensors without data on a GPU, with the memory formats of cuDNN."""
    with fake_mode("cuda") as device, CudnnLayout():
        yield device


def report(name: str, moved: Moved, run) -> None:
    """Run a function in fake mode and print its launches, bytes, operations and peak."""
    before = moved.launches, moved.bytes, moved.bias_passes
    with torch.no_grad(), moved:
        run()
    launches, moved_bytes, biases = (
        now - then
        for now, then in zip((moved.launches, moved.bytes, moved.bias_passes), before, strict=True)
    )
    cost = count(run)
    print(
        f"{name:22} {launches:5} launches, {biases:3} of them biases; {moved_bytes / 1e9:6.2f} GB "
        f"moved; {cost.flops / 1e12:6.2f} TFLOP; {cost.peak_bytes / 1e9:.2f} GB at the peak",
        flush=True,
    )


def main() -> None:
    """Print the figures of the UNet, the autoencoder and a whole edit."""
    editor = published_size()
    # the memory format of weights that are loaded from a file
    for network in (editor.backbone.unet, editor.backbone.codec.vae):
        network.to(memory_format=torch.channels_last)
    video = Video(frames=np.zeros((FRAMES, SIZE, SIZE, 3), "uint8"), fps=8)
    print(anyv2v.__file__)
    moved = Moved()
    with fake_gpu() as device, torch.no_grad():
        twin = editor.backbone.meta_copy(device)
        vae, like = twin.codec.vae, dict(dtype=twin.dtype, device=device)
        channels, frames, height, width = twin.codec.shape(FRAMES, SIZE, SIZE)
        conditions = twin.meta_conditions(frames, height, width)
        latents = torch.empty(1, channels, frames, height, width, **like)
        two = conditions.stack([conditions, conditions], [0, 0])
        small = torch.empty(1, channels, height, width, **like)
        pixels = torch.empty(1, 3, SIZE, SIZE, **like)
        count_kernels(moved)
        for name, run in (
            ("UNet, one branch", lambda: twin.predict(latents, 1, conditions, NO_TAPS)),
            ("UNet, two branches", lambda: twin.predict(latents, 1, two, NO_TAPS)),
            ("encoder, one frame", lambda: vae.encode(pixels)),
            ("decoder, one frame", lambda: vae.decode(small)),
        ):
            report(name, moved, run)
    # the editor's networks are on the meta device, but the cost is that of a GPU
    cost.fake_mode = fake_gpu
    print(cost.predict_cost(editor, video, feature_memory=0))


if __name__ == "__main__":
    main()
