"""The cache of models that were downloaded and converted because their names were given.

It is the folder weights/OWNER--NAME/COMMIT-DTYPE in the folder that `root` returns. Beside the
folders of a repository, refs/REVISION holds the commit of a branch or tag that was asked for.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from anyv2v import checks
from anyv2v.convert.fetch import COMMIT, Order, obtain, order
from anyv2v.convert.repositories import PUBLISHED
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.runtime.locks import hold
from anyv2v.runtime.memory import size_text
from anyv2v.weights import hub
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import MANIFEST, Shapes

log = logging.getLogger(__name__)

AS_PUBLISHED = "published"
"""Stands in the name of a folder for the dtypes of the published files."""


class Converted(NamedTuple):
    """A converted model in the cache."""

    repository: str
    """OWNER/NAME."""
    commit: str
    """The commit of the repository."""
    folder: Path
    """The folder of the weights."""
    made: float
    """When it was converted, in seconds since 1970."""


def root() -> Path:
    """Returns the folder of all that this package caches, which need not exist.

    It is that of the environment variable ANYV2V_CACHE, else anyv2v in that of XDG_CACHE_HOME, else
    ~/.cache/anyv2v, on Windows anyv2v/cache among the user's local data.
    """
    if own := os.environ.get("ANYV2V_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "anyv2v"
    if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "anyv2v" / "cache"
    return Path("~/.cache/anyv2v").expanduser()


def located(
    weights: str | os.PathLike,
    expected: Callable[[dict], Mapping[str, Shapes]],
    options: tuple[str, ...] = (),
) -> Path:
    """Returns the folder of weights that are given by their path or by the name of a repository.

    A text of the form OWNER/NAME or OWNER/NAME@REVISION that is no path (see `hub.name_of`) is a
    repository of the Hugging Face hub. A model that is in the cache is used without a network; of
    several commits the one that was converted last, unless REVISION names another. One that is not
    is downloaded, checked and converted to float16 (Wan to bfloat16, a CLIP to the published
    dtypes), after a line on stderr that says how much comes from where; if another process is doing
    so, it is waited for.

    weights: a path, which need not exist, or a name. expected: as of `published.convert`. options:
    the options of the command line for which the weights will do, see `repositories`; () for any.
    Raises InputError if `weights` is neither, if the model is for another option, if its folder in
    the cache is damaged, or as `fetch.fetch` does.
    """
    if (name := hub.name_of(weights)) is None:
        return checks.path("weights", weights)
    if (known := find(name)) is not None:
        log.info("%s is in the cache: %s", name, known.folder)
        with _to_be_removed(known.folder):
            Checkpoint.open(known.folder)
        return known.folder
    # asked first: a misspelled path leaves nothing in the cache
    wanted = _ordered(name, options)
    folder = _folder(name.repository)
    try:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = "name another folder in the environment variable ANYV2V_CACHE"
        raise InputError(f"{folder}: cannot be made: {error.strerror}; {where}") from error
    lock = folder / ".lock"
    with hold(lock) as held:
        if held:
            return _obtained(name, wanted, expected)
    log.warning("anyv2v: %s: waiting for another process, which downloads and converts it", name)
    with hold(lock, wait=True):
        return _obtained(name, wanted, expected)


def find(name: hub.Name) -> Converted | None:
    """Returns the converted model of a name that is in the cache, or None."""
    known = [each for each in converted() if each.repository == name.repository]
    if name.revision is not None:
        try:
            commit = _ref(name).read_text(encoding="utf-8").strip()
        # no such file, or one that is damaged and will be written anew
        except (OSError, ValueError):
            commit = name.revision
        if not COMMIT.fullmatch(commit):
            return None
        known = [each for each in known if each.commit.startswith(commit)]
    return known[0] if known else None


def pinned(weights: str) -> str:
    """Returns the name of a repository with the commit that is used of it; a path as it is."""
    name = hub.name_of(weights)
    if name is None or (known := find(name)) is None:
        return weights
    return f"{known.repository}@{known.commit}"


def converted() -> list[Converted]:
    """Returns the models in the cache, the one that was converted last comes first."""
    models = []
    for manifest in (root() / "weights").glob(f"*--*/*-*/{MANIFEST}"):
        folder = manifest.parent
        repository = folder.parent.name.replace("--", "/", 1)
        commit = folder.name.partition("-")[0]
        if COMMIT.fullmatch(commit):
            models.append(Converted(repository, commit, folder, manifest.stat().st_mtime))
    return sorted(models, key=lambda each: -each.made)


def _ordered(name: hub.Name, options: tuple[str, ...]) -> Order:
    """What the hub has of a name, if it is for one of these options; () for any."""
    try:
        wanted = order(name, "NEW_FOLDER")
    except InputError as error:
        if any(name.repository == each.repositories[0].name for each in PUBLISHED.values()):
            raise
        # more often than a repository it is the path of a folder, misspelled
        raise InputError(f"{name}: no such folder; as a repository: {error}") from error
    if options and wanted.model.option not in options:
        raise InputError(
            f"{name}: is for {wanted.model.option}; weights for {options[0]} are needed"
        )
    return wanted


def _obtained(
    name: hub.Name, wanted: Order, expected: Callable[[dict], Mapping[str, Shapes]]
) -> Path:
    """Downloads and converts a model to the cache, unless that commit is there."""
    dtype = AS_PUBLISHED if wanted.dtype is None else str(wanted.dtype).removeprefix("torch.")
    dst = _folder(name.repository) / f"{wanted.commit}-{dtype}"
    # a folder without a manifest is not whole, and is replaced
    if not (dst / MANIFEST).is_file():
        with _to_be_removed(dst):
            check_target(dst, force=True)
        log.warning(
            "anyv2v: %s: downloading %s from the Hugging Face hub to %s, and converting to %s",
            name,
            size_text(wanted.missing),
            wanted.cache,
            dst,
        )
        obtain(wanted, dst, expected, force=True)
    if name.revision is not None:
        with atomic_path(_ref(name)) as temporary:
            temporary.write_text(wanted.commit, encoding="utf-8")
    return dst


@contextmanager
def _to_be_removed(folder: Path) -> Iterator[None]:
    """Makes errors say what to do about a damaged folder of the cache."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; remove {folder}, after which it is downloaded again") from error


def _folder(repository: str) -> Path:
    return root() / "weights" / repository.replace("/", "--")


def _ref(name: hub.Name) -> Path:
    """The file that holds the commit of a branch or tag."""
    return _folder(name.repository) / "refs" / str(name.revision).replace("/", "--")
