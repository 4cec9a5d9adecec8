"""`Injection`: for which fraction of a run's steps each group of sites is injected.

A site is the name of a layer whose features can be injected, such as "up.1.res.1".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError

USUAL = ("conv", "spatial", "temporal")
"""The groups of sites in the AnyV2V paper: residual features, spatial and temporal attention.

An `Injection` may give them a fraction of 0 even for a model that has no such group.
"""


@dataclass(frozen=True)
class Group:
    """A group of sites (names of layers) that are injected at the same steps."""

    sites: frozenset[str]
    """Names of the sites."""
    until: float
    """Fraction of the steps, 0 to 1, counted from the noisiest; 0.2 is the first fifth."""


@dataclass(frozen=True, init=False, repr=False)
class Injection:
    """For how many of the steps each group of the source's features is injected.

    The values are fractions of the steps, 0 to 1, counted from the noisiest: tau_conv, tau_spatial
    ("sa") and tau_temporal ("ta") of AnyV2V (arXiv 2403.14468, section 4.2), and any other group
    that a model has, by its name. A group that is not given (None) keeps the weights' own fraction,
    for I2VGen-XL conv 0.2, spatial 0.2 and temporal 0.5, as in the original's configuration; 0
    turns a group off. So `Injection(spatial=0, temporal=0)` still injects conv, and
    `Injection.none()` injects nothing. `sites` replaces the model's choice for the groups that it
    names: group name -> names of sites (layers), which are in `Editor.sites`. Raises InputError for
    a fraction outside of 0 to 1 and for names that are not strings; unknown names are refused when
    an edit is planned.
    """

    _fractions: tuple[tuple[str, float], ...]
    _sites: tuple[tuple[str, frozenset[str]], ...]
    _alone: bool
    """Whether groups that are not given are off, instead of at the weights' own fraction."""

    def __init__(
        self,
        /,  # a group may be called self
        conv: float | None = None,
        spatial: float | None = None,
        temporal: float | None = None,
        sites: Mapping[str, Iterable[str]] | None = None,
        **others: float | None,
    ):
        by_group = {"conv": conv, "spatial": spatial, "temporal": temporal} | others
        fractions = {
            name: checks.fraction(f"injection: {name}", fraction)
            for name, fraction in by_group.items()
            if fraction is not None
        }
        if sites is not None:
            checks.kind("injection: sites", sites, Mapping, "a mapping of groups to sites")
            checks.names("injection: groups of sites", sites)
        chosen = {n: checks.names(f"injection: sites of {n}", s) for n, s in (sites or {}).items()}
        self._set(fractions, chosen, alone=False)

    @classmethod
    def none(cls) -> Injection:
        """Returns an injection of nothing, whatever the weights' own fractions are."""
        nothing = cls()
        nothing._set({}, {}, alone=True)
        return nothing

    def _set(self, fractions: dict, sites: dict, alone: bool) -> None:
        # sorted, so that objects compare by value in whatever order the groups were named
        object.__setattr__(self, "_fractions", tuple(sorted(fractions.items())))
        object.__setattr__(self, "_sites", tuple(sorted(sites.items())))
        object.__setattr__(self, "_alone", alone)

    @property
    def fractions(self) -> dict[str, float]:
        """Group name -> fraction of the steps, for the groups whose fractions were given."""
        return dict(self._fractions)

    @property
    def sites(self) -> dict[str, frozenset[str]] | None:
        """Group name -> names of sites, for groups whose sites were given; None if none were."""
        return dict(self._sites) or None

    @property
    def conv(self) -> float | None:
        """The fraction of group "conv"; None if it was not given."""
        return self.fractions.get("conv")

    @property
    def spatial(self) -> float | None:
        """The fraction of group "spatial"; None if it was not given."""
        return self.fractions.get("spatial")

    @property
    def temporal(self) -> float | None:
        """The fraction of group "temporal"; None if it was not given."""
        return self.fractions.get("temporal")

    def __repr__(self) -> str:
        if self._alone:
            return "Injection.none()"
        parts = [f"{name}={fraction!r}" for name, fraction in self._fractions]
        if self._sites:
            lists = (f"{name!r}: {sorted(sites)!r}" for name, sites in self._sites)
            parts.append(f"sites={{{', '.join(lists)}}}")
        return f"Injection({', '.join(parts)})"

    def over(self, own: Injection) -> Injection:
        """Returns this injection, completed by fractions and sites of `own`, the weights' own.

        The result of `Injection.none()` is itself: nothing is injected.
        """
        if self._alone:
            return self
        sites = {**(own.sites or {}), **(self.sites or {})}
        return Injection(**{**own.fractions, **self.fractions}, sites=sites)

    def groups(self, default: Mapping[str, frozenset[str]]) -> tuple[Group, ...]:
        """Returns the groups of sites whose fraction is above 0; groups without a fraction are off.

        default: the model's groups, name -> names of sites; `sites` overrides them. Raises
        InputError for a group that the model lacks; "conv", "spatial" and "temporal" are allowed
        with a fraction of 0, or with sites of their own.
        """
        chosen = {**default, **(self.sites or {})}
        unknown = {*self.fractions, *(self.sites or {})}.difference(default, USUAL)
        unknown |= {name for name, until in self._fractions if until > 0 and name not in chosen}
        if unknown:
            hint = f"there are {', '.join(default)}" if default else "it has none"
            raise InputError(
                f"injection: this model has no group {', '.join(sorted(unknown))}; {hint}"
            )
        return tuple(Group(chosen[name], until) for name, until in self._fractions if until > 0)


NO_INJECTION = Injection.none()
"""An injection of nothing, whatever the weights' own fractions are."""


def sites_per_step(
    groups: Iterable[Group], steps: int, start: int, known: frozenset[str]
) -> dict[int, frozenset[str]]:
    """Returns for each step in range(start, steps) the names of the sites that are injected there.

    A group is injected in the first int(steps * until) of all `steps`, those before `start`
    included; the product is truncated as in the original (50 * 0.58 gives 28). Raises InputError
    for a site of a group that is not in `known`, the network's sites.
    """
    groups = tuple(groups)
    checks.known("injection", frozenset().union(*(g.sites for g in groups)), known, "site")
    return {
        step: frozenset().union(*(g.sites for g in groups if step < int(steps * g.until)))
        for step in range(start, steps)
    }
