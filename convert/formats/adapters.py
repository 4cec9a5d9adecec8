"""IP-Adapter and T2I-Adapter for Stable Diffusion 1.5, opened: names and configs."""

from pathlib import Path

import torch

from anyv2v.convert.detect import recognise
from anyv2v.convert.files import gather, open_weights
from anyv2v.convert.formats import clip, huggingface
from anyv2v.convert.hf_config import Fields
from anyv2v.convert.model import Model, Source
from anyv2v.convert.rename import Rule, rules, under
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, IP_ADAPTER, T2I_ADAPTER, Shapes, read_json

# the files count the attentions of the UNet as diffusers lists them: down, up, mid, in each block
# the self-attention before the cross-attention, so cross-attentions have the odd numbers
CROSS = (
    *(f"down.{level}.spatial.{i}.block.cross" for level in (0, 1, 2) for i in (0, 1)),
    *(f"up.{level}.spatial.{i}.block.cross" for level in (1, 2, 3) for i in (0, 1, 2)),
    "mid.spatial.0.block.cross",
)
IP_NAMES = (
    *under("image_proj", "", rules({"proj": "proj", "norm": "norm"})),
    *(
        rule
        for number, site in enumerate(CROSS)
        for rule in under(
            f"ip_adapter.{2 * number + 1}", site, rules({"to_k_ip": "k", "to_v_ip": "v"})
        )
    ),
)
SUFFIXES = (".safetensors", ".bin")
GROUPS = ("image_proj", "ip_adapter")
"""The dicts of which a .bin file of IP-Adapter is made; names in .safetensors begin with them."""
FIRST_OF_LEVEL = (1, 5, 9, 31)
"""The number of one attention per level; the lowest level has but the one in the middle."""

LEVEL = (
    *under("resnets.{}", "res.{}", rules({"block1": "conv1", "block2": "conv2"})),
    Rule("in_conv", "proj_in"),
)
T2I_NAMES = {
    "full": under(
        "adapter", "", (Rule("conv_in", "conv_in"), *under("body.{}", "levels.{}", LEVEL))
    ),
    "light": under("adapter.body.{}", "levels.{}", (*LEVEL, Rule("out_conv", "proj_out"))),
}
# diffusers 0.42
T2I_DEFAULTS = {
    "in_channels": 3,
    "channels": [320, 640, 1280, 1280],
    "num_res_blocks": 2,
    "downscale_factor": 8,
    "adapter_type": "full_adapter",
}

VISION = huggingface.COMPONENTS["vision"]
"""Where the published IP-Adapters have the vision tower, seen from the adapter's file."""


def read_ip_adapter(src: Path, dtype: torch.dtype | None) -> Model:
    """An IP-Adapter's file, and the vision tower in the folder image_encoder beside it."""
    weights = gather([src], src, groups=GROUPS)
    sizes = ip_adapter_config(src, {name: shape for name, (_, shape) in weights.layout.items()})
    folder = src.parent / VISION.folder
    if not folder.is_dir():
        raise InputError(
            f"{src}: its vision tower is needed in {folder}, as h94/IP-Adapter has it in "
            "models/image_encoder; there is no such folder"
        )
    config = folder / "config.json"
    vision = clip.vision_config(str(config), read_json(config))
    if vision["projection_width"] != sizes["image_width"]:
        raise InputError(
            f"{config}: projection_dim is {vision['projection_width']}; "
            f"{src}: takes embeddings of {sizes['image_width']}"
        )
    half = dtype == torch.float16
    sources = {
        "adapter": Source(weights, IP_NAMES),
        "vision": huggingface.open_source(src.parent, VISION, prefer_half=half),
    }
    ours = {
        "format": FORMAT,
        "model": IP_ADAPTER,
        "adapter": sizes,
        "vision": vision,
        # there is no file of these: what diffusers makes a CLIPImageProcessor with
        "preprocess": clip.preprocess_config(src.name, {"crop_size": vision["image_size"]}),
    }
    return Model(ours, {}, "", sources)


def is_t2i_adapter(src: Path) -> bool:
    """Whether it is a Hugging Face folder of a T2I-Adapter."""
    config = src / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "T2IAdapter"


def read_t2i_adapter(src: Path, dtype: torch.dtype | None) -> Model:
    """A T2I-Adapter's folder."""
    config = src / "config.json"
    sizes = t2i_adapter_config(str(config), read_json(config))
    weights = open_weights(src, "diffusion_pytorch_model", prefer_half=dtype == torch.float16)
    ours = {"format": FORMAT, "model": T2I_ADAPTER, "adapter": sizes}
    return Model(ours, {}, "", {"adapter": Source(weights, T2I_NAMES[sizes["kind"]])})


def ip_adapter_config(where: Path, found: Shapes) -> dict:
    """The sizes of an IP-Adapter from the shapes in its file, which comes without a config.

    InputError: one of another kind, and what is no IP-Adapter.
    """
    if stranger := recognise("adapter", found, {}):
        raise InputError(f"{where}: {stranger}; ip-adapter_sd15 and ip-adapter_sd15_light will do")

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if len(found.get(name, ())) != dims or 0 in found[name]:
            what = f"{name} is {found[name]}" if name in found else f"has no {name}"
            raise InputError(f"{where}: {what}: is no IP-Adapter for Stable Diffusion 1.5")
        return found[name]

    rows, image_width = shape("image_proj.proj.weight", 2)
    (context_width,) = shape("image_proj.norm.weight", 1)
    if rows % context_width:
        raise InputError(
            f"{where}: image_proj.proj.weight has {rows} rows, no multiple of the "
            f"{context_width} of image_proj.norm.weight"
        )
    return {
        "tokens": rows // context_width,
        "context_width": context_width,
        "image_width": image_width,
        "widths": [shape(f"ip_adapter.{n}.to_k_ip.weight", 2)[0] for n in FIRST_OF_LEVEL],
    }


def t2i_adapter_config(where: str, values: dict) -> dict:
    """The sizes of a T2I-Adapter from diffusers' config.json."""
    theirs = Fields(where, values, T2I_DEFAULTS)
    theirs.only("_class_name", "T2IAdapter")
    kind = theirs.only("adapter_type", "full_adapter", "light_adapter").removesuffix("_adapter")
    widths = theirs.counts("channels")
    return {
        "kind": kind,
        "channels": theirs.only("in_channels", 1, 3),
        # a light adapter has a level more than it names: the last, once again
        "widths": [*widths, widths[-1]] if kind == "light" else widths,
        "layers": theirs.count("num_res_blocks"),
        "factor": theirs.count("downscale_factor"),
    }
