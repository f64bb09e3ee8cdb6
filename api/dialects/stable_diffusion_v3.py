"""The dialect of the Stable Diffusion API v3 (and its v4 fetches): HTTP 200 for callers' errors, Laravel's words."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Blueprint

from api.dialects import family, family_views
from api.dialects.family import Circumstances, Variant
from api.dialects.family_fields import LegacyBody
from api.errors import (
    InvalidApiKey,
    InvalidFields,
    JobNotFound,
    MalformedBody,
    MissingApiKey,
    Problem,
    QueueTooLong,
    Refused,
    TooManyRequests,
    WireError,
)
from api.webhook_message import WebhookMessage
from storage.job import InpaintJob, JobStatus, SafetyAction

NAME = "stable_diffusion_v3"
PATH_PREFIXES = ("/api/v3/", "/api/v4/")

INPAINT = Variant(
    name="v3",
    body=LegacyBody,
    enhance_by_default=True,
    karras_by_default=False,
    safety_action=SafetyAction.BLACK,
    fetch_path="/api/v3/fetch/",
    meta_names=(
        *("H", "W", "file_prefix", "guidance_scale", "init_image", "mask_image", "n_samples"),
        *("negative_prompt", "outdir", "prompt", "safetychecker", "seed", "steps", "strength"),
        *("model_id", "scheduler", "use_karras_sigmas", "base64", "temp", "enhance_prompt"),
        *("instant_response", "webhook", "track_id"),
    ),
)

# These clients take any other status for a failure of the connection and do not read the body.
REAL_STATUSES = frozenset(
    {
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
HINTS = (
    "1. Send a POST request. 2. Its body must be valid JSON, or form fields. "
    "3. Send the header Content-Type: application/json with JSON. 4. Make sure that your API key is valid."
)
PROGRESS_MESSAGE = "Try to fetch request after given estimated time"

# Every code, of refusals and of failures, in this dialect's words.
WORDS = {
    "malformed_body": "Invalid API Request",
    "unknown_model": "Model id not found",
    "address_refused": "The {field} must be a public http or https URL.",
    "invalid_image": "The {field} must be a URL or a base64 encoded image.",
    "link_not_ready": "The {field} is a link to an image that is not finished.",
    "link_unknown": "The {field} is a link to an image that does not exist.",
    "missing_api_key": "Invalid Api Key",
    "invalid_api_key": "Invalid Api Key",
    "job_not_found": "Request not found",
    "not_found": "There is no such endpoint.",
    "method_not_allowed": "This endpoint does not take this method.",
    "already_over": "The request is finished already.",
    "body_too_large": "The request body is too large, {limit} bytes are allowed.",
    "idempotency_conflict": "The {field} was used before with another request body.",
    "queue_full": "Rate limit exceeded",
    "too_many_requests": "Rate limit exceeded",
    "storage_unavailable": "Service temporarily unavailable. Please try again later.",
    "internal_error": "Internal server error. Please try again.",
}
FAILURE_WORDS = {
    "input_refused": "The {field} must be a public http or https URL.",
    "input_unreachable": "Unable to fetch image from provided URL: {field}",
    "input_too_large": "The {field} has too many bytes.",
    "not_an_image": "The {field} is not a valid image.",
    "image_too_large": "The {field} has too many pixels.",
    "model_unavailable": "Model could not be loaded; its operator finds out why with: inpaintd models check",
    "safety_checker_unavailable": "Failed, the image could not be checked: the safety checker could not be loaded",
    "addon_unavailable": "The {field} cannot be used with this model; the worker's log says why",
    "nothing_to_continue": "The {field} covers the whole picture: there is nothing to continue.",
    "prompt_too_long": "The {field} has too many words.",
    "out_of_memory": "Not enough memory for this image, try a smaller one",
    "timed_out": "Failed, the image took too long",
    "start_timed_out": "Failed, nobody started on the image in time",
    "content_filtered": "Failed, the image was withheld by the content filter",
    "cancelled": "The request was cancelled",
    "worker_lost": "Failed, Try Again",
    "storage_unavailable": "Failed, Try Again",
    "internal_error": "Failed, Try Again",
}
PROBLEM_WORDS = {
    "missing": "The {field} field is required.",
    "not_text": "The {field} must be a string.",
    "not_an_integer": "The {field} must be an integer.",
    "not_a_number": "The {field} must be a number.",
    "not_finite": "The {field} must be a finite number.",
    "not_a_flag": "The {field} must be yes or no.",
    "out_of_range": "The {field} must be between {low} and {high}.",
    "too_small": "The {field} must be at least {low}.",
    "too_long": "The {field} may not be longer than {high} characters.",
    "not_a_choice": "The {field} must be one of {choices}.",
    "no_safety_checker": "The {field} cannot be used because this service has no safety checker.",
    "unknown_addon": "The selected {field} is invalid: {value} was not found.",
    "other_family": "The {field} {value} is not for the model {model}.",
    "wrong_count": "The {field} must be one number, or {expected} with commas between as in lora_model.",
    "too_many": "The {field} may not name more than {high}.",
}

blueprint = Blueprint(NAME, __name__)


def parse(body: Mapping[str, Any], variant: Variant, circumstances: Circumstances) -> InpaintJob:
    return family.parse(body, variant, circumstances, dialect=NAME)


def render(job: InpaintJob, *, eta: float, webhook_status: str = "") -> dict[str, Any]:
    """The answer to a submit. `eta` in seconds counts while the job is not over."""
    body = _render(job, eta, failed_status="error", message=PROGRESS_MESSAGE)
    return body | {"webhook_status": webhook_status}


def render_fetch(job: InpaintJob, *, eta: float, webhook_status: str = "") -> dict[str, Any]:
    """The answer to a fetch."""
    body = _render(job, eta, failed_status="failed", message=family.AGAIN_MESSAGE)
    return body | {"webhook_status": webhook_status}


def render_error(error: Refused) -> WireError:
    message = _message(error)
    body: dict[str, Any] = {"status": "error", "message": message, "messege": message}
    if isinstance(error, JobNotFound):
        body |= {"status": "failed", "id": "", "output": [], "tip": ""}
    if isinstance(error, MissingApiKey | InvalidApiKey | MalformedBody):
        body["tip"] = HINTS
    if isinstance(error, QueueTooLong | TooManyRequests):
        seconds = error.retry_after_seconds
        body |= {"tips": f"Please wait for {seconds} seconds and try again", "retry_after": seconds}
    is_real = error.status in REAL_STATUSES or error.code == "not_found"
    return WireError(error.status if is_real else HTTPStatus.OK, body, error.headers)


def render_webhook(job: InpaintJob) -> WebhookMessage:
    message = family.failure_words(job.failure, FAILURE_WORDS)
    body = family.webhook_body(job, INPAINT, message)
    return WebhookMessage(body={name: value for name, value in body.items() if name != "proxy_links"})


def _render(job: InpaintJob, eta: float, *, failed_status: str, message: str) -> dict[str, Any]:
    if job.status is JobStatus.SUCCEEDED:
        # This API's own answer does not have it; who has asked for the check is told all the same.
        checked = {} if job.safety_checker is None else {"nsfw_content_detected": job.nsfw}
        return family.success_body(job, INPAINT) | checked
    if job.status.is_final:
        return family.failure_body(job, failed_status, family.failure_words(job.failure, FAILURE_WORDS))
    return family.processing_body(job, INPAINT, eta=eta, message=message)


def _message(error: Refused) -> str | dict[str, list[str]]:
    """Text, or what is wrong with each field where fields are at fault."""
    if isinstance(error, InvalidFields):
        texts: dict[str, list[str]] = {}
        for problem in error.problems:
            texts.setdefault(problem.field, []).append(_problem_text(problem))
        return texts
    text = family.refusal_words(error, WORDS, PROBLEM_WORDS)
    is_about_a_field = error.field is not None and error.code not in ("unknown_model", "idempotency_conflict")
    return {error.field: [text]} if is_about_a_field and error.field else text


def _problem_text(problem: Problem) -> str:
    return family.problem_text(problem, PROBLEM_WORDS)


family_views.add_submit(blueprint, "/api/v3/inpaint", INPAINT, parse=parse, render=render)
for _path in ("/api/v3/fetch", "/api/v3/dreambooth/fetch", "/api/v4/dreambooth/fetch"):
    family_views.add_fetch(blueprint, _path, render=render_fetch)
for _path in ("/api/v3/model_list", "/api/v3/dreambooth/model_list", "/api/v4/dreambooth/model_list"):
    family_views.add_model_list(blueprint, _path)
family_views.add_system_load(blueprint, "/api/v3/system_load")
