import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.removal_scene import disc, with_thing
from worker.removing.blending import DIRECT_SIZE, correct
from worker.removing.fill import fill
from worker.removing.offsets import find_offsets
from worker.removing.scene import Scene, cut
from worker.removing.seams import Blocks, mismatch, seam_costs
from worker.removing.steps import steps_around

BRICK_HEIGHT, BRICK_WIDTH = 24, 48


def a_scene(picture: NDArray[np.float32], hole: NDArray[np.bool_]) -> Scene:
    return Scene(picture=picture, hole=hole, inside=np.ones_like(hole))


def large_bricks(side: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side]
    row = y // BRICK_HEIGHT
    joint = (y % BRICK_HEIGHT < 3) | ((x + BRICK_WIDTH // 2 * (row % 2)) % BRICK_WIDTH < 3)
    grain = np.random.default_rng(3).normal(0, 4, (side, side, 1))
    return np.clip(np.where(joint[..., None], (198, 192, 186), (150, 74, 52)) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_a_seam_costs_what_its_best_line_does(side: int, upright: bool) -> None:
    rng = np.random.default_rng(side)
    samples = [np.zeros((700, choices, side, side, 4), np.float32) for choices in (20, 11)]
    for each in samples:
        each[..., :3] = rng.uniform(0, 255, each[..., :3].shape)
    one, other = (Blocks(each, rng.uniform(200, 900, each.shape[:2]).astype(np.float32)) for each in samples)

    costs = seam_costs(one, other, 8, upright=upright)

    for cell, first, second in rng.integers(0, (700, 20, 11), (60, 3)):
        squares = np.square(samples[0][cell, first].astype(float) - samples[1][cell, second]).sum(axis=-1)
        line = squares.mean(axis=0 if upright else 1).min(keepdims=True)
        variance = min(one.variance[cell, first], other.variance[cell, second])
        assert costs[cell, first, second] == pytest.approx(8 * mismatch(line, np.array([variance], float))[0], rel=1e-3)


def test_a_thing_cut_off_at_the_rim_spreads_no_halo() -> None:
    """Left of the hole is something blue; what is copied, from right of it, is green."""
    picture = np.full((64, 128, 3), (60, 140, 60), np.float32)
    picture[:, :40] = (40, 60, 170)
    hole = np.zeros((64, 128), bool)
    hole[12:52, 40:70] = True
    offset = np.tile((0, 40), (np.count_nonzero(hole), 1))
    assert np.abs(correct(a_scene(picture, hole), offset, lambda: None)).max() < 2


def test_a_piece_of_another_brightness_is_made_to_go_on() -> None:
    picture = np.full((64, 128, 3), 100, np.float32)
    picture[:, 80:] = 110
    hole = np.zeros((64, 128), bool)
    hole[12:52, 30:60] = True
    offset = np.tile((0, 58), (np.count_nonzero(hole), 1))
    assert correct(a_scene(picture, hole), offset, lambda: None) == pytest.approx(-10, abs=0.1)


def test_a_colour_that_needs_no_correction_holds_up_none_that_does() -> None:
    """In a hole too large for its unknowns to be solved at once."""
    picture = np.full((160, 320, 3), 100, np.float32)
    picture[:, 165:, :2] = 110
    hole = np.zeros((160, 320), bool)
    hole[10:150, 40:150] = True
    offset = np.tile((0, 140), (np.count_nonzero(hole), 1))
    assert np.count_nonzero(hole) > DIRECT_SIZE
    flat_blue = correct(a_scene(picture, hole), offset, lambda: None)
    alike = correct(a_scene(np.repeat(picture[..., :1], 3, axis=2), hole), offset, lambda: None)
    assert np.abs(flat_blue[:, 2]).max() == 0
    assert flat_blue[:, 0] == pytest.approx(alike[:, 0], abs=0.1)
    assert alike == pytest.approx(-10, abs=1)


def test_a_step_is_seen_through_grain_and_past_edges_that_meet_askew() -> None:
    """Right of column 60 all is 20 brighter, and the lines are a pixel lower."""
    y, x = np.mgrid[:60, :120]
    lines = np.where((y + (x < 60)) % 12 < 2, 80.0, 0)
    picture = 100 + 20.0 * (x >= 60) + lines + np.random.default_rng(2).normal(0, 5, y.shape)
    scene = a_scene(np.repeat(picture[..., None], 3, axis=2).astype(np.float32), np.zeros(y.shape, bool))
    at_y, at_x = (each.ravel() for each in np.mgrid[6:54, 10:50])
    still, moved = np.zeros((len(at_y), 2), np.int64), np.tile((0, 60), (len(at_y), 1))

    step, weight = steps_around(scene, at_y, at_x, still, moved)

    assert (weight > 0).all()
    assert np.average(step[:, 0], weights=weight) == pytest.approx(20, abs=2)
    plain = picture[at_y, at_x + 60] - picture[at_y, at_x]
    assert np.abs(step[:, 0] - 20).mean() < np.abs(plain - 20).mean() / 2


def test_where_nothing_can_be_compared_a_step_has_no_weight() -> None:
    scene = a_scene(np.zeros((8, 8, 3), np.float32), np.ones((8, 8), bool))
    place = np.array([4])
    step, weight = steps_around(scene, place, place, np.zeros((1, 2), int), np.ones((1, 2), int))
    assert not weight.any()
    assert not step.any()


@pytest.mark.parametrize("seed", [2, 5])
def test_grain_gathers_to_no_clouds_in_a_sky(seed: int) -> None:
    side = 160
    y, x = np.mgrid[:side, :side]
    sky = np.stack([110 + y * 0.25 + x * 0.1, 150 + y * 0.19, 215 - y * 0.12], axis=-1)
    picture = np.clip(np.rint(sky + np.random.default_rng(3).normal(0, 5, sky.shape)), 0, 255).astype(np.uint8)
    hole = disc(side, side, 36)

    result = fill(with_thing(picture, hole), hole, seed=seed)

    deviation = cv2.GaussianBlur(result.astype(np.float32) - sky.astype(np.float32), (0, 0), 6)
    assert np.sqrt(np.square(deviation[hole]).mean()) < 0.65
    assert result[hole].std(axis=0).min() > 4


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_bricks_stay_regular_with_every_seed(seed: int) -> None:
    picture = large_bricks(256)
    y, x = np.mgrid[:256, :256] - 127.5
    hole = np.hypot(y * 1.2, x) < 61
    result = fill(with_thing(picture, hole), hole, seed=seed)
    error = np.square(result[hole].astype(float) - picture[hole]).mean()
    assert 10 * np.log10(255**2 / error) > 31


@pytest.mark.parametrize("seed", [1, 2])
def test_offsets_found_at_half_the_size_are_exact_at_full_size(seed: int) -> None:
    y, x = np.mgrid[:256, :256]
    grain = np.random.default_rng(3).normal(0, 4, (256, 256, 1))
    picture = np.where(((x + y) // 12 % 2)[..., None] > 0, (40.0, 90.0, 160.0), (230.0, 225.0, 210.0)) + grain
    scene = a_scene(picture.astype(np.float32), disc(256, 256, 40))
    found = find_offsets(scene, cut(scene.hole, 4), 40, np.random.default_rng(seed), lambda: None)
    assert np.mean(found.moves.sum(axis=1) % 24 == 0) > 0.9
