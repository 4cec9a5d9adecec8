"""What Wan does to a prompt before its tokenizer reads it."""

import html
import re
import unicodedata

LIGATURES = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ"
CONTROLS = (
    *(*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F),
    *(*range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)),
)
# control characters that are printable ones of Windows-1252, where that has any
WINDOWS = {c: bytes([c]).decode("cp1252", "ignore") or chr(c) for c in range(0x80, 0xA0)}
# full and half width to usual width
COMPATIBLE = (0x3000, *range(0xFF01, 0xFFF0), *map(ord, LIGATURES))
FIRST = {**WINDOWS, **{c: unicodedata.normalize("NFKC", chr(c)) for c in COMPATIBLE}}
FIRST[ord("ﬅ")] = "ſt"
# what is replaced in the results of the first pass
SECOND = {
    **dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
TERMINAL = re.compile("\033\\[[\\d;]*[a-zA-Z]")


def clean(text: str) -> str:
    """Returns a text as Wan's tokenizer reads it, on one line.

    Wan calls `ftfy.fix_text`, resolves character references of HTML twice, and turns each run of
    whitespace into one space (wan/modules/tokenizers.py). Of `fix_text` this function does what is
    a rule: straight quotes, full and half width, ligatures, control characters, surrogates, NFC.
    It does not repair text that was decoded with the wrong encoding: that is for files of unknown
    origin, and a prompt shall be read as it is written.
    """
    # ftfy takes a text with "<" for HTML, whose references it must leave alone
    if "<" not in text:
        text = html.unescape(text)
    text = text.translate(FIRST).translate(SECOND)
    # joins halves of surrogate pairs; those without another half become U+FFFD
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = TERMINAL.sub("", text).translate(dict.fromkeys(CONTROLS))
    text = unicodedata.normalize("NFC", text)
    return " ".join(html.unescape(html.unescape(text)).split())
