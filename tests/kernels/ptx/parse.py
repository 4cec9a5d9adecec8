"""PTX text -> statements, cut into basic blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

KINDS = {
    "pred": np.dtype(bool),
    **{f"{sign}{bits}": np.dtype(f"u{bits // 8}") for sign in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
}
BRANCHES = ("bra", "bra.uni", "ret")


class Unknown(NotImplementedError):
    """Not an instruction, or not in a form, that this interpreter knows."""


@dataclass(frozen=True)
class Statement:
    text: str
    line: int
    predicate: str | None
    negated: bool
    operation: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"line {self.line}: {self.text[:100]}"


@dataclass
class Program:
    """The only kernel of a text."""

    parameters: list[str] = field(default_factory=list)
    registers: dict[str, np.dtype] = field(default_factory=dict)
    """Prefix, such as "%rd" -> what one holds."""
    blocks: list[list[Statement]] = field(default_factory=lambda: [[]])
    """Only the last statement of one may be a branch."""
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> the block that begins there."""


def parse(ptx: str) -> Program:
    program = Program()
    lines = enumerate(re.sub(r"//[^\n]*", "", ptx).splitlines(), 1)
    for _, text in lines:
        if match := re.match(r"\s*\.param .*?(\w+),?$", text):
            program.parameters.append(match[1])
        if text.strip() == "{":
            break
    pending = ""
    for line, text in lines:
        text = text.strip()
        if text == "}":
            return program
        if match := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)<\d+>;", text):
            program.registers[match[2]] = KINDS[unsigned(match[1])]
        elif match := re.fullmatch(r"([\w$]+):", text):
            if program.blocks[-1]:
                program.blocks.append([])
            program.labels[match[1]] = len(program.blocks) - 1
        elif text and not text.startswith("."):
            *whole, pending = f"{pending} {text}".split(";")
            for part in whole:
                statement = _statement(part.strip(), line)
                program.blocks[-1].append(statement)
                if statement.operation in BRANCHES:
                    program.blocks.append([])
    raise Unknown("the kernel has no end")


def _statement(text: str, line: int) -> Statement:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", text, re.DOTALL)
    if match is None:
        raise Unknown(f"line {line}: {text}")
    negated, predicate, operation, operands = match.groups()
    # at the commas that are not within brackets
    cut = tuple(x.strip() for x in re.split(r",(?![^{\[]*[}\]])", operands) if x.strip())
    return Statement(text, line, predicate, bool(negated), operation, cut)


def unsigned(kind: str) -> str:
    """The kind for the bits of another: "s32" -> "u32"."""
    return kind if kind == "pred" else f"u{kind[1:]}"


def names(operand: str) -> list[str]:
    """Of "{%r1, %r2}", or of one."""
    return [x.strip() for x in operand.strip("{} ").split(",")]
