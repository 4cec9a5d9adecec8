"""Text to token ids, as the original's tokenizer does it (transformers 4.39, slow, without ftfy).

How text is normalized and cut into words is here; merging a word's bytes into tokens (byte-pair
encoding) is left to the `tokenizers` library. The library's own CLIP tokenizer normalizes
differently: it gives other ids for CJK, emoji and control characters.
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
"""Characters of lost text that a warning shows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerConfig:
    """Section "tokenizer" of config.json: the special tokens as the vocabulary spells them."""

    start: str
    end: str
    pad: str
    unknown: str


class Tokenizer:
    """CLIP's byte-pair encoding with padding to a fixed length."""

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        config: TokenizerConfig,
        tokens: int = 77,
    ):
        """Makes the tokenizer of a vocabulary.

        vocab: token -> id, for every token that `config` and `merges` name. merges: pairs of tokens
        in the order of merging. tokens: length of the ids, padding included.
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
        """Reads vocab.json and merges.txt in `folder`; `vocab_size` is the text encoder's.

        Raises InputError, with the file's name, for a file that is missing, broken or does not fit.
        """
        vocab = read_vocab(Path(folder) / "vocab.json", astuple(config), vocab_size)
        return cls(vocab, read_merges(Path(folder) / "merges.txt", vocab), config, tokens)

    def __call__(self, text: str) -> Tensor:
        """Returns the ids of a text, int64 (1, tokens), cut or padded to that length.

        The end token is kept when ids before it are cut. The words that are lost are logged as a
        warning, once per text, unless `lost` was called with the text before.
        """
        ids = self.ids(text)
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], self.end]
            if text not in self._reported:
                log.warning("anyv2v: %s", cut_text("a text", self.tokens, self.lost(text)))
        return torch.tensor([ids + [self.pad] * (self.tokens - len(ids))])

    def ids(self, text: str) -> list[int]:
        """Returns all ids of the text, with the start and the end token."""
        return [self.start, *self._ids(text), self.end]

    def lost(self, text: str) -> str:
        """Returns the end of a text from the first word that is cut; "" if the text fits.

        The caller is taken to report it: encoding this text later logs no warning.
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
    """Returns the one-line message that a text, called `what`, was cut, and what was `lost`."""
    shown = " ".join(lost.split())
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."
    return f'{what} is cut after {tokens} tokens; not read: "{shown}"'


def normalize(text: str) -> str:
    """Converts to lower case and NFC, with one space between words and around CJK ideographs."""
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
    """Returns the printable character that stands for each of the 256 bytes (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def read_vocab(path: Path, special: tuple[str, ...], size: int | None) -> dict[str, int]:
    """Reads a vocabulary, token -> id.

    Raises InputError, with the file's name, unless the ids are 0..n-1 with n at most `size`, and
    all `special` tokens and the symbols of all bytes are among the tokens.
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
    """Reads the pairs of tokens in the order of merging, without the header line.

    Raises InputError, with the file's name, for a token that is not in `vocab`.
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
