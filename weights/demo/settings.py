"""How the demo model edits best, found on validation scenes; see README.md beside this file."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.injection.plan import Injection


@dataclass(frozen=True)
class Settings:
    steps: int = 50
    """Of the inversion and of sampling, which it solves."""
    guidance: float = 1.0
    prompted: bool = True
    """Whether the inversion is told the source's caption."""
    injection: Injection = Injection(conv=0.8, spatial=0.0, temporal=0.0)


BEST = Settings()
