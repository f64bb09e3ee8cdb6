"""Clients that wait for their job: one pub/sub listener per process wakes the threads that hold them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis
import structlog

from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_store import DONE_CHANNEL, JobStore

LISTEN_SECONDS = 0.5
RECONNECT_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 3.0

log = structlog.get_logger(__name__)


class NoPlace(Exception):
    """As many clients wait already as this process can hold."""


class Arrivals:
    """Wakes whoever waits for a job when it is over.

    A wake-up cannot be lost: a waiter is registered before it reads the record, all waiters look again
    whenever the listener has (re)subscribed, and each looks by itself every few seconds besides.
    """

    def __init__(self, client: redis.Redis, jobs: JobStore, *, max_waiting: int) -> None:
        self._redis = client
        self._jobs = jobs
        self._places = threading.BoundedSemaphore(max_waiting) if max_waiting else None
        self._lock = threading.Lock()
        self._waiters: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._listener: threading.Thread | None = None
        self._closed = threading.Event()

    def wait_for(self, job: InpaintJob, seconds: float) -> InpaintJob:
        """The job as it is when it is over or after `seconds`; at once when too many clients wait already.

        When Redis goes out of service meanwhile: the job as it was last seen.
        """
        if job.status.is_final or seconds <= 0 or not self.take_place():
            return job
        try:
            return self.wait_in_place(job, seconds)
        finally:
            self.leave_place()

    def take_place(self) -> bool:
        """Whether there is one more for a client that waits; it must be left again."""
        return self._places is not None and self._places.acquire(blocking=False)

    def leave_place(self) -> None:
        if self._places is not None:
            self._places.release()

    def wait_in_place(self, job: InpaintJob, seconds: float) -> InpaintJob:
        """The same for a client that has a place already."""
        woken = threading.Event()
        try:
            self._register(job.job_id, woken)
            return self._until_over(job, woken, time.monotonic() + seconds)
        finally:
            self._unregister(job.job_id, woken)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places of those who wait, for as long as the block runs. Raises NoPlace."""
        if not self.take_place():
            raise NoPlace
        try:
            yield
        finally:
            self.leave_place()

    def follow(self, job: InpaintJob, *, every_seconds: Callable[[], float]) -> Iterator[InpaintJob]:
        """The job now, whenever it may have changed, and after so many seconds; the last time when it is over.

        Needs a place, held by the caller. While Redis is out of service: the job as it was last seen. Ends
        early when this process does.
        """
        woken = threading.Event()
        self._register(job.job_id, woken)
        try:
            while not self.closed:
                woken.clear()
                try:
                    job = self._jobs.get(job.job_id) or job
                except StorageUnavailable:
                    self._closed.wait(RECONNECT_SECONDS)
                yield job
                if job.status.is_final:
                    return
                woken.wait(every_seconds())
        finally:
            self._unregister(job.job_id, woken)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Ends the listener; those who wait look once more and are answered."""
        self._closed.set()
        self._wake_all()
        if self._listener is not None:
            self._listener.join()

    def _until_over(self, job: InpaintJob, woken: threading.Event, deadline: float) -> InpaintJob:
        while True:
            woken.clear()
            try:
                job = self._jobs.get(job.job_id) or job
            except StorageUnavailable:
                return job
            remaining = deadline - time.monotonic()
            if job.status.is_final or remaining <= 0 or self._closed.is_set():
                return job
            woken.wait(min(remaining, LOOK_AGAIN_SECONDS))

    def _register(self, job_id: str, woken: threading.Event) -> None:
        with self._lock:
            self._waiters[job_id].add(woken)
            if self._listener is None and not self._closed.is_set():
                self._listener = threading.Thread(target=self._listen, name="arrivals", daemon=True)
                self._listener.start()

    def _unregister(self, job_id: str, woken: threading.Event) -> None:
        with self._lock:
            self._waiters[job_id].discard(woken)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    def _wake(self, job_id: str) -> None:
        with self._lock:
            for woken in self._waiters.get(job_id, ()):
                woken.set()

    def _wake_all(self) -> None:
        with self._lock:
            for waiters in self._waiters.values():
                for woken in waiters:
                    woken.set()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen_once()
            except (redis.RedisError, OSError) as error:
                log.warning("done_channel_lost", reason=type(error).__name__)
                self._closed.wait(RECONNECT_SECONDS)

    def _listen_once(self) -> None:
        with self._redis.pubsub() as channel:  # type: ignore[no-untyped-call]  # redis-py has left it bare
            channel.subscribe(DONE_CHANNEL)
            while not self._closed.is_set():
                message = channel.get_message(timeout=LISTEN_SECONDS)
                if message is None:
                    continue
                if message["type"] == "message":
                    self._wake(message["data"])
                else:
                    self._wake_all()
