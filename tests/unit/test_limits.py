"""The least and the most of every kind of argument, and of every field of a config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anyv2v import checks
from anyv2v.config import config_errors, section
from anyv2v.convert.hf_config import HFConfig
from anyv2v.errors import InputError

MOST = 16_777_216
"""No count is larger."""


def taken(check, *args, **options):
    """What a check makes of it; None if it refuses."""
    try:
        return check(*args, **options)
    except InputError as error:
        assert "\n" not in str(error)
        return None


def test_the_largest_count_is_one_number_for_all():
    assert checks.MOST == MOST


@pytest.mark.parametrize(
    "value, found",
    [
        *((1, 1), (2, 2), (MOST, MOST), (np.int64(5), 5), (torch.tensor(5), 5)),
        *((0, None), (-1, None), (MOST + 1, None), (10**50, None)),
        *((1.0, None), ("1", None), (None, None), (True, None), (np.float32(1), None)),
    ],
)
def test_counts(value, found):
    assert taken(checks.count, "frames", value) == found
    if found is None:
        with pytest.raises(InputError, match=f"^frames: .* is not a whole number from 1 to {MOST}"):
            checks.count("frames", value)


@pytest.mark.parametrize("least, most", [(0, 9), (1, None), (-3, 3)])
def test_whole_numbers(least, most):
    assert taken(checks.whole, "x", least, least, most) == least
    assert taken(checks.whole, "x", least - 1, least, most) is None
    last = 10**40 if most is None else most
    assert taken(checks.whole, "x", last, least, most) == last
    assert (taken(checks.whole, "x", last + 1, least, most) is None) == (most is not None)
    assert taken(checks.whole, "x", 0) is None and taken(checks.whole, "x", 1) == 1


@pytest.mark.parametrize(
    "value, right",
    [(0, True), (1, True), (2**64 - 1, True), (2**64, False), (-1, False), (0.0, False)],
)
def test_seeds_are_what_a_generator_takes(value, right):
    assert (taken(checks.seed, value) == value) == right
    if right:
        torch.Generator().manual_seed(value)


NUMBERS = [-math.inf, -1e300, -1, -1e-300, 0, 1e-300, 0.5, 1, 1 + 1e-9, 1e300, math.inf, math.nan]


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers(value):
    finite = math.isfinite(value)
    assert (taken(checks.finite, "x", value) == value) == finite
    assert (taken(checks.positive, "x", value) == value) == (finite and value > 0)
    assert (taken(checks.fraction, "x", value) == value) == (0 <= value <= 1)
    for check in (checks.finite, checks.positive, checks.fraction):
        assert type(taken(check, "x", value)) in (float, type(None))


@pytest.mark.parametrize("value", ["1", b"1", True, None, [], 1j, 10**400, torch.ones(2)])
def test_what_is_no_number(value):
    for check in (checks.finite, checks.positive, checks.fraction):
        assert taken(check, "x", value) is None


@pytest.mark.parametrize(
    "size, factor, right",
    [
        *(((1, 1), 1, True), ((1, MOST), 1, True), ((MOST, 1), 1, True), ((8, 16), 8, True)),
        *(((0, 1), 1, False), ((1, 0), 1, False), ((-1, 1), 1, False), ((1, -8), 8, False)),
        *(((MOST + 1, 1), 1, False), ((1, MOST + 1), 1, False), ((8, 12), 8, False)),
        *(((12, 8), 8, False), ((8,), 8, False), ((8, 8, 8), 8, False), ((8.0, 8), 8, False)),
        *((8, 8, False), ("88", 8, False), (None, 8, False), ([16, 8], 8, True)),
    ],
)
def test_sizes(size, factor, right):
    assert (taken(checks.size, size, factor) is not None) == right
    if right:
        assert checks.size(size, factor) == tuple(size)


def test_a_size_without_pixels_is_no_size():
    """No multiple is near that would do; the message says what a size is."""
    for size in ((0, 8), (8, 0), (0, 0), (-8, 8), (8, -8)):
        with pytest.raises(
            InputError, match=r"is not \(width, height\), two whole numbers from 1 "
        ):
            checks.size(size, 8)


def test_the_nearest_sizes_that_work_are_told():
    for size, nearest in (((12, 21), "16x24"), ((3, 64), "8x64"), ((11, 13), "8x16")):
        width, height = size
        with pytest.raises(InputError, match=f"^size: {width}x{height} is .* 8; .* is {nearest}$"):
            checks.size(size, 8)


@pytest.mark.parametrize("value, right", [("a", True), ("", False), ("A", False), (["a"], False)])
def test_one_of_several(value, right):
    assert (taken(checks.one_of, "x", value, ("a", "b")) == value) == right


def test_flags_texts_names_and_functions():
    for value, right in ((True, True), (False, True), (np.True_, True), (1, False), ("", False)):
        assert (taken(checks.flag, "x", value) is not None) == right
    assert checks.flag("x", np.False_) is False
    for value, right in (("", True), ("a", True), (b"a", False), (None, False), (1, False)):
        assert (taken(checks.text, "x", value) is not None) == right
        assert (taken(checks.texts, a="b", x=value) is None and right is False) or right
    for value, right in ((["a"], True), ((), True), ("a", False), (b"a", False), ([1], False)):
        assert (taken(checks.names, "x", value) is not None) == right
    assert taken(checks.called, "x", print) is print and checks.called("x", None) is None
    assert taken(checks.called, "x", "print") is None


def test_names_that_there_are_not_are_told_with_those_that_there_are():
    few, many = ["a", "b"], [f"site.{i}" for i in range(9)]
    checks.known("sites", few, few, "site")
    checks.known("sites", [], [], "site")
    for there, hint in ((few, "; there is a and b"), (many[:8], "; there is site.0 and site.1")):
        with pytest.raises(InputError, match=f"^sites: no such site: c, d{hint}"):
            checks.known("sites", ["d", *there[:1], "c"], there, "site")
    with pytest.raises(InputError, match="no such site: site.99; there is site.8 and") as error:
        checks.known("sites", ["site.99"], many[:8] + ["site.8"], "site")
    assert str(error.value).count("site.") == 4
    with pytest.raises(InputError, match="no such site: zzz$"):
        checks.known("sites", ["zzz"], many, "site")


def test_a_value_is_shown_in_eighty_characters():
    assert checks.shown("a" * 78) == "'" + "a" * 78 + "'"
    cut = checks.shown("a" * 79)
    assert len(cut) == 80 and cut.startswith("'aaa") and cut.endswith("a ...")
    assert checks.shown(np.zeros((2, 3), np.uint8)) == "ndarray uint8 (2, 3)"
    assert checks.shown(10**5000) == "a int"


# configs


@dataclass(frozen=True)
class Sample:
    layers: int
    channels: int
    widths: tuple[int, ...]
    scale: float
    parts: Mapping[str, float]
    either: object
    name: str
    wide: bool


GOOD = {
    **{"layers": 2, "channels": 4, "widths": [8, 16], "scale": 0.5, "parts": {"a": 1.0}},
    **{"either": "x", "name": "n", "wide": True},
}


@pytest.mark.parametrize(
    "key, value, right",
    [
        # layers of a network have a limit of their own
        *(("layers", n, 1 <= n <= 64) for n in (0, 1, 64, 65)),
        *(("channels", n, 1 <= n <= MOST) for n in (-1, 0, 1, 65, MOST, MOST + 1)),
        *(("channels", n, False) for n in (1.0, True, "1", None)),
        *(("widths", [1] * n, 1 <= n <= 8) for n in (0, 1, 8, 9)),
        *(("widths", [n], 1 <= n <= MOST) for n in (0, 1, MOST, MOST + 1)),
        *(("widths", [1, n], False) for n in (0, 1.0, "1", MOST + 1)),
        *(("scale", x, math.isfinite(x)) for x in (-1e308, 0, 1, 1e308, math.inf, math.nan)),
        *(("scale", x, False) for x in ("1", True, None, 10**400)),
        *(("parts", {"b": x}, math.isfinite(x)) for x in (1, 2.5, math.nan)),
        *(("parts", x, False) for x in ([], {1: 1.0}, {"a": "b"}, None)),
        *(("either", x, True) for x in ("", 1, -2.5)),
        *(("either", x, False) for x in (None, [], math.inf)),
        *(("name", x, isinstance(x, str)) for x in ("", 1, None)),
        *(("wide", x, isinstance(x, bool)) for x in (False, 1, None)),
    ],
)
def test_fields_of_a_section(key, value, right):
    found = taken(section, {"s": GOOD | {key: value}}, "s", Sample)
    assert (found is not None) == right
    if right:
        assert found == Sample(**GOOD | {key: value})
    else:
        with pytest.raises(InputError, match=f"^section 's': {key}: "):
            section({"s": GOOD | {key: value}}, "s", Sample)


def test_a_section_holds_just_its_fields():
    for config, told in (
        ({}, "there is no section 's'"),
        ({"s": []}, "there is no section 's'"),
        ({"s": GOOD | {"more": 1}}, "section 's': more is not known"),
        ({"s": {k: v for k, v in GOOD.items() if k != "name"}}, "section 's': name is missing"),
    ):
        with pytest.raises(InputError, match=f"^{told}$"):
            section(config, "s", Sample)


@pytest.mark.parametrize(
    "error", [KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError]
)
def test_whatever_a_config_makes_go_wrong_is_blamed_on_it(tmp_path, error):
    told = f"{tmp_path / 'config.json'}: "
    for raised in (error("so it is"), InputError("so it is")):
        with pytest.raises(InputError, match="so it is") as refusal, config_errors(tmp_path):
            raise raised
        assert str(refusal.value).startswith(told) and str(refusal.value).count(told) == 1
    named = InputError(f"{told}so it is")
    with pytest.raises(InputError) as refusal, config_errors(tmp_path):
        raise named
    assert refusal.value is named
    with pytest.raises(KeyboardInterrupt), config_errors(tmp_path):
        raise KeyboardInterrupt


def test_fields_of_hugging_face_configs():
    def fields(**values):
        return HFConfig("there.json", values, {"absent": 3})

    for n, right in ((0, False), (1, True), (MOST, True), (MOST + 1, False), (True, False)):
        assert (taken(fields(n=n).count, "n") is not None) == right
        assert (taken(fields(n=[2, n]).counts, "n") is not None) == right
        assert (taken(fields(n=n).square_side, "n") == n) == right
    assert (
        fields(n=[7, 7]).square_side("n")
        == fields(n={"height": 7, "width": 7}).square_side("n")
        == 7
    )
    for wrong in ([7, 8], [7], {"height": 7, "width": 8}, {"height": 7}):
        assert taken(fields(n=wrong).square_side, "n") is None
    assert taken(fields(n=[]).counts, "n") is None
    for x, right in ((1e-300, True), (1e308, True), (0, False), (-1, False), (math.inf, False)):
        assert (taken(fields(x=x).positive_number, "x") is not None) == right
    assert fields(g=4).divisor("g", [8, 12], "widths") == 4
    with pytest.raises(InputError, match="g is 4; it must divide widths, among which is 10"):
        fields(g=4).divisor("g", [8, 10], "widths")
    assert fields().count("absent") == 3 and fields(absent=5).count("absent") == 5
    assert fields(x=1).one_of("x", 1, 2) == 1
    for wrong in (3, 1.0, True):
        assert taken(fields(x=wrong).one_of, "x", 1, 2) is None
    with pytest.raises(InputError, match=r"absent is 3 \(the default, it is not given\); only 4"):
        fields().one_of("absent", 4)
    with pytest.raises(InputError, match="^there.json: has no more$"):
        fields()["more"]
