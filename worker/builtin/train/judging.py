"""Looking at what was painted: which colours are there, and which shape?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.builtin.train.drawing import Place
from worker.builtin.train.palette import COLOUR_NAMES, COLOURS
from worker.builtin.train.shapes import SHAPES, draw_shape

Picture = NDArray[np.uint8]
Outline = NDArray[np.bool_]
"""(H, W), true where the figure is."""
Templates = Mapping[str, Sequence[Outline]]

FIGURE_DISTANCE = 25.0
"""In CIELAB: what is farther than this from the background's median belongs to the figure."""
FEWEST_FIGURE_PIXELS = 30
_TEMPLATE = 32
_TILTS_RADIANS = (-0.12, 0.0, 0.12)
_BORDER_SHARE = 32  # a thirty-second of the side counts as border


@dataclass(frozen=True)
class Seen:
    """What is in a picture of one figure on one background; None where there is no figure."""

    background: str
    colour: str | None
    shape: str | None


def look_at(picture: Picture) -> Seen:
    """The colour most frequent at the border; that of what differs from it; the outline's likest shape.

    The outline is that of the largest area whose colour is nearer to the figure's than to the background's, so that
    a smear elsewhere or a fringe counts for nothing.
    """
    height, width = picture.shape[:2]
    border = max(2, min(height, width) // _BORDER_SHARE)
    edge = np.ones((height, width), bool)
    edge[border:-border, border:-border] = False
    lab = to_lab(picture)
    background = _most_frequent(lab[edge])
    distance = np.linalg.norm(lab - np.median(lab[edge], axis=0), axis=-1)
    different = lab[distance > FIGURE_DISTANCE]
    if len(different) <= FEWEST_FIGURE_PIXELS:
        return Seen(background, None, None)
    colour = _most_frequent(different)
    figure_lab = np.median(different[_nearest(different) == COLOUR_NAMES.index(colour)], axis=0)
    figure = np.linalg.norm(lab - figure_lab, axis=-1) < distance
    opened = cv2.morphologyEx(figure.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    shape = likest(largest_area(opened), TEMPLATES) if opened.any() else None  # hairlines are none
    return Seen(background, colour, shape)


def likest(figure: Outline, templates: Templates) -> str:
    """By the share of common area, after both are brought to one size and place."""
    outline = normed(figure)
    likeness = {name: max(_common_share(outline, each) for each in outlines) for name, outlines in templates.items()}
    return max(likeness, key=likeness.__getitem__)


def colour_share(picture: Picture, colour: str) -> float:
    """How much of the picture is nearer to that colour than to any other of the twelve."""
    return float((_nearest(to_lab(picture).reshape(-1, 3)) == COLOUR_NAMES.index(colour)).mean())


def to_lab(picture: Picture) -> NDArray[np.float32]:
    converted = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(converted, np.float32)


_PALETTE = to_lab(np.array([list(COLOURS.values())], np.uint8))[0]


def _nearest(lab: NDArray[np.float32]) -> NDArray[np.int64]:
    nearest: NDArray[np.int64] = np.linalg.norm(lab[:, None] - _PALETTE, axis=-1).argmin(axis=1)
    return nearest


def _most_frequent(lab: NDArray[np.float32]) -> str:
    return COLOUR_NAMES[int(np.bincount(_nearest(lab), minlength=len(COLOUR_NAMES)).argmax())]


def largest_area(figure: NDArray[np.uint8]) -> Outline:
    """Of those that hang together."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(figure)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    largest: Outline = labels == (1 + int(areas.argmax()) if len(areas) else -1)
    return largest


def _common_share(one: Outline, other: Outline) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def normed(figure: Outline) -> Outline:
    """The figure's bounding square, at the templates' size."""
    left, top, width, height = cv2.boundingRect(figure.astype(np.uint8))
    side = max(width, height)
    if not side:
        return np.zeros((_TEMPLATE, _TEMPLATE), bool)
    square = np.zeros((side, side), np.uint8)
    row, column = (side - height) // 2, (side - width) // 2
    square[row : row + height, column : column + width] = figure[top : top + height, left : left + width] * 255
    normed: Outline = cv2.resize(square, (_TEMPLATE, _TEMPLATE), interpolation=cv2.INTER_AREA) > 127
    return normed


def _templates(name: str) -> list[Outline]:
    """Upright, and leaning a little to either side, as the world's figures do."""
    templates = []
    for radians in _TILTS_RADIANS:
        image = np.zeros((96, 96, 3), np.float32)
        draw_shape(Place(image, 48, 48, 36), name, (255, 255, 255), radians=radians)
        templates.append(normed(image[..., 0] > 127))
    return templates


TEMPLATES = {name: _templates(name) for name in SHAPES}
