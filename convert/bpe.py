"""CLIP's vocabulary and merges, made from the list of merges that comes with the package."""

import gzip
from pathlib import Path

MERGES = Path(__file__).parent / "merges" / "bpe_simple_vocab_16e6.txt.gz"
# 49,408 tokens less 256 byte symbols, the same 256 at the end of a word, and 2 special tokens
MERGE_COUNT = 49408 - 2 * 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def tokenizer() -> tuple[dict[str, int], str]:
    """Return the vocabulary (token -> id) and the text of merges.txt.

    The ids count the byte symbols, the same symbols at the end of a word, the results of the
    merges, and the special tokens (openai/CLIP, simple_tokenizer.py).
    """
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        # the first line is a header, and the file lists more merges than CLIP was trained with
        lines = file.read().split("\n")[1 : MERGE_COUNT + 1]
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
    """Return a printable character for each of the 256 bytes.

    The bytes that are printable themselves come first, in the order of CLIP's vocabulary.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
