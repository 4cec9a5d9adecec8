"""What weights work best with, read from their config.json and their backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from anyv2v import checks
from anyv2v.backbones.base import Defaults
from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection

Own = Mapping[str, object]
"""What a backbone's weights work best with where their config says nothing else: "steps",
"guidance" (name of each scale -> value, the text's first), "negative_prompt" and "injection" (group
-> fraction). These are the original's settings, which `--paper` asks for."""


@dataclass(frozen=True)
class _Clip:
    """What every config says of the clips."""

    size: tuple[int, ...]
    frames: int
    fps: int


def read_defaults(config: Mapping[str, object], own: Own) -> Defaults:
    """Section "defaults" of a config: the clips' size, frames and fps, and as much else as it says.

    Of a scale of guidance or a group that it leaves out, `own` says the value too. InputError for
    what is unknown or of a wrong type.
    """
    given = config.get("defaults")
    stated = {k: v for k, v in given.items() if k in own} if isinstance(given, dict) else {}
    rest = {k: v for k, v in given.items() if k not in own} if isinstance(given, dict) else given
    clip = section({"defaults": rest}, "defaults", _Clip)
    values = {**own, **stated}
    where = "section 'defaults'"
    return Defaults(
        checks.size(clip.size),
        checks.count("frames", clip.frames),
        checks.count("fps", clip.fps),
        steps=checks.whole(f"{where}: steps", values["steps"]),
        guidance=_scales(f"{where}: guidance", values["guidance"], own["guidance"]),
        negative_prompt=checks.text(f"{where}: negative_prompt", values["negative_prompt"]),
        injection=_injection(where, values["injection"]).over(_injection(where, own["injection"])),
    )


def original(defaults: Defaults, own: Own) -> Defaults:
    """The original's settings, on clips of the weights' own size."""
    clip = {field.name: getattr(defaults, field.name) for field in fields(_Clip)}
    return read_defaults({"defaults": {**clip, "size": list(defaults.size)}}, own)


def _scales(name: str, given: object, own: object) -> dict[str, float]:
    assert isinstance(own, Mapping)
    if not isinstance(given, Mapping):
        raise InputError(f"{name}: {checks.shown(given)} is not a list of scales by their names")
    checks.known(name, given, own, "scale")
    return {scale: checks.finite(f"{name}: {scale}", {**own, **given}[scale]) for scale in own}


def _injection(where: str, given: object) -> Injection:
    if not isinstance(given, Mapping) or "sites" in given:
        raise InputError(
            f"{where}: injection: {checks.shown(given)} is not a list of fractions by groups"
        )
    return Injection(**given)
