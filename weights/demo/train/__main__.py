"""Trains the demo model on scenes that are rendered as they are needed.

    python -m anyv2v.weights.demo.train --minutes 60 --out DIR [--resume] [--device cuda]

Every two minutes a checkpoint of the stage being trained (vae.pt, unet.pt or decoder.pt) is written
to DIR. While the UNet is trained, so are the model as a weights folder (weights/) and sheet.png,
which shows validation clips, their true edits and the model's edits. Each is replaced atomically. A
line is added to the stage's log (.jsonl) every 50 steps. A run that was killed is continued by
--resume; one whose checkpoint is lost is continued from its weights by --start.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anyv2v.backbones.defaults import read_defaults
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.media.frames import Video
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.vae.autoencoder import Autoencoder
from anyv2v.vae.codec import ImageCodec
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.demo.recipe import PRESETS, Preset, config, tokenizer_files
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.train.run import Run
from anyv2v.weights.demo.train.unet import Networks, train_unet
from anyv2v.weights.demo.train.vae import build as build_vae
from anyv2v.weights.demo.train.vae import normalize_latents, train_vae
from anyv2v.weights.folder import Part, clip_tokenizer, write_folder

STAGES = ("vae", "unet", "decoder")
"""The stages of training; "decoder" trains the autoencoder's decoder further."""
VAE_SCENES = 10**8
"""Index of the first scene that the autoencoder is trained on; the UNet's first scene is 0."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (None: that of the process) and returns the exit code.

    The code is 0, or 2 if the training raised an InputError, which is printed to stderr.
    """
    args = _parser().parse_args(argv)
    try:
        train(args)
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    return 0


def train(args: argparse.Namespace) -> None:
    """Trains the stages that the parsed arguments select: the autoencoder, the UNet, the decoder.

    Raises InputError if the output folder holds a run that is not to be resumed, or if weights that
    a stage needs are missing or do not fit.
    """
    torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[args.preset or ("gpu" if device.startswith("cuda") else "cpu")]
    args.out.mkdir(parents=True, exist_ok=True)
    if list(args.out.glob("*.pt")) and not args.resume:
        raise InputError(f"{args.out}: holds a run; go on with it by --resume, or take another")
    # a stage that is run alone gets all of the minutes
    shares = {"vae": preset.vae_share, "unet": 1 - preset.vae_share}
    minutes = {k: args.minutes * (1 if args.stage else shares[k]) for k in shares}

    start = Checkpoint.open(args.start) if args.start else None
    if args.stage == "vae" or not (args.stage or start):
        train_vae(Run(args.out, "vae", minutes["vae"], device, VAE_SCENES), preset)
    if args.stage == "decoder":
        # the latents stay as they are, so the UNet may be trained at the same time
        run = Run(args.out, "decoder", args.minutes, device, 2 * VAE_SCENES)
        train_vae(run, preset, load_vae(args.out, preset, device))
    if args.stage in (None, "unet"):
        networks = Networks(preset, device)
        if start:
            for name, network in networks.modules.items():
                build = I2VGen.networks(networks.config)[name]
                network.load_state_dict(start.load(name, build, device).state_dict())
            vae = start.load("vae", lambda: build_vae(preset), device)
        else:
            vae = load_vae(args.out, preset, device)
        run = Run(args.out, "unet", minutes["unet"], device)
        run.on_save = lambda: save_weights(args.out, preset, run.average, vae, device)
        train_unet(run, networks, vae)


def load_vae(out: Path, preset: Preset, device: str) -> Autoencoder:
    """Loads the trained autoencoder, in eval mode, from the checkpoints in the folder `out`.

    Its weights are those of the stage decoder if it has a checkpoint there, else those of the stage
    vae, with latents normalized (see `normalize_latents`); both are moving averages. Raises
    InputError if there is no checkpoint of the stage vae.
    """
    path = out / "vae.pt"
    if not path.is_file():
        raise InputError(f"{path}: is missing; train the stage vae first")
    vae = build_vae(preset).to(device).requires_grad_(False).eval()
    vae.load_state_dict(torch.load(path, map_location=device, weights_only=True)["average"]["vae"])
    normalize_latents(vae, preset, device)
    if (out / "decoder.pt").is_file():
        saved = torch.load(out / "decoder.pt", map_location=device, weights_only=True)
        vae.load_state_dict(saved["average"]["vae"])
    return vae


def save_weights(
    out: Path,
    preset: Preset,
    average: dict[str, dict[str, Tensor]],
    vae: Autoencoder,
    device: str,
) -> None:
    """Writes the model as a weights folder, out/weights, and a picture of edits, out/sheet.png.

    average: component (such as "unet") -> its weights, which are moving averages over training.
    vae: the trained autoencoder.
    """
    networks = Networks(preset, device)
    for name, network in networks.modules.items():
        network.load_state_dict(average[name])
    export(out / "weights", preset, {**networks.modules, "vae": vae})
    with atomic_path(out / "sheet.png") as temporary:
        Image.fromarray(sheet(editor(networks, vae))).save(temporary)


def export(
    folder: Path,
    preset: Preset,
    networks: dict[str, nn.Module],
) -> None:
    """Writes the demo model in float16 as a weights folder, replacing `folder` if it exists.

    networks: component (such as "unet") -> its network; there must be all four.
    """
    parts = {}
    for name, network in networks.items():
        state = {k: x.detach().cpu().half().contiguous() for k, x in network.state_dict().items()}
        layout = {k: (x.dtype, tuple(x.shape)) for k, x in state.items()}
        parts[name] = Part(layout, state.__getitem__)
    vocab, merges = tokenizer_files()
    write_folder(folder, config(preset), clip_tokenizer(vocab, merges), parts, force=True)


def editor(networks: Networks, vae: Autoencoder) -> Editor:
    """Returns an Editor that uses these networks and this autoencoder, without copying them."""
    backbone = I2VGen(
        unet=networks.unet,
        text=networks.text,
        vision=networks.vision,
        tokenizer=networks.tokenizer,
        preprocess=networks.preprocess,
        groups={k: frozenset(v) for k, v in networks.config["injection"].items()},
        codec=ImageCodec(vae),
        defaults=read_defaults(networks.config, I2VGen.published_settings),
    )
    return Editor(backbone)


def sheet(editor: Editor, zoom: int = 2) -> np.ndarray:
    """Draws three edits of validation scenes as one picture, (height, width, 3) uint8 RGB.

    An edit has three rows of frames: the source, the true result and the model's edit. zoom: how
    many times pixels are enlarged.
    """
    size, frames = editor.defaults.size, editor.defaults.frames
    rows = []
    for i, kind in enumerate(("colour", "background", "shape"), 1):
        edit = draw_edit(kind, "validation", i)
        source, truth = render([edit.source, edit.truth], size, frames).frames.numpy()
        inverted = editor.invert(Video(source, editor.defaults.fps), prompt=edit.source.caption)
        edited = editor.edit(inverted, truth[0], edit.truth.caption)
        rows += [np.concatenate(list(clip), axis=1) for clip in (source, truth, edited.frames)]
    return np.concatenate(rows).repeat(zoom, 0).repeat(zoom, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anyv2v.weights.demo.train", description="train the demo model"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        required=True,
        help="in total, including the minutes of the run that is resumed",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR")
    parser.add_argument(
        "--start", type=Path, metavar="WEIGHTS", help="train the UNet from these weights on"
    )
    parser.add_argument("--device", help="default: cuda where it is available, else cpu")
    parser.add_argument("--preset", choices=PRESETS, help="default: gpu on cuda, else cpu")
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="train this stage alone, for all of the minutes; default: vae, then unet",
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
