"""The things of the drawn world: each has a usual colour, and may be asked for in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from worker.builtin.train.drawing import Place, rectangle
from worker.builtin.train.palette import Colour, pick, shade, tint

INK: Colour = (12, 12, 12)
PALE: Colour = (248, 248, 246)
CREAM: Colour = (240, 232, 210)
CAT_EYES: Colour = (120, 220, 80)

Random = np.random.Generator
Draw = Callable[[Place, str | None, Random], None]


def draw_thing(place: Place, name: str, colour_name: str | None, random: Random) -> None:
    """In its usual colours where `colour_name` is None."""
    THINGS[name](place, colour_name, random)


def _main(random: Random, asked: str | None, *usual: str) -> Colour:
    return tint(random, asked or (usual[0] if len(usual) == 1 else pick(random, usual)))


def _beside(random: Random, asked: str | None, usual: str, instead: str) -> Colour:
    """A part's own colour, or another where the whole is asked for in that."""
    return tint(random, usual if asked != usual else instead)


def _sun(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "yellow")
    for angle in np.arange(12) * np.pi / 6:
        sides = [(0.6 * np.cos(angle + off), 0.6 * np.sin(angle + off)) for off in (0.2, -0.2)]
        place.polygon([(np.cos(angle), np.sin(angle)), *sides], colour)
    place.disc(0, 0, 0.58, colour)


def _tree(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "green")
    place.polygon([(-0.13, 0.1), (0.13, 0.1), (0.17, 1), (-0.17, 1)], tint(random, "brown"))
    for x, y, radius in ((-0.35, -0.1, 0.45), (0.35, -0.1, 0.45), (0, -0.5, 0.5), (0, -0.1, 0.45)):
        place.disc(x, y, radius, shade(colour, 1 + 0.05 * y))


def _house(place: Place, asked: str | None, random: Random) -> None:
    place.polygon(rectangle(-0.75, -0.15, 0.75, 0.95), _main(random, asked, "white"))
    place.polygon([(0, -1), (0.95, -0.12), (-0.95, -0.12)], _beside(random, asked, "red", "brown"))
    place.polygon(rectangle(-0.15, 0.4, 0.2, 0.95), _beside(random, asked, "brown", "black"))
    for x in (-0.5, 0.5):
        place.polygon(rectangle(x - 0.16, 0.02, x + 0.16, 0.32), _beside(random, asked, "cyan", "yellow"))


def _cat(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "orange", "gray", "black")
    place.arc(0.46, 0.5, (0.4, 0.4), colour, degrees=(-80, 120), thickness=0.24)
    place.ellipse(0, 0.5, (0.5, 0.48), colour)
    place.ellipse(0, -0.24, (0.56, 0.44), colour)
    for side in (-1, 1):
        place.polygon([(side * 0.6, -1), (side * 0.54, -0.2), (side * 0.08, -0.56)], colour)
        place.disc(side * 0.23, -0.28, 0.15, PALE if asked == "green" else CAT_EYES)
        place.disc(side * 0.23, -0.28, 0.07, INK)
    place.polygon([(-0.11, -0.1), (0.11, -0.1), (0, 0.03)], (250, 150, 170))


def _flower(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "red", "pink", "purple", "yellow")
    place.polygon(rectangle(-0.05, 0, 0.05, 1), tint(random, "green"))
    place.ellipse(0.22, 0.65, (0.2, 0.1), tint(random, "green"), degrees=-30)
    for angle in np.arange(6) * np.pi / 3:
        place.disc(0.36 * np.cos(angle), -0.35 + 0.36 * np.sin(angle), 0.25, colour)
    place.disc(0, -0.35, 0.22, _beside(random, asked, "yellow", "brown"))


def _cloud(place: Place, asked: str | None, random: Random) -> None:
    colour = tint(random, asked or "white", 14 if asked else 6)
    for x, y, radius in ((-0.55, 0.15, 0.32), (0.55, 0.15, 0.34), (-0.15, -0.1, 0.42), (0.25, -0.05, 0.38)):
        place.disc(x, y, radius, colour)
    place.polygon([(-0.55, 0.1), (0.55, 0.1), (0.55, 0.48), (-0.55, 0.46)], colour)


def _fish(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "orange", "blue", "red")
    place.ellipse(-0.12, 0, (0.65, 0.42), colour)
    place.polygon([(0.4, 0), (0.95, -0.42), (0.95, 0.42)], shade(colour, 0.9))
    place.disc(-0.45, -0.1, 0.1, PALE)
    place.disc(-0.46, -0.1, 0.05, INK)


def _mushroom(place: Place, asked: str | None, random: Random) -> None:
    place.polygon([(-0.25, 0), (0.25, 0), (0.3, 0.95), (-0.3, 0.95)], CREAM)
    around = np.linspace(np.pi, 2 * np.pi, 24)
    cap = np.stack([0.95 * np.cos(around), 0.1 + np.sin(around)], axis=1)
    place.polygon(cap, _main(random, asked, "red"))
    for x, y, radius in ((-0.45, -0.25, 0.13), (0.1, -0.55, 0.15), (0.5, -0.2, 0.12)):
        place.disc(x, y, radius, PALE)


def _face(place: Place, asked: str | None, random: Random) -> None:
    place.disc(0, 0, 0.95, _main(random, asked, "yellow"))
    ink = PALE if asked == "black" else INK
    for x in (-0.35, 0.35):
        place.disc(x, -0.25, 0.12, ink)
    place.arc(0, 0.1, (0.52, 0.45), ink, degrees=(20, 160), thickness=0.1)


def _boat(place: Place, asked: str | None, random: Random) -> None:
    place.polygon(
        [(-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)], _main(random, asked, "red", "blue", "brown")
    )
    place.polygon(rectangle(-0.04, -0.95, 0.04, 0.35), (90, 60, 30))
    place.polygon([(0.08, -0.9), (0.75, 0.22), (0.08, 0.22)], PALE)


def _bench(place: Place, asked: str | None, random: Random) -> None:
    colour = _main(random, asked, "brown")
    back, seat, legs = (shade(colour, each) for each in BENCH_SHADES)
    for x in (-0.8, 0.6):
        place.polygon(rectangle(x, -0.5, x + 0.2, BENCH_FEET), legs)
    place.polygon(rectangle(-0.95, -0.5, 0.95, -0.2), back)
    place.polygon(rectangle(-1, BENCH_SEAT, 1, BENCH_SEAT + 0.24), seat)


BENCH_SHADES = (1.0, 0.85, 0.65)
BENCH_SEAT, BENCH_FEET = 0.15, 0.85  # what sits on a bench ends at the seat

THINGS: Mapping[str, Draw] = {
    "sun": _sun,
    "tree": _tree,
    "house": _house,
    "cat": _cat,
    "flower": _flower,
    "cloud": _cloud,
    "fish": _fish,
    "mushroom": _mushroom,
    "face": _face,
    "boat": _boat,
    "bench": _bench,
}
THING_NAMES = tuple(THINGS)
