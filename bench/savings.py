"""What an edit costs, and what each saving is worth: operations, wall time, memory.

    python bench/savings.py [--parts operations plan time memory] [--full] [--out DIR]

operations: counted on the network at its published size, without data, 512x512, 16 frames and
    thresholds (0.2, 0.2, 0.5), against the original's procedure: 500 evaluations to invert and
    50 x 3 to sample, of diffusers' network if that is installed, else of ours with nothing saved.
    Each saving alone, and each added last, for one edit with the source in the batch.
plan: what `anyv2v plan` predicts, against operations counted in real runs of the demo model.
time: a demo edit with default settings against the same in the original's way, in turns, after
    checking that replaying the source gives the same edit as its rows in every step.
memory: a process that inverts and edits with a model of middle size, against what is predicted.

Prints tables in markdown and writes savings.json. --full: the ways of a GPU too, and all steps
where fewer do.

Where query and key serve several groups of values, PyTorch's attention runs once for each, so on
a CPU the softmax is shared at temporal sites only. The kernel for GPUs shares it everywhere, which
tensors without data do not get to see: "one softmax" counts the operations of such a kernel.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import anyv2v
from anyv2v.accounting import count, fakes
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.convert.i2vgen import injection_sites
from anyv2v.convert.released import convert
from anyv2v.editor import Defaults, Editor
from anyv2v.files import atomic_path
from anyv2v.injection.taps import NO_TAPS, Record, Recorded, Replay, ShareSource, Taps
from anyv2v.kernels import attention as attention_door
from anyv2v.loading import expected_shapes
from anyv2v.nn.blank import blank
from anyv2v.plan import predict
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth

ROOT = Path(__file__).resolve().parents[1]
FRAMES, SIZE, STEPS = 16, 512, 50
INVERSION, BRANCHES = 500, 3
"""The original's evaluations to invert, and its branches in every step of sampling."""

UNET = UNetConfig(4, (320, 640, 1280, 1280), (True, True, True, False), 2, 64, 1024, 32)
VAE = AutoencoderConfig(3, 4, (128, 256, 512, 512), 2, 32, 0.18215)
TEXT = TextConfig(49408, 77, 1024, 16, 24, 4096, "gelu", 1e-5)
VISION = VisionConfig(224, 14, 1280, 16, 32, 5120, "gelu", 1e-5, 1024)

# what differs from the tiny model of tests/snapshot.py
MIDDLE = {
    "unet": {
        "block_out_channels": [64, 128, 256, 256],
        "norm_num_groups": 32,
        "head_dim": 64,
        "cross_attention_dim": 128,
    },
    "vae": {"block_out_channels": [32, 64, 64, 64], "norm_num_groups": 32},
    "text": {"hidden": 128, "intermediate": 512},
}
FEATURE_MEMORY = 4 * 10**9


@dataclass(frozen=True)
class Savings:
    """Which are made in sampling with the source in the batch."""

    no_source: bool = True
    projections: bool = True
    convolutions: bool = True
    context: bool = True
    leaving: bool = True
    prefix: bool = True
    softmax: bool = True


NOTHING = Savings(*[False] * len(fields(Savings)))
WORDS = {
    "no_source": "steps that inject nothing run without the source",
    "projections": "query and key of sites projected for the source alone",
    "convolutions": "convolutions before an injected feature for the source alone",
    "context": "what no timestep changes, keys and values of the context too, once a run",
    "leaving": "the source leaves at the last site",
    "prefix": "negative and edit as one until the first cross-attention",
    "softmax": "one softmax for branches that share query and key",
}


class Sharing(ShareSource):
    """Shares the source's features, with some of the savings of that left out."""

    def __init__(self, sites, branches: int, last: str | None, savings: Savings):
        super().__init__(sites, branches, last if savings.leaving else None)
        self.savings = savings

    def residual(self, site, branch, x, time):
        if self.savings.convolutions or site not in self.sites:
            return super().residual(site, branch, x, time)
        return self.leaving(site, self.hidden(site, branch(x, time)))

    def project(self, site, layer, x, key):
        if site not in self.sites:
            return super().project(site, layer, x, key)
        if self.savings.projections:
            by = super().project(site, layer, x, key)
        else:
            by = self.qk(site, *layer.project(x, key))
        if self.savings.softmax:
            return by
        # each branch that is left attends by a copy of its own
        return tuple(torch.cat([y] * (self.branches - (site == self.last))) for y in by)


@contextmanager
def one_softmax() -> Iterator[None]:
    """Inside, attention is counted as by a kernel that shares its softmax among all values."""
    before, attention_door._WANTED = attention_door._WANTED, "reference"
    try:
        yield
    finally:
        attention_door._WANTED = before


def published_size() -> Editor:
    """An editor whose networks have the published sizes and no data, float16."""
    with torch.device("meta"):
        networks = UNet(UNET), TextEncoder(TEXT), VisionEncoder(VISION), Autoencoder(VAE)
    unet, text, vision, vae = (x.half().eval().requires_grad_(False) for x in networks)
    sites = injection_sites(asdict(UNET))
    backbone = I2VGen(
        unet=unet,
        text=text,
        vision=vision,
        # no more of it is asked for than the shape of what it gives
        tokenizer=lambda prompt: torch.zeros(1, TEXT.tokens, dtype=torch.int64),
        preprocess=PreprocessConfig(VISION.image_size, (0.5,) * 3, (0.5,) * 3),
        groups={name: frozenset(chosen) for name, chosen in sites.items()},
    )
    return Editor(backbone, vae, Defaults((SIZE, SIZE), FRAMES, 8))


class Counted:
    """Operations of an editor's networks on one kind of device; to be made inside `fakes`."""

    def __init__(
        self, editor: Editor, device: torch.device, frames: int = FRAMES, size: int = SIZE
    ):
        twin = self.backbone = editor.backbone.blank(device)
        vae, side = blank(editor.vae, device), size // editor.vae.config.factor
        channels = editor.vae.config.latent_channels
        self.shape, self.plan = (
            (channels, frames, side, side),
            Counter(editor.plan(STEPS, 0, anyv2v.Injection()).values()),
        )
        self.empty = partial(torch.empty, dtype=twin.dtype, device=device)
        self.conditions = []
        told = count(lambda: self.conditions.append(twin.blank_conditions(frames, side, side)))

        width, tokens = twin.unet.config.context_width, twin.tokenize("").shape[1]
        given = (
            self.empty(1, tokens, width),
            self.empty(1, width),
            self.empty(1, *self.shape),
            torch.zeros(1, device=device),
        )
        once = count(lambda: twin.unet.condition(*given)).flops
        read = once - count(lambda: twin.unet.conditioning(*given)).flops
        # of one branch, if it is done in every evaluation and for every frame
        self.told_each_time = once + (frames - 1) * read

        encode = count(lambda: vae.encode(self.empty(1, 3, size, size))).flops
        decode = count(lambda: vae.decode(self.empty(1, channels, side, side))).flops
        # autoencoder and conditions of a whole edit, which needs those of the source twice
        self.beside = 4 * told.flops + (frames + 1) * encode + frames * decode

    def forward(self, rows: list[int], taps: Taps = NO_TAPS) -> int:
        stacked = self.conditions[0].stack(self.conditions * len(rows), rows)
        latents = self.empty(1 + max(rows), *self.shape)
        return count(lambda: self.backbone.predict(latents, 1, stacked, taps)).flops

    def inverting(self, evaluations: int) -> int:
        """By the fixed point, features recorded on the way."""
        steps = sum(n * self.forward([0], Record(sites, True)) for sites, n in self.plan.items())
        return steps * evaluations // STEPS

    def riding(self, savings: Savings) -> int:
        """Sampling with the source in the batch."""
        total = 0
        for sites, n in self.plan.items():
            source = bool(sites) or not savings.no_source
            rows = [0, 1, 1] if source else [0, 0]
            rows = rows if savings.prefix else list(range(len(rows)))
            last = max(sites, key=self.backbone.sites.index, default=None)
            taps = Sharing(sites, len(rows), last, savings) if source else NO_TAPS
            again = 0 if savings.context else len(rows) * self.told_each_time
            total += n * (self.forward(rows, taps) + again)
        return total

    def replaying(self, compact: bool) -> int:
        """Sampling with what was recorded of the source."""
        total = 0
        for sites, n in self.plan.items():
            record = Record(sites, compact, stop=True)
            with suppress(Recorded):
                self.forward([0], record)
            total += n * self.forward([0, 0], Replay(record.kept))
        return total


def original_branch() -> int | None:
    """Operations of one branch of diffusers' network; None if it is not installed."""
    try:
        from diffusers import I2VGenXLUNet
    except ImportError:
        return None
    with torch.device("meta"), torch.no_grad():
        unet = I2VGenXLUNet().eval()
        x, text = torch.empty(1, 4, FRAMES, SIZE // 8, SIZE // 8), torch.empty(1, 77, 1024)
        image, t = torch.empty(1, 1, 1024), torch.ones(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            unet(x, t, t, x, image, encoder_hidden_states=text)
    return counter.get_total_flops()


def operations(full: bool, pairs: int) -> dict:
    editor, theirs, found = published_size(), original_branch(), {}
    for kind in ("cpu", "cuda") if full else ("cpu",):
        with fakes(kind) as device:
            counted = Counted(editor, device)
            plain = counted.riding(NOTHING)
            now = {
                "diffusers": theirs is not None,
                "branch": theirs or plain // (STEPS * BRANCHES),
                "plain": plain,
                "riding": counted.riding(Savings()),
                "inverting": {n: counted.inverting(n) for n in (STEPS, 100, 150)},
                "compact": counted.replaying(True),
                "qk": counted.replaying(False),
                "beside": counted.beside,
                "alone": {f: counted.riding(replace(NOTHING, **{f: True})) for f in WORDS},
                "without": {f: counted.riding(replace(Savings(), **{f: False})) for f in WORDS},
            }
            with one_softmax():
                now["one softmax"] = {
                    "riding": counted.riding(Savings()),
                    "compact": counted.replaying(True),
                    "qk": counted.replaying(False),
                    "alone": counted.riding(replace(NOTHING, softmax=True)),
                }
        print(operations_table(kind, now), flush=True)
        found[kind] = now
    return found


def operations_table(kind: str, found: dict) -> str:
    plain, once = found["plain"], found["one softmax"]
    sampling = found["branch"] * BRANCHES * STEPS
    whole = sampling + found["branch"] * INVERSION
    whose = "diffusers' network" if found["diffusers"] else "our network, nothing saved"
    lines = [
        f"\n### Operations on {kind}; {SIZE}x{SIZE}, {FRAMES} frames, (0.2, 0.2, 0.5)\n",
        f"One branch of the original's ({whose}): {found['branch'] / 1e12:.3f} TFLOP; of ours with "
        f"nothing saved: {plain / STEPS / BRANCHES / 1e12:.3f}.\n",
        "| | TFLOP | part of the original's | with autoencoder and CLIP | wanted | met |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| original: invert and sample | {whole / 1e12:.0f} | 1 | 1 | | |",
        f"| original: sample | {sampling / 1e12:.0f} | 1 | | | |",
    ]

    def line(name: str, flops: int, wanted: float | None, beside: int | None = None) -> None:
        of = sampling if beside is None else whole
        all_in = "" if beside is None else f"{(flops + beside) / (of + beside):.4f}"
        met = "| " if wanted is None else f"{wanted:.4f} | {verdict(flops / of <= wanted)}"
        lines.append(f"| {name} | {flops / 1e12:.0f} | {flops / of:.4f} | {all_in} | {met} |")

    for n, wanted in ((STEPS, None), (100, 1 / 3.2), (150, 1 / 2.6)):
        flops = found["inverting"][n] + found["compact"]
        line(f"whole edit, {n} evaluations to invert", flops, wanted, found["beside"])
    flops = found["inverting"][100] + found["riding"]
    line("the same, 100, nothing recorded", flops, None, found["beside"])
    line("second edit, compact replay", found["compact"], 0.64)
    line("second edit, query and key replayed", found["qk"], 0.64)
    line("edit with the source in the batch", found["riding"], None)
    line("compact replay, one softmax", once["compact"], 0.64)
    line("query and key replayed, one softmax", once["qk"], 0.64)
    line("source in the batch, one softmax", once["riding"], None)

    lines += [
        "\nSaved of sampling one edit with the source in the batch, % of it with nothing saved:\n",
        "| | alone | added last |",
        "| --- | --- | --- |",
    ]
    changes = {
        words: (plain - found["alone"][name], found["without"][name] - found["riding"])
        for name, words in WORDS.items()
    }
    last = found["without"]["softmax"] - once["riding"]
    changes["the same by a kernel that shares it everywhere"] = (plain - once["alone"], last)
    changes["all"] = (plain - found["riding"],) * 2
    for words, (alone, last) in changes.items():
        lines.append(f"| {words} | {100 * alone / plain:.2f} | {100 * last / plain:.2f} |")
    return "\n".join(lines)


def demo_edit(editor: Editor) -> tuple[anyv2v.Video, anyv2v.EditRequest]:
    """A held-out clip and what is to be made of it."""
    edit = draw_edit("colour", "held-out", 0)
    truth = Truth.of(edit, editor.defaults.size, editor.defaults.frames)
    return anyv2v.Video(truth.source, 8), anyv2v.EditRequest(truth.frames[0], edit.truth.caption)


def planned(full: bool, pairs: int) -> dict:
    editor = anyv2v.load("demo", device="cpu")
    video, wanted = demo_edit(editor)
    steps, found = STEPS if full else 10, {}
    print(f"\n### Operations of real runs and as predicted: demo model, {steps} steps\n")
    print("| | counted, GFLOP | predicted / counted | the same before the run | within 2 % |")
    print("| --- | --- | --- | --- | --- |")
    cases = {
        "default": {},
        "nothing recorded": {"feature_memory": 0},
        "plain DDIM": {"method": "ddim", "inversion_steps": 2 * steps},
        "guidance 1, every step injected": {
            "guidance": 1.0,
            "injection": anyv2v.Injection(1, 1, 1),
        },
        "three edits": {"edits": 3},
    }
    for name, case in cases.items():
        options = {
            "method": "fixed-point",
            "inversion_steps": steps,
            "injection": anyv2v.Injection(),
            "feature_memory": 10**9,
            "guidance": 9.0,
            "edits": 1,
        } | case
        counted, evaluations = run_counted(editor, video, wanted, steps, options)
        ratio, before = (
            predict(editor, video, steps=steps, evaluations=n, **options).total / counted
            for n in (evaluations, None)
        )
        found[name] = {"counted": counted, "ratio": ratio, "ratio before": before}
        met = verdict(abs(ratio - 1) <= 0.02)
        print(f"| {name} | {counted / 1e9:.1f} | {ratio:.4f} | {before:.4f} | {met} |", flush=True)
    return found


def run_counted(
    editor: Editor, video: anyv2v.Video, wanted: anyv2v.EditRequest, steps: int, options: dict
) -> tuple[int, int]:
    """Operations of an edit as it runs, and the evaluations that its inversion took."""
    method, injection = options["method"], options["injection"]
    memory, recording = options["feature_memory"], None
    if method == "fixed-point" and memory:
        recording = editor.recording(video, injection, steps, 0, memory)
    needed = editor.needed_timesteps(steps, 0, injection)
    edits = [replace(wanted, guidance=options["guidance"])] * options["edits"]
    sources = []

    def run():
        inversion = {"timesteps": needed, "recording": recording}
        sources.append(editor.invert(video, method, options["inversion_steps"], **inversion))
        editor.edit_many(sources[0], edits, steps, injection=injection)

    return count(run).flops, sources[0].evaluations


def timed(full: bool, pairs: int) -> dict:
    editor = anyv2v.load("demo", device="cpu")
    video, wanted = demo_edit(editor)
    needed = editor.needed_timesteps(STEPS, 0, anyv2v.Injection())

    def ours():
        source = editor.invert(video, timesteps=needed, recording=editor.recording(video))
        editor.edit(source, wanted.frame, wanted.prompt)

    def original():
        source = editor.invert(video, method="ddim", steps=INVERSION)
        editor.edit(source, wanted.frame, wanted.prompt, source_pass="always")

    source = editor.invert(video, recording=editor.recording(video))
    replayed, plain = (
        editor.edit(source, wanted.frame, wanted.prompt, source_pass=way).latents
        for way in ("shared", "always")
    )
    error = ((replayed - plain).norm() / plain.norm()).item()
    if not error <= 1e-5:
        raise SystemExit(f"replay and the plain way differ by {error:.2g}: nothing was timed")

    # the wall, and the processor's own time, which other processes disturb less
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds = {clock: {"ours": [], "original": []} for clock in clocks}
    for _ in range(pairs):
        for name, run in (("ours", ours), ("original", original)):
            start = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                seconds[clock][name].append(read() - start[clock])
    found = {"seconds": seconds, "difference": error, "evaluations": source.evaluations}
    print("\n### Time of a whole demo edit, medians\n")
    print("| clock | ours, s | original, s | ratio, pair by pair | at most 0.33 |")
    print("| --- | --- | --- | --- | --- |")
    for clock, of in seconds.items():
        ratios = [a / b for a, b in zip(of["ours"], of["original"], strict=True)]
        found[f"{clock} ratio"] = ratio = statistics.median(ratios)
        print(
            f"| {clock} | {statistics.median(of['ours']):.1f} "
            f"| {statistics.median(of['original']):.1f} "
            f"| {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {verdict(ratio <= 0.33)} |"
        )
    print(
        f"\n{pairs} pairs, in turns; replay and the plain way differ by {error:.1g}; "
        f"{source.evaluations} evaluations to invert"
    )
    return found


def middle_weights(folder: Path) -> Path:
    """A model of middle size with random weights, in our format."""
    spec = importlib.util.spec_from_file_location("snapshot", ROOT / "tests" / "snapshot.py")
    snapshot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(snapshot)
    tiny = snapshot.PRESETS["tiny"]
    middle = {name: tiny[name] | changed for name, changed in MIDDLE.items()}
    snapshot.PRESETS["middle"] = tiny | middle
    snapshot.write_snapshot(folder / "theirs", "middle", 0)
    convert(folder / "theirs", folder / "ours", expected_shapes)
    return folder / "ours"


def middle_video() -> anyv2v.Video:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 256, 256, 3), np.uint8)
    return anyv2v.Video(frames, 8)


def run_measured(folder: Path, steps: int) -> int:
    """Bytes that this process takes, at most, to invert and edit, over what it has now."""

    def kilobytes(field: str) -> int:
        return int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before, video = kilobytes("VmRSS"), middle_video()
    editor = anyv2v.load(folder, device="cpu")
    recording = editor.recording(video, steps=steps, memory=FEATURE_MEMORY)
    source = editor.invert(video, steps=steps, recording=recording)
    editor.edit(source, video.frames[0], "something else", steps=steps)
    return 1024 * (kilobytes("VmHWM") - before)


def memory(full: bool, pairs: int) -> dict:
    if not Path("/proc/self/status").exists():
        print("\nmemory: this system does not tell")
        return {}
    steps = STEPS if full else 6
    with tempfile.TemporaryDirectory() as name:
        folder = middle_weights(Path(name))
        steps_of = {"steps": steps, "inversion_steps": steps}
        editor = anyv2v.load(folder, device="cpu")
        plan = predict(editor, middle_video(), feature_memory=FEATURE_MEMORY, **steps_of)
        command = [sys.executable, __file__, "--measure", str(folder), "--steps", str(steps)]
        command += ["--threads", str(torch.get_num_threads())]
        paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    measured = int(done.stdout)
    ratio, widths = plan.peak / measured, MIDDLE["unet"]["block_out_channels"]
    print(
        f"\n### Peak memory: widths {widths}, {FRAMES} frames, 256x256, {steps} steps\n\n"
        "| measured, MB | predicted, MB | features, MB | ratio | within 20 % |\n"
        "| --- | --- | --- | --- | --- |\n"
        f"| {measured / 1e6:.0f} | {plan.peak / 1e6:.0f} | {plan.recording.bytes() / 1e6:.0f} "
        f"| {ratio:.3f} | {verdict(abs(ratio - 1) <= 0.2)} |"
    )
    return {"measured": measured, "predicted": plan.peak, "weights": plan.weights, "steps": steps}


def verdict(good: bool) -> str:
    return "yes" if good else "NO"


def circumstances() -> dict:
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    with suppress(importlib.metadata.PackageNotFoundError):
        versions["diffusers"] = importlib.metadata.version("diffusers")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
        "versions": versions,
        "device": f"cpu, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


PARTS = {"operations": operations, "plan": planned, "time": timed, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--pairs", type=int, default=3, help="of timed edits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        print(run_measured(args.measure, args.steps))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path, about = args.out / "savings.json", circumstances()
    print(", ".join(f"{name}: {value}" for name, value in about.items()))
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in args.parts:
        kept[name] = PARTS[name](args.full, args.pairs) | {"circumstances": about}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
