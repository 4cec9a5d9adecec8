"""Output files that appear whole or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anyv2v.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

REPLACED = "old"
"""What a scratch folder calls something of the user's that it holds for a moment."""
MARKER = ".made-by-anyv2v"
"""A file in every scratch folder: what has none is somebody else's and is never removed."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A name with the suffix of `path` to write to, in `scratch`; becomes `path` at the end.

    If the block raises anything, Ctrl-C included, the half file is removed and `path` stays as it
    was. A `path` that is a symbolic link stays one: the file it leads to is replaced. A file that
    is replaced leaves its permissions to the new one; other hard links to it keep the old content.
    """
    target = Path(os.path.realpath(path))
    with scratch(target.parent) as folder:
        # the suffix of the name that was given: a link may lead to a name without one
        temporary = folder / f"new{Path(path).suffix}"
        yield temporary
        before = target if target.exists() else folder / MARKER
        temporary.chmod(stat.S_IMODE(before.stat().st_mode))
        os.replace(temporary, target)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent` that goes at the end, with those that killed runs left there.

    Who writes into one holds its lock, which ends with the process however that ends.
    """
    for left in parent.glob(".anyv2v-*.part"):
        _remove_dead(left)
    folder, lock = _locked_folder(parent)
    try:
        (folder / MARKER).touch()
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _remove_dead(folder: Path) -> None:
    """A scratch folder whose process has ended, unless it holds something of the user's."""
    with suppress(OSError):
        lock = _lock(folder)
        if lock is None:
            return
        try:
            if not os.listdir(folder):  # its process was killed before it had marked it
                folder.rmdir()
            elif (folder / MARKER).exists() and not (folder / REPLACED).exists():
                _remove(folder)
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    """The marker last, so that what a kill leaves of it is still known for ours."""
    with suppress(OSError):
        for name in sorted(os.listdir(folder), key=MARKER.__eq__):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        folder.rmdir()


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; None where the file system or the platform has no locks."""
    while True:
        folder = parent / f".anyv2v-{secrets.token_hex(4)}.part"
        folder.mkdir()
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            # another run took it for a dead one before it was locked, and removes it
            continue
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed; None where there are no locks.

    BlockingIOError: another process holds it. FileNotFoundError: the folder is gone.
    """
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return lock


def check_output(path: str | os.PathLike, force: bool, suffixes: tuple[str, ...] = ()) -> None:
    """InputError if `path` cannot be written; meant to be asked before long work.

    An existing file is refused unless `force`, and in any case if it is read-only or no plain file;
    a missing folder is refused, never created; a suffix that is not among `suffixes` (if any are
    given; case does not matter) is refused.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(suffixes)}")
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
        if not target.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {target.parent}")
        if (mode := _mode(target)) is not None:
            if not stat.S_ISREG(mode):
                raise InputError(f"cannot write {path}: it is a device or a pipe; give a new name")
            if not force:
                raise InputError(f"{path} already exists; --force (force=True) overwrites it")
            if not mode & 0o222:
                raise InputError(f"cannot write {path}: it is read-only")
        # permission bits of a folder do not tell the truth for root and for read-only mounts
        with scratch(target.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _mode(target: Path) -> int | None:
    """Its type and permissions; None if there is no such file. OSError: the name is too long."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None
