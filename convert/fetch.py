"""Download and conversion of the published I2VGen-XL; needs huggingface_hub, an optional extra."""

from collections.abc import Callable, Iterator, Mapping
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
    expected: Callable[[dict], Mapping[str, Shapes]],
    dtype: torch.dtype | None = torch.float16,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> Path:
    """Downloads the published I2VGen-XL, checks its files, and converts it to the folder `dst`.

    Only the files that conversion reads are downloaded, to the cache of huggingface_hub, where an
    interrupted download is continued. Returns their folder in the cache.

    expected, force, progress: as in `convert`. dtype: of the converted weights, float16 by default;
    for float16 the published half-precision files are downloaded, half as many bytes; None keeps
    the published dtypes. quiet: hides the download's progress bars.

    Raises InputError if huggingface_hub is not installed, if the download fails, if the size or
    sha256 of a file is not the published one, or if `convert` raises it.
    """
    dst = Path(dst)
    check_target(dst, force)
    by_hand = f"download {PAGE} by hand and run: anyv2v convert FOLDER {dst}"
    hub = _hub(by_hand)
    with _one_line_errors(by_hand):
        if quiet:
            hub.utils.disable_progress_bars()
        info = hub.HfApi().model_info(REPOSITORY, files_metadata=True)
        published = {file.rfilename: file for file in info.siblings}
        names = needed_files(list(published), half=dtype == torch.float16)
        folder = Path(hub.snapshot_download(REPOSITORY, revision=info.sha, allow_patterns=names))
    for name in names:
        _check(folder / name, published[name])
    convert(folder, dst, expected, dtype, force, progress)
    return folder


def needed_files(names: list[str], half: bool) -> list[str]:
    """Returns the files of the repository that `convert` reads: configs, tokenizer and weights.

    names: all files of the repository, as paths in it. half: whether half-precision weights are
    preferred to full-precision ones, where the repository has both. Raises InputError if the
    repository has no weights for one of the networks.
    """
    texts = [n for n in names if n.endswith(TEXTS) and n.rpartition("/")[0] in FOLDERS]
    chosen = [n for n in names if n == INDEX]
    for component in COMPONENTS.values():
        inside = [n for n in names if n.startswith(f"{component.folder}/")]
        forms = [
            [n for n in inside if n.endswith(Path(stem).suffix) and ("fp16" in n) == variant]
            for stem in STEMS[component.stem]
            for variant in ((True, False) if half else (False, True))
        ]
        chosen_form = next((form for form in forms if form), None)
        if chosen_form is None:
            raise InputError(f"{PAGE}: publishes no weights of {component.folder}")
        chosen += chosen_form
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
def _one_line_errors(by_hand: str) -> Iterator[None]:
    """Turns every error of a download into an InputError of one line that says what to do."""
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
    if published.lfs is not None and (digest := file_sha256(path)) != published.lfs["sha256"]:
        raise InputError(
            f"{path}: sha256 {digest}, published is {published.lfs['sha256']}; {again}"
        )
