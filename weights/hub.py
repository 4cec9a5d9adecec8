"""Cache folders of the Hugging Face hub: models--OWNER--NAME/snapshots/COMMIT is the model itself.

The layout is huggingface_hub's (its guide "Understand caching"): snapshots/ holds a folder for each
commit that was downloaded, refs/main the commit that the main branch was at.
"""

import os
from pathlib import Path

from anyv2v.errors import InputError

WHAT = "is a cache folder of the Hugging Face hub"


def snapshots(folder: str | os.PathLike) -> list[Path]:
    """The models in a cache folder, or in its snapshots/: what refs/main names, then the newest.

    Also of the folder that holds the caches of all models. Empty if it is nothing of the kind.
    """
    folder = Path(folder)
    if _is_cache(folder):
        caches = [folder]
    elif folder.name == "snapshots" and _is_cache(folder.parent):
        caches = [folder.parent]
    else:
        caches = [found for found in sorted(folder.glob("models--*")) if _is_cache(found)]
    return [snapshot for cache in caches for snapshot in _of(cache)]


def only_snapshot(folder: str | os.PathLike) -> Path:
    """`folder`, or of a cache folder the one snapshot; InputError that names several, or none."""
    folder = Path(folder)
    if not (found := snapshots(folder)):
        if _is_cache(folder):
            raise InputError(f"{folder}: {WHAT} without a snapshot; download the model again")
        return folder
    if len(found) > 1:
        raise InputError(
            f"{folder}: {WHAT} with {len(found)} snapshots; give one: {', '.join(map(str, found))}"
        )
    return found[0]


def _is_cache(folder: Path) -> bool:
    beside = (folder / "refs", folder / "blobs")
    return (folder / "snapshots").is_dir() and any(other.is_dir() for other in beside)


def _of(cache: Path) -> list[Path]:
    """The snapshots of one cache folder."""
    try:
        main = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    found = [path for path in (cache / "snapshots").iterdir() if path.is_dir()]
    return sorted(found, key=lambda path: (path.name != main, -path.stat().st_mtime, path.name))
