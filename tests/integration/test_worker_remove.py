"""Jobs of the model without weights on a real Redis, beside an engine that has no part in them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.job import InpaintJob, JobStatus
from tests.fake_engine import FakeEngine
from tests.removal_scene import SIDE, assert_gone, disc, wall, with_thing
from tests.workshops import Scene
from worker.painters import Painters
from worker.removals import Removals
from worker.tasks import work_off_ticket
from worker.workshop import Workshop

MASK = np.where(disc(), 255, 0).astype(np.uint8)


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


@pytest.fixture
def engine(scene: Scene) -> FakeEngine:
    """The one beside the removals."""
    return scene.engine


@pytest.fixture
def workshop(scene: Scene, engine: FakeEngine) -> Iterator[Workshop]:
    plain = scene.workshop(feather_pixels=4)
    removals = Removals(1)
    painters = Painters(engine, removals, plain.catalog)
    scene.engine = painters  # type: ignore[assignment]  # what a worker puts there
    yield scene.workshop(feather_pixels=4)
    removals.stop()


def submitted(scene: Scene, **changes: Any) -> InpaintJob:
    values = {"width": SIDE, "height": SIDE, "model": "remove", "prompt": "", "num_inference_steps": 4}
    return scene.submit(picture=with_thing(wall(), disc()), mask=MASK, **(values | changes))


def test_the_masked_thing_is_gone_and_no_rim_of_it_shines_through(scene: Scene, workshop: Workshop) -> None:
    job = submitted(scene, num_images=2)
    work_off_ticket(workshop)
    done = scene.jobs.get(job.job_id)
    assert done is not None
    assert done.status is JobStatus.SUCCEEDED
    assert (done.step, done.num_steps) == (4, 4)
    assert done.notes["worked_size"] == [SIDE, SIDE]
    pictures = [scene.result(done, index) for index in range(2)]
    for picture in pictures:
        assert_gone(picture)
    assert not np.array_equal(*pictures)


def test_a_picture_of_any_size_is_worked_on_at_that_size(scene: Scene, workshop: Workshop) -> None:
    job = submitted(scene, width=SIDE - 3, height=SIDE - 9)
    work_off_ticket(workshop)
    done = scene.jobs.get(job.job_id)
    assert done is not None
    assert done.notes["worked_size"] == [SIDE - 3, SIDE - 9]


def test_a_mask_over_everything_fails_with_its_own_code(scene: Scene, workshop: Workshop) -> None:
    job = scene.submit(model="remove", num_inference_steps=4, mask=np.full((SIDE, SIDE), 255, np.uint8))
    work_off_ticket(workshop)
    done = scene.jobs.get(job.job_id)
    assert done is not None
    assert done.failure is not None
    assert (done.failure.code, done.failure.field) == ("nothing_to_continue", "mask_image")


def test_a_cancel_that_the_clerk_hears_ends_a_removal(scene: Scene, workshop: Workshop) -> None:
    job = submitted(scene, num_images=100)
    worker = threading.Thread(target=work_off_ticket, args=(workshop,))
    worker.start()
    until = time.monotonic() + 20
    while not workshop.engine.progress():
        assert time.monotonic() < until
        time.sleep(0.01)
    scene.jobs.cancel(job.job_id)
    workshop.clerk.round()
    worker.join(5)
    assert not worker.is_alive()
    done = scene.jobs.get(job.job_id)
    assert done is not None
    assert done.status is JobStatus.CANCELLED


@pytest.mark.usefixtures("workshop")
def test_a_removal_that_takes_too_long_is_timed_out(scene: Scene) -> None:
    hurried = scene.workshop(job_timeout_seconds=1.5)
    job = submitted(scene, num_images=100)
    work_off_ticket(hurried)
    done = scene.jobs.get(job.job_id)
    assert done is not None
    assert done.failure is not None
    assert done.failure.code == "timed_out"


def test_the_engine_has_no_part_in_it_and_its_pulse_is_its_own(
    scene: Scene, workshop: Workshop, engine: FakeEngine
) -> None:
    assert workshop.engine.pulse().activity == "idle"
    assert "remove" in workshop.engine.resident_models()
    submitted(scene)
    work_off_ticket(workshop)
    assert engine.paintings == []
    assert scene.deaths == []
