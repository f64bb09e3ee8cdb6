"""The workers that live, and how fast they are: a part of the job store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.redis_client import RedisPart, redis_key, redis_outages

WORKER_SILENCE_SECONDS = 10.0
RUNTIME_WEIGHT = 0.3  # of the newest run in the moving average


@dataclass(frozen=True)
class Runtime:
    """A moving average over finished jobs: seconds from claim to stored, per UNet evaluation."""

    seconds_per_evaluation: float
    jobs: int


class Roster(RedisPart):
    """All methods raise StorageUnavailable while Redis is out of service."""

    def heartbeat_worker(self, worker: str, info: Mapping[str, Any]) -> None:
        """Say that this worker lives; it is forgotten after a few silent seconds."""
        now = self.now()
        with redis_outages():
            gone = self._redis.zrangebyscore(redis_key("workers"), "-inf", now - WORKER_SILENCE_SECONDS)
        with redis_outages(), self._redis.pipeline() as pipeline:
            if gone:
                pipeline.zrem(redis_key("workers"), *gone)
                pipeline.hdel(redis_key("worker_info"), *gone)
            pipeline.zadd(redis_key("workers"), {worker: now})
            pipeline.hset(redis_key("worker_info"), worker, json.dumps(dict(info)))
            pipeline.execute()

    def forget_worker(self, worker: str) -> None:
        with redis_outages(), self._redis.pipeline() as pipeline:
            pipeline.zrem(redis_key("workers"), worker)
            pipeline.hdel(redis_key("worker_info"), worker)
            pipeline.execute()

    def workers(self) -> list[dict[str, Any]]:
        """What the living workers last said of themselves, each with its `worker` name."""
        with redis_outages():
            silent_since = self.now() - WORKER_SILENCE_SECONDS
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.zrangebyscore(redis_key("workers"), silent_since, "+inf")
                pipeline.hgetall(redis_key("worker_info"))
                living, infos = pipeline.execute()
        return [{"worker": worker, **json.loads(infos[worker])} for worker in living if worker in infos]

    def record_runtime(self, model: str, width: int, height: int, evaluations: int, seconds: float) -> None:
        """Remember how long a job took. `width` and `height` are those at which the model worked;
        `evaluations` counts every UNet evaluation of the job (images times steps)."""
        latest = seconds / max(1, evaluations)
        field = f"{width}x{height}"
        with redis_outages():
            before = self._redis.hget(redis_key("runtimes", model), field)
            average, jobs = json.loads(before) if before else (latest, 0)
            average += RUNTIME_WEIGHT * (latest - average)
            self._redis.hset(redis_key("runtimes", model), field, json.dumps([average, jobs + 1]))

    def runtimes(self, model: str) -> dict[tuple[int, int], Runtime]:
        """By the size at which the model worked."""
        with redis_outages():
            rows = self._redis.hgetall(redis_key("runtimes", model))
        measured = {}
        for size, row in rows.items():
            width, height = size.split("x")
            average, jobs = json.loads(row)
            measured[int(width), int(height)] = Runtime(seconds_per_evaluation=average, jobs=jobs)
        return measured
