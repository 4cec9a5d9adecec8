"""Whole CLIPs as OpenCLIP publishes them: open_clip_config.json and one file of weights."""

from pathlib import Path

from anyv2v.convert import bpe
from anyv2v.convert.files import open_weights, split_fused
from anyv2v.convert.formats import clip, vgen_names
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import PublishedNetwork
from anyv2v.convert.rename import Rule
from anyv2v.errors import InputError
from anyv2v.weights.manifest import read_json

CONFIG = "open_clip_config.json"
"""The file that makes a folder a model of OpenCLIP."""
STEM = "open_clip_model"
"""Stem of OpenCLIP's weight files, a key of `anyv2v.convert.files.STEMS`."""
TEXT = (
    *vgen_names.TEXT,
    Rule("text_projection", "projection.weight", transpose=True),
    Rule("logit_scale", "logit_scale"),
)
"""The rules that rename the parameters of the text encoder with its projection."""
VISION_PREFIX = "visual."
"""Beginning of the names of the image encoder's parameters; all others are the text encoder's."""

# the defaults of OpenCLIP 3.3
MODEL_DEFAULTS = {"quick_gelu": False}
MODEL_FIXED = {
    "custom_text": False,
    "nonscalar_logit_scale": False,
    "init_logit_bias": None,
    "multimodal_cfg": None,
}
VISION_DEFAULTS = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
VISION_FIXED = {
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "output_tokens": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "timm_model_name": None,
}
TEXT_DEFAULTS = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
TEXT_FIXED = {
    "hf_tokenizer_name": None,
    "hf_model_name": None,
    "tokenizer_kwargs": None,
    "ls_init_value": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "final_ln_after_pool": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "output_tokens": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
"""Fields of a config -> the value that OpenCLIP assumes if they are absent, and the only one that
is supported, because any other means another network."""
IGNORED = {
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "init_logit_scale", "output_dict"),
    # patches are dropped in training alone, and the padding does not change an embedding
    "vision_cfg": ("patch_dropout",),
    "text_cfg": ("pad_id",),
}
"""Section -> its further fields, which change nothing here."""
PREPROCESS_DEFAULTS = {
    "mean": clip.PREPROCESS_DEFAULTS["image_mean"],
    "std": clip.PREPROCESS_DEFAULTS["image_std"],
}
PREPROCESS_FIXED = {"interpolation": "bicubic", "resize_mode": "shortest"}
NORM_EPS = 1e-5
"""The epsilon of OpenCLIP's layer norms, those of torch."""

Tokenizer = tuple[dict[str, int], str]
"""A tokenizer's vocabulary (token -> id) and the text of its merges.txt."""


def read(src: Path) -> tuple[dict, dict[str, PublishedNetwork], Tokenizer]:
    """Opens a folder that OpenCLIP published.

    Returns the sections of our config.json, component ("text" or "vision") -> its published
    network, and the tokenizer, which is CLIP's for all such models. Raises InputError if a file is
    missing or cannot be read, or if the model is not implemented.
    """
    where = str(src / CONFIG)
    sections = translate(where, read_json(src / CONFIG))
    vocab, merges = bpe.tokenizer()
    size = sections["text"]["vocab_size"]
    if size != len(vocab):
        raise InputError(f"{where}: vocab_size is {size}; CLIP's tokenizer has {len(vocab)} tokens")
    weights = split_fused(
        open_weights(src, STEM, prefer_half=False), vgen_names.FUSED, vgen_names.PARTS
    )
    networks = {
        "text": PublishedNetwork(
            weights.select(lambda name: not name.startswith(VISION_PREFIX)), TEXT
        ),
        "vision": PublishedNetwork(
            weights.select(lambda name: name.startswith(VISION_PREFIX)), vgen_names.VISION
        ),
    }
    return sections, networks, (vocab, merges)


def translate(where: str, values: dict) -> dict:
    """Translates open_clip_config.json to sections of our config.json.

    They are "text", "vision", "tokenizer" and "preprocess". where: the file, as error messages name
    it. values: its content. Raises InputError if the network that it describes is not implemented.
    """
    model = _section(where, values, "model_cfg", MODEL_DEFAULTS, MODEL_FIXED)
    activation = "quick_gelu" if model.one_of("quick_gelu", False, True) else "gelu"
    vision = _section(where, model.values, "vision_cfg", VISION_DEFAULTS, VISION_FIXED)
    text = _section(where, model.values, "text_cfg", TEXT_DEFAULTS, TEXT_FIXED)
    width, head_dim = vision.count("width"), vision.count("head_width")
    if width % head_dim:
        raise vision.error("head_width", f"it must divide width, {width}")
    image_size = vision.square_side("image_size")
    start, end = bpe.SPECIAL
    return {
        "text": {
            "vocab_size": text.count("vocab_size"),
            "tokens": text.one_of("context_length", 77),
            **_tower(text, text.divisor("heads", [text.count("width")], "width"), activation),
        },
        "vision": {
            "image_size": image_size,
            "patch_size": vision.square_side("patch_size"),
            **_tower(vision, width // head_dim, activation),
            "projection_width": model.count("embed_dim"),
        },
        # as transformers' tokenizer has them; OpenCLIP's own pads with id 0, "!"
        "tokenizer": {"start": start, "end": end, "pad": end, "unknown": end},
        "preprocess": _preprocess(where, values, image_size),
    }


def _section(where: str, values: dict, name: str, defaults: dict, fixed: dict) -> HFConfig:
    """A section of the config, whose fields must be known and, in `fixed`, have those values."""
    inner = values.get(name)
    if not isinstance(inner, dict):
        raise InputError(f"{where}: {name} is {inner!r}, not a JSON object")
    config = HFConfig(f"{where}: {name}", inner, defaults | fixed)
    for field in inner:
        if field not in config.defaults and field not in IGNORED.get(name, ()):
            raise config.error(field, "no such field of an OpenCLIP is known")
    for field, value in fixed.items():
        config.one_of(field, value)
    return config


def _tower(config: HFConfig, heads: int, activation: str) -> dict:
    width, ratio = config.count("width"), config.positive_number("mlp_ratio")
    return {
        "width": width,
        "heads": heads,
        "layers": config.count("layers"),
        "mlp_width": int(width * ratio),
        "activation": activation,
        "norm_eps": NORM_EPS,
    }


def _preprocess(where: str, values: dict, size: int) -> dict:
    inner = values.get("preprocess_cfg", {})
    if not isinstance(inner, dict):
        raise InputError(f"{where}: preprocess_cfg is {inner!r}, not a JSON object")
    config = HFConfig(f"{where}: preprocess_cfg", inner, PREPROCESS_DEFAULTS | PREPROCESS_FIXED)
    for name, value in PREPROCESS_FIXED.items():
        config.one_of(name, value)
    facts = {"crop_size": size, "image_mean": config["mean"], "image_std": config["std"]}
    return clip.preprocess_config(config.where, facts)
