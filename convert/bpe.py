"""CLIP's vocabulary and merges, built from the list of merges that comes with the package."""

import gzip
from pathlib import Path

from anyv2v.clip.tokenizer import byte_symbols

MERGES = Path(__file__).parent / "merges" / "bpe_simple_vocab_16e6.txt.gz"
"""The list of merges that OpenAI published with CLIP, compressed."""
# 49,408 tokens less 256 byte symbols, the same 256 at the end of a word, and 2 special tokens
MERGE_COUNT = 49408 - 2 * 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's tokens for the start and the end of a text."""


def tokenizer() -> tuple[dict[str, int], str]:
    """Returns CLIP's vocabulary (token -> id) and the text of its merges.txt.

    Ids count from 0: the 256 byte symbols, the same symbols at the end of a word, the results of
    the merges, and the two special tokens (openai/CLIP, simple_tokenizer.py).
    """
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        # the first line is a header, and the file lists more merges than CLIP was trained with
        lines = file.read().split("\n")[1 : MERGE_COUNT + 1]
    # in CLIP's vocabulary the bytes that are printable themselves come first
    symbols = sorted(byte_symbols())
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *(line.replace(" ", "") for line in lines),
        *SPECIAL,
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    return vocab, "\n".join(["#version: 0.2", *lines]) + "\n"
