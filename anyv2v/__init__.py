"""AnyV2V: training-free video editing on I2VGen-XL (arXiv 2403.14468, 2311.04145)."""

# ruff: noqa: F401 - type checkers read the imports, the table below makes them

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyv2v.backbones.i2vgen.defaults import NEGATIVE_PROMPT
    from anyv2v.editor import Defaults, Editor
    from anyv2v.errors import InputError, NotFiniteError
    from anyv2v.frame_editors.run import edit_frame
    from anyv2v.injection.fractions import Injection
    from anyv2v.injection.taps import NO_TAPS, Record, Replay, ShareSource, Taps
    from anyv2v.loading import load
    from anyv2v.media.frames import Video
    from anyv2v.media.image import read_image
    from anyv2v.media.video import read_video, write_video
    from anyv2v.pipeline.request import Edit, EditRequest
    from anyv2v.pipeline.source import Source
    from anyv2v.runtime.progress import Progress

__version__ = "0.1.0"

_HOMES = {
    "anyv2v.backbones.i2vgen.defaults": ("NEGATIVE_PROMPT",),
    "anyv2v.pipeline.request": ("Edit", "EditRequest"),
    "anyv2v.editor": ("Defaults", "Editor"),
    "anyv2v.frame_editors.run": ("edit_frame",),
    "anyv2v.errors": ("InputError", "NotFiniteError"),
    "anyv2v.injection.fractions": ("Injection",),
    "anyv2v.injection.taps": ("NO_TAPS", "Record", "Replay", "ShareSource", "Taps"),
    "anyv2v.loading": ("load",),
    "anyv2v.media.frames": ("Video",),
    "anyv2v.media.image": ("read_image",),
    "anyv2v.media.video": ("read_video", "write_video"),
    "anyv2v.runtime.progress": ("Progress",),
    "anyv2v.pipeline.source": ("Source",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str):
    # imported when it is first asked for: the command line is ready for Ctrl-C before PyTorch is
    # loaded, and small parts of the package do without it
    if name not in _HOME:
        raise AttributeError(f"module 'anyv2v' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_HOME[name]), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
