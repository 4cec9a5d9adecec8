"""A training run in slices, which may be killed at any moment and goes on as if it had not been.

All that is random in a step follows from the number of the step, so a run that was killed and
continued from its checkpoint has the same weights as one that was not.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import Scene, draw_scene
from anyv2v.weights.demo.train.muon import CombinedOptimizer

SAVE_EVERY = 300.0
"""Seconds between checkpoints."""
LOG_EVERY = 50
"""Steps between lines of the log."""
WARM = 100
"""Steps in which the learning rates rise, of a run whose optimizer is new."""
AVERAGED = 8
"""Exponent of the moving average, see `Run.step`: it reaches back over a tenth of the steps."""


class Run:
    """The state of training a network: its weights, their moving average, optimizer and steps.

    The checkpoint is one file, which is replaced atomically, and the log is beside it. The learning
    rates are constant, for a run whose length is not known, until `fall` is called: then they fall
    to zero.
    """

    def __init__(
        self, path: Path, network: nn.Module, optimizer: CombinedOptimizer, first_scene: int = 0
    ):
        """Prepares a run, and continues from its checkpoint if there is one.

        path: the checkpoint, DIR/NAME.pt. network: what is trained; the weights of the checkpoint
        are loaded into it. optimizer: of its parameters. first_scene: the index of the first scene.
        """
        self.path, self.network, self.optimizer = path, network, optimizer
        self.first_scene = first_scene
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.steps = self.drawn = self.began = self.fall_from = self.fall_over = 0
        self.seconds = 0.0
        self.average = {k: x.detach().clone() for k, x in network.state_dict().items()}
        self._sums: dict[str, list[float]] = defaultdict(list)
        if path.exists():
            self.load(path)

    def load(self, path: Path) -> None:
        """Continues from the checkpoint `path`, perhaps that of another run."""
        saved = torch.load(path, map_location=next(self.network.parameters()).device)
        self.network.load_state_dict(saved["network"])
        self.average = saved["average"]
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["counts"].items():
            setattr(self, name, value)

    def start(self, weights: Mapping[str, Tensor], steps: int, drawn: int) -> None:
        """Continues from weights alone, with an optimizer that is new.

        weights: those of the network. steps, drawn: numbers of the steps and scenes that they have
        seen, so that no scene is seen twice.
        """
        self.network.load_state_dict(weights)
        self.average = {k: x.detach().clone() for k, x in self.network.state_dict().items()}
        self.steps = self.began = steps
        self.drawn = drawn

    def fall(self, steps: int, start: int | None = None) -> None:
        """Lets the learning rates fall to zero in so many `steps`, from step `start` or from now.

        The moving average begins anew there.
        """
        self.fall_from, self.fall_over = self.steps if start is None else start, steps

    @property
    def over(self) -> bool:
        """Whether the learning rates have fallen to zero."""
        return self.fall_over > 0 and self.steps >= self.fall_from + self.fall_over

    def train(
        self,
        loss: Callable[[], Tensor],
        minutes: float,
        on_save: Callable[[], object] = lambda: None,
    ) -> None:
        """Takes steps until `minutes` of work have passed or the run is over, and saves it.

        loss: computes the scalar loss of a batch that it draws. on_save: called after each save.
        """

        def save() -> None:
            self.save()
            on_save()

        began = saved = time.monotonic()
        while not self.over and time.monotonic() - began < 60 * minutes:
            since = time.process_time()
            torch.manual_seed(self.steps)
            self.step(loss())
            # of the processor, which may be shared with other work
            self.seconds += time.process_time() - since
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
        save()

    def scenes(self, count: int) -> list[Scene]:
        """Draws the next `count` training scenes; no scene is drawn twice in a run."""
        first = self.first_scene + self.drawn
        self.drawn += count
        return [draw_scene("train", i) for i in range(first, first + count)]

    def step(self, loss: Tensor) -> None:
        """Takes one step of the optimizer for a scalar loss, and updates the moving average.

        Gradients are clipped to norm 1; if they are not finite, the weights stay as they are. After
        n steps, the average keeps (1 - 1 / n)^`AVERAGED` of what it was (arXiv 2312.02696), so that
        it needs no knowledge of how long the run will be.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._share_of_rate()
        self.optimizer.zero_grad()
        loss.backward()
        if nn.utils.clip_grad_norm_(self.network.parameters(), 1.0).isfinite():
            self.optimizer.step()
        self.steps += 1
        kept = (1 - 1 / max(1, self.steps - self.fall_from)) ** AVERAGED
        current = self.network.state_dict()
        # torch exports this function, but its stubs do not
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.average[key] for key in current], [*current.values()], 1 - kept
        )
        self.log(loss=loss.detach())

    def log(self, **values: Tensor | float) -> None:
        """Collects values; every `LOG_EVERY` steps, their means are printed and logged."""
        for name, value in values.items():
            self._sums[name].append(float(value))
        if "loss" in values and self.steps % LOG_EVERY == 0:
            self.tell({k: sum(v) / len(v) for k, v in self._sums.items()})
            self._sums.clear()

    def tell(self, values: Mapping[str, float]) -> None:
        """Prints values, with the state of the run, and adds them as a line to the log."""
        line = {"steps": self.steps, "scenes": self.drawn, "seconds": self.seconds, **values}
        line = {k: round(v, 5) for k, v in line.items()}
        print(self.path.stem, " ".join(f"{k} {v:g}" for k, v in line.items()), flush=True)
        with open(self.path.with_suffix(".jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Writes the checkpoint."""
        names = ("steps", "drawn", "seconds", "began", "fall_from", "fall_over")
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "counts": {name: getattr(self, name) for name in names},
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def _share_of_rate(self) -> float:
        warm = min(1.0, (self.steps - self.began + 1) / WARM)
        fallen = (self.steps - self.fall_from) / self.fall_over if self.fall_over else 0.0
        return warm * (1 - min(1.0, max(0.0, fallen)))
