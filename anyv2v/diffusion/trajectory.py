"""The latents of one video at the levels of its inversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from anyv2v import checks
from anyv2v.diffusion.schedule import Level
from anyv2v.errors import InputError


class Trajectory(Mapping[int, Tensor]):
    """The clean latents of a video, and its latents at the levels that its inversion stored.

    All are (1, c, f, h, w) float32. After an inversion they are on the editor's device, 1 MB per
    level for 16 frames of 512x512 (about 52 MB for all 50 levels); nothing moves them to the host.
    Latents that were read from a file are on the CPU, and are copied each time an edit reads them.

    `clean` and `at(index)` work with every schedule. If the timesteps of the inversion are distinct
    whole numbers, a trajectory is also a mapping from these timesteps to latents, with the clean
    latents at 0 unless 0 is one of the timesteps.
    """

    def __init__(self, clean: Tensor, latents: Mapping[int, Tensor], levels: Sequence[Level]):
        """Takes the clean latents, and a dict of latents by their index in the inversion's run.

        Index 0 is the noisiest level. levels: all levels of that run, the noisiest first, its
        clean end included. Raises InputError if shapes differ, or an index is not in the run.
        """
        self.clean, self.levels = clean, tuple(levels)
        self.latents = {index: latents[index] for index in sorted(latents, reverse=True)}
        """Index in the inversion's run (0: the noisiest) -> latents, the least noisy first."""
        if wrong := [index for index in latents if not 0 <= index < len(self.levels) - 1]:
            raise InputError(f"trajectory: there is no step {wrong[0]} of {len(self.levels) - 1}")
        shapes = {tuple(x.shape) for x in (clean, *latents.values())}
        if len(shapes) != 1:
            raise InputError(f"trajectory: shapes of the latents differ: {sorted(shapes)}")

    def at(self, index: int) -> Tensor:
        """Returns the latents at step `index` of the inversion's run, 0 the noisiest.

        Raises InputError if there is no such step, or if its latents were not stored.
        """
        index = checks.whole("index", index, 0, len(self.levels) - 2)
        if index not in self.latents:
            stored = ", ".join(map(str, self.latents))
            raise InputError(f"index: no latents of step {index} were kept; there are {stored}")
        return self.latents[index]

    @property
    def stored_levels(self) -> list[Level]:
        """The levels whose latents are stored, the least noisy first, without the clean latents."""
        return [self.levels[index] for index in self.latents]

    def __getitem__(self, t: int) -> Tensor:
        return self._by_timestep[t]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_timestep)

    def __len__(self) -> int:
        return len(self._by_timestep)

    @cached_property
    def _by_timestep(self) -> dict[int, Tensor]:
        timesteps = [level.t for level in self.levels[:-1] if isinstance(level.t, int)]
        if not len(set(timesteps)) == len(timesteps) == len(self.levels) - 1:
            raise InputError(
                "trajectory: its timesteps are not different whole numbers; "
                "source.at(index) gives the latents of a step"
            )
        by_timestep = {timesteps[index]: x for index, x in self.latents.items()}
        return by_timestep if 0 in timesteps else {0: self.clean, **by_timestep}
