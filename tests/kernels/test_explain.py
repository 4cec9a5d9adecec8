"""The cases by name, who takes them and why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anyv2v.kernels import explain, gpu
from anyv2v.kernels.cases import cases

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
    operations = "group_norm_silu", "geglu", "layer_norm", "add_layer_norm", "residual_sum"
    for operation in operations:
        assert {v for (o, _), v in on_gpu.items() if o == operation} == {"triton"}


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RUNS" in done.stdout and "triton is not installed" in done.stdout
