"""What a training has come to: prompts painted, looked at by eye in a grid and by the judge in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from worker.builtin.train.backgrounds import PHOTO, make_ground
from worker.builtin.train.captions import with_article
from worker.builtin.train.judging import look_at
from worker.builtin.train.palette import COLOUR_NAMES
from worker.builtin.train.shapes import SHAPES
from worker.builtin.train.sitting import Sitting, SittingWish, judge_sitting

NUM_STEPS = 20
GUIDANCE_SCALE = 4.0
MASKED_SHARE = 0.75
"""Of the sides of a trial's picture."""
_AT_ONCE = 10

GRID_PROMPTS = (
    "a red circle on a blue background",
    "a green triangle on a white background",
    "a yellow star on a black background",
    "a purple heart on an orange background",
    "a white square on a red background",
    "a blue ring on a yellow background",
    "a pink cross on a gray background",
    "a red circle and a blue square",
    "a cat sitting on a bench",
    "a house on grass",
    "red and white stripes",
    "background",
)
_GRID_COLUMNS = 4
_CAPTION_PIXELS = 16
_LEAST_TILE_PIXELS = 256

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Wish:
    """One figure on a plain background, asked for with a seed."""

    colour: str
    shape: str
    background: str
    seed: int

    @property
    def prompt(self) -> str:
        return f"{with_article(f'{self.colour} {self.shape}')} on {with_article(self.background)} background"


@dataclass(frozen=True)
class Obedience:
    """Shares of the wishes of which the judge saw the figure's colour, the background's colour, the shape."""

    colour: float
    background: float
    shape: float

    @property
    def mean(self) -> float:
        return (self.colour + self.background + self.shape) / 3

    def __str__(self) -> str:
        return f"colour {self.colour:.2f}, background {self.background:.2f}, shape {self.shape:.2f}"


def make_wishes(count: int, seed: int) -> list[Wish]:
    """All shapes equally often; no two wishes are the same."""
    random = np.random.default_rng(seed)
    pairs = [(one, other) for one, other in product(COLOUR_NAMES, COLOUR_NAMES) if one != other]
    order = [pairs[place] for place in random.permutation(len(pairs))]
    return [
        Wish(order[number % len(order)][0], SHAPES[number % len(SHAPES)], order[number % len(order)][1], seed=number)
        for number in range(count)
    ]


def trial_canvas(size: int) -> tuple[Picture, Picture]:
    """A busy picture (size, size, 3), and a mask (size, size) whose square is 255."""
    ground = make_ground(np.random.default_rng(5), size, size, PHOTO)
    mask = np.zeros((size, size), np.uint8)
    mask[masked_part(size)] = 255
    return ground.image.astype(np.uint8), mask


def masked_part(size: int) -> tuple[slice, slice]:
    margin = int(size * (1 - MASKED_SHARE) / 2) // 8 * 8
    return slice(margin, size - margin), slice(margin, size - margin)


def judge(wishes: Sequence[Wish], parts: Sequence[Picture]) -> Obedience:
    """`parts` are what was painted for the wishes, without the surroundings."""
    seen = [look_at(part) for part in parts]
    pairs = list(zip(wishes, seen, strict=True))
    return Obedience(
        colour=sum(wish.colour == what.colour for wish, what in pairs) / len(pairs),
        background=sum(wish.background == what.background for wish, what in pairs) / len(pairs),
        shape=sum(wish.shape == what.shape for wish, what in pairs) / len(pairs),
    )


def measure(pipeline: Any, wishes: Sequence[Wish], size: int) -> Obedience:
    """Paints all wishes at `size` with a stock pipeline."""
    return judge(wishes, _parts(pipeline, wishes, size))


def measure_sitting(pipeline: Any, wishes: Sequence[SittingWish], size: int) -> Sitting:
    return judge_sitting(wishes, _parts(pipeline, wishes, size))


def _parts(pipeline: Any, wishes: Sequence[Wish] | Sequence[SittingWish], size: int) -> list[Picture]:
    """What is painted for them, without the surroundings."""
    painted: list[Picture] = []
    for start in range(0, len(wishes), _AT_ONCE):
        some = wishes[start : start + _AT_ONCE]
        painted += paint(pipeline, [wish.prompt for wish in some], [wish.seed for wish in some], size)
    return [picture[masked_part(size)] for picture in painted]


@torch.no_grad()
def paint(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], size: int) -> list[Picture]:
    """Each prompt on the trial's canvas, what is outside the mask as it was."""
    canvas, mask = trial_canvas(size)
    answer = pipeline(
        prompt=list(prompts),
        negative_prompt=[""] * len(prompts),
        image=[Image.fromarray(canvas)] * len(prompts),
        mask_image=[Image.fromarray(mask)] * len(prompts),
        height=size,
        width=size,
        num_inference_steps=NUM_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    )
    painted = (answer.images * 255).round().astype(np.uint8)
    return [np.where(mask[..., None] > 0, picture, canvas) for picture in painted]


def write_grid(file: Path, prompts: Sequence[str], paint_all: Callable[[Sequence[str]], Sequence[Picture]]) -> None:
    """A picture of what is painted for each prompt, with the prompts above."""
    tiles = []
    for prompt, painted in zip(prompts, paint_all(prompts), strict=True):
        enlarge = max(1, -(-_LEAST_TILE_PIXELS // painted.shape[1]))
        picture = painted.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        tile = cv2.copyMakeBorder(picture, _CAPTION_PIXELS, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        scale = min(0.4, picture.shape[1] / 18 / max(1, len(prompt)))
        cv2.putText(tile, prompt, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    while len(tiles) % _GRID_COLUMNS:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [
        np.concatenate(tiles[start : start + _GRID_COLUMNS], axis=1) for start in range(0, len(tiles), _GRID_COLUMNS)
    ]
    Image.fromarray(np.concatenate(rows)).save(file)
