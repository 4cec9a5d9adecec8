"""The latents of one video at the levels of its inversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from anyv2v import checks
from anyv2v.diffusion.schedule import Level
from anyv2v.errors import InputError


class Trajectory(Mapping[int, Tensor]):
    """The clean latents, and those at each level that was kept: (1, c, f, h, w) float32.

    `clean` and `at(index)` serve every schedule. Where the timesteps of a run are different whole
    numbers, it is a mapping of those timesteps too, the clean latents under 0 unless 0 is one of
    the timesteps.
    """

    def __init__(self, clean: Tensor, kept: Mapping[int, Tensor], levels: Sequence[Level]):
        """kept: index in the inversion's run, 0 the noisiest -> latents. levels: those of the whole
        run, its end too.
        """
        self.clean, self.levels = clean, tuple(levels)
        self.kept = {index: kept[index] for index in sorted(kept, reverse=True)}
        if wrong := [index for index in kept if not 0 <= index < len(self.levels) - 1]:
            raise InputError(f"trajectory: there is no step {wrong[0]} of {len(self.levels) - 1}")
        shapes = {tuple(x.shape) for x in (clean, *kept.values())}
        if len(shapes) != 1:
            raise InputError(f"trajectory: shapes of the latents differ: {sorted(shapes)}")

    def at(self, index: int) -> Tensor:
        """The latents at step `index` of the inversion's run, 0 the noisiest.

        InputError if they were not kept.
        """
        index = checks.whole("index", index, 0, len(self.levels) - 2)
        if index not in self.kept:
            there = ", ".join(map(str, self.kept))
            raise InputError(f"index: no latents of step {index} were kept; there are {there}")
        return self.kept[index]

    @property
    def kept_levels(self) -> list[Level]:
        """The levels of the latents that were kept, the least noisy first."""
        return [self.levels[index] for index in self.kept]

    def __getitem__(self, t: int) -> Tensor:
        return self._by_timestep[t]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_timestep)

    def __len__(self) -> int:
        return len(self._by_timestep)

    @cached_property
    def _by_timestep(self) -> dict[int, Tensor]:
        timesteps = [level.t for level in self.levels[:-1]]
        if len(set(timesteps)) < len(timesteps) or any(type(t) is not int for t in timesteps):
            raise InputError(
                "trajectory: its timesteps are not different whole numbers; "
                "source.at(index) gives the latents of a step"
            )
        named = {self.levels[index].t: x for index, x in self.kept.items()}
        return named if 0 in timesteps else {0: self.clean, **named}
