"""UMT5's encoder and tokenizer against transformers and Wan's pipeline in diffusers, live.

The published weights and tokenizer.json cannot be had here: weights are random, and the tokenizer
is a small one, trained in the test, in the form of T5's (tests/oracles/umt5_tokenizer.py).
"""

from types import SimpleNamespace

import pytest
import torch

from anyv2v.convert.formats.wan_names import ORIGINAL_TEXT
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.umt5.cleaning import clean
from anyv2v.umt5.encoder import TextEncoder, UMT5Config, relative_buckets
from anyv2v.umt5.tokenizer import Tokenizer
from tests.oracles import umt5_tokenizer
from tests.oracles.golden import relative_error
from tests.oracles.wan_names import hub_state

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.umt5.modeling_umt5")

KEYS = (
    *("vocab_size", "d_model", "num_heads", "d_kv", "num_layers", "d_ff"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"),
)
CASES = [
    dict(zip(KEYS, row, strict=True))
    for row in (
        (97, 40, 5, 12, 3, 72, 32, 128, 1e-6),
        (61, 32, 2, 16, 2, 64, 8, 20, 1e-6),
        (33, 21, 3, 7, 1, 30, 16, 300, 1e-2),
    )
]
LAYER = dict(zip(KEYS, (512, 4096, 64, 64, 1, 10240, 32, 128, 1e-6), strict=True))
TOKENS = 200


def config(theirs: transformers.UMT5Config, tokens: int = TOKENS) -> UMT5Config:
    assert theirs.dense_act_fn == "gelu_new" and theirs.is_gated_act
    return UMT5Config(
        vocab_size=theirs.vocab_size,
        tokens=tokens,
        hidden_size=theirs.d_model,
        heads=theirs.num_heads,
        head_dim=theirs.d_kv,
        layers=theirs.num_layers,
        intermediate_size=theirs.d_ff,
        buckets=theirs.relative_attention_num_buckets,
        max_distance=theirs.relative_attention_max_distance,
        norm_eps=theirs.layer_norm_epsilon,
    )


def redraw(model, seed: int) -> None:
    """Weights with which scores are large, norms matter and the output is of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        if "norm" in name:
            x.data = 1 + 0.3 * torch.randn(x.shape, generator=generator)
        elif "relative" in name or "shared" in name:
            x.data = torch.randn(x.shape, generator=generator)
        else:
            x.data = torch.randn(x.shape, generator=generator) * x.shape[-1] ** -0.5


def pair(seed: int, tokens: int = TOKENS, **settings):
    """(ours, theirs), which have the very same tensors."""
    theirs = transformers.UMT5Config(**settings, dropout_rate=0.0)
    # without the time of drawing weights that are drawn again
    with torch.device("meta"):
        model = modeling.UMT5EncoderModel(theirs)
        ours = TextEncoder(config(theirs, tokens))
    model.to_empty(device="cpu").eval().requires_grad_(False)
    model.encoder.embed_tokens = model.shared
    redraw(model, seed)
    ours.load_state_dict(hub_state(model.state_dict()), strict=True, assign=True)
    return ours.eval().requires_grad_(False), model


@pytest.mark.parametrize("case", range(3))
def test_encoder_equals_transformers(case):
    ours, theirs = pair(case, **CASES[case])
    generator = torch.Generator().manual_seed(case)
    for length in (1, 2, 19, 130, TOKENS):
        ids = torch.randint(CASES[case]["vocab_size"], (2, length), generator=generator)
        truth = theirs(ids).last_hidden_state
        error = relative_error(ours(ids)[:, :length], truth)
        print(f"case {case}, {length} tokens: {error:.1e}")
        assert error <= 1e-6
        # as Wan's pipelines do it: the encoder reads padding, which is masked
        padded = torch.nn.functional.pad(ids, (0, TOKENS - length))
        mask = torch.arange(TOKENS).expand(2, -1) < length
        truth = theirs(padded, mask.long()).last_hidden_state * mask[..., None]
        error = relative_error(ours(ids), truth)
        print(f"case {case}, {length} tokens, padded: {error:.1e}")
        assert error <= 1e-6


@pytest.mark.parametrize("case", range(3))
def test_buckets_are_those_of_transformers(case):
    _, theirs = pair(case, **CASES[case])
    attention = theirs.encoder.block[0].layer[0].SelfAttention
    position = torch.arange(700)
    truth = attention._relative_position_bucket(position - position[:, None])
    kind = [CASES[case][key] for key in KEYS[6:8]]
    assert relative_buckets(700, *kind).equal(truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_less_than_transformers(dtype):
    for case in range(3):
        ours, theirs = pair(case, **CASES[case])
        ids = torch.randint(33, (2, TOKENS), generator=torch.Generator().manual_seed(case))
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        rounded, other = ours(ids), theirs(ids).last_hidden_state
        assert rounded.dtype == dtype
        truth = ours.double()(ids)
        errors = relative_error(rounded, truth), relative_error(other, truth)
        print(f"case {case}, {dtype}: {errors[0]:.1e}, transformers {errors[1]:.1e}")
        assert errors[0] <= errors[1]


def test_names_and_shapes_at_full_size():
    with torch.device("meta"):
        theirs = modeling.UMT5EncoderModel(
            transformers.UMT5Config(
                **{**LAYER, "vocab_size": 256384, "num_layers": 24},
                num_decoder_layers=24,
            )
        )
        ours = TextEncoder(config(theirs.config, 512))
    shapes = {name: x.shape for name, x in hub_state(theirs.state_dict()).items()}
    assert shapes == {name: x.shape for name, x in ours.state_dict().items()}
    originals = [new.name for new in rename(shapes, ORIGINAL_TEXT, to="theirs").values()]
    assert not unused_rules(originals, ORIGINAL_TEXT)
    assert (len(shapes), sum(x.numel() for x in shapes.values())) == (242, 5_680_910_336)


def fast(path) -> transformers.PreTrainedTokenizerFast:
    """Transformers' tokenizer that takes all of the file over, as that of Wan's original did."""
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **special)


@pytest.mark.parametrize("form", umt5_tokenizer.FORMS)
def test_ids_equal_transformers(tmp_path, form):
    path = umt5_tokenizer.write(tmp_path, form)
    oracles = [fast(path)]
    if form == "strip":
        # transformers 5 makes all but the vocabulary itself, which is of this form
        oracles.append(transformers.T5TokenizerFast.from_pretrained(tmp_path))
    ours = Tokenizer.load(tmp_path)
    assert len(umt5_tokenizer.TEXTS) >= 50
    for text in umt5_tokenizer.TEXTS:
        ours.lost(text)
        for theirs in oracles:
            told = theirs(
                [clean(text)],
                padding="max_length",
                max_length=512,
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            )
            truth = told["input_ids"][told["attention_mask"] > 0]
            assert ours(text)[0].equal(truth), ascii(text)


@pytest.mark.slow
def test_embeddings_of_texts_equal_those_of_the_pipeline(tmp_path, monkeypatch):
    module = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan_i2v")
    texts = umt5_tokenizer.TEXTS
    if not hasattr(module, "ftfy"):
        # it calls ftfy without a guard; these texts are none that ftfy would change
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)
        texts = ["a man is walking", "", "  x &amp; y\n", umt5_tokenizer.CORPUS[7]]
    path = umt5_tokenizer.write(tmp_path)
    size = len(umt5_tokenizer.settings()["model"]["vocab"])
    ours, theirs = pair(0, 24, **{**CASES[0], "vocab_size": size})
    pipeline = SimpleNamespace(
        tokenizer=fast(path), text_encoder=theirs, _execution_device=torch.device("cpu")
    )
    tokenizer = Tokenizer.load(tmp_path, 24, size)
    for text in texts:
        truth = module.WanImageToVideoPipeline._get_t5_prompt_embeds(
            pipeline, text, max_sequence_length=24, dtype=torch.float32
        )
        tokenizer.lost(text)
        error = relative_error(ours(tokenizer(text)), truth)
        print(f"{text[:20]!a}: {error:.1e}")
        assert truth.shape == (1, 24, 40) and error <= 1e-6


@pytest.mark.slow
def test_one_layer_of_full_width_equals_transformers():
    ours, theirs = pair(0, 512, **LAYER)
    ids = torch.randint(512, (1, 300), generator=torch.Generator().manual_seed(0))
    error = relative_error(ours(ids)[:, :300], theirs(ids).last_hidden_state)
    print(f"full width: {error:.1e}")
    # sums of 4096 and 10240 products
    assert error <= 5e-6
