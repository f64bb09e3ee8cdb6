"""The benchmarks' arithmetic: a wrong table would be believed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.figures import Row, markdown, milliseconds, quantile
from tests.benchmarks.latency import Times
from tests.benchmarks.pictures import as_png, from_png, middle_mask, photograph_like


def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50.0
    assert quantile(values, 0.95) == 95.0
    assert quantile(values, 0.99) == 99.0
    assert quantile([3.0], 0.01) == 3.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_every_row_of_the_table_has_all_columns_in_line() -> None:
    rows = [
        Row(part="a", measured="one job", figure="1.0 ms", control="2.0 ms", ratio=0.5, aim="≤ 1.05", met=True),
        Row(part="b", measured="submits", figure="300/s"),
    ]
    lines = markdown(rows).splitlines()
    assert lines[2].replace(" ", "") == "|a|onejob|1.0ms|2.0ms|0.50|≤1.05|yes|"
    assert lines[3].replace(" ", "") == "|b|submits|300/s|–|–|–|–|"
    assert len({len(line) for line in lines}) == 1
    assert all(line.count("|") == 8 for line in lines)


def test_a_missed_aim_says_no() -> None:
    assert Row(part="c", measured="x", figure="y", met=False).cells()[-1] == "no"


def test_milliseconds_have_a_decimal_while_it_matters() -> None:
    assert milliseconds(0.00123) == "1.2 ms"
    assert milliseconds(1.2345) == "1234 ms"


def test_the_time_after_the_last_pixel_leaves_out_the_encode_and_what_came_before() -> None:
    times = Times(
        recorded=9.0,
        started=9.5,
        answered=10.9,
        ping_seconds=0.001,
        spans=[
            ("scale_picture", 9.6, 9.8),
            ("decode", 9.8, 10.0),
            ("scale_part", 10.1, 10.2),
            ("encode_png", 10.2, 10.5),
            ("finish", 10.6, 10.7),
        ],
    )
    assert times.to_claim() == pytest.approx(0.5)
    assert times.spent("scale_part") == pytest.approx(0.1)
    assert times.spent("scale_picture") == 0
    assert times.after_last_pixel(times.stored) == pytest.approx(0.4)
    assert times.after_last_pixel(times.answered) == pytest.approx(0.6)
    assert times.returned == 10.1


def test_the_synthetic_picture_is_the_same_each_time_and_hard_to_compress() -> None:
    picture = photograph_like(128)
    assert np.array_equal(picture, photograph_like(128))
    assert np.array_equal(from_png(as_png(picture)), picture)
    assert len(as_png(picture)) > picture.size / 3


def test_the_mask_lies_on_the_grid_of_latents() -> None:
    mask = middle_mask(128)
    patches = mask.reshape(16, 8, 16, 8)
    assert np.array_equal(patches.min(axis=(1, 3)), patches.max(axis=(1, 3)))
    assert set(np.unique(mask)) == {0, 255}
