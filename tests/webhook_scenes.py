"""For tests of webhooks: a clock to set, a dialect of three words, jobs that are over, receivers that listen."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_network
from types import ModuleType
from typing import Any

import pytest
import redis
from pytest_httpserver import HTTPServer
from standardwebhooks import Webhook
from werkzeug import Request, Response

from api.delivery_log import DeliveryLog, Standing, Try
from api.keys import ApiKey, KeyStore
from api.webhook_message import WebhookMessage
from api.webhooks import Courier, WebhookSettings
from storage.image_store import FolderImageStore
from storage.job import InpaintJob, ResultImage
from storage.job_store import JobStore, open_redis
from storage.outbound import OutboundDoor
from storage.settings import StorageSettings
from tests.jobs import a_job

LOOPBACK = "127.0.0.0/8"
A_MOMENT = 1_800_000_000.0


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.time = A_MOMENT

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


def plain_dialect() -> ModuleType:
    """A dialect that says what it must and nothing else; jobs choose it with `dialect="plain"`."""
    module = ModuleType("api.dialects.plain")

    def render_webhook(job: InpaintJob) -> WebhookMessage:
        body = {"status": job.status.value, "track_id": job.track_id, "meta": {"prompt": job.prompt}}
        return WebhookMessage(body=body, headers={"x-dialect": "plain"})

    vars(module)["render_webhook"] = render_webhook
    return module


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "api.dialects.plain", plain_dialect())


class Scene:
    """Everything of a dispatcher but its processes, on a real Redis and under a clock of our own."""

    def __init__(self, redis_url: str, *, clock: Clock | None = None, **settings: Any) -> None:
        self.storage = StorageSettings(redis_url=redis_url, allowed_private_networks=LOOPBACK)
        self.clock = clock or Clock()
        self.client: redis.Redis = open_redis(self.storage)
        self.jobs = JobStore(self.client, self.storage, clock=self.clock)
        self.keys = KeyStore(self.client)
        self.log = DeliveryLog(self.client)
        self.settings = WebhookSettings(**settings)
        self.stretch = 0.0
        self.courier = self.a_courier()
        self.key: ApiKey = self.keys.create(name="tests")[0]

    def a_courier(self) -> Courier:
        return Courier(
            jobs=self.jobs,
            keys=self.keys,
            log=self.log,
            door=OutboundDoor(allowed_private_networks=[ip_network(LOOPBACK)]),
            settings=self.settings,
            delivery_ttl_seconds=self.storage.delivery_ttl,
            stretch=lambda: self.stretch,
        )

    def over(self, webhook_url: str | None, **changes: Any) -> InpaintJob:
        """A job of this scene's key that has succeeded; its webhook is due."""
        return finished_job(self.jobs, webhook_url, **({"key_id": self.key.key_id} | changes))

    def due(self) -> list[str]:
        return self.jobs.claim_due_webhooks(100, hold_seconds=self.settings.webhook_hold_seconds)

    def work(self) -> list[str]:
        """What the dispatchers do when they look: deliver what is due. Answers what came of each."""
        return [self.courier.deliver(job_id) for job_id in self.due()]

    def last_try(self, job: InpaintJob) -> Try:
        return self.log.tries(job.job_id)[-1]

    def standing(self, job: InpaintJob) -> Standing:
        return self.log.standing(job.job_id)

    def seconds_to_next(self, job: InpaintJob) -> float:
        next_at = self.last_try(job).next_at
        assert next_at is not None
        return next_at - self.clock()


def finished_job(jobs: JobStore, webhook_url: str | None, **changes: Any) -> InpaintJob:
    job = jobs.submit(a_job(**({"dialect": "plain", "webhook_url": webhook_url} | changes)))
    claimed = jobs.claim_next(worker="tests")
    assert claimed is not None
    assert claimed.job_id == job.job_id
    pictures = tuple(
        ResultImage(key=f"results/{job.job_id}/{claimed.fence}/{k}.png", seed=k, width=8, height=8, size_bytes=3)
        for k in range(job.num_images)
    )
    assert jobs.finish(claimed.succeeded(pictures, at=jobs.now()))
    stored = jobs.get(job.job_id)
    assert stored is not None
    return stored


class Inbox:
    """A receiver's memory: every POST with its verified id, and answers to give."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.received = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.hangs = False
        self.answer = Response("", 200)
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        body = request.get_data()
        with self._lock:
            self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
        self.received.release()
        if self.hangs:
            self.let_go.wait(30)
        return self.answer

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    def verified(self, secret: str) -> list[Any]:
        """The bodies, each of which must bear this secret's signature."""
        return [Webhook(secret).verify(body, headers) for headers, body in self.requests]


class Receiver:
    """A real HTTP server with one webhook, `url`. Its inbox may be changed for a fresh one."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.inbox = Inbox()
        self._server = HTTPServer(host=host, port=0, threaded=True)
        self._server.expect_request("/hook", method="POST").respond_with_handler(self._receive)

    def _receive(self, request: Request) -> Response:
        return self.inbox(request)

    @property
    def url(self) -> str:
        return self._server.url_for("/hook")

    def __enter__(self) -> Receiver:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.inbox.let_go.set()
        self._server.stop()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def inbox_and_url(receiver: Receiver) -> Iterator[tuple[Inbox, str]]:
    """An empty inbox, and where to post to it."""
    receiver.inbox = inbox = Inbox()
    yield inbox, receiver.url
    inbox.let_go.set()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Receiver]:
    """A receiver on another host."""
    with Receiver("127.0.0.2") as receiver:
        yield receiver


def pictures_of(images: FolderImageStore, job: InpaintJob) -> None:
    for image in job.images:
        images.put(image.key, b"png", "image/png")
