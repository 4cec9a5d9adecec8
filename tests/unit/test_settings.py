"""What is left to the weights, what --paper asks for, and the options that are several values."""

import json
from dataclasses import replace

import pytest

from anyv2v.backbones.base import Defaults
from anyv2v.cli import settings
from anyv2v.cli.options import parser
from anyv2v.cli.source import cache_plan
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection
from anyv2v.injection.presets import PRESETS, PUBLISHED, Preset

NAMES = ("demo", "convert", "weights verify", "weights fetch", "edit", "edit-frame", "plan")
COMMANDS = dict.fromkeys((*NAMES, "invert", "reconstruct", "evaluate"), print)
CLIP = dict(size=(64, 32), frames=4, fps=8)
OWN = Defaults(
    **CLIP,
    steps=30,
    guidance={"text": 4.0, "image": 1.5},
    negative_prompt="ugly",
    injection=Injection(conv=0.1, temporal=0.3, cross=0.4),
)
ORIGINAL = Defaults(
    **CLIP,
    steps=50,
    guidance={"text": 9.0, "image": 2.0},
    negative_prompt="blurry",
    injection=Injection(conv=0.2, spatial=0.2, temporal=0.5),
)
EDIT = "edit v.mp4 --frame f.png --prompt x -o o.mp4 "


def filled(line, inverted=False):
    """(options, lines)"""
    args = parser(COMMANDS).parse_args(line.split())
    return args, settings.fill(args, OWN, ORIGINAL, inverted)


def test_what_is_not_given_is_the_weights_own():
    args, lines = filled(EDIT)
    assert lines == [] and args.own is OWN
    assert (args.steps, args.negative_prompt) == (30, "ugly")
    assert args.guidance == {"text": 4.0, "image": 1.5}
    assert args.injection == Injection(conv=0.1, temporal=0.3, cross=0.4)
    assert (args.conv, args.spatial, args.temporal, args.inject) == (0.1, None, 0.3, {"cross": 0.4})
    assert args.options == {} and settings.of_the_inversion(args) == ("fixed-point", 30)
    assert settings.of_the_run(args)["source_pass"] == "shared"
    # a video there and back is not led anywhere, whatever edits of these weights are
    args, _ = filled("reconstruct v.mp4")
    assert (args.guidance, args.negative_prompt) == ({"text": 1.0, "image": 1.0}, "")
    assert args.injection == Injection.none()
    args, _ = filled("invert v.mp4 -o s.safetensors")
    assert settings.of_the_inversion(args) == ("fixed-point", 30)
    args, _ = filled("invert v.mp4 -o s.safetensors --method ddim")
    assert settings.of_the_inversion(args) == ("ddim", 500)


def test_what_is_given_goes_over_it():
    args, _ = filled(EDIT + "--steps 7 --guidance 2 --spatial 0.6 --inject cross=0,conv=1 --fps 9")
    assert args.steps == 7 and args.guidance == {"text": 2.0, "image": 1.5}
    assert args.injection == Injection(conv=1.0, spatial=0.6, temporal=0.3, cross=0.0)
    assert args.called == {"spatial": "spatial", "cross": "inject cross", "conv": "inject conv"}
    assert args.options == {"fps": 9}
    # given again, an option adds to what it has said, and what it says twice is the last
    args, _ = filled(
        EDIT + "--inject conv=1,cross=.2 --inject cross=0 --guidance image=3 --guidance text=2"
    )
    assert args.injection == Injection(conv=1.0, temporal=0.3, cross=0.0)
    assert args.guidance == {"text": 2.0, "image": 3.0}
    assert filled(EDIT + "--guidance image=3 --guidance 2")[0].guidance["image"] == 1.5
    assert filled(EDIT + "--guidance 1")[0].guidance == {"text": 1.0, "image": 1.0}
    assert filled(EDIT + "--guidance image=3")[0].guidance == {"text": 4.0, "image": 3.0}
    args, _ = filled(
        EDIT + "--option speed=3 --option ratio=.5 --option way=fast --option big=1e400"
    )
    assert args.options == {"speed": 3, "ratio": 0.5, "way": "fast", "big": "1e400"}
    assert type(args.options["speed"]) is int


@pytest.mark.parametrize(
    "options, words",
    [
        ("--guidance text=1,text=2", "--guidance: 'text=1,text=2' is not NAME=NUMBER"),
        ("--guidance text=", "'' is not a number"),
        ("--guidance txt=3", "guidance: no such scale: txt; there is "),
        ("--guidance text=inf", "'inf' is not a number"),
        ("--inject conv", "--inject: 'conv' is not NAME=NUMBER"),
        ("--inject sites=1", "no group of features is called sites"),
        ("--inject conv=0.2 --conv 0.2", "--conv and --inject conv= exclude each other"),
        ("--inject conv=1.5", "injection: conv: 1.5 is not between 0 and 1"),
        ("--option speed", "--option: 'speed' is not NAME=VALUE"),
        ("--option a=1 --option a=1", "--option a: is given twice"),
        ("--option fps=9 --fps 9", "--fps and --option fps= exclude each other"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, words):
    with pytest.raises(InputError) as caught:
        filled(EDIT + options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_recorded_and_announced_where_nothing_is_injected():
    args, _ = filled(EDIT + "--conv 0 --spatial 0 --temporal 0 --inject cross=0")
    assert cache_plan(args, None, None) is None


def test_paper_is_the_originals_settings():
    args, lines = filled(EDIT + "--paper")
    assert lines == []
    assert settings.of_the_inversion(args) == ("ddim", 500) and args.inversion_prompt == ""
    assert (args.steps, args.guidance) == (50, {"text": 9.0, "image": 2.0})
    assert (args.negative_prompt, args.feature_memory) == ("blurry", 0)
    assert args.injection == ORIGINAL.injection
    assert settings.of_the_run(args)["source_pass"] == "always"
    # the inversion of a source is done, and how is not this command's to say
    args, _ = filled(EDIT.replace("v.mp4", "v.safetensors") + "--paper", inverted=True)
    assert args.method is None and args.inversion_steps is None
    args, _ = filled("reconstruct v.mp4 --paper")
    assert (args.guidance["text"], args.negative_prompt) == (9.0, "blurry")
    assert settings.of_the_run(args)["injection"] == Injection.none()
    args, (line,) = filled(EDIT + "--paper --feature-memory 1GB --method fixed-point")
    assert settings.of_the_run(args)["source_pass"] == "shared" and "--feature-memory" in line
    args, _ = filled("invert v.mp4 -o s.safetensors --paper")
    assert settings.of_the_inversion(args) == ("ddim", 500)
    assert settings.of_the_inversion(filled("plan v.mp4 --paper")[0]) == ("ddim", 500)


def test_what_is_given_beside_paper_wins_and_is_told_in_one_line():
    args, lines = filled(
        EDIT + "--paper --steps 20 --guidance text=9 --inversion-steps 100 --fit pad"
    )
    assert (args.steps, settings.of_the_inversion(args)) == (20, ("ddim", 100))
    (line,) = lines
    assert line.startswith("--paper: ") and line.count("--") == 4
    # guidance is what it would be anyway
    assert all(f"--{n}" in line for n in ("steps", "inversion-steps", "fit"))


def test_presets_are_what_most_published_edits_of_a_kind_have():
    # by hand, from the fourteen edits
    assert {task: (*p.fractions.values(), p.start) for task, p in PRESETS.items()} == {
        "style": (1.0, 1.0, 1.0, 0),
        "identity": (0.1, 0.1, 1.0, 0),
        "prompt": (0.2, 0.2, 1.0, 0),
        "subject": (0.2, 0.2, 0.5, 0),
    }
    edits = [edit for task in PUBLISHED.values() for edit in task.values()]
    assert len(edits) == 14 and sum(edit.start == 0 for edit in edits) == 12
    assert sum((*e.fractions.values(),) == (1, 1, 1) for e in edits) == 4
    assert Preset(0, 0, 0, start=4).start_of(25) == 2


def test_a_preset_fills_what_is_not_given():
    args, lines = filled(EDIT + "--preset style --conv 0.7 --inject temporal=0.25")
    assert args.injection == Injection(conv=0.7, temporal=0.25, cross=0.4)
    # these weights have no such group, which is not the user's fault
    assert lines == ["--preset style: this model has no spatial to inject"]
    args, lines = filled(EDIT + "--paper --preset identity")
    assert args.injection == Injection(conv=0.1, spatial=0.1, temporal=1.0)
    assert lines == ["--paper: --preset as given, in place of the original's"]
    assert args.start == 0 and filled(EDIT + "--preset identity --start 3")[0].start == 3
    later = replace(OWN, start=4)
    assert settings._start(filled(EDIT)[0], later) == 4
    assert settings._start(filled(EDIT + "--preset prompt")[0], later) == 0
    # a guess of the edit would be lost in the noise of the first steps
    assert settings._start(filled(EDIT + "--preset prompt --guide patches")[0], later) == 9


def test_a_preset_in_a_file_gives_way_and_one_on_the_command_line_does_not(tmp_path):
    def of(values, given=""):
        (tmp_path / "c.json").write_text(json.dumps(values))
        return filled(f"{EDIT} --config {tmp_path / 'c.json'} --inject cross=0 {given}")[0]

    # what a sidecar says
    made = {"preset": "style", "conv": 0.7, "temporal": 1.0, "start": 2}
    again = of(made)
    assert (again.injection, again.start) == (Injection(conv=0.7, temporal=1.0, cross=0.0), 2)
    other = of(made, "--preset identity")
    assert (other.injection, other.start) == (Injection(conv=0.1, temporal=1.0, cross=0.0), 0)
    assert other.called == {"cross": "inject cross"}
    assert of(made, "--conv 0.5").conv == 0.5
    (tmp_path / "c.json").write_text('{"inject": {"conv": 0.3, "cross": 0.2}}')
    line = f"{EDIT} --config {tmp_path / 'c.json'} --preset identity"
    assert filled(line)[0].injection == Injection(conv=0.1, temporal=1.0, cross=0.2)


def test_a_file_says_it_too_and_gives_way_to_the_command_line(tmp_path):
    def of(values, given=""):
        (tmp_path / "c.json").write_text(json.dumps(values))
        return filled(f"{EDIT} --config {tmp_path / 'c.json'} {given}")

    values = {"guidance": {"text": 3, "image": 2}, "inject": {"cross": 0.2, "conv": 0.6}}
    values |= {"option": {"speed": 2, "way": "fast"}, "fps": 7}
    args, _ = of(values)
    assert args.guidance == {"text": 3.0, "image": 2.0}
    assert args.injection == Injection(conv=0.6, temporal=0.3, cross=0.2)
    assert args.options == {"speed": 2, "way": "fast", "fps": 7}
    same = {"guidance": "text=3,image=2", "inject": "cross=0.2,conv=0.6", "fps": 7}
    same |= {"option": ["speed=2", "way=fast"]}
    assert (of(same)[0].injection, of(same)[0].options) == (args.injection, args.options)
    assert of({"paper": True})[0].steps == 50
    assert of({"conv": 0.6}, "--inject conv=0.7")[0].conv == 0.7
    args, _ = of({"inject": "conv=0.6,cross=0"}, "--conv 0.7")
    assert (args.conv, args.inject, args.called["conv"]) == (0.7, {"cross": 0.0}, "conv")
    assert of({"fps": 7}, "--option fps=9")[0].options == {"fps": 9}
    assert of({"option": ["fps=7"]}, "--fps 9")[0].options == {"fps": 9}
    with pytest.raises(InputError, match="exclude each other"):
        of({"conv": 0.6, "inject": "conv=0.7"})


def test_the_weights_own_in_a_file_is_nobodys_wish(tmp_path):
    """A sidecar says all that was used; an edit that is made again by it has nothing new to say."""
    said = {"negative_prompt": "ugly", "conv": 0.1, "inject": "cross=0.4", "steps": 30}
    (tmp_path / "c.json").write_text(json.dumps(said | {"temporal": 0.2}))
    args, _ = filled(f"{EDIT} --config {tmp_path / 'c.json'}")
    assert not {"negative-prompt", "conv", "inject", "steps"} & args.given
    assert "temporal" in args.given and args.called == {"temporal": "temporal"}


def test_help_says_whose_a_default_is(capsys):
    with pytest.raises(SystemExit):
        parser(COMMANDS).parse_args(["edit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "None)" not in text and "False)" not in text
    assert "weights' own; for I2VGen-XL 9)" in text and "weights' own; for I2VGen-XL 0.5)" in text
    assert "(default: demo)" in text and "describes the edited video (required)" in text


def test_protection_and_guide_are_on_where_the_weights_say_so():
    told = replace(OWN, guide="patches", protect=True)

    def asked(line, own=told):
        args = parser(COMMANDS).parse_args(line.split())
        settings.fill(args, own, ORIGINAL)
        return args.protect, args.guide, args.window, args.start

    assert asked(EDIT, OWN) == ("off", "off", 4, 0)
    assert asked(EDIT) == ("auto", "patches", 4, 9)
    assert asked(EDIT + "--guide auto --protect off") == ("off", "auto", 4, 2)
    assert asked(EDIT + "--guide rough.mp4 --start 1") == ("auto", "rough.mp4", 4, 1)
    assert asked(EDIT + "--paper") == ("off", "off", 0, 0)
    assert asked(EDIT + "--paper --guide patches --steps 20") == ("off", "patches", 0, 6)
