"""CLIP's tokenizer, with the same ids as the slow one of transformers 4.39 without ftfy.

This module normalizes text and splits it into words; the `tokenizers` library merges a word's bytes
into tokens (byte-pair encoding). The library's own CLIP tokenizer normalizes differently, and
returns other ids for CJK, emoji and control characters.
"""

import json
import logging
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import regex
import torch
from tokenizers.models import BPE
from torch import Tensor

from anyv2v.errors import InputError

# whole tokens in upper or lower case, even where they appear only after normalization
MARKERS = ("<|startoftext|>", "<|endoftext|>")
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
CJK = regex.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    "\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)
# the units of a text, before normalization, that `lost` reports whole
PIECE = regex.compile(
    rf"<\|startoftext\|>|<\|endoftext\|>|{CJK.pattern}"
    rf"|(?:(?!{CJK.pattern})[\p{{L}}\p{{M}}])+|\p{{N}}|[^\s\p{{L}}\p{{M}}\p{{N}}]+",
    regex.IGNORECASE,
)
# the original reads no further in merges.txt
MAX_MERGES = 49152 - 256 - 2
LONGEST = 400
"""The most characters of lost text that a warning shows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerConfig:
    """Section "tokenizer" of a weights folder's config.json.

    The values are special tokens as vocab.json spells them, such as "<|endoftext|>".
    """

    start: str
    """The token before every text."""
    end: str
    """The token after every text."""
    pad: str
    """The token that fills a sequence up to its fixed length."""
    unknown: str
    """The token that stands for whatever is not in the vocabulary."""


class Tokenizer:
    """CLIP's tokenizer (byte-pair encoding), which pads or cuts texts to a fixed length.

    Call the object with a text to get the token ids, int64 (1, tokens).
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        config: TokenizerConfig,
        tokens: int = 77,
    ):
        """Makes a tokenizer from a vocabulary.

        vocab: token -> id, which must have every token in `config` and `merges`. merges: pairs of
        tokens that are merged into one, the pairs to be merged first coming first. config: the
        special tokens. tokens: length of the result, with start, end and padding.
        """
        self.tokens = tokens
        self.start, self.end, self.pad, self.unknown = (vocab[token] for token in astuple(config))
        self._special = {token: vocab[token] for token in astuple(config)}
        self._markers = {marker: vocab.get(marker, self.unknown) for marker in MARKERS}
        # the longest first, so that a token does not hide a longer one that begins with it
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = regex.compile(f"({'|'.join(map(regex.escape, longest_first))})")
        self._symbols = byte_symbols()
        # texts whose lost words were asked for, so that no warning is due
        self._reported: set[str] = set()
        self._bpe = BPE(vocab, merges, unk_token=config.unknown, end_of_word_suffix="</w>")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        config: TokenizerConfig,
        tokens: int = 77,
        vocab_size: int | None = None,
    ) -> "Tokenizer":
        """Makes a tokenizer from vocab.json and merges.txt in `folder`.

        config: the special tokens. tokens: length of the result, with start, end and padding.
        vocab_size: number of token ids that the text encoder knows; None does not check the
        vocabulary's size. Raises InputError, which names the file, if a file is missing or broken,
        or does not match the other arguments.
        """
        vocab = read_vocab(Path(folder) / "vocab.json", astuple(config), vocab_size)
        return cls(vocab, read_merges(Path(folder) / "merges.txt", vocab), config, tokens)

    def __call__(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, tokens), padded or cut to that length.

        If the text is too long, the sequence still ends with the end token, and the words that were
        cut are logged as a warning: once per text, and not if `lost` was called with the text.
        """
        ids = self.ids(text)
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], self.end]
            if text not in self._reported:
                log.warning("anyv2v: %s", cut_text("a text", self.tokens, self.lost(text)))
        return torch.tensor([ids + [self.pad] * (self.tokens - len(ids))])

    def ids(self, text: str) -> list[int]:
        """Returns the token ids of the whole text, with the start and the end token, not padded."""
        return [self.start, *self._ids(text), self.end]

    def lost(self, text: str) -> str:
        """Returns the part of a text that is cut, from the first lost word on; "" if the text fits.

        The caller is expected to report the loss: tokenizing this text later logs no warning.
        """
        if len(self.ids(text)) <= self.tokens:
            return ""
        self._reported.add(text)
        ends = [0, *(piece.end() for piece in PIECE.finditer(text))]
        room = self.tokens - 2
        fitting = bisect_right(ends, room, key=lambda end: sum(1 for _ in self._ids(text[:end])))
        return text[ends[fitting - 1] :].strip()

    def _ids(self, text: str) -> Iterator[int]:
        for piece in self._cut.split(text):
            if piece in self._special:
                yield self._special[piece]
                continue
            for word in WORD.findall(normalize(piece)):
                if word in self._markers:
                    yield self._markers[word]
                    continue
                symbols = "".join(self._symbols[byte] for byte in word.encode())
                yield from (token.id for token in self._bpe.tokenize(symbols))


def cut_text(what: str, tokens: int, lost: str) -> str:
    """Returns a one-line message that a text was cut after `tokens` tokens.

    what: the text as the message calls it, such as "the prompt". lost: the part of the text that
    was cut, of which the message shows at most `LONGEST` characters.
    """
    shown = " ".join(lost.split())
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."
    return f'{what} is cut after {tokens} tokens; not read: "{shown}"'


def normalize(text: str) -> str:
    """Returns the text in lower case and NFC, as CLIP's tokenizer reads it.

    Characters of Unicode category C (such as control characters) and U+FFFD are removed, but tabs
    and line breaks separate words. Words and CJK ideographs are separated by single spaces.
    """
    text = CJK.sub(r" \g<0> ", "".join(map(_clean, text)))
    return " ".join(word.lower() for word in unicodedata.normalize("NFC", text).split())


def _clean(character: str) -> str:
    # these control characters separate words
    if character in "\t\n\r":
        return character
    # control, format, private, unassigned, and lone surrogates, which have no bytes
    dropped = unicodedata.category(character).startswith("C") or character == "\ufffd"
    return "" if dropped else character


def byte_symbols() -> list[str]:
    """Returns the printable characters that stand for bytes 0 to 255 in vocab.json (GPT-2's)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def read_vocab(path: Path, special: tuple[str, ...], size: int | None) -> dict[str, int]:
    """Reads a vocabulary from a file like CLIP's vocab.json and returns token -> id.

    special: tokens that the vocabulary must have, besides the characters of `byte_symbols` with and
    without the suffix "</w>". size: the greatest number of tokens; None allows any number. Raises
    InputError, which names the file, if a token is missing, or the ids of n tokens are not 0 to
    n - 1, or the file is not such a vocabulary.
    """
    text = _read(path)
    try:
        vocab = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        raise InputError(f"{path}: not a vocabulary: want one object of tokens and whole numbers")
    for token in vocab:
        # JSON can spell half of a surrogate pair
        if any(unicodedata.category(character) == "Cs" for character in token):
            raise InputError(f"{path}: the token {token!r} is not text")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise InputError(f"{path}: the ids of its {len(vocab)} tokens are not 0..{len(vocab) - 1}")
    if size is not None and len(vocab) > size:
        raise InputError(f"{path}: has {len(vocab)} tokens, but the text encoder only {size}")
    symbols = byte_symbols()
    for token in (*special, *symbols, *(symbol + "</w>" for symbol in symbols)):
        if token not in vocab:
            raise InputError(f"{path}: lacks the token {token!r}")
    return vocab


def read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Reads the pairs of tokens to merge, in the order of merging, from a file like merges.txt.

    The header line and all lines beyond CLIP's number of merges are skipped. Raises InputError,
    which names the file, if a line is not a pair, or a token or the merged pair is not in `vocab`.
    """
    header, *lines = _read(path).strip().split("\n")
    if not header:
        raise InputError(f"{path}: is empty; want a header line and one merge a line")
    merges = []
    for number, line in enumerate(lines[:MAX_MERGES], start=2):
        tokens = line.split()
        if len(tokens) != 2:
            raise InputError(f"{path}: line {number} is {line[:80]!r}; want two tokens and a space")
        for token in (*tokens, "".join(tokens)):
            if token not in vocab:
                raise InputError(f"{path}: line {number}: {token[:80]!r} is not in vocab.json")
        merges.append((tokens[0], tokens[1]))
    return merges


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
