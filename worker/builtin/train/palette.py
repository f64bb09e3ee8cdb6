"""The twelve colours of the drawn world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 255."""

COLOURS: dict[str, Colour] = {
    "red": (215, 30, 35),
    "green": (40, 160, 55),
    "blue": (40, 75, 220),
    "yellow": (248, 218, 45),
    "orange": (250, 140, 25),
    "purple": (130, 45, 175),
    "pink": (250, 130, 185),
    "cyan": (45, 205, 220),
    "brown": (130, 80, 42),
    "white": (245, 245, 245),
    "black": (20, 20, 22),
    "gray": (128, 128, 128),
}
COLOUR_NAMES = tuple(COLOURS)

SPREAD = 14.0


def tint(random: np.random.Generator, name: str, spread: float = SPREAD) -> Colour:
    """A colour that people would still call by that name."""
    drawn = np.array(COLOURS[name]) + random.normal(0, spread * 0.5, 3) + random.normal(0, spread * 0.4)
    red, green, blue = np.clip(drawn, 0, 255)
    return float(red), float(green), float(blue)


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255.0, max(0.0, part * factor)) for part in colour)
    return red, green, blue


def any_but(random: np.random.Generator, *excluded: str) -> str:
    """The name of a colour that is none of `excluded`; any, where they are all."""
    return pick(random, [name for name in COLOUR_NAMES if name not in excluded] or COLOUR_NAMES)


def pick(random: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(random.integers(len(names)))]
