"""What callers hook into a run: taps of their own, after_step, guidance and options by name."""

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import Injection, InputError, Taps
from anyv2v.injection.examples import OutsideOfMask, SourceQueries, SourceValues
from anyv2v.pipeline.step_plan import CachePlan
from tests.oracles import golden

STEPS = 5


@pytest.fixture(scope="module")
def source(editor, video):
    return editor.invert(anyv2v.Video(video.frames[:3, :32, :32], 8), "ddim", steps=STEPS)


@pytest.fixture(scope="module")
def edit(editor, source, edited_frame):
    def edit(**options):
        given = dict(steps=STEPS, injection=Injection.none()) | options
        return editor.edit(source, edited_frame[:32, :32], "a robot", **given).latents

    return edit


@pytest.fixture(scope="module")
def plain(edit):
    return edit()


class Watch(Taps):
    """Sees everything and changes nothing."""

    def __init__(self, *steps):
        self.wanted, self.seen = steps, []

    def active(self, step, steps):
        assert steps == STEPS
        return step in self.wanted

    def hidden(self, site, h):
        self.seen.append((self.step, self.branches, len(h)))
        return h


def test_taps_are_called_in_their_steps_with_the_source_first(edit, plain):
    watch = Watch(1, 3)
    assert golden.relative_error(edit(taps=watch), plain) < 1e-5
    # source, negative and edit, of three frames
    assert {seen for seen in watch.seen} == {(1, 3, 9), (3, 3, 9)}
    assert watch.steps == STEPS


def test_taps_of_an_inversion_see_the_source_alone(editor, source):
    watch = Watch(*range(STEPS))
    again = editor.invert(source.video, "ddim", steps=STEPS, taps=watch)
    assert {seen for seen in watch.seen} == {(step, 1, 3) for step in range(STEPS)}
    assert all(torch.equal(again.at(i), source.at(i)) for i in range(STEPS))

    class Louder(Taps):
        def output(self, site, y):
            return 1.5 * y

    other = editor.invert(source.video, "ddim", steps=STEPS, taps=Louder())
    assert golden.relative_error(other.at(0), source.at(0)) > 1e-3
    assert torch.equal(other.trajectory.clean, source.trajectory.clean)


def test_latents_go_on_as_after_step_gives_them(edit, plain, source):
    seen = []

    def look(step, latents):
        seen.append((step, latents.clone()))

    assert torch.equal(edit(after_step=look), plain)
    assert [step for step, _ in seen] == list(range(STEPS))
    assert torch.equal(seen[-1][1], plain)
    last = torch.full_like(plain, 0.25)
    assert torch.equal(edit(after_step=lambda i, x: last if i == STEPS - 1 else None), last)
    # from where another run was
    ends = edit(guidance=1.0, after_step=lambda i, x: seen[1][1] if i == 1 else None)
    again, middle = [], seen[1][1]
    edit(guidance=1.0, after_step=lambda i, x: again.append(x) or (middle if i == 1 else None))
    assert torch.equal(again[-1], ends) and not torch.equal(again[1], middle)
    # the caller may write over what it gave
    found = edit(after_step=lambda i, x: last)
    last.zero_()
    assert (found == 0.25).all()
    for wrong, told in ((last[:, :, 1:], r"gave \(1, 4, 2"), (5, "5 is not a tensor")):
        with pytest.raises(InputError, match=f"after_step: .*{told}"):
            edit(after_step=lambda i, x, wrong=wrong: wrong)
    with pytest.raises(anyv2v.NotFiniteError, match="after_step gave .* in step 2"):
        edit(after_step=lambda i, x: x * np.nan if i == 2 else None)


def test_no_injection_on_edited_tokens(editor, edit, plain):
    """With nothing edited it is the paper's injection at these sites, with all edited none."""
    sites = [*editor.backbone.groups["conv"], *editor.backbone.groups["spatial"]]
    paper = edit(injection=Injection(conv=0.6, spatial=0.6, temporal=0))
    ours = {
        part: edit(taps=OutsideOfMask(sites, mask, until=0.6))
        for part, mask in {
            "nothing": np.zeros((32, 32)),
            "half": np.arange(32)[None].repeat(32, 0) < 16,
            "all": np.ones((32, 32)),
        }.items()
    }
    assert golden.relative_error(ours["nothing"], paper) < 1e-5
    assert golden.relative_error(ours["all"], plain) < 1e-5
    assert golden.relative_error(paper, plain) > 1e-3
    assert all(golden.relative_error(ours["half"], x) > 1e-4 for x in (paper, plain))


def test_published_injections_change_an_edit_in_their_steps_alone(editor, edit, plain):
    sites = editor.backbone.groups["spatial"]
    for taps in (SourceValues(sites, until=0.4), SourceQueries(sites, until=0.4)):
        latents = []
        found = edit(taps=taps, after_step=lambda i, x, latents=latents: latents.append(x))
        assert golden.relative_error(found, plain) > 1e-4
        # what follows is the plain model's, from where they left it
        left = latents[1]
        rest = edit(after_step=lambda i, x, left=left: left if i == 1 else None)
        assert golden.relative_error(found, rest) < 1e-5
    nothing = edit(taps=SourceValues(sites, until=0.0))
    assert torch.equal(nothing, plain)


def test_guidance_and_options_may_be_given_by_name(edit, plain):
    assert torch.equal(edit(guidance={"text": 9.0}), plain)
    assert torch.equal(edit(guidance={"text": 4.0}), edit(guidance=4.0))
    assert not torch.equal(edit(guidance=4.0), plain)
    assert torch.equal(edit(options={"fps": 12}), edit(fps=12))
    assert not torch.equal(edit(fps=12), plain)


def test_noise_for_steps_that_add_none_is_refused(edit, plain):
    with pytest.raises(InputError, match="step_noise: the steps of this sampler add no noise"):
        edit(step_noise=[torch.zeros_like(plain)] * STEPS)


@pytest.mark.parametrize("answer", [None, 1, "yes"])
def test_taps_say_whether_they_are_active(editor, edit, source, answer):
    taps = type("Undecided", (Taps,), {"active": lambda self, step, steps: answer})()
    for run in (lambda: edit(taps=taps), lambda: editor.invert(source.video, steps=2, taps=taps)):
        with pytest.raises(
            InputError, match=r"taps: active\(0, \d\): .* is neither True nor False"
        ):
            run()


def test_features_under_taps_are_not_recorded_on_the_way(editor, source):
    """An edit's source is without those taps, so its features are others."""
    recording = CachePlan({}, {}, {}, {}, compact=True)
    with pytest.raises(InputError, match="recording: taps may change"):
        editor.invert(source.video, steps=STEPS, taps=Taps(), recording=recording)


def test_a_clip_from_noise_has_the_rate_that_the_network_was_told(editor, edited_frame):
    small = dict(frames=2, size=(64, 32), steps=1, guidance=1.0)
    assert editor.generate(edited_frame, "a", **small, fps=3).fps == 3
    assert editor.generate(edited_frame, "a", **small, options={"fps": 5}).fps == 5
