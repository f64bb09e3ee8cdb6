"""(f) What a status costs while fifty of fal's clients ask for theirs ten times a second and the worker paints."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from tests.benchmarks.client import connect
from tests.benchmarks.figures import Findings, Row, milliseconds, quantile
from tests.benchmarks.pictures import as_png, middle_mask, photographs
from tests.fal_clients import data_uri
from tests.service import Service

CLIENTS = 50
# As fal's Python client does.
POLL_SECONDS = 0.1
SIZE = 256
STEPS = 150
AIM_SECONDS = 0.050
QUEUE = "/queue/fal-ai/inpaint"


def fal_polling(service: Service, *, seconds: float) -> Findings:
    """Every client has a request of its own in the queue. What is left of them is cancelled."""
    health = _asked(service, seconds=seconds / 2, paths=["/health"] * CLIENTS)
    requests = [_submit(service) for _ in range(CLIENTS)]
    paths = [f"{QUEUE}/requests/{request_id}/status?logs=true" for request_id in requests]
    try:
        _await_paint(service, paths[0])
        found = _asked(service, seconds=seconds, paths=paths)
        if not _is_painting(service, paths):
            raise RuntimeError("the queue was empty before the clients had asked enough")
    finally:
        for request_id in requests:
            _call(service, "PUT", f"{QUEUE}/requests/{request_id}/cancel")
    row = Row(
        part="f",
        measured=f"status of a fal request, {CLIENTS} clients polling, worker painting",
        figure=_shown(found),
        control=f"{_shown(health)} (GET /health, worker idle)",
        ratio=quantile(found, 0.99) / quantile(health, 0.99),
        aim=f"p99 < {milliseconds(AIM_SECONDS)}",
        met=quantile(found, 0.99) < AIM_SECONDS,
        values={
            "status_p50_seconds": quantile(found, 0.5),
            "status_p99_seconds": quantile(found, 0.99),
            "status_max_seconds": max(found),
            "answers": len(found),
            "health_p99_seconds": quantile(health, 0.99),
        },
    )
    remark = (
        f"(f) {len(found)} answers in {seconds:.0f} s, over kept connections, with logs, each client {POLL_SECONDS} s "
        f"after its last answer. {CLIENTS} requests of {STEPS} steps wait or are painted; the clients share the "
        "machine. ratio: of the p99, to GET /health by the same clients at the same pace while nothing is painted."
    )
    return Findings(rows=[row], remarks=[remark])


def _asked(service: Service, *, seconds: float, paths: list[str]) -> list[float]:
    """How long each answer took; one client per path."""
    barrier = threading.Barrier(len(paths))

    def run(client: int) -> list[float]:
        durations = []
        with closing(connect(service.url)) as connection:
            connection.connect()
            barrier.wait(30)
            # All at once would be another question: they come as they come.
            time.sleep(POLL_SECONDS * client / len(paths))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                start = time.perf_counter()
                _ask(connection, service, "GET", paths[client])
                durations.append(time.perf_counter() - start)
                time.sleep(POLL_SECONDS)
        return durations

    with ThreadPoolExecutor(len(paths)) as threads:
        return [duration for each in threads.map(run, range(len(paths))) for duration in each]


def _submit(service: Service) -> str:
    picture, mask = as_png(photographs(SIZE)[0].pixels), as_png(middle_mask(SIZE))
    body = {
        "model_name": "doodle",
        "prompt": "a red circle",
        "image_url": data_uri(picture),
        "mask_url": data_uri(mask),
        "num_inference_steps": STEPS,
    }
    request_id: str = _call(service, "POST", QUEUE, body)["request_id"]
    return request_id


def _await_paint(service: Service, path: str) -> None:
    while not _call(service, "GET", path)["logs"]:
        time.sleep(POLL_SECONDS)


def _is_painting(service: Service, paths: list[str]) -> bool:
    return any(_call(service, "GET", path)["status"] == "IN_PROGRESS" for path in paths)


def _call(service: Service, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    with closing(connect(service.url)) as connection:
        return _ask(connection, service, method, path, None if body is None else json.dumps(body).encode())


def _ask(
    connection: http.client.HTTPConnection, service: Service, method: str, path: str, body: bytes | None = None
) -> Any:
    headers = {"Authorization": f"Key {service.key}", "Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    # A cancel comes too late for what is done already.
    if response.status >= http.client.BAD_REQUEST and method != "PUT":
        raise RuntimeError(f"{method} was answered {response.status}: {content[:500]!r}")
    return json.loads(content)


def _shown(durations: list[float]) -> str:
    return f"p50 {milliseconds(quantile(durations, 0.5))}, p99 {milliseconds(quantile(durations, 0.99))}"
