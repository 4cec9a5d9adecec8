"""Random tensors that are the same in every run."""

import torch


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(network, seed):
    """Every tensor anew, so that none is zero or one and none is alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.normal_(generator=generator)
            if value.ndim == 1:
                value.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                value.mul_(value[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)
