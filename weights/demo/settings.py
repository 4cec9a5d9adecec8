"""How the demo model edits best, found on validation scenes; see README.md beside this file.

The recipe writes it into the model's config.json, where it is the weights' own.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.injection.fractions import Injection


@dataclass(frozen=True)
class Settings:
    steps: int = 50
    """Of the inversion and of sampling, which it solves."""
    guidance: float = 1.0
    prompted: bool = True
    """Whether the inversion is told the source's caption."""
    injection: Injection = Injection(conv=0.8, spatial=0.0, temporal=0.0)

    def as_defaults(self) -> dict[str, object]:
        """The part of a config's "defaults" that says how an edit is made."""
        return {
            "steps": self.steps,
            "guidance": {"text": self.guidance},
            "negative_prompt": "",
            "injection": self.injection.fractions,
        }


BEST = Settings()
