"""What Wan's transformer is conditioned on, in one or several branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """What the transformer is conditioned on, for g branches of n samples.

    A sample is the latents of a clip. The first frame is part of them, so it is not stored here.
    """

    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site (path in the network) of each cross-attention -> key and value of the m vectors of the
    text there, (g, m, heads, d) each."""
    samples: Tensor
    """(g,) int64: for each branch, the index of the sample that it belongs to."""
    without_first: frozenset[str] = frozenset()
    """The kinds of sites ("map", "value", "context", "hidden") whose injection leaves latent frame
    0 out: its tokens stay each branch's own, and for "context" those of the source are not attended
    to. Equal in all branches."""

    @classmethod
    def stack(
        cls, branches: Sequence[Conditions], samples: Sequence[int] | None = None
    ) -> Conditions:
        """Stacks the conditions of single branches into those of a batch, in order.

        samples: for each branch, the index of the sample that it belongs to, numbered from 0 in
        order of appearance; None gives every branch a sample of its own.
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
            # here, because copying it to a GPU would make every forward pass wait
            torch.tensor(samples, device=branches[0].samples.device),
            branches[0].without_first,
        )
