import time
from io import BytesIO
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.removal_scene import disc, wall, with_thing
from worker.removing import __main__ as removing_program
from worker.removing.arranging import decode, encode
from worker.removing.fill import MAX_COSTS, STAGES, NothingToContinue, fill
from worker.removing.labelling import Links, Pairs, propagate
from worker.removing.smoothing import smooth_over
from worker.removing.wire import Answer, Request, read_answer

SIZE = 128
SHIPPED_MAX_COSTS = MAX_COSTS


@pytest.fixture(autouse=True)
def _fewer_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest number of offsets: a third of the time, and all that is asked here holds with them too."""
    monkeypatch.setattr("worker.removing.fill.MAX_COSTS", 1)


def bricks(height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    return wall(height, width)


def a_hole() -> NDArray[np.bool_]:
    return disc(SIZE, SIZE, 26)


def decibels(result: NDArray[np.uint8], truth: NDArray[np.uint8], hole: NDArray[np.bool_]) -> float:
    error = np.square(result[hole].astype(float) - truth[hole]).mean()
    return float(10 * np.log10(255**2 / error))


def test_a_wall_is_continued_where_something_hung() -> None:
    hole = a_hole()

    result = fill(with_thing(bricks(), hole), hole, seed=1)

    smeared = cv2.inpaint(bricks(), hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert decibels(result, bricks(), hole) > decibels(smeared, bricks(), hole) + 6


def test_outside_the_hole_nothing_changes() -> None:
    picture, hole = with_thing(bricks(), a_hole()), a_hole()
    assert np.array_equal(fill(picture, hole, seed=3)[~hole], picture[~hole])


def test_what_lay_in_the_hole_has_no_effect() -> None:
    hole = a_hole()
    noise = bricks()
    noise[hole] = np.random.default_rng(0).integers(0, 256, (np.count_nonzero(hole), 3))
    assert np.array_equal(fill(with_thing(bricks(), hole), hole, seed=1), fill(noise, hole, seed=1))


def test_a_seed_gives_the_same_picture_again_and_another_seed_another() -> None:
    rng = np.random.default_rng(2)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), (0, 0), 2)
    first, again, other = (fill(picture, a_hole(), seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_smooth_gradient_goes_on_without_a_seam() -> None:
    ramp = np.repeat(np.linspace(40, 200, SIZE).astype(np.uint8)[:, None], SIZE, axis=1)
    picture = np.stack([ramp] * 3, axis=-1)
    result = fill(with_thing(picture, a_hole()), a_hole(), seed=1)
    assert np.abs(result.astype(int) - picture)[a_hole()].max() < 12


def test_colours_come_from_around_the_hole_only() -> None:
    """The picture has two colours, the hole a third, and no place between them is smooth."""
    picture = np.where(bricks()[..., :1] > 170, np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    shown = with_thing(picture, a_hole())
    assert (np.ptp(fill(shown, a_hole(), seed=1)[a_hole()].astype(int), axis=1) == 0).all()


def test_a_mask_over_everything_leaves_nothing_to_continue() -> None:
    with pytest.raises(NothingToContinue):
        fill(bricks(), np.ones((SIZE, SIZE), bool), seed=1)


def test_an_empty_mask_gives_the_picture() -> None:
    assert np.array_equal(fill(bricks(), np.zeros((SIZE, SIZE), bool), seed=1), bricks())


def hostile_masks(size: int) -> dict[str, NDArray[np.bool_]]:
    y, x = np.mgrid[:size, :size]
    one_kept = np.ones((size, size), bool)
    one_kept[size // 2, size // 3] = False
    rng = np.random.default_rng(1)
    return {
        "checkerboard": (y + x) % 2 == 0,
        "one pixel kept": one_kept,
        "one column kept": x > 0,
        "a corner kept": (y > 24) | (x > 24),
        "stripes": y % 4 > 0,
        "sparse noise": rng.random((size, size)) < 0.05,
        "dense noise": rng.random((size, size)) < 0.95,
        "one pixel": (y == 0) & (x == 0),
        "a thin ring kept": abs(np.hypot(y - size / 2, x - size / 2) - 0.4 * size) > size / 29,
        "a wavy band kept": abs(y - size / 2 - size / 5 * np.sin(12 * x / size)) > size / 20,
    }


@pytest.mark.parametrize("name", hostile_masks(8))
def test_hostile_masks_are_filled_in_bounded_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.removing.fill.MAX_COSTS", SHIPPED_MAX_COSTS)
    picture = bricks(200, 200)
    hole = hostile_masks(200)[name]
    start = time.process_time()
    result = fill(picture, hole, seed=1)
    assert time.process_time() - start < 8
    assert np.array_equal(result[~hole], picture[~hole])


@pytest.mark.parametrize("name", hostile_masks(8))
def test_nothing_is_copied_from_hostile_masks(name: str) -> None:
    hole = hostile_masks(160)[name]
    one, other = bricks(160, 160), bricks(160, 160)
    one[hole], other[hole] = (255, 0, 255), (0, 255, 0)
    assert np.array_equal(fill(one, hole, seed=1), fill(other, hole, seed=1))


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 3), (7, 200), (65, 33)])
def test_any_shape_is_taken(shape: tuple[int, int]) -> None:
    hole = np.zeros(shape, bool)
    hole[shape[0] // 2, shape[1] // 2] = True
    picture = np.full((*shape, 3), 90, np.uint8)
    assert (fill(with_thing(picture, hole), hole, seed=1) == 90).all()


def test_a_large_picture_is_decided_small_and_copied_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.removing.fill.MAX_HOLE_PIXELS", 1500)
    picture, hole = bricks(256, 256), disc(256, 256, 40)
    result = fill(with_thing(picture, hole), hole, seed=1)
    sharpness = np.abs(np.diff(result.astype(int), axis=0))[hole[1:]].mean()
    assert sharpness == pytest.approx(np.abs(np.diff(picture.astype(int), axis=0))[hole[1:]].mean(), rel=0.3)


def test_every_stage_is_told_and_telling_may_end_it() -> None:
    told: list[int] = []
    fill(bricks(), a_hole(), seed=1, tell=told.append)
    assert sorted(set(told)) == list(range(STAGES + 1))
    assert told == sorted(told)

    def give_up(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(bricks(), a_hole(), seed=1, tell=give_up)


def test_codes_of_offsets_are_read_back() -> None:
    offsets = np.array([[0, 0], [-5, 7], [9000, -12000], [-1, -1]])
    assert np.array_equal(decode(encode(offsets)), offsets)


def test_propagation_finds_the_cheapest_choices_of_a_chain() -> None:
    """A chain has no loops: there the answer is exact."""
    rng = np.random.default_rng(3)
    unary = rng.random((6, 3)).astype(np.float32)
    costs = rng.random((5, 3, 3)).astype(np.float32)
    pairs = Pairs(first=np.arange(5), second=np.arange(1, 6), steps=tuple(slice(n, n + 1) for n in range(5)))
    answer = propagate(unary, (Links(pairs, costs),), np.arange(6) % 2, rounds=1, check=lambda: None)
    every = np.array(np.meshgrid(*[range(3)] * 6)).reshape(6, -1)
    all_costs = sum(unary[n, every[n]] for n in range(6)) + sum(costs[n, every[n], every[n + 1]] for n in range(5))
    assert answer.cost == pytest.approx(all_costs.min(), abs=1e-5)


def test_a_smooth_filling_keeps_what_is_known_and_stays_between_it() -> None:
    picture = np.zeros((50, 70, 3), np.float32)
    picture[:, 35:] = 200
    known = np.ones((50, 70), bool)
    known[10:40, 20:50] = False
    result = smooth_over(picture, known)
    assert np.array_equal(result[known], picture[known])
    assert 0 <= result.min() <= result.max() <= 200
    assert 50 < result[25, 35, 0] < 150


def test_want_of_memory_is_told_whoever_feels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV has an error of its own for it."""
    short = cv2.error("no memory")
    short.code = cv2.Error.StsNoMem
    request = Request(picture=np.zeros((8, 8, 3), np.uint8), hole=np.ones((8, 8), bool), seed=0)
    for error in (short, MemoryError()):
        monkeypatch.setattr(removing_program, "fill", Mock(side_effect=error))
        answers = BytesIO()
        removing_program._remove(request, answers)
        answers.seek(0)
        assert read_answer(answers.read) == (Answer.OUT_OF_MEMORY, b"")
