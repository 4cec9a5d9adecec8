"""Scores of a clip by CLIP: how its frames match the prompt, one another, and the edited frame.

All functions but `clip_scores` take embeddings, vectors of any length other than zero, of any float
dtype; and compute cosines in float64. The scale is that of a cosine, -1..1, as in the tables of the
AnyV2V paper (Ku et al. 2024, arXiv 2403.14468); `clip_score` alone has the scale of torchmetrics.
The numbers of different CLIPs cannot be compared, so `clip_scores` names the CLIP in every key.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anyv2v.clip.model import CLIPModel
from anyv2v.errors import InputError

Embeddings = Tensor | np.ndarray
"""Embeddings (n, d) of n images or texts, one a row."""


def clip_text(frames: Embeddings, text: Embeddings) -> float:
    """Returns the mean, over the frames, of the cosine of a frame and a text: "CLIP-Text".

    frames: (f, d). text: (1, d). Raises InputError if the shapes are others.
    """
    return float(_cosines(_rows(frames, 1), _row(text)).mean())


def clip_score(frames: Embeddings, text: Embeddings) -> float:
    """Returns the CLIPScore of torchmetrics: 100 times `clip_text`, or 0 if that is negative.

    Hessel et al. 2021 multiply by 2.5 in place of 100. Raises InputError like `clip_text`.
    """
    return max(100 * clip_text(frames, text), 0.0)


def clip_image_consecutive(frames: Embeddings) -> float:
    """Returns the mean cosine of frames i and i + 1: the paper's "CLIP-Image".

    frames: (f, d) of 2 frames or more, otherwise InputError is raised.
    """
    rows = _rows(frames, 2)
    return float(_cosines(rows[:-1], rows[1:]).mean())


def clip_image_pairs(frames: Embeddings) -> float:
    """Returns the mean cosine of all pairs of different frames.

    frames: (f, d) of 2 frames or more, otherwise InputError is raised.
    """
    rows = _rows(frames, 2)
    apart = (_cosines(rows[:-k], rows[k:]) for k in range(1, len(rows)))
    return float(torch.cat(list(apart)).mean())


def clip_image_frame(frames: Embeddings, frame: Embeddings) -> float:
    """Returns the mean, over the frames, of the cosine of a frame and the edited first frame.

    frames: (f, d). frame: (1, d). Raises InputError if the shapes are others.
    """
    return float(_cosines(_rows(frames, 1), _row(frame)).mean())


def clip_scores(
    model: CLIPModel,
    frames: np.ndarray | Tensor,
    prompt: str | None = None,
    frame: np.ndarray | Tensor | None = None,
) -> dict[str, float]:
    """Scores a clip with a CLIP; returns the name of a score, with the CLIP's name -> the score.

    frames: uint8 RGB (f, h, w, 3). prompt: the text that describes the edited clip. frame: the
    edited first frame, uint8 RGB (h, w, 3). A key is such as "clip_text[ViT-B/32 openai]"; scores
    that lack their input (a prompt, a text encoder, a frame, or a second frame of the clip) are
    left out. Raises InputError if frames or frame have another dtype or shape.
    """
    images = model.encode_images(frames)
    scores = {}
    if prompt is not None and model.text is not None:
        scores["clip_text"] = clip_text(images, model.encode_text([prompt]))
    if len(images) > 1:
        scores["clip_image_consecutive"] = clip_image_consecutive(images)
        scores["clip_image_pairs"] = clip_image_pairs(images)
    if frame is not None:
        scores["clip_image_frame"] = clip_image_frame(images, model.encode_images(frame[None]))
    return {f"{score}[{model.name}]": value for score, value in scores.items()}


def _rows(embeddings: Embeddings, least: int) -> Tensor:
    """The embeddings as float64 (n, d), of which there must be at least `least`."""
    rows = torch.as_tensor(embeddings).double()
    if rows.ndim != 2 or len(rows) < least:
        raise InputError(
            f"embeddings of shape {tuple(rows.shape)} cannot be scored: want (n, d), n from {least}"
        )
    return rows


def _row(embedding: Embeddings) -> Tensor:
    rows = _rows(embedding, 1)
    if len(rows) > 1:
        raise InputError(f"embeddings of shape {tuple(rows.shape)} cannot be scored: want (1, d)")
    return rows


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (n,) of rows; exactly 1 for equal rows, since sqrt(x * x) is exactly x."""
    return (a * b).sum(-1) / ((a * a).sum(-1) * (b * b).sum(-1)).sqrt()
