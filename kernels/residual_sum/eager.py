"""residual_sum operation by operation."""

from __future__ import annotations

from torch import Tensor


def eager(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """Computes `residual_sum`."""
    # a sum needs neither of its inputs for its gradient, so the second is made in place
    return (x + branch).add_(bias)
