"""CLIP's tokenizer from the merges that come with the package."""

import gzip
from pathlib import Path

MERGES = Path(__file__).parent / "merges" / "bpe_simple_vocab_16e6.txt.gz"
# 49,408 tokens less 256 symbols, the same as last of a word, and two special tokens
COUNT = 49408 - 2 * 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def tokenizer() -> tuple[dict[str, int], str]:
    """The vocabulary, token -> id, and the text of merges.txt.

    Symbols of bytes come first, then the same as last of a word, then what each merge makes, then
    the special tokens (openai/CLIP, simple_tokenizer.py).
    """
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        # the first line is a header, and there are more merges than clip was trained with
        lines = file.read().split("\n")[1 : COUNT + 1]
    symbols = byte_symbols()
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *(line.replace(" ", "") for line in lines),
        *SPECIAL,
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    return vocab, "\n".join(["#version: 0.2", *lines]) + "\n"


def byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, those that stand for themselves first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
