"""Batches: what is done stays done, what fails stops nothing, and who does what."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from anyv2v.batch.ledger import HIDDEN, Ledger
from anyv2v.batch.local import LocalWorker
from anyv2v.batch.pool import Pool
from anyv2v.batch.run import Outcome, Totals, Worker
from anyv2v.batch.shards import Shard
from anyv2v.errors import InputError
from tests.doer import Lines, MakeLines, tasks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.open()
    return ledger


def states(events):
    return {event.output: event.status for event in events if isinstance(event, Outcome)}


def work(ledger, made, force=False, **options):
    """What one worker makes of clips."""
    worker, found = Worker(Lines(ledger.folder), ledger, force), {}
    for task in made:
        found |= states(worker.do(task, **options))
    return found


def log(folder):
    """Output -> how often it was made."""
    path = folder / "made.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.split()[0] for line in lines)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# one process


def test_what_is_done_is_not_done_again(ledger, tmp_path):
    all_names = [f"c{i}e{j}" for i in range(2) for j in range(3)]
    assert work(ledger, tasks(2)) == dict.fromkeys(all_names, "done")
    assert work(ledger, tasks(2)) == dict.fromkeys(all_names, "skipped")
    # one that is missing, and one that was damaged
    (tmp_path / "c0e1").unlink()
    assert Counter(work(ledger, tasks(2)).values()) == {"skipped": 5, "done": 1}
    assert log(tmp_path) == Counter(all_names) + Counter(["c0e1"])
    done = lines(tmp_path / "done.jsonl")
    assert len(done) == 7 and {line["pid"] for line in done} == {os.getpid()}
    assert {line["output"]: line["key"] for line in done}["c1e2"] == "p12"
    assert all(0 <= line["seconds"] < 60 and abs(line["time"] - time.time()) < 600 for line in done)
    # nothing is left of work that is finished
    assert all(path.suffix == ".lock" for path in (tmp_path / HIDDEN).iterdir())


def test_what_fails_stops_nothing_and_is_listed_until_it_succeeds(ledger, tmp_path):
    found = work(ledger, tasks(2, c0e1="fail", c1e0="wrong"))
    assert Counter(found.values()) == {"done": 4, "failed": 2} and found["c0e1"] == "failed"
    failed = {line["output"]: line for line in lines(tmp_path / "failed.jsonl")}
    assert {*failed} == {"c0e1", "c1e0"}
    assert failed["c0e1"]["error"] == "cannot be made" and failed["c0e1"]["key"] == "p01"
    assert failed["c0e1"]["video"] == "clip0.mp4" and failed["c0e1"]["pid"] == os.getpid()
    assert failed["c1e0"]["error"] == "is wrong" and failed["c1e0"]["key"] is None
    # it fails again, and has one line still
    work(ledger, tasks(2, c0e1="fail"))
    assert [line["output"] for line in lines(tmp_path / "failed.jsonl")] == ["c0e1"]
    work(ledger, tasks(2))
    assert not (tmp_path / "failed.jsonl").exists() and not ledger.failures()


def test_a_line_of_a_failure_leaves_if_another_run_has_made_the_edit(ledger):
    work(ledger, tasks(1))
    ledger.failed("c0e1", "clip0.mp4", "was too early", "p01")
    ledger.failed("other", "x.mp4", "é\ud800", None)
    assert work(ledger, tasks(1))["c0e1"] == "skipped"
    assert [line["output"] for line in ledger.failures()] == ["other"]


def test_lines_that_are_damaged_do_not_hide_the_others(ledger, tmp_path):
    ledger.failed("a", "x.mp4", "one", None)
    with open(tmp_path / "failed.jsonl", "a") as file:
        file.write('{"output": "b"\n[1]\n')
    ledger.failed("c", "x.mp4", "two", None)
    assert [line["output"] for line in lines(tmp_path / "failed.jsonl")] == ["a", "c"]


def test_another_output_of_the_name_is_replaced_by_force_only(ledger, tmp_path):
    (tmp_path / "c0e0").write_text("a film of the user's")
    assert work(ledger, tasks(1))["c0e0"] == "failed"
    assert "--force" in ledger.failures()[0]["error"]
    assert (tmp_path / "c0e0").read_text() == "a film of the user's"
    # those that are done with the same settings stay
    assert Counter(work(ledger, tasks(1), force=True).values()) == {"done": 1, "skipped": 2}


def test_what_a_killed_run_left_of_an_output_is_replaced(ledger, tmp_path):
    code = f"""
from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Worker
from tests.doer import Lines, tasks
[*Worker(Lines({str(tmp_path)!r}), Ledger({str(tmp_path)!r})).do(tasks(1, c0e1="half")[0])]
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # written without a key: of these settings it is known that the killed run wrote it
    other = tasks(1)[0]
    object.__setattr__(other.edits[1], "settings", {"prompt": "another"})
    assert work(ledger, [other])["c0e1"] == "failed"


def test_it_is_replaced_with_the_same_settings(ledger, tmp_path):
    task = tasks(1)[0]
    ledger.begin(task, "c0e1", "p01")
    (tmp_path / "c0e1").write_text("{}")
    assert work(ledger, [task]) == dict.fromkeys(("c0e0", "c0e1", "c0e2"), "done")
    made = json.loads((tmp_path / "c0e1").read_text())
    assert made == {"key": "p01", "again": True, "force": True}
    assert json.loads((tmp_path / "c0e0").read_text()) == {
        "key": "p00",
        "again": False,
        "force": False,
    }


def test_the_folder_is_made_in_one_that_exists(tmp_path):
    Ledger(tmp_path / "out").open()
    with pytest.raises(InputError, match="there is no folder"):
        Ledger(tmp_path / "no" / "out").open()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        Ledger(tmp_path / "file").open()


def test_totals_count():
    totals = Totals()
    for status in ("done", "failed", "skipped", "done"):
        totals.count(Outcome("x", status))
    assert str(totals) == "4 edits: 2 done, 1 done before, 1 failed"


# several at once


def test_a_clip_that_another_run_does_is_busy_until_it_is_done(ledger, tmp_path):
    first, second = tasks(2, c0e1="wait")
    thread = threading.Thread(target=work, args=(Ledger(tmp_path), [first]))
    thread.start()
    wait_for(tmp_path / "c0e1.waits")
    assert set(work(ledger, [first]).values()) == {"busy"}
    assert set(work(ledger, [second]).values()) == {"done"}
    threading.Timer(0.3, (tmp_path / "go").touch).start()
    assert set(work(ledger, [first], wait=True).values()) == {"skipped"}
    thread.join()
    assert set(log(tmp_path).values()) == {1} and len(log(tmp_path)) == 6


def test_a_killed_process_leaves_no_lock(ledger, tmp_path):
    (task,) = tasks(1, c0e0="wait")
    worker = LocalWorker(MakeLines(str(tmp_path)))
    events = worker.do(task, False, ())
    wait_for_event = threading.Thread(target=lambda: [*events], daemon=True)
    threading.excepthook, before = lambda *_: None, threading.excepthook
    try:
        wait_for_event.start()
        wait_for(tmp_path / "c0e0.waits")
        assert set(work(ledger, [task]).values()) == {"busy"}
        os.kill(worker._process.pid, signal.SIGKILL)
        wait_for_event.join()
    finally:
        threading.excepthook = before
    (tmp_path / "go").touch()
    assert work(ledger, [task], wait=True) == {"c0e0": "done", "c0e1": "skipped", "c0e2": "skipped"}
    worker.end()


def test_processes_share_the_clips_and_start_again_when_they_die(ledger, tmp_path):
    doing = {"c0e1": "die once", "c1e0": "die", "c2e2": "half", "c3e1": "fail"}
    workers = [LocalWorker(MakeLines(str(tmp_path))) for _ in range(2)]
    found = states(Pool(workers, ledger).do(tasks(6, **doing)))
    assert {name for name, state in found.items() if state != "done"} == {"c1e0", "c3e1"}
    assert found["c1e0"] == found["c3e1"] == "failed" and len(found) == 18
    failed = {line["output"]: line["error"] for line in ledger.failures()}
    assert failed["c1e0"] == "its process ended 2 times (by signal 9)"
    assert set(log(tmp_path).values()) == {1} and len(log(tmp_path)) == 16
    pids = {line["pid"] for line in lines(tmp_path / "done.jsonl")}
    assert len(pids) > 1 and os.getpid() not in pids
    assert not any(worker._process.is_alive() for worker in workers)


def test_a_worker_without_a_clip_helps_another(ledger, tmp_path):
    (tmp_path / "helped").touch()
    workers = [LocalWorker(MakeLines(str(tmp_path))) for _ in range(2)]
    # nobody but a helper ends the edit
    found = states(Pool(workers, ledger).do(tasks(1, edits=1, c0e0="wait")))
    assert found == {"c0e0": "done"}
    (made,) = lines(tmp_path / "done.jsonl")
    assert int((tmp_path / "helped").read_text()) not in (made["pid"], os.getpid())


def test_a_run_that_is_interrupted_ends_its_processes(ledger, tmp_path):
    workers = [LocalWorker(MakeLines(str(tmp_path))) for _ in range(2)]
    events = Pool(workers, ledger).do(tasks(2, c0e0="wait", c1e0="wait"))
    next(events)
    wait_for(tmp_path / "c0e0.waits")
    wait_for(tmp_path / "c1e0.waits")
    began = time.monotonic()
    events.close()
    # by SIGTERM, so that they clean up, and not by patience
    assert time.monotonic() - began < 8
    assert [worker._process.exitcode for worker in workers] == [128 + signal.SIGTERM] * 2


def test_processes_end_with_a_run_that_is_killed(tmp_path):
    code = f"""
from anyv2v.batch.ledger import Ledger
from anyv2v.batch.local import LocalWorker
from anyv2v.batch.pool import Pool
from tests.doer import MakeLines, tasks
if __name__ == "__main__":
    ledger = Ledger({str(tmp_path)!r})
    ledger.open()
    worker = LocalWorker(MakeLines({str(tmp_path)!r}))
    for event in Pool([worker], ledger).do(tasks(1, c0e0="wait")):
        print(worker._process.pid, flush=True)
"""
    (tmp_path / "driver.py").write_text(code)
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py"], env=environment(), stdout=subprocess.PIPE
    )
    pid = int(driver.stdout.readline())
    wait_for(tmp_path / "c0e0.waits")
    driver.kill()
    driver.wait()
    driver.stdout.close()
    for _ in range(500):
        if not is_alive(pid):
            break
        time.sleep(0.02)
    assert not is_alive(pid)


def wait_for(path):
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} does not come")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


# shards


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_the_whole_without_overlap(count):
    parts = [Shard(i, count).of(range(20)) for i in range(count)]
    assert sorted(x for part in parts for x in part) == list(range(20))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "environment, shard",
    [
        ({}, "0/1"),
        ({"RANK": "2", "WORLD_SIZE": "4"}, "2/4"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, "3/8"),
        # --array=1-8 and --array=10-40:10
        (
            {
                "SLURM_ARRAY_TASK_ID": "8",
                "SLURM_ARRAY_TASK_COUNT": "8",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "1",
            },
            "7/8",
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "30",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "10",
            },
            "2/4",
        ),
        # two ranks in each of three tasks of an array
        (
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "RANK": "1",
                "WORLD_SIZE": "2",
            },
            "5/6",
        ),
        # a number without the count says nothing, as in jobs that happen to have one
        ({"RANK": "5"}, "0/1"),
        ({"SLURM_ARRAY_TASK_ID": "5"}, "0/1"),
    ],
)
def test_the_environment_tells_the_shard(environment, shard):
    assert str(Shard.of_environment(environment)) == shard


@pytest.mark.parametrize("text", ["4/4", "1/0", "-1/4", "1", "1/", "a/b", "1/2/3", ""])
def test_impossible_shards_are_refused(text):
    with pytest.raises(InputError, match="shard"):
        Shard.read(text)
    assert Shard.read("3/4") == Shard(3, 4)


def test_impossible_environments_are_refused():
    with pytest.raises(InputError, match="4/4"):
        Shard.of_environment({"RANK": "4", "WORLD_SIZE": "4"})
    with pytest.raises(InputError, match="RANK='x'"):
        Shard.of_environment({"RANK": "x", "WORLD_SIZE": "4"})
