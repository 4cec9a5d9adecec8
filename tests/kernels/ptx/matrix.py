"""The instructions of whole warps and warp groups: matrices in registers and in shared memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.instructions import Table, everyone, from_half, halves
from tests.kernels.ptx.memory import WARP
from tests.kernels.ptx.parse import Unknown, names

TABLE = Table()
GROUP = 4 * WARP
# in a fragment of 8 rows of 8 halves each lane has two neighbours of one row
ROW, COLUMN = np.arange(WARP) // 4, 2 * (np.arange(WARP) % 4)
QUARTERS = ((0, 0), (8, 0), (0, 8), (8, 8))
"""Row and column where the registers of a 16 x 16 operand begin."""


@TABLE(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
def _move_matrices(machine, statement, what, count, transposed):
    """Lanes 8 j to 8 j + 7 have the addresses of the rows of the j-th matrix."""
    registers = names(statement.operands[0 if what == "ld" else 1])
    address = machine.address(statement.operands[1 if what == "ld" else 0])
    text = str(statement)
    if len(registers) != int(count):
        raise Unknown("another number of registers")

    def places(m, j):
        warps = machine.together(m, statement)
        lanes = machine.lane.reshape(-1, WARP)[warps, 8 * j : 8 * j + 8].reshape(-1)
        return warps, lanes, address()[lanes]

    def load(m):
        for j in range(len(registers)):
            warps, lanes, at = places(m, j)
            rows = machine.shared.read(at, 16, lanes, text)
            matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 8, 8)
            if transposed:
                matrices = matrices.swapaxes(1, 2)
            pairs = np.stack([matrices[:, ROW, COLUMN], matrices[:, ROW, COLUMN + 1]], axis=-1)
            values = np.zeros((len(warps), WARP), np.uint32)
            values[warps] = np.ascontiguousarray(pairs).view(np.uint32)[..., 0]
            write[j](values.reshape(-1), m)

    def store(m):
        for j in range(len(registers)):
            warps, lanes, at = places(m, j)
            pairs = np.ascontiguousarray(read[j]()).view(np.uint16).reshape(-1, WARP, 2)[warps]
            matrices = np.empty((len(pairs), 8, 8), np.uint16)
            matrices[:, ROW, COLUMN], matrices[:, ROW, COLUMN + 1] = pairs[..., 0], pairs[..., 1]
            if transposed:
                matrices = matrices.swapaxes(1, 2)
            rows = np.ascontiguousarray(matrices).view(np.uint8).reshape(-1, 16)
            machine.shared.write(at, rows, lanes, text)

    if what == "ld":
        write = [machine.target(r) for r in registers]
        return load
    read = [machine.source(r, "b32") for r in registers]
    return store


@TABLE(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(f16|bf16)\.(?:f16|bf16)\.f32")
def _product_of_a_warp(machine, statement, kind):
    d, a, b, c = (names(x) for x in statement.operands)
    write = [machine.target(r) for r in d]
    left, right = ([machine.source(r, "b32") for r in x] for x in (a, b))
    before = [machine.source(r, "f32") for r in c]
    warps = machine.lanes // WARP
    parts = [(row, e) for row in (0, 8) for e in (0, 1)]

    def run(m):
        machine.together(m, statement)
        product = _rows_in_registers(left, kind, warps) @ _columns(right, kind, warps)
        for j, (row, e) in enumerate(parts):
            sums = product[:, row + ROW, COLUMN + e].reshape(-1) + before[j]()
            write[j](sums.astype(np.float32), m)

    return run


def _rows_in_registers(read: list[Callable], kind: str, warps: int) -> np.ndarray:
    """The left operand, (warps, 16, 16), of four registers."""
    left = np.empty((warps, 16, 16), np.float32)
    for register, (row, column) in zip(read, QUARTERS, strict=True):
        for e, half in enumerate(halves(register(), kind)):
            left[:, row + ROW, column + COLUMN + e] = half.reshape(-1, WARP)
    return left


def _columns(read: list[Callable], kind: str, warps: int) -> np.ndarray:
    """The right operand, (warps, 16, 8), of two registers."""
    right = np.empty((warps, 16, 8), np.float32)
    for register, k in zip(read, (0, 8), strict=True):
        for e, half in enumerate(halves(register(), kind)):
            right[:, k + COLUMN + e, ROW] = half.reshape(-1, WARP)
    return right


@TABLE(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(f16|bf16)\.(?:f16|bf16)")
def _product_of_a_group(machine, statement, n, kind):
    """d (64, n) = a (64, 16) b (16, n) + d, by four warps; a in registers or in shared memory."""
    d, a, b, adds, *flags = statement.operands
    flags = [int(x) for x in flags]
    from_registers, n = a.startswith("{"), int(n)
    if flags[:2] != [1, 1] or len(flags) != (3 if from_registers else 4):
        raise Unknown("a product with other signs")
    registers, groups = names(d), machine.lanes // GROUP
    write = [machine.target(r) for r in registers]
    before = [machine.source(r, "f32") for r in registers]
    adds = machine.source(adds, "pred")
    right = _matrix_in_shared_memory(machine, statement, b, n, bool(flags[-1]), kind)
    if from_registers:
        fragments = [machine.source(r, "b32") for r in names(a)]
    else:
        left = _matrix_in_shared_memory(machine, statement, a, 64, bool(flags[2]), kind)
    used = frozenset(registers) | frozenset(names(a) if from_registers else ())
    # which row of the warp's 16 and which column a register has, in order
    places = [(row, 8 * i + e) for i in range(n // 8) for row in (0, 8) for e in (0, 1)]

    def run(m):
        chosen = machine.together(m, statement, GROUP)
        if from_registers:
            rows = _rows_in_registers(fragments, kind, 4 * groups).reshape(-1, 64, 16)
        else:
            rows = left(chosen)
        product = (rows @ right(chosen).swapaxes(1, 2)).reshape(-1, 16, n)
        flying = everyone(m, machine.lanes).copy()
        machine.accumulating.append((used, flying))

        def end(done):
            flying[done] = False

        machine.products.start(end)
        keep = np.broadcast_to(adds(), machine.lanes)
        for j, (row, column) in enumerate(places):
            sums = product[:, row + ROW, column + COLUMN].reshape(-1)
            write[j](np.where(keep, sums + before[j](), sums).astype(np.float32), m)

    return run


def _matrix_in_shared_memory(
    machine, statement, operand: str, rows: int, transposed: bool, kind: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Reads (groups, rows, 16) by a descriptor; the 16 are what a product sums over.

    Of descriptors this knows those with 128 bytes' swizzle: eight lines of 128 bytes after one
    another, of whose 16-byte pieces the number is xored with the line's. A line is along the 16,
    or, transposed, along the rows.
    """
    read, text = machine.source(operand, "u64"), str(statement)
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]

    def run(chosen):
        every = np.broadcast_to(read(), machine.lanes).reshape(-1, GROUP)
        if (every != every[:, :1]).any():
            raise Unknown(f"lanes of a group with different descriptors: {statement}")
        descriptor = every[chosen, :1, None].astype(np.int64)
        start, leading, stride = (((descriptor >> s) & 0x3FFF) << 4 for s in (0, 16, 32))
        if ((descriptor >> 49) & 0x7FFF != 1 << 13).any():
            raise Unknown(f"a descriptor with another swizzle: {statement}")
        if transposed:
            at = start + row // 64 * leading + k // 8 * stride + k % 8 * 128 + row % 64 * 2
        else:
            at = start + row // 8 * stride + row % 8 * 128 + k * 2
        at = at ^ (((at >> 7) & 7) << 4)
        lanes = machine.lane[::GROUP][chosen]
        bytes_at = machine.shared.start_matrix(at, lanes, text)

        def end(done):
            machine.shared.end_matrix(bytes_at[done[lanes]])

        machine.products.start(end)
        bits = np.ascontiguousarray(machine.shared.values(bytes_at)).view(np.uint16)
        matrices = np.zeros((len(chosen), rows, 16), np.float32)
        matrices[chosen] = from_half(bits.reshape(-1, rows, 16), kind)
        return matrices

    return run
