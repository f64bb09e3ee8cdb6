"""What was not masked does not change, and no stroke is too thin to be painted."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.job import MaskPaints
from worker.masks import composite, feather, is_empty, latent_mask, normal_form, scale_mask

SIDE = st.integers(1, 23)
# Mostly kept, as masks are: hypothesis fills the rest with 0.
MASKS = hnp.arrays(np.uint8, st.tuples(SIDE, SIDE), elements=st.sampled_from([0, 1, 3, 128, 254, 255]), fill=st.just(0))


def test_a_white_painting_mask_is_the_normal_form_already() -> None:
    mask = np.array([[0, 7, 255]], np.uint8)
    assert normal_form(mask, MaskPaints.WHITE).tolist() == [[0, 7, 255]]


def test_a_black_painting_mask_is_turned_round() -> None:
    mask = np.array([[0, 7, 255]], np.uint8)
    assert normal_form(mask, MaskPaints.BLACK).tolist() == [[255, 248, 0]]


def test_a_mask_is_empty_only_without_a_single_gray_pixel() -> None:
    mask = np.zeros((9, 9), np.uint8)
    assert is_empty(mask)
    mask[4, 4] = 1
    assert not is_empty(mask)


def _covered(index: int, count: int, length: int) -> list[tuple[int, Fraction]]:
    """Which source pixels one pixel of the result covers along an axis, and how much of each."""
    start, end = Fraction(index * length, count), Fraction((index + 1) * length, count)
    overlaps = ((at, min(end, Fraction(at + 1)) - max(start, Fraction(at))) for at in range(length))
    return [(at, overlap) for at, overlap in overlaps if overlap > 0]


@settings(deadline=None)
@given(mask=MASKS, width=SIDE, height=SIDE)
def test_a_scaled_mask_is_the_mean_of_the_area_each_pixel_covers(mask: np.ndarray, width: int, height: int) -> None:
    scaled = scale_mask(mask, width, height)
    assert scaled.shape == (height, width)
    assert scaled.dtype == np.uint8
    for row in range(height):
        rows = _covered(row, height, mask.shape[0])
        for column in range(width):
            columns = _covered(column, width, mask.shape[1])
            area = sum((share for _, share in rows), Fraction()) * sum((s for _, s in columns), Fraction())
            total = sum((int(mask[y, x]) * a * b for y, a in rows for x, b in columns), Fraction())
            assert (scaled[row, column] == 0) == (total == 0)
            assert abs(scaled[row, column] - total / area) <= (Fraction(1, 2) if total / area >= Fraction(1, 2) else 1)


@settings(deadline=None)
@given(mask=MASKS, width=SIDE, height=SIDE)
def test_a_stroke_of_one_pixel_survives_every_size(mask: np.ndarray, width: int, height: int) -> None:
    assert is_empty(scale_mask(mask, width, height)) == is_empty(mask)


def test_one_pixel_of_a_large_mask_survives_to_the_smallest_size() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[1777, 1234] = 1
    scaled = scale_mask(mask, 64, 96)
    assert np.argwhere(scaled).tolist() == [[1777 * 96 // 3000, 1234 * 64 // 2000]]
    assert scaled.max() == 1


def test_a_mask_of_the_asked_size_stays_as_it_is() -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(scale_mask(mask, 8, 8), mask)


@settings(deadline=None)
@given(value=st.integers(0, 255), height=SIDE, width=SIDE, new_height=SIDE, new_width=SIDE)
def test_an_even_mask_keeps_its_value(value: int, height: int, width: int, new_height: int, new_width: int) -> None:
    mask = np.full((height, width), value, np.uint8)
    assert (scale_mask(mask, new_width, new_height) == value).all()


@settings(deadline=None)
@given(
    mask=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 4).map(lambda n: n * 8), st.integers(1, 4).map(lambda n: n * 8)),
        elements=st.sampled_from([0, 1, 255]),
        fill=st.just(0),
    )
)
def test_a_latent_is_painted_where_any_pixel_of_its_patch_is(mask: np.ndarray) -> None:
    latents = latent_mask(mask, 8)
    assert latents.dtype == np.float32
    assert latents.shape == (mask.shape[0] // 8, mask.shape[1] // 8)
    for (row, column), value in np.ndenumerate(latents):
        assert value == float(mask[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].any())


def test_a_mask_without_whole_patches_has_no_latent_mask() -> None:
    with pytest.raises(ValueError, match="12x16"):
        latent_mask(np.zeros((16, 12), np.uint8), 8)


@settings(deadline=None)
@given(data=st.data(), mask=MASKS, feather_pixels=st.integers(0, 6))
def test_every_byte_where_the_mask_is_0_is_the_picture_s(
    data: st.DataObject, mask: np.ndarray, feather_pixels: int
) -> None:
    pictures = hnp.arrays(np.uint8, (*mask.shape, 3))
    picture, painted = data.draw(pictures), data.draw(pictures)
    result = composite(picture, painted, feather(mask, feather_pixels))
    assert result.dtype == np.uint8
    assert np.array_equal(result[mask == 0], picture[mask == 0])
    low, high = np.minimum(picture, painted), np.maximum(picture, painted)
    assert ((low <= result) & (result <= high)).all()


@settings(deadline=None)
@given(data=st.data(), mask=MASKS)
def test_gray_mixes_and_white_takes_the_painted_pixel(data: st.DataObject, mask: np.ndarray) -> None:
    pictures = hnp.arrays(np.uint8, (*mask.shape, 3))
    picture, painted = data.draw(pictures), data.draw(pictures)
    result = composite(picture, painted, mask)
    weight = mask[..., None] / 255
    assert np.abs(result - (painted * weight + picture * (1 - weight))).max() <= 0.5 + 1e-9
    assert np.array_equal(result[mask == 255], painted[mask == 255])


@settings(deadline=None)
@given(mask=MASKS, pixels=st.integers(0, 6))
def test_a_feather_lies_inside_the_mask(mask: np.ndarray, pixels: int) -> None:
    soft = feather(mask, pixels)
    assert (soft <= mask).all()
    assert not soft[mask == 0].any()


@pytest.mark.parametrize("end", [(180, 20), (180, 60), (180, 170), (20, 180), (60, 180)])
@pytest.mark.parametrize("thickness", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("pixels", [1, 4, 12])
def test_the_middle_of_a_stroke_is_fully_repainted(end: tuple[int, int], thickness: int, pixels: int) -> None:
    mask, middle = np.zeros((2, 200, 200), np.uint8)
    cv2.line(mask, (20, 20), end, 255, thickness)
    cv2.line(middle, (20, 20), end, 255, 1)
    assert (feather(mask, pixels)[middle > 0] == 255).all()


def test_a_thin_stroke_beside_a_wide_area_keeps_its_middle() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 40:] = 255
    mask[50:53, 10:38] = 255
    assert (feather(mask, 8)[51, 10:38] == 255).all()


def test_the_edge_of_a_wide_area_rises_evenly_and_the_picture_s_border_is_no_edge() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[:, 30:] = 255
    soft = feather(mask, 4)
    assert (soft == soft[0]).all()
    assert soft[0, 28:40].tolist() == [0, 0, 51, 102, 153, 204, 255, 255, 255, 255, 255, 255]
    assert (soft[0, 34:] == 255).all()


def test_a_mask_that_is_all_white_has_no_edge() -> None:
    mask = np.full((20, 20), 255, np.uint8)
    assert (feather(mask, 4) == 255).all()
