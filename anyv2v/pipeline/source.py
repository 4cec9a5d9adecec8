"""`Source`, an inverted video that edits start from, and the files of sources and inversions."""

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
from anyv2v.diffusion.inversion import InversionState
from anyv2v.diffusion.schedule import Level
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import NO_FEATURES, FeatureCache
from anyv2v.injection.taps import Features
from anyv2v.media.frames import Video, describe_clip
from anyv2v.pipeline.source_upgrade import upgraded
from anyv2v.runtime.atomic_files import atomic_path, check_output

FORMAT = "anyv2v source 3"
"""The name of the file format of a saved source, with its version."""
UNFINISHED = "anyv2v unfinished inversion 2"
"""The name of the file format of an unfinished inversion, with its version."""
BEFORE = {FORMAT: "anyv2v source 2", UNFINISHED: "anyv2v unfinished inversion 1"}
"""Name of a file format -> that of its previous version, which is read too, see `upgraded`."""
SUFFIX = ".safetensors"
"""The end of the name of a saved source."""
SAVE_EVERY = 30.0
"""Seconds after which a running inversion replaces its state on disk."""
FEATURES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that features in a file may have: those that a network runs in."""
# InputError and what a bad number or bad JSON raises are ValueErrors; JSON may be nested too deeply
UNREADABLE = (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError)
UNREADABLE += (ArithmeticError, RecursionError)
LARGEST = torch.finfo(torch.float16).max
"""The largest absolute value of latents and features in a file: that of float16, in which the
original computes them."""


@dataclass(frozen=True)
class InversionSettings:
    """How a video was inverted, and what the network was given besides its latents."""

    method: str
    """The inversion method: "fixed-point", or "ddim" for plain DDIM."""
    steps: int
    """Number of steps of the whole inversion."""
    prompt: str
    """The description of the source video; "" for none."""
    negative_prompt: str
    """The prompt that guidance led away from, if there was guidance."""
    guidance: Mapping[str, float]
    """Name of each guidance scale of the backbone -> its value; 1 is no guidance."""
    options: Mapping[str, object]
    """Name of each option of the backbone -> its value, a number or a string: {"fps": 8}."""
    tolerance: float
    """The relative residual down to which "fixed-point" iterated; "ddim" ignores it."""


@dataclass(frozen=True, repr=False)
class Source:
    """An inverted video: its frames, its latents at the levels of the inversion, and features.

    Steps are counted by their index in the inversion's run, 0 the noisiest. After `Editor.invert`
    the parts are kept

    video, residuals    in host memory
    trajectory          on the editor's device: float32 latents, 1 MB per level for 16 frames of
                        512x512; of all levels, or with `plan=` of those that the run reads
    features            only with `recording=`: per step, on the device or in pinned host memory,
                        as `CachePlan.placement` says. For the default edit of I2VGen-XL, 16
                        frames of 512x512 in float16: 273 MB for each of the steps 0-9, 52 MB for
                        each of 10-24, 3.5 GB in all

    A source holds no network and no conditions, and frees nothing of its own as long as it exists.
    A source that was loaded from a file is in host memory as a whole; edits copy what they read.
    """

    video: Video
    """The frames that were inverted, at the size of the clip, and their rate."""
    trajectory: Trajectory
    """The clean latents, and those of the stored levels, (1, c, f', h', w') float32."""
    evaluations: int
    """Number of evaluations of the network in the inversion, each branch of a batch counted."""
    settings: InversionSettings
    """How the video was inverted."""
    fingerprint: str
    """Fingerprint of the weights that the video was inverted with; "" if it is unknown."""
    residuals: Mapping[int, float] = field(default_factory=dict)
    """Index of a step -> relative residual of its fixed point, large in those of `offsets`, which
    were not solved; empty for plain DDIM."""
    features: FeatureCache = NO_FEATURES
    """The recorded features, by index of a step and site; empty if none were recorded."""
    offsets: Mapping[int, Tensor] = field(default_factory=dict)
    """Index of a step that was not solved, because the noise of its latents was drawn -> what
    `Editor.reconstruct` adds after this step, to come where the inversion came from."""
    round_trip: float | None = None
    """Relative error of the latents after `Editor.reconstruct`; None if it was not measured."""

    def __repr__(self) -> str:
        made, video = self.settings, describe_clip(self.video.frames, self.video.fps)
        return (
            f"Source({video}, {made.method} in {made.steps} steps, "
            f"{self.evaluations} evaluations, weights {self.fingerprint[:12] or 'unknown'})"
        )

    @property
    def noise_norm(self) -> float:
        """Root mean square of the noise in the noisiest stored latents; 1 for noise that is drawn.

        It is (x - alpha * clean) / sigma in the latents x, but in the frames that are never noised.
        """
        level = self.trajectory.stored_levels[-1]
        x, clean = self.at(level.index), self.trajectory.clean
        free = (x != clean).any(1).any(-1).any(-1)[0]
        noise = (x - level.alpha * clean)[:, :, free] / level.sigma
        return noise.square().mean().sqrt().item()

    @property
    def figures(self) -> str:
        """What the inversion took, and how good it is, in one line."""
        line = f"{self.evaluations} evaluations, norm of the noise {self.noise_norm:.3f}"
        if self.offsets:
            offset = torch.stack([*self.offsets.values()]).sum(0)
            share = (offset.norm() / self.trajectory.clean.norm()).item()
            level = self.trajectory.levels[min(self.offsets)]
            line += f", solved from sigma {level.sigma:.3f} on, offset {share:.2g}"
        return line + ("" if self.round_trip is None else f", round trip {self.round_trip:.2g}")

    def at(self, index: int) -> Tensor:
        """Returns the latents at step `index` of the inversion's run, 0 the noisiest.

        They are (1, c, f', h', w') float32. Raises InputError if they were not stored.
        """
        return self.trajectory.at(index)

    def save(self, path: str | os.PathLike, force: bool = True, features: bool = False) -> None:
        """Writes the source to one safetensors file, whole or not at all.

        path: its name, which ends with ".safetensors". force: replace a file that exists. features:
        write the recorded features too. Raises InputError if the file cannot be written there.
        """
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
            "round_trip": self.round_trip,
        }
        tensors = {f"latents.{index}": x for index, x in self.trajectory.latents.items()}
        tensors |= {f"offsets.{index}": x for index, x in self.offsets.items()}
        tensors["clean"] = self.trajectory.clean
        tensors["frames"] = torch.from_numpy(self.video.frames.copy())
        if features:
            self.features.wait()
            for index, sites in self.features.by_step.items():
                for site, parts in sites.items():
                    for i, x in enumerate(parts):
                        tensors[f"features.{index}.{site}.{i}"] = x
        _write(path, facts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Source:
        """Reads a source, which `save` wrote to a file, into host memory and returns it.

        Files of the previous format are read too. Raises InputError for any other file, and for
        values that cannot be right. `Editor.load_source` also checks that the weights are the same.
        """
        path = checks.path("path", path)
        with _reading(path, FORMAT, "a source written by `anyv2v invert`") as (facts, tensors):
            settings = section(facts, "settings", InversionSettings)
            features = _features(tensors)
            source = cls(
                video=Video.owning(tensors.pop("frames").numpy(), facts["fps"]),
                trajectory=Trajectory(
                    tensors["clean"], _by_step(tensors), _levels(facts["levels"], settings.steps)
                ),
                evaluations=int(facts["evaluations"]),
                settings=settings,
                fingerprint=str(facts["fingerprint"]),
                residuals={int(index): float(r) for index, r in facts["residuals"].items()},
                features=FeatureCache(dict.fromkeys(features, "host"), features),
                offsets=_by_step(tensors, "offsets"),
                round_trip=facts.get("round_trip"),
            )
            source._check()
        return source

    @staticmethod
    def load_video(path: str | os.PathLike) -> Video:
        """Reads the frames of a saved source, and nothing else of it.

        Raises InputError if the file cannot be read as a source.
        """
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        try:
            with _opened(path) as file:
                fps = json.loads((file.metadata() or {}).get("source", "{}"))["fps"]
                return Video.owning(file.get_tensor("frames").numpy(), fps)
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as a source: {error}") from error

    @staticmethod
    def frame_size(path: str | os.PathLike) -> tuple[int, int]:
        """Returns (width, height) of the frames in a saved source, from the file's header alone.

        Raises InputError if the file cannot be read as a source.
        """
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        try:
            with _opened(path) as file:
                _, height, width, _ = file.get_slice("frames").get_shape()
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as a source: {error}") from error
        return width, height

    def _check(self) -> None:
        clean = self.trajectory.clean
        if clean.ndim != 5 or clean.shape[0] != 1 or not clean.numel():
            raise InputError(f"latents are {tuple(clean.shape)}, not (1, c, f, h, w)")
        _check_values("clean latents", clean, torch.float32)
        Trajectory(clean, self.offsets, self.trajectory.levels)  # refuses other shapes and steps
        for index, x in self.offsets.items():
            _check_values(f"offset of step {index}", x, torch.float32)
        if self.round_trip is not None:
            checks.finite("round_trip", self.round_trip)
        for index, x in self.trajectory.latents.items():
            _check_values(f"latents of step {index}", x, torch.float32)
        for index, sites in self.features.by_step.items():
            checks.whole("features of step", index, 0, self.settings.steps - 1)
            for site, parts in sites.items():
                for x in parts:
                    _check_values(f"features of step {index}, {site}", x, *FEATURES)


class Unfinished:
    """The file with the state of a running inversion, from which the inversion can be resumed.

    The inversion replaces the file about every 30 seconds (`SAVE_EVERY`).
    """

    def __init__(self, path: str | os.PathLike, resume: bool = True, keep: bool = False):
        """Names the file; it need not exist.

        resume: go on from the state in the file if there is one; False starts anew. keep: save the
        state at the end of the inversion as well, and leave the file there, so that the same
        inversion need not be run again.
        """
        self.path, self._resume, self.keep = checks.path("path", path), resume, keep
        self._saved = time.monotonic()

    def load(
        self, begin: InversionState, video: Video, settings: InversionSettings, fingerprint: str
    ) -> InversionState:
        """Returns the state in the file, on the device of `begin`, to resume the inversion from.

        Returns `begin`, the state before the first step, if there is no file or nothing is to be
        resumed. Raises InputError if the file holds the state of another video, of other settings
        or other weights (`fingerprint`), or cannot be read.
        """
        if not (self._resume and self.path.exists()):
            return begin
        with _reading(self.path, UNFINISHED, "an unfinished inversion") as (facts, tensors):
            same = facts["settings"] == asdict(settings) and facts["fingerprint"] == fingerprint
            if not (same and np.array_equal(tensors.pop("frames").numpy(), video.frames)):
                raise InputError("is of another video, other settings or weights; remove it")
            device = begin.latents.device
            tensors = {name: x.to(device) for name, x in tensors.items()}
            predictions = [tensors[name] for name in ("slopes.0", "slopes.1") if name in tensors]
            state = InversionState(
                clean=tensors["clean"],
                latents=tensors["next"],
                trajectory=_by_step(tensors),
                evaluations=checks.whole("evaluations", facts["evaluations"]),
                residuals={int(index): float(r) for index, r in facts["residuals"].items()},
                predictions=tuple(predictions),
                offsets=_by_step(tensors, "offsets"),
            )
            # the noise levels need no check: they follow from these settings and weights
            done = [*range(settings.steps - 1, -1, -1)][: state.steps]
            if not done or list(state.trajectory) != done:
                raise InputError(
                    f"holds steps {list(state.trajectory)}, not the first of an inversion"
                )
            predictions += state.offsets.values()
            for x in (state.clean, *state.trajectory.values(), state.latents, *predictions):
                if x.shape != begin.latents.shape:
                    expected = tuple(begin.latents.shape)
                    raise InputError(f"latents are {tuple(x.shape)}, not {expected}")
                _check_values("latents", x, torch.float32)
        return state

    @property
    def due(self) -> bool:
        """Whether 30 seconds (`SAVE_EVERY`) have passed since the file was last saved.

        Before the first save they are counted from the creation of this object.
        """
        return time.monotonic() - self._saved >= SAVE_EVERY

    def save(
        self, state: InversionState, video: Video, settings: InversionSettings, fingerprint: str
    ) -> None:
        """Replaces the file by one with this state of an inversion, whole or not at all.

        `load` recognizes the inversion by video, settings and fingerprint of the weights.
        """
        facts = {
            "format": UNFINISHED,
            "evaluations": state.evaluations,
            "residuals": state.residuals,
            "settings": asdict(settings),
            "fingerprint": fingerprint,
        }
        tensors = {f"latents.{index}": x for index, x in state.trajectory.items()}
        tensors |= {f"slopes.{i}": x for i, x in enumerate(state.predictions)}
        tensors |= {f"offsets.{index}": x for index, x in state.offsets.items()}
        tensors |= {"clean": state.clean, "next": state.latents}
        tensors["frames"] = torch.from_numpy(video.frames.copy())
        _write(self.path, facts, tensors)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Deletes the file if it exists."""
        self.path.unlink(missing_ok=True)


def _check_values(what: str, x: Tensor, *dtypes: torch.dtype) -> None:
    if x.dtype not in dtypes:
        raise InputError(f"{what} are {x.dtype}, not {' or '.join(map(str, dtypes))}")
    # written this way round, NaN is refused too
    if x.numel() and not x.abs().max() <= LARGEST:
        raise InputError(f"{what} are not finite, or beyond {LARGEST:g}")


def _by_step(tensors: Mapping[str, Tensor], kind: str = "latents") -> dict[int, Tensor]:
    """Index of a step -> its tensor, the least noisy first."""
    named = {name.removeprefix(f"{kind}."): x for name, x in tensors.items() if f"{kind}." in name}
    return {index: named[str(index)] for index in sorted(map(int, named), reverse=True)}


def _features(tensors: dict[str, Tensor]) -> dict[int, Features]:
    """Removes the features from the tensors of a file: index of a step -> site -> features."""
    by_step: dict[int, dict[str, dict[int, Tensor]]] = {}
    for name in [name for name in tensors if name.startswith("features.")]:
        _, index, rest = name.split(".", 2)
        site, i = rest.rsplit(".", 1)
        by_step.setdefault(int(index), {}).setdefault(site, {})[int(i)] = tensors.pop(name)
    return {
        index: {site: tuple(parts[i] for i in range(len(parts))) for site, parts in sites.items()}
        for index, sites in by_step.items()
    }


def _levels(rows: Sequence[Sequence[float]], steps: int) -> list[Level]:
    """The levels of a run, from a row [t, alpha, sigma] for each; InputError for other rows."""
    if not isinstance(rows, list) or len(rows) != steps + 1:
        raise InputError(f"levels: there are not {steps + 1} of them, for {steps} steps")
    for row in rows:
        numbers = isinstance(row, list) and all(type(x) in (int, float) for x in row)
        # written this way round, NaN is refused too
        if not (numbers and len(row) == 3 and all(abs(x) <= sys.float_info.max for x in row)):
            raise InputError(f"levels: {checks.shown(row)} are not three numbers, t, alpha, sigma")
        if min(row[1:]) < 0:
            raise InputError(f"levels: alpha or sigma of {checks.shown(row)} is below 0")
    return [Level(index, t, alpha, sigma) for index, (t, alpha, sigma) in enumerate(rows)]


def _write(path: str | os.PathLike, facts: dict, tensors: Mapping[str, Tensor]) -> None:
    written: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, x in tensors.items():
        x = x.contiguous().cpu()
        # safetensors refuses two names for one tensor; what two sites record may be one
        written[name] = x.clone() if x.data_ptr() in places else x
        places.add(x.data_ptr())
    with atomic_path(path) as temporary:
        # one key: safetensors writes several in no fixed order
        save_file(written, temporary, metadata={"source": json.dumps(facts)})


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[safe_open]:
    """Opens a safetensors file of any name; the library itself takes names in UTF-8 alone."""
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
    path: str | os.PathLike, format: str, what: str
) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """Facts and tensors of a file; any error while they are read and used is an InputError."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    try:
        with _opened(path) as file:
            facts = json.loads((file.metadata() or {}).get("source", "{}"))
            if facts.get("format") not in (format, BEFORE[format]):
                raise InputError(f"is not {what}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if facts["format"] != format:
            facts, tensors = upgraded(facts, tensors)
        yield facts, tensors
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as {what}: {error}") from error
