"""Compile every kernel for GPUs that this machine need not have, and check the machine code.

    python -m anyv2v.kernels.aot [PART_OF_A_NAME ...] [--target sm_90 ...] [--write]

Triton's compiler needs neither a GPU nor a driver. A kernel must pass four gates: no register is
spilled, shared memory fits the target, no tensor-core instruction is serialized, and on sm_90 the
expected instruction is used. `--write` writes the table of results to kernels/registers.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TABLE = HERE / "registers.md"


@dataclass(frozen=True)
class Target:
    """A GPU architecture to compile for."""

    backend: str
    arch: int | str
    threads_per_warp: int
    shared_kib: int
    """Shared memory that one block may use, in KiB."""


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163),
    "sm_90": Target("cuda", 90, 32, 227),
    "sm_100": Target("cuda", 100, 32, 227),
    "gfx942": Target("hip", "gfx942", 64, 64),
}


@dataclass(frozen=True)
class Configuration:
    """One compilation of a kernel that can be chosen at run time.

    `types` and `constants` together must name every argument of the kernel.
    """

    name: str
    """Starts with the operation's name, "geglu gate bf16"; unique on each target."""
    kernel: Any
    """The function that triton.jit made."""
    types: Mapping[str, str]
    """Argument -> "*bf16", "i32", "fp32", ..."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """tl.constexpr argument -> value."""
    options: Mapping[str, int] = field(default_factory=dict)
    """num_warps, num_stages."""
    divisible: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16, as pointers are taken to be."""
    instruction: str | None = None
    """The matrix instruction of sm_90 that must appear, such as "HGMMA" or "HMMA"."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """Names of the targets on which it can be chosen."""


@dataclass(frozen=True)
class Report:
    """Facts on a compiled configuration; registers and spilled bytes are per thread."""

    registers: int
    spilled: int
    shared: int
    serialized: bool
    instructions: frozenset[str]


def configurations() -> Iterator[Configuration]:
    """Yields the configurations of all kernel folders."""
    for path in sorted(HERE.glob("*/fused.py")):
        module = importlib.import_module(f"anyv2v.kernels.{path.parent.name}.fused")
        yield from module.configurations()


def build(configuration: Configuration, target: Target) -> Report:
    """Compiles a configuration, bypassing Triton's cache, and reads the compiler's log.

    TRITON_INTERPRET must not have been set when the kernel was defined.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = configuration.kernel.arg_names
    unknown = {*configuration.types, *configuration.constants} ^ set(arguments)
    if unknown:
        raise ValueError(f"{configuration.name}: arguments that do not match: {sorted(unknown)}")
    signature = {name: configuration.types.get(name, "constexpr") for name in arguments}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(arguments)
        if signature[name].startswith("*") or name in configuration.divisible
    }
    source = ASTSource(configuration.kernel, signature, dict(configuration.constants), divisible)
    log = io.StringIO()
    with (
        triton.knobs.compilation.scope(),
        triton.knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(
            source,
            target=GPUTarget(target.backend, target.arch, target.threads_per_warp),
            options=dict(configuration.options),
        )
    if target.backend == "hip":
        return _read_amdgcn(compiled)
    return _read_ptxas(compiled, log.getvalue())


def _read_ptxas(compiled: Any, log: str) -> Report:
    def total(pattern: str) -> int:
        found = re.findall(pattern, log)
        if not found:
            raise RuntimeError(f"ptxas says nothing like {pattern!r}:\n{log}")
        return sum(map(int, found))

    return Report(
        registers=total(r"Used (\d+) registers"),
        spilled=total(r"(\d+) bytes spill stores") + total(r"(\d+) bytes spill loads"),
        shared=compiled.metadata.shared,
        serialized="C7510" in log or "C7511" in log,
        instructions=_instructions(compiled.asm["cubin"]),
    )


def _instructions(cubin: bytes) -> frozenset[str]:
    """Returns the opcodes of the machine code, such as {"HGMMA", "FFMA", ...}."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # "/*0180*/   @!P0 LDG.E.128 R4, ..."
    return frozenset(re.findall(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w+)", sass, re.MULTILINE))


def _read_amdgcn(compiled: Any) -> Report:
    text = compiled.asm["amdgcn"]

    def value(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    return Report(
        registers=value("vgpr_count"),
        spilled=4 * value("vgpr_spill_count"),
        shared=compiled.metadata.shared,
        serialized=False,
        instructions=frozenset(re.findall(r"\bv_mfma_\w+", text)),
    )


def faults(report: Report, configuration: Configuration, target_name: str) -> list[str]:
    """Lists the gates that a compiled configuration fails; empty if it may be chosen."""
    target, failed = TARGETS[target_name], []
    if report.spilled:
        failed.append(f"spills {report.spilled} bytes")
    if report.shared > target.shared_kib * 1024:
        failed.append(f"shared memory over {target.shared_kib} KiB")
    if report.serialized:
        failed.append("serialized wgmma")
    expected = configuration.instruction
    if target_name == "sm_90" and expected is not None and expected not in report.instructions:
        failed.append(f"no {expected}")
    return failed


def _cell(report: Report, found: list[str]) -> str:
    figures = f"{report.registers} / {report.spilled} / {math.ceil(report.shared / 1024)}"
    return figures if not found else f"{figures} **{', '.join(found)}**"


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Formats registers.md from configuration -> target -> cell."""
    import triton

    header = " | ".join(TARGETS)
    lines = [
        "# What the compiler makes of each kernel",
        "",
        "Written by `python -m anyv2v.kernels.aot --write`; do not edit. Each cell: registers per",
        "thread / bytes spilled / KiB of shared memory per block, then what a gate has against it.",
        f"Triton {triton.__version__}, nothing run: no GPU is needed.",
        "",
        f"| configuration | {header} |",
        "|---" * (len(TARGETS) + 1) + "|",
    ]
    for name, cells in rows.items():
        lines.append(f"| {name} | " + " | ".join(cells.get(t, "-") for t in TARGETS) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 if a gate failed or nothing was compiled."""
    parser = argparse.ArgumentParser(prog="python -m anyv2v.kernels.aot")
    parser.add_argument("part", nargs="*", help="only configurations with one of these in the name")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="all unless given")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} anew")
    args = parser.parse_args(argv)
    if args.write and (args.part or args.target):
        parser.error("--write is for all configurations and targets")

    rows: dict[str, dict[str, str]] = {}
    compiled, bad = 0, 0
    for configuration in configurations():
        if args.part and not any(part in configuration.name for part in args.part):
            continue
        cells = rows.setdefault(configuration.name, {})
        for name in configuration.targets:
            if args.target and name not in args.target:
                continue
            report = build(configuration, TARGETS[name])
            found = faults(report, configuration, name)
            cells[name] = _cell(report, found)
            print(f"{name:7} {configuration.name:45} {cells[name]}", flush=True)
            compiled, bad = compiled + 1, bad + bool(found)
    print(f"{compiled} compiled, {bad} bad")
    if args.write:
        TABLE.write_text(table(rows), encoding="utf-8")
    return 1 if bad or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
