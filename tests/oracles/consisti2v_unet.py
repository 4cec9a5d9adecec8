"""ConsistI2V's UNet written down plainly, on the published file's tensors.

Nothing here is shared with the package: features are (f, c, h, w) of one video, attention is a
softmax over an explicit matrix, and the tensors have their published names. The dtype is that of
the tensors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def predict(
    state: State, cfg: dict, latents: Tensor, t: int, stride: int, context: Tensor
) -> Tensor:
    """Return the prediction (c, f, h, w) for latents (c, f, h, w), whose frame 0 is clean.

    cfg: the UNet's config.json. context: (m, c').
    """
    return _Net(state, cfg, context)(latents, t, stride)


class _Net:
    def __init__(self, state: State, cfg: dict, context: Tensor):
        self.state, self.cfg, self.context = state, cfg, context

    def __call__(self, latents: Tensor, t: int, stride: int) -> Tensor:
        widths, groups = self.cfg["block_out_channels"], self.cfg["norm_num_groups"]
        emb = self.number("time_embedding", t) + self.number("frame_stride_embedding", stride)
        self.emb = F.silu(emb)
        x = self.conv("conv_in", latents.transpose(0, 1), padding=1)
        skips, last = [x], len(widths) - 1
        for level in range(len(widths)):
            block, heads = f"down_blocks.{level}", self.cfg["attention_head_dim"][level]
            for i in range(2):
                x = self.layer(block, i, x, heads if level < last else 0)
                skips.append(x)
            if level < last:
                x = self.conv(f"{block}.downsamplers.0.conv", x, stride=2, padding=1)
                skips.append(x)
        heads = self.cfg["attention_head_dim"][-1]
        x = self.conv3d("mid_block.conv3ds.0", self.resnet("mid_block.resnets.0", x))
        x = self.spatial("mid_block.attentions.0", x, heads)
        x = self.conv3d("mid_block.conv3ds.1", self.resnet("mid_block.resnets.1", x))
        for level in range(len(widths)):
            block, heads = f"up_blocks.{level}", self.cfg["attention_head_dim"][last - level]
            for i in range(3):
                x = torch.cat([x, skips.pop()], dim=1)
                x = self.layer(block, i, x, heads if level > 0 else 0)
            if level < last:
                x = F.interpolate(x, size=skips[-1].shape[2:], mode="nearest")
                x = self.conv(f"{block}.upsamplers.0.conv", x, padding=1)
        x = F.silu(self.group_norm("conv_norm_out", x, groups, 1e-5))
        return self.conv("conv_out", x, padding=1).transpose(0, 1)

    def number(self, name: str, number: int) -> Tensor:
        width = self.cfg["block_out_channels"][0]
        rates = [math.exp(-math.log(10000) * j / (width // 2)) for j in range(width // 2)]
        angles = [number * rate for rate in rates]
        waves = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        wave = self.context.new_tensor(waves)
        return self.linear(f"{name}.linear_2", F.silu(self.linear(f"{name}.linear_1", wave)))

    def layer(self, block: str, i: int, x: Tensor, heads: int) -> Tensor:
        x = self.conv3d(f"{block}.conv3ds.{i}", self.resnet(f"{block}.resnets.{i}", x))
        if heads:
            x = self.spatial(f"{block}.attentions.{i}", x, heads)
            x = self.temporal(f"{block}.tempo_attns.{i}", x)
        return x

    def resnet(self, name: str, x: Tensor) -> Tensor:
        groups = self.cfg["norm_num_groups"]
        h = F.silu(self.group_norm(f"{name}.norm1", x, groups, 1e-5))
        h = self.conv(f"{name}.conv1", h, padding=1)
        h = h + self.linear(f"{name}.time_emb_proj", self.emb)[None, :, None, None]
        h = F.silu(self.group_norm(f"{name}.norm2", h, groups, 1e-5))
        h = self.conv(f"{name}.conv2", h, padding=1)
        shortcut = f"{name}.conv_shortcut"
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.state else x)

    def conv3d(self, name: str, x: Tensor) -> Tensor:
        h = x
        for i in (1, 2):
            h = F.silu(self.group_norm(f"{name}.norm{i}", h, 32, 1e-6))
            weight, bias = self.state[f"{name}.conv{i}.weight"], self.state[f"{name}.conv{i}.bias"]
            # (f, c, h, w) -> (1, c, f, h, w) and back
            h = F.conv3d(h.transpose(0, 1)[None], weight, bias, padding=(1, 0, 0))[0].transpose(
                0, 1
            )
        return self.blend(name, x, x + h)

    def spatial(self, name: str, x: Tensor, heads: int) -> Tensor:
        f, c, h, w = x.shape
        y = self.group_norm(f"{name}.norm", x, self.cfg["norm_num_groups"], 1e-6)
        y = self.linear(f"{name}.proj_in", y.flatten(2).mT)
        block = f"{name}.transformer_blocks.0"
        normed = self.layer_norm(f"{block}.norm1", y)
        rows = [
            self.attend(f"{block}.attn1", frame, torch.cat([frame, normed[0]]), heads)
            for frame in normed
        ]
        y = y + torch.stack(rows)
        normed = self.layer_norm(f"{block}.norm2", y)
        rows = [self.attend(f"{block}.attn2", frame, self.context, heads) for frame in normed]
        y = self.feed_forward(block, y + torch.stack(rows))
        return x + self.linear(f"{name}.proj_out", y).mT.reshape(f, c, h, w)

    def temporal(self, name: str, x: Tensor) -> Tensor:
        f, c, h, w = x.shape
        y = self.group_norm(f"{name}.norm", x, self.cfg["norm_num_groups"], 1e-6)
        y = self.linear(f"{name}.proj_in", y.permute(2, 3, 0, 1))  # (h, w, f, c)
        block, heads = f"{name}.transformer_blocks.0", self.cfg["n_temp_heads"]
        frames = list(range(f))
        normed, out = self.layer_norm(f"{block}.norm1", y), torch.empty_like(y)
        for i in range(h):
            for j in range(w):
                around = [
                    normed[min(max(i + di, 0), h - 1), min(max(j + dj, 0), w - 1), 0]
                    for di in (-1, 0, 1)
                    for dj in (-1, 0, 1)
                    if (di, dj) != (0, 0)
                ]
                own = normed[i, j]
                keys, turns = torch.cat([own, torch.stack(around)]), (frames, frames + [0] * 8)
                out[i, j] = self.attend(f"{block}.attn1", own, keys, heads, turns)
        y = y + out
        normed, turns = self.layer_norm(f"{block}.norm2", y), (frames, [0] * len(self.context))
        for i in range(h):
            for j in range(w):
                own = normed[i, j]
                out[i, j] = self.attend(f"{block}.attn2", own, self.context, heads, turns)
        y = self.feed_forward(block, y + out)
        y = self.linear(f"{name}.proj_out", y).permute(2, 3, 0, 1)
        return self.blend(name, x, x + y)

    def attend(
        self,
        name: str,
        x: Tensor,
        keys: Tensor,
        heads: int,
        turns: tuple[list[int], list[int]] | None = None,
    ) -> Tensor:
        """Attention of x (n, c) to keys (m, c'), turned by the positions of both, if there are."""
        q, k, v = (
            F.linear(y, self.state[f"{name}.to_{part}.weight"])
            for part, y in (("q", x), ("k", keys), ("v", keys))
        )
        if turns is not None:
            q, k = (self.turn(name, y, places) for y, places in zip((q, k), turns, strict=True))
        parts = []
        for a, b, c in zip(*(y.chunk(heads, dim=-1) for y in (q, k, v)), strict=True):
            parts.append((a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) @ c)
        return self.linear(f"{name}.to_out.0", torch.cat(parts, dim=-1))

    def turn(self, name: str, x: Tensor, places: list[int]) -> Tensor:
        """Neighboring channels as complex numbers, times those of their angles."""
        rates = self.state[f"{name}.rotary_emb.freqs"]
        angles = x.new_tensor(places)[:, None] * rates
        half = 2 * len(rates)
        numbers = torch.view_as_complex(x[:, :half].unflatten(-1, (-1, 2)).contiguous())
        turned = numbers * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([torch.view_as_real(turned).flatten(-2), x[:, half:]], dim=-1)

    def feed_forward(self, block: str, y: Tensor) -> Tensor:
        normed = self.layer_norm(f"{block}.norm3", y)
        value, gate = self.linear(f"{block}.ff.net.0.proj", normed).chunk(2, dim=-1)
        return y + self.linear(f"{block}.ff.net.2", value * F.gelu(gate))

    def blend(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        alpha = min(max(self.state[f"{name}.alpha"].item(), 0.0), 1.0)
        return alpha * x + (1 - alpha) * y

    def group_norm(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        return F.group_norm(x, groups, *self.affine(name), eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.affine(name), 1e-5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.affine(name))

    def conv(self, name: str, x: Tensor, **options) -> Tensor:
        return F.conv2d(x, *self.affine(name), **options)

    def affine(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]
