"""Linear layers through the kernels' door."""

from __future__ import annotations

from torch import Tensor, nn

from anyv2v.kernels.linear import linear


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
