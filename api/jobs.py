"""`/jobs/{id}`: a job's state in our own words, for its own key and for admins; and its cancellation."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field

from api.addresses import picture_links
from api.callers import admitted, find_job, own_base_url
from api.errors import AlreadyOver, InvalidFields, JobNotFound, Refused, WireError
from api.eta import eta_seconds
from api.openapi import documented
from api.parts import Parts, parts
from storage.job import InpaintJob, JobStatus

blueprint = Blueprint("jobs", __name__)

PROBLEM_WORDS = {
    "missing": "is required",
    "not_text": "must be a string",
    "too_long": "must not be longer than {high} characters",
}


class Progress(BaseModel):
    step: int
    steps: int


class Timings(BaseModel):
    """Moments in ISO 8601, UTC; spans in seconds."""

    submitted_at: str
    started_at: str | None
    finished_at: str | None
    queued_seconds: float
    running_seconds: float | None


class JobFailure(BaseModel):
    code: str
    message: str
    field: str | None


class JobAnswer(BaseModel):
    id: str
    number: int
    status: Literal["queued", "processing", "succeeded", "failed", "cancelled"]
    dialect: str
    model: str
    progress: Progress
    queue_position: int | None = Field(description="Jobs that will be taken before this one; 0: it is next.")
    eta_seconds: float | None
    attempts: int
    cancel_requested: bool
    timings: Timings
    images: list[str] = Field(description="Links, once succeeded.")
    failure: JobFailure | None
    webhook_status: str


class OwnError(BaseModel):
    code: str
    message: str
    field: str | None


class OwnErrorAnswer(BaseModel):
    error: OwnError


@blueprint.get("/jobs/<name>")
@documented("The state of a job, by its id or number", answers=[JobAnswer], error=OwnErrorAnswer)
def show(name: str) -> ResponseReturnValue:
    _, api_key = admitted()
    return jsonify(describe(find_job(name, api_key), parts(), own_base_url()).model_dump())


@blueprint.post("/jobs/<name>/cancel")
@documented("Cancel a queued or running job", answers=[JobAnswer], error=OwnErrorAnswer)
def cancel(name: str) -> ResponseReturnValue:
    """200: it is cancelled; 202: it leaves at its next step; 409: it was over already."""
    _, api_key = admitted()
    job = find_job(name, api_key)
    if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise AlreadyOver
    after = parts().jobs.cancel(job.job_id)
    if after is None:
        raise JobNotFound
    if after.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise AlreadyOver
    code = HTTPStatus.ACCEPTED if after.status is JobStatus.PROCESSING else HTTPStatus.OK
    return jsonify(describe(after, parts(), own_base_url()).model_dump()), code


def describe(job: InpaintJob, all_parts: Parts, base: str) -> JobAnswer:
    """The job in our own words. Asks the store for its place in the queue while it waits."""
    is_over = job.status.is_final
    is_queued = job.status is JobStatus.QUEUED
    failure = job.failure
    return JobAnswer(
        id=job.job_id,
        number=job.number,
        status=job.status.value,
        dialect=job.dialect,
        model=job.model,
        progress=Progress(step=job.step, steps=job.num_steps),
        queue_position=all_parts.jobs.position(job) if is_queued else None,
        eta_seconds=None if is_over else round(eta_seconds(job, all_parts.jobs, all_parts.catalog), 1),
        attempts=job.attempts,
        cancel_requested=job.cancel_requested,
        timings=timings(job, all_parts.clock()),
        images=_links(job, base) if job.status is JobStatus.SUCCEEDED else [],
        failure=failure and JobFailure(code=failure.code, message=failure.message, field=failure.field),
        webhook_status=all_parts.deliveries.webhook_status(job),
    )


def timings(job: InpaintJob, now: float) -> Timings:
    """When the job changed, and how long it waited and ran so far. `now` in seconds since the epoch."""
    left_queue_at = job.started_at or job.finished_at or now
    ran_until = job.finished_at or now
    return Timings(
        submitted_at=_iso(job.submitted_at),
        started_at=None if job.started_at is None else _iso(job.started_at),
        finished_at=None if job.finished_at is None else _iso(job.finished_at),
        queued_seconds=round(max(0.0, left_queue_at - job.submitted_at), 3),
        running_seconds=None if job.started_at is None else round(max(0.0, ran_until - job.started_at), 3),
    )


def render_error(error: Refused) -> WireError:
    """A refusal in our own words: for every path that is no dialect's."""
    message = error.message
    if isinstance(error, InvalidFields):
        problem = error.problems[0]
        words = PROBLEM_WORDS.get(problem.kind, "has a value that cannot be used")
        message = f"{problem.field} {words.format(**problem.facts)}."
    detail: dict[str, Any] = {"code": error.code, "message": message, "field": error.field}
    if error.retry_after_seconds is not None:
        detail["retry_after"] = error.retry_after_seconds
    body: Mapping[str, Any] = {"error": detail}
    return WireError(error.status, body, error.headers)


def _links(job: InpaintJob, base: str) -> list[str]:
    return picture_links(job, str(job.wire.get("base_url") or base), base64_text=bool(job.wire.get("base64")))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
