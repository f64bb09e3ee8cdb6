"""The clerk: one thread beside the engine that keeps leases, hears of cancels, and ends a process that stalls."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_queue import JobQueue
from storage.job_store import Beat, JobStore, Pulse
from storage.upkeep import Upkeep
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.engine import EnginePulse

log = structlog.get_logger(__name__)

STALLED_EXIT_CODE = 70
# Rarer than leases are renewed: these only mend what a crash or an outage has left behind.
REPORT_SECONDS = 2.0
UPKEEP_SECONDS = 3.0


class Watched(Protocol):
    """What the clerk asks of the engine."""

    def cancel(self, job_id: str) -> None: ...

    def progress(self) -> Mapping[str, tuple[int, int]]: ...

    def pulse(self) -> EnginePulse: ...

    def resident_models(self) -> frozenset[str]: ...


class Claim:
    """A job that this process holds, and what the clerk has heard about it."""

    def __init__(self, job: InpaintJob, *, timeout_seconds: float) -> None:
        self.job = job
        self.claimed_at = time.monotonic()
        self.deadline = self.claimed_at + timeout_seconds
        self.cancelled = False
        self.lost = False
        self.stored_keys: list[str] = []
        self.ending = False
        """Its thread is recording the outcome, and learns there whether the lease was still its own."""

    @property
    def seconds(self) -> float:
        """Since the claim."""
        return time.monotonic() - self.claimed_at

    @property
    def now(self) -> float:
        """Seconds since the epoch by the clock that `started_at` goes by, without asking it again."""
        return (self.job.started_at or time.time()) + self.seconds


class Clerk:
    """Speaks for the jobs held: every `clerk_interval_seconds`, and at once when one is cancelled, one round trip.

    `show_previews` is told in each round which of the jobs are watched; it must not block. `die` ends the process
    at once; it must not return when it is the real one.
    """

    def __init__(
        self,
        *,
        worker: str,
        jobs: JobStore,
        queue: JobQueue,
        engine: Watched,
        settings: WorkerSettings,
        show_previews: Callable[[Collection[InpaintJob]], object] = lambda _jobs: None,
        die: Callable[[int], object] = os._exit,
    ) -> None:
        self._worker = worker
        self._jobs = jobs
        self._queue = queue
        self._upkeep = Upkeep(jobs, queue)
        self._engine = engine
        self._settings = settings
        self._show_previews = show_previews
        self._die = die
        self._lock = threading.Lock()
        self._claims: dict[str, Claim] = {}
        self._open_for_work = False
        self._owed_tickets = 0
        self._next_report = 0.0
        self._next_upkeep = 0.0
        self._redis_is_down = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="clerk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take this worker off the list."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._jobs.forget_worker(self._worker)
        except StorageUnavailable:
            log.warning("worker_not_signed_off", worker=self._worker)

    # -- claims -----------------------------------------------------------------------------------

    @property
    def open_for_work(self) -> bool:
        return self._open_for_work

    def open(self) -> None:
        """From now on this worker claims, and says so."""
        self._open_for_work = True

    def close(self) -> None:
        """Claim nothing more. Running jobs go on under their leases."""
        self._open_for_work = False

    @contextmanager
    def holding(self, job: InpaintJob) -> Iterator[Claim]:
        """Renew the lease of a job that was claimed while the block runs."""
        claim = Claim(job, timeout_seconds=self._settings.job_timeout_seconds)
        with self._lock:
            earlier = self._claims.get(job.job_id)
            self._claims[job.job_id] = claim
        if earlier is not None:
            # Its lease ran out unnoticed, and the job came back to this very worker.
            earlier.lost = True
            self._engine.cancel(job.job_id)
        try:
            yield claim
        finally:
            with self._lock:
                if self._claims.get(job.job_id) is claim:
                    del self._claims[job.job_id]

    def claims(self) -> list[Claim]:
        with self._lock:
            return list(self._claims.values())

    def owe_ticket(self) -> None:
        """A ticket was taken, and its job left to wait: it is sent again later."""
        with self._lock:
            self._owed_tickets += 1

    def settle_tickets(self, at_most: int | None = None) -> None:
        """Send the tickets owed. Raises StorageUnavailable."""
        with self._lock:
            settled = self._owed_tickets if at_most is None else min(at_most, self._owed_tickets)
            self._owed_tickets -= settled
        if not settled:
            return
        for _ in range(min(settled, self._jobs.waiting_count())):
            self._queue.send_ticket()

    # -- the thread -------------------------------------------------------------------------------

    def _live(self) -> None:
        cancellations = self._jobs.cancellations()
        while True:
            cancellations.wait(self._settings.clerk_interval_seconds, stopped=self._stopped)
            if self._stopped.is_set():
                break
            try:
                self.round()
            except Exception:
                # Without a clerk all leases run out: whatever happened, the next round is tried.
                log.exception("clerk_round_failed")
        cancellations.close()

    def round(self) -> None:
        """One round: judge the engine, then speak to Redis."""
        if self._is_stalled():
            return
        try:
            self._beat()
            now = time.monotonic()
            if self._open_for_work and now >= self._next_report:
                # Some at a time: another worker may have a place for these jobs, or this one turns them away once more.
                self.settle_tickets(at_most=self._settings.worker_threads)
                self._jobs.heartbeat_worker(self._worker, self._report())
                self._next_report = now + REPORT_SECONDS
            if now >= self._next_upkeep:
                self._upkeep.run()
                self._next_upkeep = now + UPKEEP_SECONDS
            if self._redis_is_down:
                self._jobs.ping()
                log.info("redis_is_back")
        except StorageUnavailable as error:
            if not self._redis_is_down:
                log.warning("redis_unavailable", error=str(error))
            self._redis_is_down = True
            self._upkeep.note_outage()
            return
        self._redis_is_down = False

    def _is_stalled(self) -> bool:
        pulse = self._engine.pulse()
        limit = {
            "painting": self._settings.stall_timeout_seconds,
            "loading": self._settings.load_timeout_seconds,
            "warming_up": self._settings.load_timeout_seconds,
        }.get(pulse.activity)
        silence = time.monotonic() - pulse.since
        if limit is None or silence <= limit:
            return False
        log.critical("engine_stalled", activity=pulse.activity, silent_seconds=round(silence, 1))
        self._die(STALLED_EXIT_CODE)
        return True

    def _beat(self) -> None:
        claims = {claim.job.job_id: claim for claim in self.claims()}
        progress = self._engine.progress()
        beats = []
        for job_id, claim in claims.items():
            step, num_steps = progress.get(job_id, (0, 0))
            beats.append(Beat(job_id, claim.job.fence, step, num_steps))
        pulses = self._jobs.heartbeat(beats)
        for job_id, pulse in pulses.items():
            self._hear(claims[job_id], pulse)
        self._show_previews([claims[job_id].job for job_id, pulse in pulses.items() if pulse.watched])

    def _hear(self, claim: Claim, pulse: Pulse) -> None:
        if claim.ending or (pulse.alive and not pulse.cancelled):
            return
        if not pulse.alive and not claim.lost:
            log.warning("lease_lost", **claim.job.log_context())
        claim.lost = claim.lost or not pulse.alive
        claim.cancelled = claim.cancelled or pulse.cancelled
        # Again in each round: the job may not have been in the engine yet.
        self._engine.cancel(claim.job.job_id)

    def _report(self) -> dict[str, Any]:
        return {
            "activity": self._engine.pulse().activity,
            "resident_models": sorted(self._engine.resident_models()),
            "jobs": len(self.claims()),
            "threads": self._settings.worker_threads,
            "tickets_owed": self._owed_tickets,
        }
