"""Inputs and outputs of a batch that are URLs, such as s3://bucket/clip.mp4.

The libraries behind the URLs are fsspec and what it loads for a protocol (s3fs, gcsfs, aiohttp).
URLs of files of this machine (file://) need none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path, scratch

VERSIONS = (
    "ETag",
    "etag",
    "md5",
    "md5Hash",
    "crc32c",
    "generation",
    "VersionId",
    "version_id",
    "size",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
"""Facts of a far file that change with its content, under the names that file systems give them."""


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL: it begins with a protocol of two letters or more and ://."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(path)) is not None


def local(path: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Returns the path of a copy on this machine of what a URL names: a file, or a folder.

    A path that is no URL, and a URL of a file of this machine, is returned as it is. Anything else
    is fetched into `folder`, which is made if it is missing, below a name that is a hash of the URL
    and of the version that the file system tells of it (a checksum, a size, a time); so a file is
    fetched once, and again after it has changed. If the file system tells no version it is fetched
    once. The copy keeps its name, and appears whole or not at all, also if several processes fetch
    it at once.

    Raises InputError if there is no such file, if it cannot be read, or if fsspec or its part for
    the protocol is not installed.
    """
    if not is_url(path):
        return Path(path)
    url = os.fspath(path)
    if (own := _own(url)) is not None:
        return own
    files, inside = _file_system(url)
    try:
        found = files.find(inside, detail=True)
    except Exception as error:
        raise _failed("read", url, error) from error
    if not found:
        raise InputError(f"{shown(url)}: there is no such file")
    target = Path(folder) / _key(url, found)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _fetch(files, inside, found, target, url)
    return target / _name(url)


def put(path: str | os.PathLike, url: str | os.PathLike) -> None:
    """Writes a file of this machine to a URL, or to another path, over what is there.

    The file appears there whole or not at all, as far as the file system can do that: object stores
    can. Missing folders are made. Raises InputError if it cannot be written, or if fsspec or its
    part for the protocol is not installed.
    """
    url = os.fspath(url)
    own = _own(url) if is_url(url) else Path(url)
    try:
        if own is not None:
            own.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(own) as temporary:
                shutil.copyfile(path, temporary)
            return
        files, inside = _file_system(url)
        files.makedirs(files._parent(inside), exist_ok=True)
        # a transaction that fails discards what was written of the file
        with files.transaction, open(path, "rb") as read, files.open(inside, "wb") as write:
            shutil.copyfileobj(read, write, 2**20)
    except InputError:
        raise
    except Exception as error:
        raise _failed("written", url, error) from error


def shown(url: str) -> str:
    """Returns a URL for a message: without a password, and without a query, which may be a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _own(url: str) -> Path | None:
    """The path of a file of this machine that a URL names, or None."""
    parts = urlsplit(url)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        return None
    return Path(url[len("file://") + len(parts.netloc) :])


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path inside it."""
    try:
        import fsspec
    except ImportError:
        raise InputError(
            f"{shown(url)}: is a URL, which needs fsspec: pip install '.[urls]'"
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{shown(url)}: this protocol needs another package: {error}") from error
    except Exception as error:
        raise _failed("opened", url, error) from error


def _key(url: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A hash of a URL and of the versions of the files under it. found: path -> facts."""
    versions = [
        [name, [[fact, str(found[name][fact])] for fact in VERSIONS if fact in found[name]]]
        for name in sorted(found)
    ]
    return hashlib.sha256(json.dumps([url, versions]).encode()).hexdigest()[:20]


def _fetch(files: Any, inside: str, found: Iterable[str], target: Path, url: str) -> None:
    """Writes the files of `found` below the new folder `target`, which appears whole."""
    try:
        with scratch(target.parent) as folder:
            new = folder / "new"
            for name in found:
                # a folder's files keep their place in it; of a file `rest` is empty
                rest = name[len(inside.rstrip("/")) :].lstrip("/")
                place = new / _name(url) / _below(rest)
                place.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(place))
            os.replace(new, target)
    except InputError:
        raise
    except Exception as error:
        raise _failed("read", url, error) from error


def _name(url: str) -> str:
    """The last part of a URL's path, which the copy gets as its name."""
    path = urlsplit(url).path if url.startswith(("http:", "https:")) else url.partition("://")[2]
    return str(_below(unquote(PurePosixPath(path).name))) or "file"


def _below(path: str) -> PurePosixPath:
    """The path, if it does not lead out of the folder that it is put below."""
    if ".." in PurePosixPath(path).parts or path.startswith("/") or "\0" in path:
        raise InputError(f"{path!r}: a file of this name is not written")
    return PurePosixPath(path)


def _failed(what: str, url: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{shown(url)}: there is no such file")
    text = str(error).replace(url, shown(url)) or type(error).__name__
    return InputError(f"{shown(url)}: cannot be {what}: {text}")
