"""What SEINE's UNet is conditioned on: a text, and the masked video that it completes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """What the UNet is conditioned on, for g branches of n samples.

    A sample is noisy latents with a first frame. Its branches, such as those of the negative prompt
    and of the prompt, differ only in their text, so that everything else is stored and computed
    once per sample.
    """

    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site (path in the UNet) of each cross-attention -> key and value of the m text tokens there,
    (g, m, heads, d) each."""
    masked: Tensor
    """(n, 1 + c, f, h, w): the mask, 0 in the frame that is given and 1 in those that are to be
    made, and the latents of the masked video, whose frames to be made are gray. The UNet
    concatenates them with the noisy latents along the channels."""
    samples: Tensor
    """(g,) int64: for each branch, the index of the sample that it belongs to."""

    @classmethod
    def stack(
        cls, branches: Sequence[Conditions], samples: Sequence[int] | None = None
    ) -> Conditions:
        """Stacks the conditions of single branches into those of a batch, in order.

        samples: for each branch, the index of the sample (noisy latents with a first frame) that it
        belongs to, numbered from 0 in order of appearance; None gives every branch a sample of its
        own. Branches of one sample must have the same first frame.
        """
        samples = tuple(range(len(branches)) if samples is None else samples)
        firsts = [branches[samples.index(sample)] for sample in range(len(set(samples)))]
        return Conditions(
            {
                site: (
                    torch.cat([branch.context[site][0] for branch in branches]),
                    torch.cat([branch.context[site][1] for branch in branches]),
                )
                for site in branches[0].context
            },
            torch.cat([branch.masked for branch in firsts]),
            # here, because copying it to a GPU would make every forward pass wait
            torch.tensor(samples, device=firsts[0].masked.device),
        )


def masked_video(first: Tensor, gray: Tensor, frames: int) -> Tensor:
    """Returns the mask and the latents of a clip of which only the first frame is known.

    first (1, c, 1, h, w): the latents of the first frame. gray (1, c, h, w): those of a frame whose
    pixels are 0 in the autoencoder's range -1 to 1. frames: number of frames f of the clip. The
    result, (1, 1 + c, f, h, w), is the field `Conditions.masked` of one branch.
    """
    unknown = gray[:, :, None].expand(-1, -1, frames - 1, -1, -1)
    latents = torch.cat([first, unknown.to(first)], dim=2)
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, 0] = 0
    return torch.cat([mask, latents], dim=1)
