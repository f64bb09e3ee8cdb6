"""Server-sent events: a job watched by a client that holds one of the places for those who wait."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flask import Response
from werkzeug.wsgi import ClosingIterator

from api.dialects.fal.words import NoPlace
from api.parts import parts
from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.job_store import JobStore

EVENT_STREAM = "text/event-stream"
LOOK_SECONDS = 0.1
# Proxies and clients give up connections on which nothing comes.
SILENCE_SECONDS = 10.0
RETRY_SECONDS = 5

Watch = Iterator[tuple[InpaintJob, int | None]]


def take_place() -> None:
    """One of this process' places for clients that wait; it must be left again. Raises NoPlace."""
    if not parts().arrivals.take_place():
        raise NoPlace(retry_after_seconds=RETRY_SECONDS)


def watch(job: InpaintJob) -> Watch:
    """The job and its place in the queue, looked at again and again until it is over or gone."""
    return _watch(parts().jobs, job.job_id)


def _watch(jobs: JobStore, job_id: str) -> Watch:
    while True:
        try:
            seen = jobs.look(job_id)
        except StorageUnavailable:
            return
        if seen is None:
            return
        yield seen
        if seen[0].status.is_final:
            return
        time.sleep(LOOK_SECONDS)


def event_stream(events: Iterable[Any]) -> Response:
    """Each as one event; None: nothing new. The place that the caller has taken is left when the client goes."""
    body = ClosingIterator(_encoded(events), [parts().arrivals.leave_place])
    response = Response(body, mimetype=EVENT_STREAM)
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _encoded(events: Iterable[Any]) -> Iterator[bytes]:
    spoke_at = time.monotonic()
    for event in events:
        if event is None and time.monotonic() - spoke_at < SILENCE_SECONDS:
            continue
        spoke_at = time.monotonic()
        yield b": still here\n\n" if event is None else f"data: {json.dumps(event)}\n\n".encode()
