"""What would be a stranger in the hole: colours that are found nowhere at its rim."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[Any]
Flags = NDArray[Any]

REACH = 4
BIN = 8
"""Gray levels in a step of the table of colours."""
BINS = 256 // BIN
MIN_SHARE = 1 / 500
"""Colours rarer than this at the rim are what is left of the thing there, or noise."""
NEAR_COLOUR = 3 * 15.0**2
MARGIN = 2
"""A piece cut out along the very edge of a stranger still shows that edge."""
SATURATION = 5.0


def strangeness(picture: Floats, hole: Flags, inside: Flags) -> Floats:
    """(H, W), 0..SATURATION: how far each pixel's colour is from all that are at the rim of the hole."""
    square = np.ones((2 * REACH + 1,) * 2, np.uint8)
    rim: Flags = (cv2.dilate(hole.astype(np.uint8), square) > 0) & inside & ~hole
    places = np.clip(picture, 0, 255).astype(np.int64) // BIN
    codes = (places[..., 0] * BINS + places[..., 1]) * BINS + places[..., 2]
    counts = np.bincount(codes[rim], minlength=BINS**3)
    common = counts >= max(1.0, MIN_SHARE * counts.sum())
    if not common.any():
        return np.zeros(hole.shape, np.float32)
    distance = ndimage.distance_transform_edt(~common.reshape((BINS,) * 3)).ravel()
    squared = np.square(np.maximum(distance - 1, 0) * BIN)
    cost = (SATURATION * squared / (squared + 2 * SATURATION * NEAR_COLOUR)).astype(np.float32)
    strange: Floats = cv2.dilate(cost[codes], np.ones((2 * MARGIN + 1,) * 2, np.uint8))
    return strange
