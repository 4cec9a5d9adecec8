"""A training run with a time limit, which may be killed and resumed at any moment."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import Scene, draw_scene
from anyv2v.weights.demo.train.muon import CombinedOptimizer

SAVE_EVERY = 120.0
"""Seconds between checkpoints."""
LOG_EVERY = 50
"""Steps between lines of the log."""


class Run:
    """The state of training some networks: clock, optimizer, moving average, log and checkpoint.

    The checkpoint is one file, folder/name.pt, which is replaced atomically. It holds the networks,
    the moving average of their weights, the optimizer, the number of steps, the number of scenes
    drawn and the seconds spent. `on_save`, a function without arguments, is called after each save.
    """

    def __init__(self, folder: Path, name: str, minutes: float, device: str, first_scene: int = 0):
        """Prepare a run called `name`, whose files are in `folder`.

        minutes: the time limit, which includes the time of the run that is resumed. first_scene:
        the index of the first scene.
        """
        self.path, self.name, self.device = folder / f"{name}.pt", name, device
        self.budget, self.first_scene = 60 * minutes, first_scene
        self.steps, self.drawn, self.spent = 0, 0, 0.0
        self.on_save: Callable[[], object] = lambda: None
        self._sums: dict[str, list[float]] = defaultdict(list)

    def begin(self, networks: Mapping[str, nn.Module], optimizer: CombinedOptimizer) -> None:
        """Starts training these networks, from the run's checkpoint if there is one.

        networks: name -> network; the weights of the checkpoint are loaded into them.
        """
        self.networks, self.optimizer = networks, optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        if self.path.exists():
            saved = torch.load(self.path, map_location=self.device, weights_only=True)
            for name, network in networks.items():
                network.load_state_dict(saved["networks"][name])
            if "optimizer" in saved:
                optimizer.load_state_dict(saved["optimizer"])
            self.steps, self.drawn, self.spent = (saved[k] for k in ("steps", "drawn", "spent"))
            self.average = saved["average"]
        else:
            self.average = {name: _copy(network) for name, network in networks.items()}
        torch.manual_seed(self.steps)
        self.saved = self.ticked = time.monotonic()

    @property
    def progress(self) -> float:
        """The fraction of the time limit that is spent; it may exceed 1."""
        return self.spent / self.budget

    def tick(self) -> bool:
        """Updates the clock and returns whether there is time left; call it before each step.

        Saves the checkpoint every `SAVE_EVERY` seconds and when the time is over. The time that
        saving takes does not count.
        """
        now = time.monotonic()
        self.spent += now - self.ticked
        self.ticked = now
        over = self.progress >= 1
        if over or now - self.saved > SAVE_EVERY:
            self.save()
            self.on_save()
            # the time that saving took does not count
            self.saved = self.ticked = time.monotonic()
        return not over

    def scenes(self, count: int) -> list[Scene]:
        """Draws the next `count` training scenes; no scene is drawn twice in a run."""
        first = self.first_scene + self.drawn
        self.drawn += count
        return [draw_scene("train", i) for i in range(first, first + count)]

    def step(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Takes one step of the optimizer for a scalar loss, and updates the moving average.

        parameters: those whose gradients together are clipped to norm 1. The learning rate rises
        over the first 50 steps, is constant, and falls as a cosine to 2 % of its peak in the second
        half of the time. If the gradients are not finite, the weights stay as they are.
        """
        warm = min(1.0, (self.steps + 1) / 50)
        fall = 0.5 + 0.5 * math.cos(math.pi * max(0.0, 2 * min(self.progress, 1) - 1))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warm * (0.02 + 0.98 * fall)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if norm.isfinite():
            self.optimizer.step()
        self.steps += 1
        self._update_average()
        self._sums["loss"].append(loss.item())

    def log(self, **values: Tensor | float) -> None:
        """Collects values of this step; every `LOG_EVERY` steps, prints and logs their means.

        The log, folder/name.jsonl, gets one JSON object per line, which also has the loss, the
        number of steps, the number of scenes drawn and the seconds spent.
        """
        for name, value in values.items():
            self._sums[name].append(float(value))
        if self.steps % LOG_EVERY:
            return
        means = {k: sum(v) / len(v) for k, v in self._sums.items() if v}
        self._sums.clear()
        line = {"steps": self.steps, "clips": self.drawn, "seconds": self.spent, **means}
        line = {k: round(v, 4) for k, v in line.items()}
        print(self.name, " ".join(f"{k} {v:g}" for k, v in line.items()), flush=True)
        with open(self.path.with_suffix(".jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "drawn": self.drawn,
            "spent": self.spent,
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(0.998, (1 + self.steps) / (10 + self.steps))
        for name, network in self.networks.items():
            current = network.state_dict()
            average = [self.average[name][key] for key in current]
            # torch exports this function, but its stubs do not
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                average, list(current.values()), 1 - decay
            )


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in network.state_dict().items()}
