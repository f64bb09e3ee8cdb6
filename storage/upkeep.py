"""Puts right what a crash or an outage left behind: leases that ran out, tickets that are missing."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from storage.errors import StorageUnavailable
from storage.job import JobStatus
from storage.job_queue import JobQueue
from storage.job_store import JobStore

# After an outage: time for every worker to renew its leases first, or healthy jobs would be painted twice.
SETTLE_SECONDS = 3.0
TICKETS_AT_ONCE = 200

log = structlog.get_logger(__name__)


class Upkeep:
    """Any number of processes may keep house at once: what each takes, it claims."""

    def __init__(self, jobs: JobStore, queue: JobQueue, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._queue = queue
        self._monotonic = monotonic
        self._not_before = 0.0
        self._was_out_of_service = False
        self._missing_before = 0

    def run(self) -> None:
        """One round. Raises StorageUnavailable while Redis is out of service."""
        try:
            self._jobs.ping()
            if self._was_out_of_service:
                self._was_out_of_service = False
                self._not_before = self._monotonic() + SETTLE_SECONDS
            if self._monotonic() >= self._not_before:
                self._return_expired_leases()
                self._top_up_tickets()
        except StorageUnavailable:
            self.note_outage()
            raise

    def note_outage(self) -> None:
        """Redis was found out of service, in between."""
        self._was_out_of_service = True

    def _return_expired_leases(self) -> None:
        for job in self._jobs.return_expired_leases():
            log.warning("lease_expired", **job.log_context())
            if job.status is JobStatus.QUEUED:
                self._queue.send_ticket()

    def _top_up_tickets(self) -> None:
        """Replace tickets that were lost, or never sent because the broker was down just then.

        A ticket may be on its way still, so only what was missing in the last round too is replaced; one too
        many finds no job and ends. What living workers owe they send themselves.
        """
        owed = sum(int(worker.get("tickets_owed", 0)) for worker in self._jobs.workers())
        missing = max(0, self._jobs.waiting_count() - self._queue.tickets() - owed)
        lost = min(missing, self._missing_before, TICKETS_AT_ONCE)
        self._missing_before = missing - lost
        for _ in range(lost):
            self._queue.send_ticket()
        if lost:
            log.warning("tickets_were_missing", tickets=lost)
