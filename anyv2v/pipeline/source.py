"""An inverted video: what every edit of it starts from."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyv2v import checks
from anyv2v.config import section
from anyv2v.diffusion.inversion import Inverted
from anyv2v.diffusion.schedule import Level
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import NO_FEATURES, FeatureCache
from anyv2v.media.frames import Video, describe_clip
from anyv2v.pipeline.source_upgrade import upgraded
from anyv2v.runtime.atomic_files import atomic_path, check_output

FORMAT = "anyv2v source 3"
UNFINISHED = "anyv2v unfinished inversion 2"
BEFORE = {FORMAT: "anyv2v source 2", UNFINISHED: "anyv2v unfinished inversion 1"}
"""Format -> the one before it, which is read too: see `upgraded`."""
SUFFIX = ".safetensors"
SAVE_EVERY = 30.0
"""Seconds between two states of an inversion on disk."""
FEATURES = (torch.float32, torch.float16, torch.bfloat16)
"""What a network may have been run in."""
# InputError and what a bad number or bad JSON raises are ValueErrors; JSON may be nested too deeply
UNREADABLE = (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError)
UNREADABLE += (ArithmeticError, RecursionError)
LARGEST = torch.finfo(torch.float16).max
"""No latents and features are larger: the reference computes them in float16."""


@dataclass(frozen=True)
class InversionSettings:
    """How a video was inverted, and what the network was told of it."""

    method: str
    steps: int
    prompt: str
    negative_prompt: str
    guidance: Mapping[str, float]
    """Name of a guidance scale of the backbone -> its value."""
    options: Mapping[str, object]
    """What the backbone alone has: {"fps": 8}. Numbers and texts."""
    tolerance: float
    """Of the fixed point; plain DDIM has none."""


@dataclass(frozen=True, repr=False)
class Source:
    video: Video
    trajectory: Trajectory
    """Latents (1, c, f', h', w') float32: the clean ones, and those of the steps that were kept."""
    evaluations: int
    """How often the inversion called the network, counted in single branches."""
    settings: InversionSettings
    fingerprint: str
    """Of the weights that the video was inverted with."""
    residuals: Mapping[int, float] = field(default_factory=dict)
    """Index of a step -> by how much of themselves its latents miss their fixed point."""
    features: FeatureCache = NO_FEATURES
    """What was recorded, by index of the step. All indices count in the inversion's run."""

    def __repr__(self) -> str:
        made, video = self.settings, describe_clip(self.video.frames, self.video.fps)
        return (
            f"Source({video}, {made.method} in {made.steps} steps, "
            f"{self.evaluations} evaluations, weights {self.fingerprint[:12] or 'unknown'})"
        )

    def at(self, index: int) -> Tensor:
        """The latents (1, c, f', h', w') float32 at step `index` of the inversion, 0 the noisiest.

        InputError if they were not kept.
        """
        return self.trajectory.at(index)

    def save(self, path: str | os.PathLike, force: bool = True, features: bool = False) -> None:
        """Writes one safetensors file; whole or not at all. With `features`, those too."""
        path, force = checks.path("path", path), checks.flag("force", force)
        features = checks.flag("features", features)
        check_output(path, force, (SUFFIX,))
        facts = {
            "format": FORMAT,
            "fps": self.video.fps,
            "evaluations": self.evaluations,
            "levels": [[level.t, level.alpha, level.sigma] for level in self.trajectory.levels],
            "residuals": self.residuals,
            "settings": asdict(self.settings),
            "fingerprint": self.fingerprint,
        }
        tensors = {f"latents.{index}": x for index, x in self.trajectory.kept.items()}
        tensors["clean"] = self.trajectory.clean
        tensors["frames"] = torch.from_numpy(self.video.frames.copy())
        if features:
            self.features.settle()
            for index, kept in self.features.kept.items():
                for site, parts in kept.items():
                    for i, x in enumerate(parts):
                        tensors[f"features.{index}.{site}.{i}"] = x
        _write(path, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Source:
        """InputError if the file is not a whole source that `save` wrote."""
        path = checks.path("path", path)
        with _reading(path, FORMAT, "a source written by `anyv2v invert`") as (facts, tensors):
            settings = section(facts, "settings", InversionSettings)
            features = _features(tensors)
            source = cls(
                video=Video.owning(tensors.pop("frames").numpy(), facts["fps"]),
                trajectory=Trajectory(
                    tensors["clean"], _latents(tensors), _levels(facts["levels"], settings.steps)
                ),
                evaluations=int(facts["evaluations"]),
                settings=settings,
                fingerprint=str(facts["fingerprint"]),
                residuals={int(index): float(r) for index, r in facts["residuals"].items()},
                features=FeatureCache(dict.fromkeys(features, "host"), features),
            )
            source._check()
        return source

    @staticmethod
    def frame_size(path: str | os.PathLike) -> tuple[int, int]:
        """(width, height) of the frames in a saved source, from the file's header alone."""
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        try:
            with _opened(path) as file:
                _, height, width, _ = file.get_slice("frames").get_shape()
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as a source: {error}") from error
        return width, height

    def _check(self) -> None:
        clean, kept = self.trajectory.clean, self.trajectory.kept
        if clean.ndim != 5 or clean.shape[0] != 1 or not clean.numel():
            raise InputError(f"latents are {tuple(clean.shape)}, not (1, c, f, h, w)")
        _check_values("clean latents", clean, torch.float32)
        for index, x in kept.items():
            _check_values(f"latents of step {index}", x, torch.float32)
        for index, sites in self.features.kept.items():
            checks.whole("features of step", index, 0, self.settings.steps - 1)
            for site, parts in sites.items():
                for x in parts:
                    _check_values(f"features of step {index}, {site}", x, *FEATURES)


class Unfinished:
    """The file in which an inversion keeps how far it is, replaced whole every `SAVE_EVERY`."""

    def __init__(self, path: str | os.PathLike, resume: bool = True):
        """`resume`: go on from what is there, else begin again."""
        self.path, self._resume = checks.path("path", path), resume
        self._saved = time.monotonic()

    def load(
        self, begin: Inverted, video: Video, settings: InversionSettings, fingerprint: str
    ) -> Inverted:
        """What was kept of this very inversion, else `begin`; InputError if it is of another."""
        if not (self._resume and self.path.exists()):
            return begin
        with _reading(self.path, UNFINISHED, "an unfinished inversion") as (facts, tensors):
            same = facts["settings"] == asdict(settings) and facts["fingerprint"] == fingerprint
            if not (same and np.array_equal(tensors.pop("frames").numpy(), video.frames)):
                raise InputError("is of another video, other settings or weights; remove it")
            device = begin.latents.device
            tensors = {name: x.to(device) for name, x in tensors.items()}
            slopes = [tensors[name] for name in ("slopes.0", "slopes.1") if name in tensors]
            state = Inverted(
                clean=tensors["clean"],
                latents=tensors["next"],
                kept=_latents(tensors),
                evaluations=checks.whole("evaluations", facts["evaluations"]),
                residuals={int(index): float(r) for index, r in facts["residuals"].items()},
                slopes=tuple(slopes),
            )
            # the noise levels need no check: they are of these settings and weights
            done = [*range(settings.steps - 1, -1, -1)][: state.steps]
            if not done or list(state.kept) != done:
                raise InputError(f"holds steps {list(state.kept)}, not the first of an inversion")
            for x in (state.clean, *state.kept.values(), state.latents, *slopes):
                if x.shape != begin.latents.shape:
                    wanted = tuple(begin.latents.shape)
                    raise InputError(f"latents are {tuple(x.shape)}, not {wanted}")
                _check_values("latents", x, torch.float32)
        return state

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= SAVE_EVERY

    def save(
        self, state: Inverted, video: Video, settings: InversionSettings, fingerprint: str
    ) -> None:
        facts = {
            "format": UNFINISHED,
            "evaluations": state.evaluations,
            "residuals": state.residuals,
            "settings": asdict(settings),
            "fingerprint": fingerprint,
        }
        tensors = {f"latents.{index}": x for index, x in state.kept.items()}
        tensors |= {f"slopes.{i}": x for i, x in enumerate(state.slopes)}
        # safetensors refuses two names for one tensor
        tensors |= {"clean": state.clean, "next": state.latents.clone()}
        tensors["frames"] = torch.from_numpy(video.frames.copy())
        _write(self.path, facts, tensors)
        self._saved = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _check_values(what: str, x: Tensor, *dtypes: torch.dtype) -> None:
    if x.dtype not in dtypes:
        raise InputError(f"{what} are {x.dtype}, not {' or '.join(map(str, dtypes))}")
    # not a number either
    if x.numel() and not x.abs().max() <= LARGEST:
        raise InputError(f"{what} are not finite, or beyond {LARGEST:g}")


def _latents(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """By index of the step, the least noisy first."""
    named = {name.removeprefix("latents."): x for name, x in tensors.items() if "latents." in name}
    return {index: named[str(index)] for index in sorted(map(int, named), reverse=True)}


def _features(tensors: dict[str, Tensor]) -> dict[int, dict[str, tuple[Tensor, ...]]]:
    """Those among the tensors, which lose them: index of the step -> site -> what was kept."""
    found: dict[int, dict[str, dict[int, Tensor]]] = {}
    for name in [name for name in tensors if name.startswith("features.")]:
        _, index, rest = name.split(".", 2)
        site, i = rest.rsplit(".", 1)
        found.setdefault(int(index), {}).setdefault(site, {})[int(i)] = tensors.pop(name)
    return {
        index: {site: tuple(parts[i] for i in range(len(parts))) for site, parts in sites.items()}
        for index, sites in found.items()
    }


def _levels(rows: Sequence[Sequence[float]], steps: int) -> list[Level]:
    """The levels of a run of so many steps, from [t, alpha, sigma] of each."""
    if not isinstance(rows, list) or len(rows) != steps + 1:
        raise InputError(f"levels: there are not {steps + 1} of them, for {steps} steps")
    for row in rows:
        numbers = isinstance(row, list) and all(type(x) in (int, float) for x in row)
        # not a number either
        if not (numbers and len(row) == 3 and all(abs(x) <= sys.float_info.max for x in row)):
            raise InputError(f"levels: {checks.shown(row)} are not three numbers, t, alpha, sigma")
        if min(row[1:]) < 0:
            raise InputError(f"levels: alpha or sigma of {checks.shown(row)} is below 0")
    return [Level(index, *row) for index, row in enumerate(rows)]


def _write(path: str | os.PathLike, facts: dict, tensors: Mapping[str, Tensor]) -> None:
    with atomic_path(path) as temporary:
        # one key: safetensors writes several in no fixed order
        save_file(
            {name: x.contiguous().cpu() for name, x in tensors.items()},
            temporary,
            metadata={"source": json.dumps(facts)},
        )


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[safe_open]:
    """A safetensors file, which that library opens by names in UTF-8 only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as stream, safe_open(f"/dev/fd/{stream.fileno()}", "pt") as file:
            yield file
    else:
        with safe_open(path, "pt") as file:
            yield file


@contextmanager
def _reading(
    path: str | os.PathLike, wanted: str, what: str
) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """Facts and tensors of a file; whatever goes wrong with them is an InputError that names it."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    try:
        with _opened(path) as file:
            facts = json.loads((file.metadata() or {}).get("source", "{}"))
            if facts.get("format") not in (wanted, BEFORE[wanted]):
                raise InputError(f"is not {what}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if facts["format"] != wanted:
            facts, tensors = upgraded(facts, tensors)
        yield facts, tensors
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as {what}: {error}") from error
