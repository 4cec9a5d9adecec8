"""Files of jobs: what they say, where they are wrong, and which edits belong to one clip."""

import json
from pathlib import Path

import pytest

from anyv2v.batch.gathering import checked_output
from anyv2v.batch.jobs import read_jobs
from anyv2v.batch.options import OF_CLIPS, OF_EDITS, OF_THE_BATCH
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.cli.options import parser
from anyv2v.errors import InputError

WHOLE = """
defaults: {steps: 25, negative-prompt: blurry}
clips:
  - video: clips/ballet.mp4
    method: ddim
    edits:
      - name: van-gogh
        frame: frames/van gogh.png
        prompt: "a girl dancing: van Gogh"
        guidance: {text: 9}
        keyframe: ["8:later.png"]
      - editor: recolor
        reference: /pictures/night.png
        instruction: Red to BLUE, please!
        prompt: a girl dancing
        negative_prompt: null
        output: recolored/%05d.png
  - {video: walk.mp4, frame: robot.png, prompt: 007, inversion_prompt: a man, output: ./r.webp}
"""


@pytest.fixture
def read(tmp_path):
    def read(text, name="jobs.yaml", check=None):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_jobs(path, check)

    return read


def test_yaml_says_clips_with_their_edits(read, tmp_path):
    own = {"steps": "25", "negative_prompt": "blurry"}
    first = TaskEdit(
        "ballet/van-gogh.mp4",
        own
        | {
            "frame": f"{tmp_path}/frames/van gogh.png",
            "prompt": "a girl dancing: van Gogh",
            "guidance": {"text": "9"},
            "keyframe": [f"8:{tmp_path}/later.png"],
        },
    )
    second = TaskEdit(
        "recolored/%05d.png",
        {
            "steps": "25",
            "editor": "recolor",
            "reference": "/pictures/night.png",
            "instruction": "Red to BLUE, please!",
            "prompt": "a girl dancing",
        },
    )
    third = TaskEdit("r.webp", own | {"frame": f"{tmp_path}/robot.png", "prompt": "007"})
    assert read(WHOLE) == [
        Task(f"{tmp_path}/clips/ballet.mp4", (first, second), {"method": "ddim"}),
        Task(f"{tmp_path}/walk.mp4", (third,), {"inversion_prompt": "a man"}),
    ]


def test_flat_edits_of_a_clip_become_one_task(read, tmp_path):
    lines = [
        {"video": "a.mp4", "frame": "x.png", "prompt": "x", "size": "64x64", "seed": 3},
        {"video": "b.mp4", "frame": "x.png", "prompt": "x"},
        {"video": "./a.mp4", "frame": "y.png", "prompt": "y", "size": "64x64", "steps": 9},
        {"video": "a.mp4", "frame": "z.png", "prompt": "z", "size": "32x32"},
        {"video": "a.mp4", "command": "reconstruct", "size": "64x64"},
    ]
    tasks = read("\n".join(map(json.dumps, lines)), "jobs.jsonl")
    told = [
        (Path(t.video).name, t.settings.get("size"), [e.output for e in t.edits]) for t in tasks
    ]
    assert told == [
        ("a.mp4", "64x64", ["a/x.mp4", "a/y.mp4", "a/reconstruct.mp4"]),
        ("b.mp4", None, ["b/x.mp4"]),
        ("a.mp4", "32x32", ["a/z.mp4"]),
    ]
    assert tasks[0].edits[2] == TaskEdit("a/reconstruct.mp4", {}, "reconstruct")
    x = tasks[0].options(tasks[0].edits[0])
    assert (x["seed"], x["size"], x["video"]) == (3, "64x64", f"{tmp_path}/a.mp4")


def test_an_edit_with_a_reading_of_its_own_is_another_task(read):
    edits = [
        {"frame": "x.png", "prompt": "x"},
        {"frame": "y.png", "prompt": "y", "method": "ddim"},
        {"command": "reconstruct"},
    ]
    document = {"defaults": {"conv": 0.5}, "clips": [{"video": "a.mp4", "edits": edits}]}
    one, two = read(json.dumps(document), "jobs.json")
    assert [e.output for e in one.edits] == ["a/x.mp4", "a/reconstruct.mp4"]
    assert (one.settings, two.settings) == ({}, {"method": "ddim"})
    # a reconstruction injects nothing, and does not inherit what it cannot have
    assert one.edits[0].settings["conv"] == 0.5 and one.edits[1].settings == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"video": "a.mp4",\n  "frame": "x.png",\n  "prompt": "a\nb"}\n\n{"video": "b.mp4",'
        ' "frame": "x.png", "prompt": "x"}',
        '\ufeff{"video": "a.mp4", "frame": "x.png", "prompt": "a\\nb"}\r\n'
        '{"video": "b.mp4", "frame": "x.png", "prompt": "x"}\r\n',
    ],
)
def test_line_breaks_and_marks_in_json_lines(read, text):
    one, two = read(text, "jobs.jsonl")
    assert one.edits[0].settings["prompt"] == "a\nb"
    assert (one.edits[0].output, two.edits[0].output) == ("a/x.mp4", "b/x.mp4")
    assert read("\ufeff" + WHOLE.replace("\n", "\r\n")) == read(WHOLE)


def test_null_takes_back_what_is_inherited(read):
    edits = [{"prompt": "x"}, {"prompt": "y", "editor": None, "frame": "y.png"}]
    document = {"clips": [{"video": "a.mp4", "editor": "recolor", "edits": edits}]}
    ((one, two),) = (task.edits for task in read(json.dumps(document), "jobs.json"))
    assert one.settings["editor"] == "recolor" and "editor" not in two.settings


def test_names_of_outputs(read):
    def output(**edit):
        edit = {"video": "s3://bucket/my clip.mp4", "prompt": "A robot, walking!", **edit}
        return read(json.dumps(edit), "jobs.jsonl")[0].edits[0].output

    assert output(frame="of/x y.png") == "my clip/x y.mp4"
    assert output(editor="recolor") == "my clip/a-robot-walking.mp4"
    assert output(name="größe 2", frame="x.png") == "my clip/größe 2.mp4"
    assert output(editor="recolor", prompt="ж" * 99).encode()[8:-4] == "ж".encode() * 30
    assert output(video="films/%05d.png", frame="x.png") == "films/x.mp4"
    assert output(video="films", frame="x.png") == "films/x.mp4"
    assert output(output="a//b/./c.MKV", frame="x.png") == "a/b/c.MKV"


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("../out.mp4", "is not below the folder"),
        ("a/../../out.mp4", "is not below the folder"),
        ("/tmp/out.mp4", "is not below the folder"),
        ("C:\\out.mp4", "is not below the folder"),
        ("out.avi", "does not end in one of .mp4"),
        ("", "does not end in one of .mp4"),
        ("out.png", "holds no number, such as frames/%05d.png"),
        ("o\0.mp4", "holds a character of code 0"),
        ("o\ud800.mp4", "holds half a character"),
        ("x" * 250 + ".mp4", "is longer than a name can be"),
        (7, "7 is not a text"),
    ],
)
def test_outputs_stay_below_the_folder_of_the_batch(output, why):
    with pytest.raises(InputError, match="^here: output: ") as caught:
        checked_output("here", output)
    assert why in str(caught.value) and "\n" not in str(caught.value)


EDIT = '{"video": "a.mp4", "frame": "x.png", "prompt": "x"%s}'
CLIP = '{"clips": [{"video": "a.mp4"%s, "edits": [{"frame": "x.png", "prompt": "x"%s}]}]}'


def changed(name, value):
    return json.dumps({**json.loads(EDIT % ""), name: value})


WRONG = [
    ("a.jsonl", EDIT % ', "stepz": 3', r"line 1 \(a.mp4\): no such option: stepz; .*steps"),
    ("a.jsonl", EDIT % "" + "\n" + changed("frame", 3), r"line 2 \(a.mp4\): frame: 3 is not a"),
    ("a.jsonl", EDIT % "" + "\n{", "line 2: cannot be read as JSON"),
    ("a.jsonl", EDIT % "" + "\n[1]", "line 2: .* has no keys such as video"),
    ("a.jsonl", EDIT % "" + "\n" + EDIT % "", r"line 2 .*the output a/x.mp4 is that of .*line 1"),
    ("a.jsonl", "", "holds no edits"),
    ("a.jsonl", changed("video", "a\0"), "line 1: video: .* a character of code 0"),
    ("a.jsonl", changed("prompt", "\ud800"), "prompt: .*half a character"),
    ("a.jsonl", changed("prompt", ["a", "b"]), "prompt: .*several are several edits"),
    ("a.jsonl", EDIT % ', "option": [["a"]]', "option: .*lists in lists"),
    ("a.jsonl", EDIT % ', "command": "delete"', "command: 'delete' is not one of edit, reconstr"),
    ("a.jsonl", EDIT % ', "name": "a/b"', "name: 'a/b' cannot be the name of a file"),
    ("a.jsonl", EDIT % ', "force": true', "force is no option of a job"),
    ("a.jsonl", EDIT % ', "command": "reconstruct"', "reconstruct has no frame"),
    (
        "a.json",
        CLIP % ("", ', "name": "n", "stepz": 3'),
        r"clip 1 \(a.mp4\), edit 1 \(n\): no such",
    ),
    ("a.json", CLIP % (', "stepz": 3', ""), r"clip 1 \(a.mp4\): no such option: stepz"),
    ("a.json", CLIP % (', "output": "o.mp4"', ""), "output belongs to one of its edits"),
    ("a.json", '{"clips": [{"edits": []}]}', "clip 1: has no video"),
    ("a.json", '{"clips": [{"video": "a.mp4", "edits": []}]}', "edits: .* is not a list of edits"),
    ("a.json", '{"clips": 3}', "clips: 3 is not a list"),
    ("a.json", '{"clips": [{"video": "a.mp4"}]}', r"clip 1 \(a.mp4\): has no frame, and no editor"),
    ("a.json", CLIP % (', "editor": "recolor"', ""), "frame and editor exclude each other"),
    ("a.json", '{"clip": []}', "'clip' is neither defaults nor clips"),
    ("a.json", '{"a": ' * 100_000, "cannot be read as YAML or JSON"),
    ("a.yaml", "- a", "has no keys such as video"),
    ("a.yaml", "clips: [&a {video: x}, *a]", "the alias [*]a is not read"),
    ("a.yaml", "a: !!python/name:os.system", "cannot be read as YAML"),
    ("a.yaml", b"\xff\xfe", "is not text in UTF-8"),
    ("a.yaml", b" " * (2**24 + 1), "is larger than 16777216 bytes"),
]


@pytest.mark.parametrize(("name", "text", "why"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_place(read, name, text, why):
    with pytest.raises(InputError, match=why) as caught:
        read(text, name)
    assert f"/{name}: " in str(caught.value) and "\n" not in str(caught.value)


def test_the_check_of_values_gets_all_options_and_their_place(read, tmp_path):
    seen = []
    read(EDIT % ', "size": "8x8"', "a.jsonl", lambda *told: seen.append(told))
    options = {"video": f"{tmp_path}/a.mp4", "frame": f"{tmp_path}/x.png", "prompt": "x"}
    where = f"{tmp_path}/a.jsonl: line 1 (a.mp4)"
    assert seen == [(where, "edit", options | {"size": "8x8"})]


def test_a_missing_file():
    with pytest.raises(InputError, match="/nowhere/jobs.yaml: No such file"):
        read_jobs("/nowhere/jobs.yaml")


def test_every_option_of_edit_is_known_to_batches():
    """A new option has to be put where it belongs."""
    commands = parser({name: print for name in ("edit", "reconstruct")}).commands
    options = {a.dest for a in commands["edit"]._actions}
    assert options == OF_CLIPS | OF_EDITS | OF_THE_BATCH | {"video"}
    # what edits of a clip share must not be unknown to its reconstruction
    assert OF_CLIPS <= {a.dest for a in commands["reconstruct"]._actions}


@pytest.mark.parametrize(
    "text, name, told",
    [
        ("clips: [{video: a.mp4, frame: x.png, frame: y.png, prompt: x}]", "a.yaml", "key frame"),
        ('{"video": "a.mp4", "frame": "x", "frame": "y", "prompt": "x"}', "a.jsonl", "key frame"),
        (
            "clips: [{video: a.mp4, frame: x, prompt: x, negative-prompt: a, negative_prompt: b}]",
            "a.yaml",
            "negative-prompt and negative_prompt are the same option",
        ),
        (EDIT % ', "output": ".anyv2v-batch/x.mp4"', "a.jsonl", "keeps its own files"),
        (EDIT % ', "output": "done.jsonl/x.mp4"', "a.jsonl", "keeps its own files"),
    ],
)
def test_nothing_that_is_told_is_dropped_or_in_the_way(read, text, name, told):
    with pytest.raises(InputError, match=told) as caught:
        read(text, name)
    assert "\n" not in str(caught.value).strip() or name.endswith("yaml")
