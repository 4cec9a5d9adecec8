"""Masks: growing, cleaning, the pieces they consist of. All are (h, w)."""

from __future__ import annotations

import numpy as np


def erode(values: np.ndarray, radius: int) -> np.ndarray:
    """The least value within `radius` pixels along each axis; beyond the rim lies what is at it."""
    for axis in (0, 1):
        values = _windows(values, radius, axis).min(0)
    return values


def dilate(values: np.ndarray, radius: int) -> np.ndarray:
    """The greatest value within `radius` pixels along each axis."""
    for axis in (0, 1):
        values = _windows(values, radius, axis).max(0)
    return values


def blur(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean within `radius` pixels along each axis, float64."""
    for axis in (0, 1):
        padded = _padded(np.asarray(values, np.float64), radius, axis)
        sums = np.cumsum(padded, axis=axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        n, width = values.shape[axis], 2 * radius + 1
        ends, begins = np.arange(width, width + n), np.arange(n)
        values = (sums.take(ends, axis) - sums.take(begins, axis)) / width
    return values


def pieces(mask: np.ndarray) -> np.ndarray:
    """Labels 1, 2, ... of what hangs together in a mask of bool, by edges or corners; 0 outside."""
    height, width = mask.shape
    label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # the greatest label around, then that label's own label: long pieces take few rounds
        near = np.where(mask, dilate(label, 1), 0)
        flat = np.concatenate([[0], near.ravel()])
        while not np.array_equal(jumped := flat[flat], flat):
            flat = jumped
        near = flat[1:].reshape(height, width)
        if np.array_equal(near, label):
            break
        label = near
    return np.unique(label, return_inverse=True)[1].reshape(mask.shape) + (
        0 if not mask.all() else 1
    )


def without_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """A mask of bool without the pieces, and the holes, of fewer than `least` pixels."""
    for turned in (False, True):
        labels = pieces(mask ^ turned)
        small = np.bincount(labels.ravel()) < least
        small[0] = False
        mask = mask ^ small[labels]
    return mask


def _padded(values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    width = [(radius, radius) if i == axis else (0, 0) for i in range(2)]
    return np.pad(values, width, mode="edge")


def _windows(values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """(2 radius + 1, h, w): the picture, moved."""
    padded, n = _padded(values, radius, axis), values.shape[axis]
    return np.stack([padded.take(range(i, i + n), axis) for i in range(2 * radius + 1)])
