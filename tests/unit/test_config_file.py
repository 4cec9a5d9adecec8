"""--config FILE: options from YAML, JSON, or what a finished run left."""

import argparse
import json

import pytest

from anyv2v.cli.options import parser
from anyv2v.errors import InputError

NAMES = ("demo", "convert", "weights verify", "weights fetch", "edit", "edit-frame", "plan")
COMMANDS = dict.fromkeys((*NAMES, "invert", "reconstruct", "evaluate"), lambda args: None)

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
    (tmp_path / name).write_text(text, encoding="utf-8")
    return parser(COMMANDS).parse_args([*command.split(), "--config", str(tmp_path / name), *given])


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
    assert args.filed == args.given - {"config"}
    args.given, args.filed = wanted.given, wanted.filed
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
    args = parsed(tmp_path, "video: a\nfeatures: false\nkeep_unchanged: false", command="plan")
    assert args.unused == []
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
        ("steps: 010\nseed: 0x10", "c.yml: seed: '0x10' is not a whole number"),
        ("steps: 0x" + "f" * 9000, "c.yml: steps: '0xff"),
        ('{"video": "a\\u0000b"}', "c.yml: video: 'a\\x00b' holds a character of code 0"),
        ('{"frame": "\\ud800"}', "c.yml: frame: '\\ud800' holds half a character"),
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


def test_texts_are_what_stands_there(tmp_path):
    # numbers, times, dates and truth values of YAML 1.1
    prompts = ["1:30", "010", "1_000", "2001-01-01", "yes", "off", "1e3", "0x10"]
    text = "video: a\noffload: on\nguidance: 1e-1\nsteps: 010\nprompt: [" + ", ".join(prompts) + "]"
    args = parsed(tmp_path, f"{text}\nframe: [a, b]\noutput: c")
    assert args.prompt == prompts and (args.offload, args.guidance, args.steps) == ("on", 0.1, 10)
    assert args.keep_unchanged is False and parsed(tmp_path, f"{text}\noutput: c").frame is None
    for true in ("true", "True"):
        again = parsed(tmp_path, f"{text}\noutput: c\nkeep_unchanged: {true}\nseed: null\nmask: ~")
        assert (again.keep_unchanged, again.seed, again.mask) == (True, 0, None)


@pytest.mark.parametrize("start", ["\ufeff", "\n  ", "\ufeff\n"])
@pytest.mark.parametrize("text", ["dir: demo", '{"dir": "demo"}'])
def test_marks_and_blanks_before_it_are_no_part_of_it(tmp_path, start, text):
    if text[0] != "{":
        start = start.replace(" ", "")
    assert parsed(tmp_path, start + text, command="weights verify").dir == "demo"


def test_a_file_may_have_what_a_sidecar_does_not(tmp_path):
    args = parsed(tmp_path, "video: a\nquiet: true\nforce: true\ndebug: true", command="plan")
    assert args.quiet and args.force and args.debug
    assert not {"quiet", "force", "debug"} & {*args.settable}


def test_what_stands_without_a_name_may_come_after_options(tmp_path):
    text = "src: a\ndst: b\ndtype: float16"
    config = str(tmp_path / "c.yml")
    (tmp_path / "c.yml").write_text(text)
    for given, wanted in {
        ("--config", config): ("a", "b"),
        ("c", "--config", config): ("c", "b"),
        ("c", "--config", config, "d"): ("c", "d"),
        ("--config", config, "c", "d"): ("c", "d"),
    }.items():
        args = parser(COMMANDS).parse_args(["convert", *given])
        assert (args.src, args.dst) == wanted
    with pytest.raises(InputError, match="'e' is one argument too many"):
        parser(COMMANDS).parse_args(["convert", "c", "--config", config, "d", "e"])
