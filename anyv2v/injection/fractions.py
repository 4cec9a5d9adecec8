"""Which sites are injected at which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError

USUAL = ("conv", "spatial", "temporal")
"""The paper's groups. At 0 they may be given for a model that lacks them."""


@dataclass(frozen=True)
class Group:
    """Sites that are switched together, and the part of the schedule in which they are on."""

    sites: frozenset[str]
    until: float
    """0.2: the first fifth of the steps."""


@dataclass(frozen=True, init=False, repr=False)
class Injection:
    """How long each group of features of the source is injected, in fractions of the steps.

    The paper's tau_conv, tau_spatial (its "sa") and tau_temporal ("ta"), arXiv 2403.14468,
    section 4.2, and whatever other groups a model has, by their names. What is not given is the
    weights' own, which for I2VGen-XL is what the original's configuration says: 0.2, 0.2, 0.5.
    `sites`: group name -> names of other sites than the model's own choice.
    """

    _fractions: tuple[tuple[str, float], ...]
    _sites: tuple[tuple[str, frozenset[str]], ...]
    _alone: bool
    """Whether what is not given is off, in place of the weights' own."""

    def __init__(
        self,
        /,  # a group may be called self
        conv: float | None = None,
        spatial: float | None = None,
        temporal: float | None = None,
        sites: Mapping[str, Iterable[str]] | None = None,
        **others: float | None,
    ):
        given = {"conv": conv, "spatial": spatial, "temporal": temporal} | others
        fractions = {
            name: checks.fraction(f"injection: {name}", fraction)
            for name, fraction in given.items()
            if fraction is not None
        }
        if sites is not None:
            checks.kind("injection: sites", sites, Mapping, "a mapping of groups to sites")
            checks.names("injection: groups of sites", sites)
        chosen = {n: checks.names(f"injection: sites of {n}", s) for n, s in (sites or {}).items()}
        self._set(fractions, chosen, alone=False)

    @classmethod
    def none(cls) -> Injection:
        """Nothing is injected, whatever groups a model has and whatever is its weights' own."""
        nothing = cls()
        nothing._set({}, {}, alone=True)
        return nothing

    def _set(self, fractions: dict, sites: dict, alone: bool) -> None:
        # by value, in whatever order they were given
        object.__setattr__(self, "_fractions", tuple(sorted(fractions.items())))
        object.__setattr__(self, "_sites", tuple(sorted(sites.items())))
        object.__setattr__(self, "_alone", alone)

    @property
    def fractions(self) -> dict[str, float]:
        """Group name -> part of the steps, as far as given."""
        return dict(self._fractions)

    @property
    def sites(self) -> dict[str, frozenset[str]] | None:
        return dict(self._sites) or None

    @property
    def conv(self) -> float | None:
        return self.fractions.get("conv")

    @property
    def spatial(self) -> float | None:
        return self.fractions.get("spatial")

    @property
    def temporal(self) -> float | None:
        return self.fractions.get("temporal")

    def __repr__(self) -> str:
        if self._alone:
            return "Injection.none()"
        given = [f"{name}={fraction!r}" for name, fraction in self._fractions]
        if self._sites:
            lists = (f"{name!r}: {sorted(sites)!r}" for name, sites in self._sites)
            given.append(f"sites={{{', '.join(lists)}}}")
        return f"Injection({', '.join(given)})"

    def over(self, own: Injection) -> Injection:
        """The same with all that is not given as `own` has it."""
        if self._alone:
            return self
        sites = {**(own.sites or {}), **(self.sites or {})}
        return Injection(**{**own.fractions, **self.fractions}, sites=sites)

    def groups(self, default: Mapping[str, frozenset[str]]) -> tuple[Group, ...]:
        """The groups to switch, with the sites of `default` (the model's) where none are given.

        A group that is not given is off. InputError for one that the model lacks.
        """
        chosen = {**default, **(self.sites or {})}
        unknown = {*self.fractions, *(self.sites or {})}.difference(default, USUAL)
        unknown |= {name for name, until in self._fractions if until > 0 and name not in chosen}
        if unknown:
            there = f"there are {', '.join(default)}" if default else "it has none"
            raise InputError(
                f"injection: this model has no group {', '.join(sorted(unknown))}; {there}"
            )
        return tuple(Group(chosen[name], until) for name, until in self._fractions if until > 0)


NO_INJECTION = Injection.none()


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
