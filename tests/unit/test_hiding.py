"""What is shown in the place of a picture that must not be seen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.job import SafetyAction
from worker.hiding import COLOURS_LEFT, GRAY, hidden

SIZES = [(512, 512), (64, 64), (300, 1000), (1000, 64), (9, 9), (1, 3), (1, 1)]


def stripes(height: int, width: int) -> NDArray[np.uint8]:
    """Nothing but detail: black and white, four pixels each."""
    row = np.where(np.arange(width) // 4 % 2, 255, 0).astype(np.uint8)
    return np.repeat(np.tile(row, (height, 1))[..., np.newaxis], 3, axis=2)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def colours(picture: NDArray[np.uint8]) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def steepest(picture: NDArray[np.uint8]) -> int:
    """The largest difference between two neighbours."""
    return int(max(np.abs(np.diff(picture.astype(int), axis=axis)).max() for axis in (0, 1)))


@pytest.mark.parametrize("action", list(SafetyAction))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_picture_of_any_size_is_hidden_in_its_own_size(action: SafetyAction, height: int, width: int) -> None:
    picture = noise(height, width)
    before = picture.copy()
    shown = hidden(picture, action)
    assert (shown.shape, shown.dtype) == (picture.shape, np.uint8)
    assert np.array_equal(picture, before)
    if height * width > 3:
        assert not np.array_equal(shown, picture)


def test_black_is_black() -> None:
    assert not hidden(noise(64, 96), SafetyAction.BLACK).any()


def test_of_a_pixelated_picture_a_few_colours_are_left() -> None:
    shown = hidden(noise(512, 512), SafetyAction.PIXELATE)
    assert 1 < colours(shown) <= COLOURS_LEFT**2
    assert colours(hidden(noise(9, 9), SafetyAction.PIXELATE)) <= 4


def test_of_a_blurred_picture_no_detail_is_left_and_the_light_stays_where_it_was() -> None:
    assert steepest(hidden(stripes(512, 512), SafetyAction.BLUR)) <= 2
    half = np.zeros((256, 256, 3), np.uint8)
    half[:, 128:] = 255
    shown = hidden(half, SafetyAction.BLUR)
    assert steepest(shown) < 10
    assert shown[:, :16].mean() < 30
    assert shown[:, -16:].mean() > 225


@pytest.mark.parametrize(("height", "width"), SIZES[:4])
def test_the_card_shows_a_text_and_nothing_of_the_picture(height: int, width: int) -> None:
    shown = hidden(noise(height, width), SafetyAction.TEXT)
    assert np.array_equal(shown, hidden(stripes(height, width), SafetyAction.TEXT))
    inside = (shown > 200).all(axis=2)
    assert 0.002 < inside.mean() < 0.3, "a text is white strokes"
    rows, columns = np.nonzero(inside)
    # Inside the card, and in its middle.
    assert (rows.min() + rows.max()) / 2 == pytest.approx(height / 2, abs=0.08 * height)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(width / 2, abs=0.08 * width)
    assert (shown[0] == GRAY).all()


def test_a_picture_too_small_for_a_text_becomes_gray() -> None:
    assert (hidden(noise(9, 9), SafetyAction.TEXT) == GRAY).all()
