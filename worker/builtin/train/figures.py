"""Figures inside the box of a mask: one, two or three of them in a relation, or a group of equal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worker.builtin.train.captions import plural, with_article
from worker.builtin.train.drawing import Image, Place
from worker.builtin.train.palette import any_but, pick, tint
from worker.builtin.train.shapes import SHAPES, any_tilt, draw_shape
from worker.builtin.train.things import BENCH_FEET, BENCH_SEAT, THING_NAMES, draw_thing

Random = np.random.Generator
TOO_NARROW_PIXELS = 24
BESIDE = ("and", "and", "and", "next to", "beside")
ABOVE = ("and", "above", "over")
BELOW = ("below", "under")
SITTING = ("on", "on", "sitting on")
DRAWN_SITTERS = ("cat",) * 5 + ("face", "face", "flower", "mushroom")
USUAL_SITTER_COLOURS = ("orange", "gray", "black", "red", "pink", "purple", "yellow")


class Variety(Protocol):
    """What of a scenes.World is about figures."""

    @property
    def thing_share(self) -> float: ...
    @property
    def single_share(self) -> float: ...
    @property
    def pair_share(self) -> float: ...
    @property
    def bench_share(self) -> float: ...


@dataclass(frozen=True)
class Box:
    """Pixels; right and bottom are the first outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def half(self) -> float:
        """Half of the shorter side."""
        return min(self.width, self.height) / 2

    def at(self, across: float, down: float) -> tuple[float, float]:
        """A point, its place given in shares of the sides."""
        return self.left + self.width * across, self.top + self.height * down


def draw_figures(random: Random, image: Image, box: Box, *, avoided: tuple[str, ...], world: Variety) -> str:
    """Draws into `image`, in no colour that is `avoided` as far as there are others; answers with the caption."""
    kind = random.random()
    if kind < world.single_share or min(box.width, box.height) < TOO_NARROW_PIXELS:
        return _one_in(random, image, box, avoided, world.thing_share)
    if kind < world.single_share + world.pair_share:
        return _several(random, image, box, avoided, world)
    return _group(random, image, box, avoided)


def draw_clutter(random: Random, image: Image, avoided: tuple[str, ...]) -> None:
    """Up to three single figures anywhere, partly cut off."""
    size = min(image.shape[:2])
    for _ in range(random.integers(0, 4)):
        side = random.uniform(0.15, 0.5) * size
        left, top = (random.uniform(-side * 0.3, length - side * 0.7) for length in (image.shape[1], image.shape[0]))
        _one_in(random, image, Box(left, top, left + side, top + side), avoided, thing_share=0.42)


def _one(random: Random, place: Place, avoided: tuple[str, ...], thing_share: float, size_word: str = "") -> str:
    is_thing, colour = random.random() < thing_share, any_but(random, *avoided)
    if is_thing:
        name = pick(random, THING_NAMES)
        asked = colour if random.random() < 0.5 else None
        draw_thing(place, name, asked, random)
        return with_article(f"{size_word}{f'{asked} ' if asked else ''}{name}")
    name = pick(random, SHAPES)
    draw_shape(place, name, tint(random, colour), radians=any_tilt(random))
    colour_word = f"{colour} " if random.random() > 0.08 else ""
    return with_article(f"{size_word}{colour_word}{name if random.random() < 0.93 else 'shape'}")


def _one_in(random: Random, image: Image, box: Box, avoided: tuple[str, ...], thing_share: float) -> str:
    kind = random.random()
    if kind < 0.7:
        size_word, reach = "", random.uniform(0.62, 0.88)
    elif kind < 0.85:
        size_word, reach = "small ", random.uniform(0.28, 0.42)
    else:
        size_word, reach = "big ", random.uniform(0.88, 1.0)
    radius = box.half * reach
    middle_x, middle_y = box.at(0.5, 0.5)
    x = middle_x + random.uniform(-0.5, 0.5) * (box.width / 2 - radius)
    y = middle_y + random.uniform(-0.5, 0.5) * (box.height / 2 - radius)
    return _one(random, Place(image, x, y, radius), avoided, thing_share, size_word)


def _several(random: Random, image: Image, box: Box, avoided: tuple[str, ...], world: Variety) -> str:
    if random.random() < world.bench_share:
        return _on_a_bench(random, image, box, avoided)
    side_by_side = box.width >= box.height * 0.9
    count = 3 if random.random() < 0.2 else 2
    longer = max(box.width, box.height)
    radius = min(longer / (2 * count) * random.uniform(0.62, 0.9), box.half * 0.9)
    shares = (0.27, 0.73) if count == 2 else (0.18, 0.5, 0.82)
    middles = [box.at(share, 0.5) if side_by_side else box.at(0.5, share) for share in shares]
    captions = [_one(random, Place(image, *middle, radius), avoided, world.thing_share) for middle in middles]
    if count > 2:
        return " and ".join(captions)
    if not side_by_side and random.random() < 0.3:
        return f"{captions[1]} {pick(random, BELOW)} {captions[0]}"
    return f" {pick(random, BESIDE if side_by_side else ABOVE)} ".join(captions)


def _on_a_bench(random: Random, image: Image, box: Box, avoided: tuple[str, ...]) -> str:
    sitter, (sitter_colour, bench_colour) = pick(random, DRAWN_SITTERS), _colours_on_a_bench(random, avoided)
    draw_on_a_bench(random, image, box, sitter=sitter, sitter_colour=sitter_colour, bench_colour=bench_colour)
    first, second = (
        with_article(f"{colour} {what}" if colour else what)
        for colour, what in ((sitter_colour, sitter), (bench_colour, "bench"))
    )
    return f"{first} {pick(random, SITTING)} {second}"


def draw_on_a_bench(
    random: Random, image: Image, box: Box, *, sitter: str, sitter_colour: str | None, bench_colour: str | None
) -> None:
    """As large as the box allows: what sits there is to be recognised. Colours as for draw_thing."""
    bench_radius = box.half * random.uniform(0.7, 0.78)
    sitter_radius = bench_radius * random.uniform(0.88, 0.98)
    x, y = box.at(0.5, 0.5)
    above, below = 1.9 * sitter_radius, (BENCH_FEET - BENCH_SEAT) * bench_radius
    seat = y + (above - below) / 2
    draw_thing(Place(image, x, seat - BENCH_SEAT * bench_radius, bench_radius), "bench", bench_colour, random)
    x += random.uniform(-0.15, 0.15) * bench_radius
    draw_thing(Place(image, x, seat - above / 2, sitter_radius), sitter, sitter_colour, random)


def _colours_on_a_bench(random: Random, avoided: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Of what sits and of the bench; None: the usual one. Before a bench of its own colour nobody would see it."""
    sitter = any_but(random, *avoided, "brown") if random.random() < 0.5 else None
    if random.random() < 0.6:
        return sitter, None
    return sitter, any_but(random, *avoided, *([sitter] if sitter else USUAL_SITTER_COLOURS))


def _group(random: Random, image: Image, box: Box, avoided: tuple[str, ...]) -> str:
    colour = any_but(random, *avoided)
    is_shape = random.random() < 0.75
    name = pick(random, SHAPES if is_shape else THING_NAMES)
    wanted, radius = random.integers(4, 9), box.half * random.uniform(0.16, 0.26)
    taken: list[tuple[float, float]] = []
    for _ in range(60):
        x = random.uniform(box.left + radius, box.right - radius)
        y = random.uniform(box.top + radius, box.bottom - radius)
        if any((x - other[0]) ** 2 + (y - other[1]) ** 2 <= (2.1 * radius) ** 2 for other in taken):
            continue
        taken.append((x, y))
        place = Place(image, x, y, radius)
        if is_shape:
            draw_shape(place, name, tint(random, colour), radians=any_tilt(random))
        else:
            draw_thing(place, name, colour, random)
        if len(taken) >= wanted:
            break
    return f"{colour} {plural(name)}"
