"""From a parsed job to an accepted one: limits, the record, the ticket, the wait for its result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import redis
import structlog

from api.errors import (
    IdempotencyKeyReused,
    InvalidFields,
    Problem,
    QueueTooLong,
    TooManyRequests,
)
from api.inputs import Intake
from api.parts import Parts
from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_store import Idempotency, IdempotencyConflict, QueueFull
from storage.redis_client import PREFIX, redis_outages

IDEMPOTENCY_HEADER = "Idempotency-Key"
MAX_IDEMPOTENCY_KEY_CHARS = 255
QUEUE_RETRY_SECONDS = 30
MINUTE_SECONDS = 60

log = structlog.get_logger(__name__)


def count_submit(client: redis.Redis, key_id: str, *, per_minute: int, now: float) -> None:
    """Count a submit against the key's limit for this minute. Raises TooManyRequests."""
    if not per_minute:
        return
    window = int(now // MINUTE_SECONDS)
    name = f"{PREFIX}submits:{key_id}:{window}"
    with redis_outages(), client.pipeline() as pipeline:
        pipeline.incr(name)
        pipeline.expire(name, 2 * MINUTE_SECONDS)
        count, _ = pipeline.execute()
    if count > per_minute:
        until_next = math.ceil((window + 1) * MINUTE_SECONDS - now)
        raise TooManyRequests(retry_after_seconds=max(1, until_next), limit=per_minute)


def read_idempotency(key: str | None, path: str, body: Mapping[str, Any]) -> Idempotency | None:
    """The client's own name for this submission, with a digest of what it asks for (not of its API key).

    Raises InvalidFields for a name that is too long.
    """
    if not key or not key.strip():
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidFields([Problem(IDEMPOTENCY_HEADER, "too_long", {"high": MAX_IDEMPOTENCY_KEY_CHARS})])
    asked = {name: value for name, value in body.items() if name != "key"}
    canonical = json.dumps([path, asked], sort_keys=True, default=str)
    return Idempotency(key=key.strip(), fingerprint=hashlib.sha256(canonical.encode()).hexdigest())


def submit(parts: Parts, intake: Intake, job: InpaintJob, *, idempotency: Idempotency | None = None) -> InpaintJob:
    """Store the job and send its ticket. Answers the stored job, an earlier one for a repeated submission.

    Raises what Intake.settle raises, QueueTooLong, IdempotencyKeyReused and StorageUnavailable; then no job
    exists and the pictures that came with it are deleted again.
    """
    stored_keys: list[str] = []
    accepted: InpaintJob | None = None
    try:
        job, stored_keys = intake.settle(job)
        accepted = submit_settled(parts, job, idempotency=idempotency)
    finally:
        if accepted is None or accepted.job_id != job.job_id:
            _forget(intake, stored_keys)
    return accepted


def submit_settled(parts: Parts, job: InpaintJob, *, idempotency: Idempotency | None = None) -> InpaintJob:
    """The same for a job whose pictures are references already, or that is over before it began."""
    accepted = _store(parts, job, idempotency)
    if accepted.job_id == job.job_id:
        log.info("job_submitted", **accepted.log_context())
        if not accepted.status.is_final:
            _send_ticket(parts, accepted)
    return accepted


def wait_for(parts: Parts, job: InpaintJob, *, instantly: bool) -> InpaintJob:
    """The job once it is over, or as it is after the time that a submit waits."""
    return parts.arrivals.wait_for(job, 0 if instantly else parts.settings.wait_seconds)


def _store(parts: Parts, job: InpaintJob, idempotency: Idempotency | None) -> InpaintJob:
    try:
        return parts.jobs.submit(job, max_waiting=parts.settings.max_queued_jobs or None, idempotency=idempotency)
    except QueueFull as error:
        raise QueueTooLong(retry_after_seconds=QUEUE_RETRY_SECONDS, limit=parts.settings.max_queued_jobs) from error
    except IdempotencyConflict as error:
        raise IdempotencyKeyReused(field=IDEMPOTENCY_HEADER) from error


def _send_ticket(parts: Parts, job: InpaintJob) -> None:
    try:
        parts.queue.send_ticket()
    except StorageUnavailable:
        # The record is the truth and holds the job; the dispatcher tops up missing tickets.
        log.warning("ticket_not_sent", **job.log_context())


def _forget(intake: Intake, keys: list[str]) -> None:
    try:
        intake.forget(keys)
    except StorageUnavailable:
        log.warning("inputs_not_deleted", count=len(keys))
