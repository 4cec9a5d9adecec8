"""Inputs and outputs of a batch that are URLs: copies of them here, on which all work is done."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyv2v.batch.paths import is_url, local, put
from anyv2v.cli.edit_key import FILES
from anyv2v.cli.sidecar import read_sidecar, sidecar_of
from anyv2v.errors import InputError
from anyv2v.media.sequence import numbered


class Far:
    """The folder of a batch if it is a URL, and the inputs that are URLs.

    Each machine has a folder of its own for the copies, so machines that work for one URL do not
    see each other's locks: each must have a shard of its own.
    """

    def __init__(self, output: str):
        """output: what -o names, a folder or a URL."""
        self.url = output.rstrip("/") if is_url(output) else None
        """The URL of the outputs; None if they stay on this machine."""
        self.folder = output
        """The folder on this machine, in which outputs are made."""
        if self.url is not None:
            name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
            self.folder = str(Path(tempfile.gettempdir()) / f"anyv2v-batch-{name}")
        self._copies = Path(self.folder) / ".anyv2v-batch" / "copies"

    def fetched(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns options, in which files that are URLs are replaced by copies on this machine."""
        found = dict(values)
        for name in FILES:
            value = found.get(name)
            if isinstance(value, list):
                found[name] = [self._here(name, each) for each in value]
            elif value is not None:
                found[name] = self._here(name, value)
        return found

    def key(self, output: str) -> str | None:
        """Returns the key of an output at the URL; None if there is none, or no URL."""
        if self.url is None:
            return None
        try:
            path = local(f"{self.url}/{sidecar_of(output)}", self._copies)
        except InputError:
            return None
        return read_sidecar(path).get("key")

    def send(self, output: str) -> None:
        """Moves an output to the URL, if there is one; its sidecar comes last."""
        if self.url is None:
            return
        path = Path(self.folder) / output
        pattern = numbered(path)
        files = [path] if pattern is None else list(pattern.files().values())
        for file in (*files, sidecar_of(path)):
            put(file, f"{self.url}/{file.relative_to(self.folder).as_posix()}")
        for file in (*files, sidecar_of(path)):
            file.unlink()

    def _here(self, name: str, value: Any) -> Any:
        index, colon, path = str(value).partition(":") if name == "keyframe" else ("", "", value)
        if not isinstance(path, str) or not is_url(path):
            return value
        return f"{index}{colon}{local(path, self._copies)}"
