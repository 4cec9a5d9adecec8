"""The small flow model that comes with the package: its edits are compared with the truth.

A color and a background edit, in half of the default's steps. They are the first validation scenes
of their kinds that neither the recipe's scores nor the study of the settings use.
"""

from dataclasses import replace

import numpy as np
import pytest

from anyv2v import loading
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import scores
from anyv2v.weights.flow.recipe import PRESETS, config
from tests.trials import invert, loaded

STEPS = 25
SCENES = {"colour": 24, "background": 27}


@pytest.fixture(scope="module")
def editor():
    with loaded("flow") as editor:
        yield editor


@pytest.fixture(scope="module")
def trials(editor):
    return [invert(editor, draw_edit(kind, "validation", i), STEPS) for kind, i in SCENES.items()]


def test_the_weights_are_those_of_the_recipe_and_whole():
    loading.inspect("flow")
    folder = loading.folder_of("flow")
    assert loading.Checkpoint.open(folder).config == config(PRESETS["cpu"])
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 12e6


def test_the_way_there_and_back_ends_at_the_autoencoders_ceiling(editor, trials):
    for trial in trials:
        clip, caption = trial.truth.source, trial.source.settings.prompt
        ceiling = psnr(editor.decode(editor.encode_frames(clip))[1:], clip[1:])
        again = editor.reconstruct(trial.source, caption, steps=STEPS)
        assert psnr(again.frames[1:], clip[1:]) > max(29.0, ceiling - 0.5)
        # by the model alone, without what the inversion kept of the steps that it did not solve
        alone = editor.reconstruct(replace(trial.source, offsets={}), caption, steps=STEPS)
        assert psnr(alone.frames[1:], clip[1:]) > max(29.0, ceiling - 2)
        assert 0.9 < trial.source.noise_norm < 1.2


def test_edits_beat_random_noise_and_a_still_picture(editor, trials):
    """Each baseline lacks one part: the source's noise and features, or all motion."""
    found = {"edit": [], "random": [], "static": []}
    for trial in trials:
        first, frames = trial.truth.frames[0], editor.defaults.frames

        def edited(**more):
            return editor.edit(trial.source, first, trial.caption, steps=STEPS, **more).frames  # noqa: B023

        clips = {
            "edit": edited(),
            "random": edited(injection=NO_INJECTION, random_ratio=1.0),
            "static": np.repeat(trial.truth.frames[:1], frames, 0),
        }
        for name, clip in clips.items():
            found[name].append(scores(clip, trial.truth))
    means = {
        name: {s: np.mean([each[s] for each in rows]) for s in ("psnr", "trajectory")}
        for name, rows in found.items()
    }
    assert means["edit"]["psnr"] > means["random"]["psnr"] + 4
    assert means["edit"]["psnr"] > means["static"]["psnr"] + 6
    assert means["edit"]["trajectory"] < min(means[x]["trajectory"] for x in ("random", "static"))
