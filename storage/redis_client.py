"""One way to reach Redis: bounded in time, its scripts loaded once, its outages in our own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from storage.errors import StorageUnavailable
from storage.settings import StorageSettings

PREFIX = "inpaintd:"
RETRY_AFTER_SECONDS = 0.05
# redis-py's default of 100 is fewer than a front end has threads: when Redis paused for a moment, the
# others were told that it is out of service.
MAX_CONNECTIONS = 4096
# Memory used up, disk full, too few replicas, a replica, a replica cut off, a script that never ends.
REFUSES_WRITES = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "MASTERDOWN", "BUSY")


def open_redis(settings: StorageSettings) -> redis.Redis:
    """A thread-safe client. One quick second try covers a connection that an idle time-out closed; a server that
    does not answer in time is not asked twice."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=settings.redis_timeout_seconds,
        socket_connect_timeout=settings.redis_timeout_seconds,
        max_connections=MAX_CONNECTIONS,
        retry=Retry(ConstantBackoff(RETRY_AFTER_SECONDS), 1, supported_errors=(RedisConnectionError,)),
    )


@contextmanager
def redis_outages() -> Iterator[None]:
    """Turn every way in which Redis can be out of service into StorageUnavailable."""
    try:
        yield
    except RedisError as error:
        if is_outage(error):
            raise StorageUnavailable(f"Redis: {type(error).__name__}") from error
        raise


def is_outage(error: RedisError) -> bool:
    """Whether Redis is out of service, and not our command wrong. Inside a script, Redis gives only the words."""
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError)):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in REFUSES_WRITES)


class Scripts:
    """The Lua files of storage/scripts, each behind the prelude, by name."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._folder = resources.files("storage") / "scripts"
        self._prelude = (self._folder / "prelude.lua").read_text()

    def load(self, name: str) -> Callable[..., Any]:
        """A callable that runs the script with its arguments; the caller translates outages."""
        script = self._client.register_script(self._prelude + (self._folder / f"{name}.lua").read_text())
        return lambda *args: script(args=args)


def redis_key(*parts: object) -> str:
    """The name of one of our keys."""
    return PREFIX + ":".join(str(part) for part in parts)


class RedisPart:
    """What speaks to Redis, and goes by its clock. `clock` (a test's) answers seconds since the epoch."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] | None = None) -> None:
        self._redis: Any = client  # redis-py's types do not know that answers are decoded
        self._clock = clock

    def ping(self) -> None:
        with redis_outages():
            self._redis.ping()

    def now(self) -> float:
        """Seconds since the epoch, by the clock that leases and due times go by (Redis' own)."""
        if self._clock is not None:
            return self._clock()
        with redis_outages():
            seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def _given_now(self) -> str:
        return "" if self._clock is None else repr(self._clock())
