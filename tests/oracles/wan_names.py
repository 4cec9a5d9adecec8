"""Gives the tests' oracles and our networks of Wan the same weights; names that only tests need."""

from collections.abc import Mapping

from torch import Tensor, nn

from anyv2v.convert.formats.wan_names import (
    RESNET,
    RESNET_AND_SHORTCUT,
    SECOND_NAME,
    TEXT,
    VAE_COMMON,
    resample,
)
from anyv2v.convert.rename import Rule, prefixed, rename


def renamed(state: Mapping[str, Tensor], table: tuple[Rule, ...]) -> dict[str, Tensor]:
    """The same tensors by our names; raises InputError unless each has one rule and one name."""
    return {new.name: state[old] for old, new in rename(state, table).items()}


def share(theirs: nn.Module, ours: nn.Module, table: tuple[Rule, ...]) -> None:
    """Gives `ours`, which may be on the meta device, the weights of `theirs`, all and no others."""
    state, shapes = renamed(theirs.state_dict(), table), ours.state_dict()
    for name, x in state.items():
        assert x.shape == shapes[name].shape, f"{name}: {x.shape} is not {shapes[name].shape}"
    ours.load_state_dict(state, strict=True, assign=True)
    ours.eval().requires_grad_(False)


def hub_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `UMT5EncoderModel` by our names, the embedding once."""
    once = dict(state)
    assert once.pop(SECOND_NAME).data_ptr() == state["shared.weight"].data_ptr()
    return renamed(once, TEXT)


def vae_2_1(widths: list[int], layers: int, temporal: list[bool]) -> tuple[Rule, ...]:
    """The rules of 2.1's autoencoder, whose encoder has resnets and downsamplers in one list.

    widths: relative widths of the levels. layers: resnets in each. temporal: as in our config.
    """
    table = list(VAE_COMMON)
    for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        at = level * (layers + 1)
        for j in range(layers):
            ours = f"encoder.down.{level}.res.{j}"
            inner = RESNET_AND_SHORTCUT if j == 0 and before != width else RESNET
            table += prefixed(f"encoder.down_blocks.{at + j}", ours, inner)
        if level < len(widths) - 1:
            theirs = f"encoder.down_blocks.{at + layers}"
            inner = resample("downsample", temporal[level])
            table += prefixed(theirs, f"encoder.down.{level}", inner)
    table += prefixed("decoder.up_blocks.{}.upsamplers.0", "decoder.up.{}", resample("upsample"))
    return tuple(table)
