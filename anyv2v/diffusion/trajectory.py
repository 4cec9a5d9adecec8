"""The latents of one video at every timestep of its inversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from anyv2v.errors import InputError


class Trajectory(Mapping[int, Tensor]):
    """timestep -> latents (1, c, f, h, w) float32; under 0 the clean ones."""

    def __init__(self, latents: Mapping[int, Tensor]):
        if 0 not in latents or len({tuple(x.shape) for x in latents.values()}) != 1:
            raise InputError("trajectory: the clean latents (t = 0) are missing or shapes differ")
        self._latents = dict(latents)

    def __getitem__(self, t: int) -> Tensor:
        return self._latents[t]

    def __iter__(self) -> Iterator[int]:
        return iter(self._latents)

    def __len__(self) -> int:
        return len(self._latents)
