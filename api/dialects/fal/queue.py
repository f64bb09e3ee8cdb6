"""The queue: submit, status (asked for or streamed), result, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from api.callers import own_base_url
from api.dialects.fal import submitting
from api.dialects.fal.answers import answer, answer_error, name_request
from api.dialects.fal.events import Watch, event_stream, take_place, watch
from api.dialects.fal.input import InpaintInput
from api.dialects.fal.output import (
    FalError,
    InpaintOutput,
    QueueStatus,
    logs,
    render_output,
    render_status,
    render_submitted,
)
from api.dialects.fal.requests import admitted, base_of, check_app, circumstances, find_job, job_id_of, visible
from api.dialects.fal.words import render_error, render_failure
from api.errors import AlreadyOver
from api.openapi import documented
from api.parts import parts
from storage.job import InpaintJob, JobStatus

YES = frozenset({"1", "true", "yes", "on"})
# Clients recognise these words, not the code.
STILL_IN_PROGRESS = "Request is still in progress"


def add_to(blueprint: Blueprint) -> None:
    """Every route with and without a slash at its end, and with a sub-path between the application and the rest."""
    routes = (
        ("/requests/<request_id>/status/stream", stream_status, "GET"),
        ("/requests/<request_id>/status", status, "GET"),
        ("/requests/<request_id>/response", result, "GET"),
        ("/requests/<request_id>/cancel", cancel, "PUT"),
        ("/requests/<request_id>", result, "GET"),
        ("", submit, "POST"),
    )
    for rest, view, method in routes:
        for app in ("/queue/<owner>/<alias>", "/queue/<owner>/<alias>/<path:sub>"):
            rule = app + rest
            blueprint.add_url_rule(rule, f"{method}_{rule}", view, methods=[method], strict_slashes=False)


@documented("Submit a request to the queue", body=InpaintInput, answers=[QueueStatus], error=FalError)
def submit(owner: str, alias: str, sub: str = "") -> ResponseReturnValue:
    api_key = admitted()
    check_app(owner, alias)
    submitting.check_queue_length()
    job = submitting.accept(api_key, circumstances(api_key, request.args.get("fal_webhook") or None))
    name_request(job.job_id)
    position = parts().jobs.position(job) if job.status is JobStatus.QUEUED else 0
    return answer(render_submitted(job, queue_base=base_of("queue"), position=position))


@documented("Where a request stands", answers=[QueueStatus], error=FalError)
def status(owner: str, alias: str, request_id: str, sub: str = "") -> ResponseReturnValue:
    """202 until it is over, then 200."""
    api_key = admitted()
    check_app(owner, alias)
    job, position = _looked_up(request_id)
    body = render_status(visible(job, api_key), queue_base=base_of("queue"), position=position, with_logs=_wants_logs())
    return answer(body, HTTPStatus.OK if body["status"] == "COMPLETED" else HTTPStatus.ACCEPTED)


@documented("The same as a stream of events, each with what is new in the logs", answers=[QueueStatus])
def stream_status(owner: str, alias: str, request_id: str, sub: str = "") -> ResponseReturnValue:
    api_key = admitted()
    check_app(owner, alias)
    job = find_job(request_id, api_key)
    take_place()
    return event_stream(_statuses(watch(job), queue_base=base_of("queue"), with_logs=_wants_logs()))


@documented("The output of a request", answers=[InpaintOutput], error=FalError)
def result(owner: str, alias: str, request_id: str, sub: str = "") -> ResponseReturnValue:
    api_key = admitted()
    check_app(owner, alias)
    return answer_output(find_job(request_id, api_key))


def cancel(owner: str, alias: str, request_id: str, sub: str = "") -> ResponseReturnValue:
    """A queued request is cancelled at once, a running one leaves at its next step."""
    api_key = admitted()
    check_app(owner, alias)
    job = find_job(request_id, api_key)
    after = visible(parts().jobs.cancel(job.job_id), api_key)
    if job.status.is_final or after.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        return answer({"status": "ALREADY_COMPLETED", **render_error(AlreadyOver()).body}, HTTPStatus.BAD_REQUEST)
    return answer({"status": "CANCELLATION_REQUESTED"}, HTTPStatus.ACCEPTED)


def answer_output(job: InpaintJob) -> Response:
    """What came of the job, or that nothing has yet."""
    if not job.status.is_final:
        return answer({"detail": STILL_IN_PROGRESS, "message": STILL_IN_PROGRESS}, HTTPStatus.BAD_REQUEST)
    if job.status is JobStatus.SUCCEEDED:
        return answer(render_output(job, own_base_url()))
    return answer_error(render_failure(job.failure))


def _looked_up(request_id: str) -> tuple[InpaintJob | None, int | None]:
    return parts().jobs.look(job_id_of(request_id)) or (None, None)


def _wants_logs() -> bool:
    return request.args.get("logs", "").casefold() in YES


def _statuses(watched: Watch, *, queue_base: str, with_logs: bool) -> Iterator[dict[str, Any] | None]:
    """Each status that is another than the one before, None where nothing has changed."""
    told = 0
    before: tuple[Any, ...] | None = None
    for job, position in watched:
        now = (job.status, position, job.step, len(job.step_marks))
        if now == before:
            yield None
            continue
        before = now
        lines = len(logs(job))
        told = min(told, lines)
        yield render_status(job, queue_base=queue_base, position=position, with_logs=with_logs, logs_from=told)
        told = lines
