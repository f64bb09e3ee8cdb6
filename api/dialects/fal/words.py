"""Every refusal and every failure in fal's words: a status, a `detail`, and sometimes an error type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from api.errors import InvalidFields, JobNotFound, Refused, WireError
from storage.job import Failure

ERROR_TYPE_HEADER = "X-Fal-Error-Type"
NEEDS_RETRY_HEADER = "X-Fal-Needs-Retry"
TIMEOUT_TYPE_HEADER = "X-Fal-Request-Timeout-Type"
# What the types mean is said there.
TYPE_URL = "https://docs.fal.ai/errors/#"
CLIENT_CLOSED_REQUEST = 499
LONGEST_SHOWN_CHARS = 200
DEEPEST_SHOWN = 4
MOST_SHOWN = 50

# The job's names for its inputs, and the wire's.
WIRE_FIELDS = {
    "init_image": "image_url",
    "mask_image": "mask_url",
    "webhook": "fal_webhook",
    "lora_model": "loras",
    "embeddings_model": "embeddings",
    "ip_adapter_id": "ip_adapter",
    "ip_adapter_image": "ip_adapter",
}


@dataclass(frozen=True)
class InputFault:
    """A failure that an input is to blame for: a row of `detail`. `field`: where it lies if nothing says."""

    type: str
    message: str
    field: str | None = None
    status: int = HTTPStatus.UNPROCESSABLE_ENTITY


@dataclass(frozen=True)
class Breakdown:
    """A failure of ours or of the way here: `detail` is a sentence."""

    status: int
    message: str
    error_type: str | None = None
    needs_retry: bool = False


FAILURES: Mapping[str, InputFault | Breakdown] = {
    "input_unreachable": InputFault("file_download_error", "Failed to download the file at {field}", "image_url"),
    "input_refused": InputFault("file_download_error", "The address at {field} may not be called", "image_url"),
    "input_too_large": InputFault("file_too_large", "The file at {field} has too many bytes", "image_url"),
    "not_an_image": InputFault("image_load_error", "Failed to load the image at {field}", "image_url"),
    "image_too_large": InputFault("image_too_large", "The image at {field} has too many pixels", "image_url"),
    "content_filtered": InputFault(
        "content_policy_violation", "The image was withheld by the content filter", "prompt"
    ),
    "timed_out": InputFault("generation_timeout", "The image took too long", status=HTTPStatus.GATEWAY_TIMEOUT),
    "model_unavailable": Breakdown(500, "The model could not be loaded", "runner_server_error"),
    "safety_checker_unavailable": Breakdown(500, "The safety checker could not be loaded", "runner_server_error"),
    "addon_unavailable": InputFault("value_error", "What {field} names cannot be used with this model", "loras"),
    "nothing_to_continue": InputFault("value_error", "The mask at {field} covers the whole image", "mask_url"),
    "prompt_too_long": InputFault("string_too_long", "{field} has too many words", "prompt"),
    "out_of_memory": Breakdown(500, "Not enough memory for this image, try a smaller one", "runner_server_error"),
    "start_timed_out": Breakdown(504, "Request timed out", "request_timeout"),
    "cancelled": Breakdown(CLIENT_CLOSED_REQUEST, "Request was cancelled", "client_cancelled"),
    "worker_lost": Breakdown(503, "The runner was lost while it worked on this request", "runner_disconnected"),
    "storage_unavailable": Breakdown(503, "The result could not be stored", "runner_connection_error"),
    "internal_error": Breakdown(500, "Internal server error", "internal_error"),
}
# What Intake finds out about a picture before the job exists: failures, too, as this wire goes.
INTAKE_FAILURES: Mapping[str, InputFault] = {
    "address_refused": InputFault("file_download_error", "{field} must be a public http or https URL"),
    "invalid_image": InputFault("image_load_error", "{field} must be a URL or a data URI of an image"),
    "link_not_ready": InputFault("file_download_error", "{field} is a link to an image that is not finished"),
    "link_unknown": InputFault("file_download_error", "{field} is a link to an image that does not exist"),
}
REFUSALS: Mapping[str, Breakdown] = {
    "malformed_body": Breakdown(400, "The request body must be a JSON object", "bad_request"),
    "unknown_model": Breakdown(422, "There is no such model"),
    "missing_api_key": Breakdown(401, "No credentials were given: send Authorization: Key YOUR_KEY"),
    "invalid_api_key": Breakdown(401, "No user found for Key ID and Secret"),
    "job_not_found": Breakdown(404, "Request not found"),
    "not_found": Breakdown(404, "Path not found"),
    "unknown_app": Breakdown(404, 'Application "{name}" not found'),
    "method_not_allowed": Breakdown(405, "Method not allowed"),
    "already_over": Breakdown(400, "The request is finished already"),
    "body_too_large": Breakdown(413, "The request is too large, {limit} bytes are allowed"),
    "queue_full": Breakdown(429, "The queue is full: {limit} requests may wait", "concurrent_requests_limit", True),
    "too_many_requests": Breakdown(429, "{limit} requests a minute are allowed", "concurrent_requests_limit", True),
    "no_place": Breakdown(429, "Too many clients wait for results", "concurrent_requests_limit", True),
    "run_timed_out": Breakdown(504, "Request timed out", "request_timeout"),
    "storage_unavailable": Breakdown(503, "Service temporarily unavailable", "runner_connection_error", True),
    "proxy_target": Breakdown(400, "x-fal-target-url must be a URL of this API", "bad_request"),
    "internal_error": Breakdown(500, "Internal server error", "internal_error"),
}
PROBLEMS: Mapping[str, tuple[str, str]] = {
    "missing": ("missing", "Field required"),
    "not_text": ("string_type", "Input should be a valid string"),
    "not_an_integer": ("int_parsing", "Input should be a valid integer"),
    "not_a_number": ("float_parsing", "Input should be a valid number"),
    "not_finite": ("finite_number", "Input should be a finite number"),
    "not_a_flag": ("bool_parsing", "Input should be a valid boolean"),
    "out_of_range": ("value_error", "Input should be between {low} and {high}"),
    "too_small": ("greater_than_equal", "Input should be greater than or equal to {low}"),
    "too_long": ("string_too_long", "String should have at most {high} characters"),
    "not_a_choice": ("enum", "Input should be one of {choices}"),
    "unknown_addon": ("value_error", "There is no {value} here"),
    "other_family": ("value_error", "{value} is not for the model {model}"),
    "wrong_count": ("value_error", "Input should be one number, or {expected}"),
    "too_many": ("too_long", "Input should name at most {high}"),
    "no_safety_checker": ("feature_not_supported", "This service has no safety checker"),
}


class UnknownApp(Refused):
    """There is no such application."""

    code = "unknown_app"
    status = HTTPStatus.NOT_FOUND


class NoPlace(Refused):
    """Too many clients wait for results."""

    code = "no_place"
    status = HTTPStatus.TOO_MANY_REQUESTS


class RunTimedOut(Refused):
    """The result was not there in the time that a client may wait for it."""

    code = "run_timed_out"
    status = HTTPStatus.GATEWAY_TIMEOUT


class NotAProxyTarget(Refused):
    """The address to which a proxied request wants to go is none of this API."""

    code = "proxy_target"


def row(location: Sequence[str], kind: str, message: str, value: Any = None) -> dict[str, Any]:
    """One entry of `detail`. All of `loc` are strings: clients refuse others."""
    return {"loc": list(location), "msg": message, "type": kind, "input": shown(value), "url": TYPE_URL + kind}


def shown(value: Any, depth: int = 0) -> Any:
    """What a client sent, as it is given back: pictures inside it cut short, and JSON whatever it was."""
    match value:
        case str():
            return value if len(value) <= LONGEST_SHOWN_CHARS else value[: LONGEST_SHOWN_CHARS - 1] + "…"
        case float() if not math.isfinite(value):
            return str(value)
        case bool() | int() | float() | None:
            return value
        case Mapping() if depth < DEEPEST_SHOWN:
            items = list(value.items())[:MOST_SHOWN]
            return {str(shown(str(name))): shown(each, depth + 1) for name, each in items}
        case list() if depth < DEEPEST_SHOWN:
            return [shown(each, depth + 1) for each in value[:MOST_SHOWN]]
        case _:
            return "…"


def render_failure(failure: Failure | None) -> WireError:
    """How a job failed, as fal answers where the result would have been."""
    if failure is None:
        return _of_breakdown(_internal_error())
    if failure.detail.get("rows"):
        return WireError(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": list(failure.detail["rows"])})
    fault = FAILURES.get(failure.code) or INTAKE_FAILURES.get(failure.code) or _internal_error()
    if isinstance(fault, InputFault):
        return WireError(fault.status, {"detail": [_row_of(fault, failure.field)]})
    headers = {TIMEOUT_TYPE_HEADER: "user"} if failure.code == "start_timed_out" else {}
    return _of_breakdown(fault, headers)


def error_type_of(error: WireError) -> str | None:
    """The one word that a status and a header say about it."""
    detail = error.body["detail"]
    if isinstance(detail, list):
        return str(detail[0]["type"]) if detail else None
    kind: str | None = error.body.get("error_type")
    return kind


def render_error(error: Refused) -> WireError:
    """A refusal at the door; what an input is to blame for is not among them, but a webhook's address is."""
    if isinstance(error, InvalidFields):
        rows = [_row_of_problem(each.field, each.kind, each.facts) for each in error.problems]
        return WireError(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": rows}, error.headers)
    if error.code in INTAKE_FAILURES:
        field = WIRE_FIELDS.get(error.field or "", error.field)
        place = "query" if field == "fal_webhook" else "body"
        fault = INTAKE_FAILURES[error.code]
        rows = [row([place, str(field)], fault.type, fault.message.format(field=field))]
        return WireError(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": rows}, error.headers)
    if error.code == "idempotency_conflict":
        message = "It was used before with another request"
        rows = [row(["header", "Idempotency-Key"], "value_error", message)]
        return WireError(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": rows}, error.headers)
    breakdown = REFUSALS.get(error.code) or _internal_error()
    wire = _of_breakdown(breakdown, error.headers, error.facts)
    if isinstance(error, JobNotFound):
        wire = WireError(wire.status, {"status": "NOT_FOUND", **wire.body}, wire.headers)
    return wire


def _of_breakdown(
    breakdown: Breakdown, headers: Mapping[str, str] | None = None, facts: Mapping[str, Any] | None = None
) -> WireError:
    # Not every client reads `detail` where it is no list: `message` says the same.
    text = breakdown.message.format(**(facts or {}))
    body: dict[str, Any] = {"detail": text, "message": text}
    all_headers = dict(headers or {})
    if breakdown.error_type is not None:
        body["error_type"] = breakdown.error_type
        all_headers[ERROR_TYPE_HEADER] = breakdown.error_type
    if breakdown.needs_retry:
        all_headers[NEEDS_RETRY_HEADER] = "1"
    return WireError(breakdown.status, body, all_headers)


def _row_of(fault: InputFault, field: str | None) -> dict[str, Any]:
    name = WIRE_FIELDS.get(field or "", field) or fault.field
    location = ["body"] if name is None else ["body", name]
    return row(location, fault.type, fault.message.format(field=name))


def _row_of_problem(field: str, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    wire_kind, message = PROBLEMS.get(kind, ("value_error", "This value cannot be used"))
    place = "header" if field == "Idempotency-Key" else "body"
    return row([place, field], wire_kind, message.format(**facts))


def _internal_error() -> Breakdown:
    fault = FAILURES["internal_error"]
    if not isinstance(fault, Breakdown):
        raise TypeError("internal_error is nobody's input")
    return fault
