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
"""Name, in a scratch folder, under which the user's own file or folder is kept while it is
replaced."""
MARKER = ".made-by-anyv2v"
"""Name of the locked file in every scratch folder. A folder that holds files but not this one was
not made by this program, and is never removed."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path with the suffix of `path`, and renames it to `path` after the block.

    If the block raises anything, Ctrl-C included, the half-written file is removed and `path` stays
    as it was. If `path` is a symbolic link it stays one, and the file that it points to is
    replaced. The new file gets the permissions of the file that it replaces, or else those that the
    umask allows; other hard links to the replaced file keep the old content.
    """
    target = Path(os.path.realpath(path))
    with scratch(target.parent) as folder:
        # the suffix of `path` itself: a link may point to a name without one
        temporary = folder / f"new{Path(path).suffix}"
        yield temporary
        before = target if target.exists() else folder / MARKER
        temporary.chmod(stat.S_IMODE(before.stat().st_mode))
        os.replace(temporary, target)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `parent`, and removes it after the block.

    Scratch folders that killed runs have left in `parent` are removed first. A run holds the lock
    of its folder's marker, and the system releases the lock when the process ends, however it ends.
    On a file system without locks the folders of killed runs stay.
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
        except (Timeout, FileNotFoundError, FileExistsError):
            # another run took it for a dead one before it was locked, and has removed it or is
            # about to. FileExistsError: it did between two system calls of filelock's mkdir
            continue
        except OSError:
            pass
        return folder, lock


def _lock(folder: Path) -> BaseFileLock:
    """The lock of a scratch folder, not acquired yet, which raises Timeout if it is held."""
    # a lock without the system's help would outlive a killed process
    return FileLock(folder / MARKER, blocking=False, thread_local=False, fallback_to_soft=False)


def check_output(path: str | os.PathLike, force: bool, suffixes: tuple[str, ...] = ()) -> None:
    """Raises InputError if no file can be written to `path`; to be called before long work.

    That is so if `path` exists and `force` is False, if it exists and is read-only or no regular
    file, if its folder is missing (folders are never created) or cannot be written to, or if its
    suffix is not one of `suffixes`. These are in lower case, such as (".mp4", ".mkv"), and match a
    suffix in upper case too; () allows any suffix.
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
    """The type and permissions of a file; None if it is missing. OSError: the name is too long."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None
