"""A server on this machine that speaks the Hugging Face hub's protocol as far as downloads need it.

What it answers was read off huggingface_hub 2.4: the facts of a repository and its tree, the files
by commit with their ETags, and ranges of them, by which an interrupted download goes on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pt", ".bin")
"""Suffixes of files that are told with their sha256, as those in Git LFS are."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit of a folder that is published without another."""


class Page(NamedTuple):
    """A state of a repository."""

    commit: str
    folder: Path


class HubServer(ThreadingHTTPServer):
    """Serves folders as repositories, in threads of its own, while it is used as a context."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, dict[str, Page]] = {}
        """Repository -> branch, tag or commit -> state."""
        self.gated: set[str] = set()
        """Repositories whose license has to be accepted before files are sent."""
        self.requests: list[str] = []
        """What was asked for: "METHOD path", with the range if there is one."""
        self.cut: dict[str, int] = {}
        """Name of a file -> after how many bytes each connection that sends it is cut."""
        self.stalled: set[str] = set()
        """Names of files of which half is sent, and no more."""
        self.stalling, self._ended = threading.Event(), threading.Event()
        self.forged: dict[str, bytes] = {}
        """Name of a file -> what is sent in place of it, under its own sha256."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, repository: str, folder: Path, commit: str = COMMIT, *names: str) -> None:
        """Publishes a folder as a commit of a repository, which `main` and `names` then mean."""
        states = self.pages.setdefault(repository, {})
        states |= dict.fromkeys(("main", commit, *names), Page(commit, Path(folder)))

    def sent(self, suffix: str = "") -> list[str]:
        """The paths of the files that were sent, as far as they end in `suffix`."""
        got = [r.split()[1] for r in self.requests if r.startswith("GET") and "/resolve/" in r]
        return [path for path in got if path.endswith(suffix)]

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True, args=(0.01,)).start()
        return self

    def stall(self) -> None:
        """Waits in a connection until the server ends; `stalling` tells that one does."""
        self.stalling.set()
        self._ended.wait()

    def __exit__(self, *error) -> None:
        self._ended.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, wanted = urlsplit(self.path).path, self.headers.get("Range", "")
        self.server.requests.append(f"{self.command} {unquote(path)} {wanted}".strip())
        # a branch such as refs/pr/1 is one part, since its slashes are quoted
        parts = [unquote(part) for part in path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        states = self.server.pages.get(repository)
        if states is None:
            # as the hub does, which does not tell private repositories from missing ones
            return self._fail(401, "RepoNotFound", "Invalid username or password.")
        if api and rest in ([], ["revision"]):
            rest = ["revision", "main"]
        page = states.get(rest[1] if len(rest) > 1 else "")
        if page is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if api and rest[0] == "revision":
            return self._json(_facts(repository, page))
        if api and rest[0] == "tree":
            return self._json([_entry(page, name) for name in _names(page)])
        if repository in self.server.gated:
            return self._fail(403, "GatedRepo", "Access to this model is restricted.")
        name = "/".join(rest[2:])
        if name not in _names(page):
            return self._fail(404, "EntryNotFound", "Entry not found")
        return self._file(page, name, wanted, body)

    def _file(self, page: Page, name: str, wanted: str, body: bool) -> None:
        data = (page.folder / name).read_bytes()
        tag = _tag(name, data)
        data = self.server.forged.get(name, data) if body else data
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", page.commit)
        self.send_header("ETag", f'"{tag}"')
        if name.endswith(LARGE):
            self.send_header("X-Linked-Etag", f'"{tag}"')
            self.send_header("X-Linked-Size", str(len(data)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if body:
            most = self.server.cut.get(name, len(data))
            if name in self.server.stalled:
                self.wfile.write(data[first : first + most // 2])
                self.wfile.flush()
                self.server.stall()
                most = 0
            self.wfile.write(data[first : first + most])
            self.close_connection = first + most < len(data)

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _names(page: Page) -> list[str]:
    files = [path for path in sorted(page.folder.rglob("*")) if path.is_file()]
    return [path.relative_to(page.folder).as_posix() for path in files]


def _tag(name: str, data: bytes) -> str:
    """The ETag of a file: of a large one its sha256, of others that of Git's object."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _facts(repository: str, page: Page) -> dict:
    siblings = []
    for name in _names(page):
        entry = _entry(page, name)
        sibling = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            sibling["lfs"] = {
                "sha256": entry["lfs"]["oid"],
                "size": entry["size"],
                "pointerSize": 134,
            }
        siblings.append(sibling)
    return {"id": repository, "modelId": repository, "sha": page.commit, "siblings": siblings}


def _entry(page: Page, name: str) -> dict:
    data = (page.folder / name).read_bytes()
    tag = _tag(name, data)
    entry = {"type": "file", "path": name, "size": len(data), "oid": tag[:40]}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": tag, "size": len(data), "pointerSize": 134}
    return entry
