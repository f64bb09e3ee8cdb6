"""What would be a stranger in the hole: colours found nowhere at its rim, where that is plain."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from worker.removing.smoothing import Flags, Floats, smooth_over

REACH = 4
BIN = 8
"""Gray levels in a step of the table of colours."""
BINS = 256 // BIN
MIN_SHARE = 1 / 500
"""Colours rarer than this at the rim are what is left of the thing there, or noise."""
NEAR_COLOUR = 3 * 15.0**2
MARGIN = 4
"""A piece cut out along the very edge of a stranger still shows that edge."""
SATURATION = 5.0
PLAIN_VARIANCE = 3 * 15.0**2
PLAIN_WINDOW = 13


def rim_of(hole: Flags, inside: Flags) -> Flags:
    """(H, W): the known pixels up to REACH beside the hole."""
    square = np.ones((2 * REACH + 1,) * 2, np.uint8)
    rim: Flags = (cv2.dilate(hole.astype(np.uint8), square) > 0) & inside & ~hole
    return rim


def strangeness(picture: Floats, rim: Flags) -> Floats:
    """(H, W), 0..SATURATION: how far the colours around each pixel of picture (H, W, 3) are from all in `rim`."""
    places = np.clip(picture, 0, 255).astype(np.int64) // BIN
    codes = (places[..., 0] * BINS + places[..., 1]) * BINS + places[..., 2]
    counts = np.bincount(codes[rim], minlength=BINS**3).astype(np.float32)
    # A colour between two steps of the table is in both.
    around = ndimage.uniform_filter(counts.reshape((BINS,) * 3), 3, mode="constant") * 3**3
    common = (counts > 0) & (around.ravel() >= MIN_SHARE * counts.sum())
    if not common.any():
        return np.zeros(rim.shape, np.float32)
    distance = ndimage.distance_transform_edt(~common.reshape((BINS,) * 3)).ravel()
    squared = np.square(np.maximum(distance - 1, 0) * BIN)
    cost = (SATURATION * squared / (squared + 2 * SATURATION * NEAR_COLOUR)).astype(np.float32)
    strange: Floats = cv2.dilate(cost[codes], np.ones((2 * MARGIN + 1,) * 2, np.uint8))
    return strange


def plainness(picture: Floats, rim: Flags) -> Floats:
    """(H, W), 0..1: how little the colours vary along the rim near each pixel. Among lively ones nothing is strange."""
    box = (PLAIN_WINDOW, PLAIN_WINDOW)
    weight = np.maximum(cv2.blur(rim.astype(np.float32), box), 1e-4)[..., None]
    mean = cv2.blur(picture * rim[..., None], box) / weight
    square = cv2.blur(np.square(picture) * rim[..., None], box) / weight
    variance = np.maximum(square - np.square(mean), 0).sum(axis=-1)
    plain = np.float32(PLAIN_VARIANCE) / (PLAIN_VARIANCE + variance)
    return smooth_over(np.repeat(plain[..., None], 3, axis=-1).astype(np.float32), rim)[..., 0]
