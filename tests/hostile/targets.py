"""What is read, by which entry of the product, and what a result of it has to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

import anyv2v
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.diffusion.inversion import Inverted
from anyv2v.errors import InputError
from anyv2v.injection.plan import Injection
from anyv2v.loading import builders, expected_shapes, inspect
from anyv2v.media.image import read_image
from anyv2v.media.video import read_video, write_video
from anyv2v.source import InversionSettings, Unfinished
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.folder import Part, write_folder
from tests.hostile import mutate

SIZE, FRAMES, STEPS = (16, 16), 3, 2
PROMPT = "a Robot, 1st's <|endoftext|> 犬 \u200d"

CONFIG = {
    "format": 1,
    "backbone": "i2vgen",
    "defaults": {"size": list(SIZE), "frames": FRAMES, "fps": 8},
    "unet": {
        "channels": 4,
        "widths": [8, 16],
        "attention": [True, False],
        "layers": 1,
        "head_dim": 8,
        "context_width": 16,
        "groups": 4,
    },
    "vae": {
        "channels": 3,
        "latent_channels": 4,
        "widths": [8, 8],
        "layers": 1,
        "groups": 4,
        "scaling_factor": 0.18215,
    },
    "text": {
        "vocab_size": 600,
        "tokens": 77,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "mlp_width": 16,
        "activation": "gelu",
        "norm_eps": 1e-5,
    },
    "vision": {
        "image_size": 16,
        "patch_size": 8,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "mlp_width": 16,
        "activation": "quick_gelu",
        "norm_eps": 1e-5,
        "projection_width": 16,
    },
    "tokenizer": {
        "start": "<|startoftext|>",
        "end": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "unknown": "<|endoftext|>",
    },
    "preprocess": {"size": 16, "mean": [0.5, 0.5, 0.4], "std": [0.25, 0.25, 0.3]},
    "schedule": {"train_steps": 1000, "steps_offset": 1},
    "injection": {
        "conv": ["up.1.res.1"],
        "spatial": ["up.1.spatial.1.block.self"],
        "temporal": ["up.1.temporal.1.block.self"],
    },
}


class Wrong(AssertionError):
    """Accepted, but the result cannot be right."""


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    names: tuple[str, ...]
    """Of the files that are changed, under the examples' folder: one of them each time."""
    change: Callable[[Random, bytes], bytes]
    read: Callable[[Examples, str, bool], None]
    """(examples, name, changed): runs the product; raises what it raises, or `Wrong`."""


def prepare(folder: Path) -> None:
    """Writes the valid examples of every kind."""
    torch.manual_seed(0)
    _write_weights(folder / "model")
    editor = anyv2v.load(folder / "model", device="cpu")
    video = _video()
    source = editor.invert(video, steps=STEPS)
    recorded = editor.record(source, editor.recording(video, steps=STEPS))
    recorded.save(folder / "recorded.safetensors", features=True)
    source.save(folder / "plain.safetensors")
    _write_unfinished(folder / "half.unfinished", source)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    for name, picture, options in (
        ("rgb.png", Image.fromarray(pixels[..., :3]), {}),
        ("rgba.png", Image.fromarray(pixels), {}),
        ("palette.png", Image.fromarray(pixels[..., :3]).quantize(16), {}),
        ("grey16.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("plain.jpg", Image.fromarray(pixels[..., :3]), {"exif": _exif()}),
        ("progressive.jpg", Image.fromarray(pixels[..., 0]), {"progressive": True}),
    ):
        picture.save(folder / name, **options)
    smooth = np.linspace(0, 255, FRAMES * 32 * 48 * 3).reshape(FRAMES, 32, 48, 3).astype(np.uint8)
    write_video(folder / "smooth.mp4", smooth, 8)
    noise = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    write_video(folder / "noise.mp4", noise, 12.5)


class Examples:
    """The folder of `prepare`; a changed file lies there while it is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._valid: dict[str, bytes] = {}

    def valid(self, name: str) -> bytes:
        if name not in self._valid:
            self._valid[name] = (self.folder / name).read_bytes()
        return self._valid[name]

    @cached_property
    def editor(self) -> anyv2v.Editor:
        return anyv2v.load(self.folder / "model", device="cpu")


def make(kind: Kind, examples: Examples, seed: int, index: int) -> tuple[str, bytes]:
    """The file that an index stands for: its name and bytes, equal for equal seeds."""
    random = Random(f"{seed} {kind.names[0]} {index}")
    name = random.choice(kind.names)
    return name, kind.change(random, examples.valid(name))


def _write_weights(folder: Path) -> None:
    shapes = expected_shapes(CONFIG)
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for component, wanted in shapes.items():
        tensors = {
            name: 1 + 0.1 * torch.randn(shape, generator=generator)
            if "norm" in name and name.endswith("weight")
            else 0.2 * torch.randn(shape, generator=generator)
            for name, shape in wanted.items()
        }
        layout = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}
        parts[component] = Part(layout, tensors.__getitem__)
    symbols = anyv2v.clip.tokenizer.byte_symbols()
    merges = [("r", "o"), ("b", "o"), ("ro", "bo"), ("o", "t</w>"), ("s", "t</w>")]
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    text = "\n".join(["#version: 0.2", *map(" ".join, merges), ""])
    write_folder(folder, CONFIG, {t: i for i, t in enumerate(tokens)}, text, parts)


def _video() -> anyv2v.Video:
    frames = np.random.default_rng(2).integers(0, 256, (FRAMES, *SIZE, 3), dtype=np.uint8)
    return anyv2v.Video(frames, 8)


def _settings() -> InversionSettings:
    return InversionSettings("fixed-point", STEPS, "", "", 1.0, 8, anyv2v.editor.TOLERANCE)


def _write_unfinished(path: Path, source: anyv2v.Source) -> None:
    clean, first = source.trajectory[0], source.trajectory[1]
    state = Inverted({0: clean, 1: first}, first * 1.01, 3, {1: 1e-4}, (first * 0.5,))
    unfinished = Unfinished(path)
    unfinished._saved = -1e9
    unfinished.save(state, source.video, _settings(), source.fingerprint)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif.tobytes()


def _weights(examples: Examples, name: str, changed: bool) -> None:
    """Loads one network. A changed file that loads has to be what `verify` refuses."""
    folder, data = examples.folder / "model", (examples.folder / name).read_bytes()
    component, own = Path(name).stem, examples.valid("model/manifest.json")
    # every other one comes with a manifest that goes with it, as a stranger would write it
    fits = bool(data) and data[-1] % 2 == 0
    if fits:
        manifest = json.loads(own)
        facts = manifest["files"][Path(name).name]
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        checkpoint = Checkpoint.open(folder)
        module = checkpoint.load(component, builders(checkpoint.config)[component])
        if not all(x.isfinite().all() for x in module.state_dict().values()):
            raise Wrong("weights that are not finite were loaded")
        _verified(folder, changed and not fits)
    finally:
        (folder / "manifest.json").write_bytes(own)


def _verified(folder: Path, changed: bool) -> None:
    str(inspect(folder))
    if changed:
        raise Wrong("verify passes a changed file")


def _config(examples: Examples, name: str, changed: bool) -> None:
    """Loads the model and lets it make a clip: what is accepted has to run."""
    folder = examples.folder / "model"
    anyv2v.loading.peek(folder)
    editor = anyv2v.load(folder, device="cpu")
    defaults = editor.defaults
    editor.check_size(defaults.size)
    editor.check_memory(defaults.size, defaults.frames)
    editor.plan(STEPS, 0, Injection())
    same = json.dumps(Checkpoint.open(folder).config) == json.dumps(CONFIG)
    if same != (editor.fingerprint == examples.editor.fingerprint):
        raise Wrong("the fingerprint does not tell the config")
    edit = editor.generate(_video().frames[0], PROMPT, FRAMES, SIZE, steps=1)
    _check_frames(edit.frames)


def _manifest(examples: Examples, name: str, changed: bool) -> None:
    folder = examples.folder / "model"
    checkpoint = Checkpoint.open(folder)
    checkpoint.load("vision", builders(checkpoint.config)["vision"])
    str(inspect(folder))
    true = json.loads(examples.valid(name))["files"]
    if {n: checkpoint.files[n]["sha256"] for n in checkpoint.files} != {
        n: facts["sha256"] for n, facts in true.items()
    }:
        raise Wrong("verify passes other files than there are")


def _tokenizer(examples: Examples, name: str, changed: bool) -> None:
    config = TokenizerConfig(**CONFIG["tokenizer"])
    tokenizer = Tokenizer.load(examples.folder / "model" / "tokenizer", config, 77, 600)
    for text in (PROMPT, "robot robots", "\x00\ud800 é"):
        row = tokenizer(text)
        if row.shape != (1, 77) or not 0 <= row.min() <= row.max() < 600:
            raise Wrong("ids that the text encoder does not know")


def _source(examples: Examples, name: str, changed: bool) -> None:
    """Loads it; if it loads, it has to serve an edit and to be saved again."""
    editor = examples.editor
    source = editor.load_source(examples.folder / name)
    for x in source.trajectory.values():
        if x.dtype != torch.float32 or not x.isfinite().all():
            raise Wrong("latents that are not finite float32")
    _check_frames(source.video.frames)
    edit = editor.edit(source, source.video.frames[0], PROMPT, steps=STEPS)
    _check_frames(edit.frames)
    source.save(examples.folder / "again.safetensors", features=True)


def _unfinished(examples: Examples, name: str, changed: bool) -> None:
    """Resumes the inversion; a half that is accepted has to lead to a whole."""
    editor, video = examples.editor, _video()
    unfinished = Unfinished(examples.folder / name)
    source = editor.invert(video, steps=STEPS, unfinished=unfinished)
    if list(source.trajectory) != [0, *sorted(editor.schedule.timesteps(STEPS))]:
        raise Wrong(f"the inversion passed {list(source.trajectory)}")
    for x in source.trajectory.values():
        if x.dtype != torch.float32 or not x.isfinite().all():
            raise Wrong("latents that are not finite float32")


def _picture(examples: Examples, name: str, changed: bool) -> None:
    picture = read_image(examples.folder / name)
    _check_frames(picture[None])


def _clip(examples: Examples, name: str, changed: bool) -> None:
    """As the command line reads it, then as it is, then all of it at another rate."""
    path = examples.folder / name
    refused = []
    for options in ({"size": SIZE, "frames": FRAMES, "fps": 8}, {}, {"fps": 20.0}):
        try:
            video = read_video(path, **options)
        except InputError as error:
            refused.append(error)
            continue
        _check_frames(video.frames)
        if not 0 < video.fps < float("inf"):
            raise Wrong(f"{video.fps} fps")
        if "frames" in options and video.frames.shape != (FRAMES, *SIZE, 3):
            raise Wrong(f"{video.frames.shape} was not asked for")
    if len(refused) == 3:
        raise refused[0]


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise Wrong(f"{frames.dtype} {frames.shape} are no frames")


def _either(random: Random, data: bytes) -> bytes:
    return (mutate.png if data[:4] == b"\x89PNG" else mutate.jpeg)(random, data)


def _tokens(random: Random, data: bytes) -> bytes:
    return (mutate.json_file if data[:1] == b"{" else mutate.lines)(random, data)


TOKENIZER = ("model/tokenizer/vocab.json", "model/tokenizer/merges.txt")
PICTURES = ("rgb.png", "rgba.png", "palette.png", "grey16.png", "plain.jpg", "progressive.jpg")

KINDS: dict[str, Kind] = {
    "weights": Kind(
        ("model/vision.safetensors", "model/text.safetensors"), mutate.safetensors, _weights
    ),
    "config": Kind(("model/config.json",), mutate.json_file, _config),
    "manifest": Kind(("model/manifest.json",), mutate.json_file, _manifest),
    "tokenizer": Kind(TOKENIZER, _tokens, _tokenizer),
    "source": Kind(("plain.safetensors", "recorded.safetensors"), mutate.safetensors, _source),
    "unfinished": Kind(("half.unfinished",), mutate.safetensors, _unfinished),
    "image": Kind(PICTURES, _either, _picture),
    "clip": Kind(("smooth.mp4", "noise.mp4"), mutate.mp4, _clip),
}
