"""Writing a folder of weights in our format: whole, or not at all."""

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
    """The weights of one component: key -> (dtype, shape), and what gives the tensor of a key."""

    layout: Layout
    read: Callable[[str], Tensor]


def write_folder(
    dst: Path,
    config: dict,
    vocab: dict[str, int],
    merges: str,
    parts: Mapping[str, Part],
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write config.json, maybe a tokenizer, one safetensors file per component, and the manifest.

    Holds one tensor at a time. parts: those of `manifest.components(config)`. progress: called with
    the bytes of weights that are done and that there will be. dst: see check_target.
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

    with _whole_or_nothing(dst, force) as folder:
        files = {}
        for name, text in _tokenizer(vocab, merges).items():
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
    """InputError where a folder cannot be written: dst is there, cannot be made, or holds src."""
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
    # replacing means deleting, so nothing of anybody else's may be in there
    known = {*COMPONENTS, *chain(*MODELS.values()), *_components(dst)}
    ours = {CONFIG, MANIFEST, "tokenizer", *(f"{name}.safetensors" for name in known)}
    if others := sorted({path.name for path in dst.iterdir()} - ours):
        raise InputError(f"{dst}: is not replaced: it also holds {', '.join(others[:5])}")


def _components(folder: Path) -> tuple[str, ...]:
    """Those that a folder's own config names; none where there is no config."""
    try:
        return components(read_json(folder / CONFIG))
    except InputError:
        return ()


def _tokenizer(vocab: dict[str, int], merges: str) -> dict[str, str]:
    """Name -> text of its files; none for a model without a vocabulary, which reads no texts."""
    if not vocab:
        return {}
    by_id = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return dict(zip(TOKENIZER, (json.dumps(by_id, ensure_ascii=False), merges), strict=True))


def _bytes(layout: Layout) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


def _check_space(dst: Path, size: int) -> None:
    # configs, headers and tokenizer
    size += 8 * 2**20
    if (free := shutil.disk_usage(dst.parent).free) < size:
        raise InputError(
            f"{dst.parent}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        )


@contextmanager
def _whole_or_nothing(dst: Path, force: bool) -> Iterator[Path]:
    """A hidden folder beside dst that gets its name at the end, or goes, whatever happens."""
    try:
        with scratch(dst.parent) as room:
            folder, old = room / "new", room / REPLACED
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
        at = error.filename or dst
        raise InputError(f"{at}: {error.strerror or error}, while writing {dst}") from error
