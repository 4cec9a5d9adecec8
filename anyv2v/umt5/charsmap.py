"""The check of a precompiled character map, with which SentencePiece normalizes a text.

A map (https://github.com/google/sentencepiece, src/normalizer.cc) has four bytes with the length of
a trie in bytes, the trie, and the replacements in UTF-8, each ended by a null byte. The trie is a
double array (Darts-clone) of little-endian 32-bit units, in blocks of 256. `tokenizers` follows it
without looking, and a damaged map would crash it in the middle of some text; here all of it is
followed once.
"""

import base64

import numpy as np

from anyv2v.errors import InputError

LONGEST_TRIE = 2**20
"""The most bytes of a trie; that of the form NFKC has a fifth of them."""
LONGEST_KEY = 64
"""The most bytes of a text that the trie may map at once; in the form NFKC it is 12."""
LONGEST_REPLACEMENT = 256
"""The most bytes that a character may become; in the form NFKC it is 33."""
LABEL, LEAF, VALUE = 0x800000FF, 0x100, 0x7FFFFFFF


def check_charsmap(text: str) -> None:
    """Raises InputError unless `text` is a precompiled character map, in base64."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"the character map is not base64: {error}") from None
    size = int.from_bytes(data[:4], "little")
    if not 0 < size <= min(LONGEST_TRIE, len(data) - 4) or size % 1024:
        raise InputError(f"the character map of {len(data)} bytes has no trie of {size} bytes")
    values = _values(np.frombuffer(data[4 : 4 + size], "<u4").astype(np.int64))
    _check_replacements(data[4 + size :], values)


def _values(units: np.ndarray) -> np.ndarray:
    """The values of all leaves of a trie; InputError if a way through it leaves the array."""
    letters = units & LABEL
    index = np.flatnonzero((letters > 0) & (letters < 256))
    # a node is where the next byte of a text, without carry, is added to its parent's base
    parents = index ^ letters[index]
    nodes, values = np.zeros(1, np.int64), []
    for _ in range(LONGEST_KEY + 1):
        bases = nodes ^ ((units[nodes] >> 10) << ((units[nodes] & 0x200) >> 6))
        if (bases | 255).max() >= len(units):
            raise InputError("the character map's trie leads out of itself")
        values.append(units[bases[(units[nodes] & LEAF) > 0]] & VALUE)
        is_base = np.zeros(len(units), bool)
        is_base[bases] = True
        nodes = index[is_base[parents]]
        if not len(nodes):
            return np.concatenate(values)
    raise InputError(f"the character map has keys of more than {LONGEST_KEY} bytes")


def _check_replacements(blob: bytes, values: np.ndarray) -> None:
    """Raises InputError unless every value is the start of a short text in the blob."""
    try:
        blob.decode("utf-8")
    except ValueError:
        raise InputError("the character map's replacements are not UTF-8") from None
    letters = np.frombuffer(blob + b"\0", np.uint8)
    if len(values) and values.max() >= len(letters):
        raise InputError("the character map's trie leads beyond its replacements")
    if ((letters[values] & 0xC0) == 0x80).any():
        raise InputError("the character map's trie leads into the middle of a character")
    nulls = np.flatnonzero(letters == 0)
    if (nulls[np.searchsorted(nulls, values)] - values > LONGEST_REPLACEMENT).any():
        raise InputError(f"a replacement in the character map is over {LONGEST_REPLACEMENT} bytes")
