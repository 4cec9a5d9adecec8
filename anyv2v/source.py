"""An inverted video: what every edit of it starts from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
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
from anyv2v.diffusion.schedule import Schedule
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.files import atomic_path, check_output
from anyv2v.injection.features import NO_FEATURES, Features
from anyv2v.media.clip import Video, clip

FORMAT = "anyv2v source 2"
UNFINISHED = "anyv2v unfinished inversion 1"
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
    guidance: float
    fps: int
    tolerance: float
    """Of the fixed point; plain DDIM has none."""


@dataclass(frozen=True, repr=False)
class Source:
    video: Video
    trajectory: Trajectory
    """timestep -> latents (1, c, f, h/s, w/s) float32; the clean ones under 0."""
    evaluations: int
    """How often the inversion called the UNet, counted in single branches."""
    settings: InversionSettings
    fingerprint: str
    """Of the weights that the video was inverted with."""
    residuals: Mapping[int, float] = field(default_factory=dict)
    """timestep -> by how much of themselves the latents miss their fixed point."""
    features: Features = NO_FEATURES
    """What was recorded on the way."""

    def __repr__(self) -> str:
        made, video = self.settings, clip(self.video.frames, self.video.fps)
        return (
            f"Source({video}, {made.method} in {made.steps} steps, "
            f"{self.evaluations} evaluations, weights {self.fingerprint[:12] or 'unknown'})"
        )

    def save(self, path: str | os.PathLike, force: bool = True, features: bool = False) -> None:
        """Writes one safetensors file; whole or not at all. With `features`, those too."""
        path, force = checks.path("path", path), checks.flag("force", force)
        features = checks.flag("features", features)
        check_output(path, force, (SUFFIX,))
        facts = {
            "format": FORMAT,
            "fps": self.video.fps,
            "evaluations": self.evaluations,
            "residuals": self.residuals,
            "settings": asdict(self.settings),
            "fingerprint": self.fingerprint,
        }
        tensors = {f"latents.{t}": x for t, x in self.trajectory.items()}
        tensors["frames"] = torch.from_numpy(self.video.frames.copy())
        if features:
            self.features.settle()
            for t, kept in self.features.kept.items():
                for site, parts in kept.items():
                    for i, x in enumerate(parts):
                        tensors[f"features.{t}.{site}.{i}"] = x
        _write(path, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Source:
        """InputError if the file is not a whole source that `save` wrote."""
        path = checks.path("path", path)
        with _reading(path, FORMAT, "a source written by `anyv2v invert`") as (facts, tensors):
            features: dict[int, dict[str, dict[int, Tensor]]] = {}
            for name in [name for name in tensors if name.startswith("features.")]:
                _, t, rest = name.split(".", 2)
                site, i = rest.rsplit(".", 1)
                features.setdefault(int(t), {}).setdefault(site, {})[int(i)] = tensors.pop(name)
            kept = {
                t: {site: tuple(parts[i] for i in range(len(parts))) for site, parts in at.items()}
                for t, at in features.items()
            }
            source = cls(
                video=Video.owning(tensors.pop("frames").numpy(), facts["fps"]),
                trajectory=Trajectory(_latents(tensors)),
                evaluations=int(facts["evaluations"]),
                settings=section(facts, "settings", InversionSettings),
                fingerprint=str(facts["fingerprint"]),
                residuals={int(t): float(r) for t, r in facts["residuals"].items()},
                features=Features(dict.fromkeys(kept, "host"), kept),
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
        frames = len(self.video.frames)
        for t, x in self.trajectory.items():
            if x.ndim != 5 or x.shape[0] != 1 or x.shape[2] != frames:
                raise InputError(f"latents of {t} are {tuple(x.shape)} for {frames} frames")
            _check_values(f"latents of timestep {t}", x, torch.float32)
        for t, kept in self.features.kept.items():
            for site, parts in kept.items():
                for x in parts:
                    _check_values(f"features of timestep {t}, {site}", x, *FEATURES)


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
                kept=_latents(tensors),
                latents=tensors["next"],
                evaluations=checks.whole("evaluations", facts["evaluations"]),
                residuals={int(t): float(r) for t, r in facts["residuals"].items()},
                slopes=tuple(slopes),
            )
            visited = [0, *sorted(Schedule().timesteps(settings.steps))]
            if list(state.kept) != visited[: len(state.kept)]:
                raise InputError(f"holds timesteps {list(state.kept)}, not the first of {visited}")
            for x in (*state.kept.values(), state.latents, *slopes):
                if x.shape != begin.latents.shape:
                    raise InputError(f"latents are {tuple(x.shape)} for {len(video.frames)} frames")
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
        tensors = {f"latents.{t}": x for t, x in state.kept.items()}
        tensors |= {f"slopes.{i}": x for i, x in enumerate(state.slopes)}
        # safetensors refuses two names for one tensor
        tensors |= {"next": state.latents.clone(), "frames": torch.from_numpy(video.frames.copy())}
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
    """By timestep, the least noisy first."""
    named = {name.removeprefix("latents."): x for name, x in tensors.items() if "latents." in name}
    return {t: named[str(t)] for t in sorted(map(int, named))}


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
            if facts.get("format") != wanted:
                raise InputError(f"is not {what}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        yield facts, tensors
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as {what}: {error}") from error
