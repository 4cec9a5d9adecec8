"""Signals and standard streams around a command: a job that is done is not lost."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from anyv2v.cli import main as cli
from anyv2v.cli.process import Signals, Unfailing, unfailing_streams

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# a process that says when it is ready, does its work, and says how that ended
RUNNER = """
import sys, time
from anyv2v.cli.process import Signals
with Signals() as signals:
    try:
        print("ready", flush=True)
        time.sleep(1)
        print("done")
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(signals.status)
"""


def start(before=None):
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_its_number(number):
    process = start()
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("interrupted\n", 128 + number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_caller_ignores_stays_ignored(number):
    # as nohup does with SIGHUP and a script's shell with SIGINT
    process = start(lambda: signal.signal(number, signal.SIG_IGN))
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("done\n", 0)


def test_handlers_are_put_back_and_a_missing_signal_is_no_matter(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")  # Windows has none
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(n) for n in numbers]
    with Signals() as signals:
        assert [signal.getsignal(n) for n in numbers] == [signals._interrupt] * 2
    assert [signal.getsignal(n) for n in numbers] == before


# as `anyv2v` is, with a run in it that needs a moment to clean up, and ends slowly
ENDING = """
import atexit, sys, time
from anyv2v import __main__ as entry
from anyv2v.cli.process import Signals

def main():
    with Signals() as signals:
        try:
            print("ready", flush=True)
            exec("time.sleep(5)", {"time": time})  # what Python itself ends by SIGINT for
        except KeyboardInterrupt:
            time.sleep(0.4)
            print("cleaned", flush=True)
            return signals.status

atexit.register(time.sleep, 0.4)
entry.main = main
entry.command()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_the_end(number):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.05)
    assert process.communicate() == ("cleaned\n", "")
    assert process.returncode == 128 + number


def test_a_later_signal_ends_what_the_first_did_not(monkeypatch):
    with Signals() as outer, Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("anyv2v.cli.process.AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signals.status, outer.status) == (143, 143)


def test_ctrl_c_while_pytorch_is_being_imported_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "anyv2v", "--version"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # a module of PyTorch's has just been imported; many more follow
    for line in process.stderr:
        if "torch." in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (said, process.returncode) == (["anyv2v: interrupted"], 130)


def test_what_is_missing_is_one_line():
    code = "import sys; sys.modules['torch'] = None; from anyv2v.__main__ import command; command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("anyv2v: cannot be loaded: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    raw = io.BytesIO()
    stream = Unfailing(io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    # the last is how Python has a byte of a file name that is no UTF-8
    for text in ("plain\n", "щ · 動\n", "\udcff\n"):
        print(text, end="", file=stream)
    assert stream.failure is None
    lines = raw.getvalue().decode(encoding).splitlines()
    # as Python itself escapes it
    decoded = [
        t.encode(encoding, "backslashreplace").decode(encoding)
        for t in ("plain", "щ · 動", "\udcff")
    ]
    assert lines == decoded


class Full(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        raise OSError(28, "No space left on device")


def test_what_cannot_be_written_ends_the_output_and_not_the_run():
    closed = io.StringIO()
    closed.close()
    full = io.TextIOWrapper(io.BufferedWriter(Full(), 1))
    for stream in (closed, full, None):
        with redirect_stdout(stream), redirect_stderr(stream), unfailing_streams() as out:
            print("a" * 100_000)
            print("b", file=sys.stderr, flush=True)
            assert not out.isatty()
        assert stream is None or isinstance(out.failure, (OSError, ValueError))


COMMANDS = {
    "nobody reads": "{} 2>&1 | head -0; exit ${{PIPESTATUS[0]}}",
    "no stdout": "{} >&-",
    "no stderr": "{} 2>&-",
    "full": "{} >/dev/full 2>/dev/full",
    "ascii": "PYTHONIOENCODING=ascii {} >log",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_outputs_are_written_whatever_becomes_of_the_words(tmp_path, clip, edited, name):
    edit = f"edit {clip} --frame {edited} --prompt a -o щ.mp4 --frame {edited} --prompt b -o b.mp4"
    edit = f"{sys.executable} -m anyv2v {edit} --size 32x32 --frames 4 --steps 2"
    command = COMMANDS[name].format(edit)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0
    assert {"щ.mp4", "b.mp4"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("plan", "clip.mp4"), 1),
        (("weights", "verify", "demo"), 1),
        (("reconstruct", "clip.mp4"), 1),
        (("reconstruct", "clip.mp4", "-o", "plan"), 0),
        (("evaluate", "out.mp4"), 1),
        (("evaluate", "out.mp4", "-o", "scores"), 0),
        (("edit", "clip.mp4", "--prompt", "plan", "-o", "verify"), 0),
        (("--help",), 1),
        (("plan", "--help"), 1),
        (("--version",), 1),
        (("edit-frame", "--list"), 1),
    ],
)
def test_what_is_lost_of_the_words_matters_where_there_is_nothing_else(
    monkeypatch, capsys, command, status
):
    for name in ("run_plan", "run_verify", "run_reconstruct", "run_edit", "run_evaluate"):
        monkeypatch.setattr(cli, name, lambda args: print("done"))
    with redirect_stdout(io.TextIOWrapper(io.BufferedWriter(Full()))):
        try:
            found = cli.main(command)
        except SystemExit as ended:
            found = ended.code
    assert found == status
    said = "anyv2v: stdout: OSError: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == (said if status else "")


def test_nothing_that_is_opened_takes_the_place_of_stderr():
    code = "import os\nfrom anyv2v.cli.process import unfailing_streams\n"
    code += "with unfailing_streams(): print(os.open('/dev/null', os.O_RDONLY))"
    command = ["sh", "-c", '"$0" -c "$1" 2>&- <&-', sys.executable, code]
    said = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True).stdout
    assert int(said) > 2


@pytest.mark.slow
def test_what_only_prints_fails_if_that_cannot_be_written(tmp_path):
    command = f"{sys.executable} -m anyv2v weights verify demo >/dev/full"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1 and "No space left" in done.stderr


@pytest.mark.slow
def test_nohup_outlives_its_terminal(tmp_path, clip, edited):
    import pty

    edit = f"{sys.executable} -m anyv2v edit {clip} --frame {edited} --prompt a -o out.mp4"
    edit += " --size 32x32 --frames 4 --steps 40"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "-ic", f"nohup {edit} & sleep 100"], ENVIRONMENT)
    log = tmp_path / "nohup.out"
    deadline = time.monotonic() + 120
    # at work, with most of it still to do
    while not (log.exists() and "invert:" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not (tmp_path / "out.mp4").exists()
    while not (tmp_path / "out.mp4.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (tmp_path / "out.mp4").exists()
    assert "edit: 40 of 40 steps (100%)" in log.read_text()


@pytest.fixture(scope="module")
def clip(tmp_path_factory, video):
    import anyv2v

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    anyv2v.write_video(path, video.frames.repeat(2, axis=0), fps=8)
    return path


@pytest.fixture(scope="module")
def edited(tmp_path_factory, video):
    from PIL import Image

    path = tmp_path_factory.mktemp("frame") / "edited.png"
    Image.fromarray(255 - video.frames[0]).save(path)
    return path
