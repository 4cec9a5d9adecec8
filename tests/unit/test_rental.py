"""Fifteen minutes on a GPU that keeps nothing: what they give has to be on disk at every second."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.core import ROOT
from bench.rental import run
from bench.rental.lab import FACTS, Lab, facts
from bench.rental.steps import PARTS, Step
from tests.interpreter import WITH_TESTS

SOON = Step("X", "a step", "none:none", limit=0.5, least=0.1)


def process(code):
    """A child that waits for its turn, as `begin` makes them."""
    command = [sys.executable, "-c", f"import sys, time; sys.stdin.readline(); {code}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(
    "code, status",
    [
        ("pass", "ok"),
        ("sys.exit(1)", "failed"),
        ("sys.exit(3)", "wrong"),
        ("time.sleep(60)", "killed"),
    ],
)
def test_a_step_ends_within_its_limit_whatever_it_does(code, status):
    children = [process("pass"), process(code)]
    start = time.monotonic()
    step = Step("X", "a step", "none:none", limit=1.0 if status == "killed" else 20, least=0.1)
    assert run.turn(step, children, time.time() + 30, dry=False)[0] == status
    assert all(child.poll() is not None for child in children)
    assert time.monotonic() - start < 20


def test_a_step_that_would_not_end_in_time_is_not_begun(tmp_path):
    child = process(f"open({str(tmp_path / 'ran')!r}, 'w')")
    status, reason = run.turn(SOON, [child], time.time() + 0.05, dry=False)
    assert status == "skipped" and "left" in reason
    assert child.poll() is not None and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_facts_of_several_processes_do_not_mix(tmp_path):
    code = (
        "from pathlib import Path; import sys; from bench.rental.lab import append\n"
        "for i in range(200):\n"
        "    append(Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'x': 'y' * 900})"
    )
    path = tmp_path / FACTS
    children = [
        subprocess.Popen([sys.executable, "-c", WITH_TESTS + code, str(path), str(who)])
        for who in range(2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    lines = facts(path)
    for who in "01":
        assert [line["i"] for line in lines if line["who"] == who] == list(range(200))


def test_a_wrong_fact_is_one_and_is_counted(tmp_path, capsys):
    lab = Lab("X", 1, tmp_path, True, time.time(), "abc")
    lab.fact("a case", "somebody", "wrong", error=0.25, reason=None, headline=True)
    lab.fact("another", times=lab.clock(lambda: None))
    wrong, timed = facts(tmp_path / FACTS)
    assert wrong["status"] == "wrong" and wrong["error"] == 0.25 and "reason" not in wrong
    assert wrong["commit"] == "abc" and wrong["card"] == "dry run" and lab.bad == 1
    assert 0 <= timed["p20_s"] <= timed["median_s"] <= timed["p80_s"] and timed["rounds"] >= 3
    assert "WRONG" in capsys.readouterr().out.splitlines()[0]


def test_what_is_asked_for_wrongly_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--part", "1", "--out", str(tmp_path), "--dry", "--only", "T1"])
    assert "T1 is none of S0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def rental(folder, part, *more):
    command = [sys.executable, "-m", "bench", "rental", "--dry", "--part", str(part)]
    command += ["--seconds", "900", "--out", str(folder), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_step_of_a_dry_run_ends_well_and_has_a_figure(part, tmp_path):
    child = rental(tmp_path, part)
    assert child.wait() == 0, child.stderr.read()[-2000:]
    lines = facts(tmp_path / FACTS)
    assert {line["status"] for line in lines} <= {"ok", "skipped"}
    for step in PARTS[part]:
        of_step = [line for line in lines if line["step"] == step.name]
        (ended,) = [line for line in of_step if line["case"] == "step"]
        assert ended["status"] == "ok", ended
        figures = [
            x
            for line in of_step
            if line["case"] != "step" and line["status"] == "ok"
            for name, x in line.items()
            if name not in ("part", "headline", "since_start_s") and isinstance(x, int | float)
        ]
        assert figures, step.name


@pytest.mark.slow
def test_a_kill_at_any_second_leaves_every_line_readable_and_nothing_running(tmp_path):
    generator = random.Random(0)
    for i in range(10):
        folder = tmp_path / str(i)
        child = rental(folder, 1, "--only", "S0", "S2", "S3")
        time.sleep(generator.uniform(1, 12))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        path = folder / FACTS
        for line in path.read_text().splitlines() if path.exists() else []:
            assert json.loads(line)["step"] in ("S0", "S2", "S3")
        assert path.read_text().endswith("\n") if path.exists() else True
        gone = time.monotonic() + 20
        while running(folder) and time.monotonic() < gone:
            time.sleep(0.1)
        assert not running(folder)


def running(folder):
    """Processes that were given this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
