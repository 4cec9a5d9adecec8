"""What has no effect or is lost is said, once, and what has an effect is not."""

import logging
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v import loading
from anyv2v.backbones.defaults import read_defaults
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.cli import first_frame, notices, settings
from anyv2v.cli.main import main
from anyv2v.cli.options import parser
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.registry import make
from tests.clips import clip, encode, turn

av = pytest.importorskip("av")

NAMES = ("demo", "convert", "weights verify", "weights fetch", "edit", "edit-frame", "plan")
COMMANDS = dict.fromkeys((*NAMES, "invert", "reconstruct", "evaluate"), print)
EDIT = "edit v.mp4 --frame f.png --prompt x -o o.mp4"
BY = "edit v.mp4 --editor edges --prompt x -o o.mp4"
FRAME = "edit-frame v.mp4 --editor edges -o f.png"
INVERT = "invert v.mp4 -o s.safetensors"


ORIGINAL = read_defaults(
    {"defaults": {"size": [512, 512], "frames": 16, "fps": 8}}, I2VGen.published_settings
)


def parsed(line: str):
    """The options of a command; those that are left to the weights are the published ones' own."""
    args = parser(COMMANDS).parse_args(line.split())
    if hasattr(args, "paper"):
        settings.fill(args, ORIGINAL, ORIGINAL)
    return args


DDIM = {"method": "ddim", "passes": False}


@pytest.mark.parametrize(
    "line, facts, option",
    [
        (f"{EDIT} --negative-prompt x --guidance 1", {}, "negative-prompt"),
        ("reconstruct v.mp4 --negative-prompt=x", {}, "negative-prompt"),
        (f"{EDIT} --guidance 0.5", {}, "guidance 0.5 is taken as 1"),
        (f"{EDIT} --seed 0", {}, "seed"),
        (f"{BY} --seed 4", {}, "seed"),
        (f"{FRAME} --seed 4", {}, "seed"),
        (f"{FRAME} --candidates 4", {}, "candidates 4 are all the same"),
        (f"{BY} --instruction x", {}, "instruction"),
        (f"{FRAME} --reference f.png", {"uses": {"seed", "instruction"}}, "reference"),
        (f"{FRAME} --dtype float16", {}, "dtype"),
        (f"{FRAME} --device cpu", {}, "device"),
        (f"{FRAME} --fit pad", {}, "fit"),
        (f"{FRAME} --start-time 2", {"still": True}, "start-time"),
        (f"{FRAME} --start-time 2", {"inverted": True}, "start-time"),
        ("reconstruct s.safetensors --fit crop", {"inverted": True}, "fit"),
        (f"{BY} --fit crop", {"inverted": True}, "fit"),
        (f"{EDIT} --tolerance 1e-3 --method ddim", {"method": "ddim"}, "tolerance"),
        ("plan v.mp4 --tolerance 1e-3", {}, "tolerance"),
        ("plan v.mp4 --inversion-prompt x", {}, "inversion-prompt"),
        ("plan v.mp4 --fps 9", {}, "fps"),
        ("plan v.mp4 --force", {}, "force"),
        ("weights verify demo --force", {}, "force"),
        ("reconstruct v.mp4 --force", {}, "force"),
        ("plan v.mp4 --offload on", {"on_cpu": True}, "offload"),
        ("demo --offload on", {"on_cpu": True}, "offload"),
        (f"{INVERT} --spatial 0.3", {}, "spatial"),
        (f"{INVERT} --feature-memory 1GB", {}, "feature-memory"),
        (f"{INVERT} --features", DDIM, "features"),
        (f"{INVERT} --features --feature-memory 0", {}, "features"),
        (f"{INVERT} --features --conv 0 --spatial 0 --temporal 0", {}, "features"),
        (f"{EDIT} --conv 0.2 --start 10", {}, "conv"),
        (f"{EDIT} --inject conv=0.2 --start 10", {}, "inject conv has no effect"),
        (f"{INVERT} --inject cross=0.2", {}, "inject cross has no effect"),
        (f"{EDIT} --negative-prompt x --guidance text=1", {}, "negative-prompt"),
        (f"{EDIT} --temporal 0.3 --steps 3", {"inversion_steps": 3}, "temporal"),
        (f"{EDIT} --start 25", {}, "nothing of the source is injected"),
        (f"{EDIT} --steps 1", {}, "nothing of the source is injected"),
        (f"{EDIT} --feature-memory 1GB", {"inverted": True}, "feature-memory"),
        (
            f"{EDIT} --feature-memory 1GB",
            {"inversion_steps": 25, "passes": False},
            "feature-memory",
        ),
        (f"{EDIT} --feature-memory 1GB --method ddim", DDIM, "feature-memory"),
        (f"{EDIT} --feature-memory 1GB --start 25 --conv 0", {}, "feature-memory"),
    ],
)
def test_an_option_without_effect_is_told(line, facts, option):
    lines = notices.without_effect(parsed(line), **facts)
    found = [text for text in lines if option in text]
    assert len(found) == 1, lines
    if " " not in option:
        assert found[0].startswith(f"--{option} has no effect: ")
    assert all("\n" not in text for text in lines) and len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    "line, facts",
    [
        (EDIT, {}),
        (f"{EDIT} --negative-prompt x --guidance 1.5 --conv 0.2 --feature-memory 1GB --force", {}),
        (f"{EDIT} --seed 4 --random-ratio 0.1 --fit pad --start-time 3 --tolerance 1e-3", {}),
        (f"{EDIT} --fit crop", {"inverted": True}),
        (f"{BY} --fit crop --mask m.png", {"inverted": True}),
        # what is wished for is so anyway
        (f"{EDIT} --feature-memory 0 --method ddim", DDIM),
        (f"{EDIT} --conv 0 --offload off", {"on_cpu": True}),
        ("plan v.mp4 --offload auto --guidance 1 --fit pad", {"on_cpu": True}),
        ("demo --offload on --seed 3 --force", {}),
        (f"{BY} --seed 4 --instruction x", {"uses": {"seed", "instruction"}}),
        (f"{FRAME} --seed 4 --candidates 4 --dtype float16", {"uses": {"seed", "dtype"}}),
        (f"{EDIT} --seed 4", {"uses": {"seed"}}),
        (f"{FRAME} --fit pad --size 32 --start-time 1", {}),
        (f"{FRAME} --fit pad --mask m.png", {}),
        (f"{INVERT} --features --conv 0.3 --feature-memory 1GB --tolerance 1e-3", {}),
        ("reconstruct v.mp4 -o o.mp4 --force --negative-prompt x --guidance 2", {}),
        ("weights verify demo --quiet", {}),
    ],
)
def test_what_has_an_effect_is_not_told(line, facts):
    assert notices.without_effect(parsed(line), **facts) == []


def test_the_seed_is_drawn_from_where_the_sampler_adds_noise(seine):
    def uses(line):
        return settings.seed_of_the_sampler(parsed(line), seine.backbone)

    assert uses(EDIT) == {"seed"} and uses(f"{EDIT} --option sampler=ddim") == frozenset()


def test_a_scale_below_1_is_taken_as_it_is_beside_another_that_guides():
    args = parsed(EDIT)
    args.given, args.guidance = {"guidance"}, {"text": 0.5, "image": 2.0}
    assert notices.without_effect(args) == []
    args.guidance = {"text": 0.5, "image": 1.0}
    assert "taken as 1" in notices.without_effect(args)[0]


def test_words_of_a_value_are_no_options():
    args = parser(COMMANDS).parse_args(
        [*EDIT.split(), "--negative-prompt=--seed", "--guidance", "2", "--instruction", "- seed 3"]
    )
    assert args.given == {"frame", "prompt", "negative-prompt", "guidance", "instruction"}


def test_what_a_crop_leaves_out_is_told_with_what_keeps_it():
    line = notices.cut_off("phone.mov", (72, 128), (32, 32), 4)
    assert "phone.mov is 72x128: 44% of its height" in line
    assert "--size 32 " in line and "32x56" in line and "--fit pad" in line
    line = notices.cut_off("wide.mkv", (1920, 1080), (512, 512), 8)
    assert "44% of its width" in line and "912x512" in line
    # a size that keeps more is not there, or was asked for
    assert "--size" not in notices.cut_off("v.mp4", (72, 81), (32, 32), 8)
    assert "--size" not in notices.cut_off("v.mp4", (72, 80), (32, 32), 8, told=32)
    for clip_size in ((512, 512), (1920, 1920), (520, 512), (512, 520)):
        assert notices.cut_off("v.mp4", clip_size, (512, 512), 8) is None


def test_what_else_is_told():
    assert "v.mkv has sound" in notices.silent("v.mkv", True)
    assert notices.silent("v.mkv", False) is None
    assert "912x512 is taken" in notices.rounded(510, (912, 512), 8)
    assert notices.rounded(512, (912, 512), 8) is None
    assert notices.beginning_again("u", there=True, resume=True) is None
    assert notices.beginning_again("u", there=False, resume=False) is None
    assert "--resume has no effect" in notices.beginning_again("u", there=False, resume=True)
    assert "u is replaced" in notices.beginning_again("u", there=True, resume=False)


# editors say truly what they make something of


@pytest.mark.parametrize(
    "name, options",
    [
        ("recolour", {}),
        ("palette", {}),
        ("palette", {"method": "transport"}),
        ("posterise", {"colours": 3}),
        ("edges", {}),
    ],
)
def test_editors_use_what_they_say(name, options):
    rng = np.random.default_rng(2)
    frame, a, b = rng.integers(0, 255, (3, 24, 32, 3), np.uint8)
    editor = make(name, options)

    def found(instruction="red > blue", reference=a, seed=1):
        return editor(FrameRequest(frame, instruction, reference), [seed])[0]

    changes = {
        "instruction": found(instruction="green > red"),
        "reference": found(reference=b),
        "seed": found(seed=2),
    }
    truth = {name for name, other in changes.items() if not np.array_equal(found(), other)}
    assert truth == editor.uses == first_frame.uses(editor)


def test_a_command_uses_what_it_is_told():
    editor = make("command", {"command": "tool {input} {output} --seed={seed}"})
    assert {"seed"} == first_frame.uses(editor) & {"instruction", "reference", "seed"}
    with pytest.raises(InputError, match="without t2i"):
        make("ip-adapter", {"weights": "w", "adapter": "a", "condition_scale": 0.5})


# words that are lost


LONG = " ".join(["a man walks along the lake"] * 12) + " until the bridge, at dawn"


def test_from_python_lost_words_are_logged_once(caplog):
    editor = anyv2v.load("demo", device="cpu")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            editor.encode_text(LONG)
        editor.tokenize(anyv2v.NEGATIVE_PROMPT)
        editor.tokenize("a short one")
    assert len(caplog.records) == 1
    assert "after 32 tokens" in caplog.text and 'until the bridge, at dawn"' in caplog.text


# whole commands, as far as the inversion


def with_sound(path, frames, codec):
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=8), container.add_stream(codec, 48000)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 8)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        tone = np.zeros((1, 48000), np.int16)
        sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        sound.sample_rate = 48000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def demo():
    return anyv2v.load("demo", device="cpu")


@pytest.fixture
def told(demo, monkeypatch, capfd, tmp_path):
    """told(*args): the lines that a command says before its inversion."""
    monkeypatch.setattr(loading, "load", lambda *args, **options: demo)

    def invert(*args, **kwargs):
        raise InputError("stopped")

    monkeypatch.setattr(anyv2v.Editor, "invert", invert)
    monkeypatch.chdir(tmp_path)

    def told(*args):
        assert main([str(arg) for arg in args]) == 2
        *lines, last = capfd.readouterr().err.splitlines()
        assert last == "anyv2v: stopped" or not lines, lines
        return lines if last == "anyv2v: stopped" else last

    return told


@pytest.mark.parametrize("name, codec", [("v.mkv", "libopus"), ("v.mov", "pcm_s16le")])
def test_sound_that_stays_behind_is_told(told, tmp_path, name, codec):
    with_sound(tmp_path / name, clip(9), codec)
    lines = told("reconstruct", name, "--size", "96x64", "-o", "o.mp4")
    assert lines == [f"anyv2v: {name} has sound; what is written has none"]
    assert told("reconstruct", name, "--size", "96x64") == []


def test_a_cut_is_told_of_upright_square_pixels(told, tmp_path):
    encode(tmp_path / "t.mov", clip(9, 128, 72), rate=8)
    turn(tmp_path / "t.mov", 0, 1, -1, 0)
    (line,) = told("reconstruct", "t.mov")
    assert "t.mov is 72x128: 44% of its height is cut off to reach 32x32" in line
    for options in (("--size", 32), ("--fit", "pad"), ("--size", "72x128")):
        assert told("reconstruct", "t.mov", *options) == []
    encode(tmp_path / "n.mkv", clip(9, 96, 64), rate=8, sample_aspect_ratio=Fraction(4, 3))
    assert "n.mkv is 128x64: 50% of its width" in told("reconstruct", "n.mkv")[0]


def test_frames_of_other_proportions(told, tmp_path):
    encode(tmp_path / "v.mkv", clip(9), rate=8)
    for name, size in (("half.png", (48, 32)), ("square.png", (64, 64)), ("tall.jpg", (64, 96))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    # lying as it is stored, upright as it is shown
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 96), "red").save(tmp_path / "turned.jpg", exif=exif)

    def edit(frame, size, *options):
        options = ("--prompt", "x", "-o", "o.mp4", "--steps", 2, "--size", size, *options)
        # the demo weights' own guidance is 1, where a negative prompt has no effect
        options += ("--feature-memory", 0, "--guidance", 2)
        return told("edit", "v.mkv", "--frame", frame, *options)

    assert edit("half.png", "96x64") == edit("turned.jpg", "96x64") == []
    refused = edit("square.png", "96x64")
    for word in ("square.png is 64x64", "the clip is 96x64", "--fit crop, stretch or pad"):
        assert word in refused
    assert "tall.jpg is 64x96" in edit("tall.jpg", "64x64")
    assert "33% of its width" in edit("square.png", "64x64")[0]
    assert edit("square.png", "96x64", "--fit", "stretch") == []
    long = edit("half.png", "96x64", "--inversion-prompt", LONG, "--negative-prompt", LONG)
    assert [line.split(" is cut")[0] for line in long] == [
        "anyv2v: --negative-prompt",
        "anyv2v: --inversion-prompt",
    ]
    assert all('until the bridge, at dawn"' in line for line in long)


@pytest.mark.parametrize("fit", [None, "crop", "pad"])
def test_how_the_frame_comes_to_the_size(demo, monkeypatch, tmp_path, fit):
    """The picture that is edited with: as it is, or as --fit says."""
    monkeypatch.setattr(loading, "load", lambda *args, **options: demo)
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "v.mkv", clip(9), rate=8)
    frame = np.random.default_rng(3).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(frame).save("f.png")
    seen = []

    def edit_each(self, source, edits, **options):
        seen.append((source, [edit.fit for edit in edits]))
        raise InputError("stopped")

    monkeypatch.setattr(anyv2v.Editor, "edit_each", edit_each)
    monkeypatch.setattr(anyv2v.Editor, "invert", lambda self, video, **options: video)
    options = ["--steps", "2", "--feature-memory", "0"] + (["--fit", fit] if fit else [])
    main(["edit", "v.mkv", "--frame", "f.png", "--prompt", "x", "-o", "o.mp4", *options])
    ((video, fits),) = seen
    assert fits == [fit or "stretch"]
    truth = anyv2v.read_video("v.mkv", (32, 32), 8, 8, fit=fit or "crop")
    assert np.array_equal(video.frames, truth.frames)
    assert (video.frames[:, 0].max() == 0) == (fit == "pad")


def test_masks_of_other_proportions(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    frame = np.full((64, 96, 3), 128, np.uint8)
    frame[16:48, 40:64] = (200, 30, 30)
    Image.fromarray(frame).save("f.png")
    for name, size in (("clip", (96, 64)), ("square", (40, 40)), ("tall", (40, 80))):
        mask = Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0], size[1] // 2))
        mask.save(f"{name}.png")

    def edit(mask, *options):
        told = ("--editor", "recolour", "--instruction", "blue", "--force", "-o", "o.png")
        status = main(["edit-frame", "f.png", *told, "--mask", mask, *options])
        return status, capfd.readouterr().err

    assert edit("clip.png") == (0, "")
    for mask in ("clip.png", "square.png"):
        assert edit(mask, "--size", "64x64")[0] == 0
        found = np.array(Image.open("o.png"))
        assert (found[18:30, 26:38, 2] > found[18:30, 26:38, 0]).all()
        assert (found[34:46, 26:38, 0] > found[34:46, 26:38, 2]).all()
    status, err = edit("square.png")
    assert status == 2 and "--mask square.png is 40x40" in err and "96x64" in err
    assert edit("tall.png", "--size", "64x64")[0] == 2
    assert edit("tall.png", "--size", "64x64", "--fit", "stretch")[0] == 0
