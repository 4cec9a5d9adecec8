"""What `anyv2v ui` refuses before it serves anything."""

import asyncio
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


def status(at, method="GET", path="/", **headers):
    """What a server at a host answers to a request; 200: it is passed on."""
    answers = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        answers.append(message.get("status"))

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(server.OwnFiles(app, at)(scope, None, send))
    return answers[0]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_pages_of_other_hosts_can_send_nothing(name):
    own = f"{name}:7860"
    for at in ("127.0.0.1", "0.0.0.0"):
        assert status(at, "POST", host=own) == status(at, host=name) == 200
        assert status(at, "POST", host=own, origin=f"http://{own}") == 200
        for origin in ("http://evil.example", f"http://{name}:80", "null", ""):
            assert status(at, "POST", host=own, origin=origin) == 403
    assert status("127.0.0.1", path="/file=http://evil.example/x", host=own) == 403


def test_this_machine_has_no_other_name():
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert status("127.0.0.1", host=host) == status("::1", host=host) == 403
        assert status("0.0.0.0", "POST", host=host, origin=f"http://{host}") == 200
    assert status("127.0.0.2", host="127.0.0.2:7860") == 200
    assert status("localhost") == 403
