"""AnyV2V: training-free video editing on I2VGen-XL (arXiv 2403.14468, 2311.04145)."""

from anyv2v.edit import NEGATIVE_PROMPT, Edit, EditRequest
from anyv2v.editor import Defaults, Editor
from anyv2v.errors import InputError
from anyv2v.injection.plan import Injection
from anyv2v.injection.taps import NO_TAPS, Record, Replay, ShareSource, Taps
from anyv2v.loading import load
from anyv2v.media.clip import Video
from anyv2v.source import Source

__version__ = "0.1.0"


def __getattr__(name: str):
    # only who touches files needs PyAV
    if name in ("read_video", "write_video"):
        from anyv2v.media import video

        return getattr(video, name)
    if name == "edit_frame":
        from anyv2v.editors import run

        return run.edit_frame
    raise AttributeError(f"module 'anyv2v' has no attribute {name!r}")


__all__ = [
    "NEGATIVE_PROMPT",
    "NO_TAPS",
    "Defaults",
    "Edit",
    "EditRequest",
    "Editor",
    "InputError",
    "Injection",
    "Record",
    "Replay",
    "ShareSource",
    "Source",
    "Taps",
    "Video",
    "edit_frame",
    "load",
    "read_video",
    "write_video",
]
