"""AnyV2V on diffusers' Wan 2.2 TI2V-5B: what the whole procedure computes, in plain PyTorch.

All of it runs diffusers' own classes. A prediction has the source as its first row, next to the
rows of an edit, and processors of the self-attentions put the source's tensors into those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.pipelines.wan import pipeline_wan_i2v
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

GROUPS = ("map", "value", "context", "hidden")


class Euler(diffusers.UniPCMultistepScheduler):
    """Euler's method over the levels of Wan's sampler, which has two kinds of steps of its own.

    diffusers' `FlowMatchEulerDiscreteScheduler` visits other levels.
    """

    @classmethod
    def of_wan(cls, shift: float = 5.0) -> Euler:
        """The schedule of TI2V-5B."""
        return cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)

    def step(self, model_output, timestep, sample, return_dict=True):
        """One step; the timesteps of these tests are distinct."""
        i = self.timesteps.tolist().index(int(timestep))
        latents = sample + (self.sigmas[i + 1] - self.sigmas[i]) * model_output
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)


def load(folder: Path) -> diffusers.WanImageToVideoPipeline:
    """The pipeline of a folder in the hub's layout, in float32, with Euler's method."""
    if not hasattr(pipeline_wan_i2v, "ftfy"):
        # it is called without a guard; the tests' texts are none that it would change
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)
    pipeline = diffusers.WanImageToVideoPipeline(
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"),
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
        ),
        transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        network(diffusers.AutoencoderKLWan, folder / "vae"),
        Euler.of_wan(),
        transformer=network(diffusers.WanTransformer3DModel, folder / "transformer"),
        expand_timesteps=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def network(kind: type[nn.Module], folder: Path) -> nn.Module:
    """The network in a folder; `from_pretrained` would need `accelerate` for the transformer."""
    model = kind.from_config(kind.load_config(folder))
    files = sorted(folder.glob("*.safetensors"))
    model.load_state_dict({name: x for file in files for name, x in load_file(file).items()})
    return model.float().eval().requires_grad_(False)


def sharpen(folder: Path) -> None:
    """Changes the random transformer of a folder in the hub's layout, so that tokens differ more.

    Attention is sharper, blocks add more to the tokens, and texts tell more: otherwise nearly all
    of what is predicted comes from biases and from what prompts are padded with, and an injection
    changes little more than rounding does.
    """
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        tensors = load_file(file)
        for name, x in tensors.items():
            if name.endswith("norm_q.weight"):
                x *= 4
            elif name.startswith("blocks.") and name.endswith("scale_shift_table"):
                # the gates of the self-attention and the feed-forward network
                x[:, [2, 5]] *= 10
            elif name.endswith("text_embedder.linear_1.weight"):
                x *= 4
        save_file(tensors, file, {"format": "pt"})


@dataclass
class Injecting:
    """What the current step injects, which all blocks read; the source is the first row."""

    first: dict[str, int] = field(default_factory=dict)
    """Group -> the first token that is injected; groups that are not injected are missing."""

    def injected(self, group: str, x: Tensor) -> Tensor:
        """x (rows, tokens, ...), with the source's tokens in all rows if the group is injected."""
        if group not in self.first:
            return x
        first = self.first[group]
        return torch.cat([x[:, :first], x[:1, first:].expand_as(x[:, first:])], dim=1)


class SelfAttention:
    """A self-attention of diffusers' transformer, with the source's tensors in all rows."""

    def __init__(self, injecting: Injecting):
        self.injecting = injecting

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ):
        """What `WanAttnProcessor` computes if nothing is injected."""
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        q, k = rotated(q, *rotary_emb), rotated(k, *rotary_emb)
        source_k, source_v = k[:1], v[:1]
        q, k = (self.injecting.injected("map", x) for x in (q, k))
        v = self.injecting.injected("value", v)
        y = attend(q, k, v)
        if "context" in self.injecting.first and len(q) > 1:
            first, count = self.injecting.first["context"], len(q) - 1
            keys = torch.cat([source_k[:, first:].expand(count, -1, -1, -1), k[1:]], dim=1)
            values = torch.cat([source_v[:, first:].expand(count, -1, -1, -1), v[1:]], dim=1)
            y = torch.cat([y[:1], attend(q[1:], keys, values)])
        return attn.to_out[0](y.flatten(2))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (rows, tokens, heads, d), turned as `WanAttnProcessor` does it."""
    real, imaginary = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (rows, n, heads, d) to k and v (rows, m, heads, d)."""
    weights = torch.einsum("rnhd,rmhd->rhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("rhnm,rmhd->rnhd", weights.softmax(dim=-1), v)


class Oracle:
    """Sampling, inversion's check and edits with the networks of a pipeline of diffusers'."""

    def __init__(self, pipeline: diffusers.WanImageToVideoPipeline, text_tokens: int):
        self.pipeline, self.text_tokens = pipeline, text_tokens
        self.network: nn.Module = pipeline.transformer

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return self.pipeline.vae.config.z_dim

    def generate(
        self,
        image: np.ndarray,
        texts: tuple[str, str],
        frames: int,
        steps: int,
        guidance: float,
        noise: Tensor,
        after_step: Callable[[Tensor], object],
    ) -> np.ndarray:
        """Frames (f, h, w, 3) uint8 of the pipeline itself, for a negative prompt and a prompt.

        after_step: called with the latents after each step.
        """

        def callback(pipeline, step, t, tensors):
            after_step(tensors["latents"].clone())
            return tensors

        made = self.pipeline(
            Image.fromarray(image),
            texts[1],
            texts[0],
            *image.shape[:2],
            frames,
            steps,
            guidance,
            latents=noise,
            max_sequence_length=self.text_tokens,
            output_type="np",
            callback_on_step_end=callback,
        )
        return np.rint(made.frames[0] * 255).astype(np.uint8)

    def embed(self, text: str) -> Tensor:
        """The embedding of a prompt, (1, text_tokens, c)."""
        tokens = self.text_tokens
        return self.pipeline._get_t5_prompt_embeds(text, max_sequence_length=tokens)

    def encode(self, image: Image.Image) -> Tensor:
        """The latents of one frame, (1, c, 1, h, w)."""
        vae = self.pipeline.vae
        pixels = self.pipeline.video_processor.preprocess(image)[:, :, None]
        mean, std = (
            torch.tensor(x)[:, None, None, None]
            for x in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (vae.encode(pixels).latent_dist.mode() - mean) / std

    def levels(self, steps: int) -> tuple[list[int], list[float]]:
        """The timesteps of a run, and its sigmas, one more of them."""
        self.pipeline.scheduler.set_timesteps(steps)
        return self.pipeline.scheduler.timesteps.tolist(), self.pipeline.scheduler.sigmas.tolist()

    def velocity(self, latents: Tensor, t: int, text: Tensor) -> Tensor:
        """The prediction for rows (r, c, f, h, w), of texts (r, m, c); frame 0 of each is clean."""
        _, p, q = self.network.config.patch_size
        rows, _, frames, height, width = latents.shape
        times = torch.full((rows, frames, (height // p) * (width // q)), float(t))
        times[:, 0] = 0
        return self.network(latents, times.flatten(1), text).sample

    def sample(
        self,
        begin: Tensor,
        first: Tensor,
        text: Tensor,
        steps: int,
        offsets: Mapping[int, Tensor],
    ) -> Iterator[Tensor]:
        """The latents after each step of Euler's method, without guidance.

        offsets: index of a step -> what is added after it.
        """
        timesteps, sigmas = self.levels(steps)
        latents = torch.cat([first, begin[:, :, 1:]], dim=2)
        for i in range(steps):
            velocity = self.velocity(latents, timesteps[i], text)
            latents = latents + (sigmas[i + 1] - sigmas[i]) * velocity + offsets.get(i, 0)
            latents[:, :, :1] = first
            yield latents

    def edit(
        self,
        source: Sequence[Tensor],
        first: Tensor,
        texts: Sequence[str],
        guidance: float,
        groups: Mapping[str, tuple[int, bool]],
    ) -> Iterator[Tensor]:
        """The latents of an edit after each step.

        source: the source's latents at all levels but the clean end, noisiest first. first: the
        latents of the edited frame. texts: prompt of the source, negative prompt, prompt. groups:
        group -> (number of steps that inject it, whether tokens of latent frame 0 are left out).
        """
        steps = len(source)
        timesteps, sigmas = self.levels(steps)
        text = torch.cat([self.embed(text) for text in texts])
        _, p, q = self.network.config.patch_size
        area = (first.shape[3] // p) * (first.shape[4] // q)
        latents = torch.cat([first, source[0][:, :, 1:]], dim=2)
        with Hooked(self.network) as injecting:
            for i in range(steps):
                injecting.first = {
                    group: area if rest else 0 for group, (n, rest) in groups.items() if i < n
                }
                rows = torch.cat([source[i], latents, latents])
                _, unwanted, wanted = self.velocity(rows, timesteps[i], text).split(1)
                velocity = unwanted + guidance * (wanted - unwanted)
                latents = latents + (sigmas[i + 1] - sigmas[i]) * velocity
                latents[:, :, :1] = first
                yield latents


class Hooked:
    """Within it, a network injects what the `Injecting` says that it is entered with."""

    def __init__(self, network: nn.Module):
        self.network, self.handles = network, []

    def __enter__(self) -> Injecting:
        injecting, count = Injecting(), len(self.network.blocks)
        # the blocks that are injected: all but the first third, and the middle one
        for block in self.network.blocks[count // 3 :]:
            block.attn1.set_processor(SelfAttention(injecting))
        self.handles = [
            self.network.blocks[count // 2].ffn.register_forward_hook(
                lambda *given: injecting.injected("hidden", given[-1])
            )
        ]
        return injecting

    def __exit__(self, *_):
        for block in self.network.blocks:
            block.attn1.set_processor(WanAttnProcessor())
        for handle in self.handles:
            handle.remove()
