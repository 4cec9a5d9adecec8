"""ConsistI2V's Hugging Face folder: its rules and configs."""

from dataclasses import replace
from pathlib import Path

import torch

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert.detect import detect_foreign
from anyv2v.convert.formats import clip, vae
from anyv2v.convert.formats.huggingface import (
    TOKENIZER,
    Component,
    check_vocabulary,
    open_model,
    translate,
)
from anyv2v.convert.formats.i2vgen import SCHEDULER_DEFAULTS
from anyv2v.convert.formats.stable_diffusion import UNET_FIXED as SD_FIXED
from anyv2v.convert.formats.unet import (
    RESNET,
    attention_levels,
    config_defaults,
    transformer,
    unet,
)
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.convert.rename import Rule, prefixed, rules
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, Shapes

PIPELINES = ("ConditionalVideoEditingPipeline", "ConditionalAnimationPipeline")
"""The classes that model_index.json may name: AnyV2V's pipeline, and ConsistI2V's own."""

# 3x1x1 convolutions over (f, h, w) in the checkpoint, 3x1 over (f, h*w) here
TEMPORAL_CONV = (
    *rules({"alpha": "alpha", "norm1": "norm1", "norm2": "norm2"}),
    *(Rule(name, name, squeeze=1) for name in ("conv1", "conv2")),
)
TEMPORAL = (
    Rule("alpha", "alpha"),
    *transformer("cross"),
    *prefixed(
        "transformer_blocks.0",
        "block",
        rules(
            {
                "attn1.rotary_emb.freqs": "self.frequencies",
                "attn2.rotary_emb.freqs": "cross.frequencies",
            }
        ),
    ),
)
LAYERS = (
    *prefixed("resnets.{}", "res.{}", RESNET),
    *prefixed("conv3ds.{}", "temporal_conv.{}", TEMPORAL_CONV),
    *prefixed("attentions.{}", "spatial.{}", transformer("cross")),
    *prefixed("tempo_attns.{}", "temporal.{}", TEMPORAL),
)
UNET = (
    # between the ways down and up there is no attention along the frames
    *(rule for rule in unet(LAYERS) if not rule.theirs.startswith("mid_block.tempo_attns")),
    *rules(
        {
            "frame_stride_embedding.linear_1": "frame_stride.0",
            "frame_stride_embedding.linear_2": "frame_stride.2",
        }
    ),
)
"""The rules that rename the parameters of ConsistI2V's VideoLDMUNet3DConditionModel."""

COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
}
"""Our name of each network -> where it is in the folder."""

UNET_DEFAULTS = config_defaults("2D") | {
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "n_frames": 8,
    "n_temp_heads": 8,
}
"""The values that the UNet's class assumes for fields that config.json lacks."""
# attention is computed in float32 where `upcast_attention` asks for it, and here anyway
UNET_FIXED = {
    **{name: value for name, value in SD_FIXED.items() if name != "upcast_attention"},
    "addition_embed_type": None,
}
"""Fields of the UNet's config.json -> the value that its class assumes if they are absent, and the
only one that is supported, because any other means another network."""
UNET_SWITCHES = {
    "use_linear_projection": (False, True),
    "use_temporal": (True, True),
    "first_frame_condition_mode": ("none", "concat"),
    "augment_temporal_attention": (False, True),
    "temp_pos_embedding": ("sinusoidal", "rotary"),
    "use_frame_stride_condition": (False, True),
}
"""Fields of the UNet's config.json -> (the value that its class assumes if they are absent, that of
the released network, the only one that is supported)."""
BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
"""The values that diffusers' DDIMScheduler assumes for absent fields."""
UNUSED_TIME = 512
"""Length of the vectors that the projections `time_emb_proj` of temporal convolutions would read,
if the network called them."""
UNUSED_BUCKETS = 32
"""Number of distances that the tables `rotary_bias` tell apart, which the network never reads."""


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a Hugging Face folder of ConsistI2V.

    Left out are the tensors that the network has and never uses, see `unused_shapes`. dtype: the
    dtype to convert to; if it is float16, half-precision weight files are preferred to others.
    Raises InputError if a file or an unused tensor is missing, or if the model is not implemented.
    """
    model = open_model(src, COMPONENTS, read_config, prefer_half=dtype == torch.float16)
    network = without_unused(model.networks["unet"], unused_shapes(model.config["unet"]))
    return replace(model, networks={**model.networks, "unet": network})


def unused_shapes(sizes: dict) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the tensors that the published UNet has and never uses.

    They are a projection of the time embedding in every temporal convolution, and a table of
    relative positions in every attention of a temporal transformer. sizes: the section "unet" of
    our config.json.
    """
    widths, attention, layers = sizes["widths"], sizes["attention"], sizes["layers"]
    shapes: dict[str, tuple[int, ...]] = {}

    def add(block: str, channels: int, layers: int, attends: bool) -> None:
        for i in range(layers):
            projection = f"{block}.conv3ds.{i}.time_emb_proj"
            shapes[f"{projection}.weight"] = (channels, UNUSED_TIME)
            shapes[f"{projection}.bias"] = (channels,)
        for i in range(layers if attends else 0):
            for name in ("attn1", "attn2"):
                attention = f"{block}.tempo_attns.{i}.transformer_blocks.0.{name}"
                table = f"{attention}.rotary_bias.relative_attention_bias.weight"
                shapes[table] = (UNUSED_BUCKETS, sizes["temporal_heads"])

    levels = list(zip(widths, attention, strict=True))
    for i, (channels, attends) in enumerate(levels):
        add(f"down_blocks.{i}", channels, layers, attends)
    add("mid_block", widths[-1], 2, False)
    for i, (channels, attends) in enumerate(reversed(levels)):
        add(f"up_blocks.{i}", channels, layers + 1, attends)
    return shapes


def without_unused(
    network: PublishedNetwork, unused: dict[str, tuple[int, ...]]
) -> PublishedNetwork:
    """Returns a published UNet without its `unused` tensors (name -> shape), all of which it has.

    Raises InputError if one is missing or has another shape.
    """
    weights = network.weights
    shapes: Shapes = {name: shape for name, (_, shape) in weights.layout.items()}
    wrong = [
        f"{name} {tuple(shapes[name]) if name in shapes else 'missing'}, should be {shape}"
        for name, shape in unused.items()
        if tuple(shapes.get(name, ())) != shape
    ]
    if wrong:
        which = detect_foreign("unet", shapes, unused) or "; ".join(wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{weights.origin}: {which}{more}")
    return PublishedNetwork(weights.select(lambda name: name not in unused), network.table)


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Translates the config files of a folder of ConsistI2V to our config.json.

    src: the folder. vocab: the tokenizer's token -> id. Raises InputError if a network is not
    implemented, or if the networks and the tokenizer do not match each other.
    """
    unet = translate(src / "unet/config.json", unet_config)
    clip_defaults = translate(src / "unet/config.json", clip_config)
    text = translate(src / "text_encoder/config.json", clip.text_config)
    if text["width"] != unet["context_width"]:
        raise InputError(
            f"{src}: text_encoder: hidden_size is {text['width']}; "
            f"unet: cross_attention_dim is {unet['context_width']}"
        )
    check_vocabulary(src, vocab, text["vocab_size"])
    return {
        "format": FORMAT,
        "backbone": "consisti2v",
        "components": ["unet", "vae", "text"],
        "defaults": clip_defaults,
        "unet": unet,
        "vae": translate(src / "vae/config.json", vae.vae_config),
        "text": text,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "schedule": translate(src / "scheduler/scheduler_config.json", schedule_config),
        "injection": paper_sites(unet["attention"], unet["layers"]),
    }


def unet_config(where: str, values: dict) -> dict:
    """Translates the published config of the UNet to the section "unet" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError if the
    network that it describes is not implemented: sizes may be any, switches are those of the
    released network.
    """
    assumed = {name: value for name, (value, _) in UNET_SWITCHES.items()}
    config = HFConfig(where, values, UNET_DEFAULTS | UNET_FIXED | assumed)
    config.one_of("_class_name", "VideoLDMUNet3DConditionModel")
    for name, value in UNET_FIXED.items():
        config.one_of(name, *((1, 1.0) if value == 1 and value is not True else (value,)))
    for name, (_, value) in UNET_SWITCHES.items():
        config.one_of(name, value)
    level_channels = config.counts("block_out_channels")
    channels = config.one_of("in_channels", 4)
    config.one_of("out_channels", channels)
    return {
        "channels": channels,
        "widths": level_channels,
        "attention": attention_levels(config, "2D", len(level_channels)),
        "layers": config.count("layers_per_block"),
        "spatial_heads": _spatial_heads(config, level_channels),
        "temporal_heads": config.divisor("n_temp_heads", level_channels, "block_out_channels"),
        "context_width": config.count("cross_attention_dim"),
        "groups": config.divisor("norm_num_groups", level_channels, "block_out_channels"),
    }


def _spatial_heads(config: HFConfig, level_channels: list[int]) -> list[int]:
    # diffusers means the number of heads, under a wrong name that old files keep
    name = "attention_head_dim"
    if isinstance(config[name], list):
        heads = config.counts(name)
    else:
        heads = [config.count(name)] * len(level_channels)
    if len(heads) != len(level_channels):
        raise config.error(name, f"one number per width is needed, that is {len(level_channels)}")
    if any(channels % n for channels, n in zip(level_channels, heads, strict=True)):
        raise config.error(name, f"each must divide its width of {level_channels}")
    return heads


def clip_config(where: str, values: dict) -> dict:
    """Returns the section "defaults" of our config.json: the clips that the network was trained on.

    where: the published config of the UNet, as error messages name it. values: its content. Raises
    InputError if its number of frames is not a whole number from 2 up.
    """
    config = HFConfig(where, values, UNET_DEFAULTS)
    if (frames := config.count("n_frames")) < 2:
        raise config.error("n_frames", "a clip has 2 frames or more")
    return {"size": [256, 256], "frames": frames, "fps": 8}


def schedule_config(where: str, values: dict) -> dict:
    """Translates diffusers' scheduler_config.json to the section "schedule" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError at the first
    field that differs from ConsistI2V's schedule, which alone is implemented.
    """
    config = HFConfig(where, values, SCHEDULER_DEFAULTS | BETAS)
    config.one_of("_class_name", "DDIMScheduler")
    config.one_of("beta_start", 0.00085)
    config.one_of("beta_end", 0.012)
    config.one_of("beta_schedule", "linear")
    config.one_of("trained_betas", None)
    config.one_of("clip_sample", False)
    config.one_of("set_alpha_to_one", True)
    config.one_of("prediction_type", "epsilon")
    config.one_of("thresholding", False)
    config.one_of("timestep_spacing", "leading")
    config.one_of("rescale_betas_zero_snr", False)
    return {
        "train_steps": config.one_of("num_train_timesteps", 1000),
        "steps_offset": config.one_of("steps_offset", 1),
    }
