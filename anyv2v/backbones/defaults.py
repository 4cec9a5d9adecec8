"""Default settings of weights: those in their config.json, completed by the backbone's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from anyv2v import checks
from anyv2v.backbones.base import Defaults, PublishedSettings
from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection

INVERSION = ("tolerance", "evaluations")
"""The settings of fixed-point inversion, which few weights state; see `Defaults`."""
OURS = ("guide", "protect")
"""The settings of what no original has; see `Defaults`. They are off where they are not stated."""
GUIDES = ("auto", "patches")
"""The ways of guiding that a config.json may state; null is none."""


@dataclass(frozen=True)
class _Clip:
    """The part of the section "defaults" that every config.json must state."""

    size: tuple[int, ...]
    frames: int
    fps: int


def read_defaults(config: Mapping[str, object], published: PublishedSettings) -> Defaults:
    """Reads the section "defaults" of a weights folder's config.json.

    The section must state the clips' "size", "frames" and "fps". Every other setting, guidance
    scale and injection group that the section omits gets its value from `published`, the settings
    of the backbone's original code. Raises InputError if a name is unknown or missing, or a value
    has the wrong type.
    """
    values = config.get("defaults")
    stated: dict[str, object] = {}
    if isinstance(values, dict):
        known = {*published, "start", *INVERSION, "solved_from", "noise_range", *OURS}
        stated = {name: value for name, value in values.items() if name in known}
        values = {name: value for name, value in values.items() if name not in known}
    clip = section({"defaults": values}, "defaults", _Clip)
    settings = {**published, **stated}
    where = "section 'defaults'"
    injection = _injection(where, settings["injection"])
    steps = checks.whole(f"{where}: steps", settings["steps"])
    start = checks.whole(f"{where}: start", settings.get("start", 0), 0)
    if "start" not in stated:
        # the original's is among its own number of steps
        start = start * steps // checks.whole("steps", published["steps"])
    inversion = {
        name: checks.positive(f"{where}: {name}", settings[name])
        for name in INVERSION
        if name in settings
    }
    if (least := inversion.get("evaluations", 1)) < 1:
        raise InputError(f"{where}: evaluations: {least} is not 1 or more")
    guide, bounds = stated.get("guide"), settings.get("noise_range") or []
    if not isinstance(bounds, list) or len(bounds) not in (0, 2):
        raise InputError(f"{where}: noise_range: {checks.shown(bounds)} is not two numbers or null")
    return Defaults(
        checks.size(clip.size),
        checks.count("frames", clip.frames),
        checks.count("fps", clip.fps),
        steps=steps,
        guidance=_scales(f"{where}: guidance", settings["guidance"], published["guidance"]),
        negative_prompt=checks.text(f"{where}: negative_prompt", settings["negative_prompt"]),
        injection=injection.over(_injection(where, published["injection"])),
        start=checks.whole(f"{where}: start", start, 0, steps - 1),
        guide=None if guide is None else checks.one_of(f"{where}: guide", guide, GUIDES),
        protect=checks.flag(f"{where}: protect", stated.get("protect", False)),
        solved_from=checks.fraction(f"{where}: solved_from", settings.get("solved_from", 0.0)),
        noise_range=tuple(checks.finite(f"{where}: noise_range", bound) for bound in bounds),
        **inversion,
    )


def read_groups(config: Mapping[str, object]) -> dict[str, frozenset[str]]:
    """Reads the section "injection" of a weights folder's config.json: group -> names of sites.

    Raises InputError if the section is missing or holds anything but lists.
    """
    injection = config.get("injection")
    if not isinstance(injection, dict) or not all(isinstance(x, list) for x in injection.values()):
        raise InputError("there is no section 'injection' of lists of sites")
    return {name: frozenset(sites) for name, sites in injection.items()}


def published_defaults(defaults: Defaults, published: PublishedSettings) -> Defaults:
    """Returns the settings in `published`, with the clip's size, frames and fps of `defaults`.

    published: the settings of the backbone's original code.
    """
    clip = {field.name: getattr(defaults, field.name) for field in fields(_Clip)}
    return read_defaults({"defaults": {**clip, "size": list(defaults.size)}}, published)


def _scales(name: str, scales: object, published: object) -> dict[str, float]:
    assert isinstance(published, Mapping), "published settings have scales by name"
    if not isinstance(scales, Mapping):
        raise InputError(f"{name}: {checks.shown(scales)} is not a list of scales by their names")
    checks.known(name, scales, published, "scale")
    values = {**published, **scales}
    return {scale: checks.finite(f"{name}: {scale}", values[scale]) for scale in published}


def _injection(where: str, fractions: object) -> Injection:
    if not isinstance(fractions, Mapping) or "sites" in fractions:
        raise InputError(
            f"{where}: injection: {checks.shown(fractions)} is not a list of fractions by groups"
        )
    return Injection(**fractions)
