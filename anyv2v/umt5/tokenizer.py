"""UMT5's tokenizer, a unigram model in a file tokenizer.json, which the `tokenizers` library runs.

The file holds a vocabulary with scores, and how a text is normalized, split and ended. Of the many
forms that such a file may have, only those of T5's tokenizers are read: others, such as regular
expressions of a stranger's, could take forever or give ids that the text encoder never saw.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from anyv2v.clip.tokenizer import PIECE, cut_text
from anyv2v.errors import InputError
from anyv2v.umt5.charsmap import check_charsmap
from anyv2v.umt5.cleaning import clean

FILE = "tokenizer.json"
LARGEST_FILE = 2**25
"""The most bytes of a tokenizer.json; UMT5's has half of them."""
LARGEST_VOCABULARY = 2**22
"""The most bytes of all pieces together, of which each takes 400 in memory; UMT5's have half."""
LONGEST_PIECE = 1000
"""The most bytes of a piece; one of millions would overflow the stack of `tokenizers`."""
NORMALIZERS = ("Precompiled", "Replace", "Strip", "Nmt", "NFC", "NFKC")
PRE_TOKENIZERS = ("WhitespaceSplit", "Metaspace")
# what T5's tokenizers put in place of spaces
REPLACED = ({"Regex": " {2,}"}, {"String": " "})
REPLACEMENTS = (" ", "\u2581")

log = logging.getLogger(__name__)


class Tokenizer:
    """UMT5's tokenizer, which cleans texts as Wan does, and cuts them to a greatest length.

    Call the object with a text to get the token ids, int64 (1, n).
    """

    def __init__(self, model: tokenizers.Tokenizer, end: int, tokens: int = 512):
        """model: what makes tokens of a cleaned text, without end token. end: id of that token.

        tokens: greatest length of the result, with the end token.
        """
        self.tokens, self.end = tokens, end
        self._model = model
        # texts whose lost words were asked for, so that no warning is due
        self._reported: set[str] = set()

    @classmethod
    def load(
        cls, folder: str | Path, tokens: int = 512, vocab_size: int | None = None
    ) -> Tokenizer:
        """Makes a tokenizer from tokenizer.json in `folder`.

        tokens: greatest length of the result, with the end token. vocab_size: number of token ids
        that the text encoder knows; None does not check the ids. Raises InputError, which names the
        file, if the file is missing or broken, or is not such a tokenizer.
        """
        path = Path(folder) / FILE
        model, end = read_tokenizer(path)
        largest = max(model.get_vocab().values())
        if vocab_size is not None and largest >= vocab_size:
            raise InputError(f"{path}: has the id {largest}, the text encoder only {vocab_size}")
        return cls(model, end, tokens)

    def __call__(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, n), cut to the greatest length if need be.

        They end with the end token and are not padded. The words that were cut are logged as a
        warning: once per text, and not if `lost` was called with the text.
        """
        ids = self.ids(text)
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], self.end]
            if text not in self._reported:
                log.warning("anyv2v: %s", cut_text("a text", self.tokens, self.lost(text)))
        return torch.tensor([ids])

    def ids(self, text: str) -> list[int]:
        """Returns the token ids of the whole text, with the end token, not padded."""
        return [*self._model.encode(clean(text)).ids, self.end]

    def lost(self, text: str) -> str:
        """Returns the part of a text that is cut, from the first lost word on; "" if the text fits.

        It is a part of the cleaned text, see `clean`. The caller is expected to report the loss:
        tokenizing this text later logs no warning.
        """
        cleaned = clean(text)
        offsets = self._model.encode(cleaned).offsets
        if len(offsets) < self.tokens:
            return ""
        self._reported.add(text)
        first_lost = offsets[self.tokens - 1][0]
        ends = [0, *(piece.end() for piece in PIECE.finditer(cleaned))]
        return cleaned[ends[bisect_right(ends, first_lost) - 1] :].strip()


def read_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, int]:
    """Reads a tokenizer.json of the form that T5's tokenizers have.

    Returns a tokenizer that appends nothing, and the id of the end token that it should append.
    Raises InputError, which names the file, if it cannot be read or has another form.
    """
    text = _read(path)
    try:
        settings = json.loads(text)
        # no more than is needed: padding, cutting and decoding are not
        wanted = {name: settings.get(name) for name in ("version", "added_tokens", "model")}
        for name, known in (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS)):
            wanted[name] = settings.get(name)
            for part in _parts(wanted[name]):
                _check_part(name, part, known)
        _check_pieces(wanted["model"], wanted["added_tokens"] or [])
        model = tokenizers.Tokenizer.from_str(json.dumps(wanted))
        end = _end(settings.get("post_processor"))
        if model.id_to_token(end) is None:
            raise InputError(f"its vocabulary has no end token {end}")
    except BaseException as error:
        # what `tokenizers` raises where its own code fails is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a tokenizer of T5's form: {reason}") from None
    return model, end


def _read(path: Path) -> str:
    if not path.exists() and path.with_name("spiece.model").exists():
        raise InputError(
            f"{path}: no such file; spiece.model beside it is not read: put {FILE} of the same "
            "published folder there, which holds the same model"
        )
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"{path}: is larger than {LARGEST_FILE} bytes, UMT5's has 16.8 million"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None


def _parts(part: dict | None) -> Iterator[dict]:
    """The steps of a normalizer or pre-tokenizer."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for each in part.get("normalizers") or part["pretokenizers"]:
            yield from _parts(each)
    else:
        yield part


def _check_part(name: str, part: dict, known: tuple[str, ...]) -> None:
    if part["type"] not in known:
        raise InputError(f"its {name} is {part['type']}, known are {', '.join(known)}")
    if part["type"] == "Precompiled":
        check_charsmap(part["precompiled_charsmap"])
    if part["type"] == "Replace":
        if part["pattern"] not in REPLACED or part["content"] not in REPLACEMENTS:
            raise InputError(f"its {name} replaces {part['pattern']}, known is the space alone")


def _check_pieces(model: dict, added: list[dict]) -> None:
    """Raises InputError unless this is a unigram model with an unknown token and usual pieces."""
    if model["type"] != "Unigram":
        raise InputError("its model is not a Unigram")
    if model["unk_id"] is None:
        raise InputError("its model has no unknown token")
    pieces = [piece for piece, _ in model["vocab"]] + [token["content"] for token in added]
    sizes = [len(piece.encode()) for piece in pieces]
    if sum(sizes) > LARGEST_VOCABULARY or max(sizes, default=0) > LONGEST_PIECE:
        raise InputError(
            f"its pieces have more than {LARGEST_VOCABULARY} bytes, or one of them more than "
            f"{LONGEST_PIECE}"
        )


def _end(post_processor: dict | None) -> int:
    """The id of the token that a post-processor appends; InputError if it does anything else."""
    if post_processor is None or post_processor["type"] != "TemplateProcessing":
        raise InputError("its post_processor is not a TemplateProcessing")
    text, *others = post_processor["single"]
    if text["Sequence"]["id"] != "A" or len(others) != 1:
        raise InputError("its post_processor does not append one token to a text")
    (end,) = post_processor["special_tokens"][others[0]["SpecialToken"]["id"]]["ids"]
    return end
