"""Cache folders of the Hugging Face hub: models--OWNER--NAME/snapshots/COMMIT is the model itself.

The layout is huggingface_hub's (its guide "Understand caching"): snapshots/ holds a folder for each
commit that was downloaded, refs/main the commit that the main branch was at.
"""

import os
from pathlib import Path

from anyv2v.errors import InputError

DESCRIPTION = "is a cache folder of the Hugging Face hub"


def snapshots(folder: str | os.PathLike) -> list[Path]:
    """List the models in a cache folder: the one that refs/main names, then the newest first.

    `folder` is the cache of one model, its snapshots/, or the folder with the caches of all models.
    The list is empty for any other folder.
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
    """Return the only snapshot of a cache folder; any other folder is returned as it is.

    Raises InputError for a cache folder with no snapshot or with several, which it names.
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
