"""Download and conversion of published models; needs huggingface_hub, an optional extra."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import torch

from anyv2v.convert.files import STEMS
from anyv2v.convert.formats import consisti2v, huggingface, seine
from anyv2v.convert.formats.huggingface import INDEX, TOKENIZER, Component
from anyv2v.convert.published import convert
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import scratch
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import Shapes, file_sha256

TEXTS = (".json", ".txt")
"""Suffixes of configs and of the tokenizer's files."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub, and what conversion reads of it."""

    name: str
    """OWNER/NAME on the hub."""
    networks: tuple[Component, ...] = ()
    """The networks whose weights and configs are read, each in a folder of its own."""
    folders: tuple[str, ...] = ()
    """Further folders, of which configs and texts alone are read."""
    files: tuple[str, ...] = ()
    """Files at the top of the repository that are read."""
    place: str = ""
    """Name of the folder in which `convert` looks for it, inside of the folder that `convert` is
    given; "" (the default) if it is that folder."""

    @property
    def page(self) -> str:
        """Address of its page."""
        return f"https://huggingface.co/{self.name}"


PUBLISHED: dict[str, tuple[Repository, ...]] = {
    "i2vgen-xl": (
        Repository(
            "ali-vilab/i2vgen-xl",
            tuple(huggingface.COMPONENTS.values()),
            (TOKENIZER, "feature_extractor", "scheduler"),
            (INDEX,),
        ),
    ),
    "consisti2v": (
        Repository(
            "TIGER-Lab/ConsistI2V",
            tuple(consisti2v.COMPONENTS.values()),
            (TOKENIZER, "scheduler"),
            (INDEX,),
        ),
    ),
    "seine": (
        Repository("xinyuanc91/SEINE", files=(seine.UNET_FILE,)),
        Repository(
            "CompVis/stable-diffusion-v1-4",
            tuple(seine.COMPONENTS.values()),
            # of the UNet its config alone: the file of SEINE has all of its weights
            (TOKENIZER, "scheduler", "unet"),
            place=seine.FOLDER,
        ),
    ),
}
"""Name of a published model -> the repositories that it consists of; the first is the default."""


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


def asked(first: str | None, second: str | None) -> tuple[str, str]:
    """Returns (name of a published model, folder to write) of up to two words that ask for them.

    first: the name; or the folder, and the model is I2VGen-XL; or None for I2VGen-XL. second: the
    folder; None is a folder with the model's name. Raises InputError if both are given and the
    first is no name, or if it is given alone and is nearly one.
    """
    if first in PUBLISHED:
        return first, second or first
    default = next(iter(PUBLISHED))
    if first is not None and second is not None:
        raise InputError(f"{first}: is not one of the published models: {', '.join(PUBLISHED)}")
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
    dtype: torch.dtype | None = torch.float16,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Downloads a published model, checks its files, and converts it to the folder `dst`.

    Only the files that conversion reads are downloaded, to the cache of huggingface_hub, where an
    interrupted download is continued. Returns the folders of the model's repositories in the cache.

    name: a key of `PUBLISHED`. expected, force, progress: as in `convert`. dtype: of the converted
    weights, float16 by default; for float16 the published half-precision files are downloaded, half
    as many bytes; None keeps the published dtypes. quiet: hides the download's progress bars.

    Raises InputError if huggingface_hub is not installed, if the download fails (also because a
    repository is missing or its license has to be accepted), if the size or sha256 of a file is not
    the published one, or if `convert` raises it.
    """
    dst = Path(dst)
    check_target(dst, force)
    repositories = PUBLISHED[name]
    by_hand = _by_hand(repositories, dst)
    hub = _hub(by_hand)
    if quiet:
        hub.utils.disable_progress_bars()
    # all are asked before the first is downloaded, which may take an hour
    downloads = [_ask(hub, one, dtype == torch.float16, by_hand) for one in repositories]
    folders = [_download(hub, one, by_hand) for one in downloads]
    with _one_folder(downloads, folders, dst.parent) as src:
        convert(src, dst, expected, dtype, force, progress)
    return folders


def needed_files(repository: Repository, names: list[str], half: bool) -> list[str]:
    """Returns the files of a repository that `convert` reads: configs, tokenizer and weights.

    names: all files of the repository, as paths in it. half: whether half-precision weights are
    preferred to full-precision ones, where the repository has both. Raises InputError if the
    repository lacks the weights of a network or one of its `files`.
    """
    folders = (*repository.folders, *(network.folder for network in repository.networks))
    texts = [n for n in names if n.endswith(TEXTS) and n.rpartition("/")[0] in folders]
    chosen = [n for n in repository.files if n in names]
    if missing := [n for n in repository.files if n not in names]:
        raise InputError(f"{repository.page}: publishes no {missing[0]}")
    for network in repository.networks:
        inside = [n for n in names if n.startswith(f"{network.folder}/")]
        forms = [
            [n for n in inside if n.endswith(Path(stem).suffix) and ("fp16" in n) == variant]
            for stem in STEMS[network.stem]
            for variant in ((True, False) if half else (False, True))
        ]
        chosen_form = next((form for form in forms if form), None)
        if chosen_form is None:
            raise InputError(f"{repository.page}: publishes no weights of {network.folder}")
        chosen += chosen_form
    return [*chosen, *texts]


def _by_hand(repositories: Iterable[Repository], dst: Path) -> str:
    """What to do without this module, as the end of an error message."""
    pages = " and ".join(
        f"{one.page} (as FOLDER/{one.place})" if one.place else one.page for one in repositories
    )
    return f"download {pages} by hand and run: anyv2v convert FOLDER {dst}"


def _hub(by_hand: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError(
            "weights fetch needs huggingface_hub, which the extra fetch brings: "
            f"pip install huggingface_hub; or {by_hand}"
        ) from error
    return huggingface_hub


def _ask(hub: ModuleType, repository: Repository, half: bool, by_hand: str) -> Download:
    with _one_line_errors(hub, repository, by_hand):
        info = hub.HfApi().model_info(repository.name, files_metadata=True)
        published = {file.rfilename: file for file in info.siblings}
        names = needed_files(repository, list(published), half)
        return Download(repository, info.sha, published, names)


def _download(hub: ModuleType, download: Download, by_hand: str) -> Path:
    """Downloads the needed files, checks them, and returns their folder in the cache."""
    name, commit, names = download.repository.name, download.commit, download.names
    with _one_line_errors(hub, download.repository, by_hand):
        folder = Path(hub.snapshot_download(name, revision=commit, allow_patterns=names))
    for file in names:
        _check(folder / file, download.published[file])
    return folder


@contextmanager
def _one_line_errors(hub: ModuleType, repository: Repository, by_hand: str) -> Iterator[None]:
    """Turns every error of a download into an InputError of one line that says what to do."""
    failed = f"{repository.name} cannot be downloaded: "
    try:
        yield
    except InputError:
        raise
    # the first is a kind of the second
    except hub.utils.GatedRepoError as error:
        raise InputError(
            f"{failed}its license has to be accepted on {repository.page}; then log in with "
            f"`hf auth login` and run it again, or {by_hand}"
        ) from error
    except hub.utils.RepositoryNotFoundError as error:
        raise InputError(
            f"{failed}there is no such repository, or it is private; {by_hand}"
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(f"{failed}{reason}; run it again to go on, or {by_hand}") from error


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
