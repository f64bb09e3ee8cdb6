"""What fal says of a job: its status with the log of its steps, its output, the webhook's body."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.addresses import picture_links
from api.dialects.fal.words import error_type_of, render_failure
from api.webhook_message import WebhookMessage
from storage.job import InpaintJob, JobStatus
from storage.previews import Preview

APP = "fal-ai/inpaint"
PNG, JPEG = "image/png", "image/jpeg"


class Image(BaseModel):
    url: str = Field(description="Where the picture can be downloaded, without a key.")
    content_type: str
    file_name: str
    file_size: int = Field(description="Bytes.")
    width: int
    height: int


class InpaintOutput(BaseModel):
    image: Image = Field(description="The repainted picture.")
    seed: int = Field(description="The seed that makes this picture again.")
    has_nsfw_concepts: list[bool] | None = Field(
        default=None,
        description="Where `enable_safety_checker` was set: whether something was found; the picture is black then.",
    )


class PreviewImage(BaseModel):
    url: str = Field(description="A data URI: the picture itself.")
    content_type: str
    width: int
    height: int


class InpaintStep(BaseModel):
    """One event of the stream before the last one, which is the output."""

    step: int = Field(description="UNet evaluations done.")
    num_steps: int
    images: list[PreviewImage] | None = Field(
        default=None,
        description="What the picture looks like so far: a small JPEG. Not in every event.",
    )


class LogLine(BaseModel):
    message: str
    level: Literal["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"]
    source: str
    timestamp: str


class Metrics(BaseModel):
    inference_time: float | None = Field(default=None, description="Seconds, once completed.")


class QueueStatus(BaseModel):
    """Where a request stands. One that failed or was cancelled is COMPLETED, with `error`."""

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    queue_position: int | None = Field(default=None, description="Requests ahead; while IN_QUEUE.")
    logs: list[LogLine] | None = Field(default=None, description="One line per step, where logs were asked for.")
    metrics: Metrics
    error: str | None = None
    error_type: str | None = None


class ErrorRow(BaseModel):
    loc: list[str]
    msg: str
    type: str
    input: Any = None
    url: str


class FalError(BaseModel):
    detail: str | list[ErrorRow]
    message: str | None = None
    error_type: str | None = None


def urls(job_id: str, queue_base: str) -> dict[str, str]:
    """Where the request's result, status and cancellation are. `queue_base`: what the queue's URLs start with."""
    request_url = f"{queue_base}/{APP}/requests/{job_id}"
    return {
        "response_url": request_url,
        "status_url": f"{request_url}/status",
        "cancel_url": f"{request_url}/cancel",
    }


def render_submitted(job: InpaintJob, *, queue_base: str, position: int) -> dict[str, Any]:
    """Whatever has become of the job by now, it was put into the queue."""
    body: dict[str, Any] = {
        "status": "IN_QUEUE",
        "request_id": job.job_id,
        **urls(job.job_id, queue_base),
        "queue_position": position,
        "logs": None,
        "metrics": {},
    }
    return body | ({"gateway_request_id": job.job_id} if job.webhook_url else {})


def render_status(
    job: InpaintJob, *, queue_base: str, position: int | None, with_logs: bool, logs_from: int = 0
) -> dict[str, Any]:
    """`logs_from`: how many log lines the client has already."""
    body: dict[str, Any] = {"status": wire_status(job), "request_id": job.job_id, **urls(job.job_id, queue_base)}
    if job.status is JobStatus.QUEUED:
        body["queue_position"] = position or 0
    body["logs"] = logs(job)[logs_from:] if with_logs else None
    body["metrics"] = {"inference_time": inference_seconds(job)} if job.status.is_final else {}
    if job.status.is_final and job.status is not JobStatus.SUCCEEDED:
        error = render_failure(job.failure)
        body["error"] = f"Invalid status code: {int(error.status)}"
        kind = error_type_of(error)
        body |= {"error_type": kind} if kind else {}
    return body


def wire_status(job: InpaintJob) -> str:
    return {JobStatus.QUEUED: "IN_QUEUE", JobStatus.PROCESSING: "IN_PROGRESS"}.get(job.status, "COMPLETED")


def inference_seconds(job: InpaintJob) -> float:
    seconds = job.notes.get("seconds")
    if seconds is None:
        seconds = (job.finished_at or 0) - (job.started_at or job.finished_at or 0)
    return round(max(0.0, float(seconds)), 3)


def logs(job: InpaintJob) -> list[dict[str, str]]:
    """A line for each input without effect, then one per denoising step that is done."""
    total = max((job.num_steps, *(step for step, _ in job.step_marks)))
    return [
        *_warnings(job),
        *(
            {"message": f"step {step}/{total}", "level": "INFO", "source": "USER", "timestamp": _iso(at)}
            for step, at in step_times(job)
        ),
    ]


def _warnings(job: InpaintJob) -> Iterator[dict[str, str]]:
    """What was asked for and has no effect: nothing else of this wire's could say so."""
    if job.started_at is not None:
        for name in job.wire.get("ignored", ()):
            message = f"{name} has no effect on this service"
            yield {"message": message, "level": "WARN", "source": "USER", "timestamp": _iso(job.started_at)}


def step_times(job: InpaintJob) -> Iterator[tuple[int, float]]:
    """Every step done, with the time of its end: seen, or evenly between two that were."""
    if job.started_at is None:
        return
    marks = [*job.step_marks]
    if job.status is JobStatus.SUCCEEDED and job.finished_at is not None:
        marks.append((job.num_steps, job.finished_at))
    before, before_at = 0, job.started_at
    for step, at in marks:
        for each in range(before + 1, step + 1):
            yield each, before_at + (at - before_at) * (each - before) / (step - before)
        if step > before:
            before, before_at = step, at


def render_output(job: InpaintJob, base_url: str) -> dict[str, Any]:
    """The output of a job that succeeded; its link starts with `base_url`."""
    image = job.images[0]
    (link,) = picture_links(job, base_url, base64_text=False)
    return {
        "image": {
            "url": link,
            "content_type": PNG,
            "file_name": link.rpartition("/")[2],
            "file_size": image.size_bytes,
            "width": image.width,
            "height": image.height,
        },
        "seed": image.seed,
        # Only for who has asked for it: the output of this application does not have it otherwise.
        **({} if job.safety_checker is None else {"has_nsfw_concepts": [image.nsfw]}),
    }


def render_step(job: InpaintJob, step: int, preview: Preview | None = None) -> dict[str, Any]:
    """An event of the stream. Other than the output's, the picture is under `images`, as in the streams of fal's
    own applications: nobody takes it for the result."""
    event: dict[str, Any] = {"step": step, "num_steps": job.num_steps}
    if preview is not None:
        url = f"data:{JPEG};base64,{preview.jpeg_base64}"
        event["images"] = [
            {"url": url, "content_type": JPEG, "width": preview.width, "height": preview.height},
        ]
    return event


def render_webhook(job: InpaintJob) -> WebhookMessage:
    body: dict[str, Any] = {"request_id": job.job_id, "gateway_request_id": job.job_id}
    if job.status is JobStatus.SUCCEEDED:
        base_url = str(job.wire.get("base_url", ""))
        return WebhookMessage(body=body | {"status": "OK", "payload": render_output(job, base_url)})
    error = render_failure(job.failure)
    told = {"status": "ERROR", "error": f"Invalid status code: {int(error.status)}", "payload": dict(error.body)}
    return WebhookMessage(body=body | told)


def _iso(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
