"""The dispatcher: its chores one by one, and as real processes that are killed, stopped and doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from api.dispatcher import Ticker
from api.janitor import Janitor
from api.keys import KeyStore
from api.webhooks import WebhookSettings
from storage.image_store import FolderImageStore
from storage.job import InpaintJob, JobStatus
from storage.job_queue import JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.settings import StorageSettings
from storage.upkeep import Upkeep
from tests.jobs import a_job
from tests.servers import RedisServer
from tests.webhook_scenes import (
    LOOPBACK,
    Inbox,
    Receiver,
    Scene,
    elsewhere,
    finished_job,
    inbox_and_url,
    receiver,
)

__all__ = ["elsewhere", "inbox_and_url", "receiver"]

Target = tuple[Inbox, str]
ROOT = Path(__file__).parents[2]


# -- the chores, under a clock of our own ---------------------------------------------------------


@pytest.fixture
def scene(redis_url: str) -> Scene:
    return Scene(redis_url, webhook_threads=2)


@pytest.fixture
def queue(scene: Scene) -> JobQueue:
    return JobQueue(celery_app(scene.storage))


@pytest.fixture
def ticker(scene: Scene, queue: JobQueue, tmp_path: Path) -> Ticker:
    return Ticker(
        jobs=scene.jobs,
        queue=queue,
        janitor=Janitor(jobs=scene.jobs, images=FolderImageStore(tmp_path), log=scene.log),
        upkeep=Upkeep(scene.jobs, queue),
        settings=scene.settings,
    )


def messages(scene: Scene) -> int:
    return JobQueue(celery_app(scene.storage)).deliveries()


def test_a_due_webhook_is_sent_once_and_again_when_nobody_delivers_it(scene: Scene, ticker: Ticker) -> None:
    scene.over("http://127.0.0.1/hook")
    assert messages(scene) == 0
    for _ in range(3):
        ticker.tick()
    assert messages(scene) == 1
    scene.clock.advance(scene.settings.webhook_hold_seconds)
    ticker.tick()
    assert messages(scene) == 2


def test_no_more_messages_are_sent_than_the_threads_can_soon_take(scene: Scene, ticker: Ticker) -> None:
    for _ in range(20):
        scene.over("http://127.0.0.1/hook")
    for _ in range(4):
        ticker.tick()
        scene.clock.advance(scene.settings.webhook_hold_seconds)
    assert messages(scene) == 8


def test_an_expired_lease_gives_a_ticket_and_a_job_that_is_given_up_gives_none(
    scene: Scene, ticker: Ticker, queue: JobQueue
) -> None:
    job = scene.jobs.submit(a_job())
    for tickets in (1, 2, 2):
        assert scene.jobs.claim_next(worker="gone") is not None
        before = queue.tickets()
        scene.clock.advance(scene.storage.lease_seconds - 1)
        ticker.tick()
        assert queue.tickets() == before, "the lease holds"
        scene.clock.advance(2)
        ticker.tick()
        assert queue.tickets() == tickets
    lost = scene.jobs.get(job.job_id)
    assert lost is not None
    assert lost.status is JobStatus.FAILED
    assert lost.failure is not None
    assert lost.failure.code == "worker_lost"


def test_lost_tickets_are_replaced_and_those_on_their_way_are_not(
    scene: Scene, ticker: Ticker, queue: JobQueue
) -> None:
    for _ in range(3):
        scene.jobs.submit(a_job())
    ticker.tick()
    assert queue.tickets() == 0, "they may be on their way"
    ticker.tick()
    assert queue.tickets() == 3
    for _ in range(3):
        ticker.tick()
    assert queue.tickets() == 3


def test_a_queue_in_order_gets_no_tickets(scene: Scene, ticker: Ticker, queue: JobQueue) -> None:
    for _ in range(3):
        scene.jobs.submit(a_job())
        queue.send_ticket()
    for _ in range(3):
        ticker.tick()
    assert queue.tickets() == 3


def test_the_ticker_deletes_what_is_over(scene: Scene, ticker: Ticker) -> None:
    job = scene.over(None)
    scene.clock.advance(scene.storage.record_ttl)
    ticker.tick()
    assert scene.jobs.get(job.job_id) is None


def test_an_outage_is_said_once_and_its_end_too(scene: Scene, ticker: Ticker, redis_server: RedisServer) -> None:
    ticker.tick()
    redis_server.stop()
    try:
        with capture_logs() as during:
            for _ in range(3):
                ticker.tick()
    finally:
        redis_server.start()
    events = Counter(line["event"] for line in during)
    assert events == {"chore waits for storage": 4}
    scene.over("http://127.0.0.1/hook")
    with capture_logs() as after:
        ticker.tick()
    assert sum(line["event"] == "chore goes on" for line in after) == 3, "the janitor rests a while longer"
    assert messages(scene) == 1


def test_a_chore_that_breaks_keeps_no_other_from_being_done(
    scene: Scene, ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> list[InpaintJob]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scene.jobs, "return_expired_leases", broken)
    monkeypatch.setattr(scene.jobs, "claim_due_webhooks", broken)
    job = scene.over(None)
    scene.clock.advance(scene.storage.record_ttl)
    with capture_logs() as lines:
        ticker.tick()
    assert [line["chore"] for line in lines if line["event"] == "chore failed"] == [
        "send due webhooks",
        "keep the queue in order",
    ]
    assert scene.jobs.get(job.job_id) is None


# -- whole processes, in real time ----------------------------------------------------------------


class Dispatchers:
    """Real dispatcher processes on one Redis; all are gone at the end of the test."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.storage = StorageSettings(redis_url=redis_url)
        self.client = open_redis(self.storage)
        self.jobs = JobStore(self.client, self.storage)
        self.key_id = KeyStore(self.client).create(name="tests")[0].key_id
        self.folder = folder
        self.settings = {
            "REDIS_URL": redis_url,
            "IMAGE_DIR": str(folder / "images"),
            "ALLOWED_PRIVATE_NETWORKS": LOOPBACK,
            "DISPATCHER_TICK_SECONDS": "0.1",
            "LOG_FORMAT": "json",
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"dispatcher-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.dispatcher_process"],
                cwd=ROOT,
                env={**os.environ, **self.settings, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def over(self, url: str) -> InpaintJob:
        return finished_job(self.jobs, url, key_id=self.key_id)

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("dispatcher-*.log")))

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture
def dispatchers(redis_url: str, tmp_path: Path) -> Iterator[Dispatchers]:
    dispatchers = Dispatchers(redis_url, tmp_path)
    yield dispatchers
    dispatchers.end()


def eventually(what: Callable[[], bool], dispatchers: Dispatchers, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, dispatchers.logs()
        time.sleep(0.05)


def test_two_dispatchers_deliver_every_webhook_once(dispatchers: Dispatchers, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    jobs = [dispatchers.over(url) for _ in range(15)]
    for _ in range(2):
        dispatchers.start()
    jobs += [dispatchers.over(url) for _ in range(15)]
    eventually(lambda: len(inbox.ids) >= 30, dispatchers)
    eventually(lambda: dispatchers.client.zcard("inpaintd:webhooks") == 0, dispatchers)
    time.sleep(0.5)
    assert Counter(inbox.ids) == Counter(f"msg_{job.job_id}" for job in jobs)
    delivered = dispatchers.logs()
    assert delivered.count('"webhook_status": "delivered"') == 30


def test_a_dispatcher_killed_in_the_middle_of_a_delivery_loses_nothing(
    dispatchers: Dispatchers, inbox_and_url: Target
) -> None:
    inbox, url = inbox_and_url
    inbox.hangs = True
    short = {"WEBHOOK_TIMEOUT_SECONDS": "1", "WEBHOOK_HOLD_SECONDS": "6.1"}
    killed = dispatchers.start(**short)
    job = dispatchers.over(url)
    eventually(lambda: inbox.received.acquire(blocking=False), dispatchers)
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    assert dispatchers.client.zscore("inpaintd:webhooks", job.job_id) > time.time(), "it comes again"
    inbox.hangs = False
    inbox.let_go.set()
    dispatchers.start(**short)
    eventually(lambda: dispatchers.client.zcard("inpaintd:webhooks") == 0, dispatchers)
    assert inbox.ids == [f"msg_{job.job_id}"] * 2


def test_sigterm_ends_a_dispatcher_within_seconds_though_a_receiver_hangs(
    dispatchers: Dispatchers, inbox_and_url: Target
) -> None:
    inbox, url = inbox_and_url
    inbox.hangs = True
    process = dispatchers.start(DISPATCHER_GRACE_SECONDS="1")
    job = dispatchers.over(url)
    eventually(lambda: inbox.received.acquire(blocking=False), dispatchers)
    before = time.monotonic()
    process.terminate()
    assert process.wait(10) == 0
    assert time.monotonic() - before < 4
    assert dispatchers.client.zscore("inpaintd:webhooks", job.job_id) > time.time(), "it comes again"


def test_sigterm_lets_a_delivery_under_way_end(dispatchers: Dispatchers, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.hangs = True
    process = dispatchers.start(DISPATCHER_GRACE_SECONDS="10")
    dispatchers.over(url)
    eventually(lambda: inbox.received.acquire(blocking=False), dispatchers)
    process.terminate()
    time.sleep(0.3)
    inbox.let_go.set()
    assert process.wait(10) == 0
    assert dispatchers.client.zcard("inpaintd:webhooks") == 0
    assert len(inbox.ids) == 1


def test_slow_receivers_do_not_hold_up_a_quick_one(
    dispatchers: Dispatchers, inbox_and_url: Target, elsewhere: Receiver
) -> None:
    slow, slow_url = inbox_and_url
    slow.hangs = True
    elsewhere.inbox = quick = Inbox()
    dispatchers.start(WEBHOOK_THREADS="4", WEBHOOK_THREADS_PER_HOST="3")
    for _ in range(12):
        dispatchers.over(slow_url)
    for _ in range(3):
        eventually(lambda: slow.received.acquire(blocking=False), dispatchers)
    before = time.monotonic()
    dispatchers.over(elsewhere.url)
    eventually(lambda: len(quick.ids) == 1, dispatchers)
    assert time.monotonic() - before < 5
    assert len(slow.ids) == 3


def test_a_redis_that_goes_and_returns_is_survived(
    dispatchers: Dispatchers, inbox_and_url: Target, redis_server: RedisServer
) -> None:
    inbox, url = inbox_and_url
    process = dispatchers.start()
    dispatchers.over(url)
    eventually(lambda: len(inbox.ids) == 1, dispatchers)
    redis_server.stop()
    time.sleep(1)
    redis_server.start()
    job = dispatchers.over(url)
    eventually(lambda: f"msg_{job.job_id}" in inbox.ids, dispatchers, seconds=30)
    assert process.poll() is None
    assert "chore waits for storage" in dispatchers.logs()


def test_no_log_line_of_a_dispatcher_carries_a_secret(dispatchers: Dispatchers, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    dispatchers.start()
    dispatchers.over(url + "?token=private")
    eventually(lambda: len(inbox.ids) == 1, dispatchers)
    eventually(lambda: "webhook tried" in dispatchers.logs(), dispatchers)
    assert "whsec_" not in dispatchers.logs()
    assert "private" not in dispatchers.logs()


def test_a_hold_too_short_is_refused_at_the_start_by_name(dispatchers: Dispatchers) -> None:
    process = dispatchers.start(WEBHOOK_HOLD_SECONDS="3")
    assert process.wait(20) != 0
    assert "WEBHOOK_HOLD_SECONDS" in dispatchers.logs()
    assert WebhookSettings().webhook_hold_seconds == 60
