"""Leases that ran out and tickets that got lost, put right on a real Redis."""

from __future__ import annotations

import time

import pytest

from storage.errors import StorageUnavailable
from storage.job import JobStatus
from storage.job_queue import JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.settings import StorageSettings
from storage.upkeep import SETTLE_SECONDS, Upkeep
from tests.jobs import a_job
from tests.servers import RedisServer

LEASE_SECONDS = 0.2


class House:
    def __init__(self, redis_url: str) -> None:
        settings = StorageSettings(redis_url=redis_url, lease_seconds=LEASE_SECONDS)
        self.jobs = JobStore(open_redis(settings), settings)
        self.queue = JobQueue(celery_app(settings))
        self.now = 0.0
        self.upkeep = Upkeep(self.jobs, self.queue, monotonic=lambda: self.now)


@pytest.fixture
def house(redis_url: str) -> House:
    return House(redis_url)


def test_a_lease_that_ran_out_gives_the_job_back_with_a_ticket(house: House) -> None:
    house.jobs.submit(a_job())
    house.jobs.claim_next(worker="w")
    house.upkeep.run()
    assert house.queue.tickets() == 0
    time.sleep(1.5 * LEASE_SECONDS)
    house.upkeep.run()
    assert house.queue.tickets() == 1
    assert house.jobs.waiting_count() == 1


def test_a_job_that_is_given_up_gets_no_ticket(house: House) -> None:
    submitted = house.jobs.submit(a_job())
    for _ in range(3):
        house.jobs.claim_next(worker="w")
        time.sleep(1.5 * LEASE_SECONDS)
        house.upkeep.run()
    job = house.jobs.get(submitted.job_id)
    assert job is not None and job.status is JobStatus.FAILED
    assert house.queue.tickets() == 2


def test_a_missing_ticket_is_replaced_when_it_was_missing_before(house: House) -> None:
    for _ in range(3):
        house.jobs.submit(a_job())
    house.upkeep.run()
    assert house.queue.tickets() == 0, "it may be on its way"
    house.upkeep.run()
    assert house.queue.tickets() == 3
    house.upkeep.run()
    assert house.queue.tickets() == 3


def test_a_ticket_that_a_living_worker_owes_is_not_missing(house: House) -> None:
    for _ in range(3):
        house.jobs.submit(a_job())
    house.jobs.heartbeat_worker("w", {"tickets_owed": 2})
    house.upkeep.run()
    house.upkeep.run()
    assert house.queue.tickets() == 1
    house.jobs.forget_worker("w")
    house.upkeep.run()
    house.upkeep.run()
    assert house.queue.tickets() == 3


def test_after_an_outage_workers_may_renew_their_leases_first(house: House, redis_server: RedisServer) -> None:
    house.jobs.submit(a_job())
    house.jobs.claim_next(worker="w")
    redis_server.stop()
    try:
        with pytest.raises(StorageUnavailable):
            house.upkeep.run()
        time.sleep(1.5 * LEASE_SECONDS)
    finally:
        redis_server.start()
    house.upkeep.run()
    assert house.jobs.waiting_count() == 0
    house.now += SETTLE_SECONDS
    house.upkeep.run()
    assert house.jobs.waiting_count() == 1
