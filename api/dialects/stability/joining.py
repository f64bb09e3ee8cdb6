"""Calls that wait for one job: a retry joins the job of its first try, and the last to leave stops it."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
import uuid

import structlog

from api.dialects.stability.proto import generation_pb2 as wire
from api.errors import OutOfService
from api.inputs import Intake
from api.parts import Parts
from api.submission import submit
from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_store import Idempotency
from storage.watchers import WATCH_SECONDS, Watched

TRIES = 5
RENEW_SECONDS = WATCH_SECONDS / 4

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Sameness:
    """What makes two requests one. `in_flight_only`: only as long as the job of the first is not over."""

    idempotency: Idempotency
    in_flight_only: bool


def sameness(request: wire.Request, job: InpaintJob) -> Sameness | None:
    """None for a request that is like no other: one that leaves both its name and its seed open.

    The name alone is not enough, since clients give some of theirs to every request; nor are two bodies one
    whose masks mean opposite things.
    """
    if not request.request_id and not (request.image.seed and all(request.image.seed)):
        return None
    digest = hashlib.sha256(f"{job.mask_paints}\n".encode() + request.SerializeToString(deterministic=True)).hexdigest()
    return Sameness(Idempotency(key=f"stability:{digest}", fingerprint=digest), not request.request_id)


class Stay:
    """One call's wait for a job. Leaving is safe at any moment, from any thread, any number of times."""

    def __init__(self, parts: Parts, job: InpaintJob, watched: Watched, watcher: str) -> None:
        self.job = job
        self._parts = parts
        self._watchers = parts.watchers
        self._watched = watched
        self._watcher = watcher
        self._renew_at = time.monotonic() + RENEW_SECONDS
        self._lock = threading.Lock()
        self._left = False

    def renew(self) -> None:
        """Say again that this call waits, when it is time."""
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + RENEW_SECONDS
        with self._lock:
            if self._left:
                return
            try:
                self._watchers.watch(self._watched, self._watcher)
            except StorageUnavailable:
                self._renew_at = 0.0

    def leave(self) -> None:
        """Wait no longer; the job is cancelled unless it is over or somebody else waits for it.

        Not when this process ends: then the client comes again, and finds its job.
        """
        with self._lock:
            if self._left or self._parts.arrivals.closed:
                return
            self._left = True
            try:
                if self._watchers.unwatch(self._watched, self._watcher):
                    self._parts.jobs.cancel(self._watched.job_id)
                    log.info("job_given_up", **self.job.log_context())
            except StorageUnavailable:
                log.warning("job_not_given_up", **self.job.log_context())


def submit_or_join(parts: Parts, intake: Intake, job: InpaintJob, same: Sameness | None) -> Stay:
    """The job of this request: a new one, or the one of an equal request. Raises what submit raises."""
    watchers, watcher = parts.watchers, str(uuid.uuid4())
    idempotency = same.idempotency if same else None
    for _ in range(TRIES):
        accepted = submit(parts, intake, job, idempotency=idempotency)
        joined = accepted.job_id != job.job_id
        watched = Watched(accepted.job_id, accepted.key_id, idempotency)
        if joined and same and same.in_flight_only and accepted.status.is_final:
            watchers.release(watched)
        elif watchers.watch(watched, watcher):
            if joined:
                log.info("job_joined", **accepted.log_context())
            return Stay(parts, accepted, watched, watcher)
        # The last to wait for it left at this moment: it is being cancelled.
        job = dataclasses.replace(job, job_id=str(uuid.uuid4()), image_id=str(uuid.uuid4()))
    raise OutOfService
