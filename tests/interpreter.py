"""Interpreters of their own for tests: they import the same `anyv2v` as the tests do."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WITH_TESTS = f"import sys; sys.path.append({str(ROOT)!r})\n"
"""Begins a text for `python -c` that imports `tests` or `bench`, too: the checkout comes last."""


def module(name: str) -> list[str]:
    """The command that runs a module of this checkout (`tests.…`, `bench`), in any folder."""
    run = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", WITH_TESTS + "del sys.path[0]\n" + run]
