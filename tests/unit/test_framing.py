"""What a model gets to see of a picture that is too large for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.model_catalog import load_catalog
from storage.settings import StorageSettings
from worker.framing import SMALL_SIDE, Frame, Whole, frame_for

ENTRY = dataclasses.replace(load_catalog(StorageSettings(models_file=None)).default, min_size=64, max_size=128)


def masked(height: int, width: int, rows: slice, columns: slice) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = 255
    return mask


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 120), (100, 72), (40, 40)])
def test_a_picture_that_the_model_can_work_at_is_seen_whole(height: int, width: int) -> None:
    frame = frame_for(masked(height, width, slice(3, 9), slice(5, 20)), ENTRY)
    assert frame.box == [0, 0, width, height]
    assert frame.worked_size == ENTRY.worked_size(width, height)


def test_a_small_mask_in_a_large_picture_is_seen_pixel_for_pixel_with_its_surroundings() -> None:
    picture, mask = noise(900, 1200), masked(900, 1200, slice(400, 440), slice(600, 660))
    frame = frame_for(mask, ENTRY)
    assert frame.box == [566, 356, 128, 128]
    assert np.array_equal(frame.picture_for_model(picture), picture[356:484, 566:694])
    assert np.array_equal(frame.mask_for_model(mask), mask[356:484, 566:694])


def test_a_larger_mask_is_scaled_down_no_more_than_it_must_be() -> None:
    frame = frame_for(masked(900, 1200, slice(300, 500), slice(500, 600)), ENTRY)
    assert frame.box == [400, 250, 300, 300]
    assert frame.worked_size == (128, 128)


def test_at_the_edge_of_the_picture_the_frame_is_moved_inside() -> None:
    frame = frame_for(masked(500, 500, slice(0, 30), slice(490, 500)), ENTRY)
    assert frame.box == [372, 0, 128, 128]


def test_a_mask_that_is_everywhere_has_the_whole_picture_for_its_frame() -> None:
    frame = frame_for(masked(300, 600, slice(0, 300), slice(0, 600)), ENTRY)
    assert frame.box == [0, 0, 600, 300]
    assert frame.worked_size == (128, 64)


def test_what_is_painted_lands_where_it_was_seen_and_nowhere_else() -> None:
    picture, mask = noise(400, 300), masked(400, 300, slice(200, 240), slice(100, 180))
    frame = frame_for(mask, ENTRY)
    result = frame.paste(255 - frame.picture_for_model(picture), picture, mask)
    assert np.array_equal(result[mask == 255], 255 - picture[mask == 255])
    assert np.array_equal(result[mask == 0], picture[mask == 0])


def test_what_is_painted_small_is_scaled_to_its_place() -> None:
    picture, mask = noise(600, 600), masked(600, 600, slice(100, 500), slice(100, 500))
    frame = frame_for(mask, ENTRY)
    assert frame.worked_size == (128, 128)
    halves = np.zeros((128, 128, 3), np.uint8)
    halves[:, 64:] = 255
    result = frame.paste(halves, picture, mask)
    assert (result[100:500, 100:290] < 10).all() and (result[100:500, 310:500] > 245).all()


@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    place=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_frame_holds_the_mask_and_lies_in_the_picture(
    size: tuple[int, int], place: tuple[float, float, float, float]
) -> None:
    height, width = size
    rows = sorted(int(share * (height - 1)) for share in place[:2])
    columns = sorted(int(share * (width - 1)) for share in place[2:])
    mask = masked(height, width, slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))
    frame = frame_for(mask, ENTRY)
    assert mask[frame.rows, frame.columns].sum(dtype=int) == mask.sum(dtype=int)
    assert 0 <= frame.rows.start < frame.rows.stop <= height
    assert 0 <= frame.columns.start < frame.columns.stop <= width
    assert frame.picture_for_model(noise(height, width)).shape == (*frame.worked_size[::-1], 3)
    assert frame.mask_for_model(mask).any()


@given(st.data())
def test_the_part_of_a_small_whole_lies_in_it_and_has_a_pixel_at_least(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    picture = np.broadcast_to(np.uint8(7), (height, width, 3))
    whole = Whole(picture, Frame(slice(top, bottom), slice(left, right), 8, 8))
    small = whole.small
    assert max(small.shape[:2]) == min(SMALL_SIDE, max(height, width))
    assert small[whole.small_part].size > 0
    assert all(part.stop <= length for part, length in zip(whole.small_part, small.shape[:2], strict=True))
    assert (small == 7).all()
