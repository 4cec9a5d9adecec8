"""Which sites are injected at which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError


@dataclass(frozen=True)
class Group:
    """Sites that are switched together, and the part of the schedule in which they are on."""

    sites: frozenset[str]
    until: float
    """0.2: the first fifth of the steps."""


@dataclass(frozen=True)
class Injection:
    """How long each kind of feature of the source is injected, in fractions of the steps.

    The paper's tau_conv, tau_spatial (its "sa") and tau_temporal ("ta"), arXiv 2403.14468,
    section 4.2; the defaults are those of the original's configuration.
    `sites`: group name -> names of other sites than the model's own choice.
    """

    conv: float = 0.2
    spatial: float = 0.2
    temporal: float = 0.5
    sites: Mapping[str, Iterable[str]] | None = None

    def __post_init__(self):
        for name, fraction in self._fractions().items():
            checks.fraction(f"injection: {name}", fraction)
        if self.sites is not None:
            checks.kind("injection: sites", self.sites, Mapping, "a mapping of groups to sites")
            for name, sites in self.sites.items():
                checks.names(f"injection: sites of {name}", sites)
        if unknown := set(self.sites or ()) - set(self._fractions()):
            raise InputError(
                f"injection: no such group: {', '.join(sorted(map(str, unknown)))}; "
                f"there are {', '.join(self._fractions())}"
            )

    def groups(self, default: Mapping[str, frozenset[str]]) -> tuple[Group, ...]:
        """The groups to switch, with the sites of `default` (the model's) where none are given."""
        chosen = {**default, **{k: frozenset(v) for k, v in (self.sites or {}).items()}}
        fractions = {name: until for name, until in self._fractions().items() if until > 0}
        if missing := set(fractions) - set(chosen):
            raise InputError(
                f"injection: this model has no group {', '.join(sorted(missing))}: set it to 0"
            )
        return tuple(Group(chosen[name], until) for name, until in fractions.items())

    def _fractions(self) -> dict[str, float]:
        return {"conv": self.conv, "spatial": self.spatial, "temporal": self.temporal}


NO_INJECTION = Injection(conv=0.0, spatial=0.0, temporal=0.0)


def sites_per_step(
    groups: Iterable[Group], steps: int, start: int, known: frozenset[str]
) -> dict[int, frozenset[str]]:
    """Step -> the set of active sites, for the steps that are run: range(start, steps).

    A group is on for the first int(steps * until) steps of the whole schedule, the product
    truncated as the original truncates it (50 * 0.58 gives 28). A site that `known` does not hold
    is an InputError.
    """
    groups = tuple(groups)
    checks.known("injection", frozenset().union(*(g.sites for g in groups)), known, "site")
    return {
        step: frozenset().union(*(g.sites for g in groups if step < int(steps * g.until)))
        for step in range(start, steps)
    }
