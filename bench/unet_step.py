"""One forward of our UNet against diffusers' on the same weights, in one process.

    python bench/unet_step.py [--widths 128 256 512 512] [--frames 16] [--size 32] [--pairs 7]

Checks that both give the same before it times anything; then runs them in turns and prints the
median of each and of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import I2VGenXLUNet

from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.convert.i2vgen import UNET
from anyv2v.convert.rename import rename

CONTEXT, HEAD_DIM = 256, 64


def build(widths: list[int]) -> tuple[UNet, I2VGenXLUNet]:
    """Both networks with the same random weights, every tensor redrawn."""
    theirs = I2VGenXLUNet(
        block_out_channels=widths, cross_attention_dim=CONTEXT, attention_head_dim=HEAD_DIM
    ).eval()
    generator = torch.Generator().manual_seed(0)
    state = theirs.state_dict()
    for name, x in state.items():
        if x.ndim > 1:  # half the variance that keeps activations level
            x.normal_(0, (0.5 / x[0].numel()) ** 0.5, generator=generator)
        else:
            is_scale = name.endswith("weight")
            x.normal_(1.0 if is_scale else 0.0, 0.1, generator=generator)
    attention = tuple(i < len(widths) - 1 for i in range(len(widths)))
    ours = UNet(UNetConfig(4, tuple(widths), attention, 2, HEAD_DIM, CONTEXT, 32)).eval()
    shapes = ours.state_dict()
    named = {
        renamed.name: state[their_name].reshape(shapes[renamed.name].shape)
        for their_name, renamed in rename(state, UNET).items()
    }
    ours.load_state_dict(named)
    return ours.to(memory_format=torch.channels_last), theirs


def median_seconds(runs: list[Callable[[], object]], pairs: int) -> list[list[float]]:
    """Seconds of each run, taken in turns after one warm-up of each."""
    for run in runs:
        run()
    seconds = [[] for _ in runs]
    for _ in range(pairs):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 512])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    ours, theirs = build(args.widths)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latents = draw(1, 4, args.frames, args.size, args.size)
    image = draw(1, 4, args.frames, args.size, args.size)
    text, embedding, fps = draw(1, 77, CONTEXT), draw(1, CONTEXT), torch.tensor([8])
    t = torch.tensor([501])

    def run_ours() -> torch.Tensor:
        # a run computes the conditions once, but the comparison is of the same work
        return ours(latents, t, ours.condition(text, embedding, image, fps))

    def run_theirs() -> torch.Tensor:
        return theirs(latents, t, fps, image, embedding[:, None], encoder_hidden_states=text).sample

    truth = run_theirs()
    error = ((run_ours() - truth).norm() / truth.norm()).item()
    if not error <= 1e-5:
        raise SystemExit(f"the results differ by {error:.2g}: nothing was timed")

    seconds = median_seconds([run_ours, run_theirs], args.pairs)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    print(
        f"UNet forward, widths {args.widths}, {args.frames} frames, {args.size}x{args.size} latents"
    )
    print(f"relative difference of the results {error:.2g}")
    for name, times in zip(("anyv2v", "diffusers"), seconds, strict=True):
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{name:10} median {statistics.median(times):.2f} s ({spread})")
    print(f"ratio, median of {args.pairs} pairs: {ratio:.3f}")
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
