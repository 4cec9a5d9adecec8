"""The settings with which the demo model edits best, found on validation scenes (see README.md).

The recipe writes them into the model's config.json as the defaults of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.injection.fractions import Injection


@dataclass(frozen=True)
class Settings:
    """How an edit is made."""

    steps: int = 50
    """Number of steps of both the inversion and the sampling."""
    guidance: float = 1.0
    prompted: bool = True
    """Whether the inversion is conditioned on the source's caption."""
    injection: Injection = Injection(conv=0.8, spatial=0.0, temporal=0.0)

    def as_defaults(self) -> dict[str, object]:
        """Return the part of a config's "defaults" that says how an edit is made."""
        return {
            "steps": self.steps,
            "guidance": {"text": self.guidance},
            "negative_prompt": "",
            "injection": self.injection.fractions,
        }


BEST = Settings()
