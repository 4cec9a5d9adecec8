"""Wan's noise levels against those of diffusers' schedulers."""

import pytest
import torch

from anyv2v.backbones.wan.schedule import FlowSchedule

diffusers = pytest.importorskip("diffusers")


def found(shift, steps):
    *levels, end = FlowSchedule(shift).levels(steps)
    sigmas = torch.tensor([level.sigma for level in (*levels, end)], dtype=torch.float64)
    return sigmas, torch.tensor([level.t for level in levels])


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 16.0])
def test_levels_are_those_of_unipc_bit_for_bit(shift):
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    # at 250 and more, levels are told the same timestep
    for steps in (*range(1, 51), 100, 250, 500, 1000):
        theirs.set_timesteps(steps)
        sigmas, timesteps = found(shift, steps)
        assert torch.equal(sigmas, theirs.sigmas.double())
        assert torch.equal(timesteps, theirs.timesteps)


def test_levels_are_not_those_of_their_flow_match_scheduler():
    """It shifts the ends of its own grid once more."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(50)
    sigmas, timesteps = found(5.0, 50)
    assert sigmas[-4:].tolist() == pytest.approx([0.2450, 0.1760, 0.0968, 0], abs=1e-4)
    assert theirs.sigmas[-4:].tolist() == pytest.approx([0.1928, 0.1148, 0.0244, 0], abs=1e-4)
    assert timesteps[-3:].tolist() == [244, 175, 96]
    theirs.set_timesteps(3)
    assert theirs.timesteps.tolist() == pytest.approx([1000, 835, 24], abs=1)
    assert found(5.0, 3)[1].tolist() == [999, 909, 714]
