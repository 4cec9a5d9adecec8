"""How far work is, where stderr is no terminal."""

import io

import pytest

import anyv2v
from anyv2v.runtime import progress
from anyv2v.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns on."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(clock, steps, seconds, capsys, **options):
    with Progress(**options) as shown:
        step = shown("edit", steps)
        for i in range(steps):
            clock[0] += seconds
            step(i, 981, None)
    return capsys.readouterr().err.splitlines()


def test_a_line_for_each_tenth_of_fast_work(clock, capsys):
    lines = run(clock, 50, 1.0, capsys)
    assert len(lines) == 10
    assert lines[0] == "edit: 5 of 50 steps (10%), 00:05 < 00:45"
    assert lines[-1] == "edit: 50 of 50 steps (100%), 00:50 < 00:00"


def test_a_line_every_half_minute_of_slow_work(clock, capsys):
    lines = run(clock, 500, 20.0, capsys)
    # 10,000 s: at least one line in any 40 s, and no more than one in 20
    assert 250 <= len(lines) <= 500
    counts = [int(line.split()[1]) for line in lines]
    assert counts[0] == 2 and counts[-1] == 500
    assert max(b - a for a, b in zip(counts, counts[1:], strict=False)) == 2


def test_quiet_is_silent_and_what_checks_is_still_asked(clock, capsys):
    asked = []
    assert run(clock, 5, 60.0, capsys, quiet=True, check=lambda: asked.append(1)) == []
    assert len(asked) == 5


def test_bytes_are_said_only_if_they_take_a_while(clock, capsys):
    for seconds, said in ((0.05, 0), (5.0, 10)):
        with Progress() as shown:
            done = shown.bytes("verify")
            for i in range(1, 11):
                clock[0] += seconds
                done(i * 10**9, 10 * 10**9)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == said
    assert lines[2] == "verify: 3.00 of 10.00 GB (30%), 00:15 < 00:35"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_python_gets_a_bar_on_request(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with anyv2v.Progress() as shown:
        step = shown("edit", 2)
        step(0, 501, None)
        step(1, 1, None)
    assert "edit: 100%" in terminal.getvalue() and "2/2" in terminal.getvalue()
