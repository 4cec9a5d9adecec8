"""An interpreter of the PTX that Triton makes for sm_90: every lane of every block at once.

Registers are numpy vectors with one element per lane. Lanes wait at the first basic block that some
of them have not passed, so that they meet again after a branch. What runs beside a warp, copies to
shared memory and products of warp groups, ends as late as it may: when it is waited for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tests.kernels.ptx import instructions, matrix
from tests.kernels.ptx.instructions import Mask, everyone
from tests.kernels.ptx.memory import WARP, Fault, Global, Race, Shared
from tests.kernels.ptx.parse import BRANCHES, KINDS, Program, Statement, Unknown, unsigned

STEPS = 20_000
"""Instructions after which a launch hangs."""


class Hangs(Fault):
    """Lanes that wait for each other, or a loop without end."""


class Flying:
    """What lanes started, committed in groups and have to wait for.

    Each part is a function of the lanes, (lanes,) of bool, for which it is to end.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._open: list[Callable[[np.ndarray], None]] = []
        self._groups: list[tuple[np.ndarray, list[Callable[[np.ndarray], None]]]] = []

    def start(self, end: Callable[[np.ndarray], None]) -> None:
        self._open.append(end)

    def commit(self, m: Mask) -> None:
        self._groups.append((everyone(m, self._lanes), self._open))
        self._open = []

    def wait(self, m: Mask, newest: int) -> None:
        """Ends every group of the lanes but so many of the newest."""
        waiting, newer = everyone(m, self._lanes), np.zeros(self._lanes, int)
        ending, left = [], []
        for lanes, parts in reversed(self._groups):
            done = lanes & waiting & (newer >= newest)
            newer += lanes
            ending.append((done, parts))
            left.append((lanes & ~done, parts))
        self._groups = [(lanes, parts) for lanes, parts in reversed(left) if lanes.any()]
        for done, parts in reversed(ending):
            for end in parts:
                end(done)

    def __bool__(self) -> bool:
        return bool(self._open) or any(parts for _, parts in self._groups)


class _Registers(dict[str, np.ndarray]):
    """Name -> (lanes,); what nobody wrote is poison, NaN if read as a float."""

    def __init__(self, width: Callable[[str], np.dtype], lanes: int) -> None:
        self._width, self._lanes = width, lanes

    def __missing__(self, name: str) -> np.ndarray:
        width = self._width(name)
        self[name] = np.full(self._lanes, False if width.kind == "b" else ~width.type(0))
        return self[name]


class Machine:
    """One launch of a program."""

    def __init__(
        self, program: Program, grid: Sequence[int], threads: int, memory: Global, shared_size: int
    ) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self.program, self.threads, self.memory = program, threads, memory
        self.lanes = x * y * z * threads
        self.lane = np.arange(self.lanes)
        self.block = self.lane // threads
        self.shared = Shared(x * y * z, threads, shared_size)
        self.copies, self.products = Flying(self.lanes), Flying(self.lanes)
        self.accumulating: list[tuple[frozenset[str], np.ndarray]] = []
        """Registers that products of warp groups still use, and of which lanes."""
        self.arguments: dict[str, np.ndarray] = {}
        self._values = _Registers(self._register, self.lanes)
        places = {
            "%tid.x": self.lane % threads,
            "%laneid": self.lane % WARP,
            "%ctaid.x": self.block % x,
            "%ctaid.y": self.block // x % y,
            "%ctaid.z": self.block // (x * y),
            "%nctaid.x": np.full(self.lanes, x),
            "%nctaid.y": np.full(self.lanes, y),
            "%nctaid.z": np.full(self.lanes, z),
            "global_smem": np.zeros(self.lanes),
        }
        self._places = {name: value.astype(np.uint32) for name, value in places.items()}
        self._blocks = [[self._compiled(s) for s in block] for block in program.blocks]

    # what the instructions are made of

    def source(self, operand: str, kind: str) -> Callable[[], np.ndarray]:
        """Reads an operand as (lanes,), or as (1,) if it is a number in the text."""
        dtype, bits = KINDS[kind], KINDS[unsigned(kind)]
        if operand in self._places:
            value = self._places[operand].astype(bits).view(dtype)
            return lambda: value
        if not operand.startswith("%"):
            number = int(operand[2:], 16) if operand.startswith("0f") else int(operand, 0)
            cut = number != 0 if kind == "pred" else number & ((1 << 8 * dtype.itemsize) - 1)
            value = np.array([cut], bits).view(dtype)
            return lambda: value
        values, width = self._values, self._register(operand)
        if width.itemsize == dtype.itemsize:
            return lambda: values[operand].view(dtype)
        return lambda: values[operand].astype(bits).view(dtype)

    def target(self, operand: str) -> Callable[[np.ndarray, Mask], None]:
        """Writes a register; a value of another width is cut, or extended by its own sign."""
        if operand == "_":
            return lambda value, m: None
        values, width = self._values, self._register(operand)

        def write(value: np.ndarray, m: Mask) -> None:
            if value.dtype.itemsize == width.itemsize:
                value = np.ascontiguousarray(value).view(width)
            else:
                value = value.astype(width)
            if m is not None:
                value = np.where(m, value, values[operand])
            elif len(value) != self.lanes:
                value = np.broadcast_to(value, self.lanes).copy()
            values[operand] = value

        return write

    def address(self, operand: str) -> Callable[[], np.ndarray]:
        """Of "[%rd1 + 16]": (lanes,), int64."""
        match = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if match is None:
            raise Unknown(f"the address {operand}")
        wide = match[1].startswith("%") and self._register(match[1]).itemsize == 8
        base, offset = self.source(match[1], "s64" if wide else "u32"), int(match[2] or "0", 0)
        return lambda: np.broadcast_to(base().astype(np.int64) + offset, self.lanes)

    def together(self, m: Mask, statement: Statement, size: int = WARP) -> np.ndarray:
        """(lanes / size,) of bool: the warps that run what all of their lanes have to run."""
        lanes = everyone(m, self.lanes).reshape(-1, size)
        if (lanes.any(1) != lanes.all(1)).any():
            raise Hangs(f"some lanes do not take part: {statement}")
        return lanes.all(1)

    def _register(self, name: str) -> np.dtype:
        match = re.match(r"%[a-z]+", name)
        if match is None or match[0] not in self.program.registers:
            raise Unknown(f"the register {name}")
        return self.program.registers[match[0]]

    # running

    def _compiled(self, statement: Statement) -> tuple[Callable | None, Statement, frozenset[str]]:
        touched = frozenset(re.findall(r"%[a-z]+\d+", statement.text))
        if statement.operation in BRANCHES:
            return None, statement, touched
        for pattern, build in (*instructions.TABLE, *matrix.TABLE):
            if match := re.fullmatch(pattern, statement.operation):
                try:
                    return build(self, statement, *match.groups()), statement, touched
                except (Unknown, ValueError) as e:
                    raise Unknown(f"{e}: {statement}") from None
        raise Unknown(f"no such instruction: {statement}")

    def run(self, arguments: Sequence[np.ndarray]) -> None:
        """Arguments are arrays (1,) of their types."""
        self.arguments.update(zip(self.program.parameters, arguments, strict=True))
        self.memory.launch()
        waiting: dict[int, np.ndarray] = {0: np.ones(self.lanes, bool)}
        steps = 0
        with np.errstate(all="ignore"):
            while waiting:
                at = min(waiting)
                m = waiting.pop(at)
                steps += len(self._blocks[at])
                if steps > STEPS:
                    raise Hangs(f"no end after {STEPS} instructions")
                for following, lanes in self._run_block(at, m):
                    waiting[following] = waiting.get(following, False) | lanes
        if self.copies or self.products:
            raise Race("the program ends before what it started")

    def _run_block(self, at: int, lanes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Gives where the lanes go on."""
        for run, statement, touched in self._blocks[at]:
            self.shared.now += 1
            if not statement.operation.startswith("wgmma"):
                for registers, flying in self.accumulating:
                    if not registers.isdisjoint(touched) and (flying & lanes).any():
                        raise Race(f"a register of a product that nobody waited for: {statement}")
            m = lanes
            if statement.predicate is not None:
                m = m & (self.source(statement.predicate, "pred")() ^ statement.negated)
            if run is not None:
                if m.any():
                    run(None if m.all() else m)
                continue
            if statement.operation != "ret" and m.any():
                yield self.program.labels[statement.operands[0]], m
            lanes = lanes & ~m
        if lanes.any():
            yield at + 1, lanes
