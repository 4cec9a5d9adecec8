"""Tokenizer and CLIP towers against transformers, live."""

import random

import pytest
import regex
import torch

from anyv2v.clip.text import TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig, byte_symbols, read_merges, read_vocab
from anyv2v.clip.vision import VisionEncoder
from tests.oracles.clip_snapshot import redraw
from tests.oracles.golden import relative_error
from tests.unit.test_clip import rename, text_config, vision_config

transformers = pytest.importorskip("transformers")
legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")

START, END = "<|startoftext|>", "<|endoftext|>"
CONFIG = TokenizerConfig(START, END, END, END)


@pytest.fixture(scope="module")
def tokenizer(snapshot):
    return Tokenizer.load(snapshot / "tokenizer", CONFIG)


@pytest.fixture(scope="module")
def ranks(snapshot):
    folder = snapshot / "tokenizer"
    vocab = read_vocab(folder / "vocab.json", (START, END), None)
    merges = read_merges(folder / "merges.txt", vocab)
    return vocab, {pair: rank for rank, pair in enumerate(merges)}


def merge(word, ranks):
    """Byte-pair encoding by its definition: the best pair, everywhere, until none is left."""
    tokens = [*word[:-1], word[-1] + "</w>"]
    while pairs := [pair for pair in zip(tokens, tokens[1:], strict=False) if pair in ranks]:
        best = min(pairs, key=ranks.get)
        merged = []
        for token in tokens:
            # a token that was merged just now is longer than the pair's first, so it never fits
            if merged and (merged[-1], token) == best:
                merged[-1] += token
            else:
                merged.append(token)
        tokens = merged
    return tokens


def slow_ids(text, vocab, ranks):
    """What transformers' slow tokenizer did until it went with version 5, around its own parts."""
    clean = legacy.BasicTokenizer(strip_accents=False, do_split_on_punc=False)
    pattern = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
        r"|[^\s\p{L}\p{N}]+"
    )
    ids = [vocab[START]]
    for piece in regex.split(r"(<\|(?:start|end)oftext\|>)", text):
        words = regex.findall(pattern, " ".join(clean.tokenize(piece)), regex.IGNORECASE)
        for word in words:
            if word in (START, END):
                ids.append(vocab[word])
            else:
                symbols = "".join(byte_symbols()[byte] for byte in word.encode())
                ids += [vocab.get(token, vocab[END]) for token in merge(symbols, ranks)]
    return [*ids, vocab[END]]


def test_merging_equals_its_definition(tokenizer, ranks):
    vocab, ranks = ranks
    draw = random.Random(0)
    # letters that merge often, and any byte at all
    common = "theinganrosdl"
    for _ in range(3000):
        word = "".join(draw.choice(common) for _ in range(draw.randint(1, 12)))
        if draw.random() < 0.3:
            word = "".join(draw.choice(byte_symbols()) for _ in range(draw.randint(1, 12)))
        ours = [token.id for token in tokenizer._bpe.tokenize(word)]
        assert ours == [vocab[token] for token in merge(word, ranks)], word


# parts of the two markers, contractions, every kind of space, what is dropped, what changes when it
# is composed or put in lower case, and ideographs from each block
PIECES = [
    *(START, END, END.upper(), "<|end\u200doftext|>", "<|\u017ftartoftext|>", "<|", "|>", "!", "<"),
    *("'s", "'S", "'\u017f", "'LL", "'re", "don't", "walking", "the ", "A MAN", "12", "3.5", ", "),
    *" \t\n\r\x0b\x85\u2028\u3000\xa0\ufffd\x00\u200d\ue000\u0378\u0301½²ßﬁⅧカ🚀",
    *("\u0130", "ΑΣ Σ", "e\u0301", "\u1100\u1161\u11a8"),
    *("中", "日本", "\u3400", "\uf900", "\U0002f800", "\U0002b740"),
]


def random_text(draw, pieces, top):
    parts = [
        draw.choice(pieces) if draw.random() < 0.6 else chr(draw.randrange(top))
        for _ in range(draw.randint(0, 14))
    ]
    return "".join(parts)


# inside the Basic Multilingual Plane (with lone surrogates), and anywhere in Unicode
@pytest.mark.parametrize("top", [0x300, 0x10000, 0x110000])
def test_any_text_equals_the_slow_tokenizer(tokenizer, ranks, top):
    draw = random.Random(top)
    for _ in range(2000):
        text = random_text(draw, PIECES, top)
        assert tokenizer.ids(text) == slow_ids(text, *ranks), ascii(text)


def test_latin_text_equals_the_fast_tokenizer(tokenizer, snapshot):
    theirs = transformers.CLIPTokenizer.from_pretrained(snapshot / "tokenizer")
    draw = random.Random(1)
    letters = [chr(c) for c in (*range(0x20, 0x7F), *range(0xC0, 0x180))]
    pieces = ["the ", "A MAN", "walking", "it's", "'LL", "café", "e\u0301", " \t\n", START, END]
    for _ in range(2000):
        parts = (draw.choice(draw.choice((letters, pieces))) for _ in range(draw.randint(0, 30)))
        text = "".join(parts)
        assert tokenizer.ids(text) == theirs(text)["input_ids"], ascii(text)


def adopt(encoder, config, theirs):
    """Our encoder on the very tensors of theirs."""
    with torch.device("meta"):
        ours = encoder(config)
    ours.load_state_dict(rename(theirs.state_dict()), strict=True, assign=True)
    return ours.eval()


def text_pair(seed, **settings):
    theirs = transformers.CLIPTextConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1, **settings)
    model = redraw(transformers.CLIPTextModel(theirs), seed)
    return adopt(TextEncoder, text_config(theirs.to_dict()), model), model


def vision_pair(seed, **settings):
    theirs = transformers.CLIPVisionConfig(**settings)
    model = redraw(transformers.CLIPVisionModelWithProjection(theirs), seed)
    return adopt(VisionEncoder, vision_config(theirs.to_dict()), model), model


def text_truth(model, ids, clip_skip):
    states = model(ids, output_hidden_states=True).hidden_states
    # transformers 5 took the tower's outer shell away
    return getattr(model, "text_model", model).final_layer_norm(states[-1 - clip_skip])


TEXT_KEYS = (
    *("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads"),
    *("num_hidden_layers", "intermediate_size", "hidden_act", "layer_norm_eps"),
)
TEXTS = [
    dict(zip(TEXT_KEYS, row, strict=True))
    for row in (
        (97, 77, 36, 3, 4, 50, "quick_gelu", 1e-5),
        (61, 19, 40, 8, 3, 160, "gelu", 1e-5),
        (33, 5, 21, 1, 2, 7, "gelu", 1e-2),
        (49408, 77, 1024, 16, 24, 4096, "gelu", 1e-5),
    )
]
VISION_KEYS = (
    *("image_size", "patch_size", "hidden_size", "num_attention_heads", "num_hidden_layers"),
    *("intermediate_size", "hidden_act", "layer_norm_eps", "projection_dim"),
)
VISIONS = [
    dict(zip(VISION_KEYS, row, strict=True))
    for row in (
        (28, 7, 48, 3, 4, 100, "quick_gelu", 1e-5, 40),
        (33, 8, 40, 5, 3, 77, "gelu", 1e-5, 9),
        (9, 9, 15, 1, 1, 31, "gelu", 1e-2, 64),
        (224, 14, 1280, 16, 32, 5120, "gelu", 1e-5, 1024),
    )
]


@pytest.mark.parametrize("case", range(3))
def test_text_equals_transformers(case):
    ours, theirs = text_pair(case, **TEXTS[case])
    tokens = TEXTS[case]["max_position_embeddings"]
    generator = torch.Generator().manual_seed(case)
    for length in (1, tokens // 2, tokens):
        ids = torch.randint(TEXTS[case]["vocab_size"], (3, length), generator=generator)
        for clip_skip in range(len(ours.layers) + 1):
            truth = text_truth(theirs, ids, clip_skip)
            assert relative_error(ours(ids, clip_skip), truth) <= 1e-5


@pytest.mark.parametrize("case", range(3))
def test_image_equals_transformers(case):
    ours, theirs = vision_pair(case, **VISIONS[case])
    size = VISIONS[case]["image_size"]
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(case))
    assert relative_error(ours(pixels), theirs(pixels).image_embeds) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_transformers(dtype):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (2, 77), generator=generator)
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    text, their_text = text_pair(0, **TEXTS[0])
    vision, their_vision = vision_pair(0, **VISIONS[0])
    text.to(dtype), vision.to(dtype), their_text.to(dtype), their_vision.to(dtype)
    pixels = pixels.to(dtype)
    ours = text(ids), vision(pixels)
    theirs = text_truth(their_text, ids, 1), their_vision(pixels).image_embeds
    truth = text.double()(ids), vision.double()(pixels.double())
    for mine, other, exact in zip(ours, theirs, truth, strict=True):
        assert mine.dtype == dtype
        assert relative_error(mine, exact) <= 2 * relative_error(other, exact)


@pytest.mark.slow
def test_the_released_text_encoder_equals_transformers():
    ours, theirs = text_pair(0, **TEXTS[3])
    parameters = list(ours.parameters())
    assert (len(parameters), sum(p.numel() for p in parameters)) == (388, 352_984_064)
    ids = torch.randint(49408, (1, 77), generator=torch.Generator().manual_seed(0))
    for clip_skip in (0, 1):
        assert relative_error(ours(ids, clip_skip), text_truth(theirs, ids, clip_skip)) <= 1e-5


@pytest.mark.slow
def test_the_released_image_encoder_equals_transformers():
    ours, theirs = vision_pair(0, **VISIONS[3])
    parameters = list(ours.parameters())
    assert (len(parameters), sum(p.numel() for p in parameters)) == (520, 632_076_800)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(pixels), theirs(pixels).image_embeds) <= 1e-5
