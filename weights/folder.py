"""Writing of weights folders, which appear whole or not at all."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import REPLACED, scratch
from anyv2v.runtime.memory import size_text
from anyv2v.weights.manifest import (
    COMPONENTS,
    CONFIG,
    FORMAT,
    MANIFEST,
    MODELS,
    TOKENIZER,
    components,
    file_sha256,
    read_json,
    write_json,
)
from anyv2v.weights.tensors import NAMES, Layout, write


class Part(NamedTuple):
    """The weights of one network that is to be written."""

    layout: Layout
    """Name of a tensor -> (dtype, shape)."""
    read: Callable[[str], Tensor]
    """Function of a tensor's name that returns the tensor."""


def write_folder(
    dst: Path,
    config: dict,
    tokenizer: Mapping[str, str],
    parts: Mapping[str, Part],
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a weights folder: config.json, a safetensors file per network, tokenizer and manifest.

    Holds one tensor in memory at a time.

    dst: the folder to write, which appears whole or not at all; see `check_target`. config: the
    content of config.json. tokenizer: name of each file of the tokenizer (those of one of
    `manifest.TOKENIZERS`) -> its text; empty for a model that reads no text. parts: component (name
    of a weight file without suffix, such as "unet") -> its weights; they must be those that
    `manifest.components(config)` names. force: whether to replace dst if it exists. progress:
    called with (bytes of weights written so far, bytes in all).

    Raises InputError if the disk has too little space, if dst cannot be written, or if dst exists
    and force is False.
    """
    dst = Path(os.path.realpath(dst))
    total = sum(_bytes(part.layout) for part in parts.values())
    _check_space(dst, total)
    done = 0

    def counting(read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        def count(name: str) -> Tensor:
            nonlocal done
            tensor = read(name)
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
            return tensor

        return count

    with _atomic_folder(dst, force) as folder:
        files = {}
        for name, text in tokenizer.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            files[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for component, (layout, read) in parts.items():
            path = folder / f"{component}.safetensors"
            sha256 = write(path, layout, counting(read))
            files[path.name] = {
                "sha256": sha256,
                "bytes": path.stat().st_size,
                "tensors": {name: [NAMES[t], list(shape)] for name, (t, shape) in layout.items()},
            }
        write_json(folder / CONFIG, config)
        write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def check_target(dst: Path, force: bool, src: Path | None = None) -> None:
    """Checks that the folder dst can be written, or replaced if force is True.

    Raises InputError if dst cannot be created, exists although force is False, holds files that do
    not belong to a weights folder, or is the same as the source src, inside it or around it.
    """
    dst = Path(os.path.realpath(dst))
    if src is not None:
        source = Path(os.path.realpath(src))
        if dst == source or source in dst.parents:
            raise InputError(f"{dst}: the output cannot be the source {source} or inside it")
        if dst in source.parents:
            raise InputError(f"{dst}: the output cannot hold the source {source}")
    if not dst.parent.is_dir():
        raise InputError(f"{dst.parent}: no such folder for the output; make it first")
    if not os.access(dst.parent, os.W_OK | os.X_OK):
        raise InputError(f"{dst.parent}: cannot be written to")
    if not dst.exists():
        return
    if not force:
        raise InputError(f"{dst}: exists already; replacing it takes force (--force)")
    if not dst.is_dir():
        raise InputError(f"{dst}: is a file, only a converted folder is replaced")
    # replacing the folder deletes it, so it must not hold files of anybody else
    known = {*COMPONENTS, *chain(*MODELS.values()), *_components(dst)}
    ours = {CONFIG, MANIFEST, "tokenizer", *(f"{name}.safetensors" for name in known)}
    if others := sorted({path.name for path in dst.iterdir()} - ours):
        raise InputError(f"{dst}: is not replaced: it also holds {', '.join(others[:5])}")


def _components(folder: Path) -> tuple[str, ...]:
    """The components that a folder's own config names; none where it has no readable config."""
    try:
        return components(read_json(folder / CONFIG))
    except InputError:
        return ()


def clip_tokenizer(vocab: dict[str, int], merges: str) -> dict[str, str]:
    """Returns the files of CLIP's tokenizer, name -> text, as `write_folder` takes them.

    vocab: token -> id. merges: the text of merges.txt.
    """
    by_id = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return dict(zip(TOKENIZER, (json.dumps(by_id, ensure_ascii=False), merges), strict=True))


def _bytes(layout: Layout) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


def _check_space(dst: Path, size: int) -> None:
    # room for configs, headers and tokenizer
    size += 8 * 2**20
    if (free := shutil.disk_usage(dst.parent).free) < size:
        raise InputError(f"{dst.parent}: {size_text(size)} are needed, {size_text(free)} are free")


@contextmanager
def _atomic_folder(dst: Path, force: bool) -> Iterator[Path]:
    """Yields a hidden folder next to dst; it is renamed to dst at the end, or deleted on error."""
    try:
        with scratch(dst.parent) as temporary:
            folder, old = temporary / "new", temporary / REPLACED
            folder.mkdir()
            try:
                yield folder
                if dst.exists():
                    if not force:
                        raise InputError(f"{dst}: somebody else has made it meanwhile")
                    dst.rename(old)
                folder.rename(dst)
            finally:
                if old.exists() and not dst.exists():
                    old.rename(dst)
    except OSError as error:
        path = error.filename or dst
        raise InputError(f"{path}: {error.strerror or error}, while writing {dst}") from error
