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
NORMALIZERS = ("Precompiled", "Replace", "Strip", "Nmt", "NFC", "NFKC")
PRE_TOKENIZERS = ("WhitespaceSplit", "Metaspace")
POST_PROCESSORS = ("TemplateProcessing",)
# what T5's tokenizers put in place of spaces
REPLACED = ({"Regex": " {2,}"}, {"String": " "})
REPLACEMENTS = (" ", "\u2581")

log = logging.getLogger(__name__)


class Tokenizer:
    """UMT5's tokenizer, which cleans texts as Wan does, and cuts them to a greatest length.

    Call the object with a text to get the token ids, int64 (1, n).
    """

    def __init__(self, model: tokenizers.Tokenizer, tokens: int = 512):
        """model: a tokenizer that appends one end token. tokens: greatest length of the result."""
        self.tokens = tokens
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
        model = read_tokenizer(path)
        if vocab_size is not None:
            largest = max(model.get_vocab().values())
            if largest >= vocab_size:
                raise InputError(
                    f"{path}: has the id {largest}, the text encoder only {vocab_size}"
                )
        return cls(model, tokens)

    def __call__(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, n), cut to the greatest length if need be.

        They end with the end token and are not padded. The words that were cut are logged as a
        warning: once per text, and not if `lost` was called with the text.
        """
        ids = self.ids(text)
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], ids[-1]]
            if text not in self._reported:
                log.warning("anyv2v: %s", cut_text("a text", self.tokens, self.lost(text)))
        return torch.tensor([ids])

    def ids(self, text: str) -> list[int]:
        """Returns the token ids of the whole text, with the end token, not padded."""
        return self._encode(clean(text)).ids

    def lost(self, text: str) -> str:
        """Returns the part of a text that is cut, from the first lost word on; "" if the text fits.

        It is a part of the cleaned text, see `clean`. The caller is expected to report the loss:
        tokenizing this text later logs no warning.
        """
        cleaned = clean(text)
        encoding = self._encode(cleaned)
        if len(encoding.ids) <= self.tokens:
            return ""
        self._reported.add(text)
        first_lost = encoding.offsets[self.tokens - 1][0]
        ends = [0, *(piece.end() for piece in PIECE.finditer(cleaned))]
        return cleaned[ends[bisect_right(ends, first_lost) - 1] :].strip()

    def _encode(self, cleaned: str) -> tokenizers.Encoding:
        return self._model.encode(cleaned)


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json of the form that T5's tokenizers have.

    Raises InputError, which names the file, if it cannot be read, or has another form, or does not
    append exactly one end token to every text.
    """
    text = _read(path)
    try:
        settings = json.loads(text)
        # a decoder is never asked for; texts are cut elsewhere
        wanted = {name: settings.get(name) for name in ("version", "added_tokens", "model")}
        for name, known in (
            ("normalizer", NORMALIZERS),
            ("pre_tokenizer", PRE_TOKENIZERS),
            ("post_processor", POST_PROCESSORS),
        ):
            wanted[name] = settings.get(name)
            for part in _parts(wanted[name]):
                _check_part(name, part, known)
        if wanted["model"]["type"] != "Unigram":
            raise InputError("its model is not a Unigram")
        if wanted["model"]["unk_id"] is None:
            raise InputError("its model has no unknown token")
        model = tokenizers.Tokenizer.from_str(json.dumps(wanted))
        _check_end(model)
    except BaseException as error:
        # what `tokenizers` raises where its own code fails is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a tokenizer of T5's form: {reason}") from None
    return model


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
    """The steps of a normalizer, pre-tokenizer or post-processor."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for each in next(part[name] for name in ("normalizers", "pretokenizers") if name in part):
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


def _check_end(model: tokenizers.Tokenizer) -> None:
    """Raises InputError unless a tokenizer appends exactly one end token, which it knows."""
    end = model.encode("").ids
    if len(end) != 1 or model.id_to_token(end[0]) is None:
        raise InputError(f"it makes {len(end)} tokens of an empty text, not the end token")
    if model.encode("a").ids != [*model.encode("a", add_special_tokens=False).ids, *end]:
        raise InputError("it does not append the end token alone")
