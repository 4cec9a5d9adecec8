"""Converts the content of files of the previous formats into the current ones.

Sources of version 2 and unfinished inversions of version 1 named latents and features by timestep,
not by index of a step. They knew one schedule, I2VGen-XL's, one guidance scale, and one option, the
frames per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.config import section
from anyv2v.errors import InputError


@dataclass(frozen=True)
class _Settings:
    method: str
    steps: int
    prompt: str
    negative_prompt: str
    guidance: float
    fps: int
    tolerance: float


def upgraded(facts: dict, tensors: Mapping[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Returns (facts, tensors) of a file of a previous format, as the current format names them.

    facts: the file's JSON metadata. tensors: its tensors by name. The file is a source or an
    unfinished inversion. Raises InputError for settings that are not valid, and for timesteps that
    the run does not visit.
    """
    old = section(facts, "settings", _Settings)
    levels = schedule().levels(old.steps)
    index = {str(level.t): level.index for level in levels[:-1]}

    def step_index(timestep: str) -> int:
        if timestep not in index:
            raise InputError(
                f"holds something of timestep {checks.shown(timestep)}; a run of {old.steps} steps "
                f"visits {', '.join(list(index)[:3])} ..."
            )
        return index[timestep]

    def renamed(name: str) -> str:
        kind, _, rest = name.partition(".")
        if name == "latents.0":
            return "clean"
        if kind not in ("latents", "features"):
            return name
        timestep, dot, rest = rest.partition(".")
        return f"{kind}.{step_index(timestep)}{dot}{rest}"

    settings = {**vars(old), "guidance": {"text": old.guidance}, "options": {"fps": old.fps}}
    del settings["fps"]
    facts = {
        **facts,
        "settings": settings,
        "levels": [[level.t, level.alpha, level.sigma] for level in levels],
        "residuals": {step_index(t): r for t, r in facts["residuals"].items()},
    }
    return facts, {renamed(name): x for name, x in tensors.items()}
