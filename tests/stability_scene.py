"""The picture and mask that Stability's clients send in acceptance tests, and what must come of them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 128
HOLE = (24, 24, 103, 103)


def picture() -> Image.Image:
    drawn = Image.new("RGB", (SIDE, SIDE), "white")
    for x in range(0, SIDE, 8):
        ImageDraw.Draw(drawn).line((x, 0, x, SIDE), fill=(60, 90, 2 * x))
    ImageDraw.Draw(drawn).rectangle(HOLE, fill="white")
    return drawn


def mask() -> Image.Image:
    """Black is repainted, white stays."""
    drawn = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(drawn).rectangle(HOLE, fill=0)
    return drawn


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(png: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def assert_red_in_the_black_part_only(result: NDArray[np.uint8]) -> None:
    assert_red_only_where(np.asarray(mask()) == 0, result)


def assert_red_only_where(repainted: NDArray[np.bool_], result: NDArray[np.uint8]) -> None:
    """A red circle before white was asked for there, the rest is the picture's."""
    before = np.asarray(picture())
    assert result.shape == before.shape
    assert np.array_equal(result[~repainted], before[~repainted])
    red, green, blue = (result[..., channel].astype(int)[repainted] for channel in range(3))
    assert ((red > 150) & (green < 100) & (blue < 100)).mean() > 0.1, "red was asked for"
