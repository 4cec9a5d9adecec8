"""The steps of a rental, the most important first."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from bench.rental.lab import Lab


@dataclass(frozen=True)
class Step:
    """One step of a rental."""

    name: str
    title: str
    function: str
    """module:function of bench.rental; takes a Lab."""
    limit: float
    """Seconds after which its processes are killed."""
    least: float
    """Least seconds that must be left for it to begin."""
    processes: int = 1
    """Number of processes that share its cases."""
    interpreted: bool = False
    """Whether its dry run needs Triton's interpreter."""

    def run(self, lab: Lab) -> None:
        """Run the step."""
        self.prepare()(lab)

    def prepare(self):
        """Import the step's module ahead of its turn, because that takes seconds."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"bench.rental.{module}"), name)


PARTS: dict[int, tuple[Step, ...]] = {
    1: (
        Step("S0", "the machine: versions, rates, who attends", "machine:environment", 40, 5),
        Step(
            "S1",
            "every kernel on every shape, against float64",
            "kernels:correct",
            90,
            15,
            processes=8,
            interpreted=True,
        ),
        Step("S2", "one forward of the network, each way to run it", "network:forward", 70, 20),
        Step("S3", "where the time of a forward goes", "network:profile_of_a_forward", 40, 10),
        Step("S4", "whole edits, as a user makes them", "edits:default", 150, 30),
        Step("S5", "the original's procedure on the same network", "edits:original", 40, 10),
        Step("S6", "kernels against their peers", "kernels:raced", 80, 10, interpreted=True),
    ),
    2: (
        Step("T1", "pytest -m gpu", "proof:tests", 150, 40),
        Step("T2", "one switch at a time, on a forward", "experiments:switches", 80, 20),
        Step("T3", "features on the host, and edits in a row", "edits:in_a_row", 120, 40),
        Step("T4", "tiles of the attention kernel", "experiments:tiles", 60, 15, interpreted=True),
        Step("T5", "what a sanitizer finds in the kernels", "proof:sanitizer", 70, 20),
        Step("T6", "what torch.compile makes of a forward", "experiments:compiled", 100, 50),
    ),
    3: (
        Step("U1", "the other backbones: a forward, whole edits", "backbones:others", 120, 40),
        Step("U2", "a clip of several windows, guided, protected", "clips:long", 150, 40),
        Step("U3", "a batch by one process and by two", "batches:batch", 150, 20),
        Step("U4", "a whole CLIP", "batches:clip", 60, 15),
    ),
    4: (
        Step("V1", "Wan's transformer: a forward, a step that injects", "wan:forward", 150, 40),
        Step("V2", "attention over all tokens of a clip", "wan:attentions", 60, 15),
        Step("V3", "the video autoencoder, and the text encoder", "wan:codec", 90, 30),
        Step("V4", "a whole edit of 17 frames", "wan:edit", 120, 40),
    ),
}


def named(name: str) -> Step:
    """Return the step of that name."""
    return next(step for steps in PARTS.values() for step in steps if step.name == name)
