"""Output files that appear whole or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from anyv2v.errors import InputError

REPLACED = "old"
"""What a scratch folder calls something of the user's that it holds for a moment."""
MARKER = ".made-by-anyv2v"
"""The locked file in every scratch folder: one without it is somebody else's and never removed."""


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
    """A hidden new folder in `parent`, removed at the end, with those that killed runs left there.

    The run that uses it holds the lock of its marker, which ends with the process however that
    ends. Where the file system has no locks the folders of killed runs stay.
    """
    for left in parent.glob(".anyv2v-*.part"):
        _remove_dead(left)
    folder, lock = _locked_folder(parent)
    try:
        (folder / MARKER).touch()
        yield folder
    finally:
        _remove(folder, lock)


def _remove_dead(folder: Path) -> None:
    """Removes a scratch folder whose process has ended, unless it holds something of the user's."""
    # Timeout is one of them: the process lives
    with suppress(OSError):
        if not os.listdir(folder):
            # killed before it had marked the folder; if it lives and is about to, it makes another
            folder.rmdir()
        elif (folder / MARKER).exists():
            with _lock(folder) as lock:
                if not (folder / REPLACED).exists():
                    _remove(folder, lock)


def _remove(folder: Path, lock: BaseFileLock) -> None:
    """Removes a folder whose lock is held, or that is on a file system without locks."""
    with suppress(OSError):
        # the marker last, so that what a kill leaves of the folder is still known for ours; and
        # before the lock is released, else a new run could get it and lose the folder. Windows
        # refuses to remove an open file, but removes it with the release
        for name in sorted(os.listdir(folder), key=MARKER.__eq__):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    lock.release()
    with suppress(OSError):
        folder.rmdir()


def _locked_folder(parent: Path) -> tuple[Path, BaseFileLock]:
    """A new folder and its lock, which is not held where the file system has none."""
    while True:
        folder = parent / f".anyv2v-{secrets.token_hex(4)}.part"
        folder.mkdir()
        lock = _lock(folder)
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):
            # another run took it for a dead one before it was locked, and removes it
            continue
        except OSError:
            pass
        return folder, lock


def _lock(folder: Path) -> BaseFileLock:
    """The lock of a scratch folder, not acquired yet, which raises Timeout if it is held."""
    # a lock without the system's help would outlive a killed process
    return FileLock(folder / MARKER, blocking=False, thread_local=False, fallback_to_soft=False)


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
