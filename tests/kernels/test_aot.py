"""The gates that compile every kernel for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from anyv2v.kernels.aot import (  # noqa: E402
    TABLE,
    TARGETS,
    Configuration,
    Report,
    configurations,
    faults,
)
from anyv2v.kernels.cases import cases  # noqa: E402

ROOT = Path(__file__).parents[2]
GOOD = Report(128, 0, 64 * 1024, False, frozenset({"HGMMA", "FFMA"}))

# the second holds more rows at once than it has registers
SPILLS = """
import triton
import triton.language as tl
from anyv2v.kernels import aot

@triton.jit
def kernel(X, Y, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * n + tl.arange(0, 64)[None, :]
    x = tl.load(X + at)
    y = tl.exp(x - tl.max(x, axis=0)[None, :])
    tl.store(Y + at, y / tl.sum(y, axis=0)[None, :] + x)

for size in (8, 256):
    configuration = aot.Configuration(
        "bad", kernel, {"X": "*fp32", "Y": "*fp32", "n": "i32"}, {"SIZE": size},
        {"num_warps": 2}, instruction="HGMMA",
    )
    report = aot.build(configuration, aot.TARGETS["sm_90"])
    print(aot.faults(report, configuration, "sm_90"))
"""


def compile_in_a_process(*arguments, timeout=600):
    """Kernels that are defined to be interpreted cannot be compiled, so not in this process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def wanting(instruction=None):
    return Configuration("one", None, {}, instruction=instruction)


@pytest.mark.parametrize(
    "changed, target, fault",
    [
        ({}, "sm_90", []),
        ({"spilled": 8}, "sm_80", ["spills 8 bytes"]),
        ({"shared": 164 * 1024}, "sm_80", ["shared memory over 163 KiB"]),
        ({"shared": 164 * 1024}, "sm_90", []),
        ({"shared": 65 * 1024}, "gfx942", ["shared memory over 64 KiB"]),
        ({"serialized": True}, "sm_90", ["serialized wgmma"]),
        ({"instructions": frozenset({"HMMA"})}, "sm_90", ["no HGMMA"]),
        ({"instructions": frozenset({"HMMA"})}, "sm_80", []),
    ],
)
def test_each_gate_shuts(changed, target, fault):
    report = Report(**(vars(GOOD) | changed))
    assert faults(report, wanting("HGMMA"), target) == fault


def test_no_instruction_is_wanted_of_a_kernel_without_products():
    assert faults(Report(**(vars(GOOD) | {"instructions": frozenset()})), wanting(), "sm_90") == []


def test_names_differ_and_begin_with_the_operation():
    every = list(configurations())
    compiled = [(c.name, target) for c in every for target in c.targets]
    assert len(set(compiled)) == len(compiled) <= 100, "each takes a second or more of CI"
    assert {c.name.split()[0] for c in every} <= {case.operation for case in cases()}


def test_the_table_has_every_configuration_and_nothing_else():
    """Written anew by `python -m anyv2v.kernels.aot --write`."""
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if " / " in line]
    named = {row[0].removeprefix("| "): row[1:] for row in rows if len(row) == 1 + len(TARGETS)}
    compiled = {
        (name, target)
        for name, cells in named.items()
        for target, cell in zip(TARGETS, cells, strict=True)
        if " / " in cell
    }
    assert compiled == {(c.name, target) for c in configurations() for target in c.targets}
    assert "**" not in "".join("".join(cells) for cells in named.values()), "a gate is shut"


def test_a_slice_compiles():
    done = compile_in_a_process("-m", "anyv2v.kernels.aot", "geglu gate bf16", "--target", "sm_90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 compiled, 0 bad" in done.stdout


def test_a_kernel_that_spills_is_caught(tmp_path):
    script = tmp_path / "bad.py"
    script.write_text(SPILLS)
    done = compile_in_a_process("-c", f"import runpy; runpy.run_path({str(script)!r})")
    small, large = done.stdout.splitlines()
    assert "no HGMMA" in small and "no HGMMA" in large
    assert "spills" not in small and "spills" in large


@pytest.mark.slow
def test_every_configuration_compiles_for_every_target():
    done = compile_in_a_process("-m", "anyv2v.kernels.aot", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
