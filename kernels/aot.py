"""Compiles every kernel for several GPU architectures and checks the machine code.

    python -m anyv2v.kernels.aot [PART_OF_A_NAME ...] [--target sm_90 ...] [--write]

Triton's compiler needs neither a GPU nor a driver. A compiled kernel must pass four gates: no
register is spilled, its shared memory fits the target, the compiler serializes no tensor-core
instruction, and on sm_90 the matrix instruction that its configuration expects is used. `--write`
writes the table of results to kernels/registers.md.
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
    """Triton's name of the platform: "cuda" or "hip"."""
    arch: int | str
    """With CUDA the compute capability times ten, such as 90; with HIP a name, such as "gfx942"."""
    threads_per_warp: int
    """Threads per warp, which AMD calls a wavefront."""
    shared_kib: int
    """Shared memory that one block may use, in KiB."""


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163),
    "sm_90": Target("cuda", 90, 32, 227),
    "sm_100": Target("cuda", 100, 32, 227),
    "gfx942": Target("hip", "gfx942", 64, 64),
}
"""Name -> target: NVIDIA's A100, H100 and B200, and AMD's MI300."""


@dataclass(frozen=True)
class Configuration:
    """One way to compile a kernel, which a launch may choose at run time.

    `types` and `constants` together must name every argument of the kernel.
    """

    name: str
    """Begins with the name of the operation, such as "geglu gate bf16"; unique on each target."""
    kernel: Any
    """The function to compile, decorated with `triton.jit`."""
    types: Mapping[str, str]
    """Argument passed at run time -> its Triton type, such as "*bf16" (a pointer), "i32" or
    "fp32"."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Argument of type `tl.constexpr` -> its value."""
    options: Mapping[str, int] = field(default_factory=dict)
    """Triton's options `num_warps` and `num_stages` -> their values."""
    divisible: tuple[str, ...] = ()
    """Names of the integer arguments that are multiples of 16. Pointers always count as such."""
    instruction: str | None = None
    """The matrix instruction, such as "HGMMA" or "HMMA", that must appear in machine code for
    sm_90; None if none has to."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """The names, in `TARGETS`, of the targets on which a launch may choose this configuration."""


@dataclass(frozen=True)
class Report:
    """What the compiler and the machine code say of a compiled configuration."""

    registers: int
    """Registers per thread."""
    spilled: int
    """Bytes per thread of registers that did not fit and were moved to memory."""
    shared: int
    """Bytes of shared memory per block."""
    serialized: bool
    """Whether ptxas warned that it serialized asynchronous matrix instructions (wgmma)."""
    instructions: frozenset[str]
    """The opcodes in the machine code, such as {"HGMMA", "FFMA"}; for AMD only the matrix
    instructions."""


def configurations() -> Iterator[Configuration]:
    """Yields the configurations of all kernels, which fused.py in each operation's folder lists."""
    for path in sorted(HERE.glob("*/fused.py")):
        module = importlib.import_module(f"anyv2v.kernels.{path.parent.name}.fused")
        yield from module.configurations()


def build(configuration: Configuration, target: Target) -> Report:
    """Compiles a configuration for a target and reads the compiler's log and the machine code.

    Triton's cache is bypassed. The environment variable TRITON_INTERPRET must not have been set
    when the kernel was defined. Raises ValueError if `types` and `constants` of the configuration
    do not name the arguments of the kernel.
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
    """Returns the gates that a compiled configuration fails, one text each; empty if it passes all.

    The gates are described at the top of this module. target_name: a key of `TARGETS`.
    """
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
    """Returns the text of registers.md, a Markdown table.

    rows: name of a configuration -> name of a target -> text of the cell; a missing cell becomes
    "-".
    """
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
    """Runs the command; returns its exit status: 1 if a gate failed or nothing was compiled, or 0.

    argv: the arguments of the command; None takes those of the process.
    """
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
