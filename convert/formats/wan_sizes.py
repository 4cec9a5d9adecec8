"""The sizes of Wan's networks, read off the shapes of their published tensors.

Configs of Wan are not always right: there is one of TI2V-5B that tells of layers which the network
lacks. So the sizes come from the tensors, and a config is only compared with them. The functions
raise InputError, which names the tensor, where one that they look at is missing or misshapen.
"""

import math
import re
from collections.abc import Iterable

from anyv2v.convert.model import PublishedNetwork
from anyv2v.convert.rename import rename
from anyv2v.errors import InputError

# each matches the names of both published layouts
BLOCK = re.compile(r"(?:encoder\.block|blocks)\.(\d{1,4})\.")
LEVEL = re.compile(r"encoder\.down(?:_block|sample)s\.(\d{1,4})\.")
RESNET = re.compile(
    r"encoder\.down(?:_blocks\.0\.resnets|samples\.0\.downsamples)\.(\d{1,4})\.(?:norm1|residual)\."
)
RGB = 3


def transformer_sizes(network: PublishedNetwork) -> dict:
    """Returns the sizes in the section "transformer" of our config.json, but for the heads."""
    dim, in_channels, *patch = _shape(network, "patch.weight", 5)
    return {
        "in_channels": in_channels,
        "out_channels": _shape(network, "out.weight", 2)[0] // math.prod(patch),
        "dim": dim,
        "ff_dim": _shape(network, "block.0.ff.up.weight", 2)[0],
        "layers": _count(network.weights.layout, BLOCK),
        "text_dim": _shape(network, "text.0.weight", 2)[1],
        "time_dim": _shape(network, "time.0.weight", 2)[1],
        "patch": patch,
    }


def vae_sizes(network: PublishedNetwork) -> dict:
    """Returns the sizes in the section "vae" of our config.json."""
    names = network.weights.layout
    levels = range(_count(names, LEVEL))
    encoder = [_shape(network, f"encoder.down.{i}.res.0.conv1.weight", 5)[0] for i in levels]
    # the decoder's levels are named in the order in which they come, from low resolution up
    decoder = [_shape(network, f"decoder.up.{i}.res.0.conv1.weight", 5)[0] for i in levels]
    times = [f"encoder.down.{i}.downsample.time.weight" for i in levels[:-1]]
    return {
        "channels": RGB,
        "patch": math.isqrt(_shape(network, "encoder.conv_in.weight", 5)[1] // RGB),
        "latent_channels": _shape(network, "decoder.conv_in.weight", 5)[1],
        "encoder_channels": encoder,
        "decoder_channels": decoder[::-1],
        "layers": resnets(names),
        "temporal": [_theirs(network, time) in names for time in times],
        "residual": True,
    }


def resnets(names: Iterable[str]) -> int:
    """Returns the number of resnets in a level of an autoencoder's encoder, 0 if there are none.

    names: those of its tensors, in either layout.
    """
    return _count(names, RESNET)


def text_sizes(network: PublishedNetwork) -> dict:
    """Returns the sizes in the section "text" of our config.json, but for the number of tokens."""
    vocabulary, width = _shape(network, "token_embedding.weight", 2)
    buckets, heads = _shape(network, "layers.0.self.relative_bias.weight", 2)
    return {
        "vocab_size": vocabulary,
        "width": width,
        "heads": heads,
        "head_dim": _shape(network, "layers.0.self.q.weight", 2)[0] // heads,
        "layers": _count(network.weights.layout, BLOCK),
        "mlp_width": _shape(network, "layers.0.mlp.up.weight", 2)[0],
        "buckets": buckets,
    }


def _theirs(network: PublishedNetwork, ours: str) -> str:
    """The published name of a parameter."""
    return rename([ours], network.table, to="theirs")[ours].name


def _shape(network: PublishedNetwork, ours: str, axes: int) -> tuple[int, ...]:
    """The published shape of a parameter, which has so many axes and none of length 0."""
    origin, theirs = network.weights.origin, _theirs(network, ours)
    if theirs not in network.weights.layout:
        raise InputError(f"{origin}: missing: {theirs}")
    _, shape = network.weights.layout[theirs]
    if len(shape) != axes or 0 in shape:
        raise InputError(f"{origin}: {theirs} is {shape}, not one of {axes} axes")
    return shape


def _count(names: Iterable[str], pattern: re.Pattern) -> int:
    """One more than the largest number that the pattern's group matches; 0 if there is none."""
    found = (pattern.match(name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
