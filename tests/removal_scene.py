"""A wall with something on it that is to be taken away, and how to see that it is gone."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
THING = (255, 0, 255)


def wall(height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """Bricks, with grain, so that no two places are alike by chance."""
    y, x = np.mgrid[:height, :width]
    joint = (y % 16 < 2) | ((x + 16 * (y // 16 % 2)) % 32 < 2)
    grain = np.random.default_rng(5).normal(0, 3, (height, width, 1))
    colours = np.where(joint[..., None], (200, 196, 190), (150, 70, 50)) + grain
    return np.clip(colours, 0, 255).astype(np.uint8)


def disc(height: int = SIDE, width: int = SIDE, radius: int = 18) -> NDArray[np.bool_]:
    """Where the thing hangs."""
    y, x = np.mgrid[:height, :width]
    inside: NDArray[np.bool_] = np.hypot(y - height / 2, x - width / 2) < radius
    return inside


def with_thing(picture: NDArray[np.uint8], hole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    shown = picture.copy()
    shown[hole] = THING
    return shown


def pngs(*, white_paints: bool = True) -> tuple[bytes, bytes]:
    """The wall with the thing, and the mask."""
    mask = np.where(disc() == white_paints, 255, 0).astype(np.uint8)
    return _png(with_thing(wall(), disc())), _png(mask)


def data_uris() -> tuple[str, str]:
    picture, mask = (f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pngs())
    return picture, mask


def assert_gone(result: NDArray[np.uint8]) -> None:
    """Of the thing nothing is left, and all else is as it was."""
    assert result.shape == wall().shape
    assert np.array_equal(result[~disc()], wall()[~disc()])
    distance = np.abs(result[disc()].astype(int) - THING).max(axis=1)
    assert distance.min() > 60
    # Bricks and joints again, in about the same shares.
    bright = (result[disc()][:, 1] > 130).mean()
    assert 0.05 < bright < 0.4


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
