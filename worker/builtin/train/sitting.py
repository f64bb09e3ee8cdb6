"""Does it sit on the bench? Prompts such as "a pink cat sitting on a blue bench", and the judge of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.builtin.train.captions import with_article
from worker.builtin.train.drawing import Place
from worker.builtin.train.judging import Outline, Picture, largest_area, likest, normed, to_lab
from worker.builtin.train.palette import COLOURS, Colour, shade
from worker.builtin.train.things import BENCH_SHADES, THING_NAMES, draw_thing

SITTERS = ("cat", "face")
# All shades of these benches are far from what sits on them, and from what is behind.
_SITTER_COLOURS = ("orange", "pink", "black", "yellow")
_BENCH_COLOURS = ("brown", "blue", "red")
_BACKGROUNDS = ("white", "cyan", "gray")
_FEWEST_SHARE = 0.01
"""Of the picture: what has less than that of it is not there."""
_SEAT_FILLED, _FEET_FILLED = 0.8, 0.65
"""Of a bench's width: at least so much in its fullest row, at most so much in the lowest fifth of its height."""
_SEAT_FROM, _SEAT_TO = 0.25, 0.85
"""Of a bench's height from above: between these ends what sits there."""


@dataclass(frozen=True)
class SittingWish:
    sitter: str
    colour: str
    bench: str
    background: str
    seed: int

    @property
    def prompt(self) -> str:
        sitter, bench = with_article(f"{self.colour} {self.sitter}"), with_article(f"{self.bench} bench")
        return f"{sitter} sitting on {bench} on {with_article(self.background)} background"


@dataclass(frozen=True)
class Sitting:
    """Shares of the wishes: a bench of that colour is seen; the sitter, by its outline and colour; it is on the bench.

    The last counts only where both are seen.
    """

    bench: float
    sitter: float
    on_it: float

    def __str__(self) -> str:
        return f"bench {self.bench:.2f}, sitter {self.sitter:.2f}, on it {self.on_it:.2f}"


def make_sitting_wishes(count: int, seed: int) -> list[SittingWish]:
    """All sitters equally often; no two wishes have the same prompt, up to 36 of each sitter."""
    colours = list(product(_SITTER_COLOURS, _BENCH_COLOURS, _BACKGROUNDS))
    order = [colours[place] for place in np.random.default_rng(seed).permutation(len(colours))]
    wishes = []
    for number in range(count):
        colour, bench, background = order[number // len(SITTERS) % len(order)]
        wishes.append(SittingWish(SITTERS[number % len(SITTERS)], colour, bench, background, seed=number))
    return wishes


def judge_sitting(wishes: Sequence[SittingWish], parts: Sequence[Picture]) -> Sitting:
    """`parts` are what was painted for the wishes, without the surroundings."""
    seen = [_look_at(part, wish) for wish, part in zip(wishes, parts, strict=True)]
    bench, sitter, on_it = np.mean(seen, axis=0)
    return Sitting(float(bench), float(sitter), float(on_it))


def _look_at(picture: Picture, wish: SittingWish) -> tuple[bool, bool, bool]:
    bench, sitter = _areas(picture, wish)
    has_bench, has_sitter = _is_bench(bench), _is_there(sitter) and likest(sitter, OUTLINES) == wish.sitter
    return has_bench, has_sitter, has_bench and has_sitter and _is_on(sitter, bench)


def _areas(picture: Picture, wish: SittingWish) -> tuple[Outline, Outline]:
    """Of the bench and of what sits there: each pixel belongs to what has its colour most nearly."""
    bench_colours = [shade(COLOURS[wish.bench], factor) for factor in BENCH_SHADES]
    colours = [COLOURS[wish.background], COLOURS[wish.colour], *bench_colours]
    lab = to_lab(picture)
    nearest = np.stack([np.linalg.norm(lab - _in_lab(colour), axis=-1) for colour in colours]).argmin(axis=0)
    sitter = _filled(_largest(nearest == 1))
    return _largest((nearest > 1) & ~sitter), sitter


def _largest(area: Outline) -> Outline:
    """Without hairlines, such as the mixed colours along an outline."""
    return largest_area(cv2.morphologyEx(area.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))


def _is_there(area: Outline) -> bool:
    return bool(area.mean() >= _FEWEST_SHARE)


def _is_bench(area: Outline) -> bool:
    """A full row, and beneath it feet with room between them."""
    if not _is_there(area):
        return False
    left, top, width, height = cv2.boundingRect(area.astype(np.uint8))
    filled = area[top : top + height, left : left + width].mean(axis=1)
    feet = filled[height * 4 // 5 :]
    return bool(filled.max() >= _SEAT_FILLED and 0 < feet.mean() <= _FEET_FILLED)


def _is_on(sitter: Outline, bench: Outline) -> bool:
    left, top, width, height = cv2.boundingRect(bench.astype(np.uint8))
    sitter_left, sitter_top, sitter_width, sitter_height = cv2.boundingRect(sitter.astype(np.uint8))
    end, middle = sitter_top + sitter_height, sitter_left + sitter_width / 2
    return bool(
        sitter_top < top and left < middle < left + width and top + _SEAT_FROM * height < end < top + _SEAT_TO * height
    )


def _filled(area: Outline) -> Outline:
    """With its holes, such as eyes."""
    outlines, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(area.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    return np.asarray(filled > 0)


def _in_lab(colour: Colour) -> NDArray[np.float32]:
    return np.asarray(to_lab(np.array([[colour]], np.uint8))[0, 0], np.float32)


def _outline(name: str) -> Outline:
    image = np.full((96, 96, 3), 255, np.float32)
    draw_thing(Place(image, 48, 48, 36), name, "purple", np.random.default_rng(0))
    return normed(_filled(np.asarray((image < 250).any(axis=-1))))


OUTLINES = {name: [_outline(name)] for name in THING_NAMES}
