"""The cases by name, who takes them and why, and the benchmark that measures them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anyv2v.kernels import explain, gpu
from anyv2v.kernels.cases import Case, cases
from anyv2v.kernels.choose import Implementation

ROOT = Path(__file__).parents[2]
SMALL = list(cases(2, ((4, 64), (2, 64), (1, 64), (1, 64))))


def taken(device, dtype=torch.float32):
    """(operation, case) -> the implementation that runs."""
    found = {}
    for case in cases():
        runs = [name for name, verdict in explain.explain(case, device, dtype) if verdict == "RUNS"]
        assert len(runs) == 1
        found[case.operation, case.name] = runs[0]
    return found


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.operation} {c.name}")
@torch.no_grad()
def test_every_case_is_a_call_that_its_definition_takes(case):
    args, options = case.draw("cpu", torch.float32)
    out = next(i for i in case.table if i.name == "reference").run(*args, **options)
    assert all(t.isfinite().all() for t in (out if isinstance(out, tuple) else [out]))


def test_a_cpu_runs_pytorch_and_a_gpu_the_kernels():
    assert "triton" not in taken("cpu").values()
    on_gpu = taken("cuda", torch.bfloat16)
    for operation in ("group_norm_silu", "geglu", "add_layer_norm"):
        assert {v for (o, _), v in on_gpu.items() if o == operation} == {"triton"}
    assert {v for (o, _), v in on_gpu.items() if o == "layer_norm"} == {"eager"}


def test_without_triton_pytorch_runs_and_the_reason_is_given(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "INSTALLED", False)
    explain.main(["--device", "cuda", "geglu"])
    told = capsys.readouterr().out
    assert "triton     cannot: triton is not installed" in told and "eager      RUNS" in told


def test_a_machine_without_triton_can_be_asked():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from anyv2v.kernels import explain; explain.main(['--device', 'cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RUNS" in done.stdout and "triton is not installed" in done.stdout


def test_the_benchmark_runs_on_a_cpu(tmp_path):
    table = tmp_path / "table.csv"
    done = subprocess.run(
        [sys.executable, "bench/kernels.py", "add_layer_norm", "--seconds", "0", "--out", table],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "not measured on a GPU" in done.stdout
    header, *rows = table.read_text().splitlines()
    assert header.startswith("operation,case,implementation") and len(rows) >= 3


@torch.no_grad()
def test_the_benchmark_gives_a_wrong_result_no_time(capsys):
    bench = runpy.run_path(str(ROOT / "bench" / "kernels.py"))
    table = tuple(
        Implementation(name, run, lambda x: None)
        for name, run in (("triton", lambda x: x * 1.01), ("eager", lambda x: x * 1))
    )
    case = Case("op", "one", (*table, Implementation("reference", lambda x: x, None)), ((4, 4),))
    rows = list(bench["measure"](case, bench["Clock"]("cpu", 0), torch.float32, 1e9, False))
    assert [row["implementation"] for row in rows] == ["eager"]
    assert "triton          WRONG" in capsys.readouterr().out
