"""Token ids against those of the original's tokenizer, and files that must be refused."""

import json
import shutil
import time

import pytest
import torch

from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.errors import InputError
from tests.oracles import golden

START, END = "<|startoftext|>", "<|endoftext|>"
CONFIG = TokenizerConfig(START, END, END, END)
PROMPTS = golden.facts("tokenizer")["prompts"]
A = 320  # "a</w>" in the tiny vocabulary; 812 and 813 are start and end


@pytest.fixture(scope="module")
def folder(snapshot):
    return snapshot / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder, CONFIG, tokens=77, vocab_size=814)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "tokenizer")


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_equal_the_original(tokenizer, name):
    assert tokenizer.ids(PROMPTS[name]["text"]) == PROMPTS[name]["ids"]


@pytest.mark.parametrize("name", PROMPTS)
def test_rows_equal_the_original(tokenizer, name):
    truth = golden.tensors("tokenizer")["ids"][list(PROMPTS).index(name)]
    row = tokenizer(PROMPTS[name]["text"])
    assert row.dtype == torch.int64
    assert torch.equal(row, truth[None])


@pytest.mark.parametrize("text", ["", "  \t\r\n", "\x00\x07\x85\ufffd", "\ud800", "\u200d\ue000"])
def test_nothing_to_read_gives_start_and_end(tokenizer, text):
    assert tokenizer.ids(text) == [812, 813]


def test_half_a_surrogate_pair_is_dropped(tokenizer):
    assert tokenizer.ids("ro\ud83dbot\udfff") == tokenizer.ids("robot")


def test_a_pad_token_in_the_text_stands_alone(folder):
    # the original cuts every special token out of the text before it looks for words
    tokenizer = Tokenizer.load(folder, TokenizerConfig(START, END, "!", END), tokens=9)
    assert tokenizer.ids("a!!! a") == [812, A, 0, 0, 0, A, 813]
    assert tokenizer("a!!! a").tolist() == [[812, A, 0, 0, 0, A, 813, 0, 0]]


def test_a_special_token_is_not_hidden_by_one_that_begins_it(folder):
    tokenizer = Tokenizer.load(folder, TokenizerConfig(START, END, "<", END))
    assert tokenizer.ids(END + "<") == [812, 813, 27, 813]


def test_a_row_has_the_length_asked_for(folder):
    tokenizer = Tokenizer.load(folder, CONFIG, tokens=4)
    assert tokenizer("a").tolist() == [[812, A, 813, 813]]
    assert tokenizer("a a").tolist() == [[812, A, A, 813]]
    assert tokenizer("a a a").tolist() == [[812, A, A, 813]]


def test_a_marker_that_appears_by_normalising_is_read_whole(tokenizer):
    assert tokenizer.ids("a <|End\u200dOfText|>a") == [812, A, 813, A, 813]


def test_a_symbol_without_a_token_becomes_the_unknown_one():
    vocab = {START: 0, END: 1, "?": 2, "a</w>": 3}
    tokenizer = Tokenizer(vocab, [], TokenizerConfig(START, END, END, "?"), tokens=9)
    assert tokenizer.ids("ba") == [0, 2, 3, 1]


@pytest.mark.parametrize("text", ["a" * 300_000, "!" * 300_000, "<|" * 150_000, END * 30_000])
def test_a_very_long_text_is_read_in_linear_time(tokenizer, text):
    begin = time.process_time()
    assert tokenizer(text).shape == (1, 77)
    # a fifth of a second; merging pair by pair over the whole word would take an hour
    assert time.process_time() - begin < 20


def rewrite_vocab(change):
    def rewrite(folder):
        path = folder / "vocab.json"
        vocab = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(vocab)), encoding="utf-8")

    return rewrite


def without(token):
    def change(vocab):
        # the last token takes the place, so that the ids are still 0..n-1
        last = max(vocab, key=vocab.get)
        return {last if t == token else t: i for t, i in vocab.items() if t != last}

    return rewrite_vocab(change)


def write(name, text):
    return lambda folder: (folder / name).write_bytes(text)


BAD = {
    "no vocab": (lambda folder: (folder / "vocab.json").unlink(), "vocab.json: cannot be read: No"),
    "no merges": (lambda f: (f / "merges.txt").unlink(), "merges.txt: cannot be read: No"),
    "not json": (write("vocab.json", b'{"a": 0'), "vocab.json: not JSON"),
    "nested json": (write("vocab.json", b"[" * 200_000), "vocab.json: not JSON"),
    "not utf-8": (write("vocab.json", b"\xff"), "vocab.json: cannot be read"),
    "merges not utf-8": (write("merges.txt", b"\xff"), "merges.txt: cannot be read"),
    "a list": (rewrite_vocab(list), "vocab.json: not a vocabulary"),
    "an id of text": (rewrite_vocab(lambda v: v | {"a": "64"}), "vocab.json: not a vocabulary"),
    "an id of true": (rewrite_vocab(lambda v: v | {'"': True}), "vocab.json: not a vocabulary"),
    "half a pair": (rewrite_vocab(lambda v: v | {"\ud800": 814}), r"token '\\ud800' is not text"),
    "a gap": (rewrite_vocab(lambda v: v | {"new": 815}), "815 tokens are not 0..814"),
    "an id twice": (rewrite_vocab(lambda v: v | {"new": 3}), "815 tokens are not 0..814"),
    "too many": (rewrite_vocab(lambda v: v | {"new": 814}), "815 tokens, but .* only 814"),
    "no end": (without(END), r"vocab.json: lacks the token '<\|endoftext\|>'"),
    "no byte": (without("Ġ"), "vocab.json: lacks the token 'Ġ'"),
    "no last byte": (without("é</w>"), "vocab.json: lacks the token 'é</w>'"),
    "empty merges": (write("merges.txt", b""), "merges.txt: is empty"),
    "one token": (write("merges.txt", b"#\nt h\nth\n"), "merges.txt: line 3 is 'th'; want two"),
    "three tokens": (write("merges.txt", b"#\nt h e\n"), "merges.txt: line 2 is 't h e'"),
    "a blank line": (write("merges.txt", b"#\nt h\n\ni n\n"), "merges.txt: line 3 is ''"),
    "no such merge": (write("merges.txt", b"#\nt h\nz q\n"), "line 3: 'zq' is not in vocab.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(copy, name):
    spoil, message = BAD[name]
    spoil(copy)
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.load(copy, CONFIG, tokens=77, vocab_size=814)
    assert str(caught.value).startswith(str(copy))
    assert "\n" not in str(caught.value)


def test_merges_are_read_as_far_as_the_original_reads(copy):
    path = copy / "merges.txt"
    path.write_text("#\n" + "t h\n" * 48894 + "broken\n", encoding="utf-8")
    Tokenizer.load(copy, CONFIG)
    path.write_text("#\n" + "t h\n" * 48893 + "broken\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 48895 is 'broken'"):
        Tokenizer.load(copy, CONFIG)


def test_an_unknown_special_token_is_refused(folder):
    with pytest.raises(InputError, match="lacks the token '<pad>'"):
        Tokenizer.load(folder, TokenizerConfig(START, END, "<pad>", END))


def test_windows_line_ends_change_nothing(copy, tokenizer):
    path = copy / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    text = PROMPTS["negative"]["text"]
    assert Tokenizer.load(copy, CONFIG).ids(text) == tokenizer.ids(text)


# letters are one token each, ideographs and signs their three bytes
@pytest.mark.parametrize(
    "text, lost",
    [
        ("a b c d e f g", ""),
        ("a b c d e f g h i", "h i"),
        ("  a b c d e f g   h\ti ", "h\ti"),
        ("A B C D E F G, H", ", H"),
        ("1234567890", "890"),
        ("山川山川", "山川"),
        ("a山川 b, c", "b, c"),
        ("\u20ac \u2713 \u20ac \u2713 a", "\u20ac \u2713 a"),
        # a word that is read in part is not read
        ("a b c d e f " + "zqxj" * 5, "zqxj" * 5),
        (f"a b c d e f {END} g", "g"),
        ("", ""),
    ],
)
def test_what_is_cut_off_is_known(folder, text, lost):
    tokenizer = Tokenizer.load(folder, CONFIG, tokens=9)
    assert tokenizer.lost(text) == lost


@pytest.mark.parametrize("name", PROMPTS)
def test_what_is_lost_is_what_the_ids_lack(folder, name):
    text = PROMPTS[name]["text"]
    tokenizer = Tokenizer.load(folder, CONFIG, tokens=12)
    lost = tokenizer.lost(text)
    read = text.strip().removesuffix(lost) if lost else text
    kept = tokenizer.ids(read)[1:-1]
    assert kept == PROMPTS[name]["ids"][1 : 1 + len(kept)]
    assert len(kept) <= 10
    assert bool(lost) == (len(PROMPTS[name]["ids"]) > 12)


def test_a_cut_is_logged_once(folder, caplog):
    tokenizer = Tokenizer.load(folder, CONFIG, tokens=9)
    for text in ("a b c d e f g h i", "a b c d e f g h i", "a"):
        tokenizer(text)
    assert caplog.messages == ['anyv2v: a text is cut after 9 tokens; not read: "h i"']
    tokenizer.lost("i h g f e d c b a")
    tokenizer("i h g f e d c b a")
    assert len(caplog.records) == 1
