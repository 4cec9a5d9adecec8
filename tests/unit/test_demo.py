"""What `anyv2v demo` says and shows: its sentence on an edit, the sheet, the moving picture."""

import re

import numpy as np
import pytest
from PIL import Image

from anyv2v.cli import demo
from anyv2v.cli.demo_pictures import (
    GROUND,
    PANEL,
    SHOWN,
    enlarged,
    fitted,
    moving,
    sheet,
    write_gif,
)
from anyv2v.weights.demo import FOLDER
from anyv2v.weights.demo.scenes import BEST_FIRST, KINDS


def off(**percent):
    """Scores of clips that are off from the truth by so many percent of the range of a color."""
    names = dict.fromkeys(demo.NAMES, 20.0) | {"autoencoder": 1.0} | percent
    # of the definition: PSNR is 20 log10 of the peak over the root of the mean squared error
    return {name: {"psnr": 20 * np.log10(100 / x)} for name, x in names.items()}


@pytest.mark.parametrize(
    "scores, said",
    [
        (off(edit=2.5), "is closer to the truth than all that it is compared with"),
        (off(edit=2.5, latents_only=2.4), "is farther from the truth than sampling without inj"),
        (off(edit=21.0, static=20.0), "is farther from the truth than the edited frame held st"),
        (off(edit=9.0, unedited=8.0), "is farther from the truth than the unedited source:"),
        (off(edit=7.0, unedited=8.0), "is hardly closer to the truth than the unedited source:"),
        # they read as equal, so neither is said to be better
        (off(edit=2.51, random=2.49), "is as far from the truth as sampling without the source:"),
        # the edit before it was protected is no baseline
        (off(edit=2.5, unprotected=2.0), "is closer to the truth than all"),
    ],
)
def test_the_sentence_says_what_the_scores_say(scores, said):
    sentence = demo.verdict(scores)
    assert sentence.startswith(f"The edit {said}")
    assert sentence.count(". ") == 0 and sentence.endswith(" %.")


def test_the_sentence_has_each_number():
    scores = off(edit=1.0, static=2.0, random=3.0, latents_only=4.0, unedited=5.0, autoencoder=6.0)
    numbers = re.findall(r"[\d.]+ %", demo.verdict(scores))
    assert numbers == ["1.0 %", "2.0 %", "3.0 %", "4.0 %", "5.0 %", "6.0 %"]


def test_kinds_are_listed_by_the_figures_of_the_card():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) ±.*\| ([\d.]+) \|$", card("## Figures"), re.M)
    gains = {name: float(edit) - float(source) for name, edit, source in rows}
    gains["colour"] = gains.pop("color")
    assert {*BEST_FIRST} == {*KINDS}
    assert sorted(BEST_FIRST, key=gains.get, reverse=True) == list(BEST_FIRST)
    told = re.search(r"^\|( [\d.]+ \|){6}$", card(), re.M)
    assert told is not None
    told = [float(x) for x in told[0].strip("|").split("|")]
    assert told == pytest.approx([gains[kind] for kind in BEST_FIRST], abs=0.051)


def card(after=""):
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    return text[text.index(after) :]


@pytest.fixture
def clip():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 40, 3), np.uint8)


def test_a_sheet_shows_frames_unchanged_beside_their_names(clip):
    picture = np.asarray(sheet({("one", "of two"): clip, ("other",): 255 - clip}, fps=8))
    for shown in (clip, 255 - clip):
        for k in (0, 2, 4, 6):
            assert found(picture, enlarged(shown[k : k + 1], SHOWN)[0])
        assert not found(picture, enlarged(shown[1:2], SHOWN)[0])
    # the names are to the left of the frames, and there is a margin all around
    frame = enlarged(clip[:1], SHOWN)[0]
    y, x = found(picture, frame)
    assert differs(picture[y : y + len(frame), : x - 1]) and not differs(picture[:, x - 8 : x])
    for edge in (picture[:4], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert not differs(edge)


@pytest.mark.parametrize("frames, columns", [(1, 1), (2, 2), (5, 5), (6, 3), (16, 4), (81, 5)])
def test_a_sheet_has_at_most_five_columns(frames, columns):
    clip = np.full((frames, 8, 8, 3), 255, np.uint8)
    picture = np.asarray(sheet({("",): clip}, fps=8))
    white = (picture[len(picture) // 2 + 10] == 255).all(-1)
    assert np.count_nonzero(np.diff(white.astype(int)) == 1) == columns


def test_large_frames_are_made_smaller():
    frames = np.zeros((2, 600, 800, 3), np.uint8)
    frames[:, :, 400:] = 200
    small = fitted(frames, 150)
    assert small.shape == (2, 150, 200, 3)
    assert (small[:, :, :100] == 0).all() and (small[:, :, 100:] == 200).all()
    assert np.array_equal(fitted(frames[:, ::8, ::8], 150)[:, ::2, ::2], frames[:, ::8, ::8])


def test_a_moving_picture_repeats_and_rests_on_its_last_frame(clip, tmp_path):
    # few colors, so that the palette of a GIF holds them all beside those of the names
    clip = clip // 128 * 255
    pictures = moving({("one", "a"): clip, ("two", "b"): 255 - clip})
    write_gif(tmp_path / "a.gif", pictures, fps=10)
    with Image.open(tmp_path / "a.gif") as made:
        assert made.n_frames == 8 and made.info["loop"] == 0
        durations = []
        for k in range(8):
            made.seek(k)
            durations.append(made.info["duration"])
            picture = np.asarray(made.convert("RGB"))
            panels = (enlarged(x[k : k + 1], PANEL)[0] for x in (clip, 255 - clip))
            left, right = (found(picture, panel) for panel in panels)
            assert left and right and left[1] < right[1] and left[0] == right[0]
    assert durations == [100] * 7 + [700]


def differs(picture):
    return bool((picture != np.array(GROUND, np.uint8)).any())


def found(picture, part):
    """(y, x) of the place in a picture where a part of it stands, exactly; None: nowhere."""
    height, width = part.shape[:2]
    corner = (picture == part[0, 0]).all(-1)
    for y, x in np.argwhere(corner[: len(picture) - height + 1, : picture.shape[1] - width + 1]):
        if np.array_equal(picture[y : y + height, x : x + width], part):
            return int(y), int(x)
    return None
