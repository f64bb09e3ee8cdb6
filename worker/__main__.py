"""The worker process: puts engine, clerk and Celery together, and takes them apart in good order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Protocol

import numpy as np
import structlog
from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.platforms import EX_FAILURE
from celery.worker import WorkController
from celery.worker import state as celery_state

from storage.errors import StorageUnavailable
from storage.image_store import open_image_store
from storage.job_queue import TICKET_QUEUE, JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.logs import configure_logging
from storage.model_catalog import BadModelsFile, ModelCatalog, ModelEntry, load_catalog
from storage.outbound import OutboundDoor
from storage.previews import PreviewStore
from storage.settings import StorageSettings, storage_settings
from worker.celery_consumer import TicketConsumer
from worker.clerk import Clerk
from worker.devices import choose_device
from worker.engine import open_engine
from worker.errors import JobFailed, WorkerUnfit
from worker.inputs import Sources
from worker.masks import KEEP, REPAINT
from worker.painters import Painters, StartedPainter
from worker.places import places_for
from worker.previewer import Previewed, Previewer
from worker.removals import Removals
from worker.safety import Safety
from worker.sample import Painting
from worker.settings import WorkerSettings, worker_settings
from worker.tasks import give_back, register_ticket_task
from worker.workshop import Painter, Workshop

log = structlog.get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNFIT_EXIT_CODE = 1
# After the grace: for threads to leave, for Celery to say goodbye, for the engine to end its tick.
LEAVE_SECONDS = 2.0
GOODBYE_SECONDS = 8.0
POLL_SECONDS = 0.05
CONSUMER_PAUSE_SECONDS = 1.0
# What they say about each ticket, our own lines say about each job.
TALKATIVE_LOGGERS = ("celery.worker.strategy", "celery.app.trace")


class EngineProcess(StartedPainter, Previewed, Protocol):
    """The engine, or what stands for it in tests."""


class Closing:
    """Stops the worker in good order, and the process in any case.

    Celery's own signal handlers would wait for all threads without limit, so the signals are taken here,
    by a thread of their own. The first closes: nothing more is claimed, running jobs get the grace, then
    those that are left go back into the queue. The second ends the grace.
    """

    def __init__(self, clerk: Clerk, settings: WorkerSettings) -> None:
        self.exit_code = 0
        self.workshop: Workshop | None = None
        self.consumer: Any = None  # Celery's, once it consumes
        self._clerk = clerk
        self._settings = settings
        self._begun = threading.Event()
        self._hurried = threading.Event()
        self._main_is_done = threading.Event()
        self._signals: socket.socket

    def start(self) -> None:
        """Take the signals from now on. For the main thread only."""
        # The number of each signal is written there at once, whichever thread it hits, while a handler
        # in Python would wait until the main thread has its turn.
        self._signals, written = socket.socketpair()
        written.setblocking(False)
        signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._take_signals, name="signals", daemon=True).start()
        threading.Thread(target=self._close, name="closing", daemon=True).start()

    def begin_unfit(self) -> None:
        """This process can paint no more."""
        self.exit_code = UNFIT_EXIT_CODE
        self._clerk.close()
        self._begun.set()

    @property
    def has_begun(self) -> bool:
        return self._begun.is_set()

    def main_is_done(self) -> None:
        self._main_is_done.set()

    def _take_signals(self) -> None:
        for hurry in (False, True):
            number = signal.Signals(self._next_signal())
            log.info("worker_closing", signal=number.name, hurry=hurry)
            (self._hurried if hurry else self._begun).set()

    def _next_signal(self) -> int:
        while (number := self._signals.recv(1)[0]) not in STOP_SIGNALS:
            pass
        return number

    def _close(self) -> None:
        self._begun.wait()
        self._clerk.close()
        if self.consumer is None:
            os._exit(self.exit_code)  # still loading: nothing is held
        self.consumer.call_soon(self.consumer.cancel_task_queue, TICKET_QUEUE)
        self._wait_for_claims(self._settings.shutdown_grace_seconds)
        self._give_back_the_rest()
        celery_state.should_stop = 0
        if not self._main_is_done.wait(GOODBYE_SECONDS):
            log.warning("worker_ends_at_once")
            os._exit(self.exit_code)

    def _wait_for_claims(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._clerk.claims() and time.monotonic() < until and not self._hurried.is_set():
            time.sleep(POLL_SECONDS)

    def _give_back_the_rest(self) -> None:
        left = self._clerk.claims()
        try:
            for claim in left:
                if self.workshop is not None:
                    give_back(self.workshop, claim)
        except StorageUnavailable:
            log.warning("jobs_not_given_back", jobs=[claim.job.job_id for claim in left])
        until = time.monotonic() + LEAVE_SECONDS
        while self._clerk.claims() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)


def main() -> int:
    """Run a worker as the environment says; the answer is the exit status."""
    storage, settings = storage_settings(), worker_settings()
    configure_logging(storage)
    try:
        catalog = load_catalog(storage)
        return run(open_engine(catalog, settings), catalog, storage, settings)
    except (BadModelsFile, WorkerUnfit) as error:
        log.critical("worker_not_started", error=str(error))
        return UNFIT_EXIT_CODE


def run(engine: EngineProcess, catalog: ModelCatalog, storage: StorageSettings, settings: WorkerSettings) -> int:
    """Paint until a signal or an unfit engine ends it. Takes SIGTERM and SIGINT for itself."""
    name = settings.worker_name or f"{socket.gethostname()}-{os.getpid()}"
    client = open_redis(storage)
    jobs = JobStore(client, storage)
    previewer = Previewer(engine, PreviewStore(client))
    images = open_image_store(storage)
    door = OutboundDoor(allowed_private_networks=storage.allowed_private_networks)
    app = celery_app(storage)
    queue = JobQueue(app)
    painters = Painters(engine, Removals(settings.removal_processes), catalog)
    clerk = Clerk(
        worker=name, jobs=jobs, queue=queue, engine=painters, settings=settings, show_previews=previewer.watch
    )
    closing = Closing(clerk, settings)
    workshop = Workshop(
        name=name,
        jobs=jobs,
        queue=queue,
        images=images,
        sources=Sources(images=images, jobs=jobs, door=door, settings=settings),
        catalog=catalog,
        engine=painters,
        safety=Safety(catalog.addons.safety_checker, engine, lambda: choose_device(settings)),
        clerk=clerk,
        places=places_for(catalog, settings),
        settings=settings,
        max_attempts=storage.max_attempts,
        unfit=closing.begin_unfit,
    )
    closing.workshop = workshop
    closing.start()
    register_ticket_task(app, workshop)
    painters.start()
    clerk.start()
    previewer.start()
    log.info("engine_started", worker=name)
    warm_up(painters, catalog.default)
    consume(app, name, settings, clerk, closing)
    _say_goodbye(clerk, painters)
    previewer.stop()
    closing.main_is_done()
    return closing.exit_code


def warm_up(engine: Painter, model: ModelEntry) -> None:
    """Load the default model and paint one step with it, so that the first client does not wait for that."""
    size = model.min_size
    mask = np.full((size, size), REPAINT, np.uint8)
    mask[0] = KEEP
    start = time.monotonic()
    painting = Painting(
        job_id="warm-up",
        model=model.id,
        prompt="",
        negative_prompt="",
        picture=np.zeros((size, size, 3), np.uint8),
        mask=mask,
        seeds=(0,),
        num_inference_steps=1,
        guidance_scale=model.guidance_scale,
        strength=1.0,
        scheduler=model.scheduler,
    )
    try:
        engine.paint(painting)
    except JobFailed as error:
        # The other models may be well; jobs of this one will say the same.
        log.error("warm_up_failed", model=model.id, error=error.message)
    else:
        log.info("warmed_up", model=model.id, seconds=round(time.monotonic() - start, 2))


def consume(app: Celery, name: str, settings: WorkerSettings, clerk: Clerk, closing: Closing) -> None:
    """Work off tickets until Celery is told to stop."""
    for talkative in TALKATIVE_LOGGERS:
        logging.getLogger(talkative).setLevel(logging.WARNING)
    app.conf.broker_connection_max_retries = None
    node = f"worker@{name}"
    app.finalize()
    app.set_default()
    setup_worker_optimizations(app, node)

    def begin(consumer: Any) -> None:
        closing.consumer = consumer
        clerk.open()
        log.info("worker_ready", worker=name, threads=settings.worker_threads)

    while True:
        # The bare controller: no banner, no logging of its own, no signal handlers.
        controller = WorkController(
            app=app,
            hostname=node,
            pool_cls="threads",
            consumer_cls=TicketConsumer,
            concurrency=settings.worker_threads,
            queues=[TICKET_QUEUE],
            task_events=True,
            # What workers tell each other through Celery; ours share the job store.
            without_gossip=True,
            without_mingle=True,
            prefetch_multiplier=1,
            ready_callback=begin,
        )
        controller.start()
        if closing.has_begun or controller.exitcode != EX_FAILURE:
            return
        # A broker that refuses, or one of kombu's own errors after an outage, ends the consumer. The models are
        # loaded and the jobs held are well: only the consumer starts anew.
        log.warning("consumer_starts_anew")
        time.sleep(CONSUMER_PAUSE_SECONDS)


def _say_goodbye(clerk: Clerk, painters: Painters) -> None:
    try:
        clerk.settle_tickets()
    except StorageUnavailable:
        log.warning("tickets_not_sent")  # every clerk tops missing tickets up
    clerk.stop()
    painters.stop()
    log.info("worker_ended")


if __name__ == "__main__":
    sys.exit(main())
