"""`python -m api.dispatcher`: posts due webhooks, and keeps the queue and the storage in order meanwhile."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery
from celery.signals import worker_shutting_down
from pydantic import Field, PositiveFloat

from api.delivery_log import DeliveryLog
from api.dialects.fal.signatures import open_signing_keys
from api.janitor import Janitor
from api.keys import KeyStore
from api.settings import ApiSettings
from api.webhooks import Courier, WebhookSettings
from storage.errors import StorageUnavailable
from storage.image_store import open_image_store
from storage.job_queue import DELIVERY_QUEUE, DELIVERY_TASK, JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.logs import configure_logging
from storage.outbound import OutboundDoor
from storage.settings import EnvironmentSettings, StorageSettings, storage_settings
from storage.upkeep import Upkeep

# Messages that wait in the broker while more is due: enough to keep every thread busy until the next tick.
MESSAGES_PER_THREAD = 4
LATE_STARTS_AT_ONCE = 100

logger = structlog.get_logger("api.dispatcher")  # not "__main__"


class DispatcherSettings(EnvironmentSettings):
    dispatcher_tick_seconds: PositiveFloat = Field(
        default=1.0, description="How often due webhooks, lost leases and missing tickets are looked for."
    )
    dispatcher_grace_seconds: PositiveFloat = Field(
        default=5.0,
        description="After SIGTERM, deliveries under way may still end within this; others are made again.",
    )


class Ticker:
    """The chores of every tick. Any number of dispatchers may tick at once: what each takes, it claims."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        queue: JobQueue,
        janitor: Janitor,
        upkeep: Upkeep,
        settings: WebhookSettings,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._settings = settings
        self._failing: set[str] = set()
        self._chores: dict[str, Callable[[], object]] = {
            "send due webhooks": self.send_due_webhooks,
            "keep the queue in order": upkeep.run,
            "fail late starts": self.fail_late_starts,
            "delete what is over": janitor.sweep,
        }

    def run(self, *, until: threading.Event, tick_seconds: float) -> None:
        while not until.is_set():
            self.tick()
            until.wait(tick_seconds)

    def tick(self) -> None:
        """Do every chore; one that fails does not keep the others from being done."""
        for name, chore in self._chores.items():
            try:
                chore()
            except StorageUnavailable as error:
                if name not in self._failing:
                    self._failing.add(name)
                    logger.warning("chore waits for storage", chore=name, reason=str(error))
            except Exception:
                logger.exception("chore failed", chore=name)
            else:
                if name in self._failing:
                    self._failing.discard(name)
                    logger.info("chore goes on", chore=name)

    def send_due_webhooks(self) -> None:
        """Hand what is due to whichever dispatcher has a free thread.

        What exceeds the backlog stays where it is due, so that a crowd of slow receivers does not fill the
        broker with messages about the same jobs.
        """
        backlog = self._settings.webhook_threads * MESSAGES_PER_THREAD
        room = backlog - self._queue.deliveries()
        if room > 0:
            hold_seconds = self._settings.webhook_hold_seconds
            for job_id in self._jobs.claim_due_webhooks(room, hold_seconds=hold_seconds):
                self._queue.send_delivery(job_id)

    def fail_late_starts(self) -> None:
        for job in self._jobs.fail_late_starts(LATE_STARTS_AT_ONCE):
            logger.warning("nobody started it in time", **job.log_context())


def register(app: Celery, courier: Courier) -> None:
    """Let `app` take delivery messages. They are acknowledged at once: a lost one is due again by itself."""

    @app.task(name=DELIVERY_TASK)  # type: ignore[untyped-decorator]  # celery carries no types
    def deliver(job_id: str) -> str:
        try:
            return courier.deliver(job_id)
        except StorageUnavailable as error:
            logger.warning("delivery waits for storage", job_id=job_id, reason=str(error))
            return f"{job_id}: storage unavailable"


def main() -> None:
    """Compose one dispatcher from the environment and work until SIGTERM."""
    storage, webhooks, settings = storage_settings(), WebhookSettings(), DispatcherSettings()
    configure_logging(storage)
    for celery_line in ("celery.worker.strategy", "celery.app.trace"):  # our own line says more
        logging.getLogger(celery_line).setLevel(logging.WARNING)
    app, ticker = compose(storage, webhooks)
    stopping = threading.Event()

    def stop(**_: Any) -> None:
        logger.info("dispatcher stops")
        stopping.set()
        last_moment = threading.Timer(settings.dispatcher_grace_seconds, os._exit, args=(0,))
        last_moment.daemon = True
        last_moment.start()

    worker_shutting_down.connect(stop, weak=False)
    ticking = threading.Thread(
        target=ticker.run,
        kwargs={"until": stopping, "tick_seconds": settings.dispatcher_tick_seconds},
        name="ticker",
        daemon=True,
    )
    ticking.start()
    worker = app.Worker(
        hostname=f"dispatcher-{uuid.uuid4().hex[:8]}@{socket.gethostname()}",
        queues=[DELIVERY_QUEUE],
        pool="threads",
        concurrency=webhooks.webhook_threads,
        loglevel=storage.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    logger.info("dispatcher starts", worker=worker.hostname, threads=webhooks.webhook_threads)
    worker.start()
    sys.exit(worker.exitcode)


def compose(storage: StorageSettings, webhooks: WebhookSettings) -> tuple[Celery, Ticker]:
    client = open_redis(storage)
    jobs = JobStore(client, storage)
    log = DeliveryLog(client, tries_kept=webhooks.webhook_tries_kept)
    app = celery_app(storage)
    fal_signer = open_signing_keys(client, ApiSettings().fal_webhook_key)
    courier = Courier(
        jobs=jobs,
        keys=KeyStore(client),
        log=log,
        door=OutboundDoor(allowed_private_networks=storage.allowed_private_networks),
        settings=webhooks,
        delivery_ttl_seconds=storage.delivery_ttl,
        signatures={"fal": lambda job, body: fal_signer.headers(job, body, now=time.time())},
    )
    register(app, courier)
    queue = JobQueue(app)
    ticker = Ticker(
        jobs=jobs,
        queue=queue,
        janitor=Janitor(jobs=jobs, images=open_image_store(storage), log=log),
        upkeep=Upkeep(jobs, queue),
        settings=webhooks,
    )
    return app, ticker


if __name__ == "__main__":
    main()
