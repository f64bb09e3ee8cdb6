"""Many jobs of one client do not keep another client waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from storage.job import JobStatus
from tests.jobs import a_job
from tests.workshops import SIZE, Scene
from worker.tasks import work_off_ticket

JOB_SECONDS = 0.25
WAIT_SECONDS = 20


def test_with_a_thousand_jobs_of_one_key_waiting_another_key_starts_within_one_job(
    redis_url: str, tmp_path: Path
) -> None:
    scene = Scene(redis_url, tmp_path, lease_seconds=30)
    prompt = f"seconds {JOB_SECONDS}"
    first = scene.submit(key_id="many", prompt=prompt)
    pictures = {"init_image": first.init_image, "mask_image": first.mask_image, "width": SIZE, "height": SIZE}
    for _ in range(999):
        scene.jobs.submit(a_job(key_id="many", prompt=prompt, **pictures))
    workshop = scene.workshop()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            work_off_ticket(workshop)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        until(lambda: len(scene.engine.paintings) == 2)
        submitted = time.monotonic()
        late = scene.jobs.submit(a_job(key_id="one", prompt=prompt, **pictures))
        until(lambda: scene.job(late).status is not JobStatus.QUEUED)
        waited = time.monotonic() - submitted
        until(lambda: scene.job(late).status is JobStatus.SUCCEEDED)
    finally:
        stop.set()
        worker.join()
    assert [painting.job_id for painting in scene.engine.paintings].index(late.job_id) <= 3
    assert waited < 2 * JOB_SECONDS, "one job's length, and what a busy machine adds"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
