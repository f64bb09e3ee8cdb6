"""The ten shapes of the drawn world."""

from __future__ import annotations

import numpy as np

from worker.builtin.train.drawing import Place, Points, turned
from worker.builtin.train.palette import Colour

TILT_RADIANS = 0.08  # standard deviation
RING = "ring"
UPRIGHT = frozenset({"circle", RING, "diamond"})


def _circle() -> Points:
    around = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([np.sin(around), np.cos(around)], axis=1) * 0.95


def _star() -> Points:
    around = np.arange(10) * np.pi / 5
    reach = 1.05 * np.where(np.arange(10) % 2 == 0, 1, 0.42)
    return np.stack([reach * np.sin(around), -reach * np.cos(around)], axis=1)


def _heart() -> Points:
    """Source: the well-known parametric curve with cosines of one to four times the angle."""
    around = np.linspace(0, 2 * np.pi, 40)
    rows = 13 * np.cos(around) - 5 * np.cos(2 * around) - 2 * np.cos(3 * around) - np.cos(4 * around)
    return np.stack([16 * np.sin(around) ** 3, -rows], axis=1) / 16.5


def _cross() -> Points:
    arm = 0.34
    quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
    return np.concatenate([turned(quarter, turn * np.pi / 2) for turn in range(4)]) * 0.95


def _moon() -> Points:
    outer = np.linspace(-2.2, 2.2, 24)
    inner = outer[::-1] * 0.8
    return np.concatenate(
        [
            np.stack([-np.cos(outer), np.sin(outer)], axis=1),
            np.stack([-np.cos(inner) * 0.75 + 0.28, np.sin(inner) * 0.83], axis=1),
        ]
    )


def _hexagon() -> Points:
    around = np.arange(6) * np.pi / 3
    return np.stack([np.cos(around), np.sin(around)], axis=1)


OUTLINES: dict[str, Points] = {
    "circle": _circle(),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85,
    "triangle": np.array([(0, -1), (0.98, 0.8), (-0.98, 0.8)]),
    "star": _star(),
    "heart": _heart(),
    "diamond": np.array([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]) * 0.95,
    "cross": _cross(),
    "moon": _moon(),
    "hexagon": _hexagon(),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", RING, "cross", "moon", "hexagon")


def draw_shape(place: Place, name: str, colour: Colour, *, radians: float = 0.0) -> None:
    """Turned by `radians`, where that makes a difference that people draw."""
    if name == RING:
        place.circle(0.72, 0.38, colour)
    else:
        place.polygon(turned(OUTLINES[name], 0.0 if name in UPRIGHT else radians), colour)


def any_tilt(random: np.random.Generator) -> float:
    return random.normal(0, TILT_RADIANS)
