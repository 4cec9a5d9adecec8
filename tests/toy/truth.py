"""The toy's edit as a closed form: float64 numpy, from the definition, one branch at a time.

Nothing of the product is used but the numbers of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray
Features = dict[str, tuple[Array, ...]]


@dataclass(frozen=True)
class Truth:
    transformer: dict[str, Array]
    words: dict[str, Array]
    pixels: dict[str, Array]
    scales: dict[str, float] = field(default_factory=lambda: {"text": 3.0, "image": 1.5})
    fractions: dict[str, float] = field(
        default_factory=lambda: {"map": 0.6, "hidden": 0.4, "cross": 0.2}
    )
    groups: dict[str, set[str]] = field(
        default_factory=lambda: {
            "map": {"blocks.0.map", "blocks.1.map"},
            "hidden": {"blocks.0.hidden"},
            "cross": {"blocks.1.cross"},
        }
    )
    negative_prompt: str = "bad"
    speed: float = 1.0

    @classmethod
    def read(cls, folder: Path, **settings) -> Truth:
        def weights(name: str) -> dict[str, Array]:
            file = load_file(folder / f"{name}.safetensors")
            return {key: x.astype(np.float64) for key, x in file.items()}

        return cls(weights("transformer"), weights("words"), weights("pixels"), **settings)

    @property
    def parts(self) -> tuple[dict[str, Array], ...]:
        return self.transformer, self.words, self.pixels

    def edit(
        self,
        frames: Array,
        frame: Array,
        prompt: str,
        trajectory: list[Array],
        steps: int,
        noise: list[Array] | None = None,
        start: int = 0,
        source_prompt: str = "",
    ) -> Array:
        """Latents (c, f, h, w); frame (h, w, 3), trajectory: see `invert`, of as many steps.

        noise: what each step adds, standard normal; with it the steps are ancestral.
        """
        sigmas, first = levels(steps), self.encode(frame[None])
        source = self.context(source_prompt, self.encode(frames[:1]))
        z = with_first(trajectory[start], first)
        for i in range(start, steps):
            _, features = self.network(trajectory[i], sigmas[i], source)
            injected = {site: x for site, x in features.items() if site in self.sites(i, steps)}
            f = self.guided(z, sigmas[i], prompt, first, injected)
            new = step(z, f, sigmas[i], sigmas[i + 1], None if noise is None else noise[i])
            z = with_first(new, first)
        return z

    def generate(self, frame: Array, prompt: str, noise: Array, steps: int) -> Array:
        sigmas, first = levels(steps), self.encode(frame[None])
        z = with_first(noise, first)
        for i in range(steps):
            f = self.guided(z, sigmas[i], prompt, first, {})
            z = with_first(step(z, f, sigmas[i], sigmas[i + 1]), first)
        return z

    def sites(self, step: int, steps: int) -> set[str]:
        on = [name for name, part in self.fractions.items() if step < int(steps * part)]
        return set().union(*(self.groups[name] for name in on))

    def guided(
        self, z: Array, sigma: float, prompt: str, first: Array, injected: Features
    ) -> Array:
        none = self.context(self.negative_prompt, None)
        image = self.context(self.negative_prompt, first)
        both = self.context(prompt, first)
        none, image, both = (self.network(z, sigma, x, injected)[0] for x in (none, image, both))
        by_image = 1 + (self.scales["image"] - 1) * sigma
        return none + by_image * (image - none) + self.scales["text"] * (both - image)

    def invert(
        self, clean: Array, steps: int, iterations: int = 0, prompt: str | None = None
    ) -> list[Array]:
        """Latents at each level, the noisiest first.

        Of Euler's method backwards, or, with iterations, of its steps solved. Under guidance if
        there is a prompt.
        """
        sigmas, first, context = levels(steps), clean[:, :1], self.context("", clean[:, :1])
        found = [clean]
        for i in reversed(range(steps)):
            below = z = found[0]
            for _ in range(1 + iterations):
                if prompt is None:
                    f, _ = self.network(z, sigmas[i], context)
                else:
                    f = self.guided(z, sigmas[i], prompt, first, {})
                z = with_first(below - (sigmas[i + 1] - sigmas[i]) * f, first)
            found.insert(0, z)
        return found[:-1]

    def encode(self, frames: Array) -> Array:
        """uint8 (f, h, w, 3) -> (c, f', h', w')."""
        groups = [frames[:1], *(frames[i : i + 4] for i in range(1, len(frames), 4))]
        f, (h, w) = len(groups), (n // 4 for n in frames.shape[1:3])
        means = np.empty((f, h, w, 3))
        for i, group in enumerate(groups):
            for y in range(h):
                for x in range(w):
                    cell = group[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] / 127.5 - 1
                    means[i, y, x] = cell.mean((0, 1, 2))
        return np.moveaxis(self._linear(self.pixels, "encoder", means), -1, 0)

    def decode(self, z: Array) -> Array:
        """(c, f', h', w') -> uint8 (f, h, w, 3)."""
        colors = self._linear(self.pixels, "decoder", np.moveaxis(z, 0, -1))
        f, h, w, _ = colors.shape
        each = [colors[i // 4 if i == 0 else 1 + (i - 1) // 4] for i in range(4 * f - 3)]
        parts = [3 if i == 0 else (i - 1) % 4 for i in range(4 * f - 3)]
        pixels = [x[..., 3 * part : 3 * part + 3] for x, part in zip(each, parts, strict=True)]
        bytes_ = np.rint(255 * np.clip(np.stack(pixels) / 2 + 0.5, 0, 1)).astype(np.uint8)
        return np.kron(bytes_, np.ones((1, 4, 4, 1), np.uint8))

    def context(self, prompt: str, first: Array | None) -> Array:
        """(7, dim): a token for each of six letters, and one of the first frame."""
        ids = [1 + ord(letter) % 28 for letter in prompt[:6]]
        words = np.tanh(self.words["table.weight"][ids + [0] * (6 - len(ids))])
        if first is None:
            image = np.zeros(words.shape[1])
        else:
            image = self._linear(self.transformer, "image", first.mean((1, 2, 3)))
        return np.concatenate([words, image[None]])

    def network(
        self, z: Array, sigma: float, context: Array, injected: Features | None = None
    ) -> tuple[Array, Features]:
        """What is predicted of z (c, f, h, w), and the features; `injected` are used instead."""
        net, seen, injected = self.transformer, {}, injected or {}
        c, f, h, w = z.shape
        places = [
            (i, slice(y, y + 3), slice(x, x + 3))
            for i in range(f)
            for y in range(0, h, 3)
            for x in range(0, w, 3)
        ]
        told = np.cos(10 * sigma * np.array([1, 1 / 2, 1 / 4, 1 / 8]))
        all_tokens = self._linear(net, "time", told) + self.speed * net["speed"]
        tokens = [self._linear(net, "inward", z[:, i, y, x].ravel()) for i, y, x in places]
        at = np.array([i for i, _, _ in places])[:, None] * net["place"]
        x = np.stack(tokens) + all_tokens + at
        for block in ("blocks.0", "blocks.1"):
            x = x + self._attention(f"{block}.map", x, x, injected, seen)
            seen[f"{block}.hidden"] = (np.tanh(self._linear(net, f"{block}.hidden", x)),)
            x = x + injected.get(f"{block}.hidden", seen[f"{block}.hidden"])[0]
            x = x + self._attention(f"{block}.cross", x, context, injected, seen)
        out = np.empty_like(z)
        for (i, y, across), token in zip(places, x, strict=True):
            cell = self._linear(net, "outward", token)
            out[:, i, y, across] = cell.reshape(c, 3, 3)
        return out, seen

    def _attention(
        self, site: str, x: Array, context: Array, injected: Features, seen: Features
    ) -> Array:
        q, k, v = (
            self._linear(self.transformer, f"{site}.{name}", y)
            for name, y in (("q", x), ("k", context), ("v", context))
        )
        seen[site] = q, k
        q, k = injected.get(site, (q, k))
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(8))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
        return self._linear(self.transformer, f"{site}.out", np.concatenate(heads, 1))

    @staticmethod
    def _linear(weights: dict[str, Array], name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def levels(steps: int) -> list[float]:
    """Sigma at each level of a run and at its end."""
    even = [1 - i / steps for i in range(steps + 1)]
    return [8 * u / (1 + 7 * u) for u in even]


def step(z: Array, f: Array, sigma: float, below: float, noise: Array | None = None) -> Array:
    """A step of Euler's method; with noise, an ancestral one."""
    if noise is None:
        return z + (below - sigma) * f
    # z = (1 - sigma) * clean + sigma * old, f = old - clean: both are known
    clean, old = z - sigma * f, z + (1 - sigma) * f
    # down to less noise, then up with new (eta 1)
    kept = below * below / sigma
    weight = (1 - below) / (1 - kept)
    z = weight * ((1 - kept) * clean + kept * old)
    return z + np.sqrt(below**2 - (weight * kept) ** 2) * noise


def with_first(z: Array, first: Array) -> Array:
    return np.concatenate([first, z[:, 1:]], 1)
