"""The job store against a real Redis: order, leases, fencing, cancels, due times."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest

from storage.errors import StorageUnavailable
from storage.job import Failure, InpaintJob, JobStatus, Priority, ResultImage
from storage.job_store import (
    DONE_CHANNEL,
    Beat,
    Idempotency,
    IdempotencyConflict,
    JobStore,
    QueueFull,
    open_redis,
)
from storage.settings import StorageSettings
from tests.jobs import a_job
from tests.servers import RedisServer

IMAGE = ResultImage(key="results/x/1/0.png", seed=7, width=8, height=8, size_bytes=9)
FAILURE = Failure(code="not_an_image", message="m", field="init_image")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis_url: str, clock: Clock) -> Iterator[JobStore]:
    settings = StorageSettings(redis_url=redis_url)
    client = open_redis(settings)
    yield JobStore(client, settings, clock=clock)
    client.close()


def claim(store: JobStore, **options: object) -> InpaintJob:
    job = store.claim_next(worker="w", **options)  # type: ignore[arg-type]  # options are claim_next's own
    assert job is not None
    return job


def test_a_submitted_job_is_read_back_with_its_number(store: JobStore) -> None:
    job = a_job(wire={"a": [1]}, track_id="t")
    stored = store.submit(job)
    assert stored == dataclasses.replace(job, number=1)
    assert store.get(job.job_id) == store.by_number(1) == store.by_image_id(job.image_id) == stored
    assert store.submit(a_job()).number == 2


def test_submitting_the_same_job_again_stores_it_once(store: JobStore) -> None:
    job = a_job()
    assert store.submit(job) == store.submit(job)
    assert store.waiting_count() == 1


def test_an_unknown_job_is_none(store: JobStore) -> None:
    assert store.get("nope") is store.by_number(5) is store.by_image_id("nope") is store.cancel("nope") is None


def test_jobs_of_one_key_are_claimed_oldest_first(store: JobStore) -> None:
    submitted = [store.submit(a_job()).job_id for _ in range(12)]
    assert [claim(store).job_id for _ in range(12)] == submitted
    assert store.claim_next(worker="w") is None


def test_keys_take_turns_however_many_jobs_one_of_them_has(store: JobStore) -> None:
    for _ in range(1000):
        store.submit(a_job(key_id="a"))
    claim(store)
    late = store.submit(a_job(key_id="b"))
    assert store.position(late) == 0
    assert claim(store).job_id == late.job_id
    assert claim(store).key_id == "a"


def test_a_key_that_submits_one_by_one_does_not_starve_a_backlog(store: JobStore) -> None:
    for _ in range(20):
        store.submit(a_job(key_id="backlog"))
    served = []
    for _ in range(20):
        store.submit(a_job(key_id="drip"))
        served.append(claim(store).key_id)
    assert served.count("backlog") == 10


def test_a_higher_priority_goes_first(store: JobStore) -> None:
    low, normal, high = (store.submit(a_job(priority=priority)) for priority in Priority)
    assert [claim(store).job_id for _ in range(3)] == [high.job_id, normal.job_id, low.job_id]


def test_positions_are_the_order_in_which_jobs_are_claimed(store: JobStore) -> None:
    keys = ["a", "a", "b", "c", "c", "c", "b", "a", "d", "a"]
    priorities = [1, 0, 1, 2, 1, 1, 0, 1, 1, 1]
    jobs = [
        store.submit(a_job(key_id=key, priority=Priority(priority)))
        for key, priority in zip(keys, priorities, strict=True)
    ]
    while jobs:
        positions = {job.job_id: store.position(job) for job in jobs}
        assert sorted(positions.values()) == list(range(len(jobs)))
        next_id = claim(store).job_id
        assert positions[next_id] == 0
        jobs = [job for job in jobs if job.job_id != next_id]


def test_a_resident_model_goes_first_until_another_has_waited_long_enough(store: JobStore, clock: Clock) -> None:
    cold = store.submit(a_job(model="cold"))
    for _ in range(3):
        store.submit(a_job(model="warm"))
    assert claim(store, resident_models={"warm"}).model == "warm"
    clock.now += 19
    assert claim(store, resident_models={"warm"}).model == "warm"
    clock.now += 2
    assert claim(store, resident_models={"warm"}).job_id == cold.job_id


def test_a_resident_model_that_nobody_asks_for_holds_nothing_up(store: JobStore) -> None:
    cold = store.submit(a_job(model="cold"))
    assert claim(store, resident_models={"warm"}).job_id == cold.job_id


def test_jobs_of_a_full_model_are_left_where_they_are(store: JobStore) -> None:
    flood = [store.submit(a_job(model="full", priority=Priority.HIGH)) for _ in range(5)]
    other = store.submit(a_job(model="other", key_id="another"))
    late = store.submit(a_job(model="other", priority=Priority.LOW))
    full = {"full_models": {"full"}, "resident_models": {"full"}}
    assert [claim(store, **full).job_id for _ in range(2)] == [other.job_id, late.job_id]
    assert store.claim_next(worker="w", **full) is None
    assert [store.position(job) for job in flood] == [0, 1, 2, 3, 4]
    assert claim(store).job_id == flood[0].job_id


def test_a_job_behind_those_of_a_full_model_is_found_among_its_keys_first(store: JobStore) -> None:
    for _ in range(31):
        store.submit(a_job(model="full"))
    behind = store.submit(a_job(model="other"))
    assert claim(store, full_models={"full"}).job_id == behind.job_id


def test_many_threads_claim_each_job_once(redis_url: str) -> None:
    settings = StorageSettings(redis_url=redis_url)
    client = open_redis(settings)
    store = JobStore(client, settings)
    submitted = {store.submit(a_job(key_id=f"k{number % 5}")).job_id for number in range(100)}
    claimed: list[str] = []

    def work() -> None:
        while (job := store.claim_next(worker="w")) is not None:
            claimed.append(job.job_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert len(claimed) == 100
    assert set(claimed) == submitted


def test_progress_and_cancel_travel_with_the_heartbeat(store: JobStore) -> None:
    store.submit(a_job())
    job = claim(store)
    beat = Beat(job.job_id, job.fence, 3, 14)
    assert store.heartbeat([beat])[job.job_id].alive
    seen = store.get(job.job_id)
    assert seen is not None and (seen.step, seen.num_steps, seen.status) == (3, 14, JobStatus.PROCESSING)
    store.cancel(job.job_id)
    assert store.heartbeat([beat])[job.job_id].cancelled
    assert store.finish(job.cancelled(at=1.0))
    ended = store.get(job.job_id)
    assert ended is not None and ended.status is JobStatus.CANCELLED


def test_a_queued_job_is_cancelled_at_once_and_never_claimed(store: JobStore) -> None:
    job = store.submit(a_job())
    cancelled = store.cancel(job.job_id)
    assert cancelled is not None and cancelled.status is JobStatus.CANCELLED
    assert store.claim_next(worker="w") is None
    assert store.waiting_count() == 0
    assert store.cancel(job.job_id) == cancelled


def test_an_expired_lease_returns_the_job_in_its_old_place(store: JobStore, clock: Clock) -> None:
    first = store.submit(a_job())
    store.submit(a_job())
    lost = claim(store)
    clock.now += 16
    assert [job.job_id for job in store.return_expired_leases()] == [first.job_id]
    again = claim(store)
    assert (again.job_id, again.fence, again.attempts) == (first.job_id, 2, 2)
    assert not store.heartbeat([Beat(lost.job_id, lost.fence, 1, 1)])[lost.job_id].alive
    assert not store.finish(lost.succeeded((IMAGE,), at=1.0))
    assert store.finish(again.succeeded((IMAGE,), at=1.0))


def test_a_renewed_lease_is_not_returned(store: JobStore, clock: Clock) -> None:
    store.submit(a_job())
    job = claim(store)
    for _ in range(5):
        clock.now += 10
        store.heartbeat([Beat(job.job_id, job.fence, 0, 0)])
        assert store.return_expired_leases() == []


def test_an_expired_lease_that_nobody_took_is_still_good(store: JobStore, clock: Clock) -> None:
    store.submit(a_job())
    job = claim(store)
    clock.now += 100
    assert store.heartbeat([Beat(job.job_id, job.fence, 0, 0)])[job.job_id].alive
    assert store.return_expired_leases() == []


def test_the_third_lost_claim_fails_the_job(store: JobStore, clock: Clock) -> None:
    store.submit(a_job(webhook_url="https://example.com/"))
    for _ in range(3):
        claim(store)
        clock.now += 16
        (job,) = store.return_expired_leases()
    assert job.status is JobStatus.FAILED
    assert job.failure is not None and job.failure.code == "worker_lost"
    assert store.claim_next(worker="w") is None
    assert store.claim_due_webhooks(10, hold_seconds=60) == [job.job_id]


def test_a_cancelled_job_whose_last_worker_is_lost_was_cancelled(store: JobStore, clock: Clock) -> None:
    store.submit(a_job())
    for _ in range(2):
        claim(store)
        clock.now += 16
        store.return_expired_leases()
    store.cancel(claim(store).job_id)
    clock.now += 16
    (job,) = store.return_expired_leases()
    assert job.status is JobStatus.CANCELLED


def test_given_back_jobs_never_run_out_of_attempts(store: JobStore) -> None:
    store.submit(a_job())
    for _ in range(5):
        assert store.finish(claim(store).given_back())
    assert claim(store).attempts == 1


def test_a_job_that_goes_back_after_its_client_cancelled_is_cancelled(store: JobStore, clock: Clock) -> None:
    for end in ("given_back", "expired"):
        store.submit(a_job())
        job = claim(store)
        store.cancel(job.job_id)
        if end == "given_back":
            assert store.finish(job.given_back())
        else:
            clock.now += 16
            store.return_expired_leases()
        ended = store.get(job.job_id)
        assert ended is not None and ended.status is JobStatus.CANCELLED


def test_finishing_twice_with_the_same_outcome_is_one_change(store: JobStore) -> None:
    store.submit(a_job(webhook_url="https://example.com/"))
    done = claim(store).succeeded((IMAGE,), at=1.0)
    assert store.finish(done)
    store.clear_webhook(done.job_id)
    assert store.finish(done)
    assert not store.finish(dataclasses.replace(done, images=()))
    assert store.claim_due_webhooks(10, hold_seconds=60) == []


def test_the_end_of_a_job_is_announced(store: JobStore, redis_url: str) -> None:
    client = open_redis(StorageSettings(redis_url=redis_url))
    with client.pubsub() as listener:
        listener.subscribe(DONE_CHANNEL)
        store.submit(a_job())
        job = claim(store)
        store.finish(job.failed(FAILURE, at=1.0))
        heard = [listener.get_message(timeout=1) for _ in range(2)]
    client.close()
    assert heard[1] is not None and heard[1]["data"] == job.job_id


def test_a_job_that_failed_from_the_start_is_over_when_it_is_stored(store: JobStore) -> None:
    stored = store.submit(a_job(webhook_url="https://example.com/").failed(FAILURE, at=1.0))
    assert stored.status is JobStatus.FAILED and stored.failure == FAILURE
    assert store.claim_next(worker="w") is None
    assert store.claim_due_webhooks(1, hold_seconds=1) == [stored.job_id]


def test_a_full_queue_refuses_one_key_and_not_another(store: JobStore) -> None:
    store.submit(a_job(), max_waiting=2)
    store.submit(a_job(priority=Priority.LOW), max_waiting=2)
    with pytest.raises(QueueFull) as full:
        store.submit(a_job(), max_waiting=2)
    assert full.value.waiting == 2
    store.submit(a_job(key_id="other"), max_waiting=2)
    assert (store.waiting_count("key-a"), store.waiting_count()) == (2, 3)


def test_an_idempotency_key_leads_to_the_job_of_its_first_use(store: JobStore) -> None:
    first = store.submit(a_job(), idempotency=Idempotency("i", "body"))
    assert store.submit(a_job(), idempotency=Idempotency("i", "body")).job_id == first.job_id
    with pytest.raises(IdempotencyConflict):
        store.submit(a_job(), idempotency=Idempotency("i", "another body"))
    assert store.submit(a_job(key_id="b"), idempotency=Idempotency("i", "body")).job_id != first.job_id
    assert store.waiting_count() == 2


def test_a_due_webhook_comes_again_unless_it_is_settled(store: JobStore, clock: Clock) -> None:
    store.submit(a_job(webhook_url="https://example.com/"))
    job = claim(store)
    store.finish(job.succeeded((IMAGE,), at=1.0))
    assert store.claim_due_webhooks(10, hold_seconds=60) == [job.job_id]
    assert store.claim_due_webhooks(10, hold_seconds=60) == []
    clock.now += 61
    assert store.claim_due_webhooks(10, hold_seconds=60) == [job.job_id]
    store.clear_webhook(job.job_id)
    clock.now += 61
    assert store.claim_due_webhooks(10, hold_seconds=60) == []


def test_results_and_records_expire_in_their_time(store: JobStore, clock: Clock) -> None:
    store.submit(a_job())
    store.submit(a_job(temporary=True))
    lasting, temporary = claim(store), claim(store)
    for job in (lasting, temporary):
        store.finish(job.succeeded((IMAGE,), at=1.0))
    clock.now += 86401
    assert store.claim_expired("results", 10) == [temporary.job_id]
    assert store.claim_expired("results", 10) == []
    store.forget("results", temporary.job_id)
    clock.now += 7 * 86400
    assert store.claim_expired("results", 10) == [lasting.job_id]
    clock.now += 30 * 86400
    assert set(store.claim_expired("records", 10)) == {lasting.job_id, temporary.job_id}
    store.drop_record(lasting.job_id)
    assert store.get(lasting.job_id) is store.by_number(lasting.number) is store.by_image_id(lasting.image_id) is None


def test_workers_that_fall_silent_are_forgotten(store: JobStore, clock: Clock) -> None:
    store.heartbeat_worker("w1", {"jobs": 2})
    clock.now += 8
    store.heartbeat_worker("w2", {"jobs": 0})
    assert store.workers() == [{"worker": "w1", "jobs": 2}, {"worker": "w2", "jobs": 0}]
    clock.now += 8
    assert [worker["worker"] for worker in store.workers()] == ["w2"]


def test_runtimes_average_towards_the_newest(store: JobStore) -> None:
    assert store.runtimes("doodle") == {}
    store.record_runtime("doodle", 128, 64, 20, 2.0)
    store.record_runtime("doodle", 128, 64, 10, 2.0)
    (runtime,) = store.runtimes("doodle").values()
    assert runtime.jobs == 2
    assert runtime.seconds_per_evaluation == pytest.approx(0.13)


def test_leases_go_by_the_clock_of_redis_when_no_other_is_given(redis_url: str) -> None:
    settings = StorageSettings(redis_url=redis_url, lease_seconds=0.2)
    client = open_redis(settings)
    store = JobStore(client, settings)
    store.submit(a_job())
    claim(store)
    assert store.return_expired_leases() == []
    time.sleep(0.25)
    assert len(store.return_expired_leases()) == 1
    client.close()


def test_redis_out_of_service_is_said_at_once_and_nothing_is_lost(redis_server: RedisServer, redis_url: str) -> None:
    settings = StorageSettings(redis_url=redis_url)
    client = open_redis(settings)
    store = JobStore(client, settings)
    kept = store.submit(a_job())
    redis_server.stop()
    try:
        before = time.monotonic()
        for call in (
            lambda: store.submit(a_job()),
            lambda: store.get("x"),
            lambda: store.claim_next(worker="w"),
        ):
            with pytest.raises(StorageUnavailable):
                call()
        assert time.monotonic() - before < 2
    finally:
        redis_server.start()
    assert store.get(kept.job_id) == kept
    assert claim(store).job_id == kept.job_id
    client.close()


def test_a_submission_that_redis_gets_too_late_makes_no_job(redis_server: RedisServer, redis_url: str) -> None:
    settings = StorageSettings(redis_url=redis_url, redis_timeout_seconds=0.3)
    client = open_redis(settings)
    store = JobStore(client, settings)
    job = a_job()
    now = store.now()
    store.now = lambda: now  # type: ignore[method-assign]  # the time was asked just before Redis hung
    with redis_server.hanging(), pytest.raises(StorageUnavailable):
        started = time.monotonic()
        store.submit(job)
    assert time.monotonic() - started < 1.5
    time.sleep(0.2)
    assert store.get(job.job_id) is None
    assert store.waiting_count() == 0
    client.close()


@pytest.mark.parametrize("refusal", [{"maxmemory": "1"}, {"min-replicas-to-write": "1"}])
def test_a_redis_that_refuses_writes_is_out_of_service(redis_url: str, refusal: dict[str, str]) -> None:
    settings = StorageSettings(redis_url=redis_url)
    client = open_redis(settings)
    store = JobStore(client, settings)
    store.submit(a_job())
    (name, value), (_, before) = *refusal.items(), *client.config_get(next(iter(refusal))).items()
    client.config_set(name, value)
    try:
        for call in (lambda: store.submit(a_job()), lambda: store.claim_next(worker="w")):
            with pytest.raises(StorageUnavailable):
                call()
    finally:
        client.config_set(name, before)
    assert store.claim_next(worker="w") is not None
    client.close()


def test_pictures_of_a_running_job_are_seen_as_they_are_published(store: JobStore) -> None:
    store.submit(a_job(num_images=2))
    job = claim(store)
    assert store.publish(job, [IMAGE])
    running = store.get(job.job_id)
    assert running is not None
    assert (running.status, running.images) == (JobStatus.PROCESSING, (IMAGE,))
    assert store.finish(job.succeeded((IMAGE, IMAGE), at=store.now()))
    done = store.get(job.job_id)
    assert done is not None
    assert done.images == (IMAGE, IMAGE)


def test_pictures_of_a_lost_claim_are_neither_taken_nor_kept(store: JobStore, clock: Clock) -> None:
    store.submit(a_job(num_images=2))
    lost = claim(store)
    store.publish(lost, [IMAGE])
    clock.now += 3600
    (returned,) = store.return_expired_leases()
    assert returned.images == ()
    assert not store.publish(lost, [IMAGE])
    again = claim(store)
    seen = store.get(again.job_id)
    assert seen is not None
    assert (again.images, seen.images) == ((), ())
    assert not store.publish(lost, [IMAGE, IMAGE])


def test_whoever_waits_for_a_job_is_woken_by_each_picture(store: JobStore, redis_url: str) -> None:
    client = open_redis(StorageSettings(redis_url=redis_url))
    with client.pubsub() as channel:
        channel.subscribe(DONE_CHANNEL)
        assert channel.get_message(timeout=5)
        store.submit(a_job(num_images=2))
        job = claim(store)
        store.publish(job, [IMAGE])
        message = channel.get_message(timeout=5)
    client.close()
    assert message is not None
    assert message["data"] == job.job_id
