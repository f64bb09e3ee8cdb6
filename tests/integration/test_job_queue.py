"""Tickets on a real broker."""

from __future__ import annotations

import time

import pytest

from storage.errors import StorageUnavailable
from storage.job_queue import JobQueue, celery_app
from storage.settings import StorageSettings
from tests.servers import RedisServer


def test_tickets_are_counted_until_a_worker_takes_them(redis_url: str) -> None:
    queue = JobQueue(celery_app(StorageSettings(redis_url=redis_url)))
    assert queue.tickets() == 0
    queue.send_ticket()
    queue.send_ticket()
    queue.send_delivery("job")
    assert queue.tickets() == 2
    assert queue.deliveries() == 1


def test_a_broker_out_of_service_is_said_at_once(redis_server: RedisServer, redis_url: str) -> None:
    queue = JobQueue(celery_app(StorageSettings(redis_url=redis_url)))
    queue.send_ticket()
    redis_server.stop()
    try:
        before = time.monotonic()
        for call in (queue.send_ticket, queue.tickets, queue.deliveries):
            with pytest.raises(StorageUnavailable):
                call()
        assert time.monotonic() - before < 4
    finally:
        redis_server.start()
    queue.send_ticket()
    assert queue.tickets() == 2
