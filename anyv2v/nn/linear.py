"""Linear layers that dispatch to the kernels of this project."""

from __future__ import annotations

from torch import Tensor, nn

from anyv2v.kernels.linear import linear


class Linear(nn.Linear):
    """A linear layer computed by a kernel of this project, see `anyv2v.kernels.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps the input (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)
