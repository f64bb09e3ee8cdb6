"""What falls due: webhooks to deliver, things that have outlived their time. A part of the job store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import redis

from storage.redis_client import RedisPart, Scripts, redis_key, redis_outages

HOLD_SECONDS = 60.0

ExpiryKind = Literal["results", "records", "inputs", "deliveries"]


class DueTimes(RedisPart):
    """All methods raise StorageUnavailable while Redis is out of service."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(client, clock=clock)
        self._take_due = Scripts(client).load("take_due")

    def claim_due_webhooks(self, limit: int, *, hold_seconds: float) -> list[str]:
        """Jobs whose webhook is due; each comes again after `hold_seconds` unless it is settled."""
        with redis_outages():
            due: list[str] = self._take_due(self._given_now(), "webhooks", limit, hold_seconds)
        return due

    def set_webhook_due(self, job_id: str, at: float) -> None:
        with redis_outages():
            self._redis.zadd(redis_key("webhooks"), {job_id: at})

    def clear_webhook(self, job_id: str) -> None:
        with redis_outages():
            self._redis.zrem(redis_key("webhooks"), job_id)

    def keep_until(self, kind: ExpiryKind, member: str, at: float, *, longer: bool = False) -> None:
        """Note when something's time is over. Members: object keys for inputs, else job ids.

        `longer`: a later time noted before stays.
        """
        with redis_outages():
            self._redis.zadd(redis_key("expiry", kind), {member: at}, gt=longer)

    def claim_expired(self, kind: ExpiryKind, limit: int) -> list[str]:
        """What is over; whatever is not forgotten comes again after a minute."""
        with redis_outages():
            over: list[str] = self._take_due(self._given_now(), f"expiry:{kind}", limit, HOLD_SECONDS)
        return over

    def forget(self, kind: ExpiryKind, member: str) -> None:
        with redis_outages():
            self._redis.zrem(redis_key("expiry", kind), member)

    def is_input_in_use(self, object_key: str) -> bool:
        """Whether a job that is not over needs this picture."""
        with redis_outages():
            return bool(self._redis.hexists(redis_key("inputs_in_use"), object_key))
