"""What a removal works on: the picture around the hole, where it may copy from, and the hole cut into cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.removing.strangers import plainness, rim_of, strangeness

# Names for readers: the checker loses the element's type in most of numpy's expressions.
Floats = NDArray[Any]
Whole = NDArray[Any]
Flags = NDArray[Any]

RIM_OF_OBJECT = 1
"""Pixels beside the hole that still have some of what is taken away in them, and are not copied."""
NOISE_VARIANCE = 3 * 8.0**2
VARIANCE_WINDOW = 13


@dataclass(frozen=True)
class Scene:
    """All (H, W): picture, with 3 channels, 0..255; hole, to be filled; inside, where there is a picture at all.

    In the hole the picture is already smooth: nothing of what was there has any effect.
    """

    picture: Floats
    hole: Flags
    inside: Flags

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.hole.shape
        return height, width

    @cached_property
    def usable(self) -> Flags:
        """What may be copied."""
        square = np.ones((2 * RIM_OF_OBJECT + 1,) * 2, np.uint8)
        usable: Flags = self.inside & (cv2.dilate(self.hole.astype(np.uint8), square) == 0)
        return usable

    @cached_property
    def variance(self) -> Floats:
        """How much the colours around each known pixel vary, and NOISE_VARIANCE, which nobody sees."""
        known = (self.inside & ~self.hole).astype(np.float32)
        box = (VARIANCE_WINDOW, VARIANCE_WINDOW)
        weight = np.maximum(cv2.blur(known, box), 1e-4)[..., None]
        mean = cv2.blur(self.picture * known[..., None], box) / weight
        square = cv2.blur(np.square(self.picture) * known[..., None], box) / weight
        variance: Floats = np.maximum(square - np.square(mean), 0).sum(axis=-1) + np.float32(NOISE_VARIANCE)
        return variance

    @cached_property
    def _softened(self) -> dict[int, Floats]:
        return {}

    def softened(self, size: int) -> Floats:
        """The picture with each pixel the mean of `size` × `size`, so that a few samples speak for a large cell.

        (H, W, 4): the last channel is 0. Pixels of 16 bytes are looked up in half the time of those of 12.
        """
        if size not in self._softened:
            mean = cv2.blur(self.picture, (size, size)) if size > 1 else self.picture
            self._softened[size] = np.pad(mean, ((0, 0), (0, 0), (0, 1)))
        return self._softened[size]

    def is_in(self, y: Whole, x: Whole) -> Flags:
        height, width = self.shape
        inside: Flags = (y >= 0) & (x >= 0) & (y < height) & (x < width)
        return inside

    def is_known(self, y: Whole, x: Whole) -> Flags:
        answer: Flags = self.is_in(y, x) & look_up(self.inside & ~self.hole, y, x)
        return answer

    def can_copy(self, y: Whole, x: Whole) -> Flags:
        answer: Flags = self.is_in(y, x) & look_up(self.usable, y, x)
        return answer

    def can_copy_squares(self, top: Whole, left: Whole, size: int) -> Flags:
        """Whether all of the square of `size` at each place may be copied."""
        height, width = self.shape
        inside = (top >= 0) & (left >= 0) & (top + size <= height) & (left + size <= width)
        top, left = np.clip(top, 0, height - size), np.clip(left, 0, width - size)
        sums = self._unusable_sums
        bad = sums[top + size, left + size] - sums[top, left + size] - sums[top + size, left] + sums[top, left]
        whole: Flags = inside & (bad == 0)
        return whole

    @cached_property
    def _unusable_sums(self) -> NDArray[np.int32]:
        return np.asarray(cv2.integral((~self.usable).astype(np.uint8), sdepth=cv2.CV_32S), np.int32)

    @cached_property
    def strangeness_sums(self) -> Floats:
        """(H + 1, W + 1): all the strangeness above and left of each place."""
        return np.asarray(cv2.integral(strangeness(self.picture, self._rim), sdepth=cv2.CV_64F))

    @cached_property
    def plainness(self) -> Floats:
        """(H, W), 0..1: of the rim near each pixel."""
        return plainness(self.picture, self._rim)

    @cached_property
    def _rim(self) -> Flags:
        return rim_of(self.hole, self.inside)

    def nearest_sources(self, size: int) -> Whole:
        """For each pixel (H, W, 2) the top left corner of the nearest square that may be copied whole; -1 for none."""
        height, width = self.shape
        top, left = np.mgrid[:height, :width]
        corners = self.can_copy_squares(top, left, size)
        if not corners.any():
            return np.full((height, width, 2), -1, np.int64)
        _, number = cv2.distanceTransformWithLabels(
            (~corners).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        place = np.zeros((int(number.max()) + 1, 2), np.int64)
        place[number[corners]] = np.argwhere(corners)
        nearest: Whole = place[number]
        return nearest


def look_up(table: NDArray[Any], y: Whole, x: Whole) -> NDArray[Any]:
    """table (H, W, …) at (y, x); for places outside that of the nearest inside."""
    height, width = table.shape[:2]
    flat = table.reshape(height * width, *table.shape[2:])
    found: NDArray[Any] = flat.take(np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1), axis=0)
    return found


def squares_of(flags: Flags, size: int) -> Flags:
    """(H, W) -> (H / size, W / size, size, size); what is left at the right and below is left out."""
    height, width = flags.shape[0] // size, flags.shape[1] // size
    return flags[: height * size, : width * size].reshape(height, size, width, size).transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class Cells:
    """The squares of `size` pixels that hold any of the hole. `number` (h, w): which is where, -1 for none."""

    size: int
    rows: Whole
    columns: Whole
    number: Whole

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def everyone(self) -> Whole:
        return np.arange(len(self.rows))

    def at(self, rows: Whole, columns: Whole) -> Whole:
        """The numbers of the cells there, -1 for none."""
        height, width = self.number.shape
        inside = (rows >= 0) & (columns >= 0) & (rows < height) & (columns < width)
        return np.where(inside, look_up(self.number, rows, columns), -1)

    def beside(self, which: Whole, down: int, right: int) -> Whole:
        return self.at(self.rows[which] + down, self.columns[which] + right)


def cut(hole: Flags, size: int) -> Cells:
    """`size` must divide the hole's height and width."""
    touched = squares_of(hole, size).any(axis=(2, 3))
    rows, columns = np.nonzero(touched)
    number = np.full(touched.shape, -1, np.int64)
    number[rows, columns] = np.arange(len(rows))
    return Cells(size=size, rows=rows, columns=columns, number=number)


def valid_moves(scene: Scene, cells: Cells, which: Whole, offsets: Whole) -> Flags:
    """(n, k): whether all of the hole in cells `which` can be copied from these `offsets` (n, k, 2)."""
    size = cells.size
    top, left = cells.rows[which, None] * size, cells.columns[which, None] * size
    valid = scene.can_copy_squares(top + offsets[..., 0], left + offsets[..., 1], size)
    if size == 1:
        return valid
    # Where a cell is hole only in part, only that part counts.
    inner_y, inner_x = (each.ravel() for each in np.mgrid[:size, :size])
    holes = look_up(scene.hole, top + inner_y, left + inner_x)
    for cell in np.nonzero(~holes.all(axis=1))[0]:
        failing = np.nonzero(~valid[cell])[0]
        y = (top[cell] + inner_y)[holes[cell]] + offsets[cell, failing, :1]
        x = (left[cell] + inner_x)[holes[cell]] + offsets[cell, failing, 1:]
        valid[cell, failing] = scene.can_copy(y, x).all(axis=1)
    return valid
