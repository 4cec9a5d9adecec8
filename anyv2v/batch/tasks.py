"""What a batch is made of: clips, each with the edits that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskEdit:
    """One edit of a clip."""

    output: str
    """Path of the output below the folder of the batch, such as "ballet/van-gogh.mp4"."""
    settings: Mapping[str, Any]
    """Option of `anyv2v edit` (with _ for -) -> its value, as a --config file has it: frame, prompt
    and whatever else this edit has for itself."""
    command: str = "edit"
    """The command that makes the output: "edit" or "reconstruct"."""


@dataclass(frozen=True)
class Task:
    """A clip with its edits: the unit of a batch, because a clip is inverted once for all of them.

    Paths are absolute, or URLs that fsspec reads.
    """

    video: str
    """Path of the clip, or of its inversion that `anyv2v invert` wrote."""
    edits: tuple[TaskEdit, ...]
    """The edits, at least one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of `anyv2v edit` that all edits share unless they have their own."""
    notices: tuple[str, ...] = ()
    """Lines to be shown to the user of what was asked for and has no effect."""
    backbone: str | None = None
    """Name of the backbone (`Editor.backbone.name`) that the settings are for; None: for any."""

    def options(self, edit: TaskEdit) -> dict[str, Any]:
        """Returns option -> value of one of the edits, its own before the shared ones."""
        return {**self.settings, **edit.settings, "video": self.video}
