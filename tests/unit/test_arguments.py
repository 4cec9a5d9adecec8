"""What callers get wrong is an InputError that names the argument; what they see of objects."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection, InputError, Record, Replay, ShareSource, Taps, Video
from anyv2v.frame_editors.recolor import Recolor, parse_colors
from anyv2v.loading import folder_of
from anyv2v.pipeline.arguments import as_video
from anyv2v.weights.packaged import PACKAGED


@pytest.fixture(scope="module")
def source(editor, video):
    return editor.invert(Video(video.frames[:2, :16, :16], 8), "ddim", steps=2)


FRAME = np.zeros((16, 16, 3), np.uint8)
SITE = "up.1.res.1"

EDIT = [
    ({"source": "clip.safetensors"}, "source: 'clip.safetensors'.*editor.load_source"),
    ({"source": Path("clip.mp4")}, "source: .*clip.mp4"),
    ({"source": Video(FRAME[None], 8)}, "source: Video.*editor.invert"),
    ({"source": None}, "source: None"),
    ({"frame": None}, "frame: None"),
    ({"frame": 5}, "frame: 5"),
    ({"frame": [FRAME]}, r"frame: \[array"),
    ({"frame": Video(FRAME[None], 8)}, "frame: Video"),
    ({"frame": FRAME.astype(float)}, "image must be uint8"),
    ({"prompt": None}, "prompt: None is not a text"),
    ({"prompt": b"a robot"}, "prompt: b'a robot'"),
    ({"prompt": ["a robot"]}, r"prompt: \['a robot'\]"),
    ({"negative_prompt": 5}, "negative_prompt: 5"),
    ({"steps": "2"}, "steps: '2'"),
    ({"steps": True}, "steps: True"),
    ({"start": "1"}, "start: '1'"),
    ({"guidance": "9"}, "guidance: '9'"),
    ({"guidance": {"image": 2}}, "guidance: no such scale: image"),
    ({"guidance": {"text": "9"}}, "guidance: text: '9'"),
    ({"guidance": 10**400}, "guidance: 1"),
    ({"random_ratio": "0.5"}, "random_ratio: '0.5'"),
    ({"random_ratio": [0.5]}, "random_ratio: "),
    ({"fps": "8"}, "fps: '8'"),
    ({"fps": 10**30}, "fps: 10+ is not"),
    ({"fps": 10**5000}, "fps: a int"),
    ({"seed": "0"}, "seed: '0'"),
    ({"seed": -1}, "seed: -1"),
    ({"seed": 2**64}, f"seed: {2**64} is not .* to {2**64 - 1}"),
    ({"injection": 0.2}, "injection: 0.2"),
    ({"injection": {"conv": 0.2}}, "injection: {'conv'"),
    ({"on_step": 5}, "on_step: 5"),
    ({"on_step": "print"}, "on_step: 'print'"),
    ({"fit": None}, "fit: None"),
    ({"noise": [0.0]}, r"noise: \[0.0\]"),
    ({"step_noise": 5}, "step_noise: "),
    ({"step_noise": [torch.zeros(1)]}, "step_noise: the steps of this sampler add no noise"),
    ({"taps": 5}, "taps: 5 is not an anyv2v.Taps"),
    ({"after_step": 5}, "after_step: 5"),
    ({"options": 5}, "options: 5 is not a mapping"),
    ({"options": {"stride": 3}}, "options: no such option: stride"),
    ({"options": {"fps": 8}, "fps": 9}, "fps: 9 is not 8, as the options say"),
    ({"source_pass": 3}, "source_pass: 3"),
]
INVERT = [
    ({"video": 5}, "video: 5"),
    ({"video": None}, "video: None"),
    ({"video": [FRAME, FRAME]}, "video: "),
    ({"video": "clip.safetensors"}, "video: clip.safetensors is a source; editor.load_source"),
    ({"video": "a\0b"}, "video: .* is not a path"),
    ({"video": np.zeros((2, 16, 16, 3))}, "frames must be uint8"),
    ({"method": 3}, "method: 3"),
    ({"method": None}, "method: None"),
    ({"steps": "2"}, "steps: '2'"),
    ({"prompt": None}, "prompt: None"),
    ({"negative_prompt": None}, "negative_prompt: None"),
    ({"guidance": "1"}, "guidance: '1'"),
    ({"fps": 8.5}, "fps: 8.5"),
    ({"tolerance": "x"}, "tolerance: 'x'"),
    ({"tolerance": 0}, "tolerance: 0"),
    ({"on_step": [print]}, "on_step: "),
    ({"plan": 5}, "plan: 5 is not a StepPlan"),
    ({"taps": None, "options": {"fps": 0}}, "fps: 0"),
    ({"recording": {}}, "recording: {}"),
    ({"unfinished": "half"}, "unfinished: 'half'"),
]
GENERATE = [
    ({"frames": 10**30}, "frames: 10+ is not"),
    ({"frames": "2"}, "frames: '2'"),
    ({"size": (2**31, 2**31)}, r"size: \(2147483648, 2147483648\)"),
    ({"size": "16x16"}, "size: '16x16'"),
    ({"size": 16}, "size: 16"),
    ({"size": None, "frames": 2**24}, "not enough memory"),
    ({"prompt": 1.0}, "prompt: 1.0"),
    ({"seed": 2**64}, "seed: "),
    ({"fps": 10**30}, "fps: "),
    ({"frame": None}, "frame: None"),
]


def names(cases):
    return [f"{next(iter(changed))} {i}" for i, (changed, _) in enumerate(cases)]


@pytest.mark.parametrize("changed, told", EDIT, ids=names(EDIT))
def test_arguments_of_an_edit(editor, source, changed, told):
    arguments = dict(source=source, frame=FRAME, prompt="a robot", steps=2) | changed
    with pytest.raises(InputError, match=told):
        editor.edit(**arguments)


@pytest.mark.parametrize("changed, told", INVERT, ids=names(INVERT))
def test_arguments_of_an_inversion(editor, source, changed, told):
    arguments = dict(video=source.video, method="fixed-point", steps=2) | changed
    with pytest.raises(InputError, match=told):
        editor.invert(**arguments)


@pytest.mark.parametrize("changed, told", GENERATE, ids=names(GENERATE))
def test_arguments_of_a_generation(editor, changed, told):
    arguments = dict(frame=FRAME, prompt="", frames=2, size=(16, 16), steps=1) | changed
    with pytest.raises(InputError, match=told):
        editor.generate(**arguments)


def test_arguments_of_the_stages(editor, source):
    latents, conditions = source.trajectory[1], editor.condition("", FRAME, 2, (16, 16))
    for told, call in {
        "edits: 5": lambda: editor.edit_many(source, 5),
        "edits: 'x' is not an EditRequest": lambda: editor.edit_many(source, ["x"], steps=2),
        "source: None": lambda: editor.reconstruct(None),
        "video: Source": lambda: editor.invert(source),
        "prompt: None": lambda: editor.condition(None, FRAME, 2, (16, 16)),
        "frames: '2'": lambda: editor.condition("", FRAME, "2", (16, 16)),
        "text: 5": lambda: editor.tokenize(5),
        "text: None": lambda: editor.encode_text(None),
        "width: 0": lambda: editor.encode_image(FRAME, width=0),
        "recording: None": lambda: editor.record(source, None),
        "latents: None": lambda: editor.decode(None),
        r"latents: \(4, 2, 2, 2\)": lambda: editor.decode(latents[0]),
        "t: '1'": lambda: editor.predict(latents, "1", conditions),
        "t: 1000": lambda: editor.predict(latents, 1000, conditions),
        "taps: None": lambda: editor.predict(latents, 1, conditions, None),
        "taps: 'x'": lambda: editor.predict(latents, 1, conditions, "x"),
        r"latents: \(4, 2, 2, 2\) is": lambda: editor.predict(latents[0], 1, conditions),
        "conditions: None": lambda: editor.predict(latents, 1, None),
        "clip_skip: -1": lambda: editor.encode_text("", -1),
        "generator: 5": lambda: editor.encode_frames(source.video.frames, 5),
        "start: '0'": lambda: editor.step_plan(2, "0", Injection()),
        "path: None": lambda: editor.load_source(None),
        "path: 3": lambda: source.save(3),
        "weights: 5": lambda: anyv2v.load(5),
        "weights: ''": lambda: anyv2v.load(""),
        "device: 1.5": lambda: anyv2v.load("demo", device=1.5),
        r"fps: '8'": lambda: Video(FRAME[None], "8"),
        r"frames: \[\[1\], \[1, 2\]\]": lambda: Video([[1], [1, 2]], 8),
        "editor: 5 is no editor": lambda: anyv2v.edit_frame(FRAME, 5),
        "editor: <class": lambda: anyv2v.edit_frame(FRAME, Recolor),
        "editor: <function": lambda: anyv2v.edit_frame(FRAME, lambda *a: []),
        "instruction: None": lambda: anyv2v.edit_frame(FRAME, "recolour", None),
        "seed: 18446744073709551616": lambda: anyv2v.edit_frame(
            FRAME, "recolour", "red", seed=2**64
        ),
    }.items():
        with pytest.raises(InputError, match=told):
            call()
    # what counts and numbers may come as
    assert editor.schedule.timesteps(np.int64(2)) == editor.schedule.timesteps(2)
    assert Injection(conv=np.float32(0.5)).conv == 0.5


@pytest.mark.parametrize("color", ["rgb(300,0,0)", "rgb(0,300%,0)", "hsl(0,200%,70%)"])
def test_a_color_beyond_white_is_refused(color):
    for instruction in (color, f"red > {color}", f"{color} > red"):
        with pytest.raises(InputError, match=re.escape(color)):
            parse_colors(instruction)


def test_sites_that_there_are_not(editor, source):
    latents, conditions = source.trajectory[1], editor.condition("", FRAME, 2, (16, 16))
    near = "no such site: up.1.res.9; there is .*up.1.res.1"
    kept = {"up.1.res.9": (torch.zeros(1),)}
    for taps in (Record(["up.1.res.9"]), Replay(kept), ShareSource([SITE, "up.1.res.9"], 1)):
        with pytest.raises(InputError, match=f"taps: {near}"):
            editor.predict(latents, 1, conditions, taps)

    class Mine(Taps):
        sites = frozenset({"up.1.res.9"})

    with pytest.raises(InputError, match=near):
        editor.predict(latents, 1, conditions, Mine())
    for sites in (["up.1.res.9"], ("up.1.res.9", SITE)):
        injection = Injection(1, 1, 1, sites={"conv": sites})
        for call in (editor.recording, editor.edit):
            arguments = (source, FRAME, "") if call == editor.edit else (source.video,)
            with pytest.raises(InputError, match=f"injection: {near}"):
                call(*arguments, steps=2, injection=injection)
    # names alone are no lists of names
    for make in (
        lambda: Record(SITE),
        lambda: ShareSource(SITE, 2),
        lambda: Injection(sites={"conv": SITE}),
        lambda: Injection(sites={"conv": 5}),
        lambda: Injection(sites=[SITE]),
        lambda: Replay([SITE]),
        lambda: Record([5]),
    ):
        with pytest.raises(InputError, match="site|kept"):
            make()


def test_a_video_may_be_an_array_or_a_path(editor, source, tmp_path):
    frames = source.video.frames
    for given in (frames, torch.from_numpy(frames.copy())):
        again = editor.invert(given, "ddim", steps=2)
        assert again.video.fps == editor.defaults.fps
        assert all(torch.equal(x, again.trajectory[t]) for t, x in source.trajectory.items())
    size, count, fps = editor.defaults.size, editor.defaults.frames, editor.defaults.fps
    path = tmp_path / "clip.mp4"
    anyv2v.write_video(path, np.zeros((2 * count, 16, 16, 3), np.uint8), 2 * fps)
    seen = as_video(str(path), editor.defaults)
    assert seen.frames.shape == (count, size[1], size[0], 3) and seen.fps == fps
    with pytest.raises(InputError, match="absent.mp4"):
        editor.invert(tmp_path / "absent.mp4")


def test_frames_that_change_later_change_nothing(editor):
    array = np.full((2, 16, 16, 3), 7, np.uint8)
    tensor = torch.from_numpy(np.full((2, 16, 16, 3), 7, np.uint8))
    views = array[:, ::-1], array[...], array, tensor
    videos = [Video(given, 8) for given in views]
    sources = [editor.invert(given, "ddim", steps=1) for given in (array, videos[0])]
    array[:], tensor[:] = 200, 200
    videos[0].frames[:] = 100
    for video in (*videos[1:], *(source.video for source in sources)):
        assert (video.frames == 7).all()


def test_what_is_seen_of_an_object_is_one_line(editor, source):
    frames = source.video.frames
    edit = anyv2v.Edit(frames, 8.0, source.trajectory[0])
    seen = [
        (Video(frames, 12.5), "Video(2 frames of 16x16, 12.5 fps)"),
        (Video(frames[:1], 8), "Video(1 frame of 16x16, 8 fps)"),
        (source, "Source(2 frames of 16x16, 8 fps, ddim in 2 steps, 2 evaluations, weights "),
        (edit, "Edit(2 frames of 16x16, 8 fps, latents (1, 4, 2, 2, 2))"),
        (editor, f"Editor(i2vgen, {editor.defaults.frames} frames of "),
        (EditRequest(frames[0], "a robot"), "EditRequest(frame=ndarray uint8 (16, 16, 3), prompt="),
    ]
    for thing, begin in seen:
        assert repr(thing).startswith(begin)
        assert len(repr(thing)) < 500 and "\n" not in repr(thing) and "array(" not in repr(thing)
    assert "float32 on cpu" in repr(editor)


def test_paths(editor, source, weights, tmp_path, monkeypatch):
    for name, folder in PACKAGED.items():
        assert folder_of(Path(name)) == folder_of(name) == folder
        assert folder_of(f"./{name}") == Path(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").symlink_to(weights)
    for given in ("~/weights", Path("~/weights")):
        assert folder_of(given) == tmp_path / "weights"
    source.save("~/clip.safetensors")
    assert (tmp_path / "clip.safetensors").is_file()
    for given in ("~/clip.safetensors", Path("~/clip.safetensors")):
        assert editor.load_source(given).evaluations == source.evaluations
        assert anyv2v.Source.load(given).settings == source.settings


def test_pictures_are_read_as_edits_read_them(tmp_path):
    Image.fromarray(FRAME + 9).save(tmp_path / "a.png")
    assert (anyv2v.read_image(tmp_path / "a.png") == 9).all()


@pytest.mark.parametrize("wrong", ["\ud800", "a\0b", "a" * 5000, "", 5, b"x"], ids=repr)
def test_what_no_file_can_be_called(editor, source, wrong):
    for told, call in {
        "weights": lambda: anyv2v.load(wrong),
        "path": lambda: anyv2v.read_video(wrong),
        "path: ": lambda: anyv2v.write_video(wrong, source.video.frames, 8),
        "path:": lambda: source.save(wrong),
        "video": lambda: editor.invert(wrong),
        "frame": lambda: editor.edit(source, wrong, "", steps=2),
        "reference": lambda: anyv2v.edit_frame(FRAME, "palette", reference=wrong),
    }.items():
        with pytest.raises(InputError, match=f"^{told}"):
            call()


@pytest.mark.parametrize("wrong", [None, 1, "yes", [], np.ones(2), torch.ones(2)], ids=repr)
def test_flags_are_true_or_false(editor, source, tmp_path, wrong):
    told = "neither True nor False"
    for call in (
        lambda: anyv2v.write_video(tmp_path / "a.mp4", source.video.frames, 8, force=wrong),
        lambda: source.save(tmp_path / "a.safetensors", force=wrong),
        lambda: source.save(tmp_path / "a.safetensors", features=wrong),
        lambda: anyv2v.edit_frame(FRAME, "edges", keep_unchanged=wrong),
        lambda: editor.condition("", FRAME, 2, (16, 16), negative=wrong),
        lambda: editor.encode_image(FRAME, black_edge=wrong),
        lambda: editor.recording(source.video, steps=2, compact=wrong),
        lambda: Record([SITE], compact=wrong),
        lambda: anyv2v.Progress(quiet=wrong),
    ):
        with pytest.raises(InputError, match=told):
            call()
    if wrong is not None:
        with pytest.raises(InputError, match="graphs: .* neither True nor False"):
            anyv2v.load("demo", graphs=wrong)
        with pytest.raises(InputError, match="offload: .* not True, False or 'auto'"):
            anyv2v.load("demo", offload=wrong)


def test_more_arguments_are_named(editor, source, tmp_path):
    latents, conditions = source.trajectory[1], editor.condition("", FRAME, 2, (16, 16))
    nothing = Image.new("RGB", (0, 3))
    for told, call in {
        "comment: 5": lambda: anyv2v.write_video("a.mp4", source.video.frames, 8, comment=5),
        "start_time: 1e": lambda: anyv2v.read_video("a.mp4", start_time=1e300),
        "source: None": lambda: anyv2v.read_image(None),
        "an image of 0x3": lambda: anyv2v.read_image(nothing),
        "frame: an image of 0x3": lambda: editor.encode_image(nothing),
        "mask: a picture of 0x3": lambda: anyv2v.edit_frame(FRAME, "edges", mask=nothing),
        "video: frames": lambda: editor.invert(np.zeros((2, 3))),
        "features: 5": lambda: editor.record(source, editor.recording(source.video, steps=2), 5),
        r"t: Tensor torch.float32 \(3,\)": lambda: editor.predict(
            latents, torch.zeros(3), conditions
        ),
        "latents: .* conditions": lambda: editor.predict(latents[..., 1:], 1, conditions),
        "dtype: array": lambda: anyv2v.load("demo", dtype=np.array("x")),
        "steps: -1": lambda: anyv2v.Progress(quiet=True)("a", -1),
        "backbone: 5": lambda: anyv2v.Editor(5),
        "fingerprint: 5": lambda: anyv2v.Editor(editor.backbone, 5),
    }.items():
        with pytest.raises(InputError, match=told):
            call()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_source_may_have_a_name_that_is_no_text(editor, source, tmp_path):
    try:
        folder = tmp_path / os.fsdecode(b"\xff")
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    for path in (folder / "a.safetensors", tmp_path / os.fsdecode(b"b\xe9.safetensors")):
        source.save(path)
        found = editor.load_source(path)
        assert torch.equal(found.trajectory[1], source.trajectory[1])
        assert anyv2v.Source.frame_size(path) == source.video.frames.shape[2:0:-1]
