"""Takes away what a mask covers and continues the surroundings by copying from them: no weights, no prompt.

After He and Sun (2012, "Statistics of Patch Offsets for Image Completion"): the picture's own repetitions
say by which offsets it may be continued; the hole's cells choose among them so that no seam shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.removing.arranging import arrange
from worker.removing.blending import correct
from worker.removing.offsets import find_offsets
from worker.removing.scene import Flags, Floats, Scene, Whole, cut, look_up, squares_of
from worker.removing.smoothing import smooth_over

STAGES = 4
ALTERNATIVES = 2
MAX_CELLS = 900
MAX_COSTS = 3_500_000
MIN_OFFSETS, MAX_OFFSETS = 48, 160
LARGEST_CELL = 64
MAX_HOLE_PIXELS = 500_000
MAX_PART_PIXELS = 2_500_000
"""What is larger is decided at a smaller size; what is copied is always copied at full size."""
MIN_MARGIN_PIXELS = 64


class NothingToContinue(Exception):
    """The mask covers the whole picture."""


def _ignore(_: int) -> None:
    return None


def fill(
    picture: NDArray[np.uint8], hole: Flags, *, seed: int, tell: Callable[[int], None] = _ignore
) -> NDArray[np.uint8]:
    """picture (H, W, 3) with `hole` (H, W) continued from what lies around it; all else is as it was.

    What lay in the hole has no effect. `tell` hears of each of STAGES when it is done, and may raise to end
    the work, as may happen within a fraction of a second. Raises NothingToContinue.
    """
    if hole.all():
        raise NothingToContinue
    result = picture.copy()
    if not hole.any():
        return result
    rows, columns = surroundings(hole)
    part, part_hole = picture[rows, columns], hole[rows, columns]
    factor = max(
        1,
        math.ceil(math.sqrt(np.count_nonzero(part_hole) / MAX_HOLE_PIXELS)),
        math.ceil(math.sqrt(part_hole.size / MAX_PART_PIXELS)),
    )
    size = _cell_size(part_hole, factor)
    scene = _make_scene(part, part_hole, factor, size)
    rng = np.random.default_rng(seed)
    stage = 0

    def check() -> None:
        tell(stage)

    cells = cut(scene.hole, size)
    wanted = int(np.clip(math.sqrt(MAX_COSTS / len(cells)), MIN_OFFSETS, MAX_OFFSETS))
    alternatives = [find_offsets(scene, cells, wanted, rng, check) for _ in range(ALTERNATIVES)]
    stage = 1
    check()
    offset = arrange(scene, alternatives, size, rng, check)
    stage = 2
    check()
    correction = correct(scene, offset, check)
    stage = 3
    check()
    filled = _copied(part, part_hole, scene, offset=offset, correction=correction, factor=factor)
    result[rows, columns][part_hole] = filled
    stage = STAGES
    check()
    return result


def surroundings(hole: Flags) -> tuple[slice, slice]:
    """Rows and columns of the part that matters: three times as high and wide as the hole."""
    left, top, width, height = cv2.boundingRect(hole.astype(np.uint8))
    margin = max(MIN_MARGIN_PIXELS, width, height)
    return slice(max(0, top - margin), top + height + margin), slice(max(0, left - margin), left + width + margin)


def _cell_size(hole: Flags, factor: int) -> int:
    """The smallest with which there are not too many cells, in pixels of the size that is worked at."""
    size = 1
    while size < LARGEST_CELL and len(cut(_padded(hole, size * factor), size * factor)) > MAX_CELLS:
        size *= 2
    return size


def _make_scene(part: NDArray[np.uint8], hole: Flags, factor: int, cell_size: int) -> Scene:
    step = factor * cell_size
    whole_hole = _padded(hole, step)
    inside = _padded(np.ones_like(hole), step)
    height, width = part.shape[:2]
    picture = np.pad(part, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge").astype(np.float32)
    picture = smooth_over(picture, inside & ~whole_hole)
    if factor > 1:
        height, width = whole_hole.shape[0] // factor, whole_hole.shape[1] // factor
        whole_hole = np.any(squares_of(whole_hole, factor), axis=(2, 3))
        inside = np.all(squares_of(inside, factor), axis=(2, 3))
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    return Scene(picture=picture, hole=whole_hole, inside=inside)


def _padded(flags: Flags, step: int) -> Flags:
    height, width = flags.shape
    return np.pad(flags, ((0, -height % step), (0, -width % step)))


def _copied(
    part: NDArray[np.uint8], hole: Flags, scene: Scene, *, offset: Whole, correction: Floats, factor: int
) -> NDArray[np.uint8]:
    """The hole's colours (n, 3), in the order of np.nonzero(hole), copied at full size."""
    y, x = np.nonzero(hole)
    of_scene = np.zeros((*scene.shape, 2), np.int64)
    of_scene[scene.hole] = offset
    added = np.zeros((*scene.shape, 3), np.float32)
    added[scene.hole] = correction
    move = of_scene[y // factor, x // factor] * factor
    copied = look_up(part, y + move[:, 0], x + move[:, 1]).astype(np.float32)
    unmoved = (move == 0).all(axis=1)
    copied[unmoved] = scene.picture[y[unmoved] // factor, x[unmoved] // factor]
    copied += added[y // factor, x // factor]
    return np.clip(np.rint(copied), 0, 255).astype(np.uint8)
