"""Fractions by group: what is given, what is the weights' own, and what a model has."""

import copy
import pickle

import numpy as np
import pytest

from anyv2v import Injection, InputError
from anyv2v.backbones.defaults import read_defaults
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.injection.fractions import NO_INJECTION, Group, sites_per_step
from anyv2v.pipeline.step_plan import plan_steps

OWN = Injection(conv=0.2, spatial=0.2, temporal=0.5)
SITES = {"conv": frozenset("a"), "spatial": frozenset("bc"), "cross": frozenset("d")}


def test_what_is_not_given_is_the_weights_own():
    injection = Injection(conv=0.0, cross=np.float32(0.5))
    assert injection.fractions == {"conv": 0.0, "cross": 0.5}
    assert (injection.conv, injection.spatial) == (0.0, None)
    assert injection.over(OWN).fractions == {**OWN.fractions, "conv": 0.0, "cross": 0.5}
    assert Injection().over(OWN) == OWN
    chosen = Injection(sites={"conv": ["x"]}).over(Injection(conv=1, sites={"spatial": ["y"]}))
    assert chosen.sites == {"conv": frozenset("x"), "spatial": frozenset("y")}
    assert NO_INJECTION.over(OWN) is NO_INJECTION and NO_INJECTION.groups(SITES) == ()
    assert NO_INJECTION != Injection()


def test_groups_are_those_of_the_model():
    groups = Injection(conv=0.2, cross=0.5, spatial=0).groups(SITES)
    assert set(groups) == {Group(SITES["conv"], 0.2), Group(SITES["cross"], 0.5)}
    own = Injection(conv=0.3, sites={"conv": ["x", "y"]}).groups(SITES)
    assert own == (Group(frozenset("xy"), 0.3),)
    # the paper's groups may be off wherever they are
    assert Injection(temporal=0).groups(SITES) == ()
    for wrong in (
        Injection(temporal=0.1),
        Injection(map=0.1),
        Injection(map=0),
        Injection(sites={"map": ["x"]}),
    ):
        with pytest.raises(InputError, match="no group (map|temporal); there are conv, spatial, c"):
            wrong.groups(SITES)


def test_a_group_may_have_any_name():
    injection = Injection(**{"self": 0.5, "cls": 0.25})
    assert injection.groups({"self": frozenset("a"), "cls": frozenset("b")})
    assert eval(repr(injection)) == injection


def test_equal_by_value_frozen_and_written_as_it_is_made():
    one = Injection(0.2, temporal=0.5, sites={"conv": ["b", "a"]}, map=0.1, cross=1)
    other = Injection(cross=1.0, map=0.1, sites={"conv": iter("ab")}, conv=0.2, temporal=0.5)
    assert one == other and hash(one) == hash(other) and one != Injection(0.2)
    for each in (one, Injection(), Injection.none()):
        assert eval(repr(each)) == each
        assert pickle.loads(pickle.dumps(each)) == copy.deepcopy(each) == each
    with pytest.raises(AttributeError):
        one.conv = 0.5
    one.fractions["conv"] = 1.0
    assert one.conv == 0.2


def test_the_default_edit_has_the_steps_of_the_table_in_step_plan():
    clips = {"size": [512, 512], "frames": 16, "fps": 8}
    defaults = read_defaults({"defaults": clips}, I2VGen.published_settings)
    names = {name: frozenset({name}) for name in ("conv", "spatial", "temporal")}
    groups = defaults.injection.groups(names)
    sites = sites_per_step(groups, defaults.steps, 0, frozenset(names))
    every, temporal = frozenset(names), frozenset({"temporal"})
    for recorded, way in ((True, "replayed"), (False, "batched")):
        levels = schedule().levels(defaults.steps)
        plan = plan_steps(levels, sites, lambda level, at, recorded=recorded: recorded)
        assert [(step.sites, step.way, step.branches(2) - 2) for step in plan.steps] == [
            *[(every, way, not recorded)] * 10,
            *[(temporal, way, not recorded)] * 15,
            *[(frozenset(), "plain", 0)] * 25,
        ]
