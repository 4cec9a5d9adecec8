"""Whole CLIPs against transformers' CLIPModel, on random weights: preprocessing and embeddings."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyv2v.clip.preprocess import preprocess_standard
from anyv2v.convert import bpe
from anyv2v.convert.formats import clip, whole_clip
from anyv2v.convert.rename import rename
from anyv2v.evaluation.clip_model import load
from anyv2v.weights_folders import expected_shapes
from tests.oracles import clip_snapshot, snapshot
from tests.oracles.clip_snapshot import redraw

transformers = pytest.importorskip("transformers")
pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")

TEXTS = [
    "A robot is turning its head on a wooden floor",
    "",
    "🚀 isn't a CAFÉ: 12 kittens!? \t half\n",
    "a man is walking past the old woman " * 20,
]


@pytest.fixture(scope="module", params=clip_snapshot.PRESETS)
def folder(request, tmp_path_factory):
    return clip_snapshot.write(tmp_path_factory.mktemp("clip") / request.param, request.param)


@pytest.fixture(scope="module")
def ours(folder):
    return load(folder, "cpu")


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.CLIPModel.from_pretrained(folder).eval().requires_grad_(False)


def random_frames(count, height, width, seed=0):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def unit(output):
    return torch.nn.functional.normalize(output.pooler_output, dim=-1)


def text_truth(model, tokenizer, texts, padding):
    ids = tokenizer(texts, padding=padding, truncation=True, max_length=77, return_tensors="pt")
    return unit(model.get_text_features(**ids))


# padded by the tokenizer to 77, or to the longest; both must be as without any padding
@pytest.mark.parametrize("padding", ["max_length", True])
def test_texts_equal_transformers(folder, ours, theirs, padding):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    made, truth = ours.encode_text(TEXTS), text_truth(theirs, tokenizer, TEXTS, padding)
    assert made.shape == truth.shape
    assert (made - truth).abs().max() <= 1e-5
    one_by_one = [text_truth(theirs, tokenizer, [text], False) for text in TEXTS]
    assert (made - torch.cat(one_by_one)).abs().max() <= 1e-5
    # and the texts are told apart far more than that
    assert torch.pdist(made).min() > 0.1


SIZES = [(32, 32), (40, 56), (57, 40), (33, 100), (201, 75), (20, 27), (480, 854)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers(folder, ours, size):
    """Every level of the scaled picture, so far more than 99.9 % of them."""
    frames = random_frames(2, *size)
    truth = pil.CLIPImageProcessorPil.from_pretrained(folder)(list(frames), return_tensors="pt")
    made = preprocess_standard(frames, ours.preprocess)
    # one level is 0.014 or more
    torch.testing.assert_close(made, truth["pixel_values"], rtol=0, atol=1e-5)


def test_images_equal_transformers(folder, ours, theirs):
    processor = pil.CLIPImageProcessorPil.from_pretrained(folder)
    frames = random_frames(3, 60, 90)
    pixels = processor(list(frames), return_tensors="pt")["pixel_values"]
    made, truth = ours.encode_images(frames), unit(theirs.get_image_features(pixels))
    assert (made - truth).abs().max() <= 1e-5
    assert torch.pdist(made).min() > 0.1


def test_logits_equal_transformers(folder, ours, theirs):
    """Both encoders and the factor together, as transformers computes them."""
    processor = pil.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    frames = random_frames(2, 40, 40)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    inputs |= processor(list(frames), return_tensors="pt")
    made = ours.logit_scale * ours.encode_images(frames) @ ours.encode_text(TEXTS).T
    torch.testing.assert_close(made, theirs(**inputs).logits_per_image, rtol=0, atol=1e-3)


def test_a_folder_that_transformers_saved_is_read(folder, ours, theirs, tmp_path):
    """By the installed version, whose files differ from those of older ones."""
    theirs.save_pretrained(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    image_processor = pil.CLIPImageProcessorPil.from_pretrained(folder)
    transformers.CLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    saved = load(tmp_path, "cpu")
    assert torch.equal(saved.encode_text(TEXTS), ours.encode_text(TEXTS))
    frames = random_frames(2, 50, 50)
    assert torch.equal(saved.encode_images(frames), ours.encode_images(frames))


def published(text, vision, projection, act, patch, image=224):
    """The config.json of a released model; (width, heads, layers) of both encoders."""
    keys = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    towers = {
        name: {
            **dict(zip(keys, sizes, strict=True)),
            "intermediate_size": 4 * sizes[0],
            "hidden_act": act,
            "projection_dim": projection,
        }
        for name, sizes in (("text_config", text), ("vision_config", vision))
    }
    towers["vision_config"] |= {"patch_size": patch, "image_size": image}
    # as OpenAI's files have it, and OpenCLIP's
    towers["text_config"]["eos_token_id"] = 2 if act == "quick_gelu" else 49407
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projection,
        **towers,
    }


BASE, LARGE = (512, 8, 12), (768, 12, 12)
PUBLISHED = {
    "ViT-B/32": published(BASE, (768, 12, 12), 512, "quick_gelu", 32),
    "ViT-B/16": published(BASE, (768, 12, 12), 512, "quick_gelu", 16),
    "ViT-L/14": published(LARGE, (1024, 16, 24), 768, "quick_gelu", 14),
    "ViT-L/14@336": published(LARGE, (1024, 16, 24), 768, "quick_gelu", 14, 336),
    "ViT-H/14": published((1024, 16, 24), (1280, 16, 32), 1024, "gelu", 14),
}
# as the model cards and papers count them, in millions
PARAMETERS = {
    "ViT-B/32": 151.28,
    "ViT-B/16": 149.62,
    "ViT-L/14": 427.62,
    "ViT-L/14@336": 427.94,
    "ViT-H/14": 986.11,
}


def sections(values):
    special = {"start": "a", "end": "b", "pad": "b", "unknown": "b"}
    size = values["vision_config"]["image_size"]
    preprocess = clip.preprocess_config("x", {"crop_size": size})
    ours = whole_clip.clip_config("config.json", values)
    return {"model": "clip", **ours, "tokenizer": special, "preprocess": preprocess}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_the_released_models(name):
    """All tensors that transformers saves, and no others, are converted to ours."""
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**PUBLISHED[name]))
    theirs = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    shapes = expected_shapes(sections(PUBLISHED[name]))
    converted = {}
    for component, table in (("text", whole_clip.TEXT), ("vision", clip.VISION)):
        for ours, renamed in rename(shapes[component], table, to="theirs").items():
            converted[renamed.name] = renamed.their_shape(shapes[component][ours])
    assert converted == theirs
    count = sum(np.prod(shape, dtype=int) for shape in theirs.values())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], abs=0.006)


@pytest.mark.slow
def test_the_sizes_of_vit_b_32_equal_transformers(tmp_path):
    """151 million random numbers through the files, at the released sizes."""
    values = PUBLISHED["ViT-B/32"]
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**values))
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for seed, part in enumerate(model.children()):
        redraw(part, seed)
    model.logit_scale.fill_(4.6)
    for part in (model.text_model, model.vision_model):
        positions = part.embeddings.position_ids
        positions.copy_(torch.arange(positions.shape[1])[None])
    vocab, merges = bpe.tokenizer()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    snapshot.write_json(tmp_path / "config.json", values)
    snapshot.write_json(tmp_path / "preprocessor_config.json", {"crop_size": 224, "size": 224})
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    ours = load(tmp_path, "cpu")
    assert ours.name.startswith("ViT-B/32 ")
    ids = torch.cat([ours.tokenizer(text) for text in TEXTS[:2]])
    frames = random_frames(1, 240, 320)
    pixels = preprocess_standard(frames, ours.preprocess)
    truth = unit(model.get_text_features(ids)), unit(model.get_image_features(pixels))
    for made, right in zip(
        (ours.encode_text(TEXTS[:2]), ours.encode_images(frames)), truth, strict=True
    ):
        assert (made - right).abs().max() <= 1e-5
