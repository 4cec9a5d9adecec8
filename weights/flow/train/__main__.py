"""Trains the small flow model on scenes that are rendered as they are needed.

    python -m anyv2v.weights.flow.train --minutes 60 --out DIR [--device cuda]

Trains for so many minutes and stops; the same command goes on where that was, however it ended. The
autoencoder comes first (vae.pt, vae.safetensors), then the transformer with its text encoder
(transformer.pt), whose learning rate stays constant, as nobody need know how often the command will
be called. Every five minutes a checkpoint is written, and the moving average of the weights as a
weights folder (weights/), which is a usable model at any moment; weights.json says how far it is.
Both are replaced atomically. The logs (.jsonl) have the loss of training, and that of a fixed batch
of validation clips.

--finish lets the learning rate of the transformer fall to zero over a fifth as many steps as were
made, as a branch (finish.pt, finished/): without the option, training goes on as if it had not
been. If the checkpoint is lost, --start DIR goes on from weights/ and weights.json of another run.
--score N edits N validation scenes, up to 24, with the model after the training, and adds a line to
scores.jsonl; with --minutes 0 nothing is trained before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.vae.video_autoencoder import VideoAutoencoder
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.flow.recipe import PRESETS, Preset, config, tokenizer_files
from anyv2v.weights.flow.train import vae as autoencoder
from anyv2v.weights.flow.train.run import Run
from anyv2v.weights.flow.train.scores import progress_of, score
from anyv2v.weights.flow.train.velocity import Validation, batch_loss, prepare
from anyv2v.weights.folder import in_half, write_folder

VALIDATE_EVERY = 500
"""Steps between measurements of the validation clips' loss."""
FINISH = 5
"""The last part of the training, in which the learning rate falls, is 1 / `FINISH` as long as the
part before."""


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
    """Trains as the parsed arguments say, see the module's text."""
    torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[args.preset or ("gpu" if device.startswith("cuda") else "cpu")]
    # products keep ten bits of float32 on a GPU that can do so
    torch.backends.cuda.matmul.allow_tf32 = True
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    vae = trained_vae(args.out, preset, device, args.start, args.minutes)
    if vae is None:
        return
    run = transformer_run(args.out, preset, device, args.finish, args.start)
    validation = Validation.draw(vae, preset, device)

    def loss() -> Tensor:
        if run.steps % VALIDATE_EVERY == 0:
            run.tell(validation.losses(run))
        return batch_loss(run, vae, preset, device)

    left = (end - time.monotonic()) / 60
    folder = args.out / ("finished" if args.finish else "weights")
    if left > 0:
        run.train(loss, left, partial(export, folder, preset, run, vae))
        run.tell(validation.losses(run))
    if args.score:
        score(folder, range(args.score), args.out / "scores.jsonl")


def trained_vae(
    out: Path, preset: Preset, device: str, start: Path | None, minutes: float
) -> VideoAutoencoder | None:
    """Returns the autoencoder of the run in `out`, trained for so many minutes if it is not yet.

    start: a folder whose weights folder has one; None if there is none. Returns None if the time is
    over before the training.
    """
    path = out / "vae.safetensors"
    if start and not path.exists():
        build = partial(autoencoder.build, preset)
        save_half(path, Checkpoint.open(start / "weights").load("vae", build).state_dict())
    if not path.exists():
        run = autoencoder.prepare_vae(out / "vae.pt", preset, device)
        autoencoder.train_vae(run, preset, device, minutes)
        if not run.over:
            return None
        save_half(path, autoencoder.normalized(run, preset, device).state_dict())
    vae = autoencoder.restrict_to_pictures(autoencoder.build(preset))
    vae.load_state_dict({name: x.float() for name, x in load_file(path).items()})
    return vae.to(device).eval().requires_grad_(False)


def save_half(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights in half precision, as in a weights folder, so that all use the same."""
    with atomic_path(path) as temporary:
        save_file({name: x.half().contiguous() for name, x in weights.items()}, temporary)


def transformer_run(
    out: Path, preset: Preset, device: str, finish: bool, start: Path | None
) -> Run:
    """Returns the run of the transformer in `out`, or of its last part if `finish`."""
    whole = out / "transformer.pt"
    run = prepare(out / "finish.pt" if finish else whole, preset, device)
    if finish:
        if not whole.exists():
            raise InputError(f"{whole}: is missing; there is nothing to finish")
        if run.fall_from < (steps := prepare(whole, preset, device).steps):
            # there is no last part yet, or one of fewer steps than there are by now
            run.load(whole)
            run.fall(max(1, steps // FINISH))
    elif not run.steps and start:
        weights, progress = Checkpoint.open(start / "weights"), progress_of(start / "weights")
        if not progress:
            raise InputError(f"{start / 'weights'}: there is no weights.json beside it")
        parts = {
            f"{name}.{key}": x
            for name, module in run.network.named_children()
            for key, x in weights.load(name, lambda m=module: type(m)(m.config))
            .state_dict()
            .items()
        }
        run.start(parts, progress["steps"], progress["drawn"])
    return run


def export(folder: Path, preset: Preset, run: Run, vae: VideoAutoencoder) -> None:
    """Writes the moving average of a run as a weights folder, and how far it is beside it."""
    networks: dict[str, dict[str, Tensor]] = {"transformer": {}, "vae": vae.state_dict()}
    for name, x in run.average.items():
        component, key = name.split(".", 1)
        networks.setdefault(component, {})[key] = x
    write_folder(folder, config(preset), tokenizer_files(), in_half(networks), force=True)
    facts = {"steps": run.steps, "drawn": run.drawn, "seconds": round(run.seconds)}
    with atomic_path(folder.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anyv2v.weights.flow.train", description="train the small flow model"
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long this call trains")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on from the weights in DIR")
    parser.add_argument("--finish", action="store_true", help="let the learning rate fall to zero")
    parser.add_argument(
        "--score", type=int, default=0, metavar="N", help="edit N scenes afterwards"
    )
    parser.add_argument("--device", help="default: cuda where it is available, else cpu")
    parser.add_argument("--preset", choices=PRESETS, help="default: gpu on cuda, else cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
