"""Whole worker processes, on a real Redis: killed, stopped, cut off. Every job is done, and done once."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery.events import EventReceiver

from storage.job import InpaintJob, JobStatus
from storage.job_queue import celery_app
from storage.job_store import open_redis
from tests.servers import RedisServer
from tests.worker_processes import START_SECONDS, Nursery, WorkerProcess, nursery
from tests.workshops import Scene
from worker.celery_consumer import EVENTS_SECONDS

__all__ = ["nursery"]

LEASE_SECONDS = 1.0
# The lease, the time between two looks for lost ones, and a margin for a busy machine.
CRASH_SECONDS = LEASE_SECONDS + 3 + 4


@dataclass
class Stage:
    """A scene, and the worker processes on it."""

    scene: Scene
    nursery: Nursery
    folder: Path
    names: Iterator[int]
    workers: list[WorkerProcess]

    def start(self, *, said: str = "worker_ready", **settings: object) -> WorkerProcess:
        """A worker that has said this: that it takes tickets."""
        name = f"worker-{next(self.names)}"
        environment = {
            "REDIS_URL": self.scene.redis_url,
            "IMAGE_DIR": str(self.scene.storage.image_dir),
            "LEASE_SECONDS": LEASE_SECONDS,
            "REDIS_TIMEOUT_SECONDS": 2,
            "CLERK_INTERVAL_SECONDS": 0.2,
            "WORKER_THREADS": 2,
            "WORKER_NAME": name,
            "SHUTDOWN_GRACE_SECONDS": 10,
            "FAKE_ENGINE_JOURNAL": self.folder / "journal",
            "FAKE_ENGINE_WARM_UP_SECONDS": 0,
        } | settings
        worker = self.nursery.start({key: str(value) for key, value in environment.items()}, self.folder / name)
        self.workers.append(worker)
        until(lambda: said in worker.log.read_text(), START_SECONDS, worker.log)
        return worker

    def begun(self, job: InpaintJob) -> int:
        """How often the job's painting began."""
        return self._count("begin", job)

    def ended(self, job: InpaintJob) -> int:
        return self._count("end", job)

    def painter(self, job: InpaintJob) -> int:
        """The process that last began to paint the job."""
        lines = [line.split() for line in (self.folder / "journal").read_text().splitlines()]
        return [int(pid) for what, job_id, pid in lines if (what, job_id) == ("begin", job.job_id)][-1]

    def await_begin(self, job: InpaintJob) -> None:
        until(lambda: self.begun(job), 5)

    def await_end(self, job: InpaintJob, seconds: float = 10) -> InpaintJob:
        until(lambda: self.scene.job(job).status.is_final, seconds, *(worker.log for worker in self.workers))
        return self.scene.job(job)

    def _count(self, what: str, job: InpaintJob) -> int:
        journal = self.folder / "journal"
        return journal.read_text().count(f"{what} {job.job_id} ") if journal.exists() else 0


def until(condition: Callable[[], object], seconds: float, *logs: Path) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return
        if time.monotonic() > end:
            raise AssertionError("\n".join(log.read_text() for log in logs if log.exists()))
        time.sleep(0.02)


@pytest.fixture
def stage(redis_url: str, tmp_path: Path, nursery: Nursery) -> Iterator[Stage]:
    scene = Scene(redis_url, tmp_path, lease_seconds=LEASE_SECONDS)
    stage = Stage(scene, nursery, tmp_path, itertools.count(1), [])
    yield stage
    for worker in stage.workers:
        if worker.exit_code() is None:
            worker.kill(signal.SIGKILL)
            worker.wait(5)


@contextlib.contextmanager
def flower_s_results(stage: Stage) -> Iterator[list[str]]:
    """What Flower shows in its result column."""
    results: list[str] = []
    stop = threading.Event()

    def capture() -> None:
        app = celery_app(stage.scene.storage)
        handlers = {"task-succeeded": lambda event: results.append(event["result"])}
        with app.connection_for_read() as connection:
            receiver = EventReceiver(connection, handlers=handlers, app=app)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.2, wakeup=False)

    thread = threading.Thread(target=capture)
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join()


def test_what_flower_is_told_of_tasks_is_told_together(stage: Stage) -> None:
    stage.start(WORKER_THREADS=8)
    with open_redis(stage.scene.storage) as client, client.pubsub() as channel:  # type: ignore[no-untyped-call]  # redis-py has left it bare
        channel.psubscribe("*celeryev*")
        started = time.monotonic()
        jobs = [stage.scene.submit() for _ in range(12)]
        for job in jobs:
            stage.await_end(job)
        time.sleep(2 * EVENTS_SECONDS)
        flushes = (time.monotonic() - started) / EVENTS_SECONDS + 1
        told = []
        while (message := channel.get_message(timeout=0.1)) is not None:
            if "task.multi" in str(message["data"]):
                told.append(message)
    # A batch is full with 24 events; each task has three.
    assert 1 <= len(told) <= flushes + 3 * len(jobs) // 24


def test_workers_share_the_jobs_tell_flower_and_end_on_sigterm(stage: Stage) -> None:
    with flower_s_results(stage) as results:
        workers = [stage.start(), stage.start()]
        until(lambda: len(stage.scene.jobs.workers()) == 2, 5)
        jobs = [stage.scene.submit(prompt="seconds 0.3") for _ in range(8)]
        assert all(stage.await_end(job).status is JobStatus.SUCCEEDED for job in jobs)
        assert all(stage.begun(job) == 1 for job in jobs)
        assert {stage.painter(job) for job in jobs} == {worker.pid for worker in workers}
        until(lambda: sum("succeeded in" in result for result in results) == len(jobs), 5)
        assert any(f"job {jobs[0].number} ({jobs[0].job_id}) succeeded in" in result for result in results)
    start = time.monotonic()
    for worker in workers:
        worker.kill(signal.SIGTERM)
    assert [worker.wait(10) for worker in workers] == [0, 0]
    assert time.monotonic() - start < 5
    assert stage.scene.jobs.workers() == []


def test_a_job_of_a_killed_worker_is_done_once_by_another(stage: Stage) -> None:
    workers = {worker.pid: worker for worker in (stage.start(), stage.start())}
    job = stage.scene.submit(prompt="seconds 1.5")
    stage.await_begin(job)
    killed_at = time.monotonic()
    workers.pop(stage.painter(job)).kill(signal.SIGKILL)
    done = stage.await_end(job, CRASH_SECONDS + 1.5)
    assert time.monotonic() - killed_at < CRASH_SECONDS + 1.5
    assert done.status is JobStatus.SUCCEEDED
    assert done.attempts == 2
    assert (stage.begun(job), stage.ended(job)) == (2, 1)
    assert len(stage.scene.stored_results()) == 1
    assert [stage.painter(job)] == list(workers)


def test_a_job_of_a_killed_worker_is_done_by_its_successor(stage: Stage) -> None:
    job = stage.scene.submit(prompt="seconds 1")
    first = stage.start()
    stage.await_begin(job)
    first.kill(signal.SIGKILL)
    assert first.wait(5) == -signal.SIGKILL
    stage.start()
    assert stage.await_end(job, CRASH_SECONDS).status is JobStatus.SUCCEEDED


def test_a_worker_outlives_a_redis_that_refuses_writes_for_a_while(stage: Stage) -> None:
    worker = stage.start()
    client = open_redis(stage.scene.storage)
    job = stage.scene.submit(prompt="seconds 0.5")
    stage.await_begin(job)
    client.config_set("min-replicas-to-write", 1)
    time.sleep(2)
    client.config_set("min-replicas-to-write", 0)
    after = stage.scene.submit()
    assert [stage.await_end(each).status for each in (job, after)] == [JobStatus.SUCCEEDED] * 2
    assert (stage.begun(job), stage.begun(after)) == (1, 1)
    assert worker.exit_code() is None
    client.close()


def test_the_third_crash_of_the_same_job_fails_it(stage: Stage) -> None:
    job = stage.scene.submit(prompt="seconds 60")
    for crash in (1, 2, 3):
        worker = stage.start()
        until(lambda crash=crash: stage.begun(job) == crash, CRASH_SECONDS, worker.log)  # type: ignore[misc]  # bound now
        worker.kill(signal.SIGKILL)
    stage.start()
    done = stage.await_end(job, CRASH_SECONDS)
    assert done.status is JobStatus.FAILED
    assert done.failure is not None
    assert done.failure.code == "worker_lost"
    assert stage.begun(job) == 3


def test_a_stalled_engine_ends_the_process_and_the_job_is_done_by_another(stage: Stage) -> None:
    stalled = stage.start(STALL_TIMEOUT_SECONDS=1)
    job = stage.scene.submit(prompt="stall")
    until(lambda: stalled.exit_code() is not None, 5, stalled.log)
    assert stalled.exit_code() == 70
    assert "engine_stalled" in stalled.log.read_text()
    until(stage.scene.jobs.return_expired_leases, CRASH_SECONDS)
    assert stage.scene.job(job).status is JobStatus.QUEUED


def test_on_sigterm_running_jobs_finish_and_waiting_ones_stay_for_others(stage: Stage) -> None:
    worker = stage.start()
    running = [stage.scene.submit(prompt="seconds 1.5") for _ in range(2)]
    waiting = [stage.scene.submit() for _ in range(6)]
    for job in running:
        stage.await_begin(job)
    worker.kill(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert [stage.scene.job(job).status for job in running] == [JobStatus.SUCCEEDED] * 2
    assert [stage.scene.job(job).status for job in waiting] == [JobStatus.QUEUED] * 6
    assert all(stage.scene.job(job).attempts == 0 for job in waiting)
    stage.start()
    assert all(stage.await_end(job).status is JobStatus.SUCCEEDED for job in waiting)
    assert all(stage.begun(job) == 1 for job in running + waiting)


def test_a_job_that_cannot_finish_within_the_grace_goes_back_uncounted(stage: Stage) -> None:
    worker = stage.start(SHUTDOWN_GRACE_SECONDS=0.5)
    job = stage.scene.submit(prompt="seconds 2")
    stage.await_begin(job)
    start = time.monotonic()
    worker.kill(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert time.monotonic() - start < 5
    assert stage.scene.job(job).status is JobStatus.QUEUED
    assert stage.scene.job(job).attempts == 0
    assert stage.scene.queue.tickets() >= 1
    stage.start()
    assert stage.await_end(job).status is JobStatus.SUCCEEDED
    assert (stage.begun(job), stage.ended(job)) == (2, 1)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hurries(stage: Stage, second: signal.Signals) -> None:
    worker = stage.start(SHUTDOWN_GRACE_SECONDS=60)
    job = stage.scene.submit(prompt="seconds 60")
    stage.await_begin(job)
    worker.kill(signal.SIGTERM)
    time.sleep(0.5)
    assert worker.exit_code() is None
    worker.kill(second)
    assert worker.wait(5) == 0
    assert stage.scene.job(job).status is JobStatus.QUEUED


def test_the_process_ends_even_when_a_thread_hangs_and_redis_is_away(stage: Stage, redis_server: RedisServer) -> None:
    worker = stage.start(SHUTDOWN_GRACE_SECONDS=0.3, STALL_TIMEOUT_SECONDS=60)
    job = stage.scene.submit(prompt="seconds 60")
    stage.await_begin(job)
    redis_server.stop()
    try:
        worker.kill(signal.SIGTERM)
        assert worker.wait(20) == 0
    finally:
        redis_server.start()
    assert stage.scene.job(job).status is JobStatus.PROCESSING
    stage.start()
    until(lambda: stage.begun(job) == 2, CRASH_SECONDS)


def test_a_broker_that_goes_away_and_returns_costs_no_job_and_repeats_none(
    stage: Stage, redis_server: RedisServer
) -> None:
    workers = [stage.start(), stage.start()]
    jobs = [stage.scene.submit(prompt="seconds 1.5") for _ in range(10)]
    until(lambda: sum(stage.begun(job) for job in jobs) == 4, 5)
    redis_server.stop()
    time.sleep(1)
    redis_server.start()
    for job in jobs:
        assert stage.await_end(job, 30).status is JobStatus.SUCCEEDED
    assert [stage.scene.job(job).attempts for job in jobs] == [1] * 10
    assert [(stage.begun(job), stage.ended(job)) for job in jobs] == [(1, 1)] * 10
    assert [worker.exit_code() for worker in workers] == [None, None]


def test_an_outcome_survives_a_redis_that_is_away_when_the_job_ends(stage: Stage, redis_server: RedisServer) -> None:
    stage.start()
    job = stage.scene.submit(prompt="seconds 0.7")
    stage.await_begin(job)
    redis_server.stop()
    until(lambda: stage.ended(job), 5)
    time.sleep(1.5 * LEASE_SECONDS)
    redis_server.start()
    done = stage.await_end(job)
    assert done.status is JobStatus.SUCCEEDED
    assert done.attempts == 1
    assert stage.begun(job) == 1


def test_a_worker_takes_up_jobs_whose_tickets_were_lost(stage: Stage) -> None:
    job = stage.scene.submit()
    stage.scene.jobs._redis.delete("inpaint")
    stage.start()
    assert stage.await_end(job).status is JobStatus.SUCCEEDED


def test_a_worker_started_before_its_redis_begins_when_redis_is_there(stage: Stage, redis_server: RedisServer) -> None:
    job = stage.scene.submit()
    redis_server.stop()
    started: list[Any] = []
    thread = threading.Thread(target=lambda: started.append(stage.start()))
    try:
        thread.start()
        time.sleep(1)
    finally:
        redis_server.start()
    assert stage.await_end(job, 15).status is JobStatus.SUCCEEDED
    thread.join()
    assert started


def test_a_worker_with_an_unfit_engine_gives_its_jobs_back_and_ends_for_its_supervisor(stage: Stage) -> None:
    worker = stage.start()
    job = stage.scene.submit(prompt="unfit")
    assert worker.wait(10) == 1
    assert stage.scene.job(job).status is JobStatus.QUEUED
    assert stage.scene.job(job).attempts == 1


def test_a_worker_that_still_loads_ends_at_once_on_sigterm(stage: Stage) -> None:
    job = stage.scene.submit()
    worker = stage.start(said="engine_started", FAKE_ENGINE_WARM_UP_SECONDS=60)
    worker.kill(signal.SIGTERM)
    assert worker.wait(3) == 0
    assert stage.scene.job(job).status is JobStatus.QUEUED
    assert stage.scene.jobs.workers() == []
