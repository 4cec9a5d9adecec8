"""Output files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyv2v.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

REPLACED = "old"
"""What a scratch folder calls something of the user's that it holds for a moment."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A name with the suffix of `path` to write to, in `scratch`; becomes `path` at the end.

    If the block raises anything, Ctrl-C included, the half file is removed and `path` stays as it
    was. A `path` that is a symbolic link stays one: the file it leads to is replaced.
    """
    target = Path(os.path.realpath(path))
    with scratch(target.parent) as folder:
        temporary = folder / f"new{target.suffix}"
        yield temporary
        os.replace(temporary, target)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent` that goes at the end, with those that killed runs left there.

    Who writes into one holds its lock, which ends with the process however that ends.
    """
    for left in parent.glob(".anyv2v-*.part"):
        if (lock := _lock(left)) is not None:
            if not (left / REPLACED).exists():
                shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = parent / f".anyv2v-{secrets.token_hex(4)}.part"
        folder.mkdir()
        lock = _lock(folder)
        # else somebody took it for a dead one before it was locked
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Of a folder, until it is closed; None where another has it, or where there are no locks."""
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def check_output(path: str | os.PathLike, force: bool, suffixes: tuple[str, ...] = ()) -> None:
    """InputError if `path` cannot be written; meant to be asked before long work.

    An existing file is refused unless `force`; a missing folder is refused, never created; a suffix
    that is not among `suffixes` (if any are given; case does not matter) is refused.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(suffixes)}")
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
        if not target.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {target.parent}")
        # not target.exists(): it hides a name that is too long
        if _is_there(target) and not force:
            raise InputError(f"{path} already exists; --force (force=True) overwrites it")
        # permission bits do not tell the truth for root and for read-only mounts: try it
        probe = _beside(target)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _beside(target: Path) -> Path:
    # short, so that every name the file system takes for the target can have its temporary
    return target.with_name(f".anyv2v-{secrets.token_hex(4)}{target.suffix}")


def _is_there(target: Path) -> bool:
    try:
        target.stat()
    except FileNotFoundError:
        return False
    return True
