"""A doer for batches whose edits are small files, so that tests of engines take no time."""

import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Made, Worker
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.errors import InputError


class Lines:
    """Makes an edit by writing its prompt and key to its output, and a line to made.txt.

    Settings: "prompt"; "do", which may be "fail", "die" (each time), "die once", "half" (die when
    the output is written and its key is not), or "wait" (until the file `go` is there,
    which is made by who helps if "helped" is there).
    """

    def __init__(self, folder):
        self.folder, self.freed = Path(folder), 0

    def key(self, task, edit):
        if task.options(edit).get("do") == "wrong":
            raise InputError("is wrong")
        return str(task.options(edit)["prompt"])

    def _made(self, edit):
        try:
            return json.loads((self.folder / edit.output).read_text())
        except (OSError, ValueError):
            return {}

    def is_done(self, edit, key):
        return self._made(edit).get("key") == key

    def is_there(self, edit):
        return (self.folder / edit.output).exists()

    def order(self, task):
        return range(len(task.edits))[::-1]

    def make(self, task, index, force, again):
        edit, options = task.edits[index], task.options(task.edits[index])
        assert force or not self.is_there(edit)
        what, once = options.get("do"), self.folder / f"{edit.output}.once"
        if what == "fail":
            raise ValueError("cannot be made")
        if what == "die" or (what in ("die once", "half") and not once.exists()):
            once.touch()
            if what == "half":
                (self.folder / edit.output).write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
        while what == "wait" and not (self.folder / "go").exists():
            (self.folder / f"{edit.output}.waits").touch()
            time.sleep(0.01)
        with open(self.folder / "made.txt", "a") as file:
            file.write(f"{edit.output} {os.getpid()}\n")
        text = json.dumps({"key": options["prompt"], "again": again, "force": force})
        (self.folder / edit.output).write_text(text)
        return Made(f"wrote {options['prompt']}", ("a note",))

    def help(self, task, index):
        if (self.folder / "helped").exists():
            (self.folder / "helped").write_text(str(os.getpid()))
            (self.folder / "go").touch()

    def free(self):
        self.freed += 1

    def explain(self, error):
        return str(error)


@dataclass(frozen=True)
class MakeLines:
    """Makes the worker of a process, as `batch.local.MakeWorker` does."""

    folder: str

    @contextmanager
    def __call__(self):
        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, interrupt)
        yield Worker(Lines(self.folder), Ledger(self.folder))


def tasks(clips, edits=3, **doing):
    """`clips` clips with so many edits each; doing: c0_e1="fail" says what one of them does."""
    made = []
    for i in range(clips):
        each = [
            TaskEdit(f"c{i}e{j}", {"prompt": f"p{i}{j}", "do": doing.get(f"c{i}e{j}")})
            for j in range(edits)
        ]
        made.append(Task(f"clip{i}.mp4", tuple(each)))
    return made
