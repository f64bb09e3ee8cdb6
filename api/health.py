"""`/health`: this process answers. `/ready`: so do Redis, the image store and at least one worker."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from api.openapi import documented
from api.parts import parts
from storage.errors import StorageUnavailable

blueprint = Blueprint("health", __name__)
log = structlog.get_logger(__name__)


@blueprint.get("/health")
@documented("Whether this process is alive", is_open=True)
def health() -> ResponseReturnValue:
    return jsonify(status="ok")


@blueprint.get("/ready")
@documented("Whether Redis, storage and a worker answer", is_open=True)
def ready() -> ResponseReturnValue:
    all_parts = parts()
    redis_is_up = _answers("redis", all_parts.jobs.ping)
    workers: list[dict[str, Any]] = []
    if redis_is_up:
        _answers("workers", lambda: workers.extend(all_parts.jobs.workers()))
    found = {
        "redis": redis_is_up,
        "storage": _answers("storage", all_parts.images.check),
        "worker": bool(workers),
    }
    is_ready = all(found.values())
    body = {
        "status": "ready" if is_ready else "not ready",
        "parts": {name: "ok" if is_up else "unavailable" for name, is_up in found.items()},
        "workers": len(workers),
    }
    return jsonify(body), HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE


def _answers(part: str, ask: Callable[[], object]) -> bool:
    try:
        ask()
    except StorageUnavailable:
        log.warning("part_unavailable", part=part)
        return False
    return True
