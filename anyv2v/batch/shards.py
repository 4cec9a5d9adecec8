"""Which clips of a batch one of several runs does, on as many machines.

Shards are counted from 0, as RANK and SLURM_ARRAY_TASK_ID are: of four runs the first does
`--shard 0/4`. A clip belongs to the same shard whatever is done already, so runs may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anyv2v.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` parts; both are whole numbers."""

    index: int = 0
    """Number of the part, from 0."""
    count: int = 1
    """Number of parts, at least 1."""

    def __post_init__(self):
        if self.count < 1 or not 0 <= self.index < self.count:
            last = max(self.count, 1) - 1
            raise InputError(
                f"shard {self}: shards are counted from 0, so the last is {last}/{last + 1}"
            )

    @classmethod
    def read(cls, text: str) -> Shard:
        """Reads a text such as "0/4"; raises InputError for any other."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise InputError(f"shard {text!r} is not INDEX/COUNT, such as 0/4")
        return cls(int(index), int(count))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Shard:
        """Returns the shard of this process, as torchrun and the arrays of Slurm tell it.

        torchrun sets RANK and WORLD_SIZE; an array of Slurm sets SLURM_ARRAY_TASK_ID, _COUNT, and
        _MIN and _STEP if it does not count 0, 1, 2, ... If both are set, each task of the array is
        divided among its ranks. Without any of them the shard is the whole. Raises InputError for
        values that are impossible.
        """
        rank, size = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
        array, first, step, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
            for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
        )
        if "SLURM_ARRAY_TASK_COUNT" not in environment:
            array = first = 0
        outer = cls((array - first) // max(step, 1), count)
        inner = cls(rank, size) if "WORLD_SIZE" in environment else cls()
        return cls(outer.index * inner.count + inner.index, outer.count * inner.count)

    def of(self, tasks: Sequence[T]) -> list[T]:
        """Returns the members of a sequence that belong to this part: every `count`-th."""
        return list(tasks[self.index :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}={text!r} in the environment is not a whole number from 0 up")
    return int(text)
