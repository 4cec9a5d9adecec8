"""AnyV2V: training-free video editing by image-to-video models (arXiv 2403.14468)."""

# ruff: noqa: F401 - the imports are for type checkers; at run time `__getattr__` makes them

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyv2v.backbones.i2vgen.defaults import NEGATIVE_PROMPT
    from anyv2v.diffusion.interpolation import interpolate
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
    from anyv2v.protection.protect import protect
    from anyv2v.runtime.progress import Progress

__version__ = "0.1.0"

_MODULES = {
    "anyv2v.backbones.i2vgen.defaults": ("NEGATIVE_PROMPT",),
    "anyv2v.diffusion.interpolation": ("interpolate",),
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
    "anyv2v.protection.protect": ("protect",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# written out, because type checkers read it
__all__ = [
    "NEGATIVE_PROMPT",
    "NO_TAPS",
    "Defaults",
    "Edit",
    "EditRequest",
    "Editor",
    "Injection",
    "InputError",
    "NotFiniteError",
    "Progress",
    "Record",
    "Replay",
    "ShareSource",
    "Source",
    "Taps",
    "Video",
    "edit_frame",
    "interpolate",
    "load",
    "protect",
    "read_image",
    "read_video",
    "write_video",
]


def __getattr__(name: str):
    # imported on first use, so that the command line handles Ctrl-C before PyTorch is loaded, and
    # small parts of the package work without it
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'anyv2v' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_MODULE_OF[name]), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
