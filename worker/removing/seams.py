"""What it costs to put pieces of a picture side by side, and to begin them at the rim of the hole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from worker.removing.scene import Cells, Flags, Floats, Scene, Whole, look_up

SATURATION = 5.0
MISSING = 3.5
"""What it costs to have nothing to compare a known pixel with: cheap, it would draw pieces from the hole's own rim."""
SAMPLES_PER_SIDE = 4
RIM_REACH = 4
SHARE_OF_MEAN = 0.4
"""How much of a difference in brightness counts between large cells: blending takes the rest away."""
STRANGER_COST = 16.0
"""A hole full of strangers costs this much more than a seam across it would, at the same price for each pixel."""
CACHED_NUMBERS = 1 << 17


def mismatch(difference: Floats, variance: Floats) -> Floats:
    """What a squared difference costs beside the variance of the plainer of both pieces. Overwrites both.

    Two places of one texture cost about 1, whether it is rough or smooth; with the plain square, smooth
    pieces would be the cheapest to put beside anything, and fill every hole.
    """
    variance *= 2 * SATURATION
    variance += difference
    difference /= variance
    difference *= SATURATION
    return difference


@dataclass(frozen=True)
class Blocks:
    """Cells as they would look with some choices: samples (n, k, side, side, 4), variance (n, k)."""

    samples: Floats
    variance: Floats

    def of(self, which: Whole) -> Blocks:
        return Blocks(samples=self.samples[which], variance=self.variance[which])


def see_blocks(scene: Scene, cells: Cells, which: Whole, offsets: Whole) -> Blocks:
    """Cells `which` (n,) moved by `offsets` (n, k, 2)."""
    side = min(cells.size, SAMPLES_PER_SIDE)
    stride = cells.size // side
    inner = np.arange(side) * stride + stride // 2
    top, left = cells.rows[which, None] * cells.size, cells.columns[which, None] * cells.size
    y, x = top + offsets[..., 0], left + offsets[..., 1]
    samples = look_up(scene.softened(stride), y[..., None, None] + inner[:, None], x[..., None, None] + inner)
    if cells.size >= SAMPLES_PER_SIDE:
        share = np.full((1, side * side), (1 - SHARE_OF_MEAN**0.5) / side**2, np.float32)
        samples -= (share @ samples.reshape(*y.shape, side * side, 4))[:, :, None]
    variance = look_up(scene.variance, y + cells.size // 2, x + cells.size // 2)
    return Blocks(samples=samples, variance=variance)


def seam_costs(one: Blocks, other: Blocks, size: int, *, upright: bool) -> Floats:
    """(n, k, l): the best straight seam through each cell, from any of one's choices to any of the other's."""
    side = one.samples.shape[2]
    costs = np.empty((*one.variance.shape, other.variance.shape[1]), np.float32)
    for some in in_cached_parts(costs):
        cost = costs[some]
        lines, squares = _lines(one.samples[some], upright=upright)
        their_lines, their_squares = (lines, squares) if other is one else _lines(other.samples[some], upright=upright)
        distances = np.empty_like(cost)
        for line in range(side):
            # |a - b|² = |a|² + |b|² - 2 a·b
            np.matmul(lines[:, :, line], their_lines[:, :, line].transpose(0, 2, 1), out=distances)
            distances *= -2
            distances += squares[:, :, line, None]
            distances += their_squares[:, None, :, line]
            if line:
                np.minimum(cost, distances, out=cost)
            else:
                cost[:] = distances
        np.maximum(cost, 0, out=cost)
        cost /= side
        mismatch(cost, np.minimum(one.variance[some, :, None], other.variance[some, None, :]))
        cost *= size
    return costs


def in_cached_parts(costs: Floats) -> list[slice]:
    """Slices of (n, k, l) that stay in the processor's cache while several things are done to them."""
    step = max(1, CACHED_NUMBERS // max(1, costs[0].size)) if len(costs) else 1
    return [slice(begin, begin + step) for begin in range(0, len(costs), step)]


def either(one: Floats, other: Floats, size: int) -> Floats:
    """The seam runs through one of two neighbours; between single pixels, both count. Overwrites `one`."""
    if size == 1:
        one += other
        return one
    np.minimum(one, other, out=one)
    one *= 2
    return one


def _lines(samples: Floats, *, upright: bool) -> tuple[Floats, Floats]:
    """Blocks (n, k, side, side, 4) as lines of numbers (n, k, side, 4 * side), and the sums of their squares."""
    count, choices, side = samples.shape[:3]
    if upright:
        # A pixel at a time, not a number at a time.
        samples = samples.view(np.complex128).swapaxes(2, 3).copy().view(np.float32)
    lines = samples.reshape(count, choices, side, 4 * side)
    return lines, np.square(lines) @ np.ones(4 * side, np.float32)


def rim_costs(scene: Scene, cells: Cells, which: Whole, offsets: Whole) -> Floats:
    """(n, k): how badly the known pixels beside cells `which` go on into them when moved by `offsets` (n, k, 2)."""
    costs = np.zeros(offsets.shape[:2], np.float32)
    y, x, beside, weight = _rim(scene, cells, which)
    if not len(y):
        return costs
    picture = scene.softened(1)
    own, own_variance = look_up(picture, y, x), look_up(scene.variance, y, x)
    known = scene.inside & ~scene.hole
    for choice in range(offsets.shape[1]):
        there_y, there_x = y + offsets[beside, choice, 0], x + offsets[beside, choice, 1]
        difference = _sum_of_squares(look_up(picture, there_y, there_x) - own)
        cost = mismatch(difference, np.minimum(own_variance, look_up(scene.variance, there_y, there_x)))
        compared = scene.is_in(there_y, there_x) & look_up(known, there_y, there_x)
        costs[:, choice] = np.bincount(beside, weights=np.where(compared, cost, MISSING), minlength=len(which))
    costs *= weight
    return costs


def _sum_of_squares(values: Floats) -> Floats:
    total: Floats = np.einsum("...c,...c->...", values, values)
    return total


def _rim(scene: Scene, cells: Cells, which: Whole) -> tuple[Whole, Whole, Whole, float]:
    """Known pixels near the hole, each once for every cell of `which` beside it (its place there), and their weight."""
    reach = min(RIM_REACH, cells.size)
    near: Flags = cv2.dilate(scene.hole.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    near &= scene.inside & ~scene.hole
    weight = 1.0
    if cells.size >= SAMPLES_PER_SIDE:
        near[::2, ::2] = near[1::2, 1::2] = False
        weight = 2.0
    place = np.full(len(cells) + 1, -1, np.int64)
    place[which] = np.arange(len(which))
    y, x = np.nonzero(near)
    found = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            beside = place[cells.at(y // cells.size + down, x // cells.size + right)]
            some = beside >= 0
            found.append(np.stack([y[some], x[some], beside[some]]))
    all_y, all_x, beside = np.concatenate(found, axis=1)
    return all_y, all_x, beside, weight


def strangeness_costs(scene: Scene, cells: Cells, which: Whole, offsets: Whole) -> Floats:
    """(n, k): what it costs to copy strangers into cells `which` (n,) by `offsets` (n, k, 2).

    In the unit of seams: a hole's seams grow with its side, so each pixel's price falls with that.
    """
    size = cells.size
    height, width = scene.shape
    top = np.clip(cells.rows[which, None] * size + offsets[..., 0], 0, height - size)
    left = np.clip(cells.columns[which, None] * size + offsets[..., 1], 0, width - size)
    sums = scene.strangeness_sums
    total = sums[top + size, left + size] - sums[top, left + size] - sums[top + size, left] + sums[top, left]
    y, x = (cells.rows[which] * size + size // 2), (cells.columns[which] * size + size // 2)
    price = STRANGER_COST / math.sqrt(np.count_nonzero(scene.hole)) * look_up(scene.plainness, y, x)
    costs: Floats = (price[:, None] * total).astype(np.float32)
    return costs
