"""Presets of the injection by what an edit changes, from the edits that AnyV2V published.

AnyV2V's repository has the settings of fourteen edits by I2VGen-XL, each under one of the paper's
four tasks (i2vgen-xl/configs/group_pnp_edit/group_config.json). Most differ from the defaults of
its configuration and paper: twelve of fourteen begin with the noisiest step, and twelve inject
temporal attention in all steps. A preset has, of each setting, the lower median over the edits of
its task, so a value that one of these edits has.

How far the edits of a task agree:

- style: two of three inject everything in all steps.
- prompt: temporal attention in all steps; conv and spatial from 0.1 to 1.
- identity: the group is split; two inject conv and spatial in 0 and 0.1 of the steps, two in 0.8
  and 1. The more the new person has the shape of the old one, the more may be injected.
- subject: there are two edits alone, which differ in temporal attention, 0.5 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low

STEPS = 50
"""Number of sampling steps of the published edits, among which their first step is counted."""


@dataclass(frozen=True)
class Preset:
    """Settings that AnyV2V chose for an edit, or that are typical for a task."""

    conv: float
    """Fraction of the steps that inject residual features; the two below are likewise."""
    spatial: float
    """That of spatial attention."""
    temporal: float
    """That of temporal attention."""
    start: int
    """Index of the first step that is run, of 50."""

    @property
    def fractions(self) -> dict[str, float]:
        """Injection group -> fraction of the steps."""
        return {"conv": self.conv, "spatial": self.spatial, "temporal": self.temporal}

    def start_of(self, steps: int) -> int:
        """Returns the index of the first step that is run of `steps` steps."""
        return self.start * steps // STEPS


PUBLISHED = {
    "style": {
        "old man, starry night": Preset(0.2, 0.2, 0.5, 1),
        "old man, cyberpunk": Preset(1.0, 1.0, 1.0, 0),
        "ballet, van Gogh": Preset(1.0, 1.0, 1.0, 0),
    },
    "identity": {
        "old man to Jack Ma": Preset(0.8, 0.8, 1.0, 0),
        "old man to Hinton": Preset(1.0, 1.0, 1.0, 0),
        "walking man to Elon Musk": Preset(0.1, 0.1, 1.0, 0),
        "walking man to Yann LeCun": Preset(0.0, 0.0, 1.0, 0),
    },
    "prompt": {
        "old man to robot": Preset(1.0, 1.0, 1.0, 0),
        "white hair": Preset(0.2, 0.2, 1.0, 1),
        "party hat": Preset(0.1, 0.1, 1.0, 0),
        "snow": Preset(0.3, 0.3, 1.0, 0),
        "walking man to Darth Vader": Preset(0.1, 0.1, 1.0, 0),
    },
    "subject": {
        "helmet": Preset(0.2, 0.2, 1.0, 0),
        "kitten to dog": Preset(0.2, 0.2, 0.5, 0),
    },
}
"""Task -> edit -> the settings that AnyV2V published for it."""


def _typical(edits: list[Preset]) -> Preset:
    settings = ([getattr(e, n) for e in edits] for n in ("conv", "spatial", "temporal", "start"))
    return Preset(*(median_low(values) for values in settings))


PRESETS = {task: _typical(list(edits.values())) for task, edits in PUBLISHED.items()}
"""Task -> its preset."""
