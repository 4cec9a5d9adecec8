"""Where the original's scripts read clips and frames, and what they call their outputs."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from anyv2v.batch.gathering import LONGEST
from anyv2v.batch.omega import Config
from anyv2v.batch.options import text_of
from anyv2v.batch.original_keys import I2VGEN, PLACEHOLDERS, SEINE, Dialect
from anyv2v.batch.paths import is_url
from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.media import picture

FRAME = "%05d.png"
"""Names of the frames in a folder of the original, from 00000.png on."""


def plain(value: Any) -> Any:
    """Returns the number that a text is, as Python writes it, or else the value itself."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def number(where: str, value: Any) -> int | float:
    """Returns the number that a value is, or is the text of; raises InputError otherwise."""
    found = plain(value)
    # not by isfinite alone, which the largest whole numbers are too large for
    if type(found) is not int and not (isinstance(found, float) and isfinite(found)):
        raise InputError(f"{where}: {shown(value)} is not a number")
    return found


def fraction(where: str, value: Any) -> float:
    """Returns a number, brought into 0 to 1: the original cuts a list of the steps by it."""
    return min(max(number(where, value), 0.0), 1.0)


class Place:
    """The paths of one entry."""

    def __init__(self, config: Config, dialect: Dialect, folder: Path):
        """folder: that of the template."""
        self.config, self.dialect, self.where = config, dialect, config.where
        self.unused: list[str] = []
        """Keys that name the clip, and are not used."""
        if dialect is I2VGEN:
            self._name_by_folder()
        folders = (Path.cwd(), folder, folder.parent, folder.parent.parent)
        names = [name for name in (self._file(), self._folder()) if name]
        self.base = next(
            (base for base in folders if any((base / name).exists() for name in names)), Path.cwd()
        )

    def _name_by_folder(self) -> None:
        """Sets the clip's paths by video_dir and video_name, over what the file says of them."""
        folder, name = self._given("video_dir"), self._given("video_name")
        if not (folder and name):
            return
        for key, path in (("video_path", f"{name}.mp4"), ("video_frames_path", name)):
            if self._given(key):
                self.unused.append(key)
            self.config.values[key] = posixpath.join(folder, path)

    def _text(self, key: str) -> str:
        """A value as a text; "" if there is none."""
        value = self.config.get(key)
        return "" if value is None else text_of(f"{self.where}: {key}", str(value))

    def _given(self, key: str) -> str:
        """A value as a text; "" also if it has still to be filled in."""
        text = self._text(key)
        return "" if re.search(PLACEHOLDERS, text) else text

    def _needed(self, key: str) -> str:
        """A value as a text; raises InputError if there is none to be taken as it is."""
        if not (text := self._given(key)):
            told = self._text(key)
            wrong = f"{shown(told)} has still to be filled in" if told else "is missing"
            raise InputError(f"{self.where}: {key}: {wrong}")
        return text

    def _number(self, key: str) -> str:
        """A value as Python writes it."""
        return str(plain(self.config.get(key)))

    def _file(self) -> str:
        return self._given("src_video_path" if self.dialect is SEINE else "video_path")

    def _folder(self) -> str:
        """The folder of the clip's frames."""
        if self.dialect is SEINE:
            return posixpath.splitext(self._file())[0]
        return self._given("video_frames_path")

    def video(self, clip: Mapping[str, Any]) -> str:
        """Returns the path of the clip: a film, or the pattern of the frames in a folder.

        clip: its options. The scripts for I2VGen-XL take the folder if it has enough frames of the
        right size, and else the film; the others take the film if there is one.
        """
        file, folder = self._file(), self._folder()
        if not file and not folder:
            raise InputError(f"{self.where}: names no clip, by video_path or the like")
        film = self._absolute(file) if file else ""
        frames = f"{self._absolute(folder)}/{FRAME}" if folder else ""
        if frames and self._has_frames(Path(frames).parent, clip):
            first = self.dialect is I2VGEN
            return frames if first or not os.path.exists(film) else film
        return film or frames

    def _has_frames(self, folder: Path, clip: Mapping[str, Any]) -> bool:
        try:
            # the first that is missing ends it, however many are asked for
            if not all((folder / (FRAME % i)).is_file() for i in range(int(clip.get("frames", 1)))):
                return False
            with picture.opened(folder / (FRAME % 0)) as image:
                size = f"{image.width}x{image.height}"
            return self.dialect is not I2VGEN or size == clip.get("size", size)
        except (InputError, OSError, ValueError):
            return False

    def frame(self) -> str:
        """Returns the path of the edited first frame."""
        path = self._needed("edited_first_frame_path")
        if self.dialect is I2VGEN:
            path = os.path.join(self._text("data_dir"), path)
        return self._absolute(path)

    def _absolute(self, path: str) -> str:
        return path if is_url(path) else os.path.abspath(self.base / path)

    def output(self) -> str:
        """Returns the path that the original gives the edited clip, below the batch's folder."""
        number, text = self._number, self._text
        if self.dialect is I2VGEN:
            name = f"ddim_init_latents_t_idx_{number('ddim_init_latents_t_idx')}"
            name += f"_nsteps_{number('n_steps')}_cfg_{number('cfg')}_pnpf{number('pnp_f_t')}"
            name += f"_pnps{number('pnp_spatial_attn_t')}_pnpt{number('pnp_temp_attn_t')}"
            return self._below(name, "video.mp4")
        if self.dialect is SEINE:
            name = f"cfg{number('cfg_scale')}_f{number('pnp_f_t')}"
            name += f"_spa{number('pnp_spatial_attn_t')}_cro{number('pnp_cross_attn_t')}"
            name += f"_tmp{number('pnp_temp_attn_t')}_stp{number('n_steps')}"
            name = "" if self.config.get("enable_pnp") is False else name
            prompt = text("prompt").replace(" ", "_")
            stem = PurePosixPath(self._file()).stem
            return self._below(text("model_name"), stem, prompt, name, "video_pnp_fps_8.mp4")
        return self._below(text("editing_prompt"), "video.mp4")

    def reconstruction(self) -> str:
        """Returns the path that the original gives the reconstructed clip."""
        if self.dialect is not SEINE:
            return self._below("ddim_reconstruction.mp4")
        steps = f"steps_{self._number('n_steps')}"
        frames = f"nframes_{self._number('n_frame_to_invert')}"
        stem = PurePosixPath(self._file()).stem
        return self._below(self._text("model_name"), stem, steps, frames, "inverted.mp4")

    def _below(self, *names: str) -> str:
        """A path in output_dir: from data_dir on if it lies there, and without leading .. or /."""
        folder, data = posixpath.normpath(self._needed("output_dir")), self._given("data_dir")
        if data and posixpath.normpath(folder).startswith(f"{posixpath.normpath(data)}/"):
            folder = posixpath.relpath(folder, data)
        parts = [part for part in PurePosixPath(folder).parts if part not in ("/", "..", "//")]
        # no name may be longer, or lead elsewhere
        parts += [
            name.replace("/", "_").encode()[:LONGEST].decode(errors="ignore") for name in names
        ]
        return "/".join(filter(None, parts))
