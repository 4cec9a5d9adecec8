"""T1: the tests that need a GPU. T5: the kernels under a sanitizer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from bench.core import ROOT
from bench.rental.lab import Lab

TESTS = ["tests/kernels", "tests/unit/test_gpu.py", "tests/unit/test_graphs.py"]
"""The places of all tests marked `gpu`; collecting the others takes seconds."""


def tests(lab: Lab) -> None:
    """T1: run the tests that need a GPU."""
    path = lab.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={path}"]
    command += ["-p", "no:cacheprovider", *TESTS]
    # several processes share the device; a test that hangs does not stop the others
    command += [] if lab.dry else ["-n", "6", "--timeout", "90"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (lab.out / "tests.txt").write_text(done.stdout[-200_000:] + done.stderr[-20_000:])
    suite = ElementTree.parse(path).getroot()
    suite = suite.find("testsuite") if suite.tag == "testsuites" else suite
    counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    for case in suite.iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            # in one line, as a cell of a table is
            reason = " ".join((bad.get("message") or "").split())[:120]
            lab.fact("pytest -m gpu", name, "wrong", reason=reason)
    right = not counts["failures"] and not counts["errors"] and counts["tests"] > 0
    lab.fact("pytest -m gpu", "", "ok" if right else "wrong", headline=True, **counts)


def sanitizer(lab: Lab) -> None:
    """T5: run memcheck and racecheck on small calls of every kernel.

    Where the tool is missing, the calls run without it.
    """
    tool = None if lab.dry else shutil.which("compute-sanitizer")
    outputs = []
    for check in ("memcheck", "racecheck"):
        command = [sys.executable, "-m", "bench.rental.small", *["--dry"] * lab.dry]
        if tool:
            command = [tool, "--tool", check, "--kernel-name-exclude", "regex=at::", *command]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        output = done.stdout + done.stderr
        outputs.append(output)
        (lab.out / "sanitizer.txt").write_text("\n".join(outputs)[-2_000_000:])
        calls = len(re.findall(r"^ran ", output, re.M))
        # cuBLAS's kernels synchronize by means that racecheck does not know
        faults = re.findall(r"^=+ (?:Error|Invalid|Race).* at (\w+)\+", output, re.M)
        count = sum(name.endswith("_kernel") for name in faults)
        right = calls > 0 and done.returncode == 0 and not count
        lab.fact(
            f"compute-sanitizer, {check}",
            "the calls alone: the tool is not here" if not tool else "",
            "ok" if right else "wrong",
            calls=calls,
            found=count,
            reason=None if right else output.strip()[-300:],
            headline=True,
        )
