"""The sizes of Wan's transformer, as config.json in a weights folder states them."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.errors import InputError


@dataclass(frozen=True)
class TransformerConfig:
    """Section "transformer" of a weights folder's config.json.

    Raises InputError if `dim` is not `heads` times an even number, `time_dim` is odd, or `patch` is
    not three numbers of which the first is 1.
    """

    in_channels: int
    """Channels that the network is given: those of the latents, and of what may stand beside them
    (36 in the forms that are told the first frame in channels of its own)."""
    out_channels: int
    """Channels of the latents, and of the prediction."""
    dim: int
    """Length of the tokens."""
    heads: int
    """Number of heads of every attention."""
    ff_dim: int
    """Length of the hidden vectors of every feed-forward network."""
    layers: int
    """Number of blocks."""
    text_dim: int
    """Length of the vectors of an encoded prompt."""
    text_tokens: int
    """Number of vectors that every cross-attention reads; prompts are padded to it with zeros."""
    time_dim: int
    """Length of the sinusoids of a timestep."""
    patch: tuple[int, ...]
    """(frames, height, width) of the latents that one token stands for."""
    positions: int
    """The most tokens that a clip may have along each of its three axes."""
    eps: float
    """What every norm adds to the mean square."""
    clean_first_frame: bool
    """Whether latent frame 0 is the clean first frame, whose tokens are told timestep 0, as in
    TI2V-5B. Otherwise all tokens are told the timestep of the noise."""

    def __post_init__(self):
        object.__setattr__(self, "patch", tuple(self.patch))
        if self.dim % (2 * self.heads):
            raise InputError(
                f"transformer: dim {self.dim} is not {self.heads} heads of an even number"
            )
        if self.time_dim % 2:
            raise InputError(f"transformer: time_dim {self.time_dim} is not an even number")
        if len(self.patch) != 3 or self.patch[0] != 1:
            raise InputError(
                f"transformer: patch {self.patch} is not (1, height, width): one latent frame"
            )

    @property
    def head_dim(self) -> int:
        """Length of the vectors of an attention's head."""
        return self.dim // self.heads
