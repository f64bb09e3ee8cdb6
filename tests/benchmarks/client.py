"""An HTTP client that costs little: it shares the machine with what it measures."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.figures import quantile

TIMEOUT_SECONDS = 120.0
SUBMIT_PATH = "/api/v6/realtime/inpaint"
JSON_HEADERS = {"Content-Type": "application/json"}

Send = Callable[[http.client.HTTPConnection], None]


def inline(png: bytes) -> str:
    return base64.b64encode(png).decode()


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    """The body of an answer 200; anything else is an error."""
    connection.request(method, path, body, JSON_HEADERS if body else {})
    response = connection.getresponse()
    content = response.read()
    if response.status != http.client.OK:
        raise RuntimeError(f"{method} {path} was answered {response.status}: {content[:500]!r}")
    return content


def ask_once(url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
    """The same over a connection of its own."""
    with closing(connect(url)) as connection:
        return ask(connection, method, path, None if body is None else json.dumps(body).encode())


def submit(url: str, body: Mapping[str, Any], *, expected: str) -> Any:
    """The parsed answer to a submission, of which this `status` is expected."""
    answer = json.loads(ask_once(url, "POST", SUBMIT_PATH, body))
    if answer["status"] != expected:
        raise RuntimeError(f"the submission was answered {answer}")
    return answer


def picture_bytes(url: str, link: str) -> bytes:
    return ask_once(url, "GET", urlsplit(link).path)


@dataclass(frozen=True)
class Burst:
    """Many requests by some clients at a time."""

    per_second: float
    p50_seconds: float
    p99_seconds: float


def burst(url: str, send: Send, *, clients: int, count: int) -> Burst:
    """`count` requests by `clients` threads, each with a connection of its own that it keeps."""
    barrier = threading.Barrier(clients + 1)

    def run(client: int) -> list[float]:
        durations = []
        with closing(connect(url)) as connection:
            connection.connect()
            barrier.wait(TIMEOUT_SECONDS)
            for _ in range(client, count, clients):
                start = time.perf_counter()
                send(connection)
                durations.append(time.perf_counter() - start)
        return durations

    with ThreadPoolExecutor(clients) as threads:
        runs = [threads.submit(run, client) for client in range(clients)]
        barrier.wait(TIMEOUT_SECONDS)
        start = time.perf_counter()
        durations = [duration for each in runs for duration in each.result()]
        seconds = time.perf_counter() - start
    return Burst(count / seconds, quantile(durations, 0.5), quantile(durations, 0.99))
