"""What each instruction does to the registers and the memory of a machine (PTX ISA 8.7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.memory import WARP
from tests.kernels.ptx.parse import KINDS, Statement, Unknown, names, unsigned

Mask = np.ndarray | None
"""(lanes,) of bool, those that run an instruction; None: all of them."""


def everyone(m: Mask, lanes: int) -> np.ndarray:
    return np.ones(lanes, bool) if m is None else m


class Table(list):
    """Pairs of a pattern of operations, and what builds one.

    That is a function of a machine, a statement and the groups of the pattern; what it gives is a
    function of a mask that runs the instruction.
    """

    def __call__(self, pattern: str) -> Callable:
        def add(build: Callable) -> Callable:
            self.append((pattern, build))
            return build

        return add


TABLE = Table()


def _flushed(x: np.ndarray) -> np.ndarray:
    """.ftz: numbers too small to be normal are zero."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def _computed(compute: Callable, *sources: str) -> Callable:
    """An instruction whose first operand is `compute` of the others."""

    def build(machine, statement: Statement, flush: bool = False) -> Callable:
        if len(statement.operands) != 1 + len(sources):
            raise Unknown("another number of operands")
        write = machine.target(statement.operands[0])
        read = [machine.source(*x) for x in zip(statement.operands[1:], sources, strict=True)]
        if flush:
            return lambda m: write(_flushed(compute(*(_flushed(r()) for r in read))), m)
        return lambda m: write(np.asarray(compute(*(r() for r in read))), m)

    return build


# arithmetic


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded towards zero; float64 holds all 32-bit numbers."""
    return np.where(b == 0, -1, np.trunc(a / np.where(b == 0, 1, b))).astype(a.dtype)


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - _quotient(a, b) * b


TWO = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
INTEGERS = TWO | {"min": np.minimum, "max": np.maximum, "div": _quotient, "rem": _remainder}
# of a number and NaN, the number
FLOATS = TWO | {"min": np.fmin, "max": np.fmax, "div": np.divide}


@TABLE(r"(add|sub|mul\.lo|and|or|xor|min|max|div|rem)\.(pred|[bsu]\d+)")
def _integers(machine, statement, name, kind):
    if kind.endswith("64") and name in ("div", "rem"):
        raise Unknown("64-bit division")
    return _computed(INTEGERS[name], kind, kind)(machine, statement)


@TABLE(r"(add|sub|mul|min|max|div)(?:\.rn|\.full)?(\.ftz)?\.f32")
def _floats(machine, statement, name, flush):
    return _computed(FLOATS[name], "f32", "f32")(machine, statement, bool(flush))


@TABLE(r"(add)(?:\.rn)?\.(f16|bf16)x2")
def _pairs(machine, statement, name, kind):
    def both(a, b):
        pairs = zip(halves(a, kind), halves(b, kind), strict=True)
        return _packed([TWO[name](x, y) for x, y in pairs], kind)

    return _computed(both, "b32", "b32")(machine, statement)


@TABLE(r"fma\.rn(\.ftz)?\.f32")
def _fma(machine, statement, flush):
    def fma(a, b, c):
        # the product of two float32 is exact in float64
        return (a.astype(np.float64) * b + c).astype(np.float32)

    return _computed(fma, "f32", "f32", "f32")(machine, statement, bool(flush))


APPROXIMATE = {
    "neg": np.negative,
    "abs": np.abs,
    "ex2.approx": np.exp2,
    "lg2.approx": np.log2,
    "sqrt.approx": np.sqrt,
    "rcp.approx": np.reciprocal,
    "rcp.rn": np.reciprocal,
    "rsqrt.approx": lambda x: (1 / np.sqrt(x.astype(np.float64))).astype(np.float32),
}


@TABLE(r"(neg|abs|(?:ex2|lg2|sqrt|rcp|rsqrt)\.approx|rcp\.rn)(\.ftz)?\.f32")
def _one_float(machine, statement, name, flush):
    return _computed(APPROXIMATE[name], "f32")(machine, statement, bool(flush))


@TABLE(r"(neg|not)\.(pred|[bs]\d+)")
def _one_integer(machine, statement, name, kind):
    compute = np.negative if name == "neg" else np.invert
    return _computed(compute, kind)(machine, statement)


def _twice(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


@TABLE(r"mul\.(wide|hi)\.([su]\d+)")
def _long_product(machine, statement, part, kind):
    wide = np.dtype(KINDS[_twice(kind)])
    bits = int(kind[1:])

    def product(a, b):
        whole = a.astype(wide) * b.astype(wide)
        return whole if part == "wide" else (whole >> wide.type(bits)).astype(KINDS[kind])

    return _computed(product, kind, kind)(machine, statement)


@TABLE(r"mad\.(lo|wide)\.([su]\d+)")
def _product_and_sum(machine, statement, part, kind):
    result = _twice(kind) if part == "wide" else kind
    wide = KINDS[result]
    return _computed(lambda a, b, c: a.astype(wide) * b.astype(wide) + c, kind, kind, result)(
        machine, statement
    )


@TABLE(r"(shl|shr)\.([bsu]\d+)")
def _shift(machine, statement, direction, kind):
    dtype, bits = np.dtype(KINDS[kind]), int(kind[1:])

    def shift(a, amount):
        # numpy leaves open what shifting by all the bits gives
        beyond = amount >= bits
        by = np.where(beyond, bits - 1, amount).astype(dtype)
        if direction == "shl":
            return np.where(beyond, dtype.type(0), a << by)
        return np.where(beyond & (kind[0] != "s"), dtype.type(0), a >> by)

    return _computed(shift, kind, "u32")(machine, statement)


@TABLE(r"bfe\.([su])32")
def _bit_field(machine, statement, sign):
    def field(a, start, count):
        up = (32 - start - count).astype(np.uint32)
        value = a.view(np.uint32) << up
        return value.view(a.dtype) >> (32 - count).astype(a.dtype)

    start, count = (int(x, 0) for x in statement.operands[2:])
    if count == 0 or start + count > 32:
        raise Unknown("a field beyond the register")
    return _computed(field, f"{sign}32", "s32", "s32")(machine, statement)


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    # true of NaN
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "neu": np.not_equal,
}


@TABLE(r"setp\.([a-z]+)\.([bsuf]\d+)")
def _compare(machine, statement, name, kind):
    if name not in COMPARISONS:
        raise Unknown("comparison")
    return _computed(COMPARISONS[name], kind, kind)(machine, statement)


@TABLE(r"selp\.([bsuf]\d+)")
def _select(machine, statement, kind):
    kind = unsigned(kind)
    return _computed(lambda a, b, p: np.where(p, a, b), kind, kind, "pred")(machine, statement)


# moving and converting


@TABLE(r"mov\.(pred|[bsuf]\d+)")
def _move(machine, statement, kind):
    target, source = statement.operands
    if source.startswith("{"):
        parts = [
            machine.source(x, f"u{int(kind[1:]) // len(names(source))}") for x in names(source)
        ]
        write = machine.target(target)
        return lambda m: write(_joined([p() for p in parts], machine.lanes), m)
    if target.startswith("{"):
        count = len(names(target))
        read, write = machine.source(source, kind), [machine.target(x) for x in names(target)]
        part = KINDS[f"u{int(kind[1:]) // count}"]

        def run(m):
            pieces = np.broadcast_to(read(), machine.lanes).copy().view(part).reshape(-1, count)
            for j in range(count):
                write[j](pieces[:, j], m)

        return run
    kind = unsigned(kind)
    return _computed(lambda a: a, kind)(machine, statement)


def _joined(parts: list[np.ndarray], lanes: int) -> np.ndarray:
    """Several numbers as one of as many bits, the first lowest."""
    pieces = np.stack([np.broadcast_to(p, lanes) for p in parts], axis=1)
    return np.ascontiguousarray(pieces).view(f"u{len(parts) * pieces.itemsize}")[:, 0]


def _to_half(x: np.ndarray, kind: str) -> np.ndarray:
    """float32 -> bits of the nearest half, ties to even."""
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, nearest).astype(np.uint16)


def from_half(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def halves(pair: np.ndarray, kind: str) -> list[np.ndarray]:
    """The low one first, as float32."""
    pair = np.ascontiguousarray(pair).view(np.uint32)
    return [from_half(pair & np.uint32(0xFFFF), kind), from_half(pair >> np.uint32(16), kind)]


def _packed(halves: list[np.ndarray], kind: str) -> np.ndarray:
    low, high = (_to_half(x, kind).astype(np.uint32) for x in halves)
    return low | (high << np.uint32(16))


@TABLE(r"cvt\.([su]\d+)\.([su]\d+)")
def _convert_integers(machine, statement, to, kind):
    return _computed(lambda a: a.astype(KINDS[to]), kind)(machine, statement)


@TABLE(r"cvt\.rn\.f32\.([su]\d+)")
def _convert_to_float(machine, statement, kind):
    return _computed(lambda a: a.astype(np.float32), kind)(machine, statement)


@TABLE(r"cvt\.rn\.(f16|bf16)\.f32")
def _narrow(machine, statement, kind):
    return _computed(lambda a: _to_half(a, kind), "f32")(machine, statement)


@TABLE(r"cvt\.rn\.(f16|bf16)x2\.f32")
def _narrow_two(machine, statement, kind):
    return _computed(lambda high, low: _packed([low, high], kind), "f32", "f32")(machine, statement)


@TABLE(r"cvt\.f32\.(f16|bf16)")
def _widen(machine, statement, kind):
    return _computed(lambda a: from_half(a, kind), "b16")(machine, statement)


@TABLE(r"shfl\.sync\.(bfly|idx)\.b32")
def _shuffle(machine, statement, how):
    target, value, other, clamp, members = statement.operands
    if int(clamp) != WARP - 1 or int(members, 0) not in (-1, 0xFFFFFFFF):
        raise Unknown("within part of a warp")
    write, read = machine.target(target.split("|")[0]), machine.source(value, "b32")
    by = machine.source(other, "u32")
    first, own = machine.lane // WARP * WARP, machine.lane % WARP

    def run(m):
        machine.together(m, statement)
        lane = own ^ by() if how == "bfly" else by() % np.uint32(WARP)
        write(np.broadcast_to(read(), machine.lanes)[first + lane], m)

    return run


# memory


@TABLE(r"ld\.param\.([bsuf]\d+)")
def _load_parameter(machine, statement, kind):
    target, source = statement.operands
    write, name = machine.target(target), source.strip("[] ")
    return lambda m: write(machine.arguments[name].view(KINDS[kind]), m)


@TABLE(r"(ld|st)\.(global|shared)(?:\.v([24]))?\.([bsuf]\d+)")
def _load_or_store(machine, statement, what, space, count, kind):
    count, kind = int(count or 1), unsigned(kind)
    size = KINDS[kind].itemsize
    registers = names(statement.operands[0 if what == "ld" else 1])
    address = machine.address(statement.operands[1 if what == "ld" else 0])
    if len(registers) != count:
        raise Unknown("another number of registers")
    memory = machine.memory if space == "global" else machine.shared
    who = machine.block if space == "global" else machine.lane

    def load(m):
        chosen = slice(None) if m is None else m
        read = memory.read(address()[chosen], count * size, who[chosen], str(statement))
        data = np.zeros((machine.lanes, count), KINDS[kind])
        data[chosen] = np.ascontiguousarray(read).view(KINDS[kind])
        for j in range(count):
            write[j](data[:, j], m)

    def store(m):
        chosen = slice(None) if m is None else m
        data = np.stack([np.broadcast_to(r(), machine.lanes) for r in read], axis=1)[chosen]
        data = np.ascontiguousarray(data).view(np.uint8)
        memory.write(address()[chosen], data, who[chosen], str(statement))

    if what == "ld":
        write = [machine.target(r) for r in registers]
        return load
    read = [machine.source(r, kind) for r in registers]
    return store


@TABLE(r"cp\.async\.c[ag]\.shared\.global")
def _copy(machine, statement):
    to, source = (machine.address(x) for x in statement.operands[:2])
    size = int(statement.operands[2], 0)
    there = machine.source((*statement.operands, statement.operands[2])[3], "u32")
    text = str(statement)

    def run(m):
        lanes = machine.lane if m is None else machine.lane[m]
        read = np.broadcast_to(there(), machine.lanes)[lanes]
        if not np.isin(read, (0, size)).all():
            raise Unknown(f"a copy of a part: {statement}")
        data = np.zeros((len(lanes), size), np.uint8)
        some = lanes[read == size]
        data[read == size] = machine.memory.read(source()[some], size, machine.block[some], text)
        at = machine.shared.start_copy(to()[lanes], size, lanes, text)

        def end(done):
            ready = done[lanes]
            machine.shared.end_copy(at[ready], data[ready], lanes[ready])

        machine.copies.start(end)

    return run


@TABLE(r"(cp\.async|wgmma)\.commit_group(?:\.sync\.aligned)?")
def _commit(machine, statement, what):
    flying = machine.copies if what == "cp.async" else machine.products
    return flying.commit


@TABLE(r"(cp\.async|wgmma)\.wait_group(?:\.sync\.aligned)?")
def _wait(machine, statement, what):
    newest = int(statement.operands[0])
    if what == "cp.async":
        return lambda m: machine.copies.wait(m, newest)

    def run(m):
        machine.products.wait(m, newest)
        machine.accumulating = [x for x in machine.accumulating if x[1].any()]

    return run


@TABLE(r"fence\.proxy\.async(?:\.shared::cta)?")
def _fence_of_memory(machine, statement):
    return lambda m: machine.shared.fence(machine.lane if m is None else machine.lane[m])


@TABLE(r"wgmma\.fence\.sync\.aligned")
def _fence_of_registers(machine, statement):
    return lambda m: None


@TABLE(r"bar\.(warp\.)?sync|barrier\.sync")
def _barrier(machine, statement, warp):
    if statement.operands not in (("0",), ("-1",)):
        raise Unknown("a barrier of some threads")

    def run(m):
        machine.together(m, statement, WARP if warp else machine.threads)
        machine.shared.barrier(machine.lane if m is None else machine.lane[m], not warp)

    return run
