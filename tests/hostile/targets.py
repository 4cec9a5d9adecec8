"""What is read, by which entry of the product, and what a result of it has to be."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import anyv2v
from anyv2v import weights_folders
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.convert.published import convert
from anyv2v.diffusion.inversion import TOLERANCE, InversionState
from anyv2v.errors import InputError
from anyv2v.evaluation.clip_model import load as load_clip
from anyv2v.loading import builders, expected_shapes, inspect
from anyv2v.media.image import read_image
from anyv2v.media.mask import fit_mask, read_mask
from anyv2v.media.video import read_video, write_video
from anyv2v.pipeline.source import InversionSettings, Unfinished
from anyv2v.stable_diffusion.adapters import load_ip_adapter, load_t2i_adapter
from anyv2v.umt5.embeddings import load_embeddings, save_embeddings
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.folder import Part, clip_tokenizer, write_folder
from tests import icc
from tests.hostile import mutate
from tests.oracles import adapter_snapshot, clip_snapshot, wan_folder

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
    _write_old(folder / "recorded.safetensors", folder / "old.safetensors")
    _write_old(folder / "half.unfinished", folder / "old.unfinished")
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
    _write_moving(folder)
    _write_masks(folder)
    _write_profiled(folder)
    adapter_snapshot.write_t2i_adapter(folder / "t2i", "odd light")
    adapter_snapshot.write_ip_adapter(folder / "ip", "tiny")
    clip_snapshot.write(folder / "whole", "openai")
    clip_snapshot.write_open_clip(folder / "open", "open_clip", form="safetensors")
    wan_folder.write_folder(folder / "wan", wan_folder.SMALLEST, {"transformer": 2})
    prompts = {PROMPT: torch.randn(1, 4, 6), "": torch.zeros(1, 4, 6)}
    save_embeddings(folder / "prompts.safetensors", prompts, "weights")
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
    tokenizer = clip_tokenizer({t: i for i, t in enumerate(tokens)}, text)
    write_folder(folder, CONFIG, tokenizer, parts)


def _video() -> anyv2v.Video:
    frames = np.random.default_rng(2).integers(0, 256, (FRAMES, *SIZE, 3), dtype=np.uint8)
    return anyv2v.Video(frames, 8)


def _settings() -> InversionSettings:
    told = {"text": 1.0}, {"fps": 8}
    return InversionSettings("fixed-point", STEPS, "", "", *told, TOLERANCE)


def _write_unfinished(path: Path, source: anyv2v.Source) -> None:
    last = STEPS - 1
    first = source.at(last)
    state = InversionState(
        source.trajectory.clean, first * 1.01, {last: first}, 3, {last: 1e-4}, (first * 0.5,)
    )
    unfinished = Unfinished(path)
    unfinished._saved = -1e9
    unfinished.save(state, source.video, _settings(), source.fingerprint)


def _write_old(path: Path, old: Path) -> None:
    """What the version before wrote of the same: everything by timestep."""
    timesteps = schedule().timesteps(STEPS)
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["source"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}

    def renamed(name: str) -> str:
        kind, _, rest = name.partition(".")
        index, dot, rest = rest.partition(".")
        if kind in ("latents", "features"):
            return f"{kind}.{timesteps[int(index)]}{dot}{rest}"
        return "latents.0" if name == "clean" else name

    settings, name = facts["settings"], facts["format"]
    settings |= {"guidance": settings["guidance"]["text"], **settings.pop("options")}
    facts["format"] = f"{name[:-1]}{int(name[-1]) - 1}"
    facts["residuals"] = {timesteps[int(i)]: r for i, r in facts["residuals"].items()}
    facts.pop("levels", None)
    save_file({renamed(name): x for name, x in tensors.items()}, old, {"source": json.dumps(facts)})


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif.tobytes()


def _write_moving(folder: Path) -> None:
    """A folder of frames, and one clip in each of the formats that move."""
    noise = np.random.default_rng(3).integers(0, 256, (4, 12, 20, 3), dtype=np.uint8)
    noise[1:, :6] = noise[0, :6]
    first, *rest = pictures = [Image.fromarray(frame) for frame in noise]
    (folder / "frames").mkdir()
    for number, (picture, suffix) in enumerate(
        zip(pictures, ("png", "jpg", "webp", "tif"), strict=True), 8
    ):
        picture.save(folder / "frames" / f"{number}.{suffix}")
    (folder / "numbered").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / "numbered" / f"{number:03}.png")
    for name, options in (
        ("moves.gif", {"disposal": [0, 1, 2, 1]}),
        ("moves.webp", {}),
        ("moves.png", {"default_image": True}),
        ("moves.avif", {}),
    ):
        options |= {"append_images": rest, "duration": [40, 0, 100, 2000], "save_all": True}
        first.save(folder / name, **options)


def _write_masks(folder: Path) -> None:
    inside = np.zeros((12, 20), np.uint8)
    inside[3:9, 5:12] = 1
    white = np.full((12, 20, 3), 255, np.uint8)
    classes = Image.frombytes("P", (20, 12), inside.tobytes())
    classes.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    for name, picture in (
        ("alpha.png", Image.fromarray(np.dstack([white, inside * 255]))),
        ("ones.png", Image.fromarray(inside)),
        ("classes.png", classes),
        ("deep.png", Image.fromarray(inside.astype(np.uint16) * 65535)),
        ("bits.png", Image.fromarray(inside * 255).convert("1")),
        ("floats.tif", Image.fromarray(inside.astype(np.float32))),
        ("deep.tif", Image.fromarray(inside.astype(np.uint16) * 65535)),
        ("alpha.tif", Image.fromarray(np.dstack([white, inside * 255]))),
    ):
        picture.save(folder / name)


def _write_profiled(folder: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    wide = icc.rgb(icc.P3, icc.SRGB_CURVE)
    for name, picture, profile in (
        ("wide.png", Image.fromarray(pixels[..., :3]), wide),
        ("wide.jpg", Image.fromarray(pixels[..., :3]), wide),
        ("wide.webp", Image.fromarray(pixels[..., :3]), wide),
        ("gray.png", Image.fromarray(pixels[..., 0]), icc.gray(1.8)),
        ("inks.tif", Image.fromarray(pixels, "CMYK"), icc.cmyk((54.3, 80.8, 69.9))),
        ("inks.jpg", Image.fromarray(pixels, "CMYK"), icc.cmyk((54.3, 80.8, 69.9))),
    ):
        picture.save(folder / name, icc_profile=profile)


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
    editor.step_plan(STEPS)
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
    for x in (source.trajectory.clean, *source.trajectory.latents.values()):
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


def _folder(examples: Examples, name: str, changed: bool) -> None:
    """As a folder; by a pattern too if all of it is called alike."""
    folder = examples.folder / Path(name).parent
    paths = [folder, folder / "%03d.png"] if folder.name == "numbered" else [folder]
    for path in paths:
        for options in ({"size": SIZE, "frames": FRAMES, "fps": 8}, {}):
            _check_frames(read_video(path, **options).frames)


def _mask(examples: Examples, name: str, changed: bool) -> None:
    """Read, cut, and used."""
    path = examples.folder / name
    for mask in (read_mask(path), fit_mask(path, SIZE, "crop")):
        if mask.dtype != np.float32 or mask.ndim != 2:
            raise Wrong(f"{mask.dtype} {mask.shape} is no mask")
        if not (0 <= mask.min() < 1 and 0 < mask.max() <= 1):
            raise Wrong(f"{mask.min()} to {mask.max()} selects nothing or everything")


def _adapter(examples: Examples, name: str, changed: bool) -> None:
    """Converts what was published, and loads it."""
    target = examples.folder / "converted"
    src = examples.folder / name.partition("/")[0]
    try:
        if src.name == "ip":
            convert(src / "ip-adapter_sd15.safetensors", target, weights_folders.expected_shapes)
            reference = np.zeros((8, 8, 3), np.uint8)
            adapter, _ = load_ip_adapter(target, reference, torch.device("cpu"), torch.float32)
        else:
            convert(src, target, weights_folders.expected_shapes)
            adapter = load_t2i_adapter(target, torch.device("cpu"), torch.float32)
        str(weights_folders.inspect(target))
    finally:
        shutil.rmtree(target, ignore_errors=True)
    if not all(x.isfinite().all() for x in adapter.state_dict().values()):
        raise Wrong("weights that are not finite were loaded")


def _whole_clip(examples: Examples, name: str, changed: bool) -> None:
    """Loads what was published, and encodes with it."""
    model = load_clip(examples.folder / name.partition("/")[0], "cpu")
    frames = np.zeros((2, 8, 12, 3), np.uint8)
    for made in (model.encode_text([PROMPT, "a robot"]), model.encode_images(frames)):
        if not (abs(made.norm(dim=1) - 1) < 1e-5).all():
            raise Wrong("an embedding is no unit vector")
    if len(model.name.splitlines()) != 1 or len(model.name) > 100:
        raise Wrong(f"{model.name!r} is no name")


def _wan(examples: Examples, name: str, changed: bool) -> None:
    """Converts what was published, and puts it together."""
    target = examples.folder / "converted"
    try:
        config = convert(examples.folder / "wan", target, expected_shapes)
        str(inspect(target))
        anyv2v.loading.skeleton(target, "cpu")
    finally:
        shutil.rmtree(target, ignore_errors=True)
    for component, sizes in wan_folder.SMALLEST.items():
        if config[component].keys() != sizes.keys():
            raise Wrong(f"{component} has the sizes {sorted(config[component])}")
    if config["transformer"]["dim"] != 16 or config["text"]["vocab_size"] != 400:
        raise Wrong("sizes that the weights have not")


def _embeddings(examples: Examples, name: str, changed: bool) -> None:
    for prompt, x in load_embeddings(examples.folder / name, "weights").items():
        if x.ndim != 3 or len(x) != 1 or not x.isfinite().all():
            raise Wrong(f"{prompt!r} has no embedding")


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise Wrong(f"{frames.dtype} {frames.shape} are no frames")


def _either(random: Random, data: bytes) -> bytes:
    """By what the file is."""
    marks = {b"\x89PNG": mutate.png, b"\xff\xd8": mutate.jpeg, b"GIF8": mutate.gif}
    marks |= {b"II*\0": mutate.tiff}
    change = next((f for mark, f in marks.items() if data.startswith(mark)), mutate.any_bytes)
    return change(random, data)


def _published(random: Random, data: bytes) -> bytes:
    return (mutate.json_file if data[:1] == b"{" else mutate.safetensors)(random, data)


def _tokens(random: Random, data: bytes) -> bytes:
    return (mutate.json_file if data[:1] == b"{" else mutate.lines)(random, data)


TOKENIZER = ("model/tokenizer/vocab.json", "model/tokenizer/merges.txt")
PICTURES = ("rgb.png", "rgba.png", "palette.png", "grey16.png", "plain.jpg", "progressive.jpg")

FRAMES_OF_FOLDERS = (
    "frames/8.png",
    "frames/9.jpg",
    "frames/10.webp",
    "frames/11.tif",
    "numbered/000.png",
    "numbered/002.png",
)
MASKS = ("alpha.png", "ones.png", "classes.png", "deep.png", "bits.png")
MASKS += ("floats.tif", "deep.tif", "alpha.tif")
PROFILED = ("wide.png", "wide.jpg", "wide.webp", "gray.png", "inks.tif", "inks.jpg")
ADAPTERS = (
    "t2i/config.json",
    "t2i/diffusion_pytorch_model.safetensors",
    "ip/ip-adapter_sd15.safetensors",
    "ip/image_encoder/config.json",
    "ip/image_encoder/model.safetensors",
)
WHOLE_CLIPS = (
    "whole/config.json",
    "whole/preprocessor_config.json",
    "whole/tokenizer_config.json",
    "whole/vocab.json",
    "whole/model.safetensors",
    "open/open_clip_config.json",
)

WAN = (
    *wan_folder.configs(wan_folder.SMALLEST),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)

KINDS: dict[str, Kind] = {
    "weights": Kind(
        ("model/vision.safetensors", "model/text.safetensors"), mutate.safetensors, _weights
    ),
    "config": Kind(("model/config.json",), mutate.json_file, _config),
    "manifest": Kind(("model/manifest.json",), mutate.json_file, _manifest),
    "tokenizer": Kind(TOKENIZER, _tokens, _tokenizer),
    "source": Kind(
        ("plain.safetensors", "recorded.safetensors", "old.safetensors"),
        mutate.safetensors,
        _source,
    ),
    "unfinished": Kind(("half.unfinished", "old.unfinished"), mutate.safetensors, _unfinished),
    "image": Kind(PICTURES, _either, _picture),
    "clip": Kind(("smooth.mp4", "noise.mp4"), mutate.mp4, _clip),
    "frames": Kind(FRAMES_OF_FOLDERS, _either, _folder),
    "moving": Kind(("moves.gif", "moves.webp", "moves.png", "moves.avif"), _either, _clip),
    "mask": Kind(MASKS, _either, _mask),
    "profile": Kind(PROFILED, mutate.profiled, _picture),
    "adapter": Kind(ADAPTERS, _published, _adapter),
    "whole_clip": Kind(WHOLE_CLIPS, _published, _whole_clip),
    "wan": Kind(tuple(f"wan/{name}" for name in WAN), _published, _wan),
    "embeddings": Kind(("prompts.safetensors",), mutate.safetensors, _embeddings),
}
