"""What the command line tells the functions that do the work: every option arrives at its place.

The functions are replaced by ones that write down their arguments. Each option is given another
value than its default, and has to arrive where the table says.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import loading
from anyv2v.cli import clip as cli_clip
from anyv2v.cli import demo, edit, evaluate, evidence, first_frame, invert
from anyv2v.cli import weights as cli_weights
from anyv2v.cli.main import main
from anyv2v.cli.options import parser
from anyv2v.convert.fetch import fetch
from anyv2v.convert.published import convert
from anyv2v.evaluation import network
from anyv2v.media.stream import FrameStream
from anyv2v.pipeline import cost
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Source
from anyv2v.ui import server
from anyv2v.weights.packaged import PACKAGED

Editor = anyv2v.Editor
FOLDER = str(PACKAGED["demo"])

# command -> its call with what it requires
LINES = {
    "edit": "edit clip.mp4 --frame a.png --prompt x -o out.mp4 --steps 4",
    "edit by an editor": "edit clip.mp4 --editor posterise --prompt x -o out.mp4 --steps 4",
    "invert": "invert clip.mp4 -o out.safetensors",
    "reconstruct": "reconstruct clip.mp4 --steps 4",
    "plan": "plan clip.mp4 --steps 4",
    "edit-frame": "edit-frame clip.mp4 --editor posterise -o out.png",
    "demo": "demo -o out",
    "convert": "convert src dst",
    "weights fetch": "weights fetch dst",
    "evaluate": "evaluate clip.mp4 --source clip.mp4 --round-trip",
    "info": "info demo",
    "ui": "ui",
}

# option -> its text, where it arrives (call.argument), and as what
LOAD = {
    "weights": (FOLDER, "load.weights", FOLDER),
    "device": ("cpu", "load.device", "cpu"),
    "dtype": ("bfloat16", "load.dtype", torch.bfloat16),
    "offload": ("on", "load.offload", True),
}
READ = {
    "size": ("64x32", "read.size", (64, 32)),
    "frames": ("5", "read.frames", 5),
    "sample-fps": ("2.5", "read.fps", 2.5),
    "start-time": ("0.25", "read.start_time", 0.25),
    "fit": ("pad", "read.fit", "pad"),
}
INVERT = {
    "method": ("ddim", "invert.method", "ddim"),
    "inversion-steps": ("8", "invert.steps", 8),
    "tolerance": ("0.25", "invert.tolerance", 0.25),
    "inversion-prompt": ("cat", "invert.prompt", "cat"),
}
REQUEST = {
    "negative-prompt": ("cow", "request.negative_prompt", "cow"),
    "guidance": ("3", "request.guidance", {"text": 3.0}),
    "random-ratio": ("0.5", "request.random_ratio", 0.5),
    "seed": ("7", "request.seed", 7),
    "guide": ("patches", "request.guide", "patches"),
}


def run(call):
    return {"steps": ("8", f"{call}.steps", 8), "start": ("1", f"{call}.start", 1)}


def injection(call):
    shares = {"conv": 0.25, "spatial": 0.5, "temporal": 0.75}
    return {name: (f"{x}", f"{call}.injection.fractions.{name}", x) for name, x in shares.items()}


def rate(call, option="fps"):
    return {option: ("5" if option == "fps" else "fps=5", f"{call}.options", {"fps": 5})}


# (command, options that are given together)
TOLD = [
    ("edit", LOAD | READ | INVERT | REQUEST | run("edit") | injection("edit") | rate("edit")),
    ("edit", rate("invert")),
    ("edit", rate("invert", "option")),
    ("edit", {"fit": ("pad", "request.fit", "pad")}),
    ("edit", {"inject": ("spatial=0.5", "edit.injection.fractions.spatial", 0.5)}),
    (
        "edit",
        {"feature-memory": ("1MB", "record.memory", 10**6)}
        | run("record")
        | injection("record")
        | rate("record"),
    ),
    ("invert", LOAD | READ | INVERT | rate("invert") | {"resume": (None, "half.resume", True)}),
    (
        "invert",
        {
            "features": (None, "save.features", True),
            "feature-memory": ("1MB", "record.memory", 10**6),
            "force": (None, "save.force", True),
        }
        | injection("record")
        | rate("record", "option"),
    ),
    (
        "reconstruct",
        {
            "prompt": ("dog", "reconstruct.prompt", "dog"),
            "negative-prompt": ("cow", "reconstruct.negative_prompt", "cow"),
            "guidance": ("3", "reconstruct.guidance", {"text": 3.0}),
        }
        | LOAD
        | READ
        | INVERT
        | run("reconstruct")
        | rate("reconstruct"),
    ),
    ("reconstruct", rate("invert")),
    ("reconstruct", rate("reconstruct", "option")),
    (
        "plan",
        {
            "edits": ("3", "plan.edits", 3),
            "window": ("2", "plan.video.frames.shape", (2, 32, 32, 3)),
            "guidance": ("3", "plan.guidance", {"text": 3.0}),
            "method": ("ddim", "plan.method", "ddim"),
            "inversion-steps": ("8", "plan.inversion_steps", 8),
            "feature-memory": ("1MB", "plan.feature_memory", 10**6),
        }
        | LOAD
        | READ
        | run("plan")
        | injection("plan")
        | rate("plan"),
    ),
    ("plan", rate("plan", "option")),
    ("plan", {"inject": ("spatial=0.5", "plan.injection.fractions.spatial", 0.5)}),
    (
        "edit-frame",
        {
            "seed": ("7", "candidates.seeds", [7, 8]),
            "candidates": ("2", "candidates.seeds", [7, 8]),
            "instruction": ("hat", "candidates.request.instruction", "hat"),
            "keep-unchanged": (None, "candidates.keep_unchanged", True),
            "start-time": ("0.25", "first.start_time", 0.25),
            "size": ("48x32", "candidates.request.frame.shape", (32, 48, 3)),
            "fit": ("pad", "fit.fit", "pad"),
            "dtype": ("bfloat16", "make.dtype", torch.bfloat16),
            "editor-option": ("colours=3", "candidates.editor.colours", 3),
        },
    ),
    (
        "edit by an editor",
        {
            "seed": ("7", "candidates.seeds", [7]),
            "instruction": ("hat", "candidates.request.instruction", "hat"),
            "keep-unchanged": (None, "candidates.keep_unchanged", True),
            "dtype": ("bfloat16", "make.dtype", torch.bfloat16),
            "editor-option": ("colours=3", "candidates.editor.colours", 3),
        },
    ),
    (
        "demo",
        LOAD | {"seed": ("7", "demo.seed", 7), "kind": ("shape", "demo.kind", "shape")},
    ),
    ("evaluate", LOAD | {"size": ("16x16", "compared.size", (16, 16))}),
    (
        "ui",
        LOAD
        | {
            "host": ("127.0.0.2", "serve.host", "127.0.0.2"),
            "port": ("7861", "serve.port", 7861),
        },
    ),
    (
        "convert",
        {
            "dtype": ("bfloat16", "convert.dtype", torch.bfloat16),
            "force": (None, "convert.force", True),
        },
    ),
    (
        "weights fetch",
        {
            "dtype": ("bfloat16", "fetch.dtype", torch.bfloat16),
            "force": (None, "fetch.force", True),
        },
    ),
]
# other tests are about these: files, several of them, editors with weights, whole clips, --paper,
# presets
ELSEWHERE = {"video", "frame", "prompt", "output", "save_frame", "src", "dst", "paper", "name"}
ELSEWHERE |= {"preset"}
ELSEWHERE |= {"window", "shared", "keyframe", "protect", "out_size", "resume"}
# what `evaluate` knows of a clip, and which scores it computes
ELSEWHERE |= {"out", "source", "truth", "clip", "lpips", "round_trip", "checks"}
ELSEWHERE |= {"editor", "editor_weights", "editor_command", "editor_timeout", "reference", "mask"}
OF_EDITORS = {"edit": {"instruction", "keep_unchanged", "editor_option"}}
# what nothing predicted depends on, and the device of an editor without a network
OF_OTHERS = {"plan": {"tolerance", "inversion_prompt"}, "edit-frame": {"device"}}
OF_OTHERS |= {"invert": {"inject"}, "info": {"dir", "json"}}


class Stream(FrameStream):
    """The frames of a video as a stream."""

    def __init__(self, video):
        self.fps, self._frames = video.fps, iter(video.frames)

    def __next__(self):
        return next(self._frames)

    def close(self):
        pass


class Enough(Exception):
    """All that was asked for is known; the rest of the command would only take time."""


@pytest.fixture(scope="module")
def own():
    return anyv2v.load("demo", device="cpu")


@pytest.fixture(scope="module")
def unasked():
    """What each command tells without any option, once it has run: name of a command -> calls."""
    return {}


@pytest.fixture(scope="module")
def source(own):
    return own.invert(anyv2v.Video(np.zeros((3, 32, 32, 3), np.uint8), 8), steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a clip of 4 frames, 32x32, and a picture."""
    folder = tmp_path_factory.mktemp("folder")
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    anyv2v.write_video(folder / "clip.mp4", frames, fps=8)
    Image.fromarray(frames[0]).save(folder / "a.png")
    return folder


@pytest.fixture
def told(own, source, folder, monkeypatch, tmp_path):
    """told(command, *words) -> name of a call -> its arguments by their names."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "a.png"):
        (tmp_path / name).symlink_to(folder / name)
    calls = {}
    video = source.video
    made = Edit(video.frames, 8, source.trajectory.clean, {0: video.frames[0]})

    def note(owner, attribute, name, instead=None, original=None):
        original = original or getattr(owner, attribute)
        signature = inspect.signature(original)

        def called(*args, **options):
            bound = signature.bind(*args, **options)
            bound.apply_defaults()
            calls[name] = SimpleNamespace(**(bound.arguments | options))
            return (instead or original)(*args, **options)

        monkeypatch.setattr(owner, attribute, called)

    def ends(*_, **__):
        raise Enough

    def edit_each(editor, source, requests, *_, **__):
        (calls["request"],) = requests
        return iter([made])

    note(loading, "load", "load", lambda *_, **__: own)
    note(cli_clip, "read_video", "read", lambda *_, **__: source.video)
    note(invert, "stream_video", "read", lambda *_, **__: Stream(video))
    note(cli_clip, "read_first_frame", "first")
    note(Editor, "invert", "invert", lambda *_, **__: source)
    note(Editor, "recording", "record")
    note(Editor, "edit_each", "edit", edit_each)
    note(Editor, "reconstruct", "reconstruct", lambda *_, **__: made)
    note(Source, "save", "save", ends)
    note(invert, "Unfinished", "half")
    note(cost, "predict_cost", "plan", ends)
    for owner in (edit, first_frame):
        note(owner, "candidates", "candidates", lambda _, request, *__: [request.frame] * 2)
    note(edit, "fit_frame", "fit")
    note(first_frame, "make", "make")
    note(demo, "run", "demo", ends)
    note(evaluate, "scores", "scored", lambda *_, **__: [])
    note(evidence.Evidence, "read", "compared", original=evidence.Evidence.read)
    note(network, "round_trip", "trip", ends)
    note(server, "check", "checked", lambda *_: None)
    note(server, "served", "serve", ends)
    note(cli_weights, "convert", "convert", ends, original=convert)
    note(cli_weights, "fetch", "fetch", ends, original=fetch)

    def told(command, *words):
        calls.clear()
        main([*LINES[command].split(), *words, "-q"])
        return dict(calls)

    return told


def value(calls, place):
    """What has arrived at a place; None where the call was not made."""
    name, *path = place.split(".")
    found = calls.get(name)
    for each in path:
        found = found.get(each) if isinstance(found, dict) else getattr(found, each, None)
    return found


@pytest.mark.parametrize("command, options", TOLD)
def test_options_arrive(told, unasked, command, options):
    before = unasked[command] = unasked.get(command) or told(command)
    # that run has written the output
    words = ["--force"] * command.startswith("edit")
    for option, (text, _, _) in options.items():
        words += [f"--{option}"] if text is None else [f"--{option}", text]
    after = told(command, *words)
    for option, (_, place, expected) in options.items():
        assert value(before, place) != expected, f"--{option} says nothing new"
        assert value(after, place) == expected, f"--{option} did not come to {place}"


@pytest.mark.parametrize("command", sorted(LINES.keys() - {"edit by an editor"}))
def test_no_option_is_forgotten_here(command):
    args = parser(dict.fromkeys([*LINES, "weights verify"], print)).parse_args(
        LINES[command].split()
    )
    options = {name.replace("-", "_") for each, given in TOLD if each == command for name in given}
    known = options | ELSEWHERE | OF_EDITORS.get(command, set()) | OF_OTHERS.get(command, set())
    assert set(args.settable) <= known


def test_what_an_edit_requires_arrives(told, folder):
    with Image.open(folder / "a.png") as picture:
        frame = np.asarray(picture)
    request = told("edit")["request"]
    assert request.prompt == "x" and np.array_equal(request.frame, frame)


def test_the_demo_draws_by_its_seed(own, source, monkeypatch, tmp_path):
    drawn, draw = [], demo.draw_edit

    def draw_edit(*args):
        drawn.append(args)
        return draw(*args)

    def edited(*_, seed, **__):
        drawn.append(seed)
        raise Enough

    monkeypatch.setattr(demo, "draw_edit", draw_edit)
    monkeypatch.setattr(Editor, "invert", lambda *_, **__: source)
    monkeypatch.setattr(Editor, "edit", edited)
    with pytest.raises(Enough):
        demo.run(own, tmp_path, "shape", seed=7)
    assert drawn == [("shape", "held-out", demo.FIRST + 7), 7]
