"""What only fal's jobs ask of a worker: no steps at all, a latest start, the picture's own size."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from storage.job import JobStatus
from tests.workshops import SIZE, Scene, a_picture
from worker.tasks import work_off_ticket


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def test_no_steps_give_the_picture_back_without_the_engine(scene: Scene) -> None:
    job = scene.submit(num_inference_steps=0)
    work_off_ticket(scene.workshop())
    assert np.array_equal(scene.result(job), a_picture())
    assert scene.engine.paintings == []
    assert (scene.job(job).num_steps, scene.job(job).notes["unet_evaluations"]) == (0, 0)


def test_so_little_strength_that_no_step_is_left_takes_one(scene: Scene) -> None:
    job = scene.submit(num_inference_steps=10, strength=0.01)
    work_off_ticket(scene.workshop())
    assert scene.job(job).notes["unet_evaluations"] == 1


def test_without_a_size_the_result_has_the_pictures_own(scene: Scene) -> None:
    job = scene.submit(width=None, height=None, picture=a_picture(SIZE + 33))
    work_off_ticket(scene.workshop())
    (image,) = scene.job(job).images
    assert (image.width, image.height) == (SIZE + 33, SIZE + 33)
    assert scene.result(job).shape == (SIZE + 33, SIZE + 33, 3)


@pytest.mark.parametrize(("start_in_seconds", "code"), [(-1.0, "start_timed_out"), (60.0, None)])
def test_a_worker_does_not_start_a_job_that_is_too_late(
    scene: Scene, start_in_seconds: float, code: str | None
) -> None:
    job = scene.submit(start_by=time.time() + start_in_seconds)
    work_off_ticket(scene.workshop())
    ended = scene.job(job)
    assert ended.status is (JobStatus.FAILED if code else JobStatus.SUCCEEDED)
    assert (ended.failure.code if ended.failure else None) == code


def test_a_job_that_came_back_from_a_lost_worker_has_started_in_time(scene: Scene) -> None:
    job = scene.submit(start_by=time.time() + 0.2)
    claimed = scene.jobs.claim_next(worker="lost")
    assert claimed is not None
    time.sleep(0.25)
    assert scene.jobs.finish(claimed.returned())
    work_off_ticket(scene.workshop())
    assert scene.job(job).status is JobStatus.SUCCEEDED


def test_steps_are_marked_with_their_times_as_they_are_seen(scene: Scene) -> None:
    job = scene.submit(prompt="seconds 0.5", num_inference_steps=20)
    workshop = scene.workshop(clerk_interval_seconds=0.05)
    workshop.clerk.start()
    work_off_ticket(workshop)
    workshop.clerk.stop()
    marks = scene.job(job).step_marks
    assert len(marks) >= 3
    assert [step for step, _ in marks] == sorted({step for step, _ in marks})
    assert [at for _, at in marks] == sorted(at for _, at in marks)
