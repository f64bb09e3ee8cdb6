"""Deletes what has outlived its time: pictures, records, uploads, delivery logs. The dispatcher's ticker runs it."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from api.delivery_log import DeliveryLog
from storage.errors import StorageUnavailable
from storage.image_store import ImageStore
from storage.job import InpaintJob
from storage.job_store import ExpiryKind, JobStore

MEMBERS_AT_ONCE = 20
REST_SECONDS = 30.0

logger = structlog.get_logger(__name__)


class Janitor:
    """Any number may work at once: each claims what it deletes, and deleting twice is no harm.

    What cannot be deleted now is not forgotten; the job store hands it out again after a minute.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        images: ImageStore,
        log: DeliveryLog,
        rest_seconds: float = REST_SECONDS,
        members_at_once: int = MEMBERS_AT_ONCE,
    ) -> None:
        self._jobs = jobs
        self._images = images
        self._log = log
        self._rest_seconds = rest_seconds
        self._members_at_once = members_at_once
        self._rests_until = 0.0
        self._chores: dict[ExpiryKind, Callable[[str], None]] = {
            "results": self._delete_results,
            "inputs": self._delete_input,
            "deliveries": self._log.drop,
            "records": self._delete_record,
        }

    def sweep(self) -> int:
        """Delete some of what is over; answers how many members that were.

        Raises StorageUnavailable, and for a while after an outage at once, so that a store that hangs does
        not hold up the ticker each second.
        """
        if time.monotonic() < self._rests_until:
            raise StorageUnavailable("it did not answer a moment ago")
        try:
            return sum(self._sweep(kind) for kind in self._chores)
        except StorageUnavailable:
            self._rests_until = time.monotonic() + self._rest_seconds
            raise

    def _sweep(self, kind: ExpiryKind) -> int:
        members = self._jobs.claim_expired(kind, self._members_at_once)
        for member in members:
            if kind == "inputs" and self._jobs.is_input_in_use(member):
                continue  # it comes again; the end of its job sets its time anew
            try:
                self._chores[kind](member)
            except StorageUnavailable:
                raise
            except Exception:  # one that cannot be deleted does not keep the next from being so
                logger.exception("could not delete what was over", kind=kind, member=member)
                continue
            self._jobs.forget(kind, member)
            logger.info("deleted what was over", kind=kind, member=member)
        return len(members)

    def _delete_results(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            self._images.delete(picture_keys(job))

    def _delete_input(self, object_key: str) -> None:
        self._images.delete([object_key])

    def _delete_record(self, job_id: str) -> None:
        # The record is the last that knows where the pictures are.
        self._delete_results(job_id)
        self._jobs.drop_record(job_id)
        self._jobs.forget("results", job_id)


def picture_keys(job: InpaintJob) -> list[str]:
    """Where this job's pictures are or may be: also those of claims that stored some and then lost the lease."""
    published = {image.key for image in job.images}
    possible = {
        f"results/{job.job_id}/{fence}/{index}.png"
        for fence in range(1, job.fence + 1)
        for index in range(job.num_images)
    }
    return sorted(published | possible)
