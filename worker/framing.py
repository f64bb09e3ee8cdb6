"""Which part of a picture the model gets to see: all of it, or, where that is too large, what lies around the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from storage.model_catalog import ModelEntry
from worker.inputs import scale_part, scale_picture
from worker.masks import composite, covered, scale_strength

CONTEXT_SHARE = 0.25
"""Of the mask's longer side, seen beyond it on each side, so that what is painted fits in."""

SMALL_SIDE = 256
"""A picture of this size is under 50 kB as a JPEG, whatever it shows."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """Rows and columns of a picture, and the size at which the model works on them. All in pixels."""

    rows: slice
    columns: slice
    worked_width: int
    worked_height: int

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @property
    def height(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def worked_size(self) -> tuple[int, int]:
        return self.worked_width, self.worked_height

    @property
    def box(self) -> list[int]:
        """Left, top, width, height."""
        return [self.columns.start, self.rows.start, self.width, self.height]

    def picture_for_model(self, picture: Picture) -> Picture:
        """(worked_height, worked_width, 3) of (H, W, 3)."""
        return scale_picture(np.ascontiguousarray(picture[self.rows, self.columns]), *self.worked_size)

    def mask_for_model(self, mask: Picture) -> Picture:
        return scale_strength(mask[self.rows, self.columns], *self.worked_size)

    def paste(self, painted: Picture, picture: Picture, soft_mask: Picture) -> Picture:
        """A copy of `picture` with `painted`, of the worked size, where the mask (H, W) says so."""
        rows, columns = covered(soft_mask)
        within = (_moved(rows, -self.rows.start), _moved(columns, -self.columns.start))
        result = picture.copy()
        new = scale_part(painted, self.width, self.height, within)
        result[rows, columns] = composite(result[rows, columns], new, soft_mask[rows, columns])
        return result


@dataclass(frozen=True, eq=False)
class Whole:
    """A picture (H, W, 3) of which only a frame is worked on, for whoever wants to see all of it, if small."""

    picture: Picture = field(repr=False)
    frame: Frame

    @cached_property
    def small(self) -> Picture:
        """At most SMALL_SIDE pixels along a side. Made at the first call, since it is seldom asked for."""
        height, width = self.picture.shape[:2]
        longer = max(height, width)
        side = min(SMALL_SIDE, longer)
        size = (max(1, width * side // longer), max(1, height * side // longer))
        small: Picture = cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        return small

    @property
    def small_part(self) -> tuple[slice, slice]:
        """The rows and columns of the small picture where the frame lies: one of each at least."""
        (small_height, small_width), (height, width) = self.small.shape[:2], self.picture.shape[:2]
        return _scaled(self.frame.rows, small_height, height), _scaled(self.frame.columns, small_width, width)


def frame_for(mask: Picture, entry: ModelEntry) -> Frame:
    """The whole picture where the model can work at its size; else a square around the mask, within the picture.

    The square holds the mask and its context, and more as long as the model still sees every pixel. A mask larger
    than what the model can work at is scaled down, but no more than it must be. The mask (H, W) is not empty.
    """
    height, width = mask.shape
    rows, columns = slice(0, height), slice(0, width)
    if max(height, width) > entry.max_size:
        masked_rows, masked_columns = covered(mask)
        longer = max(masked_rows.stop - masked_rows.start, masked_columns.stop - masked_columns.start)
        side = max(entry.max_size, round(longer * (1 + 2 * CONTEXT_SHARE)))
        rows, columns = _around(masked_rows, side, height), _around(masked_columns, side, width)
    worked = entry.worked_size(columns.stop - columns.start, rows.stop - rows.start)
    return Frame(rows, columns, *worked)


def _around(part: slice, length: int, limit: int) -> slice:
    """`length` pixels with `part` in their middle, moved so that they lie between 0 and `limit`."""
    length = min(length, limit)
    start = (part.start + part.stop - length) // 2
    start = max(0, min(start, limit - length))
    return slice(start, start + length)


def _moved(part: slice, pixels: int) -> slice:
    return slice(part.start + pixels, part.stop + pixels)


def _scaled(part: slice, length: int, length_before: int) -> slice:
    start = min(round(part.start * length / length_before), length - 1)
    return slice(start, max(start + 1, round(part.stop * length / length_before)))
