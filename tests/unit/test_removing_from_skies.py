from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.removal_scene import with_thing
from worker.removing.fill import fill

SAMPLE_DIR = Path(__file__).resolve().parents[2] / "deploy" / "sample"
SIDE = 128

Pixels = NDArray[np.uint8]
Hole = NDArray[np.bool_]


def the_sample(side: int) -> tuple[Pixels, Hole]:
    """A house beside a large hole in a smooth sky."""
    with Image.open(SAMPLE_DIR / "picture.png") as picture, Image.open(SAMPLE_DIR / "mask.png") as mask:
        pixels = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
        hole = np.asarray(mask.convert("L").resize((side, side), Image.Resampling.NEAREST)) > 127
    return pixels, hole


def a_hut_in_the_dusk() -> tuple[Pixels, Hole, Pixels]:
    """A bright triangle left of a large hole in a smooth slanting gradient; the third is how it goes on."""
    y, x = np.mgrid[:SIDE, :SIDE]
    dusk = np.stack([120 + y * 0.6, 110 + y * 0.3 + x * 0.1, 190 - y * 0.4], axis=-1).astype(np.uint8)
    picture = dusk.copy()
    picture[(y > 44) & (y < 92) & (np.abs(x - 27) < (y - 44) / 2)] = (250, 250, 245)
    hole: Hole = np.hypot(y - 60, x - 92) < 33
    return with_thing(picture, hole), hole, dusk


def assert_smooth(result: Pixels, hole: Hole, ideal: Pixels, *, off: int, step: int) -> None:
    """In gray levels: how far the hole may be from `ideal`, and neighbours in it and at its rim from each other."""
    assert np.abs(result.astype(int) - ideal)[hole].max() <= off
    for axis in (0, 1):
        steps = np.abs(np.diff(result.astype(int), axis=axis)).max(axis=-1)
        near = cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert steps[near[1:] if axis == 0 else near[:, 1:]].max() <= step


@pytest.mark.parametrize(("side", "seed"), [(128, 1), (128, 3), (256, 7)])
def test_no_house_floats_in_the_sky_of_the_sample(side: int, seed: int) -> None:
    picture, hole = the_sample(side)
    ideal = np.broadcast_to(picture[:, -1:], picture.shape)
    assert_smooth(fill(picture, hole, seed=seed), hole, ideal, off=12, step=16)


def test_a_strong_thing_beside_a_smooth_hole_stays_outside() -> None:
    picture, hole, ideal = a_hut_in_the_dusk()
    assert_smooth(fill(picture, hole, seed=2), hole, ideal, off=4, step=4)
