"""Makes the files of this folder; run once, on commit 5afa655, the last that wrote such sources.

    PYTHONPATH=CHECKOUT_OF_5afa655 python make.py FOLDER

What is loaded from them there is written down by checksums in values.json, what an edit of 3 steps
gives in edit.safetensors.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import anyv2v
import anyv2v.pipeline.source
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth

STEPS, FRAMES, SIZE = 3, 3, (32, 32)
SITE = "mid.temporal.0.block.self"
INJECTION = anyv2v.Injection(conv=0, spatial=0, temporal=0.7, sites={"temporal": [SITE]})


class Stop(Exception):
    pass


def stop(i, t, latents):
    if i == STEPS - 1:
        raise Stop


def digest(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def values(source):
    """What a loaded source says."""
    return {
        "trajectory": {t: digest(x) for t, x in source.trajectory.items()},
        "features": {
            t: {site: [digest(x) for x in parts] for site, parts in kept.items()}
            for t, kept in source.features.kept.items()
        },
        "residuals": dict(source.residuals),
        "evaluations": source.evaluations,
        "settings": vars(source.settings),
        "fingerprint": source.fingerprint,
        "frames": digest(torch.from_numpy(source.video.frames.copy())),
        "fps": source.video.fps,
    }


def main(folder):
    editor = anyv2v.load("demo", device="cpu")
    shutil.copy(Path(anyv2v.__file__).parent / "weights/demo/files/config.json", folder)
    wanted = draw_edit("colour", "held-out", 10**6)
    truth = Truth.of(wanted, SIZE, FRAMES)
    video = anyv2v.Video(truth.source, 8)

    recorded = editor.invert(video, steps=STEPS)
    recorded = editor.record(
        recorded, editor.recording(video, INJECTION, steps=STEPS, compact=False)
    )
    recorded.save(folder / "recorded.safetensors", features=True)

    # of the 9 timesteps those that an edit in 3 steps reads
    read = editor.schedule.timesteps(STEPS)
    editor.invert(
        video,
        "ddim",
        9,
        prompt=wanted.source.caption,
        negative_prompt="blurry",
        guidance=3.0,
        fps=7,
        timesteps=read,
    ).save(folder / "ddim.safetensors")

    anyv2v.pipeline.source.SAVE_EVERY = 0.0
    unfinished = anyv2v.pipeline.source.Unfinished(folder / "half.unfinished")
    try:
        editor.invert(video, steps=STEPS, on_step=stop, unfinished=unfinished)
    except Stop:
        pass

    found, edited = {}, {"frame": torch.from_numpy(truth.frames[0].copy())}
    for name in ("recorded", "ddim"):
        source = editor.load_source(folder / f"{name}.safetensors")
        found[name] = values(source)
        edited[name] = editor.edit(
            source,
            truth.frames[0],
            wanted.truth.caption,
            negative_prompt="",
            steps=STEPS,
            guidance=2.0,
            injection=INJECTION,
        ).latents
    found["prompt"] = wanted.truth.caption
    save_file({name: x.contiguous() for name, x in edited.items()}, folder / "edit.safetensors")
    (folder / "values.json").write_text(json.dumps(found, indent=1) + "\n")


main(Path(sys.argv[1]))
