"""Cache folders of the Hugging Face hub, in which models are stored as snapshots.

A snapshot is the state of a model at one commit; it is in models--OWNER--NAME/snapshots/COMMIT.
refs/main names the commit of the main branch (huggingface_hub's guide "Understand caching").
"""

import os
from pathlib import Path

from anyv2v.errors import InputError

DESCRIPTION = "is a cache folder of the Hugging Face hub"
"""What error messages say of a cache folder."""


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
