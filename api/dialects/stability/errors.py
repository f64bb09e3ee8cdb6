"""Refusals and failures as gRPC statuses: one table of codes and words, which clients match by substring."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import grpc
import structlog

from api.errors import InvalidFields, Problem, Refused
from api.waiting import NoPlace
from storage.errors import StorageUnavailable
from storage.job import Failure

log = structlog.get_logger(__name__)

Code = grpc.StatusCode

WORDS: Mapping[str, tuple[grpc.StatusCode, str]] = {
    "malformed_body": (Code.INVALID_ARGUMENT, "The request is not a message of this method."),
    "unknown_model": (Code.NOT_FOUND, "The specified engine (ID {name}) was not found."),
    "address_refused": (Code.INVALID_ARGUMENT, "{field} is not a picture."),
    "invalid_image": (Code.INVALID_ARGUMENT, "{field} is not a picture."),
    "link_not_ready": (Code.INVALID_ARGUMENT, "{field} is not a picture."),
    "link_unknown": (Code.INVALID_ARGUMENT, "{field} is not a picture."),
    "missing_api_key": (Code.UNAUTHENTICATED, "missing authorization header: send 'authorization: Bearer KEY'"),
    "invalid_api_key": (Code.UNAUTHENTICATED, "the API key is not valid"),
    "job_not_found": (Code.NOT_FOUND, "There is no such request."),
    "not_found": (Code.UNIMPLEMENTED, "There is no such method."),
    "method_not_allowed": (Code.UNIMPLEMENTED, "gRPC-Web calls are POST requests."),
    "already_over": (Code.FAILED_PRECONDITION, "The request is over already."),
    "body_too_large": (Code.RESOURCE_EXHAUSTED, "Received message larger than max ({limit} bytes)"),
    "idempotency_conflict": (Code.ALREADY_EXISTS, "This request was sent before with another content."),
    "queue_full": (Code.UNAVAILABLE, "The queue is full: {limit} requests of this key wait already. Try again later."),
    "too_many_requests": (Code.UNAVAILABLE, "More than {limit} requests in a minute. Try again later."),
    "storage_unavailable": (Code.UNAVAILABLE, "The service is not available for the moment. Try again."),
    "internal_error": (Code.INTERNAL, "Something unexpected went wrong; it was logged."),
}
# Out of memory is no RESOURCE_EXHAUSTED: clients take that for an empty account.
FAILURE_WORDS: Mapping[str, tuple[grpc.StatusCode, str]] = {
    "input_unreachable": (Code.INVALID_ARGUMENT, "{field} cannot be read."),
    "input_refused": (Code.INVALID_ARGUMENT, "{field} cannot be read."),
    "input_too_large": (Code.INVALID_ARGUMENT, "{field} has too many bytes."),
    "not_an_image": (Code.INVALID_ARGUMENT, "{field} is not a picture that can be read."),
    "image_too_large": (Code.INVALID_ARGUMENT, "{field} has too many pixels."),
    "model_unavailable": (Code.FAILED_PRECONDITION, "The engine cannot be loaded."),
    "safety_checker_unavailable": (Code.FAILED_PRECONDITION, "The safety checker cannot be loaded."),
    "addon_unavailable": (Code.FAILED_PRECONDITION, "{field} cannot be used with this engine."),
    "nothing_to_continue": (Code.INVALID_ARGUMENT, "{field} covers the whole picture."),
    "prompt_too_long": (Code.INVALID_ARGUMENT, "{field} has too many words."),
    "out_of_memory": (Code.FAILED_PRECONDITION, "Not enough memory for this picture: try a smaller one."),
    "timed_out": (Code.DEADLINE_EXCEEDED, "The picture took too long."),
    "start_timed_out": (Code.DEADLINE_EXCEEDED, "The request did not start in time."),
    "content_filtered": (Code.INVALID_ARGUMENT, "Invalid prompts detected"),
    "cancelled": (Code.CANCELLED, "The request was cancelled."),
    "worker_lost": (Code.INTERNAL, "The picture could not be made: try again."),
    "storage_unavailable": (Code.UNAVAILABLE, "The service is not available for the moment. Try again."),
    "internal_error": (Code.INTERNAL, "Something unexpected went wrong; it was logged."),
}
# For refusals that this table does not know yet.
BY_HTTP_STATUS: Mapping[int, grpc.StatusCode] = {
    HTTPStatus.UNAUTHORIZED: Code.UNAUTHENTICATED,
    HTTPStatus.PAYMENT_REQUIRED: Code.RESOURCE_EXHAUSTED,
    HTTPStatus.FORBIDDEN: Code.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: Code.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: Code.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: Code.UNAVAILABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR: Code.INTERNAL,
}
PROBLEM_WORDS = {
    "missing": "{field} is required",
    "not_finite": "{field} must be a finite number",
    "out_of_range": "{field} must be between {low} and {high}",
    "too_long": "{field} must not be longer than {high} characters",
    "not_a_choice": "{field} has a value that is not known",
}
# Clients look for these texts.
PHRASES = {("prompt", "missing"): "no prompts provided", ("image", "missing"): "must provide image parameters"}
UNKNOWN_PROBLEM = "{field} has a value that cannot be used"


class WireStatus(Exception):
    """How a call ends that does not end well."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def as_status(error: Exception) -> WireStatus:
    """Whatever went wrong, in this dialect's words. What was not expected is logged and not shown."""
    match error:
        case WireStatus():
            return error
        case Refused():
            return status_of_refusal(error)
        case NoPlace():
            return WireStatus(Code.UNAVAILABLE, "As many calls are open as this service can hold. Try again later.")
        case StorageUnavailable():
            log.warning("out_of_service", reason=type(error.__cause__ or error).__name__)
            return WireStatus(*WORDS["storage_unavailable"])
        case _:
            log.error("unexpected_error", exc_info=error)
            return WireStatus(*WORDS["internal_error"])


def status_of_refusal(error: Refused) -> WireStatus:
    if isinstance(error, InvalidFields):
        return WireStatus(Code.INVALID_ARGUMENT, "; ".join(map(_problem_text, error.problems)))
    if error.code not in WORDS:
        return WireStatus(BY_HTTP_STATUS.get(error.status, Code.INVALID_ARGUMENT), error.message)
    code, words = WORDS[error.code]
    return WireStatus(code, words.format(**{"field": error.field or "request", **error.facts}))


def status_of_failure(failure: Failure | None) -> WireStatus:
    """A recorded failure; a code without words is an internal error."""
    code, words = FAILURE_WORDS.get(failure.code if failure else "", FAILURE_WORDS["internal_error"])
    return WireStatus(code, words.format(field=(failure.field if failure else None) or "request"))


def _problem_text(problem: Problem) -> str:
    phrase = PHRASES.get((problem.field, problem.kind))
    return phrase or PROBLEM_WORDS.get(problem.kind, UNKNOWN_PROBLEM).format(field=problem.field, **problem.facts)
