"""Names of repositories of the Hugging Face hub, and its cache folders, which hold snapshots.

A snapshot is the state of a model at one commit; it is in models--OWNER--NAME/snapshots/COMMIT.
refs/main names the commit of the main branch (huggingface_hub's guide "Understand caching").
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from anyv2v.errors import InputError

NAMED = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w][\w./-]*))?", re.ASCII)
"""Matches OWNER/NAME and OWNER/NAME@REVISION."""

DESCRIPTION = "is a cache folder of the Hugging Face hub"
"""What error messages say of a cache folder."""


class Name(NamedTuple):
    """The name of a repository, such as ali-vilab/i2vgen-xl; str() gives it as it was written."""

    repository: str
    """OWNER/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit, which was written after an @; None if none was."""

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def name_of(text: object, base: str | os.PathLike = ".") -> Name | None:
    """Returns the repository of the hub that a text names, or None if it is a path.

    A text of the form OWNER/NAME or OWNER/NAME@REVISION names a repository unless there is such a
    file or folder, or a folder OWNER in which it could have been. base: the folder that paths are
    relative to.
    """
    match = NAMED.fullmatch(text) if isinstance(text, str) else None
    # no name of the hub has these
    if match is None or "--" in match[0] or ".." in match[0]:
        return None
    owner = os.path.join(base, match[1].partition("/")[0])
    if os.path.exists(os.path.join(base, match[0])) or os.path.isdir(owner):
        return None
    return Name(match[1], match[2])


def snapshots(folder: str | os.PathLike) -> list[Path]:
    """Returns the snapshots in a cache folder of the hub; an empty list for any other folder.

    folder: the cache of one model, the folder snapshots/ in it, or the folder with the caches of
    all models. For each model, the snapshot that refs/main names comes first, then the newest.
    """
    folder = Path(folder)
    if _is_cache(folder):
        caches = [folder]
    elif folder.name == "snapshots" and _is_cache(folder.parent):
        caches = [folder.parent]
    else:
        caches = [cache for cache in sorted(folder.glob("models--*")) if _is_cache(cache)]
    return [snapshot for cache in caches for snapshot in _sorted_snapshots(cache)]


def only_snapshot(folder: str | os.PathLike) -> Path:
    """Returns the only snapshot in a cache folder of the hub; returns any other folder as it is.

    A snapshot is the state of a model at one commit. Raises InputError if a cache folder holds no
    snapshot, or several; the message lists them.
    """
    folder = Path(folder)
    if not (models := snapshots(folder)):
        if _is_cache(folder):
            raise InputError(
                f"{folder}: {DESCRIPTION} without a snapshot; download the model again"
            )
        return folder
    if len(models) > 1:
        raise InputError(
            f"{folder}: {DESCRIPTION} with {len(models)} snapshots; "
            f"give one: {', '.join(map(str, models))}"
        )
    return models[0]


def _is_cache(folder: Path) -> bool:
    others = (folder / "refs", folder / "blobs")
    return (folder / "snapshots").is_dir() and any(other.is_dir() for other in others)


def _sorted_snapshots(cache: Path) -> list[Path]:
    try:
        main = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    folders = [path for path in (cache / "snapshots").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: (path.name != main, -path.stat().st_mtime, path.name))
