"""The published configs of Wan 2.2 TI2V-5B, compared with the sizes of the weights.

Each function that returns a section of our config.json takes `where`, the file as error messages
name it, `values`, its content, and `sizes`, what `wan_sizes` found; it raises InputError at the
first field that contradicts the weights or means another computation.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anyv2v.convert.hf_config import HFConfig
from anyv2v.errors import InputError

log = logging.getLogger(__name__)

ONLY = "of Wan, 2.2's TI2V-5B alone is supported"
"""The end of messages about other networks of Wan."""
TEXT_TOKENS = 512
"""The most tokens of a prompt, and the number of vectors that the transformer reads. The pipelines
of diffusers and the original's config.json have it, the configs of diffusers' networks do not."""
TEXT = {"tokens": TEXT_TOKENS, "max_distance": 128, "norm_eps": 1e-6}
"""What of the text encoder no tensor tells, in the original's code (wan/modules/t5.py)."""
SHIFT = 5.0
"""The shift of TI2V-5B's schedule."""
SCHEDULE = {"train_steps": 1000, "shift": SHIFT}
MOMENTS = {
    "mean": [
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ],
    "std": [
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ],
}
"""Mean and standard deviation of each of the 48 channels of the latents, which the original has in
its code (wan/modules/vae2_2.py) and not in a file."""

# what diffusers and transformers assume for absent fields
TRANSFORMER_DEFAULTS = {
    "_class_name": None,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
    "pos_embed_seq_len": None,
}
ORIGINAL_DEFAULTS = {
    "_class_name": "WanModel",
    "text_len": TEXT_TOKENS,
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "window_size": [-1, -1],
}
VAE_DEFAULTS = {
    "_class_name": None,
    "base_dim": 96,
    "decoder_base_dim": None,
    "dim_mult": [1, 2, 4, 4],
    "attn_scales": [],
    "is_residual": False,
}
TEXT_DEFAULTS = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
SCHEDULER_DEFAULTS = {
    "_class_name": None,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "shift_terminal": None,
}


def check_index(where: str, index: Mapping) -> None:
    """Raises InputError if model_index.json, its content `index`, is not that of TI2V-5B.

    where: the file or repository, as error messages name it.
    """
    second = index.get("transformer_2")
    if index.get("boundary_ratio") is not None or (isinstance(second, list) and any(second)):
        raise InputError(f"{where}: has two transformers, as Wan 2.2's A14B does; {ONLY}")
    if (expand := index.get("expand_timesteps")) is not True:
        raise InputError(
            f"{where}: expand_timesteps is {expand!r}, so this is a network for text alone, such "
            "as Wan's T2V, or one that is told the first frame in channels of its own, such as "
            f"its I2V-14B; {ONLY}"
        )


def transformer_config(where: str, values: dict, sizes: dict) -> dict:
    """Returns the section "transformer", for diffusers' config.json of WanTransformer3DModel.

    Fields of an image embedding that the weights have not are told in a warning and left out:
    copies of TI2V-5B's own config have them, and the weights are whole without.
    """
    config = HFConfig(where, values, TRANSFORMER_DEFAULTS)
    config.one_of("_class_name", "WanTransformer3DModel")
    config.one_of("cross_attn_norm", True)
    config.one_of("qk_norm", "rms_norm_across_heads")
    config.one_of("pos_embed_seq_len", None)
    _agree(
        config,
        {
            "in_channels": sizes["in_channels"],
            "out_channels": sizes["out_channels"],
            "ffn_dim": sizes["ff_dim"],
            "num_layers": sizes["layers"],
            "text_dim": sizes["text_dim"],
            "freq_dim": sizes["time_dim"],
            "patch_size": sizes["patch"],
        },
    )
    heads = config.count("num_attention_heads")
    if heads * config.count("attention_head_dim") != sizes["dim"]:
        raise config.error(
            "num_attention_heads",
            f"times attention_head_dim, {config['attention_head_dim']}, should be the "
            f"{sizes['dim']} of the weights",
        )
    absent = [n for n in ("image_dim", "added_kv_proj_dim") if values.get(n) is not None]
    if absent:
        told = " and ".join(f"{name} {values[name]!r}" for name in absent)
        log.warning(
            "anyv2v: %s: tells of %s, layers for a picture that the weights have not and TI2V-5B "
            "does without; it is converted as the weights are",
            where,
            told,
        )
    positions = config.count("rope_max_seq_len")
    return _transformer(sizes, heads, TEXT_TOKENS, positions, config.positive_number("eps"))


def original_config(where: str, values: dict, sizes: dict) -> dict:
    """Returns the section "transformer", for config.json of the original release."""
    config = HFConfig(where, values, ORIGINAL_DEFAULTS)
    config.one_of("_class_name", "WanModel")
    if (kind := values.get("model_type")) != "ti2v":
        raise InputError(f"{where}: model_type is {kind!r}; {ONLY}, whose model_type is 'ti2v'")
    for name in ("qk_norm", "cross_attn_norm"):
        config.one_of(name, True)
    config.one_of("window_size", [-1, -1])
    _agree(
        config,
        {
            "in_dim": sizes["in_channels"],
            "out_dim": sizes["out_channels"],
            "dim": sizes["dim"],
            "ffn_dim": sizes["ff_dim"],
            "num_layers": sizes["layers"],
            "text_dim": sizes["text_dim"],
            "freq_dim": sizes["time_dim"],
            "patch_size": sizes["patch"],
        },
    )
    heads = config.divisor("num_heads", [sizes["dim"]], "dim")
    tokens = config.one_of("text_len", TEXT_TOKENS)
    # as many positions as the original makes rotations for, for each axis
    return _transformer(sizes, heads, tokens, 1024, config.positive_number("eps"))


def vae_config(where: str, values: dict, sizes: dict) -> dict:
    """Returns the section "vae", for diffusers' config.json of AutoencoderKLWan."""
    config = HFConfig(where, values, VAE_DEFAULTS)
    config.one_of("_class_name", "AutoencoderKLWan")
    if config["is_residual"] is not True:
        raise config.error("is_residual", f"that is Wan 2.1's autoencoder; {ONLY}")
    multiples = config.counts("dim_mult")
    if multiples[0] != 1:
        raise config.error("dim_mult", "only 1 is supported for the first level")
    config.one_of("attn_scales", [])
    encoder = config.count("base_dim")
    decoder = encoder if config["decoder_base_dim"] is None else config.count("decoder_base_dim")
    for name, width, side in (
        ("base_dim", encoder, "encoder_channels"),
        ("decoder_base_dim", decoder, "decoder_channels"),
    ):
        if (told := [width * multiple for multiple in multiples]) != sizes[side]:
            raise InputError(
                f"{where}: {name} {width} times dim_mult is {told}; {_have(sizes[side])}"
            )
    pixels = sizes["channels"] * sizes["patch"] ** 2
    _agree(
        config,
        {
            "z_dim": sizes["latent_channels"],
            "num_res_blocks": sizes["layers"],
            "temperal_downsample": sizes["temporal"],
            "patch_size": sizes["patch"],
            "in_channels": pixels,
            "out_channels": pixels,
        },
    )
    channels = sizes["latent_channels"]
    moments = {"mean": "latents_mean", "std": "latents_std"}
    return sizes | {ours: _numbers(config, name, channels) for ours, name in moments.items()}


def text_config(where: str, values: dict, sizes: dict) -> dict:
    """Returns the section "text", for transformers' config.json of UMT5EncoderModel."""
    config = HFConfig(where, values, TEXT_DEFAULTS)
    config.one_of("model_type", "umt5")
    config.one_of("feed_forward_proj", "gated-gelu")
    _agree(
        config,
        {
            "vocab_size": sizes["vocab_size"],
            "d_model": sizes["width"],
            "d_kv": sizes["head_dim"],
            "d_ff": sizes["mlp_width"],
            "num_heads": sizes["heads"],
            "num_layers": sizes["layers"],
            "relative_attention_num_buckets": sizes["buckets"],
        },
    )
    return sizes | {
        "tokens": TEXT_TOKENS,
        "max_distance": config.count("relative_attention_max_distance"),
        "norm_eps": config.positive_number("layer_norm_epsilon"),
    }


HUB: dict[str, Callable[[str, dict, dict], dict]] = {
    "transformer": transformer_config,
    "vae": vae_config,
    "text": text_config,
}
"""Our name of each network -> the function that returns its section for the hub's config.json."""


def schedule_config(where: str, values: dict) -> dict:
    """Returns the section "schedule", for diffusers' scheduler_config.json.

    A shift other than that of TI2V-5B is taken, after a warning.
    """
    config = HFConfig(where, values, SCHEDULER_DEFAULTS)
    # the grid of diffusers' other scheduler for flows is another one
    config.one_of("_class_name", "UniPCMultistepScheduler")
    config.one_of("prediction_type", "flow_prediction")
    config.one_of("use_flow_sigmas", True)
    config.one_of("final_sigmas_type", "zero")
    config.one_of("shift_terminal", None)
    for name in ("dynamic_shifting", "karras_sigmas", "exponential_sigmas", "beta_sigmas"):
        config.one_of(f"use_{name}", False)
    steps = config.one_of("num_train_timesteps", SCHEDULE["train_steps"])
    if (shift := config.positive_number("flow_shift")) != SHIFT:
        log.warning("anyv2v: %s: flow_shift is %g, of TI2V-5B %g; it is kept", where, shift, SHIFT)
    return {"train_steps": steps, "shift": shift}


def check_fit(src: Path, sections: Mapping[str, dict]) -> None:
    """Raises InputError if the networks do not fit each other. src: the model's folder."""
    transformer, vae, text = (sections[name] for name in ("transformer", "vae", "text"))
    latents, channels = vae["latent_channels"], transformer["in_channels"]
    if channels != transformer["out_channels"]:
        raise InputError(
            f"{src}: the transformer takes {channels} channels and predicts "
            f"{transformer['out_channels']}, as networks do that are told a picture or more in "
            f"channels of their own, such as Wan's I2V, Fun and VACE; {ONLY}"
        )
    if latents != channels:
        raise InputError(
            f"{src}: the autoencoder's latents have {latents} channels, the transformer's "
            f"{channels}"
        )
    if text["width"] != transformer["text_dim"]:
        raise InputError(
            f"{src}: the text encoder's vectors have the length {text['width']}, the transformer "
            f"reads {transformer['text_dim']}"
        )


def _transformer(sizes: dict, heads: int, tokens: int, positions: int, eps: float) -> dict:
    return sizes | {
        "heads": heads,
        "text_tokens": tokens,
        "positions": positions,
        "eps": eps,
        "clean_first_frame": True,
    }


def _agree(config: HFConfig, told: Mapping[str, Any]) -> None:
    """Raises InputError at the first field that is there and is not what the weights say."""
    for name, value in told.items():
        if name in config.values and config[name] != value:
            raise config.error(name, _have(value))


def _have(value: object) -> str:
    return f"the weights have {value}"


def _numbers(config: HFConfig, name: str, count: int) -> list[float]:
    """A list of so many finite numbers."""
    value = config[name]
    if not isinstance(value, list) or len(value) != count:
        raise config.error(name, f"{count} numbers are needed")
    if not all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in value):
        raise config.error(name, "finite numbers are needed")
    return [float(x) for x in value]
