"""The settings with which the demo model edits best, found on validation scenes (see README.md).

The recipe writes them into the model's config.json as the defaults of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.injection.fractions import Injection


@dataclass(frozen=True)
class Settings:
    """How the demo model makes an edit."""

    steps: int = 50
    """Number of steps, of the inversion and of the sampling alike."""
    guidance: float = 1.0
    """Scale of classifier-free guidance by the text; 1 means none."""
    injection: Injection = Injection(conv=0.8, spatial=0.0, temporal=0.0)
    """Fraction of the steps in which each injection group (set of layers) is injected."""
    protect: bool = True
    """Whether the command line protects what the edit left alone: of 60 scenes none loses more than
    0.04 dB by it. A guided start is off, since one of 59 loses 1.4 dB."""

    def as_defaults(self) -> dict[str, object]:
        """Returns the settings as the entries of "defaults" in config.json.

        They are JSON values, with an empty negative prompt added.
        """
        return {
            "steps": self.steps,
            "guidance": {"text": self.guidance},
            "negative_prompt": "",
            "injection": self.injection.fractions,
            "protect": self.protect,
        }


BEST = Settings()
"""The settings that gave the best edits of validation scenes."""
