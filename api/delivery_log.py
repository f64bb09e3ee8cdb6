"""What became of each webhook, try by try, and where it stands: kept in Redis beside the job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import redis

from storage.job import InpaintJob
from storage.redis_client import PREFIX, redis_outages

DEFAULT_TRIES_KEPT = 100


class WebhookState(StrEnum):
    """Where a webhook stands; this is what `webhook_status` says."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    RETRYING = "retrying"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (WebhookState.DELIVERED, WebhookState.FAILED)


class Outcome(StrEnum):
    """How one try ended. Only `delivered` is success."""

    DELIVERED = "delivered"
    STATUS = "status"
    REDIRECT = "redirect"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    UNRESOLVED = "unresolved"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, kw_only=True)
class Try:
    """One POST of a webhook. Times are seconds since the epoch.

    `status` is None where no answer came; `redirect_host` is where a 3xx pointed (it is not followed);
    `next_at` is when the next try is due, None when there will be none.
    """

    number: int
    at: float
    duration_seconds: float
    outcome: Outcome
    status: int | None = None
    redirect_host: str | None = None
    next_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a webhook is in its schedule. `round_tries` counts since the first or the last redelivery."""

    state: WebhookState = WebhookState.QUEUED
    tries: int = 0
    round_tries: int = 0
    next_at: float = 0.0


class DeliveryLog:
    """A bounded list of tries and one standing per job. Raises StorageUnavailable without Redis."""

    def __init__(self, client: redis.Redis, *, tries_kept: int = DEFAULT_TRIES_KEPT) -> None:
        self._redis = client
        self._tries_kept = tries_kept

    def webhook_status(self, job: InpaintJob) -> str:
        """ "" without a webhook, else queued, delivered, retrying or failed."""
        if job.webhook_url is None:
            return ""
        if not job.status.is_final:
            return WebhookState.QUEUED.value
        return self.standing(job.job_id).state.value

    def standing(self, job_id: str) -> Standing:
        with redis_outages():
            record = cast("dict[str, str]", self._redis.hgetall(_standing_name(job_id)))
        if not record:
            return Standing()
        return Standing(
            state=WebhookState(record["state"]),
            tries=int(record["tries"]),
            round_tries=int(record["round_tries"]),
            next_at=float(record["next_at"]),
        )

    def tries(self, job_id: str) -> list[Try]:
        """The latest tries, oldest first."""
        with redis_outages():
            lines = cast("list[str]", self._redis.lrange(_tries_name(job_id), 0, -1))
        return [_read_try(line) for line in lines]

    def record(self, job_id: str, attempt: Try, standing: Standing) -> None:
        """Append a try and set where the webhook stands after it, in one transaction."""
        line = json.dumps(dataclasses.asdict(attempt))
        with redis_outages(), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(_tries_name(job_id), line)
            pipe.ltrim(_tries_name(job_id), -self._tries_kept, -1)
            pipe.hset(_standing_name(job_id), mapping=_standing_record(standing))
            pipe.execute()

    def restart(self, job_id: str) -> Standing:
        """Queue the webhook again with its whole schedule before it; the tries so far stay listed."""
        standing = Standing(tries=self.standing(job_id).tries)
        with redis_outages():
            self._redis.hset(_standing_name(job_id), mapping=_standing_record(standing))
        return standing

    def drop(self, job_id: str) -> None:
        with redis_outages():
            self._redis.delete(_tries_name(job_id), _standing_name(job_id))

    @contextmanager
    def alone(self, job_id: str, *, at_most_seconds: float) -> Iterator[bool]:
        """Whether the caller is the only one at this job's webhook; it stays so for at most that long."""
        lock = self._redis.lock(f"{PREFIX}delivering:{job_id}", timeout=at_most_seconds, blocking=False)
        with redis_outages():
            is_alone = bool(lock.acquire())
        try:
            yield is_alone
        finally:
            if is_alone:
                # One that ran out is nobody's; one that cannot be reached runs out by itself.
                with suppress(redis.RedisError):
                    lock.release()


def _standing_record(standing: Standing) -> dict[Any, Any]:
    return {
        "state": standing.state.value,
        "tries": standing.tries,
        "round_tries": standing.round_tries,
        "next_at": repr(standing.next_at),
    }


def _read_try(line: str) -> Try:
    values = json.loads(line)
    return Try(**{**values, "outcome": Outcome(values["outcome"])})


def _tries_name(job_id: str) -> str:
    return f"{PREFIX}deliveries:{job_id}"


def _standing_name(job_id: str) -> str:
    return f"{PREFIX}delivery:{job_id}"
