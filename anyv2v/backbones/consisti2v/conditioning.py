"""What ConsistI2V's UNet is conditioned on, in one or several branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """What the UNet is conditioned on, for g branches of n samples.

    A sample is noisy latents after a first frame that has no noise. The first frame is part of the
    latents, so that it is not stored here, but for branches that are to see another one.
    """

    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site (path in the UNet) of each cross-attention -> key and value of the m context tokens
    there, (g, m, heads, d) each."""
    stride: Tensor
    """(g, t): embedding of the frame stride, which is added to the embedding of the timestep."""
    samples: Tensor
    """(g,) int64: for each branch, the index of the sample that it belongs to."""
    first: Mapping[int, Tensor] = field(default_factory=dict)
    """Index of a branch -> latents (1, c, 1, h, w) that it sees in place of its sample's first
    frame. Other branches see that of their sample."""

    @classmethod
    def stack(
        cls, branches: Sequence[Conditions], samples: Sequence[int] | None = None
    ) -> Conditions:
        """Stacks the conditions of single branches into those of a batch, in order.

        samples: for each branch, the index of the sample (noisy latents with a first frame) that it
        belongs to, numbered from 0 in order of appearance; None gives every branch a sample of its
        own.
        """
        samples = tuple(range(len(branches)) if samples is None else samples)
        return Conditions(
            {
                site: (
                    torch.cat([branch.context[site][0] for branch in branches]),
                    torch.cat([branch.context[site][1] for branch in branches]),
                )
                for site in branches[0].context
            },
            torch.cat([branch.stride for branch in branches]),
            # here, because copying it to a GPU would make every forward pass wait
            torch.tensor(samples, device=branches[0].stride.device),
            {i: branch.first[0] for i, branch in enumerate(branches) if branch.first},
        )

    def with_first(self, latents: Tensor) -> Conditions:
        """Returns the conditions of a branch that sees `latents` (1, c, 1, h, w) as first frame.

        These conditions must be those of a single branch.
        """
        return replace(self, first={0: latents})

    def each_branch(self, latents: Tensor) -> Tensor:
        """Returns the latents (g, c, f, h, w) that each branch sees, of samples (n, c, f, h, w)."""
        # a copy, which may be written to
        x = latents[self.samples]
        for branch, first in self.first.items():
            x[branch, :, :1] = first[0]
        return x
