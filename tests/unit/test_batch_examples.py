"""The examples that run batches by other programs: each shard is run once, by what really runs it.

`anyv2v` is replaced by a script that notes the shard that it would do; so are ssh and sbatch.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "batch"
ANYV2V = f"""#!{sys.executable}
import os, sys
from anyv2v.batch.shards import Shard
words, shard = sys.argv[1:], Shard.of_environment(os.environ)
if "--shard" in words:
    shard = Shard.read(words.pop(words.index("--shard") + 1))
    words.remove("--shard")
with open(os.environ["NOTES"], "a") as file:
    file.write(f"{{shard}} {{os.environ.get('LOCAL_RANK', '-')}} {{' '.join(words)}}\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""
# `sbatch SCRIPT ARGS` as Slurm runs it: the script's own --array, each task with its number
SBATCH = """#!/bin/sh
last=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
for i in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=$((last + 1)) SLURM_ARRAY_TASK_MIN=0 sh "$@"
done
"""
SSH = '#!/bin/sh\necho "$1" >> hosts\nshift\nexec "$@"\n'


@pytest.fixture
def run(tmp_path):
    """run(command, **environment) -> (exit status, what was noted in order)"""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("anyv2v", ANYV2V), ("sbatch", SBATCH), ("ssh", SSH)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    own = {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    own |= {"NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join(
        [str(EXAMPLES.parents[1]), os.environ.get("PYTHONPATH", "")]
    )

    def run(*command, **environment):
        env = os.environ | own | environment
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        notes = (
            (tmp_path / "notes").read_text().splitlines() if (tmp_path / "notes").exists() else []
        )
        return done.returncode, sorted(notes)

    return run


def test_make_runs_all_shards(run):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    makefile = EXAMPLES / "Makefile"
    status, notes = run("make", "-f", makefile, "-j", "2", "SHARDS=3", "JOBS=j.yaml", "DIR=d")
    assert (status, notes) == (0, [f"{i}/3 - batch j.yaml -o d" for i in range(3)])


def test_an_array_of_slurm_runs_all_shards(run):
    status, notes = run("sbatch", EXAMPLES / "slurm.sh", "jobs.yaml", "-o", "out")
    assert (status, notes) == (0, [f"{i}/8 - batch jobs.yaml -o out" for i in range(8)])


def test_machines_of_a_cloud_run_all_shards(run, tmp_path):
    words = "sh", EXAMPLES / "cloud.sh", "jobs.yaml", "-o", "out"
    status, notes = run(*words, HOSTS="a b c")
    assert (status, notes) == (0, [f"{i}/3 - batch jobs.yaml -o out" for i in range(3)])
    assert sorted((tmp_path / "hosts").read_text().split()) == ["a", "b", "c"]
    assert run(*words, HOSTS="a b", STATUS="1")[0] == 1


@pytest.mark.slow
def test_torchrun_runs_all_shards(run):
    words = "sh", EXAMPLES / "torchrun.sh", "jobs.yaml", "-o", "out"
    # one whose edits failed ends no other
    status, notes = run(*words, PROCESSES="2", STATUS="1")
    assert (status, notes) == (0, [f"{i}/2 {i} batch jobs.yaml -o out" for i in range(2)])
    assert run(*words, PROCESSES="2", STATUS="2")[0] != 0
