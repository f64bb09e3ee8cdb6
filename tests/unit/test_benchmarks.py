"""The benchmarks' arithmetic: a wrong table would be believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.figures import Row, markdown, milliseconds, quantile
from tests.benchmarks.latency import Times
from tests.benchmarks.obedience import Prompt, held_out_wishes, obedience
from tests.benchmarks.pictures import as_png, from_png, middle_mask, photograph_like
from tests.unit.test_doodle_world import drawn
from worker.builtin.train.__main__ import MOST_WISHES, TRIAL_SEED
from worker.builtin.train.shapes import SHAPES
from worker.builtin.train.trials import Wish, make_wishes


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


class DrawnStudio:
    """Paints what the prompt of each of these wishes asks for, by hand; `swapped`: what the next one asks for."""

    size = 96

    def __init__(self, wishes: Sequence[Wish], *, swapped: bool = False) -> None:
        shown = [*wishes[1:], wishes[0]] if swapped else wishes
        self._by_prompt = dict(zip((wish.prompt for wish in wishes), shown, strict=True))

    def parts(self, prompts: Iterable[Prompt]) -> list[NDArray[np.uint8]]:
        wishes = [self._by_prompt[prompt.text] for prompt in prompts]
        return [drawn(wish.colour, wish.shape, wish.background, wish.seed) for wish in wishes]


@pytest.mark.parametrize(("count", "swapped"), [(4, False), (30, False), (30, True)])
def test_the_benchmark_of_obedience_counts_what_is_seen(count: int, swapped: bool) -> None:
    wishes = held_out_wishes(count)
    *shares, by_shape = obedience(DrawnStudio(wishes, swapped=swapped), count)  # type: ignore[arg-type]  # all it needs
    assert [row.met for row in shares] == [not swapped] * 3
    assert set(by_shape.values) == {wish.shape for wish in wishes}


def test_held_out_prompts_are_none_that_weights_are_chosen_by_and_have_every_shape_as_often() -> None:
    wishes = held_out_wishes(200)
    assert len({wish.prompt for wish in wishes}) == 200
    assert not {wish.prompt for wish in wishes} & {wish.prompt for wish in make_wishes(MOST_WISHES, TRIAL_SEED)}
    assert {sum(wish.shape == shape for wish in wishes) for shape in SHAPES} == {20}


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
