"""Previews on their way from worker to client: made only while somebody watches, gone soon after."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

import redis

from storage.job import InpaintJob
from storage.redis_client import RedisPart, Scripts, redis_outages

# Whoever watches looks several times a second; one that is silent for this long has left.
WATCHED_SECONDS = 3.0
KEPT_SECONDS = 10


@dataclass(frozen=True)
class Preview:
    """What a job's first picture looks like so far. `mark` tells it from the job's other previews."""

    mark: str
    width: int
    height: int
    jpeg_base64: str


class PreviewStore(RedisPart):
    """All methods raise StorageUnavailable while Redis is out of service."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(client, clock=clock)
        scripts = Scripts(client)
        self._watch = scripts.load("watch_preview")
        self._put = scripts.load("put_preview")

    def watch(self, job_id: str, known: Preview | None = None) -> Preview | None:
        """Say that the job is watched, for a few seconds; its newest preview, if that is another than the one known.

        The worker hears of it with its next heartbeat. One round trip.
        """
        with redis_outages():
            fields = self._watch(self._given_now(), job_id, WATCHED_SECONDS, known.mark if known else "")
        if not fields:
            return None
        stored = dict(zip(fields[::2], fields[1::2], strict=True))
        return Preview(
            mark=stored["mark"],
            width=int(stored["width"]),
            height=int(stored["height"]),
            jpeg_base64=stored["jpeg"],
        )

    def put(self, job: InpaintJob, jpeg: bytes, *, step: int, width: int, height: int) -> bool:
        """Keep the preview of a claimed job for a few seconds, or until the claim ends. False: the lease was lost."""
        fields = {
            "mark": f"{job.fence}-{step}",
            "width": width,
            "height": height,
            "jpeg": base64.b64encode(jpeg).decode(),
        }
        pairs = [each for pair in fields.items() for each in pair]
        with redis_outages():
            return bool(self._put(job.job_id, job.fence, KEPT_SECONDS, *pairs))
