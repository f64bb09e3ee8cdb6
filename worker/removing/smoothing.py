"""The plainest filling: a smooth surface between what is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Flags = NDArray[Any]


def smooth_over(picture: Floats, known: Flags) -> Floats:
    """picture (H, W, 3), its unknown pixels as the mean of what is known around them, from as near as there is any.

    By halving until all is known and taking over from coarse to fine ("push-pull", Gortler et al. 1996,
    "The lumigraph"). All zeros where nothing is known.
    """
    weight = known.astype(np.float32)
    return _fill(picture * weight[..., None], weight)


def _fill(total: Floats, weight: Floats) -> Floats:
    filled = total / np.maximum(weight, 1e-6)[..., None]
    height, width = weight.shape
    if weight.all() or max(height, width) == 1:
        return filled
    coarse = _fill(_halved(total), _halved(weight))
    larger = cv2.resize(coarse, (2 * coarse.shape[1], 2 * coarse.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.where(weight[..., None] > 0, filled, larger[:height, :width])


def _halved(values: Floats) -> Floats:
    """Means of 2 × 2, what lies beyond the edge being unknown."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((0, height % 2), (0, width % 2), *[(0, 0)] * (values.ndim - 2)))
    rows = padded[::2] + padded[1::2]
    halved: Floats = (rows[:, ::2] + rows[:, 1::2]) / 4
    return halved
