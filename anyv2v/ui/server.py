"""The server of the page, on this machine alone and without a word to any other."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyv2v.errors import InputError

if TYPE_CHECKING:
    from anyv2v.ui.studio import Studio

LARGEST = "2gb"
"""The most bytes of a file that may be uploaded."""
LOOPBACK = "localhost", "127.0.0.1", "[::1]"
"""What a browser may call a server that only this machine reaches."""
PORT = re.compile(r":\d*$")
"""The port of an address of the form host:port."""


def check(host: str, port: int) -> None:
    """Raises InputError if gradio is not installed, or nothing can be served at a host and port."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("anyv2v ui needs gradio: pip install '.[ui]'")
    if port > 65535:
        raise InputError(f"--port {port} is not a number up to 65535")
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--host {host} --port {port}: {reason}; another --port may do") from error


class OwnFiles:
    """An ASGI application that refuses what the page never asks for.

    These are files of other hosts, which gradio would fetch, and what pages of other hosts let the
    browser send. app: the application behind it. host: where it is served.
    """

    def __init__(self, app: Callable[..., Any], host: str):
        self._app = app
        # another name that leads to this machine would make its page one of ours for the browser
        self._names = {*LOOPBACK, _named(host)} if _is_loopback(host) else None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers 403 to such a request, and passes on all others."""
        if scope["type"] == "http" and self._is_foreign(scope):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: dict[str, Any]) -> bool:
        path = scope.get("path", "")
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if "/proxy=" in path or "/file=http" in path:
            return True
        if self._names is not None and PORT.sub("", host) not in self._names:
            return True
        is_own = origin is None or origin.partition("://")[2] == host
        return scope["method"] not in ("GET", "HEAD") and not is_own


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _named(host: str) -> str:
    """A host as addresses of pages have it."""
    return f"[{host}]" if ":" in host else host


@contextmanager
def served(studio: Studio, folder: Path, host: str, port: int) -> Iterator[str]:
    """Serves the page while the block runs; yields its address.

    studio: does what the page asks for. folder: what is uploaded is stored below it, and nothing
    else is served. When the block ends, runs that are not done are cancelled.
    """
    # both are read when gradio is imported, or when its parts are made
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    from starlette.middleware import Middleware

    from anyv2v.ui.look import CSS, theme
    from anyv2v.ui.page import build

    page = build(studio)
    page.queue(default_concurrency_limit=4, api_open=False)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            show_error=False,
            max_file_size=LARGEST,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            pwa=False,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(OwnFiles, host=host)]},
            theme=theme(),
            css=CSS,
        )
        yield f"http://{_named(host)}:{port}"
    finally:
        studio.close()
        page.close(verbose=False)


def wait() -> None:
    """Waits for a signal, which raises KeyboardInterrupt."""
    while True:
        # without a time Windows would hear no signal
        threading.Event().wait(3600)
