"""A small unigram tokenizer.json in the forms that T5's tokenizers have, and texts for it.

The published file of UMT5 is not here. What this module writes has its parts: the precompiled
character map is a real one (tests/goldens/nmt_nfkc.xz), and the vocabulary is trained.
"""

from __future__ import annotations

import base64
import json
import lzma
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, trainers

CHARSMAP = Path(__file__).parents[1] / "goldens" / "nmt_nfkc.xz"
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
END = 1
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
METASPACE = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "always",
    "split": True,
}
FORMS = ("strip", "no strip", "bytes")

CORPUS = """
a man is walking on the beach with his dog while the sun goes down over the calm sea
the camera follows a red car through the streets of a city at night, neon lights everywhere
a woman in a white dress turns around and smiles, her hair moving in the wind
slow motion, cinematic, highly detailed, 4k, 24 fps: waves are breaking on the rocks
it's a robot that doesn't look like a robot; "hello", it said & waved
ein Hund läuft über die Wiese, der Himmel ist blau und die Bäume sind grün
un café très élégant à côté de la forêt, où l'on voit des oiseaux
色调艳丽,过曝,静态,细节模糊不清,字幕,风格,作品,画作,画面,静止,整体发灰,最差质量,低质量
一只猫在草地上奔跑,背景是蓝色的天空和白色的云
犬が海辺を走っている。空は青く、カメラはゆっくりと動く。
собака бежит по берегу моря, камера медленно движется за ней
한 남자가 해변을 걷고 있다
A MAN IS WALKING, 1234567890 steps in 3.5 minutes (or 6!); WHAT DID HE SEE?
THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG #7 <b>$5</b> 100% @home a_b = [x/y] ~ {z} ^ "`"
""".strip().splitlines()

TEXTS = [
    *CORPUS,
    "",
    " ",
    "a",
    "</s>",
    "a </s> man",
    "<pad> <unk><s>",
    "<extra_id_0> of a man <extra_id_1>",
    "A MAN IS WALKING",
    "  two  spaces   and\ttabs\nand\r\nlines\x0b\x0c ",
    "no-break\u00a0space, en\u2002space, ideographic\u3000space, zero\u200bwidth\u200djoiner",
    "\x00\x01\x1b[31mred\x1b[0m\x7f",
    "next\x85line\u2028and\u2029paragraph",
    "byte order \ufeffmark, object \ufffc, replacement \ufffd",
    "🚀🚀 to the 🌕 with 👩\u200d🚀 and 🏴\U000e0067\U000e0062\U000e007f",
    "☺️ ✓ ★ → ½ № ℃ ™",
    "①②③ Ⅷ ﬁﬂ ﬃ ĳ ŉ",
    "ＦＵＬＬ ｗｉｄｔｈ，（ｶﾀｶﾅ ｶﾞ）。",
    "\u201ccurly\u201d \u2018quotes\u2019, don\u2019t",
    "e\u0301 a\u0308 o\u0302 and é ä ô",
    "\u1100\u1161\u11a8 각",
    "&amp; &lt;b&gt; &quot;x&quot; &#39;y&#39; &nbsp;z",
    "&amp;amp;lt;i&amp;amp;gt;",
    "<b>bold</b> &eacute;",
    "AT&T, R&D, &copy",
    "色调艳丽，过曝，静态，细节模糊不清",
    "日本語とEnglishと中文が混ざった文",
    "\U00020000\U0002a6df rare ideographs",
    "العربية مع تشكيل: مَرْحَبًا",
    "हिन्दी में एक वाक्य",
    "ไทยไม่มีช่องว่าง",
    "שלום עולם",
    "x" * 300,
    "a" + "\u0301" * 40,
    "1234567890 3.14 1,000,000",
    "under_score kebab-case CamelCase path/to/file.py",
    "!!!???...---***",
    "\u2581 the mark itself \u2581\u2581x",
    "\ue000\uf8ff private, \u0378 unassigned",
    "a man " * 200,
    "ﷺ",
]


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    # three times, as only what comes up again becomes a piece
    words = ["\u2581" + word for line in CORPUS for word in line.split()] * 3
    tokenizer.train_from_iterator(words, trainer)
    told = json.loads(tokenizer.to_str())
    special, pieces = (told["model"]["vocab"][x] for x in (slice(4), slice(4, None)))
    # what the trainer leaves to chance, the order and the last digits, would change every token id
    pieces = sorted(
        ([piece, round(score, 2)] for piece, score in pieces), key=lambda x: (-x[1], x[0])
    )
    told["model"]["vocab"] = special + pieces
    return json.dumps(told)


def settings(form: str = "strip") -> dict:
    """The contents of a tokenizer.json.

    form: "strip" as transformers 4.40 and later convert T5's, "no strip" as before, "bytes" with a
    byte in place of what is not in the vocabulary, and as transformers 5 makes it.
    """
    told = json.loads(_trained())
    charsmap = base64.b64encode(lzma.decompress(CHARSMAP.read_bytes())).decode()
    map = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    split = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    told["normalizer"] = {
        "strip": {"type": "Sequence", "normalizers": [map, strip, SPACES]},
        "no strip": {"type": "Sequence", "normalizers": [map, {**SPACES, "content": " "}]},
        "bytes": map,
    }[form]
    older = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}
    told["pre_tokenizer"] = older if form == "no strip" else split
    if form == "bytes":
        told["model"]["byte_fallback"] = True
        told["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    told["model"]["vocab"] += [[f"<extra_id_{i}>", 0.0] for i in range(2, -1, -1)]
    vocab = [piece for piece, _ in told["model"]["vocab"]]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    told["added_tokens"] = [
        {"id": vocab.index(piece), "content": piece, **flags, "special": True}
        for piece in (*SPECIAL, "<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    ]
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, _special("</s>")],
        "pair": [
            *({"Sequence": {"id": "A", "type_id": 0}}, _special("</s>")),
            *({"Sequence": {"id": "B", "type_id": 0}}, _special("</s>")),
        ],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}},
    }
    told["decoder"] = METASPACE
    return told


def write(folder: Path, form: str = "strip") -> Path:
    """Writes tokenizer.json into a folder and returns its path."""
    path = folder / "tokenizer.json"
    path.write_text(_text(form), encoding="utf-8")
    return path


@cache
def _text(form: str) -> str:
    return json.dumps(settings(form), ensure_ascii=False)


def _special(token: str) -> dict:
    return {"SpecialToken": {"id": token, "type_id": 0}}
