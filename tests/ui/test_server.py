"""What `anyv2v ui` refuses before it serves anything."""

import importlib.util
import socket
import subprocess
import sys

import pytest

from anyv2v.cli.main import main
from anyv2v.ui import server


def refused(words, capfd):
    assert main(["ui", *words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("anyv2v: ") and err.count("\n") == 1
    return err


def test_without_gradio_it_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install '.[ui]'" in refused([], capfd)


@pytest.fixture
def gradio(monkeypatch):
    """As if gradio were there, which is not loaded before all else is right."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_port_that_is_in_use_is_told(gradio, capfd):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port {port}: Address already in use" in refused(["--port", str(port)], capfd)
    server.check("127.0.0.1", port)
    assert "--port 65536" in refused(["--port", "65536"], capfd)


@pytest.mark.parametrize(
    "words, line",
    [
        (["--weights", "nowhere"], "nowhere"),
        (["--editor", "mine"], "--editor"),
        (["--editor", "mine=given"], "given is no editor"),
        (["--editor", "mine=recolour colour=3"], "colour"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1"),
    ],
)
def test_what_is_wrong_is_told_before_the_page_is_served(gradio, capfd, words, line):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert line in refused(["--port", str(port), *words], capfd)


def test_no_other_command_loads_gradio():
    code = "import sys, anyv2v.cli.main; assert not {'gradio', 'fastapi'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
