"""Published IP-Adapters and T2I-Adapters for Stable Diffusion 1.5: their rules and configs."""

from pathlib import Path

import torch

from anyv2v.convert.detect import detect_foreign
from anyv2v.convert.files import open_files, open_weights
from anyv2v.convert.formats import clip, huggingface
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.convert.rename import Rule, prefixed, rules
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, IP_ADAPTER, T2I_ADAPTER, Shapes, read_json

# The files number the attentions of the UNet in the order of diffusers: down, up, mid, and in each
# block the self-attention before the cross-attention. So cross-attentions have the odd numbers.
CROSS = (
    *(f"down.{level}.spatial.{i}.block.cross" for level in (0, 1, 2) for i in (0, 1)),
    *(f"up.{level}.spatial.{i}.block.cross" for level in (1, 2, 3) for i in (0, 1, 2)),
    "mid.spatial.0.block.cross",
)
IP_NAMES = (
    *prefixed("image_proj", "", rules({"proj": "proj", "norm": "norm"})),
    *(
        rule
        for number, site in enumerate(CROSS)
        for rule in prefixed(
            f"ip_adapter.{2 * number + 1}", site, rules({"to_k_ip": "k", "to_v_ip": "v"})
        )
    ),
)
"""The rules that rename the parameters of an IP-Adapter."""
SUFFIXES = (".safetensors", ".bin")
"""Suffixes of an IP-Adapter's file."""
GROUPS = ("image_proj", "ip_adapter")
"""Keys of the two dicts in an IP-Adapter's .bin file; in .safetensors, names begin with them."""
FIRST_OF_LEVEL = (1, 5, 9, 31)
"""For each level of the UNet, the number that an IP-Adapter's file gives to one of the level's
cross-attentions; the lowest level has only that of the middle block."""

LEVEL = (
    *prefixed("resnets.{}", "res.{}", rules({"block1": "conv1", "block2": "conv2"})),
    Rule("in_conv", "proj_in"),
)
T2I_NAMES = {
    "full": prefixed(
        "adapter", "", (Rule("conv_in", "conv_in"), *prefixed("body.{}", "levels.{}", LEVEL))
    ),
    "light": prefixed("adapter.body.{}", "levels.{}", (*LEVEL, Rule("out_conv", "proj_out"))),
}
"""Kind of a T2I-Adapter -> the rules that rename its parameters."""
# the defaults of diffusers 0.42
T2I_DEFAULTS = {
    "in_channels": 3,
    "channels": [320, 640, 1280, 1280],
    "num_res_blocks": 2,
    "downscale_factor": 8,
    "adapter_type": "full_adapter",
}

VISION = huggingface.COMPONENTS["vision"]
"""Where the vision encoder of the published IP-Adapters is, relative to the adapter's folder."""


def read_ip_adapter(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens an IP-Adapter's file and the vision encoder in the folder image_encoder beside it.

    dtype: the dtype to convert to; if it is float16, half-precision files of the vision encoder are
    preferred to others. Raises InputError if there is no vision encoder, if a file cannot be read,
    or if it is not an IP-Adapter that is implemented.
    """
    weights = open_files([src], src, groups=GROUPS)
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
    networks = {
        "adapter": PublishedNetwork(weights, IP_NAMES),
        "vision": huggingface.open_network(src.parent, VISION, prefer_half=half),
    }
    ours = {
        "format": FORMAT,
        "model": IP_ADAPTER,
        "adapter": sizes,
        "vision": vision,
        # no file says these: they are the values with which diffusers makes a CLIPImageProcessor
        "preprocess": clip.preprocess_config(src.name, {"crop_size": vision["image_size"]}),
    }
    return Model(ours, {}, networks)


def is_t2i_adapter(src: Path) -> bool:
    """Whether `src` is a Hugging Face folder of a T2I-Adapter, judged by its config.json."""
    config = src / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "T2IAdapter"


def read_t2i_adapter(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a Hugging Face folder of a T2I-Adapter.

    dtype: the dtype to convert to; if it is float16, half-precision weight files are preferred to
    others. Raises InputError if a file is missing, or if the adapter is not implemented.
    """
    config = src / "config.json"
    sizes = t2i_adapter_config(str(config), read_json(config))
    weights = open_weights(src, "diffusion_pytorch_model", prefer_half=dtype == torch.float16)
    ours = {"format": FORMAT, "model": T2I_ADAPTER, "adapter": sizes}
    return Model(ours, {}, {"adapter": PublishedNetwork(weights, T2I_NAMES[sizes["kind"]])})


def ip_adapter_config(where: Path, shapes: Shapes) -> dict:
    """Derives the section "adapter" of our config.json from the shapes of an IP-Adapter's tensors.

    IP-Adapters are published without a config. where: the file, as error messages name it. shapes:
    published name of a tensor -> its shape. Raises InputError if it is another kind of IP-Adapter,
    or none.
    """
    if foreign := detect_foreign("adapter", shapes, {}):
        raise InputError(f"{where}: {foreign}; ip-adapter_sd15 and ip-adapter_sd15_light will do")

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if len(shapes.get(name, ())) != dims or 0 in shapes[name]:
            what = f"{name} is {shapes[name]}" if name in shapes else f"has no {name}"
            raise InputError(f"{where}: {what}: is no IP-Adapter for Stable Diffusion 1.5")
        return shapes[name]

    rows, image_dim = shape("image_proj.proj.weight", 2)
    (context_dim,) = shape("image_proj.norm.weight", 1)
    if rows % context_dim:
        raise InputError(
            f"{where}: image_proj.proj.weight has {rows} rows, no multiple of the "
            f"{context_dim} of image_proj.norm.weight"
        )
    return {
        "tokens": rows // context_dim,
        "context_width": context_dim,
        "image_width": image_dim,
        "widths": [shape(f"ip_adapter.{n}.to_k_ip.weight", 2)[0] for n in FIRST_OF_LEVEL],
    }


def t2i_adapter_config(where: str, values: dict) -> dict:
    """Translates diffusers' config of a T2I-Adapter to the section "adapter" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError if the
    adapter that it describes is not implemented.
    """
    config = HFConfig(where, values, T2I_DEFAULTS)
    config.one_of("_class_name", "T2IAdapter")
    kind = config.one_of("adapter_type", "full_adapter", "light_adapter").removesuffix("_adapter")
    level_channels = config.counts("channels")
    return {
        "kind": kind,
        "channels": config.one_of("in_channels", 1, 3),
        # a light adapter has one level more than its config lists, with the channels of the last
        "widths": [*level_channels, level_channels[-1]] if kind == "light" else level_channels,
        "layers": config.count("num_res_blocks"),
        "factor": config.count("downscale_factor"),
    }
