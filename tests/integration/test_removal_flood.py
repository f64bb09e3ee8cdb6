"""A flood of jobs of the model without weights, on a real Redis: they wait in the queue, and the others start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.job import InpaintJob, JobStatus
from storage.job_queue import TICKET_QUEUE, celery_app
from tests.removal_scene import SIDE, disc, wall, with_thing
from tests.workshops import Scene
from worker.painters import Painters
from worker.places import places_for
from worker.removals import Removals
from worker.settings import WorkerSettings
from worker.tasks import work_off_ticket
from worker.workshop import Workshop

MASK = np.where(disc(), 255, 0).astype(np.uint8)


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Iterator[Scene]:
    """Where removals are done, one at a time."""
    scene = Scene(redis_url, tmp_path)
    removals = Removals(1)
    scene.engine = Painters(scene.engine, removals, scene.workshop().catalog)  # type: ignore[assignment]  # as a worker
    yield scene
    removals.stop()


def submitted(scene: Scene, **changes: Any) -> InpaintJob:
    values = {"width": SIDE, "height": SIDE, "model": "remove", "prompt": "", "num_inference_steps": 4}
    return scene.submit(picture=with_thing(wall(), disc()), mask=MASK, **(values | changes))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def at_work(scene: Scene, workshop: Workshop, threads: int) -> Iterator[None]:
    """As Celery's pool does: each thread takes a ticket, works it off, and takes the next."""
    stop = threading.Event()

    def work() -> None:
        with celery_app(scene.storage).connection_for_read() as connection:
            tickets = connection.SimpleQueue(TICKET_QUEUE)
            while not stop.is_set():
                try:
                    tickets.get(timeout=0.05).ack()
                except tickets.Empty:
                    continue
                work_off_ticket(workshop)
            tickets.close()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)
            assert not worker.is_alive()


def test_thirty_waiting_removals_hold_no_model_with_weights_up(scene: Scene) -> None:
    crowded = scene.workshop(worker_threads=4, removal_processes=1)
    removals = [submitted(scene, num_images=100) for _ in range(30)]
    with at_work(scene, crowded, threads=4):
        until(lambda: bool(crowded.engine.progress()))
        painted = [scene.submit(key_id="another") for _ in range(3)]
        until(lambda: all(scene.job(job).status is JobStatus.SUCCEEDED for job in painted))
        # The same client's, too, as far as a claim looks.
        own = scene.submit()
        until(lambda: scene.job(own).status is JobStatus.SUCCEEDED)
        assert [job.job_id for job in scene.jobs.processing()] == [removals[0].job_id]
        for job in removals:
            scene.jobs.cancel(job.job_id)
        crowded.clerk.round()
    assert {scene.job(job).status for job in removals} == {JobStatus.CANCELLED}


def test_removals_that_had_to_wait_are_done_one_after_another_without_new_tickets(scene: Scene) -> None:
    crowded = scene.workshop(worker_threads=4, removal_processes=1)
    removals = [submitted(scene) for _ in range(6)]
    with at_work(scene, crowded, threads=4):
        until(lambda: all(scene.job(job).status is JobStatus.SUCCEEDED for job in removals))
    assert scene.queue.tickets() == 0
    assert [scene.job(job).attempts for job in removals] == [1] * 6


def test_a_ticket_that_was_turned_away_is_owed_and_sent_with_the_next_report(scene: Scene) -> None:
    crowded = scene.workshop(worker_threads=4, removal_processes=1)
    job = submitted(scene)
    assert crowded.places.take()
    before = scene.queue.tickets()
    assert work_off_ticket(crowded).startswith("no job claimed: none that waits")
    assert (scene.job(job).status, scene.queue.tickets()) == (JobStatus.QUEUED, before)
    crowded.clerk.round()
    assert scene.queue.tickets() == before + 1
    crowded.places.leave()
    work_off_ticket(crowded)
    assert scene.job(job).status is JobStatus.SUCCEEDED


def test_what_a_worker_owes_is_known_to_those_who_look_for_missing_tickets(scene: Scene) -> None:
    crowded = scene.workshop(worker_threads=1)
    submitted(scene), submitted(scene)
    assert crowded.places.take()
    for _ in range(3):
        work_off_ticket(crowded)
    crowded.clerk.round()
    [report] = scene.jobs.workers()
    assert report["tickets_owed"] == 2, "one of three was sent again"


@pytest.mark.parametrize(("threads", "processes", "places"), [(8, 2, 2), (2, 2, 1), (1, 2, 1), (3, 8, 2)])
def test_one_thread_is_left_to_the_models_with_weights(scene: Scene, threads: int, processes: int, places: int) -> None:
    settings = WorkerSettings(worker_threads=threads, removal_processes=processes)
    made = places_for(scene.workshop().catalog, settings)
    assert [made.take() for _ in range(places + 1)] == [True] * places + [False]
    assert made.models == {"remove"}
