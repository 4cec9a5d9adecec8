"""The files in which a long run keeps the clean latents of edited windows."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import atomic_path


class LatentFiles:
    """The files of one long run in a folder: one for each window and edit."""

    def __init__(self, folder: Path, digest: str):
        """digest: the SHA-256 of what the run depends on; files with another are refused."""
        self.folder, self._digest = folder, digest

    def path(self, window: int, edit: int) -> Path:
        """Returns the path of the file of one edit of one window, both counted from 0."""
        return self.folder / f"window-{window:05}-edit-{edit:03}.safetensors"

    def save(self, window: int, edit: int, latents: Tensor, evaluations: int) -> None:
        """Writes clean latents (1, c, f', h', w') float32 to their file, whole or not at all.

        evaluations: number of evaluations of the network in the inversion of the window.
        """
        # one key: safetensors writes several in no fixed order
        metadata = {"run": f"{self._digest} {window} {edit} {evaluations}"}
        with atomic_path(self.path(window, edit)) as temporary:
            save_file({"latents": latents.contiguous().cpu()}, temporary, metadata)

    def load(self, window: int, edit: int) -> Tensor:
        """Returns the clean latents of one edit of one window.

        Raises InputError if they are not there, or if the file is damaged or of another run.
        """
        path = self.path(window, edit)
        if not path.exists():
            raise InputError(f"{path}: the window is not edited yet; run it first")
        return self._read(path, window, edit)[0]

    def evaluations(self, window: int, edit: int) -> int | None:
        """Returns the number of evaluations that the inversion took; None if there is no file.

        Raises InputError if the file is damaged or of another run.
        """
        path = self.path(window, edit)
        return self._read(path, window, edit)[1] if path.exists() else None

    def _read(self, path: Path, window: int, edit: int) -> tuple[Tensor, int]:
        try:
            with safe_open(path, "pt") as file:
                *known, evaluations = (file.metadata() or {}).get("run", "").split()
                latents = file.get_tensor("latents")
            if known != [self._digest, str(window), str(edit)]:
                raise InputError("is of another run")
            if latents.ndim != 5 or latents.dtype != torch.float32 or not latents.isfinite().all():
                raise InputError("holds no finite latents")
            return latents, int(evaluations)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: {error}; remove it, and its window runs again") from error
