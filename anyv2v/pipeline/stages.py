"""The stages of an edit as single calls: encode, decode, make conditions, predict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.backbones.base import Backbone, Conditions, Defaults, FirstFrame, Options
from anyv2v.diffusion.schedule import NoiseSchedule
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.media.image import Frame, as_frames, center_crop, read_argument, to_frames
from anyv2v.pipeline.arguments import check_taps, options_of
from anyv2v.pipeline.cuda_graphs import Forward, captured_forward, resolve_graphs
from anyv2v.runtime.finite import (
    DescribeEdits,
    FiniteCheck,
    describe_steps,
    not_finite_message,
    ordinal,
    remedy,
)
from anyv2v.runtime.memory import comfortable_bytes, frames_at_once, require_memory
from anyv2v.runtime.offload import Offload, OffloadMode
from anyv2v.runtime.stage import stage

log = logging.getLogger(__name__)


class Encoders(Protocol):
    """Encoders of texts and pictures: methods that a `Backbone` may have, and need not."""

    def tokenize(self, text: str) -> Tensor:
        """Returns the tokens of a text as int64 (1, n)."""
        ...

    def encode_text(self, text: str, clip_skip: int = ...) -> Tensor:
        """Returns the text's hidden states (1, n, d) before the last `clip_skip` layers.

        The encoder's final norm is applied to them. By default they are those that the network is
        conditioned on.
        """
        ...

    def encode_image(self, image: np.ndarray, width: int, black_edge: bool) -> Tensor:
        """Returns the CLIP embedding (1, d) of a picture, uint8 RGB (h, w, 3).

        The picture is first cropped as for a video of `width` pixels; black_edge: see
        `center_crop`.
        """
        ...


class Stages:
    """The stages of an edit that take a single call: encode, decode, make conditions, predict.

    Frames are uint8 RGB (f, h, w, 3). Latents are (1, c, f', h', w'), with the sizes of the
    autoencoder. Returned tensors require no grad and are on the backbone's device.
    """

    def __init__(
        self,
        backbone: Backbone,
        fingerprint: str = "",
        graphs: bool | None = None,
        offload: OffloadMode = False,
        reload: Mapping[nn.Module, Callable[..., Iterable[Tensor]]] | None = None,
    ):
        """Takes a loaded backbone; `anyv2v.load` does all of this from a folder of weights.

        `fingerprint` identifies the weights: a source can be edited only with the weights that
        inverted it. `graphs` and `offload`: see `load`. `reload`: a network whose weights are in
        memory only while conditions are made -> a function that reads its parameters, then its
        buffers, from disk to a device. Raises InputError for arguments that are wrong.
        """
        if not hasattr(backbone, "branches"):
            raise InputError(f"backbone: {checks.shown(backbone)} is not a Backbone")
        checks.text("fingerprint", fingerprint)
        self.backbone, self.fingerprint = backbone, fingerprint
        self.graphs = resolve_graphs(graphs, backbone.device)
        networks = (*backbone.conditioners, backbone.codec.encoder)
        self.offload = Offload(networks, backbone.device, offload, reload=reload or {})

    @property
    def sites(self) -> frozenset[str]:
        """The names of all sites: the layers whose features can be recorded and injected."""
        return frozenset(self.backbone.sites)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of inversions; sampling may use another, see `Backbone.sampler`."""
        return self.backbone.schedule

    @property
    def defaults(self) -> Defaults:
        """The weights' own settings, used where an argument is None."""
        return self.backbone.defaults

    @property
    def _encoders(self) -> Encoders:
        # a backbone without them raises AttributeError, which says that it has none
        return cast(Encoders, self.backbone)

    def tokenize(self, text: str) -> Tensor:
        """Returns the tokens of a text as int64 (1, n); CLIP's are padded to 77, UMT5's are not.

        Raises AttributeError for a backbone without a tokenizer.
        """
        return self._encoders.tokenize(checks.text("text", text))

    @torch.no_grad()
    def encode_text(self, text: str, clip_skip: int | None = None) -> Tensor:
        """Returns the hidden states (1, n, d) of a text, one for each of its n tokens.

        They are those before the last `clip_skip` layers of the text encoder, with its final norm
        applied; None skips as many as the network is conditioned with, 1 for I2VGen-XL. UMT5 skips
        none, and its n is the most that a prompt may have, with zeros after the text's own. Raises
        InputError for another type or more layers than there are, and AttributeError for a backbone
        without such an encoder.
        """
        with self._conditioning():
            skip = () if clip_skip is None else (checks.whole("clip_skip", clip_skip, 0),)
            return self._encoders.encode_text(checks.text("text", text), *skip)

    @torch.no_grad()
    def encode_image(
        self, frame: Frame, width: int | None = None, black_edge: bool = False
    ) -> Tensor:
        """Returns the CLIP embedding (1, d) of a frame: a path, an array or a PIL image.

        The frame is first cropped as for a video of `width` pixels; None is the frame's own width.
        `black_edge` reproduces a fault of the original's crop, see `center_crop`. Raises
        AttributeError for a backbone without an image encoder.
        """
        image = read_argument("frame", frame)
        width = checks.count("width", image.shape[1] if width is None else width)
        black_edge = checks.flag("black_edge", black_edge)
        with self._conditioning():
            return self._encoders.encode_image(image, width, black_edge)

    @torch.no_grad()
    def encode_frames(
        self, frames: np.ndarray | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encodes frames (f, h, w, 3) uint8 to scaled latents (1, c, f', h', w') float32.

        The latents are the means of the autoencoder's posterior; with a `generator` they are
        samples of it, as in the original. Raises InputError for frames of a size or number that
        the autoencoder does not take, and NotFiniteError for latents that are not finite.
        """
        return self._encode(as_frames(frames), generator)

    def _encode(self, frames: np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """`encode_frames` for frames that are checked, or are float32, 0 to 255."""
        codec = self.backbone.codec
        if generator is not None:
            checks.kind("generator", generator, torch.Generator, "a torch.Generator")
        codec.check_frames(len(frames))
        width, height = size = self.check_size(size_of(frames))
        count = codec.shape(len(frames), height, width)[1]
        check = self._frame_check("the autoencoder's encoder", count)
        pieces, done = [], 0
        # a few frames at a time, so that memory does not grow with the length of the clip
        device = self.backbone.device
        timed = stage(log, device, "encode: %d of %dx%d", len(frames), width, height)
        with self.offload.on_device(codec.encoder), timed:
            at_once = self._frames_at_once(size)
            # a copy, because an array may be read-only
            for piece in codec.encode(torch.from_numpy(frames.copy()), at_once, generator):
                check.look(piece[0].transpose(0, 1), done)
                pieces.append(piece)
                done += piece.shape[2]
        check.finish()
        return torch.cat(pieces, dim=2).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decodes scaled latents (1, c, f', h', w') to frames (f, h, w, 3) uint8.

        Raises InputError for another shape, and NotFiniteError for latents or pixels that are not
        finite.
        """
        checks.kind("latents", latents, Tensor, "a tensor (1, c, f, h/s, w/s)")
        c = self.backbone.codec.channels
        if latents.ndim != 5 or latents.shape[:2] != (1, c) or not latents.numel():
            raise InputError(f"latents: {tuple(latents.shape)} is not (1, {c}, f, h/s, w/s)")
        check = FiniteCheck(lambda place, positions: "the latents to be decoded are not finite")
        check.look(latents, None)
        check.finish()
        return self._decode(latents)

    @torch.no_grad()
    def condition(
        self,
        prompt: str,
        frame: Frame,
        frames: int,
        size: tuple[int, int],
        fps: int | None = None,
        negative: bool = False,
        options: Options | None = None,
    ) -> Conditions:
        """Makes the conditions of one branch: what `predict` is given besides latents and timestep.

        They are for a clip of so many `frames` of `size` (width, height) in pixels that begins with
        `frame`. `negative`: make those of the branch that guidance leads away from, which in
        I2VGen-XL has no image embedding. `fps` and `options` are settings that the network is
        given, see `backbone.options`. Raises InputError for an argument that is wrong.
        """
        checks.text("prompt", prompt)
        negative, image = checks.flag("negative", negative), read_argument("frame", frame)
        frames = self.backbone.codec.check_frames(checks.count("frames", frames))
        options = options_of(self.backbone, fps, options)
        latents = self.encode_frames(center_crop(image, self.check_size(size))[None])
        first = FirstFrame(image, latents, size[0], frames)
        with self._conditioning():
            return self.backbone.condition(prompt, first, options, negative)

    @torch.no_grad()
    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts from latents (b, c, f, h, w) at timestep t, in float32.

        I2VGen-XL predicts v, Wan noise - clean, others the noise. `latents`: those of each sample,
        of any float dtype. `t`: one timestep for all samples, or a tensor with one for each.
        `conditions`: those of all branches of the batch, as `condition` makes them;
        `type(conditions).stack` joins those of g single branches. `taps`: hooks that are called at
        sites (named layers) of the network. Returns the predictions of all branches without
        guidance, (g, c, f, h, w) float32. Raises InputError for an argument that is wrong.
        """
        checks.kind("latents", latents, Tensor, "a tensor (b, c, f, h, w)")
        if latents.ndim != 5:
            raise InputError(f"latents: {tuple(latents.shape)} is not (b, c, f, h, w)")
        if not hasattr(conditions, "stack"):
            value = checks.shown(conditions)
            raise InputError(f"conditions: {value} is not what editor.condition gives")
        if not isinstance(t, Tensor):
            checks.finite("t", t)
        elif t.ndim > 1 or t.numel() not in (1, len(latents)):
            raise InputError(f"t: {checks.shown(t)} is not one timestep, nor one for each row")
        check_taps(checks.kind("taps", taps, Taps, "an anyv2v.Taps"), self.sites)
        latents = latents.to(self.backbone.device, self.backbone.dtype)
        return self.backbone.predict(latents, t, conditions, taps).float()

    def check_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns `size` (width, height) in pixels if the model takes frames of this size.

        Raises InputError, which names the nearest size that it takes, otherwise.
        """
        return checks.size(size, self.backbone.codec.size_multiple)

    def check_memory(self, size: tuple[int, int], frames: int, branches: int | None = None) -> None:
        """Raises InputError, which names a size that fits, if a prediction exceeds free memory.

        The prediction is for a clip of so many `frames` of `size` (width, height) in pixels, with
        so many `branches` in the batch; None: those of an edit under the weights' own guidance,
        with its source.
        """
        codec = self.backbone.codec
        if branches is None:
            branches = 1 + self.backbone.branch_count(self.defaults.guidance)

        def needed(width: int, height: int) -> int:
            least = self._least_bytes((width, height), frames, branches)
            return max(least, codec.activation_bytes(height, width))

        require_memory(
            needed, size, frames, codec.size_multiple, self.backbone.device, self.offload.freeable
        )

    def _least_bytes(self, size: tuple[int, int], frames: int, branches: int) -> int:
        """Bytes that a prediction needs at least, for `frames` of `size` (width, height)."""
        _, *shape = self.backbone.codec.shape(frames, size[1], size[0])
        return self.backbone.activation_bytes(branches, *shape)

    def _reserve(self, size: tuple[int, int], frames: int, branches: int, cached: int = 0) -> None:
        """Checks memory before a job, and offloads networks to the host if it is short.

        `cached`: bytes of features that the job will record on the device.
        """
        self.check_memory(size, frames, branches)
        least = self._least_bytes(size, frames, branches)
        self.offload.begin(comfortable_bytes(least, self.graphs is not False) + cached)

    def _conditioning(self) -> AbstractContextManager[None]:
        """Context in which the networks that make conditions are on the device."""
        return self.offload.on_device(*self.backbone.conditioners)

    def _frames_at_once(self, size: tuple[int, int]) -> int:
        """How many frames of that size the codec takes at once, for the memory that is free."""
        width, height = size
        needed = self.backbone.codec.activation_bytes(height, width)
        return frames_at_once(needed, self.backbone.device)

    def _forward(self) -> AbstractContextManager[Forward]:
        """Context of one run: its `predict`, captured in CUDA graphs where it can be."""
        return captured_forward(self.predict, self.backbone.device, self.graphs)

    def _first_frame(
        self,
        image: np.ndarray,
        frames: int,
        latents: Tensor | None = None,
        begin: Tensor | None = None,
    ) -> FirstFrame:
        """The first frame of a clip of so many `frames`; `image` has the clip's size."""
        latents = self._encode(image[None]) if latents is None else latents
        return FirstFrame(image, latents, image.shape[1], frames, begin)

    def _decode(self, latents: Tensor, which: DescribeEdits = lambda positions: "") -> np.ndarray:
        """`decode` for latents that are known to be finite; `which` names the edit in errors."""
        codec = self.backbone.codec
        count, height, width = codec.frames_of(latents.shape[2]), *latents.shape[3:]
        s = codec.spatial_compression
        at_once = self._frames_at_once((width * s, height * s))
        check = self._frame_check("the autoencoder's decoder", count, which)
        frames, done = [], 0
        with stage(log, self.backbone.device, "decode: %d of %dx%d", count, width * s, height * s):
            for pixels in codec.decode(latents, at_once):
                check.look(pixels, done)
                frames.append(to_frames(pixels))
                done += len(pixels)
        # `to_frames` has waited for the device, so the flags, which came first, are there too
        check.finish()
        return np.concatenate(frames)

    def _step_check(
        self,
        doing: str,
        steps: int,
        guidance: Sequence[float],
        which: DescribeEdits = lambda positions: "",
    ) -> FiniteCheck:
        """The check of a run's latents; `guidance` is the strongest scale of each edit."""
        what, dtype = f"{doing}: the network", self.backbone.dtype
        return FiniteCheck(describe_steps(what, steps, dtype, guidance, which))

    def _frame_check(
        self, part: str, count: int, which: DescribeEdits = lambda positions: ""
    ) -> FiniteCheck:
        """The check of a network that goes through `count` frames, several at a time."""

        def message(start: int, positions: list[int]) -> str:
            where = f"in frame {ordinal(start + positions[0], count)}{which([0])}"
            return not_finite_message(part, where, remedy(self.backbone.dtype))

        return FiniteCheck(message)


def size_of(frames: np.ndarray) -> tuple[int, int]:
    """Returns (width, height) of frames (f, h, w, 3)."""
    return frames.shape[2], frames.shape[1]
