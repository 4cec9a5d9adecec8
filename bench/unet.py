"""Forwards of the UNet: ours and diffusers' on the same weights, and each saving on and off.

All weights are random. On a GPU the network has its published size, 512x512 and
16 frames; on a CPU a fifth of the channels, 128x128 and 8 frames (full: 256x256 and 16). Peers:
diffusers' I2VGenXLUNet as it is (with PyTorch's fused attention), channels-last, and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.injection.taps import NO_TAPS, Record, Replay, ShareSource
from anyv2v.runtime.accounting import count
from bench.core import Bench, Contender, captured_graph
from bench.counted import NOTHING, UNET, Sharing
from bench.truth import diffusers_twin, has_diffusers, relative, use_definitions

NARROW = UNetConfig(4, (64, 128, 256, 256), (True, True, True, False), 2, 64, 256, 32)
SMALL, FULL, PUBLISHED = (NARROW, 8, 16), (NARROW, 16, 32), (UNET, 16, 64)
"""Sizes of the network; frames; height and width of the latents."""
ALLOWED = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative error allowed, in the 2-norm."""


@torch.no_grad()
def run(bench: Bench) -> None:
    """Measure the subject "unet"."""
    config, frames, side = PUBLISHED if bench.cuda else FULL if bench.full else SMALL
    unet = random_unet(config, bench.device, bench.dtype)
    forward(bench, unet, frames, side)
    steps(bench, unet, frames, side)


def random_unet(config: UNetConfig, device: str, dtype: torch.dtype) -> UNet:
    """Build a UNet in which every tensor is random; see draw."""
    with torch.device("meta"):
        unet = UNet(config)
    unet = unet.to_empty(device=device).eval().requires_grad_(False)
    draw(unet)
    return unet.to(dtype, memory_format=torch.channels_last)


def draw(network: torch.nn.Module) -> None:
    """Fill a network with random weights that keep activations finite in any dtype.

    Matrices have half the variance that would keep the scale of activations constant.
    """
    some = next(network.parameters())
    generator = torch.Generator(some.device).manual_seed(0)
    for name, x in network.named_parameters():
        if x.ndim > 1:
            x.normal_(0, (0.5 / x[0].numel()) ** 0.5, generator=generator)
        else:
            x.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)


class Inputs:
    """Random inputs of a forward of up to three branches, which differ in all of them."""

    def __init__(self, unet: UNet, frames: int, side: int):
        c, some = unet.config, unet.conv_out.weight
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(some.device, some.dtype)

        self.unet = unet
        self.latents, self.image = (normal(3, c.channels, frames, side, side) for _ in range(2))
        self.text, self.embedding = normal(3, 77, c.context_dim), normal(3, c.context_dim)
        self.fps = torch.tensor([8] * 3, device=some.device)
        self.t = torch.tensor([501] * 3, device=some.device)

    def condition(self, rows: slice):
        """Compute the conditions of some branches."""
        return self.unet.condition(
            self.text[rows], self.embedding[rows], self.image[rows], self.fps[rows]
        )

    def ours(self, rows: int = 1) -> Tensor:
        """Run our network on the first `rows` branches."""
        # a run computes the conditions once, but diffusers' forward has them inside
        return self.unet(self.latents[:rows], self.t[:rows], self.condition(slice(rows)))

    def theirs(self, network: Callable, rows: int = 1, dtype: torch.dtype | None = None) -> Tensor:
        """Run diffusers' network on the first `rows` branches."""
        each = (self.latents, self.image, self.embedding, self.text)
        latents, image, embedding, text = (x[:rows].to(dtype or x.dtype) for x in each)
        t, fps = self.t[:rows], self.fps[:rows]
        return network(
            latents, t, fps, image, embedding[:, None], encoder_hidden_states=text
        ).sample


def forward(bench: Bench, unet: UNet, frames: int, side: int) -> None:
    """Measure forwards of one and of three branches.

    Both sides compute the conditions, because diffusers' forward computes them each time.
    """
    inputs = Inputs(unet, frames, side)
    read = sum(x.nbytes for x in unet.parameters())
    for rows in (1, 3):
        name = f"forward, {branches(rows)}, {shape(unet.config, frames, side)}"
        ours = partial(inputs.ours, rows)
        ways = [Contender("anyv2v", ours), *variants(inputs, rows)]
        # operations in compiled code or graphs cannot be counted: they are those of the eager way
        flops = cache(lambda ours=ours: count(ours).flops)
        theirs = list(peers(bench, name, inputs, rows))
        if theirs:
            their_flops = cache(lambda first=theirs[0]: count(first.run).flops)
        contenders = [
            replace(
                c,
                flops=their_flops if c.peer else flops,
                moved=lambda out: read + 2 * out.nbytes,
            )
            for c in (*theirs, *ways)
        ]
        truth = reference(inputs, rows)
        bench.case(
            name,
            contenders,
            lambda name, out, truth=truth: relative(out, truth),
            ALLOWED[bench.dtype],
        )


def variants(inputs: Inputs, rows: int) -> Iterator[Contender]:
    """Give further ways to run our forward on a GPU."""
    ours = partial(inputs.ours, rows)
    if not inputs.latents.is_cuda:
        return
    replay = cache(lambda: captured_graph(ours))
    yield Contender("anyv2v, CUDA graph", lambda: replay()())


def peers(bench: Bench, case: str, inputs: Inputs, rows: int) -> Iterator[Contender]:
    """Give the ways to run diffusers' forward."""
    names = ["diffusers", "diffusers, channels-last", "diffusers, torch.compile"]
    if not has_diffusers():
        for name in names:
            bench.skip(case, name, "diffusers is not installed")
        return
    plain, last = (diffusers_twin(inputs.unet, channels_last=x) for x in (False, True))
    yield Contender(names[0], partial(inputs.theirs, plain, rows), peer=True)
    yield Contender(names[1], partial(inputs.theirs, last, rows), peer=True)
    if rows > 1:
        return
    if bench.compiling:
        torch._dynamo.reset()
        compiled = torch.compile(last, dynamic=False)
        yield Contender(names[2], partial(inputs.theirs, compiled, rows), peer=True)
    else:
        bench.skip(case, names[2], "not asked for: --compile, it takes minutes")


def reference(inputs: Inputs, rows: int) -> Tensor:
    """Run the reference: diffusers in float32, or ours by definition where it is not installed."""
    if has_diffusers():
        return inputs.theirs(diffusers_twin(inputs.unet, torch.float32), rows, torch.float32)
    with use_definitions():
        return inputs.ours(rows)


def steps(bench: Bench, unet: UNet, frames: int, side: int) -> None:
    """Measure steps of an edit under guidance with each saving on and off; all must agree."""
    for name, ways in ways_of_steps(Inputs(unet, frames, side)).items():
        with use_definitions():
            truth = next(iter(ways.values()))()
        bench.case(
            f"{name}, {shape(unet.config, frames, side)}",
            [
                Contender(way, run, flops=lambda run=run: count(run).flops)
                for way, run in ways.items()
            ],
            lambda name, out, truth=truth: relative(out, truth),
            ALLOWED[bench.dtype],
        )


def sites_of(unet: UNet) -> frozenset[str]:
    """The sites at which the paper injects."""
    groups = paper_sites(unet.config.attention, unet.config.layers)
    return frozenset(site for group in groups.values() for site in group)


def ways_of_steps(inputs: Inputs) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Kind of step -> each way to take it -> the prediction of its two branches."""
    unet, sites = inputs.unet, sites_of(inputs.unet)
    source, plain = (inputs.condition(slice(i, i + 1)) for i in range(2))
    # the branches of guidance have one picture: they differ in the text alone
    of_edit = unet.condition(
        inputs.text[2:], inputs.embedding[1:2], inputs.image[1:2], inputs.fps[:1]
    )
    x, z, stack = inputs.latents[:1], inputs.latents[1:2], type(source).stack

    def way(rows: list[int], branches: list, latents: list[Tensor], taps=NO_TAPS) -> Callable:
        # an edit stacks its conditions once, before its steps
        conditions, t = stack(branches, rows), inputs.t[:1].expand(1 + max(rows))
        return lambda: unet(torch.cat(latents), t, conditions, taps)[-2:]

    def recorded(compact: bool) -> Replay:
        record = Record(sites, compact)
        way([0], [source], [x], record)()
        return Replay(record.features)

    everyone = [source, plain, of_edit]
    replays = {compact: recorded(compact) for compact in (True, False)}
    apart = Sharing(sites, 3, NOTHING)
    along = ShareSource(sites, 3)
    return {
        "step that injects": {
            "every branch by itself": way([0, 1, 2], everyone, [x, z, z], apart),
            "source rides along": way([0, 1, 2], everyone, [x, z, z], along),
            "the same, shared prefix": way([0, 1, 1], everyone, [x, z], along),
            "replayed, query and key": way([0, 0], everyone[1:], [z], replays[False]),
            "replayed, compact (the default)": way([0, 0], everyone[1:], [z], replays[True]),
        },
        "step that injects nothing": {
            "source rides along, as the original": way([0, 1, 2], everyone, [x, z, z]),
            "without the source": way([0, 1], everyone[1:], [z, z]),
            "the same, shared prefix (the default)": way([0, 0], everyone[1:], [z]),
        },
    }


def branches(rows: int) -> str:
    """Words for a number of branches, in names of cases."""
    return "one branch" if rows == 1 else f"{rows} branches"


def shape(config: UNetConfig, frames: int, side: int) -> str:
    """Words for the sizes of network and input, in names of cases."""
    channels = "/".join(map(str, config.level_channels))
    return f"widths {channels}, {frames} frames, {8 * side}x{8 * side}"
