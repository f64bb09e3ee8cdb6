"""The drawn world: a picture, a mask, and a caption of what is to be where the mask is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.builtin.train.backgrounds import BACKGROUNDS, PHOTO, PLAIN, Ground, make_ground
from worker.builtin.train.captions import EMPTY_CAPTIONS, as_plain_prompt, on_background
from worker.builtin.train.figures import Box, draw_clutter, draw_figures
from worker.builtin.train.palette import pick

Random = np.random.Generator
SHOWN_IN_FULL = 0.18
"""How often the mask is the whole picture."""
ON_WHAT_WAS_THERE = 0.45
"""How often figures stand before the ground that was there already."""
TEXTURE_SHARE = 0.6
"""Of the scenes without figures."""


@dataclass(frozen=True)
class World:
    """How varied the scenes are. Shares are probabilities."""

    backgrounds: tuple[str, ...]
    """Each as often as it stands here."""
    figure_share: float
    """The other scenes are textures and removals."""
    thing_share: float
    """Of single figures, things; the others are shapes."""
    single_share: float
    pair_share: float
    """The others are groups of equal figures."""
    bench_share: float
    """Of the pairs, those that sit on a bench."""
    rectangle_share: float
    """Of the masks that are not the whole picture."""
    mask_reach: tuple[float, float]
    """Least and most of the picture's sides, of masks as high as wide; of the others the least, and 0.9 at most."""


WIDE = World(
    backgrounds=(PLAIN,) * 4 + (*(kind for kind in BACKGROUNDS if kind != PLAIN), "stripes"),
    figure_share=0.72,
    thing_share=0.42,
    single_share=0.62,
    pair_share=0.2,
    bench_share=0.12,
    rectangle_share=0.45,
    mask_reach=(0.3, 0.9),
)
_SIMPLE = (PLAIN,) * 9 + ("sky", "night", "grass", "wood", "stripes", "field") + (PHOTO,) * 4
# One large shape on something simple: what a shape's word means is learned here first.
NARROW = World(
    backgrounds=_SIMPLE,
    figure_share=0.88,
    thing_share=0.2,
    single_share=0.94,
    pair_share=0.06,
    bench_share=0.12,
    rectangle_share=0.7,
    mask_reach=(0.55, 0.95),
)
# The same for things, alone or two of them, often one on a bench.
THINGS = World(
    backgrounds=_SIMPLE,
    figure_share=0.9,
    thing_share=0.75,
    single_share=0.42,
    pair_share=0.55,
    bench_share=0.8,
    rectangle_share=0.7,
    mask_reach=(0.6, 0.95),
)
WORLDS = {"narrow": NARROW, "things": THINGS, "wide": WIDE}


@dataclass(frozen=True, eq=False)
class Scene:
    """`picture` (H, W, 3) 8-bit RGB with the wanted content; `mask` (H, W), 1 = repaint."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    caption: str


def make_scene(random: Random, size: int, world: World = WIDE) -> Scene:
    """A square scene; equal states of `random` give equal scenes."""
    base = _any_ground(random, size, world.backgrounds)
    around = base.image.copy()
    draw_clutter(random, around, base.colours)
    mask, box = make_mask(random, size, world)
    inside, caption = _wanted(random, base, box, world, is_full=bool(mask.all()))
    picture = np.where(mask[..., None] > 0, inside, around)
    return Scene(np.clip(picture, 0, 255).astype(np.uint8), mask, as_plain_prompt(random, caption))


def _wanted(random: Random, base: Ground, box: Box, world: World, *, is_full: bool) -> tuple[NDArray[np.float32], str]:
    """What is to be seen where the mask is: figures before what was there, or before another ground, or no figure."""
    size = base.image.shape[0]
    nameable = [name for name in world.backgrounds if name != PHOTO]
    if random.random() < world.figure_share:
        ground = base if random.random() < ON_WHAT_WAS_THERE and not is_full else _any_ground(random, size, nameable)
        inside = ground.image.copy()
        caption = draw_figures(random, inside, box, avoided=ground.colours, world=world)
        if ground.caption and random.random() < (0.4 if ground is base else 0.88):
            caption = on_background(random, caption, ground.caption)
        return inside, caption
    if random.random() < TEXTURE_SHARE or is_full:
        ground = _any_ground(random, size, nameable)
        return ground.image, ground.caption or ""
    return base.image, pick(random, EMPTY_CAPTIONS)


def make_mask(random: Random, size: int, world: World) -> tuple[NDArray[np.uint8], Box]:
    """A mask, 1 = repaint, and the smallest box around it."""
    mask = np.zeros((size, size), np.uint8)
    if random.random() < SHOWN_IN_FULL:
        mask[:] = 1
        return mask, Box(0, 0, size, size)
    least, most = world.mask_reach
    if random.random() < 0.6:
        width, height = random.uniform(least, 0.9, 2) * size
    else:
        width = height = random.uniform(least, most) * size
    left, top = random.uniform(0, size - width), random.uniform(0, size - height)
    kind = random.random()
    if kind < world.rectangle_share:
        mask[int(top) : int(top + height), int(left) : int(left + width)] = 1
    elif kind < world.rectangle_share + 0.2:
        middle = (int(left + width / 2), int(top + height / 2))
        cv2.ellipse(mask, middle, (int(width / 2), int(height / 2)), 0, 0, 360, 1, -1)
    elif kind < 0.95:
        corners = np.stack([random.uniform(left, left + width, 6), random.uniform(top, top + height, 6)], axis=1)
        cv2.polylines(mask, [corners.astype(np.int32)], False, 1, max(1, int(size * random.uniform(0.12, 0.3))))
    elif random.random() < 0.5:
        mask[:, : int(size * random.uniform(0.3, 0.7))] = 1
    else:
        mask[int(size * random.uniform(0.3, 0.7)) :] = 1
    x, y, width, height = cv2.boundingRect(mask)
    return mask, Box(x, y, x + width, y + height)


def _any_ground(random: Random, size: int, kinds: Sequence[str]) -> Ground:
    return make_ground(random, size, size, pick(random, kinds))
