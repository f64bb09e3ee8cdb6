"""Renders the picture that `remove` is shown on, its mask and a before-and-after: `python -m deploy.pictures.draw`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.removing.fill import fill

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 384, 256
OVERSAMPLED = 3
FLOOR_AT = 0.66
BRICK_WIDTH, BRICK_HEIGHT, JOINT = 0.075, 0.05, 0.006
WALL_RGB, JOINT_RGB, TILE_RGB, GAP_RGB = (158, 84, 62), (190, 182, 170), (150, 146, 138), (92, 88, 84)
CONE_RGB, BAND_RGB = (236, 92, 28), (238, 236, 230)
CONE_AT, CONE_TOP, CONE_FOOT = 0.56, 0.34, 0.86
SEED = 4

Canvas = NDArray[np.float64]


def photograph() -> NDArray[np.uint8]:
    """(H, W, 3): a brick wall, a paved floor in perspective, and a traffic cone with its shadow, in evening light."""
    rng = np.random.default_rng(SEED)
    height, width = HEIGHT * OVERSAMPLED, WIDTH * OVERSAMPLED
    y, x = np.mgrid[:height, :width] / height
    scene = np.where((y < FLOOR_AT)[..., None], _wall(y, x, rng), _floor(y, x, rng))
    scene *= 1 - 0.35 * np.exp(-np.abs(y - FLOOR_AT) / 0.02)[..., None]
    scene = _with_cone(scene, y, x)
    light = 1.12 - 0.28 * x / x.max() - 0.25 * np.square(y - 0.45)
    scene *= light[..., None]
    small = cv2.resize(scene, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 0.5) + rng.normal(0, 2.0, (HEIGHT, WIDTH, 1))
    return np.asarray(np.clip(np.rint(small), 0, 255), np.uint8)


def mask() -> NDArray[np.uint8]:
    """(H, W): white over the cone and its shadow."""
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    centre = CONE_AT * HEIGHT * WIDTH / HEIGHT
    foot = CONE_FOOT * HEIGHT
    outline = [(centre - 13, CONE_TOP * HEIGHT - 8), (centre + 13, CONE_TOP * HEIGHT - 8)]
    outline += [(centre + 52, foot - 14), (centre + 112, foot - 12), (centre + 112, foot + 16)]
    outline += [(centre - 52, foot + 16), (centre - 52, foot - 14)]
    cv2.fillPoly(drawn, [np.rint(outline).astype(np.int32)], 255)
    return drawn


def before_and_after() -> NDArray[np.uint8]:
    """The photograph, the same with the mask in white, and what `remove` makes of it, side by side."""
    picture, hole = photograph(), mask() > 0
    masked = np.where(hole[..., None], np.uint8(255), picture)
    after = fill(picture, hole, seed=SEED)
    gap = np.full((HEIGHT, 6, 3), 255, np.uint8)
    strip = np.concatenate([picture, gap, masked, gap, after], axis=1)
    return np.asarray(cv2.resize(strip, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA), np.uint8)


def _wall(y: Canvas, x: Canvas, rng: np.random.Generator) -> Canvas:
    row = np.floor(y / BRICK_HEIGHT).astype(int)
    along = x / BRICK_WIDTH + 0.5 * (row % 2)
    column = np.floor(along).astype(int)
    tint = rng.normal(0, 13, (row.max() + 1, column.max() + 1))[row, column]
    rough = _grain(y.shape, 2.0, 7, rng)
    joint = (y % BRICK_HEIGHT < JOINT) | ((along % 1) * BRICK_WIDTH < JOINT)
    brick = np.array(WALL_RGB) + (tint + rough)[..., None] * np.array([1.0, 0.75, 0.6])
    mortar = np.array(JOINT_RGB) + 0.6 * rough[..., None]
    return np.where(joint[..., None], mortar, brick)


def _floor(y: Canvas, x: Canvas, rng: np.random.Generator) -> Canvas:
    depth = 0.12 / np.maximum(y - FLOOR_AT + 0.12, 1e-3)
    across = (x - x.max() / 2) * depth * 4
    away = depth * 7
    row, column = np.floor(away).astype(int), np.floor(across + 0.5 * (np.floor(away) % 2)).astype(int)
    tint = rng.normal(0, 8, (64, 64))[row % 64, column % 64]
    gap = (away % 1 < 0.07) | ((across + 0.5 * (np.floor(away) % 2)) % 1 < 0.035)
    stone = np.array(TILE_RGB) + (tint + _grain(y.shape, 1.5, 9, rng))[..., None]
    return np.where(gap[..., None], np.array(GAP_RGB, float), stone)


def _with_cone(scene: Canvas, y: Canvas, x: Canvas) -> Canvas:
    centre = CONE_AT * x.max()
    up = (CONE_FOOT - y) / (CONE_FOOT - CONE_TOP)
    half = 0.02 + 0.115 * (1 - up)
    shadow = np.square((x - centre - 0.13) / 0.24) + np.square((y - CONE_FOOT) / 0.028)
    scene = scene * (1 - 0.45 * np.clip(1.4 - shadow, 0, 1))[..., None]
    base = (np.abs(x - centre) < 0.17) & (np.abs(y - CONE_FOOT) < 0.022)
    side = (up > 0) & (up < 1) & (np.abs(x - centre) < half)
    shade = 1.1 - 0.55 * np.clip((x - centre) / half / 2 + 0.5, 0, 1)
    bands = ((up > 0.35) & (up < 0.5)) | ((up > 0.65) & (up < 0.78))
    colour = np.where(bands[..., None], np.array(BAND_RGB, float), np.array(CONE_RGB, float)) * shade[..., None]
    scene = np.where(base[..., None], np.array(CONE_RGB) * 0.62, scene)
    return np.where(side[..., None], colour, scene)


def _grain(shape: tuple[int, ...], spread: float, deviation: float, rng: np.random.Generator) -> Canvas:
    rough = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), spread)
    grain: Canvas = rough * deviation / rough.std()
    return grain


def main() -> None:
    drawn = {"photograph.png": photograph(), "mask.png": mask(), "before-and-after.png": before_and_after()}
    for name, pixels in drawn.items():
        Image.fromarray(pixels).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
