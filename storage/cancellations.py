"""What wakes a worker when a running job is cancelled. The flag in the job's record is the truth; this only hurries."""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

from storage.redis_client import PREFIX

CHANNEL = PREFIX + "cancels"
LISTEN_SECONDS = 0.1


class Cancellations:
    """For one thread. While Redis is out of service it only waits."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client  # redis-py's types have left pub/sub bare
        self._channel: Any = None

    def wait(self, seconds: float, *, stopped: threading.Event) -> None:
        """Return after so many seconds, as soon as any running job is cancelled, or soon after `stopped`."""
        until = time.monotonic() + seconds
        try:
            if self._channel is None:
                self._channel = self._redis.pubsub(ignore_subscribe_messages=True)
                self._channel.subscribe(CHANNEL)
            while (left := until - time.monotonic()) > 0 and not stopped.is_set():
                if self._channel.get_message(timeout=min(left, LISTEN_SECONDS)):
                    return
        except (redis.RedisError, OSError):
            self.close()
            stopped.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
