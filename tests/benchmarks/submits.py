"""(b) How many submissions a second the front end takes, against the cheapest answer it can give."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from statistics import median
from typing import Any

from tests.benchmarks.client import SUBMIT_PATH, Burst, Send, ask, burst, inline
from tests.benchmarks.figures import Findings, Row, milliseconds
from tests.benchmarks.pictures import as_png, middle_mask, photographs
from tests.service import Service

CLIENTS = 16
SIZE = 64
NOWHERE = "https://example.com/picture.png"


def submits(service: Service, *, rounds: int, count: int) -> Findings:
    """Leaves the service without a worker and with a long queue."""
    service.supervisorctl("stop", "worker")
    picture, mask = inline(as_png(photographs(SIZE)[0].pixels)), inline(as_png(middle_mask(SIZE)))
    senders = {
        "health": _send_health,
        "links": _send_submit(_body(service.key, NOWHERE, NOWHERE)),
        "inline": _send_submit(_body(service.key, picture, mask)),
    }
    bursts: dict[str, list[Burst]] = {name: [] for name in senders}
    for send in senders.values():
        burst(service.url, send, clients=CLIENTS, count=2 * CLIENTS)
    for _ in range(rounds):
        for name, send in senders.items():
            bursts[name].append(burst(service.url, send, clients=CLIENTS, count=count))
    health = _median(bursts["health"])
    rows = [
        _row("submits, pictures as links", _median(bursts["links"]), health),
        _row(f"submits, pictures of {SIZE} px inline", _median(bursts["inline"]), health),
    ]
    remark = (
        f"(b) instant_response, {CLIENTS} clients on kept connections, {rounds} rounds of {count} each, in turn "
        "with the control: GET /health of the same server by the same client, which shares the machine. No worker "
        "runs. ratio: of the rates. Every answer was checked to be `processing`."
    )
    return Findings(rows=rows, remarks=[remark])


def _body(key: str, init_image: str, mask_image: str) -> Mapping[str, Any]:
    return {
        "key": key,
        "prompt": "a red circle on a blue background",
        "init_image": init_image,
        "mask_image": mask_image,
        "width": SIZE,
        "height": SIZE,
        "instant_response": True,
    }


def _send_health(connection: http.client.HTTPConnection) -> None:
    ask(connection, "GET", "/health")


def _send_submit(body: Mapping[str, Any]) -> Send:
    data = json.dumps(body).encode()

    def send(connection: http.client.HTTPConnection) -> None:
        answer = json.loads(ask(connection, "POST", SUBMIT_PATH, data))
        if answer["status"] != "processing":
            raise RuntimeError(f"a submission was answered {answer}")

    return send


def _median(bursts: list[Burst]) -> Burst:
    return Burst(
        median([each.per_second for each in bursts]),
        median([each.p50_seconds for each in bursts]),
        median([each.p99_seconds for each in bursts]),
    )


def _row(measured: str, found: Burst, health: Burst) -> Row:
    return Row(
        part="b",
        measured=measured,
        figure=_shown(found),
        control=f"{_shown(health)} (GET /health)",
        ratio=found.per_second / health.per_second,
        values={
            "submits_per_second": found.per_second,
            "submit_p50_seconds": found.p50_seconds,
            "submit_p99_seconds": found.p99_seconds,
            "health_per_second": health.per_second,
            "health_p50_seconds": health.p50_seconds,
            "health_p99_seconds": health.p99_seconds,
        },
    )


def _shown(found: Burst) -> str:
    return f"{found.per_second:.0f}/s, p50 {milliseconds(found.p50_seconds)}, p99 {milliseconds(found.p99_seconds)}"
