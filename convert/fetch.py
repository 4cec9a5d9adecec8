"""Download and conversion of published models; needs huggingface_hub, an optional extra."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import torch

from anyv2v.convert.formats import wan
from anyv2v.convert.published import convert
from anyv2v.convert.repositories import PUBLISHED, Published, Repository, needed_files, recognize
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import scratch
from anyv2v.runtime.memory import size_text
from anyv2v.weights import hub
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import Shapes, file_sha256, read_json

log = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{7,64}")
"""Matches a commit, which becomes part of the names of folders."""


@dataclass(frozen=True)
class Download:
    """What is downloaded of a repository, in the state that the hub had when it was asked."""

    repository: Repository
    """The repository."""
    commit: str
    """The commit of the state."""
    published: Mapping
    """File -> what the hub says of its size and sha256, for all files of the repository."""
    names: list[str]
    """The files that are needed, as paths in the repository."""


@dataclass(frozen=True)
class Order:
    """A model on the hub, in the state that it had when it was asked for."""

    model: Published
    """The model."""
    downloads: list[Download]
    """What is downloaded of each of its repositories."""
    dtype: torch.dtype | None
    """The dtype that the weights are converted to; None keeps the published ones."""
    by_hand: str
    """What to do without this module, as the end of an error message."""
    library: ModuleType
    """The package huggingface_hub."""

    @property
    def commit(self) -> str:
        """The commit of the first repository."""
        return self.downloads[0].commit

    @property
    def missing(self) -> int:
        """The number of bytes that the cache of huggingface_hub lacks.

        Raises InputError if a repository lists a file whose name cannot be one in the cache.
        """
        total, ask = 0, self.library.try_to_load_from_cache
        for each in self.downloads:
            with _one_line_errors(self.library, each.repository, self.by_hand):
                for name in each.names:
                    there = ask(each.repository.name, name, revision=each.commit)
                    total += 0 if isinstance(there, str) else each.published[name].size or 0
        return total

    @property
    def cache(self) -> Path:
        """The folder to which huggingface_hub downloads."""
        return Path(self.library.constants.HF_HUB_CACHE)


def asked(first: str | None, second: str | None) -> tuple[str, str]:
    """Returns (name of a published model, folder to write) of up to two words that ask for them.

    first: the name, or OWNER/NAME of a repository beside a second word; or the folder, and the
    model is I2VGen-XL; or None for I2VGen-XL. second: the folder; None is a folder with the model's
    name. Raises InputError if both are given and the first is no name, or if it is given alone and
    is nearly one.
    """
    if first in PUBLISHED:
        return first, second or first
    default = next(iter(PUBLISHED))
    if first is not None and second is not None:
        if hub.name_of(first) is not None:
            return first, second
        raise InputError(
            f"{first}: is not one of the published models: {', '.join(PUBLISHED)}; "
            "nor is it OWNER/NAME of a repository"
        )
    if first is not None and (near := get_close_matches(first, PUBLISHED, 1, cutoff=0.8)):
        raise InputError(
            f"{first}: is nearly {near[0]}, a published model; give {near[0]}, "
            f"or {default} {first} for that folder"
        )
    return default, first or second or default


def fetch(
    name: str,
    dst: str | Path,
    expected: Callable[[dict], Mapping[str, Shapes]],
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Downloads a published model, checks its files, and converts it to the folder `dst`.

    Only the files that conversion reads are downloaded, to the cache of huggingface_hub, where an
    interrupted download is continued. Returns the folders of the model's repositories in the cache.

    name: a key of `PUBLISHED`, or OWNER/NAME or OWNER/NAME@REVISION of a repository of the hub.
    expected, force, progress: as in `convert`. dtype: of the converted weights; None is float16, of
    Wan bfloat16, of a CLIP the published one. For float16 the published half-precision files are
    downloaded, half as many bytes. quiet: hides the download's progress bars.

    Raises InputError if huggingface_hub is not installed, if the download fails (also because a
    repository is missing or its license has to be accepted), if the size or sha256 of a file is not
    the published one, or if `convert` raises it.
    """
    dst = Path(dst)
    check_target(dst, force)
    known = PUBLISHED.get(name)
    wanted = hub.name_of(name) if known is None else hub.Name(known.repositories[0].name)
    if wanted is None:
        raise InputError(f"{name}: is neither one of {', '.join(PUBLISHED)} nor a repository")
    return obtain(order(wanted, str(dst), dtype, quiet), dst, expected, force, progress)


def order(name: hub.Name, dst: str, dtype: torch.dtype | None = None, quiet: bool = False) -> Order:
    """Asks the hub for a model. Nothing is downloaded but, of some, a small config.

    name: the repository; where a model has several, the first. dst: the folder to write, for error
    messages. dtype, quiet: as in `fetch`. Raises InputError as `fetch` does.
    """
    known = [x for x in PUBLISHED.values() if x.repositories[0].name == name.repository]
    pages = known[0].repositories if known else (Repository(name.repository),)
    library = _library(by_hand := _by_hand(pages, dst))
    if quiet or not sys.stderr.isatty():
        library.utils.disable_progress_bars()
    first = Repository(name.repository)
    commit, published = _ask(library, first, name.revision, by_hand)

    def read(file: str) -> dict:
        with _one_line_errors(library, first, by_hand):
            path = library.hf_hub_download(first.name, file, revision=commit)
        return read_json(Path(path))

    model = recognize(name.repository, published, read)
    if dtype == torch.float16 and model.dtype == torch.bfloat16:
        raise InputError(f"{name}: {wan.OVERFLOWS}")
    dtype = model.dtype if dtype is None else dtype
    by_hand, downloads = _by_hand(model.repositories, dst), []
    # all are asked before the first is downloaded, which may take an hour
    for repository in model.repositories:
        if repository.name != first.name:
            commit, published = _ask(library, repository, None, by_hand)
        names = needed_files(repository, published, dtype == torch.float16)
        downloads.append(Download(repository, commit, published, names))
    return Order(model, downloads, dtype, by_hand, library)


def obtain(
    order: Order,
    dst: Path,
    expected: Callable[[dict], Mapping[str, Shapes]],
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Downloads what was ordered and converts it; arguments, result and errors as of `fetch`."""
    _check_space(order)
    folders = [_download(order, each) for each in order.downloads]
    with _one_folder(order.downloads, folders, dst.parent) as src:
        convert(src / order.model.source, dst, expected, order.dtype, force, progress)
    return folders


def _by_hand(repositories: Iterable[Repository], dst: str) -> str:
    """What to do without this module, as the end of an error message."""
    pages = " and ".join(
        f"{one.page} (as FOLDER/{one.place})" if one.place else one.page for one in repositories
    )
    return f"download {pages} by hand and run: anyv2v convert FOLDER {dst}"


def _library(by_hand: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError(
            "downloads need huggingface_hub, which the extra fetch brings: "
            f"pip install huggingface_hub; or {by_hand}"
        ) from error
    return huggingface_hub


def _ask(
    library: ModuleType, repository: Repository, revision: str | None, by_hand: str
) -> tuple[str, Mapping]:
    """The commit of a repository, and file -> what the hub says of it, for all of its files."""
    with _one_line_errors(library, repository, by_hand, revision):
        info = library.HfApi().model_info(repository.name, revision=revision, files_metadata=True)
        if not COMMIT.fullmatch(str(info.sha)):
            raise InputError(f"{repository.page}: its commit is {info.sha!r}, which is none")
        log.info("%s is at commit %s", repository.name, info.sha)
        return info.sha, {file.rfilename: file for file in info.siblings}


def _check_space(order: Order) -> None:
    """Raises InputError if the disk of the cache has less room than the download needs."""
    needed, folder = order.missing, order.cache
    there = next((each for each in (folder, *folder.parents) if each.exists()), None)
    if there is not None and (free := shutil.disk_usage(there).free) < needed:
        raise InputError(
            f"{folder}: the download needs {size_text(needed)}, {size_text(free)} are free; "
            "make room, or name a folder on another disk in the environment variable HF_HUB_CACHE"
        )


def _download(order: Order, download: Download) -> Path:
    """Downloads the needed files, checks them, and returns their folder in the cache."""
    name, folder = download.repository.name, Path()
    # one after the other, in this thread: snapshot_download would not let a signal end the run
    # before its threads have got their files, which may be gigabytes
    for file in download.names:
        with _one_line_errors(order.library, download.repository, order.by_hand):
            path = Path(order.library.hf_hub_download(name, file, revision=download.commit))
        _check(path, download.published[file])
        folder = path.parents[file.count("/")]
    return folder


@contextmanager
def _one_line_errors(
    library: ModuleType, repository: Repository, by_hand: str, revision: str | None = None
) -> Iterator[None]:
    """Turns every error of a download into an InputError of one line that says what to do."""
    failed = f"{repository.name} cannot be downloaded: "
    # it tells of each try, in several lines
    theirs = logging.getLogger("huggingface_hub")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    # a kind of RepositoryNotFoundError
    except library.utils.GatedRepoError as error:
        raise InputError(
            f"{failed}its license has to be accepted on {repository.page}; then log in with "
            f"`hf auth login` and run it again, or {by_hand}"
        ) from error
    except library.utils.RevisionNotFoundError as error:
        raise InputError(f"{failed}it has no revision {revision}; {by_hand}") from error
    except library.utils.RepositoryNotFoundError as error:
        raise InputError(
            f"{failed}there is no such repository, or it is private; {by_hand}"
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(f"{failed}{reason}; run it again to go on, or {by_hand}") from error
    finally:
        theirs.setLevel(level)


def _check(path: Path, published) -> None:
    again = "delete it and run the command again"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: was not downloaded: {error.strerror}") from error
    if published.size is not None and size != published.size:
        raise InputError(f"{path}: has {size} bytes, {published.size} are published; {again}")
    if published.lfs is not None and (digest := file_sha256(path)) != published.lfs["sha256"]:
        raise InputError(
            f"{path}: sha256 {digest}, published is {published.lfs['sha256']}; {again}"
        )


@contextmanager
def _one_folder(downloads: list[Download], folders: list[Path], parent: Path) -> Iterator[Path]:
    """Yields one folder with all downloads, each at its place.

    It is the cache's own if there is one download; else a folder of links to the cache, which is
    made in `parent` and removed after the block.
    """
    if len(folders) == 1:
        yield folders[0]
        return
    with scratch(parent) as temporary:
        for download, folder in zip(downloads, folders, strict=True):
            place = temporary / "published" / download.repository.place
            place.mkdir(parents=True, exist_ok=True)
            for name in {name.partition("/")[0] for name in download.names}:
                _link(folder / name, place / name)
        yield temporary / "published"


def _link(path: Path, link: Path) -> None:
    """Makes a link to a file or folder, or a copy on a system that has no links."""
    path = path.resolve()
    try:
        os.symlink(path, link, target_is_directory=path.is_dir())
    except OSError:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, link)
