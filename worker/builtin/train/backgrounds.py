"""The backgrounds and textures of the drawn world, each with its caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.builtin.train.drawing import Image, Place
from worker.builtin.train.palette import COLOUR_NAMES, any_but, pick, tint

Random = np.random.Generator
PHOTO = "photo"
PLAIN = "plain"


@dataclass(frozen=True)
class Sheet:
    """The area to fill. `scale` is its longer side: patterns have their size from that, in pixels."""

    width: int
    height: int
    first: str
    second: str

    @property
    def scale(self) -> int:
        return max(self.width, self.height)

    @property
    def rows(self) -> NDArray[np.float32]:
        """(H, 1), in units of the scale."""
        return np.arange(self.height, dtype=np.float32)[:, None] / np.float32(self.scale)

    @property
    def columns(self) -> NDArray[np.float32]:
        return np.arange(self.width, dtype=np.float32)[None] / np.float32(self.scale)

    @property
    def descent(self) -> NDArray[np.float32]:
        """(H, 1, 1), 0 at the top and 1 at the bottom."""
        return np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]

    def even(self, colour: tuple[float, float, float]) -> Image:
        return np.full((self.height, self.width, 3), colour, np.float32)

    def between(self, top: tuple[float, ...], bottom: tuple[float, ...]) -> Image:
        mixed = np.array(top, np.float32) * (1 - self.descent) + np.array(bottom, np.float32) * self.descent
        return np.repeat(mixed, self.width, axis=1)

    def noise(self, random: Random, cell: float) -> NDArray[np.float32]:
        """(H, W) from -0.5 to 0.5, with lumps of `cell` pixels."""
        rows, columns = (max(2, int(np.ceil(length / cell)) + 1) for length in (self.height, self.width))
        coarse = random.random((rows, columns)).astype(np.float32)
        return np.asarray(cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)) - np.float32(
            0.5
        )


@dataclass(frozen=True, eq=False)
class Ground:
    """A filled area. `caption` is None where the world has no word for it; `colours` are the ones it shows."""

    image: Image
    caption: str | None
    colours: tuple[str, ...] = field(default=())


def _plain(sheet: Sheet, random: Random) -> Ground:
    caption = [f"{sheet.first} background", f"plain {sheet.first} background", sheet.first][
        random.choice(3, p=[0.75, 0.15, 0.1])
    ]
    image = sheet.even(tint(random, sheet.first))
    if random.random() < 0.3:
        image = image * (1 + (sheet.descent - 0.5) * random.uniform(-0.25, 0.25))
    return Ground(image, caption, (sheet.first,))


def _sunset(sheet: Sheet, random: Random) -> Ground:
    top = (random.uniform(90, 150), 40.0, random.uniform(90, 140))
    return Ground(sheet.between(top, tint(random, "orange")), "sunset", ("orange", "purple"))


def _sky(sheet: Sheet, random: Random) -> Ground:
    image = sheet.between((90, 160, 235), (190, 222, 248)) + random.normal(0, 6)
    return Ground(image, "blue sky", ("blue", "cyan"))


def _night(sheet: Sheet, random: Random) -> Ground:
    image = sheet.between((8, 10, 35), (25, 30, 80))
    for _ in range(random.integers(8, 30)):
        radius = sheet.scale / 256 * random.uniform(0.6, 1.8)
        Place(image, random.uniform(0, sheet.width), random.uniform(0, sheet.height), radius).disc(
            0, 0, 1, (235, 235, 245)
        )
    return Ground(image, "night sky", ("blue", "black"))


def _lawn(sheet: Sheet, random: Random, coarse: float) -> NDArray[np.float32]:
    return 1 + 0.35 * sheet.noise(random, coarse) + 0.25 * sheet.noise(random, sheet.scale / 16)


def _grass(sheet: Sheet, random: Random) -> Ground:
    image = sheet.even(tint(random, "green", 10)) * _lawn(sheet, random, sheet.scale / 64)[..., None]
    return Ground(image, "grass", ("green",))


def _sand(sheet: Sheet, random: Random) -> Ground:
    grain = 1 + 0.14 * sheet.noise(random, sheet.scale / 80) + 0.1 * sheet.noise(random, sheet.scale / 12)
    return Ground(sheet.even((226, 196, 140)) * grain[..., None], "sand", ("yellow", "brown"))


def _water(sheet: Sheet, random: Random) -> Ground:
    bend = 2 * np.sin(sheet.columns * 2 * np.pi * random.uniform(2, 4) + random.uniform(0, 6))
    waves = np.sin(sheet.rows * 2 * np.pi * random.uniform(10, 16) + bend)
    light = 1 + 0.18 * waves + 0.1 * sheet.noise(random, sheet.scale / 16)
    return Ground(sheet.even((45, 120, 200)) * light[..., None], "water", ("blue", "cyan"))


def _wood(sheet: Sheet, random: Random) -> Ground:
    upright = random.random() < 0.5
    along = (sheet.columns if upright else sheet.rows) * random.integers(4, 9)
    plank = np.floor(along).astype(int)
    gap = (along - plank < 0.05) | (along - plank > 0.96)
    fine, long = 2, 24
    cells = (sheet.height // (long if upright else fine), sheet.width // (fine if upright else long))
    coarse = random.random((max(2, cells[0]), max(2, cells[1]))).astype(np.float32)
    grain = cv2.resize(coarse, (sheet.width, sheet.height), interpolation=cv2.INTER_LINEAR) - 0.5
    light = (random.uniform(0.78, 1.12, 64)[plank] + 0.22 * grain) * np.where(gap, 0.5, 1)
    caption = ("wood", "wooden stripes", "wooden planks")[random.integers(3)]
    return Ground(sheet.even((165, 108, 58)) * light[..., None], caption, ("brown",))


def _bricks(sheet: Sheet, random: Random) -> Ground:
    count = random.integers(6, 11)
    down = sheet.rows * count
    across = sheet.columns * count / 2 + np.floor(down) % 2 * 0.5
    mortar = (down % 1 < 0.12) | (across % 1 < 0.06)
    light = random.uniform(0.82, 1.15, (40, 40))[np.floor(down).astype(int) % 40, np.floor(across).astype(int) % 40]
    image = np.where(mortar[..., None], np.array((200, 195, 185)), np.array((170, 72, 52)) * light[..., None])
    return Ground(image.astype(np.float32), "bricks", ("red", "brown"))


def _two_coloured(sheet: Sheet, random: Random, second: NDArray[np.bool_]) -> Image:
    weight = cv2.GaussianBlur(second.astype(np.float32), (0, 0), 0.5)[..., None]
    one, other = (np.array(tint(random, name), np.float32) for name in (sheet.first, sheet.second))
    return np.asarray(one * weight + other * (1 - weight), np.float32)


def _stripes(sheet: Sheet, random: Random) -> Ground:
    count, start = random.integers(3, 8) * 2, random.uniform(0, 2)
    direction = random.integers(3)
    down, across = sheet.rows * count, sheet.columns * count
    along = (down + 0 * across, across + 0 * down, (across + down) * np.sqrt(0.5))[direction] + start
    named = ("horizontal ", "vertical ", "diagonal ")[direction] if random.random() < 0.6 else ""
    caption = f"{named}{sheet.first} and {sheet.second} stripes"
    return Ground(_two_coloured(sheet, random, np.floor(along) % 2 > 0), caption, (sheet.first, sheet.second))


def _checkerboard(sheet: Sheet, random: Random) -> Ground:
    count, (down, across) = random.integers(3, 8) * 2, random.uniform(0, 2, 2)
    odd = (np.floor(sheet.rows * count + down) + np.floor(sheet.columns * count + across)) % 2 > 0
    caption = f"{sheet.first} and {sheet.second} checkerboard"
    return Ground(_two_coloured(sheet, random, odd), caption, (sheet.first, sheet.second))


def _dots(sheet: Sheet, random: Random) -> Ground:
    image = sheet.even(tint(random, sheet.second))
    step, colour = sheet.scale / random.integers(5, 10), tint(random, sheet.first)
    for index, y in enumerate(np.arange(step / 2, sheet.height + step, step)):
        for x in np.arange(step / 2 + index % 2 * step / 2 - step, sheet.width + step, step):
            Place(image, x, y, step * 0.27).disc(0, 0, 1, colour)
    return Ground(image, f"{sheet.first} dots on {sheet.second} background", (sheet.first, sheet.second))


def _field(sheet: Sheet, random: Random) -> Ground:
    wave = 0.03 * np.sin(sheet.columns[..., None] * 6 + random.uniform(0, 6))
    horizon = random.uniform(0.4, 0.7) + wave
    grass = sheet.even(tint(random, "green", 10)) * (1 + 0.25 * sheet.noise(random, sheet.scale / 48))[..., None]
    image = np.where(sheet.descent < horizon, sheet.between((110, 175, 240), (205, 228, 248)), grass)
    return Ground(image.astype(np.float32), "green field under blue sky", ("green", "blue", "cyan"))


def _photo(sheet: Sheet, random: Random) -> Ground:
    """Coloured lumps of many sizes: no photograph, but as busy as one."""
    image = sheet.even((0, 0, 0)) + random.uniform(0, 255, 3).astype(np.float32)
    for cells in (4, 10, 28, 70):
        lumps = np.stack([sheet.noise(random, sheet.scale / cells) for _ in range(3)], axis=-1)
        image = image + lumps * random.uniform(0, 90) * (4 / cells) ** 0.3 * (0.35 + 0.65 * random.random())
    return Ground(image * (1 + (sheet.descent - 0.5) * random.uniform(-0.6, 0.6)), None)


BACKGROUNDS: Mapping[str, Callable[[Sheet, Random], Ground]] = {
    PLAIN: _plain,
    "sunset": _sunset,
    "sky": _sky,
    "night": _night,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "wood": _wood,
    "bricks": _bricks,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "dots": _dots,
    "field": _field,
    PHOTO: _photo,
}


def make_ground(random: Random, width: int, height: int, kind: str, *, colour: str | None = None) -> Ground:
    """A background of that kind; `colour` is its first."""
    first = colour or pick(random, COLOUR_NAMES)
    ground = BACKGROUNDS[kind](Sheet(width, height, first, any_but(random, first)), random)
    return Ground(np.ascontiguousarray(np.clip(ground.image, 0, 255), dtype=np.float32), ground.caption, ground.colours)
