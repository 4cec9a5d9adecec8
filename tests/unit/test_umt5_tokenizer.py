"""UMT5's tokenizer: what it makes of texts, and of files that are broken or of another kind."""

import base64
import json
import lzma
import random
import struct

import pytest
import tokenizers
import torch

from anyv2v.errors import InputError
from anyv2v.umt5.charsmap import check_charsmap
from anyv2v.umt5.cleaning import clean
from anyv2v.umt5.tokenizer import Tokenizer
from tests.oracles import umt5_tokenizer

END = umt5_tokenizer.END
CHARSMAP = lzma.decompress(umt5_tokenizer.CHARSMAP.read_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    umt5_tokenizer.write(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture
def short(tokenizer):
    """Makes the same tokenizer with another greatest length."""
    return lambda tokens: Tokenizer(tokenizer._model, END, tokens)


def best(word, vocab):
    """The pieces of a word with the greatest sum of scores, by trying all pieces at all places."""
    sums = [0.0] + [-float("inf")] * len(word)
    pieces = [[] for _ in sums]
    for end in range(1, len(word) + 1):
        for begin in range(end):
            score = sums[begin] + vocab.get(word[begin:end], -float("inf"))
            if score > sums[end]:
                sums[end], pieces[end] = score, [*pieces[begin], word[begin:end]]
    return pieces[-1]


def test_ids_are_the_best_sum_of_scores(tokenizer):
    rows = umt5_tokenizer.settings()["model"]["vocab"]
    vocab = {piece: score for piece, score in rows if not piece.startswith("<")}
    ids = {piece: i for i, (piece, _) in enumerate(rows)}
    draw = random.Random(0)
    letters = sorted({c for piece in vocab for c in piece if c.isascii() and c.isalnum()})
    for _ in range(300):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(3)]
        pieces = [piece for word in words for piece in best("\u2581" + word, vocab)]
        assert tokenizer.ids(" ".join(words)) == [*(ids[piece] for piece in pieces), END]


def test_the_result_is_not_padded_and_at_most_so_long(short, tokenizer):
    text = umt5_tokenizer.CORPUS[0]
    whole = tokenizer(text)
    assert whole.shape == (1, len(tokenizer.ids(text))) and whole.dtype == torch.int64
    assert tokenizer("").tolist() == [[END]]
    cut = short(9)(text)
    assert cut.tolist() == [[*tokenizer.ids(text)[:8], END]]
    exact = short(whole.shape[1])
    assert exact(text).equal(whole) and exact.lost(text) == ""


def test_padding_and_cutting_of_the_file_are_not_taken_over(tokenizer, tmp_path):
    settings = umt5_tokenizer.settings()
    settings["truncation"] = {
        **{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    }
    settings["padding"] = {
        **{"strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a", "a man is walking"):
        assert Tokenizer.load(tmp_path).ids(text) == tokenizer.ids(text)


# computed by ftfy 6.3.1 and html.unescape, twice
CLEANED = {
    "": "",
    "  a\tman \r\n walks\u3000on\u00a0": "a man walks on",
    "\u201ccurly\u201d \u2018quotes\u2019, don\u2019t": "\"curly\" 'quotes', don't",
    "色调艳丽，过曝，静态。（字幕）": "色调艳丽,过曝,静态。(字幕)",
    "ＦＵＬＬ ｶﾀｶﾅ ｶﾞ": "FULL カタカナ ガ",
    "ﬁﬂ ﬃ ĳ ŉ ﬅ": "fifl ffi ij 'n ſt",
    "&amp;amp;lt;b&amp;amp;gt; &#x1F680;": "<b> 🚀",
    "<i>&amp;amp; &ldquo;x&rdquo;</i>": "<i>& \u201cx\u201d</i>",
    "&ldquo;x&rdquo; AT&T &copy": '"x" AT&T ©',
    "\x1b[1;31mred\x1b[0m \x00\x7f\ufeff\ufffc!": "red !",
    "wait\x85 \x93quoted\x94": 'wait… "quoted"',
    "e\u0301 \u1100\u1161\u11a8": "é 각",
    "\ud83d\ude80 \ud83d \ude80": "🚀 \ufffd \ufffd",
    "👩\u200d🚀 \u200b x": "👩\u200d🚀 \u200b x",
}


@pytest.mark.parametrize("text", CLEANED, ids=ascii)
def test_texts_are_cleaned(text):
    assert clean(text) == CLEANED[text]


def fixed(text):
    """What Wan does to a prompt, with ftfy."""
    ftfy, html, re = (pytest.importorskip(name) for name in ("ftfy", "html", "re"))
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


def test_cleaning_is_that_of_ftfy_for_every_character():
    pytest.importorskip("ftfy", reason="ftfy is not installed")
    # all of the blocks where it changes what NFC leaves, and some of the others
    changed = (*range(0x300), *range(0x2000, 0x2070), 0x3000, *range(0xFE00, 0x10000))
    for code in (*changed, *range(0x300, 0x110000, 2999)):
        assert clean(f"a{chr(code)}b") == fixed(f"a{chr(code)}b"), hex(code)


def test_cleaning_is_that_of_ftfy_for_texts():
    pytest.importorskip("ftfy", reason="ftfy is not installed")
    for text in (*CLEANED, *umt5_tokenizer.TEXTS):
        assert clean(text) == fixed(text), ascii(text)


def test_a_prompt_is_not_taken_for_wrongly_decoded():
    # ftfy makes "caf锓" of it
    assert clean("the \u201ccafé\u201d\u201c") == 'the "café""'


@pytest.mark.parametrize(
    "text, lost",
    [
        ("a b c d", ""),
        ("a b c d e f g", "e f g"),
        ("  a b c\td   e\nf ", "e f"),
        # a word that is read in part is not read
        ("a b c zqxjzqxj", "zqxjzqxj"),
        ("a b " + "\u72ac\u732b" * 4, "\u732b" + "\u72ac\u732b" * 3),
        ("a b c d &quot;e&quot;", '"e"'),
        ("", ""),
    ],
)
def test_what_is_cut_off_is_known(text, lost):
    # a letter is two tokens at most, as is a mark before an ideograph
    settings = umt5_tokenizer.settings()
    vocab = ["<pad>", "</s>", "<unk>", "<s>", "\u2581", *'abcdefgzqxj"\u72ac\u732b']
    pieces = [*vocab, *(f"\u2581{letter}" for letter in "abcdefg")]
    settings["model"]["vocab"] = [[piece, -1.0] for piece in pieces]
    settings |= {"added_tokens": [], "post_processor": None}
    model = tokenizers.Tokenizer.from_str(json.dumps(settings))
    tokenizer = Tokenizer(model, END, tokens=5)
    assert tokenizer.lost(text) == lost


@pytest.mark.parametrize("text", umt5_tokenizer.TEXTS, ids=lambda text: ascii(text)[:20])
def test_what_is_lost_is_the_end_of_the_text(short, text):
    tokenizer = short(12)
    lost = tokenizer.lost(text)
    assert bool(lost) == (len(tokenizer.ids(text)) > 12)
    assert clean(text).endswith(lost)
    read = clean(text).removesuffix(lost).rstrip() if lost else ""
    # one may be left of a word that is read in part, and a mark of a space
    assert len(tokenizer.ids(read)) <= 12
    kept = tokenizer.ids(read)[:-1]
    assert tokenizer(text)[0].tolist()[: len(kept)] == kept


def test_a_cut_is_logged_once(short, caplog):
    tokenizer = short(4)
    for text in ("a man is walking", "a man is walking", "a"):
        tokenizer(text)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("anyv2v: a text is cut after 4 tokens; not read: ")
    tokenizer.lost("on the beach with his dog")
    tokenizer("on the beach with his dog")
    assert len(caplog.records) == 1


def rewrite(change):
    def apply(folder):
        path = folder / "tokenizer.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        change(settings)
        path.write_text(json.dumps(settings), encoding="utf-8")

    return apply


def put(value, *keys):
    """Sets one value in the file."""

    def change(settings):
        for key in keys[:-1]:
            settings = settings[key]
        settings[keys[-1]] = value

    return rewrite(change)


def write(data):
    return lambda folder: (folder / "tokenizer.json").write_bytes(data)


def spiece(folder):
    (folder / "tokenizer.json").rename(folder / "spiece.model")


def normalizer(**values):
    return put({"type": "Sequence", "normalizers": [values]}, "normalizer")


def charsmap(data):
    return normalizer(type="Precompiled", precompiled_charsmap=base64.b64encode(data).decode())


def slow_pattern():
    return {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": " "}


def units(*values):
    return struct.pack(f"<I{len(values)}I", 4 * len(values), *values)


def chain(length):
    """A map with one key, of so many letters: each unit's child is in the block after its own."""
    trie = [0] * 256 * (length + 1)
    trie[0] = 256 << 10
    for block in range(1, length):
        index = 256 * block + ord("a")
        trie[index] = (index ^ 256 * (block + 1)) << 10 | ord("a")
    return units(*trie)


TRIE = CHARSMAP[: 4 + int.from_bytes(CHARSMAP[:4], "little")]
VOCAB = umt5_tokenizer.settings()["model"]["vocab"]
PROCESSOR, EOS_IDS = ("post_processor",), ("special_tokens", "</s>", "ids")
A, EOS = umt5_tokenizer.settings()["post_processor"]["single"]
BAD = {
    "no file": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be read: No such"),
    "spiece alone": (spiece, "spiece.model beside it is not read: put tokenizer.json of the same"),
    "a folder": (lambda f: spiece(f) or (f / "tokenizer.json").mkdir(), "Is a directory"),
    "not json": (write(b'{"a": 0'), "not a tokenizer of T5's form: JSONDecodeError"),
    "nested json": (write(b"[" * 200_000), "RecursionError"),
    "not utf-8": (write(b"\xff"), "cannot be read: 'utf-8'"),
    "too large": (write(b" " * (2**25 + 1)), "is larger than 33554432 bytes"),
    "a list": (write(b"[]"), "AttributeError"),
    "empty": (write(b"{}"), "TypeError"),
    "another model": (put("BPE", "model", "type"), "its model is not a Unigram"),
    "no vocabulary": (put([], "model", "vocab"), "EmptyVocabulary"),
    "a score of text": (put([["a", "b"]], "model", "vocab"), "invalid type"),
    "a score of NaN": (put([["a", float("nan")]], "model", "vocab"), "expected value"),
    "half a pair": (put([*VOCAB, ["\ud800", 0.0]], "model", "vocab"), "surrogates not allowed"),
    "no such unknown": (put(10**6, "model", "unk_id"), "UnkIdNotInVocabulary"),
    "a negative unknown": (put(-1, "model", "unk_id"), "invalid value"),
    "no unknown": (put(None, "model", "unk_id"), "has no unknown token"),
    "a long piece": (put([*VOCAB, ["x" * 10**6, 0.0]], "model", "vocab"), "one of them more than"),
    "long pieces": (put([["x" * 1000, 0.0]] * 4200, "model", "vocab"), "more than 4194304 bytes"),
    "long added tokens": (put([{"content": "x" * 10**6}], "added_tokens"), "one of them more"),
    "too many": (put([*VOCAB, *([f"x{i}", -9.0] for i in range(99))], "model", "vocab"), "only"),
    "lower case": (normalizer(type="Lowercase"), "its normalizer is Lowercase, known are Precomp"),
    "a pattern": (normalizer(**slow_pattern()), "replaces {'Regex': '.*known is the space"),
    "a deep sequence": (normalizer(type="Sequence", normalizers=[slow_pattern()]), "replaces"),
    "no charsmap": (charsmap(b""), "the character map of 0 bytes has no trie of 0 bytes"),
    "not base64": (normalizer(type="Precompiled", precompiled_charsmap="!!"), "is not base64"),
    "a long trie": (charsmap(struct.pack("<I", 2**31) + b"\0" * 8), "no trie of 2147483648"),
    "a cut charsmap": (charsmap(CHARSMAP[:100_000]), "has no trie of 179200 bytes"),
    "a trie outwards": (charsmap(units(0xFFFFFFFF, *[0] * 255)), "trie leads out of itself"),
    "a cut replacement": (charsmap(TRIE + b"abc"), "trie leads beyond its replacements"),
    "an offset": (charsmap(TRIE + "é".encode() * 40_000), "into the middle of a character"),
    "a long replacement": (charsmap(TRIE + b"a" * 80_000), "a replacement .* is over 256 bytes"),
    "a long key": (charsmap(chain(70)), "has keys of more than 64 bytes"),
    "half a letter": (charsmap(CHARSMAP[:200_000]), "replacements are not UTF-8"),
    "a split": (put({"type": "Split"}, "pre_tokenizer"), "its pre_tokenizer is Split"),
    "no pre-tokenizer's type": (put({}, "pre_tokenizer"), "KeyError"),
    "a sequence of none": (put({"type": "Sequence"}, "pre_tokenizer"), "KeyError"),
    "another end": (put({"type": "ByteLevel"}, *PROCESSOR), "is not a TemplateProcessing"),
    "no end": (put(None, *PROCESSOR), "is not a TemplateProcessing"),
    "no end token": (put([A], *PROCESSOR, "single"), "does not append one token"),
    "two ends": (put([A, EOS, EOS], *PROCESSOR, "single"), "does not append one token"),
    "end first": (put([EOS, A], *PROCESSOR, "single"), "KeyError: 'Sequence'"),
    "end of two ids": (put([1, 1], *PROCESSOR, *EOS_IDS), "ValueError: too many values"),
    "an end of text": (put(["1"], *PROCESSOR, *EOS_IDS), "TypeError"),
    "an unknown end": (put([10**6], *PROCESSOR, *EOS_IDS), "has no end token 1000000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(tmp_path, name):
    spoil, message = BAD[name]
    umt5_tokenizer.write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.load(tmp_path, vocab_size=len(VOCAB) + 10).ids("a man, \u732b \U0001f680")
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", umt5_tokenizer.FORMS)
def test_all_forms_of_the_file_are_read(tmp_path, form):
    umt5_tokenizer.write(tmp_path, form)
    size = len(umt5_tokenizer.settings(form)["model"]["vocab"])
    tokenizer = Tokenizer.load(tmp_path, vocab_size=size)
    for text in umt5_tokenizer.TEXTS:
        ids = tokenizer.ids(text)
        assert ids[-1] == END and all(0 <= i < size for i in ids)
    with pytest.raises(
        InputError, match=f"has the id {size - 1}, the text encoder only {size - 1}"
    ):
        Tokenizer.load(tmp_path, vocab_size=size - 1)


def test_a_damaged_character_map_is_refused_or_works():
    draw = random.Random(0)
    texts = [
        "".join(
            chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x11000))))
            for _ in range(99)
        )
        for _ in range(20)
    ]
    works = 0
    for _ in range(40):
        damaged = bytearray(CHARSMAP)
        for _ in range(draw.choice((1, 1, 5))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            check_charsmap(base64.b64encode(damaged).decode())
        except InputError:
            continue
        works += 1
        for text in texts:
            # where a trie leads out of itself this raises PanicException
            tokenizers.normalizers.Precompiled(bytes(damaged)).normalize_str(text)
    assert 0 < works < 40
