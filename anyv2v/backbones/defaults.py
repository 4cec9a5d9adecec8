"""The default settings of weights, read from their config.json and completed by the backbone's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from anyv2v import checks
from anyv2v.backbones.base import Defaults, PublishedSettings
from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection


@dataclass(frozen=True)
class _Clip:
    """What the section "defaults" of every config says about the clips."""

    size: tuple[int, ...]
    frames: int
    fps: int


def read_defaults(config: Mapping[str, object], published: PublishedSettings) -> Defaults:
    """Reads the section "defaults" of a config, completed by the backbone's published settings.

    The section must state size, frames and fps of the clips. Any other setting, guidance scale or
    injection group that it leaves out has the value in `published`. Raises InputError for an
    unknown name and for a value of the wrong type.
    """
    values = config.get("defaults")
    stated: dict[str, object] = {}
    if isinstance(values, dict):
        stated = {name: value for name, value in values.items() if name in published}
        values = {name: value for name, value in values.items() if name not in published}
    clip = section({"defaults": values}, "defaults", _Clip)
    settings = {**published, **stated}
    where = "section 'defaults'"
    injection = _injection(where, settings["injection"])
    return Defaults(
        checks.size(clip.size),
        checks.count("frames", clip.frames),
        checks.count("fps", clip.fps),
        steps=checks.whole(f"{where}: steps", settings["steps"]),
        guidance=_scales(f"{where}: guidance", settings["guidance"], published["guidance"]),
        negative_prompt=checks.text(f"{where}: negative_prompt", settings["negative_prompt"]),
        injection=injection.over(_injection(where, published["injection"])),
    )


def published_defaults(defaults: Defaults, published: PublishedSettings) -> Defaults:
    """Returns the original's settings, for clips of the size, frames and fps of `defaults`."""
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
