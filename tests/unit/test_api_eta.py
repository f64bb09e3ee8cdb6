"""The estimate follows measured run times and the queue, and is never nothing."""

from __future__ import annotations

import pytest

from api.eta import MIN_SECONDS, estimate, evaluations, job_seconds, remaining_seconds
from storage.job_store import Runtime
from tests.jobs import a_job


def measured(seconds: float) -> Runtime:
    return Runtime(seconds_per_evaluation=seconds, jobs=5)


def test_a_measured_size_costs_what_it_cost() -> None:
    assert job_seconds({(128, 128): measured(0.2)}, (128, 128), 40) == pytest.approx(8.0)


def test_a_size_never_measured_is_scaled_by_area_from_the_nearest() -> None:
    runtimes = {(64, 64): measured(0.05), (512, 512): measured(0.4)}
    assert job_seconds(runtimes, (512, 256), 10) == pytest.approx(2.0)


def test_before_anything_is_measured_there_is_a_guess() -> None:
    assert job_seconds({}, (512, 512), 20) > 0


@pytest.mark.parametrize(
    ("images", "steps", "strength", "expected"), [(1, 20, 1.0, 20), (4, 20, 0.7, 56), (1, 10, 0.0, 1), (2, 3, 0.3, 2)]
)
def test_strength_and_images_count_as_evaluations(images: int, steps: int, strength: float, expected: int) -> None:
    assert evaluations(a_job(num_images=images, num_inference_steps=steps, strength=strength)) == expected


def test_a_running_job_needs_what_its_steps_leave() -> None:
    assert remaining_seconds(10, 3, 4) == pytest.approx(2.5)
    assert remaining_seconds(10, 0, 0) == 10
    assert remaining_seconds(10, 9, 4) == 0


def test_the_queue_ahead_is_shared_by_the_workers() -> None:
    assert estimate(4, ahead_seconds=[6, 6], workers=1) == 16
    assert estimate(4, ahead_seconds=[6, 6], workers=3) == 8
    assert estimate(4, ahead_seconds=[6], workers=0) == 10


def test_the_estimate_is_never_zero() -> None:
    assert estimate(0, ahead_seconds=[], workers=1) == MIN_SECONDS
