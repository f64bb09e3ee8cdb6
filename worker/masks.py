"""Masks: the normal form (255 = repaint, gray = partly, 0 = keep), its sizes, and what it lets through."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from storage.job import MaskPaints

KEEP = 0
REPAINT = 255
FULL_PASTE = 8  # from an eighth of the scale on

# The sums of a large mask are made this many columns at a time: in the cache, and in little memory.
_BLOCK_COLUMNS = 128

Gray = NDArray[np.uint8]
Picture = NDArray[np.uint8]

# Along the middle of a slanted stroke the distances to its edge vary, as 1.41, 2 and 2.24: one step.
_STEP_TOLERANCE_PIXELS = 0.3
_SQUARE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))


def normal_form(gray: Gray, paints: MaskPaints) -> Gray:
    """A decoded mask (H, W) as 255 = repaint .. 0 = keep, whatever end of the scale its job paints with."""
    return gray if paints is MaskPaints.WHITE else REPAINT - gray


def is_empty(mask: Gray) -> bool:
    """Nothing is to be repainted."""
    return not mask.any()


def scale_mask(mask: Gray, width: int, height: int) -> Gray:
    """The mask (H, W) at another size: each pixel is the mean of the area it covers (a box filter).

    A pixel is 0 exactly where everything it covers is 0: an area with any mask in it never rounds to 0,
    so no stroke is too thin to survive, and nothing that was to be kept is touched. Computed in whole
    numbers, since the rounding of Pillow's and OpenCV's filters loses the faint pixels.
    """
    source_height, source_width = mask.shape
    if (source_width, source_height) == (width, height):
        return mask
    total = _area_sums(_area_sums(mask, height).T, width).T
    area = source_height * source_width
    mean = (total + area // 2) // area
    return np.where(total > 0, np.maximum(mean, 1), 0).astype(np.uint8)


def scale_strength(mask: Gray, width: int, height: int) -> Gray:
    """The mask at another size, each pixel the most that any pixel it covers asks for.

    For the model's eyes: a stroke keeps its strength however thin it becomes, and black and white stay so.
    """
    height_before, width_before = mask.shape
    if (width_before, height_before) == (width, height):
        return mask
    rows, columns = _covering(height_before, height), _covering(width_before, width)
    tall: Gray = np.stack([mask[rows_of].max(axis=0) for rows_of in rows])
    return np.stack([tall[:, columns_of].max(axis=1) for columns_of in columns], axis=1)


def paste_weight(mask: Gray) -> Gray:
    """How much of what was painted is pasted: all of it, but for the faintest gray.

    Gray has had its effect in the painting already: mixing by it once more would show two pictures at once.
    Faint gray (an antialiased edge, the noise of a JPEG) fades out to 0.
    """
    return np.minimum(mask.astype(np.uint16) * FULL_PASTE, REPAINT).astype(np.uint8)


def latent_mask(mask: Gray, factor: int) -> NDArray[np.float32]:
    """(H, W) in pixels -> (H / factor, W / factor) in latents, 1.0 where any pixel of the patch is not 0.

    Stock diffusers takes the nearest pixel of each patch and so loses strokes thinner than a patch.
    H and W must be multiples of `factor`.
    """
    return (_patch_maximum(mask, factor) > KEEP).astype(np.float32)


def latent_strength(mask: Gray, factor: int) -> NDArray[np.float32] | None:
    """The mask in latents as a strength for each, 0 = keep .. 1 = repaint; None where it has no gray."""
    levels = _patch_maximum(mask, factor)
    if ((levels == KEEP) | (levels == REPAINT)).all():
        return None
    return np.divide(levels, REPAINT, dtype=np.float32)


def _covering(length: int, count: int) -> list[slice]:
    """The source pixels that each of `count` pixels covers, if only in part."""
    return [slice(index * length // count, -(-(index + 1) * length // count)) for index in range(count)]


def _patch_maximum(mask: Gray, factor: int) -> Gray:
    height, width = mask.shape
    if height % factor or width % factor:
        raise ValueError(f"a mask of {width}x{height} has no whole patches of {factor}")
    maximum: Gray = mask.reshape(height // factor, factor, width // factor, factor).max(axis=(1, 3))
    return maximum


def composite(picture: Picture, painted: Picture, mask: Gray) -> Picture:
    """`painted` where the mask says so, `picture` elsewhere; both (H, W, 3), the mask (H, W).

    Where the mask is 0 every byte is the picture's; gray mixes.
    """
    result = picture.copy()
    box = covered(mask)
    weight, target, source = mask[box], result[box], painted[box]
    edge = (weight > KEEP) & (weight < REPAINT)
    edge_weight = weight[edge].astype(np.uint16)[:, np.newaxis]
    # 255 * 255 + 127 still fits into 16 bits.
    mixed = source[edge] * edge_weight + target[edge] * (REPAINT - edge_weight)
    result[box] = cv2.copyTo(source, (weight == REPAINT).astype(np.uint8), target)
    target[edge] = (mixed + REPAINT // 2) // REPAINT
    return result


def feather(mask: Gray, pixels: int) -> Gray:
    """The mask with an edge that rises over `pixels` pixels, all of them inside the mask.

    Where the mask is narrower than twice that, the edge is narrower too, so that the middle of each
    stroke keeps its full value: a stroke of three pixels or less is left as it is. The border of the
    picture is no edge.
    """
    box = covered(mask, margin=1)
    inside = (mask[box] > KEEP).astype(np.uint8)
    if not pixels or inside.all() or not inside.any():
        return mask
    deepest = pixels + 2
    depth = _depth(inside, deepest)
    # One step short of the deepest place nearby is full already: along a slanted stroke the depth of the
    # middle goes up and down by one.
    full_at = np.maximum(_local_depth(depth, deepest), 2) - 1
    soft = mask.copy()
    soft[box] = np.rint(mask[box] * np.minimum(depth / full_at, 1))
    return soft


def covered(mask: Gray, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the smallest part that holds all of the mask, and a margin where there is one."""
    left, top, width, height = cv2.boundingRect(mask)
    return (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )


def _area_sums(values: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Sums over `count` equal stretches of axis 0, in units of 1/count of a row."""
    length, columns = values.shape
    edges = np.arange(count + 1, dtype=np.int64) * length
    whole, part = edges // count, edges % count
    last = np.minimum(whole, length - 1)
    sums = np.empty((count, columns), dtype=np.int64)
    for start in range(0, columns, _BLOCK_COLUMNS):
        block = values[:, start : start + _BLOCK_COLUMNS]
        running = np.zeros((length + 1, block.shape[1]), dtype=np.int64)
        np.cumsum(block, axis=0, dtype=np.int64, out=running[1:])
        at_edges = running[whole] * count + part[:, np.newaxis] * block[last]
        sums[:, start : start + _BLOCK_COLUMNS] = np.diff(at_edges, axis=0)
    return sums


def _depth(inside: NDArray[np.uint8], limit: int) -> NDArray[np.uint8]:
    """How many steps each pixel is away from the kept area: 1 at its edge, `limit` at most, 0 outside."""
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    steps: NDArray[np.float64] = np.minimum(np.ceil(distance - _STEP_TOLERANCE_PIXELS), limit)
    return steps.astype(np.uint8)


def _local_depth(depth: NDArray[np.uint8], limit: int) -> NDArray[np.uint8]:
    """For each pixel the depth of the deepest place whose surroundings, as wide as it is deep, hold it."""
    inside = (depth > 0).astype(np.uint8)
    local = inside.copy()
    for level in range(2, limit + 1):
        reach = (depth >= level).astype(np.uint8)
        for _ in range(level - 1):
            # Within the mask only: the depth of one stroke says nothing about its neighbour's.
            reach = cv2.dilate(reach, _SQUARE) & inside
        local[reach > 0] = level
    return local
