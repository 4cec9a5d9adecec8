"""Output files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyv2v.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden name beside `path`, with its suffix, to write to; becomes `path` at the end.

    If the block raises anything, Ctrl-C included, the half file is removed and `path` stays as it
    was. A `path` that is a symbolic link stays one: the file it leads to is replaced.
    """
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
