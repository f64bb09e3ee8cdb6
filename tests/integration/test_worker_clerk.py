"""The clerk, on a real Redis: leases, progress, cancels, tickets, and the end of a process that stalls."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from storage.job import InpaintJob, JobStatus
from tests.servers import RedisServer
from tests.workshops import Scene
from worker.clerk import STALLED_EXIT_CODE, Clerk
from worker.engine import Activity, EnginePulse


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def claimed(scene: Scene, **changes: Any) -> InpaintJob:
    scene.submit(**changes)
    job = scene.jobs.claim_next(worker="test")
    assert job is not None
    return job


def pulse_of(scene: Scene, activity: Activity, silent_seconds: float) -> None:
    scene.engine.pulse = lambda: EnginePulse(activity, time.monotonic() - silent_seconds)  # type: ignore[method-assign]  # a clock


def test_a_held_job_keeps_its_lease_and_a_job_let_go_loses_it(scene: Scene) -> None:
    clerk = scene.workshop(clerk_interval_seconds=0.1).clerk
    clerk.start()
    with clerk.holding(claimed(scene)):
        time.sleep(1.5 * scene.lease_seconds)
        assert not scene.jobs.return_expired_leases()
    time.sleep(1.2 * scene.lease_seconds)
    clerk.stop()
    scene.jobs.return_expired_leases()
    assert scene.jobs.waiting_count() == 1


def test_progress_is_written_and_cancels_are_heard_in_one_round(scene: Scene) -> None:
    clerk = scene.workshop().clerk
    job, other = claimed(scene), claimed(scene)
    told: list[str] = []
    scene.engine.progress = lambda: {job.job_id: (3, 9)}  # type: ignore[method-assign]  # the GPU's side
    scene.engine.cancel = told.append  # type: ignore[assignment,method-assign]  # the GPU's side
    with clerk.holding(job) as claim, clerk.holding(other) as other_claim:
        clerk.round()
        assert (scene.job(job).step, scene.job(job).num_steps) == (3, 9)
        assert not claim.cancelled
        scene.jobs.cancel(job.job_id)
        clerk.round()
        clerk.round()
    assert claim.cancelled
    assert not claim.lost
    assert not other_claim.cancelled
    # In every round: the first may have come before the job was in the engine.
    assert told == [job.job_id, job.job_id]


def test_a_lost_lease_is_told_to_the_engine(scene: Scene) -> None:
    clerk = scene.workshop().clerk
    job = claimed(scene)
    told: list[str] = []
    scene.engine.cancel = told.append  # type: ignore[assignment,method-assign]  # the GPU's side
    with clerk.holding(job) as claim:
        assert scene.jobs.finish(job.returned())
        clerk.round()
    assert claim.lost
    assert told == [job.job_id]


def test_a_job_that_comes_back_to_the_same_worker_ends_its_earlier_claim(scene: Scene) -> None:
    clerk = scene.workshop().clerk
    job = claimed(scene)
    told: list[str] = []
    scene.engine.cancel = told.append  # type: ignore[assignment,method-assign]  # the GPU's side
    with clerk.holding(job) as earlier:
        scene.jobs.finish(job.returned())
        again = scene.jobs.claim_next(worker="test")
        assert again is not None
        with clerk.holding(again) as claim:
            assert told == [job.job_id]
            clerk.round()
        assert earlier.lost
        assert not claim.lost


def test_the_worker_is_listed_while_it_is_open_for_work(scene: Scene) -> None:
    clerk = scene.workshop(worker_threads=5).clerk
    clerk.close()
    clerk.round()
    assert scene.jobs.workers() == []
    clerk.open()
    with clerk.holding(claimed(scene)):
        clerk.round()
    (worker,) = scene.jobs.workers()
    assert worker == {
        "worker": "test",
        "activity": "idle",
        "resident_models": ["doodle"],
        "jobs": 1,
        "threads": 5,
        "tickets_owed": 0,
    }
    clerk.stop()
    assert scene.jobs.workers() == []


def test_a_clerk_makes_good_what_a_dead_worker_left(scene: Scene) -> None:
    job = claimed(scene)
    before = scene.queue.tickets()
    time.sleep(1.1 * scene.lease_seconds)
    scene.workshop().clerk.round()
    assert scene.job(job).status is JobStatus.QUEUED
    assert scene.queue.tickets() == before + 1


@pytest.mark.parametrize(
    ("activity", "silent_seconds", "dies"),
    [
        ("idle", 1000.0, False),
        ("painting", 4.0, False),
        ("painting", 6.0, True),
        ("loading", 6.0, False),
        ("loading", 11.0, True),
        ("warming_up", 6.0, False),
        ("warming_up", 11.0, True),
    ],
)
def test_a_process_whose_engine_stalls_is_ended(
    scene: Scene, activity: Activity, silent_seconds: float, dies: bool
) -> None:
    clerk = scene.workshop(stall_timeout_seconds=5, load_timeout_seconds=10).clerk
    job = claimed(scene)
    pulse_of(scene, activity, silent_seconds)
    scene.engine.progress = lambda: {job.job_id: (3, 9)}  # type: ignore[method-assign]  # the GPU's side
    with clerk.holding(job):
        clerk.round()
    assert scene.deaths == ([STALLED_EXIT_CODE] if dies else [])
    # Of a stalled engine's jobs nothing is said any more, so that their leases run out.
    assert scene.job(job).step == (0 if dies else 3)


def test_an_outage_of_redis_is_said_once_and_survived(redis_server: RedisServer, scene: Scene) -> None:
    clerk: Clerk = scene.workshop(clerk_interval_seconds=0.05).clerk
    job = claimed(scene)
    structlog.reset_defaults()
    with clerk.holding(job) as claim, capture_logs() as lines:
        clerk.start()
        time.sleep(0.2)
        redis_server.stop()
        try:
            time.sleep(1.5 * scene.lease_seconds)
        finally:
            redis_server.start()
        time.sleep(0.5)
        clerk.stop()
        assert not claim.lost
        assert not scene.jobs.return_expired_leases()
    events = [line["event"] for line in lines]
    assert events.count("redis_unavailable") == 1
    assert events.count("redis_is_back") == 1


def test_after_an_outage_every_worker_may_renew_its_leases_first(redis_server: RedisServer, scene: Scene) -> None:
    clerk = scene.workshop().clerk
    job = claimed(scene)
    clerk.round()
    redis_server.stop()
    try:
        clerk.round()
        time.sleep(1.2 * scene.lease_seconds)
    finally:
        redis_server.start()
    clerk.round()
    clerk.round()
    assert scene.job(job).status is JobStatus.PROCESSING


def test_a_round_with_eight_jobs_is_cheap(scene: Scene) -> None:
    clerk = scene.workshop().clerk
    with ExitStack() as held:
        for _ in range(8):
            held.enter_context(clerk.holding(claimed(scene)))
        clerk.round()
        assert len(clerk.claims()) == 8
        start = time.thread_time()
        for _ in range(50):
            clerk.round()
        # Measured: 0.1 ms, twice a second.
        assert (time.thread_time() - start) / 50 < 0.002


def test_a_cancelled_job_is_heard_of_at_once_however_rarely_the_clerk_looks(scene: Scene) -> None:
    clerk = scene.workshop(clerk_interval_seconds=5.0).clerk
    clerk.start()
    with clerk.holding(claimed(scene)) as claim:
        time.sleep(0.3)  # until it listens
        cancelled_at = time.monotonic()
        scene.jobs.cancel(claim.job.job_id)
        while not claim.cancelled and time.monotonic() < cancelled_at + 3:
            time.sleep(0.005)
        assert time.monotonic() - cancelled_at < 0.5
    clerk.stop()
    assert time.monotonic() - cancelled_at < 2
