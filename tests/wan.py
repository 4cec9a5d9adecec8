"""A tiny Wan with random weights, in memory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from torch import nn

from anyv2v.backbones.base import Defaults
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.editor import Editor
from anyv2v.injection.fractions import Injection
from anyv2v.weights.folder import Part, write_folder
from tests.draw import redraw
from tests.oracles import umt5_tokenizer

LATENTS, TEXT, TOKENS, VOCABULARY, LAYERS = 6, 20, 12, 620, 3

CONFIG = {
    "format": 1,
    "backbone": "wan",
    "components": ["transformer", "vae", "text"],
    "defaults": {"size": [96, 64], "frames": 9, "fps": 24},
    # heads of 32 turn 12, 10 and 10 of their channels by frame, row and column
    "transformer": {
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "dim": 64,
        "heads": 2,
        "ff_dim": 96,
        "layers": LAYERS,
        "text_dim": TEXT,
        "text_tokens": TOKENS,
        "time_dim": 32,
        "patch": [1, 2, 2],
        "positions": 64,
        "eps": 1e-6,
        "clean_first_frame": True,
    },
    "vae": {
        "channels": 3,
        "patch": 2,
        "latent_channels": LATENTS,
        "encoder_channels": [8, 16, 32, 32],
        "decoder_channels": [8, 16, 32, 32],
        "layers": 1,
        "temporal": [False, True, True],
        "residual": True,
        "mean": [0.1 * i for i in range(LATENTS)],
        "std": [1 + 0.1 * i for i in range(LATENTS)],
    },
    "text": {
        "vocab_size": VOCABULARY,
        "tokens": TOKENS,
        "width": TEXT,
        "heads": 2,
        "head_dim": 8,
        "layers": 2,
        "mlp_width": 24,
        "buckets": 8,
        "max_distance": 16,
        "norm_eps": 1e-6,
    },
    "schedule": {"train_steps": 1000, "shift": 5.0},
    # of groups that overlap, which those of published weights do not
    "injection": {
        "map": ["block.1.self", "block.2.self"],
        "value": ["block.1.self.value", "block.2.self.value"],
        "context": ["block.1.self.context", "block.2.self.context"],
        "hidden": ["block.1.ff"],
    },
}
DEFAULTS = Defaults(
    (96, 64), 9, 24, 10, {"text": 5.0}, "static", Injection(map=0.4, value=0, context=0, hidden=0)
)


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """Returns the networks with random weights."""
    built = enumerate(Wan.networks(CONFIG).items())
    drawn = {name: redraw(build(), seed + i) for i, (name, build) in built}
    # little enough that the steps of an inversion can be solved by iteration
    drawn["transformer"].out.weight.mul_(0.3)
    return drawn


def write(dst: Path, seed: int = 0, **defaults) -> None:
    """Writes a folder of such weights; `defaults`: more of those in its config.json."""
    config = {**CONFIG, "defaults": {**CONFIG["defaults"], **defaults}}
    parts = {}
    for name, network in networks(seed).items():
        state = network.state_dict()
        layout = {key: (x.dtype, tuple(x.shape)) for key, x in state.items()}
        parts[name] = Part(layout, state.__getitem__)
    tokenizer = json.dumps(umt5_tokenizer.settings(), ensure_ascii=False)
    write_folder(dst, config, {"tokenizer/tokenizer.json": tokenizer}, parts)


def tiny(seed: int = 0) -> Wan:
    """Returns a backbone with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        (place := Path(folder) / "tokenizer").mkdir()
        umt5_tokenizer.write(place)
        return Wan.assemble(CONFIG, networks(seed), Path(folder), DEFAULTS)


def editor(seed: int = 0) -> Editor:
    """Returns an editor with such a backbone."""
    return Editor(tiny(seed))
