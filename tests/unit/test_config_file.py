"""--config FILE: options from YAML, JSON, or what a finished run left."""

import argparse
import json

import pytest

from anyv2v.errors import InputError
from anyv2v.options import parser

NAMES = ("demo", "convert", "weights verify", "weights fetch", "edit", "edit-frame", "plan")
COMMANDS = dict.fromkeys((*NAMES, "invert", "reconstruct"), lambda args: None)

YAML = """
video: clip.mp4
frame: [a.png, b.png]
prompt: [a robot, "12"]
output: [a.mp4, b.mp4]
size: 64x32
steps: 20
guidance: 1.5e-1
conv: 0.4
keep-unchanged: true
negative_prompt: null
"""


def parsed(tmp_path, text, *given, command="edit", name="c.yml"):
    (tmp_path / name).write_text(text)
    return parser(COMMANDS).parse_args([command, "--config", str(tmp_path / name), *given])


@pytest.mark.parametrize("kind", ["yaml", "json", "sidecar"])
def test_a_file_says_what_the_command_line_would(tmp_path, kind):
    text = YAML
    if kind != "yaml":
        import yaml

        values = yaml.safe_load(YAML) | {"size": [64, 32]}
        whole = {"command": "edit", **values}
        text = json.dumps(values if kind == "json" else {"settings": whole, "versions": {}})
    args = parsed(tmp_path, text)
    typed = "edit clip.mp4 --frame a.png --frame b.png --prompt _ --prompt 12 -o a.mp4 -o b.mp4"
    typed += " --size 64x32 --steps 20 --guidance 0.15 --conv 0.4 --keep-unchanged"
    wanted = parser(COMMANDS).parse_args(typed.split())
    wanted.prompt[0] = "a robot"
    wanted.config = str(tmp_path / "c.yml")
    assert {"config", "size", "conv", "keep-unchanged"} < args.given
    args.given = wanted.given
    assert vars(args) == vars(wanted)


def test_what_is_given_wins(tmp_path):
    given = ("other.mp4", "--frame", "c.png", "--prompt", "x", "-o", "c.mp4", "--steps", "3")
    args = parsed(tmp_path, YAML, *given, "--guidance=2")
    assert (args.video, args.frame, args.prompt) == ("other.mp4", ["c.png"], ["x"])
    assert (args.output, args.steps, args.guidance) == (["c.mp4"], 3, 2.0)
    # even where it is what would be there without the file
    assert parsed(tmp_path, "steps: 20\nvideo: a.mp4", "--steps", "50", command="plan").steps == 50


def test_a_file_of_one_command_serves_another_and_required_options_stay(tmp_path):
    args = parsed(tmp_path, YAML, command="plan")
    assert (args.video, args.size, args.steps) == ("clip.mp4", (64, 32), 20)
    assert args.unused == ["frame", "keep_unchanged", "output", "prompt"]
    with pytest.raises(InputError, match="--prompt"):
        parsed(tmp_path, "video: a.mp4\noutput: b.mp4")
    with pytest.raises(InputError, match="VIDEO"):
        parsed(tmp_path, "steps: 3", command="plan")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shapren: 3", "c.yml: there is no option 'shapren'"),
        ("steps: many", "c.yml: steps: 'many' is not a whole number"),
        ("steps: [1, 2]", "c.yml: steps: ['1', '2'] is neither"),
        ("steps: true", "c.yml: steps: True is neither"),
        ("fit: bend", "c.yml: fit: 'bend' is not one of crop"),
        ("keep_unchanged: 1", "c.yml: keep_unchanged: '1' is neither true nor false"),
        ("steps: 3\n  x: [", "c.yml: cannot be read as YAML or JSON"),
        ('{"steps": 3', "c.yml: cannot be read as YAML or JSON"),
        ("just words", "c.yml: is no config file"),
        ("", "c.yml: is no config file"),
        ("- 1\n- 2", "c.yml: is no config file"),
        ("[" * 100_000, "c.yml: cannot be read"),
        ("x" * 2**21, "c.yml: is no config file: it is larger"),
        ("!!python/object/apply:os.system ['true']", "c.yml: cannot be read"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        parsed(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(InputError, match="no.yml: No such file"):
        parser(COMMANDS).parse_args(["plan", "--config", str(tmp_path / "no.yml")])
    (tmp_path / "c.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        parser(COMMANDS).parse_args(["plan", "--config", str(tmp_path / "c.yml")])


def test_every_command_takes_one():
    for name in COMMANDS:
        with pytest.raises(InputError, match="expected one argument"):
            parser(COMMANDS).parse_args([*name.split(), "--config"])


def test_the_namespace_is_argparse_own():
    assert isinstance(
        parser(COMMANDS).parse_args(["weights", "verify", "demo"]), argparse.Namespace
    )
