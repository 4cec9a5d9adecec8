"""CLIP as transformers saves it: rules and configs of both encoders, preprocessing, tokenizer."""

import sys
from pathlib import Path

from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.rename import prefixed, rules
from anyv2v.errors import InputError
from anyv2v.weights.manifest import read_json

LAYER = rules(
    {
        "layer_norm1": "norm1",
        "self_attn.q_proj": "self.q",
        "self_attn.k_proj": "self.k",
        "self_attn.v_proj": "self.v",
        "self_attn.out_proj": "self.out",
        "layer_norm2": "norm2",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
    }
)
TEXT = prefixed(
    "text_model",
    "",
    (
        *rules(
            {
                "embeddings.token_embedding": "token_embedding",
                "embeddings.position_embedding": "position_embedding",
            }
        ),
        *prefixed("encoder.layers.{}", "layers.{}", LAYER),
        *rules({"final_layer_norm": "final_norm"}),
    ),
)
"""The rules that rename the parameters of the text encoder."""
VISION = (
    *prefixed(
        "vision_model",
        "",
        (
            *rules(
                {
                    "embeddings.class_embedding": "class_embedding",
                    "embeddings.patch_embedding": "patch_embedding",
                    "embeddings.position_embedding": "position_embedding",
                    # the misspelling is the checkpoint's
                    "pre_layrnorm": "pre_norm",
                }
            ),
            *prefixed("encoder.layers.{}", "layers.{}", LAYER),
            *rules({"post_layernorm": "post_norm"}),
        ),
    ),
    *rules({"visual_projection": "projection"}),
)
"""The rules that rename the parameters of the vision encoder with its projection."""

# the defaults of transformers 4.39 to 5.23
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
PREPROCESS_DEFAULTS = {
    "crop_size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
TOKENIZER_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "do_lower_case": True,
    "model_max_length": 77,
}


def text_config(where: str, values: dict) -> dict:
    """Translates transformers' config of a CLIP text encoder to section "text" of config.json.

    where: the file, as error messages name it. values: its content, which may be the config of both
    encoders. Raises InputError if the network that it describes is not implemented.
    """
    _check_class(where, values, "CLIPTextModel")
    config = HFConfig(where, _nested(where, values, "text_config"), TEXT_DEFAULTS)
    return {
        "vocab_size": config.count("vocab_size"),
        "tokens": config.one_of("max_position_embeddings", 77),
        **_tower(config),
    }


def vision_config(where: str, values: dict) -> dict:
    """Translates transformers' config of a CLIP vision encoder to section "vision" of config.json.

    where: the file, as error messages name it. values: its content, which may be the config of both
    encoders. Raises InputError if the network that it describes is not implemented.
    """
    _check_class(where, values, "CLIPVisionModelWithProjection")
    config = HFConfig(where, _nested(where, values, "vision_config"), VISION_DEFAULTS)
    config.one_of("num_channels", 3)
    return {
        "image_size": config.square_side("image_size"),
        "patch_size": config.square_side("patch_size"),
        **_tower(config),
        "projection_width": config.count("projection_dim"),
    }


def _check_class(where: str, values: dict, expected: str) -> None:
    config = HFConfig(where, values, {"architectures": [expected]})
    # a config that was saved without a model has no architectures
    if config["architectures"] is not None:
        config.one_of("architectures", [expected])


def _nested(where: str, values: dict, name: str) -> dict:
    """The config of one tower, where the file is that of both towers or of one alone."""
    inner = values.get(name, values)
    if not isinstance(inner, dict):
        raise InputError(f"{where}: {name} is {inner!r}, not a JSON object")
    return inner


def _tower(config: HFConfig) -> dict:
    hidden_size, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if hidden_size % heads:
        raise config.error("num_attention_heads", f"it must divide hidden_size, {hidden_size}")
    return {
        "width": hidden_size,
        "heads": heads,
        "layers": config.count("num_hidden_layers"),
        "mlp_width": config.count("intermediate_size"),
        "activation": config.one_of("hidden_act", "gelu", "quick_gelu"),
        "norm_eps": config.positive_number("layer_norm_eps"),
    }


def preprocess_config(where: str, values: dict) -> dict:
    """Translates preprocessor_config.json to the section "preprocess" of our config.json.

    where: the file, as error messages name it. values: its content. Only the size, mean and
    standard deviation are read, because the original code overrides the other fields when it calls
    the preprocessor. Raises InputError if one of them is invalid.
    """
    config = HFConfig(where, values, PREPROCESS_DEFAULTS)
    for name in ("image_mean", "image_std"):
        value = config[name]
        right = isinstance(value, list) and len(value) == 3
        if not right or not all(map(_is_number, value)):
            raise config.error(name, "one number per color is needed")
        if name == "image_std" and min(value) <= 0:
            raise config.error(name, "deviations are positive")
    return {
        "size": config.square_side("crop_size"),
        "mean": list(config["image_mean"]),
        "std": list(config["image_std"]),
    }


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def tokenizer_config(folder: Path, vocab: dict[str, int], tokens: int) -> dict:
    """Returns the section "tokenizer" of our config.json: the special tokens of a tokenizer.

    folder: of the tokenizer's published files. vocab: the tokenizer's token -> id. tokens: the
    length of the text encoder's sequences. Raises InputError if a special token is not in the
    vocabulary, or if the tokenizer is for sequences of another length.
    """
    values = {}
    if (folder / "tokenizer_config.json").exists():
        values = read_json(folder / "tokenizer_config.json")
    # special_tokens_map.json took precedence in transformers until tokenizer_config.json got its
    # list of added tokens
    if (folder / "special_tokens_map.json").exists():
        special = read_json(folder / "special_tokens_map.json")
        newer = "added_tokens_decoder" in values
        values = {**special, **values} if newer else {**values, **special}
    config = HFConfig(str(folder), values, TOKENIZER_DEFAULTS)
    config.one_of("do_lower_case", True)
    config.one_of("model_max_length", tokens)

    def token(name: str) -> str:
        value = config[name]
        value = value.get("content") if isinstance(value, dict) else value
        if not isinstance(value, str) or value not in vocab:
            raise config.error(name, "a token of vocab.json is needed")
        return value

    return {
        "start": token("bos_token"),
        "end": token("eos_token"),
        "pad": token("pad_token"),
        "unknown": token("unk_token"),
    }


def tokenizer_files(folder: Path) -> tuple[dict[str, int], str]:
    """Reads a tokenizer's vocabulary (token -> id) and the text of its merges.txt.

    folder: holds vocab.json and merges.txt or, as transformers 5 writes it, tokenizer.json alone.
    Raises InputError if it holds neither or they cannot be read.
    """
    both = folder / "vocab.json", folder / "merges.txt"
    if all(path.is_file() for path in both):
        try:
            vocab, merges = read_json(both[0]), both[1].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{both[1]}: cannot be read: {error}") from error
        where = both[0]
    elif (where := folder / "tokenizer.json").is_file():
        model = read_json(where).get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE":
            raise InputError(f"{where}: its model is not BPE, CLIP's is")
        vocab, pairs = model.get("vocab"), model.get("merges", [])
        try:
            lines = [pair if isinstance(pair, str) else "{} {}".format(*pair) for pair in pairs]
        except (IndexError, TypeError) as error:
            raise InputError(f"{where}: its merges are no list of pairs") from error
        merges = "\n".join(["#version: 0.2", *lines]) + "\n"
    else:
        raise InputError(f"{folder}: has neither vocab.json and merges.txt nor tokenizer.json")
    if not isinstance(vocab, dict) or not vocab or not all(type(i) is int for i in vocab.values()):
        raise InputError(f"{where}: is no vocabulary: token -> id")
    return vocab, merges
