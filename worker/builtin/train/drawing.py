"""Flat drawing with soft edges: where a figure stands on a picture, and its strokes in units of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from worker.builtin.train.palette import Colour

Image = NDArray[np.float32]
"""(H, W, 3), red, green and blue from 0 to 255."""
Points = NDArray[np.float64]
"""(N, 2) columns and rows."""

_FRACTION_BITS = 4  # OpenCV takes positions in sixteenths of a pixel
_FILLED = -1


@dataclass(frozen=True)
class Place:
    """A figure's place: its middle and its radius, in pixels. All strokes are in units of the radius."""

    image: Image
    x: float
    y: float
    radius: float

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        corners = np.asarray(points, dtype=np.float64) * self.radius + (self.x, self.y)
        cv2.fillPoly(
            self.image,
            [np.round(corners * (1 << _FRACTION_BITS)).astype(np.int32)],
            colour,
            cv2.LINE_AA,
            _FRACTION_BITS,
        )

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        cv2.circle(self.image, self._at(x, y), self._length(radius), colour, _FILLED, cv2.LINE_AA, _FRACTION_BITS)

    def circle(self, radius: float, thickness: float, colour: Colour) -> None:
        width = max(1, int(thickness * self.radius))
        cv2.circle(self.image, self._at(0, 0), self._length(radius), colour, width, cv2.LINE_AA, _FRACTION_BITS)

    def ellipse(self, x: float, y: float, radii: tuple[float, float], colour: Colour, degrees: float = 0) -> None:
        lengths = (self._length(radii[0]), self._length(radii[1]))
        cv2.ellipse(self.image, self._at(x, y), lengths, degrees, 0, 360, colour, _FILLED, cv2.LINE_AA, _FRACTION_BITS)

    def arc(
        self,
        x: float,
        y: float,
        radii: tuple[float, float],
        colour: Colour,
        *,
        degrees: tuple[float, float],
        thickness: float,
    ) -> None:
        lengths = (self._length(radii[0]), self._length(radii[1]))
        width = max(1, int(thickness * self.radius))
        cv2.ellipse(self.image, self._at(x, y), lengths, 0, *degrees, colour, width, cv2.LINE_AA, _FRACTION_BITS)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        scale = 1 << _FRACTION_BITS
        return int((self.x + x * self.radius) * scale), int((self.y + y * self.radius) * scale)

    def _length(self, length: float) -> int:
        return max(1, int(length * self.radius * (1 << _FRACTION_BITS)))


def turned(points: ArrayLike, radians: float) -> Points:
    cosine, sine = np.cos(radians), np.sin(radians)
    result: Points = np.asarray(points, dtype=np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    return result


def rectangle(left: float, top: float, right: float, bottom: float) -> Sequence[tuple[float, float]]:
    return (left, top), (right, top), (right, bottom), (left, bottom)
