"""Clients that wait for their result hold nobody up, and are woken when it is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from api.waiting import Arrivals
from storage.job_store import JobStore
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with
from tests.gunicorn_process import serving
from tests.jobs import a_job
from tests.servers import RedisServer

__all__ = ["front_end", "open_with"]

WAITING_CLIENTS = 200


def test_two_hundred_clients_wait_and_another_is_answered_at_once(
    front_end: FrontEnd, redis_url: str, tmp_path: Path
) -> None:
    body = front_end.body(instant_response=False)

    def submit(url: str) -> tuple[dict[str, Any], float]:
        answer = requests.post(f"{url}/api/v6/realtime/inpaint", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json(), time.monotonic()

    with (
        serving(redis_url, tmp_path, WAIT_SECONDS="40", MAX_QUEUED_JOBS="0") as url,
        ThreadPoolExecutor(WAITING_CLIENTS) as clients,
    ):
        waiting = [clients.submit(submit, url) for _ in range(WAITING_CLIENTS)]
        jobs = front_end.parts.jobs
        deadline = time.monotonic() + 30
        while jobs.waiting_count() < WAITING_CLIENTS and time.monotonic() < deadline:
            time.sleep(0.05)
        assert jobs.waiting_count() == WAITING_CLIENTS
        assert not any(client.done() for client in waiting)

        before = time.monotonic()
        fetched = requests.post(f"{url}/api/v6/realtime/fetch/1", json={"key": front_end.key}, timeout=10)
        fetch_seconds = time.monotonic() - before
        assert fetched.json()["status"] == "processing"
        assert fetch_seconds < 0.5

        with FakeWorker(front_end):
            answers = [client.result() for client in waiting]
        assert {answer["status"] for answer, _ in answers} == {"success"}
        assert len({answer["id"] for answer, _ in answers}) == WAITING_CLIENTS


def test_a_redis_that_is_slow_for_a_moment_refuses_nobody(front_end: FrontEnd, redis_url: str, tmp_path: Path) -> None:
    body = front_end.body()

    def submit(url: str) -> int:
        return requests.post(f"{url}/api/v6/realtime/inpaint", json=body, timeout=60).status_code

    with serving(redis_url, tmp_path, MAX_QUEUED_JOBS="0") as url, ThreadPoolExecutor(WAITING_CLIENTS) as clients:
        front_end.parts.redis.execute_command("CLIENT", "PAUSE", "1000")
        answered = [clients.submit(submit, url) for _ in range(WAITING_CLIENTS)]
        assert {answer.result() for answer in answered} == {200}


@pytest.fixture
def arrivals(front_end: FrontEnd) -> Arrivals:
    return front_end.parts.arrivals


def waiting_thread(arrivals: Arrivals, front_end: FrontEnd, seconds: float = 20) -> tuple[threading.Thread, list[Any]]:
    """A thread that waits for a new job, once it does, and the list that gets what it sees and how long it took."""
    job = front_end.parts.jobs.submit(a_job(key_id=front_end.api_key.key_id))
    seen: list[Any] = []

    def wait() -> None:
        before = time.monotonic()
        seen.extend((arrivals.wait_for(job, seconds), time.monotonic() - before))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    return thread, seen


def test_a_waiting_client_is_woken_the_moment_its_job_is_over(front_end: FrontEnd, arrivals: Arrivals) -> None:
    thread, seen = waiting_thread(arrivals, front_end)
    front_end.work_once()
    thread.join(0.5)
    assert not thread.is_alive()
    assert seen[0].status.value == "succeeded"


def test_a_job_over_before_its_client_waits_is_seen_at_once(front_end: FrontEnd, arrivals: Arrivals) -> None:
    job = front_end.parts.jobs.submit(a_job())
    front_end.work_once()
    before = time.monotonic()
    assert arrivals.wait_for(job, 10).status.value == "succeeded"
    assert time.monotonic() - before < 0.5


def test_all_who_wait_share_one_listener(front_end: FrontEnd, arrivals: Arrivals) -> None:
    threads = [waiting_thread(arrivals, front_end)[0] for _ in range(3)]
    assert [thread.name for thread in threading.enumerate()].count("arrivals") == 1
    assert front_end.parts.redis.pubsub_numsub("inpaintd:done") == [("inpaintd:done", 1)]
    for _ in threads:
        front_end.work_once()
    for thread in threads:
        thread.join(1)
        assert not thread.is_alive()


def test_a_client_beyond_the_limit_does_not_wait(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(max_waiting_clients=1)
    arrivals = front_end.parts.arrivals
    thread, _ = waiting_thread(arrivals, front_end)
    before = time.monotonic()
    assert front_end.submit(instant_response=False)["status"] == "processing"
    assert time.monotonic() - before < 0.5
    front_end.work_once()
    thread.join(1)
    assert not thread.is_alive()


def test_the_listener_comes_back_after_redis_and_nobody_is_lost(
    front_end: FrontEnd, arrivals: Arrivals, redis_server: RedisServer
) -> None:
    thread, _ = waiting_thread(arrivals, front_end)
    front_end.work_once()
    thread.join(1)
    redis_server.stop()
    time.sleep(0.2)
    redis_server.start()
    thread, seen = waiting_thread(arrivals, front_end)
    time.sleep(1.2)
    front_end.work_once()
    thread.join(0.5)
    assert not thread.is_alive()
    assert seen[0].status.value == "succeeded"


def test_redis_going_down_ends_the_wait_with_what_was_known(
    front_end: FrontEnd, arrivals: Arrivals, redis_server: RedisServer
) -> None:
    thread, seen = waiting_thread(arrivals, front_end)
    redis_server.stop()
    try:
        thread.join(8)
        assert not thread.is_alive()
        assert seen[0].status.value == "queued"
    finally:
        redis_server.start()


def test_a_lost_message_is_made_up_for_by_looking_again(
    front_end: FrontEnd, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.waiting.LOOK_AGAIN_SECONDS", 0.5)
    deaf = Arrivals(redis.Redis.from_url("redis://127.0.0.1:1/0"), front_end.parts.jobs, max_waiting=5)
    thread, seen = waiting_thread(deaf, front_end)
    front_end.work_once()
    thread.join(2)
    assert not thread.is_alive()
    assert seen[0].status.value == "succeeded"
    deaf.close()


def test_closing_answers_those_who_wait(front_end: FrontEnd) -> None:
    store: JobStore = front_end.parts.jobs
    arrivals = Arrivals(front_end.parts.redis, store, max_waiting=5)
    thread, seen = waiting_thread(arrivals, front_end)
    arrivals.close()
    thread.join(1)
    assert not thread.is_alive()
    assert seen[0].status.value == "queued"
