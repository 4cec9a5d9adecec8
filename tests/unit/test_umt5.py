"""UMT5's encoder, where no oracle is needed, and the files of its embeddings."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.umt5.embeddings import load_embeddings, save_embeddings
from anyv2v.umt5.encoder import (
    RMSNorm,
    SelfAttention,
    TextEncoder,
    UMT5Config,
    relative_buckets,
)
from tests.oracles.golden import relative_error

TINY = UMT5Config(
    vocab_size=31,
    tokens=12,
    hidden_size=20,
    heads=3,
    head_dim=8,
    layers=2,
    intermediate_size=28,
    buckets=8,
    max_distance=6,
    norm_eps=1e-6,
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TINY).eval().requires_grad_(False)


def test_what_comes_after_the_text_is_zero(encoder):
    ids = torch.randint(31, (2, 5))
    embedding = encoder(ids)
    assert embedding.shape == (2, 12, 20)
    assert (embedding[:, :5] != 0).all() and (embedding[:, 5:] == 0).all()
    assert encoder(torch.randint(31, (1, 12))).ne(0).all()


@pytest.mark.parametrize("shape", [(1, 0), (1, 13), (5,), (1, 2, 3)])
def test_ids_of_another_shape_are_refused(encoder, shape):
    with pytest.raises(InputError, match=r"cannot be read: want \(b, n\), n from 1 to 12"):
        encoder(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm_eps": 0.0}, "norm_eps 0.0 is not between 0 and 1"),
        ({"norm_eps": float("nan")}, "norm_eps nan is not between"),
        ({"buckets": 6}, "buckets 6 are not a multiple of 4"),
        ({"max_distance": 2}, "max_distance 2 is not over a quarter of them"),
    ],
)
def test_a_config_that_makes_no_encoder_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        TextEncoder(replace(TINY, **change))


def test_the_section_of_a_config_is_read():
    values = {
        **{"vocab_size": 31, "tokens": 12, "width": 20, "heads": 3, "head_dim": 8, "layers": 2},
        **{"mlp_width": 28, "buckets": 8, "max_distance": 6, "norm_eps": 1e-6},
    }
    assert section({"text": values}, "text", UMT5Config) == TINY


def test_the_buckets_of_near_keys_are_one_distance_each():
    # of 8 buckets 2 in each direction are for one distance each, the others end at 4 and 6
    row = relative_buckets(17, 8, 6)[8].tolist()
    before = [3, 3, 3, 3, 3, 2, 2, 1]
    assert row == [*before, 0, *(4 + bucket for bucket in reversed(before))]


def test_the_scores_of_attention_are_not_rounded():
    """A bias of 100 takes all digits of a bfloat16 from the scores, and changes no softmax."""
    torch.manual_seed(0)
    attention = SelfAttention(32, 2, 16, 8).requires_grad_(False)
    attention.q.weight.mul_(10)
    attention.relative_bias.weight.add_(100)
    attention.bfloat16()
    x = torch.randn(1, 40, 32).bfloat16()
    buckets = relative_buckets(40, 8, 20)
    rounded = attention(x, buckets)
    assert rounded.dtype == torch.bfloat16
    # queries, keys, values, their mixture and the output are rounded to 8 bits
    assert relative_error(rounded, attention.double()(x.double(), buckets)) < 2**-6


def test_a_norm_rounds_once():
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-6).requires_grad_(False)
    norm.weight.normal_()
    norm.bfloat16()
    x = torch.randn(100, 64)
    rounded = norm(x)
    truth = norm.double()(x.double()).bfloat16()
    assert rounded.dtype == torch.bfloat16
    assert (rounded != truth).double().mean() < 1e-3


def test_what_layers_add_is_not_lost_in_half_precision():
    """40 layers each add less than a bfloat16 can hold beside what is there already."""
    torch.manual_seed(0)
    encoder = TextEncoder(replace(TINY, layers=40)).requires_grad_(False)
    encoder.token_embedding.weight.fill_(1)
    first = encoder.layers[0].mlp.state_dict()
    for layer in encoder.layers:
        layer.self.out.weight.zero_()
        layer.mlp.load_state_dict(first)
        added = layer.mlp(torch.ones(20))
        layer.mlp.down.weight.mul_(2**-9.5 / added.abs().max())
    encoder.bfloat16()
    ids = torch.arange(12)[None]
    rounded = encoder(ids)
    truth = encoder.double()(ids)
    assert truth.std() > 0.02
    assert relative_error(rounded - 1, truth - 1) < 0.1


def embeddings():
    generator = torch.Generator().manual_seed(0)
    texts = ("a man", "", "猫 \ud83d", "a man ")
    return {text: torch.randn(1, 12, 20, generator=generator).bfloat16() for text in texts}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_are_saved_and_read_again(tmp_path, dtype):
    made = {text: x.to(dtype) for text, x in embeddings().items()}
    save_embeddings(tmp_path / "a.safetensors", made, "0123")
    read = load_embeddings(tmp_path / "a.safetensors", "0123")
    assert list(read) == list(made)
    assert all(x.dtype == dtype and x.equal(made[text]) for text, x in read.items())
    save_embeddings(tmp_path / "b.safetensors", read, "0123")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_one_tensor_may_be_the_embedding_of_two_prompts(tmp_path):
    x = torch.randn(3, 12, 20)[1:2]
    save_embeddings(tmp_path / "a.safetensors", {"a": x, "b": x}, "0123")
    assert load_embeddings(tmp_path / "a.safetensors", "0123")["b"].equal(x)


def test_embeddings_are_not_written_over_others(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        save_embeddings(path, embeddings(), "0123")
    with pytest.raises(InputError, match="must end in one of .safetensors"):
        save_embeddings(tmp_path / "a.pt", embeddings(), "0123")
    assert path.read_bytes() == b"mine"
    save_embeddings(path, embeddings(), "0123", force=True)
    assert len(load_embeddings(path, "0123")) == 4


WRONG = {
    "two shapes": {"a": torch.zeros(1, 12, 20), "b": torch.zeros(1, 12, 21)},
    "two dtypes": {"a": torch.zeros(1, 12, 20), "b": torch.zeros(1, 12, 20).half()},
    "two rows": {"a": torch.zeros(2, 12, 20)},
    "no row": {"a": torch.zeros(1, 0, 20)},
    "no dims": {"a": torch.zeros(())},
    "whole numbers": {"a": torch.zeros(1, 12, 20, dtype=torch.int64)},
    "infinite": {"a": torch.full((1, 12, 20), float("inf"))},
    "no text": {3: torch.zeros(1, 12, 20)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_embedding_is_not_written(tmp_path, name):
    with pytest.raises(InputError):
        save_embeddings(tmp_path / "a.safetensors", WRONG[name], "0123")
    assert not list(tmp_path.iterdir())


def facts(**changed):
    told = {"format": "anyv2v embeddings 1", "weights": "0123", "prompts": ["a", "b"]}
    return {"embeddings": json.dumps({**told, **changed})}


TWO = {"0": torch.zeros(1, 12, 20), "1": torch.ones(1, 12, 20)}
HOSTILE = {
    "other weights": (TWO, facts(weights="456"), "was made with other weights, '456'"),
    "another format": (TWO, facts(format="anyv2v source 3"), "is not a file of embeddings"),
    "no facts": (TWO, {}, "is not a file of embeddings"),
    "no object": (TWO, {"embeddings": "[]"}, "no attribute"),
    "nested": (TWO, {"embeddings": "[" * 100_000}, "recursion"),
    "no prompts": (TWO, facts(prompts=None), "its prompts are not texts"),
    "prompts of numbers": (TWO, facts(prompts=[1, 2]), "its prompts are not texts"),
    "a prompt twice": (TWO, facts(prompts=["a", "a"]), "has a prompt twice"),
    "too many prompts": (TWO, facts(prompts=["a", "b", "c"]), "not one tensor for each prompt"),
    "too few prompts": (TWO, facts(prompts=["a"]), "not one tensor for each prompt"),
    "two shapes": ({**TWO, "1": torch.ones(1, 12, 19)}, facts(), "2 shapes or dtypes"),
    "NaN": ({**TWO, "1": torch.full((1, 12, 20), torch.nan)}, facts(), "are not finite"),
    "float64": ({name: x.double() for name, x in TWO.items()}, facts(), "want floats"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_of_embeddings_are_refused(tmp_path, name):
    tensors, told, message = HOSTILE[name]
    save_file(tensors, tmp_path / "a.safetensors", told)
    with pytest.raises(InputError, match=message) as caught:
        load_embeddings(tmp_path / "a.safetensors", "0123")
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: cannot be read as")


def test_broken_files_of_embeddings_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="No such file"):
        load_embeddings(path, "0123")
    save_embeddings(path, embeddings(), "0123")
    whole = path.read_bytes()
    for part in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 100):
        path.write_bytes(part)
        with pytest.raises(InputError, match="cannot be read as embeddings"):
            load_embeddings(path, "0123")
