"""Options of the page as words of a command line, which bash and the parser read back."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyv2v.cli.options import parser
from anyv2v.ui.words import changed, command_line, text, words

TEXTS = ["a 'red' \"coat\" $HOME `id` \\", "--force", "-1", "", "two\nlines", "日本", "a\\\nb", "*"]


def read_by_bash(line):
    """The words that bash makes of a command of anyv2v."""
    script = f"anyv2v() {{ printf '%s\\0' \"$@\"; }}\n{line}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("prompt", TEXTS)
def test_a_shell_reads_the_command_as_it_was_run(prompt):
    arguments = words("edit", "a clip (1).mp4", {"prompt": prompt, "steps": 4, "force": True})
    assert read_by_bash(command_line(arguments)) == arguments


@pytest.mark.parametrize("prompt", TEXTS)
def test_the_parser_reads_back_what_was_told(prompt):
    told = {"frame": "f.png", "prompt": prompt, "negative-prompt": prompt, "seed": 3.0}
    told |= {"guidance": {"text": 2.5}, "inject": {"conv": 0.25, "spatial": 0}, "output": "o.mp4"}
    args = parser({"edit": print}).parse_args(words("edit", "-clip.mp4", told))
    assert (args.video, args.frame, args.output) == ("./-clip.mp4", ["f.png"], ["o.mp4"])
    assert (args.prompt, args.negative_prompt, args.seed) == ([prompt], prompt, 3)
    assert (args.guidance, args.inject) == ({"text": 2.5}, {"conv": 0.25, "spatial": 0.0})


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(number):
    assert float(text(number)) == number


def test_what_is_not_given_is_left_out():
    given = {"steps": None, "keep-unchanged": False, "inject": {}, "editor-option": []}
    assert words("edit", "clip.mp4", given) == ["edit", "clip.mp4"]


def test_only_what_differs_is_told():
    usual = {"steps": 50, "inject": {"conv": 0.2, "spatial": 0.2}, "seed": 0}
    told = {"steps": 50, "inject": {"conv": 0.2, "spatial": 0.5}, "seed": 1, "size": "64"}
    assert changed(told, usual) == {"inject": {"spatial": 0.5}, "seed": 1, "size": "64"}
