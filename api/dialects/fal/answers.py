"""What every answer of this dialect has: JSON, and the header that names the request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, g, jsonify, request

from api.errors import WireError

REQUEST_ID_HEADER = "x-fal-request-id"


def name_request(request_id: str) -> None:
    """The job that the current request is about: what its answer is named by."""
    g.fal_request_id = request_id


def name_the_request(response: Response, prefixes: Sequence[str]) -> Response:
    """Clients read a job's id from this header, and take an answer without it for a gateway's."""
    is_ours = request.path.startswith(tuple(prefixes)) or (request.blueprint or "") == "fal"
    if is_ours:
        response.headers.setdefault(REQUEST_ID_HEADER, g.get("fal_request_id") or str(uuid.uuid4()))
    return response


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    response = jsonify(body)
    response.status_code = status
    response.headers.update(headers or {})
    return response


def answer_error(error: WireError) -> Response:
    return answer(error.body, error.status, error.headers)
