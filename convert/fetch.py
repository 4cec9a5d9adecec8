"""Downloading the published model and converting it, with huggingface_hub, an optional extra."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from anyv2v.convert.files import STEMS
from anyv2v.convert.formats.huggingface import COMPONENTS, INDEX, TOKENIZER
from anyv2v.convert.published import convert
from anyv2v.errors import InputError
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import Shapes, file_sha256

REPOSITORY = "ali-vilab/i2vgen-xl"
PAGE = f"https://huggingface.co/{REPOSITORY}"
FOLDERS = (TOKENIZER, "feature_extractor", "scheduler", *(c.folder for c in COMPONENTS.values()))
TEXTS = (".json", ".txt")


def fetch(
    dst: str | Path,
    expected: Callable[[dict], dict[str, Shapes]],
    dtype: torch.dtype = torch.float16,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> Path:
    """Download what of the published folder is needed, check it, convert it to `dst`.

    float16 takes the files of half precision, half the bytes. The download lies in the cache of
    huggingface_hub, whose folder is the result; one that was interrupted goes on where it was.
    InputError: no huggingface_hub, no network, a file of another length or sha256 than published.
    """
    dst = Path(dst)
    check_target(dst, force)
    by_hand = f"download {PAGE} by hand and run: anyv2v convert FOLDER {dst}"
    hub = _hub(by_hand)
    with _explaining(by_hand):
        if quiet:
            hub.utils.disable_progress_bars()
        info = hub.HfApi().model_info(REPOSITORY, files_metadata=True)
        published = {file.rfilename: file for file in info.siblings}
        wanted = needed(list(published), half=dtype == torch.float16)
        folder = Path(hub.snapshot_download(REPOSITORY, revision=info.sha, allow_patterns=wanted))
    for name in wanted:
        _check(folder / name, published[name])
    convert(folder, dst, expected, dtype, force, progress)
    return folder


def needed(names: list[str], half: bool) -> list[str]:
    """Of the names in the repository those that `convert` reads."""
    texts = [n for n in names if n.endswith(TEXTS) and n.rpartition("/")[0] in FOLDERS]
    chosen = [n for n in names if n == INDEX]
    for component in COMPONENTS.values():
        inside = [n for n in names if n.startswith(f"{component.folder}/")]
        forms = [
            [n for n in inside if n.endswith(Path(stem).suffix) and ("fp16" in n) == variant]
            for stem in STEMS[component.stem]
            for variant in ((True, False) if half else (False, True))
        ]
        found = next((form for form in forms if form), None)
        if found is None:
            raise InputError(f"{PAGE}: publishes no weights of {component.folder}")
        chosen += found
    return [*chosen, *texts]


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


@contextmanager
def _explaining(by_hand: str) -> Iterator[None]:
    """Whatever goes wrong in a download, in one line, with what to do about it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(
            f"{REPOSITORY} cannot be downloaded: {reason}; run it again to go on, or {by_hand}"
        ) from error


def _check(path: Path, published) -> None:
    again = "delete it and run the command again"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: was not downloaded: {error.strerror}") from error
    if published.size is not None and size != published.size:
        raise InputError(f"{path}: has {size} bytes, {published.size} are published; {again}")
    if published.lfs is not None and (found := file_sha256(path)) != published.lfs["sha256"]:
        raise InputError(f"{path}: sha256 {found}, published is {published.lfs['sha256']}; {again}")
