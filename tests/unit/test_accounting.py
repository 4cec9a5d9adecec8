"""Predicted costs against closed forms, against PyTorch's own counter, and against real runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anyv2v import kernels
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.kernels.attention import attention
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.linear import linear
from anyv2v.pipeline.cost import _count_pieces
from anyv2v.runtime.accounting import Cost, count, fake_mode
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from tests.interpreter import WITH_TESTS

ROOT = Path(__file__).parents[2]
DEVICES = ("cpu", "cuda")
FLOAT = 4


def unet(level_channels, head_dim, context_dim, groups, device="meta") -> UNet:
    attention = tuple(i < len(level_channels) - 1 for i in range(len(level_channels)))
    with torch.device(device):
        network = UNet(UNetConfig(4, level_channels, attention, 2, head_dim, context_dim, groups))
    return network.eval().requires_grad_(False)


def autoencoder(level_channels, device="meta") -> Autoencoder:
    with torch.device(device):
        network = Autoencoder(AutoencoderConfig(3, 4, level_channels, 2, 32, 0.18215))
    return network.eval().requires_grad_(False)


def prediction(network: UNet, rows: int, frames: int, size: int):
    """A forward pass of latents of size x size, to be called; what steers it is there before."""
    like, dim = network.conv_out.weight, network.config.context_dim
    latents = like.new_zeros(rows, 4, frames, size, size)
    conditions = network.condition(
        like.new_zeros(rows, 77, dim),
        like.new_zeros(rows, dim),
        latents,
        torch.full((rows,), 8, device=like.device),
    )
    t = torch.full((rows,), 501, device=like.device)
    return lambda: network(latents, t, conditions)


@pytest.mark.parametrize("device", DEVICES)
def test_pieces_cost_what_closed_forms_say(device):
    with fake_mode(device) as device:

        def x(*shape):
            return torch.empty(shape, device=device)

        w, b = x(40, 24), x(40)
        tokens, up, bias = x(7, 5, 24), x(80, 24), x(80)
        assert count(lambda: linear(tokens, w, b)) == Cost(2 * 35 * 24 * 40, 35 * 40 * FLOAT)
        # the values and the gates, however they are computed
        assert count(lambda: geglu(tokens, up, bias)).flops == 2 * 35 * 24 * 80

        image, kernel = x(2, 8, 9, 6), x(16, 8, 3, 3)
        out = 2 * 16 * 5 * 3
        convolved = count(lambda: F.conv2d(image, kernel, stride=2, padding=1))
        assert convolved == Cost(2 * out * 8 * 9, out * FLOAT)

        q, k = x(3, 50, 2, 16), x(3, 70, 2, 16)
        attended = count(lambda: attention(q, k, k))
        assert attended.flops == 2 * 2 * 3 * 2 * 50 * 70 * 16
        # no scores are kept: they would be 50 * 70 for each head
        assert 50 * 16 * 6 * FLOAT <= attended.peak_bytes < 50 * 70 * 6 * FLOAT


def test_memory_is_what_lives_at_one_time():
    with fake_mode("cpu"):
        before = torch.empty(1000)

        def run():
            a = before + 1
            a.mul_(2)
            view = a.view(10, 100)[2:]
            del a
            b = view * 2
            del view
            return b + 1, before[5:]

    assert count(run) == Cost(0, (1000 + 800) * FLOAT)


def test_a_forward_pass_costs_as_predicted_when_it_is_run(editor):
    """The same operations and the same peak of tensors, with and without data."""
    networks = editor.backbone.unet, editor.backbone.codec.vae
    pixels, latents = (1, 3, 64, 48), (1, 4, 8, 6)

    def costs(unet, vae) -> list[Cost]:
        like = vae.quant_conv.weight
        return [
            count(prediction(unet, rows=2, frames=4, size=12)),
            count(lambda: vae.encode(like.new_zeros(pixels))),
            count(lambda: vae.decode(like.new_zeros(latents))),
        ]

    real = costs(*networks)
    with fake_mode("cpu") as device:
        assert costs(*(meta_copy(network, device) for network in networks)) == real


def test_operations_are_those_that_pytorch_counts(editor, monkeypatch):
    # PyTorch counts the parts of these, but not the operators that a CPU has for them
    for door, plain in (
        (kernels.attention, "reference"),
        (kernels.short_attention, "reference"),
        (kernels.linear, "eager"),
        (kernels.geglu, "eager"),
    ):
        monkeypatch.setattr(door, "_REQUESTED", plain)
    run = prediction(editor.backbone.unet, rows=1, frames=4, size=12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    monkeypatch.undo()
    for device in DEVICES:
        with fake_mode(device) as there:
            twin = meta_copy(editor.backbone.unet, there)
            run = prediction(twin, rows=1, frames=4, size=12)
            assert count(run).flops == counter.get_total_flops()


@pytest.mark.parametrize("device", DEVICES)
def test_the_full_network_is_counted_without_memory(device):
    network = unet((320, 640, 1280, 1280), 64, 1024, 32)
    with fake_mode(device) as there:
        run = prediction(meta_copy(network, there, torch.float16), rows=1, frames=16, size=64)
        cost = count(run)
    # 20.93e12 if keys and values of the cross-attentions are computed anew for every frame. ours
    # are computed once: 15 frames less, 145 tokens of 1024 to 5 x 320, 5 x 640 and 6 x 1280
    saved = 15 * 2 * 2 * 145 * 1024 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert cost.flops == pytest.approx(20.93e12 - saved, rel=1e-3)


def test_a_blank_leaves_the_network_alone(editor):
    network = editor.backbone.codec.vae
    before = {name: (id(p), p.data_ptr()) for name, p in network.named_parameters()}
    with fake_mode("cpu") as device:
        twin = meta_copy(network, device, torch.bfloat16)
    assert {name: (id(p), p.data_ptr()) for name, p in network.named_parameters()} == before
    assert twin.config == network.config and not twin.training
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert isinstance(theirs, nn.Parameter) and theirs.dtype == torch.bfloat16
        assert (theirs.shape, theirs.stride()) == (ours.shape, ours.stride())


MEASURE = """
import re, sys
from pathlib import Path
import torch
from tests.unit.test_accounting import CASES

def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
network, run = CASES[sys.argv[1]]
run = run(network("cpu").to(memory_format=torch.channels_last))
before = kilobytes("VmRSS")
with torch.no_grad():
    run()
print((kilobytes("VmHWM") - before) * 1024)
"""

CASES = {
    "unet": (
        lambda device: unet((64, 128, 256, 256), 64, 256, 32, device),
        lambda network: prediction(network, rows=1, frames=16, size=32),
    ),
    "encoder": (
        lambda device: autoencoder((64, 128, 256, 256), device),
        lambda vae: lambda: vae.encode(vae.quant_conv.weight.new_zeros(1, 3, 512, 512)),
    ),
    "decoder": (
        lambda device: autoencoder((64, 128, 256, 256), device),
        lambda vae: lambda: vae.decode(vae.quant_conv.weight.new_zeros(1, 4, 64, 64)),
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "case",
    [
        "encoder",
        pytest.param("decoder", marks=pytest.mark.slow),
        pytest.param("unet", marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_within_a_tenth_of_what_a_process_takes(case):
    network, run = CASES[case]
    with fake_mode("cpu") as device:
        predicted = count(run(meta_copy(network("meta"), device))).peak_bytes
    command = [sys.executable, "-c", WITH_TESTS + MEASURE, case]
    # every tensor mapped by itself: what glibc cannot fill between them varies from run to run
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    measured = int(process.stdout)
    print(f"{case}: predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.1)


def test_of_a_clips_pieces_those_of_one_kind_are_counted_once():
    """An autoencoder's first piece may be another, and its last a shorter one."""
    taken = []

    def pieces():
        for length in (1, 4, 4, 4, 4, 2):
            taken.append(length)
            yield torch.ones(length, 3) @ torch.ones(3, 5)

    cost = _count_pieces(pieces(), 0, 19)
    assert taken == [1, 4, 4]
    assert cost.flops == 2 * 19 * 3 * 5
    assert 4 * 4 * 5 <= cost.peak_bytes <= 4 * (4 * 5 + 4 * 3 + 3 * 5)
