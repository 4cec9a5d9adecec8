"""Files of prompts' embeddings, so that a large text encoder need not be loaded again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path, check_output

FORMAT = "anyv2v embeddings 1"
"""The name of the file format, with its version."""
SUFFIX = ".safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# what bad JSON, or JSON of another form, raises while it is read
UNREADABLE = (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError)
UNREADABLE += (RecursionError,)


def save_embeddings(
    path: str | os.PathLike, embeddings: Mapping[str, Tensor], weights: str, force: bool = False
) -> None:
    """Writes the embeddings of prompts to one safetensors file, whole or not at all.

    path: its name, which ends with ".safetensors". embeddings: prompt -> embedding (1, tokens,
    width), all of one shape and dtype. weights: the fingerprint of the text encoder's weights.
    force: replace a file that exists. Raises InputError if the file cannot be written there, or
    the embeddings are not such.
    """
    path, force = checks.path("path", path), checks.flag("force", force)
    checks.texts(weights=weights, **{f"prompt {i}": text for i, text in enumerate(embeddings)})
    check_output(path, force, (SUFFIX,))
    _check(list(embeddings.values()))
    facts = {"format": FORMAT, "weights": weights, "prompts": list(embeddings)}
    # copies, because safetensors refuses two names for one tensor
    tensors = {str(i): x.cpu().clone() for i, x in enumerate(embeddings.values())}
    with atomic_path(path) as temporary:
        # one key: safetensors writes several in no fixed order
        save_file(tensors, temporary, metadata={"embeddings": json.dumps(facts)})


def load_embeddings(path: str | os.PathLike, weights: str) -> dict[str, Tensor]:
    """Reads a file of `save_embeddings`: prompt -> embedding (1, tokens, width), on the CPU.

    weights: the fingerprint of the text encoder's weights, which must be those that the embeddings
    were made with. Raises InputError, which names the file, for a file of other weights, any other
    file, and values that are not finite.
    """
    path = checks.path("path", path)
    try:
        return _read(path, weights)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as embeddings of prompts: {error}") from error


def _read(path: Path, weights: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("embeddings", "{}"))
        if facts.get("format") != FORMAT:
            raise InputError("is not a file of embeddings")
        prompts = facts["prompts"]
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise InputError("its prompts are not texts")
        if len(set(prompts)) != len(prompts):
            raise InputError("it has a prompt twice")
        if set(file.keys()) != {str(i) for i in range(len(prompts))}:
            raise InputError("it has not one tensor for each prompt")
        if facts["weights"] != weights:
            raise InputError(f"was made with other weights, {checks.shown(facts['weights'])}")
        embeddings = {text: file.get_tensor(str(i)) for i, text in enumerate(prompts)}
    _check(list(embeddings.values()))
    return embeddings


def _check(embeddings: list[Tensor]) -> None:
    """Raises InputError unless these are finite embeddings of one shape and dtype."""
    kinds = {(x.dtype, tuple(x.shape)) for x in embeddings}
    if len(kinds) > 1:
        raise InputError(f"embeddings of {len(kinds)} shapes or dtypes cannot be in one file")
    for dtype, shape in kinds:
        if dtype not in DTYPES or len(shape) != 3 or shape[0] != 1 or 0 in shape:
            raise InputError(f"embeddings are {dtype} {shape}, want floats of (1, tokens, width)")
    if not all(x.isfinite().all() for x in embeddings):
        raise InputError("embeddings are not finite")
