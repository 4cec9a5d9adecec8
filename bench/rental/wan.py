"""V1 to V4: Wan 2.2 TI2V-5B at its published size, with random weights in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from anyv2v.backbones.base import Defaults
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.backbones.wan.conditioning import Conditions
from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.schedule import FlowSchedule
from anyv2v.backbones.wan.sites import chosen_sites
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.editor import Editor
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import Record, Replay, ShareSource
from anyv2v.kernels.attention import attention
from anyv2v.kernels.attention.reference import reference
from anyv2v.media.frames import Video
from anyv2v.pipeline.request import EditRequest
from anyv2v.umt5.encoder import TextEncoder, UMT5Config
from anyv2v.umt5.tokenizer import Tokenizer
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.vae.video_codec import VideoCodec
from bench.rental.edits import once
from bench.rental.lab import Lab
from bench.rental.network import time_captured, use_attention
from bench.truth import relative, use_definitions
from bench.unet import ALLOWED, draw

WIDTHS = [160, 320, 640, 640], [256, 512, 1024, 1024]
CLIPS = (17, 49, 121)
"""Numbers of frames of 1280x704."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the networks, and (width, height) and numbers of frames of the clips."""

    transformer: TransformerConfig
    vae: VideoAutoencoderConfig
    text: UMT5Config
    size: tuple[int, int]
    frames: tuple[int, ...]


def sizes(lab: Lab) -> Sizes:
    """Return the published sizes, or in a dry run small ones."""
    dry, c = lab.dry, 6 if lab.dry else 48
    dim, heads, ff, layers = (64, 2, 96, 3) if dry else (3072, 24, 14336, 30)
    text, tokens, time = (20, 12, 32) if dry else (4096, 512, 256)
    down, up = ([8, 16, 16, 16],) * 2 if dry else WIDTHS
    shape = (1, 2, 2), 1024, 1e-6, True
    return Sizes(
        TransformerConfig(c, c, dim, heads, ff, layers, text, tokens, time, *shape),
        VideoAutoencoderConfig(
            *(3, 2, c, tuple(down), tuple(up), 1 if dry else 2, (False, True, True), True),
            mean=(0.0,) * c,
            std=(1.0,) * c,
        ),
        # the text encoder is timed by itself; edits find their prompts' embeddings
        UMT5Config(
            600, tokens, text, *((2, 8, 2, 24) if dry else (64, 64, 24, 10240)), 32, 128, 1e-6
        ),
        (64, 32) if dry else (1280, 704),
        (5,) if dry else CLIPS,
    )


def made(lab: Lab, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with random weights on the device, in bfloat16."""
    with torch.device("meta"):
        network = build()
    network = network.to(torch.float32 if lab.dry else torch.bfloat16).to_empty(device=lab.device)
    draw(network)
    return network.eval().requires_grad_(False)


def inputs(lab: Lab, network: Transformer, frames: int) -> tuple[Tensor, Conditions]:
    """Return latents of two samples, source and edit, and the conditions of three branches."""
    told = sizes(lab)
    dtype = torch.float32 if lab.dry else torch.bfloat16
    generator = torch.Generator(lab.device).manual_seed(1)
    (width, height), c = told.size, told.transformer.in_channels
    shape = 2, c, 1 + (frames - 1) // 4, height // 16, width // 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=lab.device).to(dtype)

    text = [network.condition(normal(1, 12, told.transformer.text_dim)) for _ in range(3)]
    return normal(*shape), Conditions.stack(text, [0, 1, 1])


def part(conditions: Conditions, branches: slice) -> Conditions:
    """Return the conditions of some branches, whose samples are numbered from 0."""
    context = {site: (k[branches], v[branches]) for site, (k, v) in conditions.context.items()}
    samples = conditions.samples[branches]
    return Conditions(context, samples - samples[0])


@torch.no_grad()
def forward(lab: Lab) -> None:
    """V1: check and time a forward of one branch, and of a step that injects, at each length."""
    told = sizes(lab)
    network = cast(Transformer, made(lab, lambda: Transformer(told.transformer)))
    allowed, t = ALLOWED[torch.float32 if lab.dry else torch.bfloat16], torch.tensor(501.0)
    t = t.to(lab.device)
    sites = frozenset(chosen_sites(told.transformer.layers)["map"])
    for frames in told.frames:
        latents, conditions = inputs(lab, network, frames)
        one = part(conditions, slice(1))
        recorder = Record(sites, compact=True)
        network(latents[:1], t, one, recorder)
        edit = part(conditions, slice(1, 3))
        ways: dict[str, Callable[[], Tensor]] = {
            "one branch": lambda x=latents, c=one: network(x[:1], t, c),
            "two branches, nothing injected": lambda x=latents, c=edit: network(x[1:], t, c),
            "source and two branches, the map injected": lambda x=latents, c=conditions: network(
                x, t, c, ShareSource(sites, 3)
            ),
            "two branches, the map replayed": lambda x=latents, c=edit, f=recorder.features: (
                network(x[1:], t, c, Replay(f))
            ),
        }
        for name, run in ways.items():
            case = f"forward, wan, {frames} frames, {name}"
            lab.begin_peak()
            eager, status, off = run(), "ok", None
            if frames == told.frames[0]:
                with use_definitions():
                    off = relative(eager, run())
                status = "ok" if off <= allowed else "wrong"
            time_captured(
                lab, case, "as it is", run, status, error=off, headline=True, **lab.peak()
            )
            for other in ("sdpa",) if lab.dry else ("triton", "sdpa"):
                with use_attention(other):
                    time_captured(lab, case, f"ANYV2V_ATTENTION={other}", run)
        recorder = None


@torch.no_grad()
def attentions(lab: Lab) -> None:
    """V2: check and time self-attention over all tokens, with one to three groups of values."""
    told = sizes(lab)
    heads, d = told.transformer.heads, told.transformer.head_dim
    dtype = torch.float32 if lab.dry else torch.bfloat16
    for frames in told.frames:
        n = (1 + (frames - 1) // 4) * (told.size[0] // 32) * (told.size[1] // 32)
        q, k = (torch.randn(1, n, heads, d, device=lab.device, dtype=dtype) for _ in range(2))
        for groups in (1, 2, 3):
            v = torch.randn(groups, n, heads, d, device=lab.device, dtype=dtype)
            few = (q[:, :64, :1], k[:, :, :1], v[:1, :, :1])
            truth = reference(*(x.double() for x in few))
            for name in ("sdpa",) if lab.dry else ("triton", "sdpa"):
                run = lambda name=name, v=v, q=q, k=k: attention(q, k, v, impl=name)  # noqa: E731
                off = relative(run()[:1, :64, :1], truth)
                right = off <= (1e-5 if lab.dry else 1e-2)
                flops = 2 * heads * n * n * d * (1 + groups)
                times = lab.clock(lab.captured(run)) if right else None
                lab.fact(
                    f"attention, {n} tokens of {heads} x {d}, g={groups}",
                    name,
                    "ok" if right else "wrong",
                    times=times,
                    error=off,
                    tflops=flops / times.median_s / 1e12 if times else None,
                    headline=True,
                )


@torch.no_grad()
def codec(lab: Lab) -> None:
    """V3: time the video autoencoder in both directions, and the text encoder."""
    told = sizes(lab)
    vae = cast(VideoAutoencoder, made(lab, lambda: VideoAutoencoder(told.vae)))
    through = VideoCodec(vae, 2)
    (width, height), frames = told.size, told.frames[0]
    clip = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8)
    for dtype in (torch.float32,) if lab.dry else (torch.bfloat16, torch.float32):
        vae.to(dtype)
        kind = str(dtype).removeprefix("torch.")
        latents = torch.cat([*through.encode(clip)], 2)
        case = f"video autoencoder, {frames} frames of {width}x{height}, {kind}"
        ways = {"encode": partial(through.encode, clip), "decode": partial(through.decode, latents)}
        for name, run in ways.items():
            once(lab, case, name, lambda run=run: list(run()), headline=True)
    # both do not fit into the memory of smaller cards
    vae = through = ways = None
    encoder = made(lab, lambda: TextEncoder(told.text))
    ids = torch.randint(0, 600, (1, 12 if lab.dry else 64), device=lab.device)
    once(lab, "UMT5's encoder", f"{ids.shape[1]} tokens", lambda: encoder(ids), headline=True)


@torch.no_grad()
def edit(lab: Lab) -> None:
    """V4: a whole edit of a short clip, from frames to frames, in five steps."""
    told = sizes(lab)
    frames = told.frames[0]
    # what the text encoder would give is known, so it stays without weights
    with torch.device("meta"):
        text = TextEncoder(told.text)
    transformer = cast(Transformer, made(lab, lambda: Transformer(told.transformer)))
    vae = cast(VideoAutoencoder, made(lab, lambda: VideoAutoencoder(told.vae)))
    backbone = Wan(
        transformer,
        text,
        cast(Tokenizer, None),
        {name: frozenset(x) for name, x in chosen_sites(told.transformer.layers).items()},
        VideoCodec(vae, 2),
        Defaults(told.size, frames, 24, 5, {"text": 5.0}, "", Injection(map=0.4)),
        FlowSchedule(5.0),
        {
            prompt: torch.randn(1, told.transformer.text_tokens, told.transformer.text_dim)
            for prompt in ("", "a red shirt")
        },
    )
    editor = Editor(backbone)
    width, height = told.size
    clip = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8).numpy()
    case = f"edit, wan, {frames} frames of {width}x{height}, 5 steps"
    source = editor.invert(Video(clip, 24), method="ddim", steps=5)
    once(lab, case, "invert", lambda: editor.invert(Video(clip, 24), method="ddim", steps=5))
    request = EditRequest(clip[0, :, ::-1].copy(), "a red shirt")
    first = editor.edit_many(source, [request])[0].latents
    again = editor.edit_many(source, [request], source_pass="separate")[0].latents
    off = relative(again, first)
    right = off <= (1e-5 if lab.dry else 5e-2)
    lab.fact(
        case, "with the source in the batch or before it", "ok" if right else "wrong", error=off
    )
    once(lab, case, "edit", lambda: editor.edit_many(source, [request]), headline=True)
