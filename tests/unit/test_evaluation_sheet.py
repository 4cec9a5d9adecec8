"""The page with clips and scores: it shows what it was given, and asks for nothing else."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from anyv2v.evaluation.plot import plot
from anyv2v.evaluation.sheet import Section, Shown, Table, animation, sheet

HOSTILE = "<script>alert('1')</script> \"a\" & b.mp4"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def frames_of(data):
    """Frames (f, h, w, 3) and their durations in ms, of an animated picture."""
    with Image.open(io.BytesIO(data)) as picture:
        frames, times = [], []
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")))
            times.append(picture.info.get("duration"))
    return np.stack(frames), times


def test_texts_are_shown_and_never_obeyed():
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    table = Table((HOSTILE, "n"), [[HOSTILE, "1.5"]], HOSTILE)
    drawn = plot(HOSTILE, {HOSTILE: [1, 2]}, HOSTILE, HOSTILE)
    part = Section(HOSTILE, [Shown(HOSTILE, clip)], table, [drawn], [HOSTILE])
    page = Page(sheet(HOSTILE, [part], [HOSTILE]))
    assert "script" not in {tag for tag, _ in page.tags}
    # title, h1, note; h2, note, caption of the clip; caption, head, cell; and 4 of the plot
    assert page.texts.count(HOSTILE) == 13
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [HOSTILE]


def test_nothing_is_loaded_from_elsewhere():
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    drawn = plot("t", {"a": [1, 2]}, "x", "y")
    text = sheet("t", [Section("s", [Shown("c", clip)], Table("a", ["1"]), [drawn])])
    page = Page(text)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert not attributes.keys() & {"href", "srcset", "onload", "action"}
    assert "url(" not in text and "@import" not in text
    policy = [a for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy[0]["content"].startswith("default-src 'none'")


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (50, 150), (200, 200), (512, 256)])
def test_a_clip_moves_at_its_rate_in_a_size_that_can_be_seen(side, shown):
    levels = np.array([10, 90, 170, 250], np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (4, side, 2 * side, 3)).copy()
    data, size = animation(clip, fps=10)
    frames, times = frames_of(data)
    assert size == (2 * shown, shown) and frames.shape == (4, shown, 2 * shown, 3)
    assert times == [100] * 4
    assert abs(frames.mean((1, 2, 3)) - levels).max() < 3


def test_the_clips_of_the_page_are_those_given():
    clips = [np.full((2, 16, 16, 3), level, np.uint8) for level in (40, 200)]
    text = sheet("t", [Section("s", [Shown(str(i), clip) for i, clip in enumerate(clips)])])
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    means = [frames_of(base64.b64decode(each))[0].mean() for each in found]
    assert means == pytest.approx([40, 200], abs=2)


def test_cells_that_are_numbers_stand_on_the_right():
    text = sheet("t", [Section("s", table=Table(("a", "b"), [["x 1", "-1.25"]]))])
    assert '<td>x 1</td><td class="number">-1.25</td>' in text


def test_a_curve_goes_through_its_values():
    drawn = ElementTree.fromstring(plot("t", {"a": [0, 2, 1], "b": [4]}, "x", "y"))
    lines = drawn.findall("{*}polyline")
    a, b = ([[*map(float, p.split(","))] for p in x.get("points").split()] for x in lines)
    # x in even steps; y falls by one amount for each unit, and 4 is at the top
    assert a[1][0] - a[0][0] == pytest.approx(a[2][0] - a[1][0], abs=0.02) and b[0][0] == a[0][0]
    unit = (a[0][1] - b[0][1]) / 4
    assert unit > 10 and [a[0][1] - p[1] for p in a] == pytest.approx([0, 2 * unit, unit], abs=0.02)


@pytest.mark.parametrize("values", [[], [1, float("nan")], [float("inf")]])
def test_a_curve_without_a_value_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        plot("t", {"a": values}, "x", "y")
