"""Reads configuration files of the original, a template and a group file, into `Task`s.

What each key means is in `original_keys`. Edits are those of `anyv2v edit --paper`, with the values
of the files in place of the paper's: the clip's first frames, each of them, stretched to the size,
inverted by DDIM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anyv2v import checks
from anyv2v.batch import original_paths as paths
from anyv2v.batch.gathering import Gathering
from anyv2v.batch.jobs import read_text
from anyv2v.batch.omega import Config, merge
from anyv2v.batch.options import Check
from anyv2v.batch.original_keys import PLACEHOLDERS, SEINE, Dialect, Key, dialect_of
from anyv2v.batch.tasks import Task
from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.runtime.plain_yaml import parse

READING = {"paper": True, "fit": "stretch", "sample_fps": "source"}
"""Options of every clip: the original takes its first frames, and stretches them."""
EDITING = ("editing_prompt", "prompt", "edited_first_frame_path")
"""Keys by which a file asks for an edit; others invert clips."""
BY_NAME = {"scale": "guidance", "group": "inject", "option": "option"}
"""Kind of a key -> the option whose values have names."""


def read_original(
    template: str | os.PathLike,
    group: str | os.PathLike | None = None,
    check: Check | None = None,
) -> list[Task]:
    """Reads the original's configuration: a template (YAML) and a group file (JSON).

    Each entry of the group whose "active" is not false is merged over the template; without a group
    the template is the only entry. The template may be that of an edit, of an inversion, or both in
    one; an inversion by itself gives something to do if it asks for a reconstruction. For which
    backbone the files are is told by their keys, and by `Task.backbone`. Relative paths are those
    of the folder that the original's scripts run in: the current one or, if the clip is not there,
    the first of the template's folder and the two above it where it is. Outputs have the names that
    the original gives them, below its data_dir. check: checks the values of options.

    Raises InputError for files that cannot be read, unknown keys, values that refer to nothing, and
    for what is asked for and does not exist here. Keys without effect are told in the notices.
    """
    template = os.fspath(template)
    gathering = Gathering(check)
    for where, values in _entries(template, group):
        config = Config(where, values)
        dialect = dialect_of(set(config.keys()))
        _Entry(config, dialect, template).add_to(gathering)
    if not (tasks := gathering.tasks()):
        raise InputError(f"{group or template}: holds no edits, and no reconstructions")
    return tasks


def _entries(template: str, group: str | os.PathLike | None) -> Iterator[tuple[str, Mapping]]:
    """Yields where each entry is told, and its values over those of the template."""
    below = _parsed(template, Mapping, "a configuration such as `n_steps: 50`")
    if group is None:
        yield template, below
        return
    entries = _parsed(os.fspath(group), list, "a list of entries")
    for i, entry in enumerate(entries, 1):
        where = f"{group}: entry {i}"
        checks.kind(where, entry, Mapping, "an entry with keys such as active")
        if entry.get("active") not in (False,):
            yield where, merge(below, entry)


def _parsed(path: str, kind: type, right: str) -> Any:
    return checks.kind(path, parse(path, read_text(path).lstrip(), aliases=False), kind, right)


class _Options:
    """Options, and the keys that gave them."""

    def __init__(self, where: str, values: Mapping[str, Any] | None = None):
        self.where, self.values, self.keys = where, dict(values or {}), {}

    def set(self, key: str, option: str, value: Any, name: str = "") -> None:
        """Sets an option, or the value of one name in it. Raises InputError if it has another."""
        told = f"{option} {name}"
        if told in self.keys and not _same(self.keys[told][1], value):
            other, before = self.keys[told]
            raise InputError(
                f"{self.where}: {key} is {shown(value)} and {other} is {shown(before)}; here an "
                "inversion and all that is made of it have them in common"
            )
        self.keys[told] = key, value
        if not name:
            self.values[option] = value
        elif option == "option":
            self.values[option] = [*self.values.get(option, ()), f"{name}={value}"]
            self.values[option] = list(dict.fromkeys(self.values[option]))
        else:
            self.values[option] = {**self.values.get(option, {}), name: value}


def _same(one: Any, other: Any) -> bool:
    return str(paths.plain(one)) == str(paths.plain(other))


class _Entry:
    """One entry of a group, merged over the template."""

    def __init__(self, config: Config, dialect: Dialect, template: str):
        """template: path of the template."""
        self.config, self.dialect, self.where = config, dialect, config.where
        self.template = template
        self._check_keys()
        self.place = paths.Place(config, dialect, Path(os.path.abspath(template)).parent)
        self.clip = _Options(self.where, READING)

    def add_to(self, gathering: Gathering) -> None:
        """Adds the edit and the reconstruction that the entry asks for."""
        self._fill("clip", self.clip)
        edits = any(key in self.config for key in EDITING)
        reconstructs = self._reconstructs(edits)
        if not (edits or reconstructs):
            return
        video, asked = self.place.video(self.clip.values), []
        if edits:
            asked.append(("edit", self._edit(), self.place.output()))
        if reconstructs:
            asked.append(("reconstruct", self._reconstruction(), self.place.reconstruction()))
        notices = self._notices()
        for command, options, output in asked:
            options = {**self.clip.values, **options}
            backbone = self.dialect.name
            gathering.add(self.where, video, options, output, command, notices, backbone)

    def _check_keys(self) -> None:
        known = self.dialect.keys
        sections = {key.partition(".")[0] for key in known if "." in key}
        # users have keys of their own that others refer to
        own = self.config.used() - sections
        for key in self.config.keys():
            if key not in known and key.partition(".")[0] not in own:
                checks.known(self.where, [key], known, f"key for {self.dialect.title}")

    def _notices(self) -> list[str]:
        """Which keys ask for something and have no effect."""
        idle = [key for key, meaning in self.dialect.keys.items() if meaning.kind == "idle"]
        idle = [key for key in idle if self.config.get(key)] + self.place.unused
        return [f"{self.template}: of no effect here: {', '.join(idle)}"] if idle else []

    def _edit(self) -> dict[str, Any]:
        options = _Options(self.where)
        self._fill("edit", options)
        get = self.config.get
        if get("enable_pnp") is False:
            options.values |= {"conv": 0, "spatial": 0, "temporal": 0, "inject": {"cross": 0}}
        if get("init_with_ddim_inversion") is False:
            options.values["random_ratio"] = 1.0
        return {**options.values, "frame": self.place.frame()}

    def _reconstructs(self, edits: bool) -> bool:
        """Whether the entry asks for a reconstruction of the clip.

        Only the files for I2VGen-XL can say that they do not: the others' inversions end with one.
        """
        if self.dialect is SEINE:
            return not edits
        asked = self.config.get("recon_config.enable_recon")
        default = self.dialect.name != "i2vgen" and "recon_config" in self.config
        where = f"{self.where}: recon_config.enable_recon"
        return default if asked is None else checks.flag(where, asked)

    def _reconstruction(self) -> dict[str, Any]:
        options = _Options(self.where, {"negative_prompt": "", "prompt": ""})
        if self.dialect is SEINE:
            # as many steps as the inversion has, without guidance
            steps = self.config.get("n_steps")
            self.clip.set("n_steps", "inversion_steps", steps)
            self.clip.set("sample_method", "option", "ddim", "sampler")
            prompt = self.config.get("inversion_prompt") or ""
            return options.values | {"steps": steps, "guidance": 1.0, "prompt": prompt}
        self._fill("reconstructed clip", self.clip)
        self._fill("reconstruction", options)
        return options.values

    def _fill(self, of: str, options: _Options) -> None:
        """Sets the options of a kind from the keys that are there."""
        for key, meaning in self.dialect.keys.items():
            if meaning.of == of and key in self.config:
                self._take(key, meaning, self.config.get(key), options)

    def _take(self, key: str, meaning: Key, value: Any, options: _Options) -> None:
        where, kind = f"{self.where}: {key}", meaning.kind
        if kind in ("path", "idle"):
            return
        if isinstance(value, str) and re.search(PLACEHOLDERS, value):
            raise InputError(f"{where}: {shown(value)} has still to be filled in")
        if kind == "off":
            if checks.flag(where, value):
                raise InputError(f"{where} is true, and there is no such inversion here")
        elif kind == "unguided":
            if paths.number(where, value) > 1:
                raise InputError(f"{where}: {value}: an inversion has no guidance here; 1 is none")
        elif kind == "fixed":
            if not _same(value, meaning.to):
                told = shown(paths.plain(value))
                raise InputError(f"{where}: {told} is not {meaning.to}, as the weights are")
        elif kind in BY_NAME:
            if kind != "option":
                value = {"group": paths.fraction, "scale": paths.number}[kind](where, value)
            options.set(key, BY_NAME[kind], value, meaning.to)
        else:
            options.set(key, meaning.to, _converted(where, kind, value))


def _converted(where: str, kind: str, value: Any) -> Any:
    if kind == "number":
        return paths.number(where, value)
    if kind == "fraction":
        return paths.fraction(where, value)
    if kind in ("size", "turned size"):
        if not (isinstance(value, list) and len(value) == 2):
            raise InputError(f"{where}: {shown(value)} is not a list of two sides")
        first, second = (paths.number(where, side) for side in value)
        return f"{second}x{first}" if kind == "turned size" else f"{first}x{second}"
    return "" if value is None else value
