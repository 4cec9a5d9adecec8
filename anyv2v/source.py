"""An inverted video: what every edit of it starts from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anyv2v.config import section
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from anyv2v.files import atomic_path, check_output
from anyv2v.media.clip import Video

FORMAT = "anyv2v source 1"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class InversionSettings:
    """How a video was inverted, and what the network was told of it."""

    method: str
    steps: int
    prompt: str
    negative_prompt: str
    guidance: float
    fps: int


@dataclass(frozen=True)
class Source:
    video: Video
    trajectory: Trajectory
    """timestep -> latents (1, c, f, h/s, w/s) float32; the clean ones under 0."""
    evaluations: int
    """How often the inversion called the UNet, counted in single branches."""
    settings: InversionSettings
    fingerprint: str
    """Of the weights that the video was inverted with."""

    def save(self, path: str | os.PathLike, force: bool = True) -> None:
        """Writes one safetensors file with everything; whole or not at all."""
        check_output(path, force, (SUFFIX,))
        facts = {
            "format": FORMAT,
            "fps": self.video.fps,
            "evaluations": self.evaluations,
            "settings": asdict(self.settings),
            "fingerprint": self.fingerprint,
        }
        tensors = {f"latents.{t}": x.contiguous().cpu() for t, x in self.trajectory.items()}
        tensors["frames"] = torch.from_numpy(self.video.frames.copy())
        with atomic_path(path) as temporary:
            # one key: safetensors writes several in no fixed order
            save_file(tensors, temporary, metadata={"source": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Source:
        """InputError if the file is not a whole source that `save` wrote."""
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("source", "{}"))
                if facts.get("format") != FORMAT:
                    raise InputError("is not a source written by `anyv2v invert`")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            frames = tensors.pop("frames").numpy()
            latents = {int(name.removeprefix("latents.")): x for name, x in tensors.items()}
            source = cls(
                video=Video(frames, facts["fps"]),
                trajectory=Trajectory(latents),
                evaluations=int(facts["evaluations"]),
                settings=section(facts, "settings", InversionSettings),
                fingerprint=str(facts["fingerprint"]),
            )
            source._check()
        # InputError and what a bad number or bad JSON raises are ValueErrors
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a source: {error}") from error
        return source

    def _check(self) -> None:
        frames = len(self.video.frames)
        for t, x in self.trajectory.items():
            if x.ndim != 5 or x.shape[0] != 1 or x.shape[2] != frames or not x.is_floating_point():
                raise InputError(f"latents of {t} are {tuple(x.shape)} for {frames} frames")
            if not x.isfinite().all():
                raise InputError(f"latents of timestep {t} are not finite")
