"""Who waits for a job with an open connection: when the last of them leaves, the job may be given up."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from storage.job_store import Idempotency
from storage.redis_client import Scripts, redis_outages

# Longer than the pause between two signs of life by far: one who is killed without leaving counts no longer.
WATCH_SECONDS = 20.0


@dataclass(frozen=True)
class Watched:
    """A job, and the name under which an equal submission finds it."""

    job_id: str
    key_id: str
    idempotency: Idempotency | None

    @property
    def name(self) -> str:
        return "" if self.idempotency is None else self.idempotency.key


class Watchers:
    """All methods raise StorageUnavailable while Redis is out of service."""

    def __init__(self, client: redis.Redis) -> None:
        scripts = Scripts(client)
        self._watch = scripts.load("watch")
        self._unwatch = scripts.load("unwatch")
        self._release = scripts.load("release")

    def watch(self, watched: Watched, watcher: str) -> bool:
        """Wait for the job, or go on doing so: to be said every few seconds. False: it was given up."""
        with redis_outages():
            return bool(self._watch(watched.job_id, watcher, WATCH_SECONDS))

    def unwatch(self, watched: Watched, watcher: str) -> bool:
        """Wait no longer. True: nobody does, the job is not over, and no equal submission will find it any more."""
        with redis_outages():
            return bool(self._unwatch(watched.job_id, watcher, watched.key_id, watched.name))

    def release(self, watched: Watched) -> None:
        """Let no equal submission find this job any more."""
        with redis_outages():
            self._release(watched.job_id, watched.key_id, watched.name)
