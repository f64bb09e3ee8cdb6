"""The dialect of ModelsLab v6, realtime and community: its routes, its words, its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flask import Blueprint

from api.dialects import family, family_views
from api.dialects.family import Circumstances, Variant
from api.dialects.family_fields import CommunityBody, RealtimeBody
from api.errors import JobNotFound, Refused, WireError
from api.webhook_message import WebhookMessage
from storage.job import InpaintJob, JobStatus, SafetyAction

NAME = "modelslab"
PATH_PREFIXES = ("/api/v6/", "/api/v5/", "/api/v1/")

REALTIME = Variant(
    name="realtime",
    body=RealtimeBody,
    enhance_by_default=False,
    karras_by_default=False,
    safety_action=SafetyAction.BLACK,
    fetch_path="/api/v6/realtime/fetch/",
    meta_names=(
        *("prompt", "negative_prompt", "model_id", "scheduler", "width", "height", "W", "H", "n_samples"),
        *("steps", "guidance_scale", "strength", "seed", "use_karras_sigmas", "init_image", "mask_image"),
        *("base64", "temp", "instant_response", "enhance_prompt", "enhance_style", "safety_checker"),
        *("safety_checker_type", "watermark", "opacity", "padding_down", "padding_right", "scale_down"),
        *("pag_scale", "rescale", "webhook", "track_id", "id", "file_prefix", "outdir"),
    ),
)
COMMUNITY = Variant(
    name="community",
    body=CommunityBody,
    enhance_by_default=True,
    karras_by_default=True,
    safety_action=SafetyAction.TEXT,
    fetch_path="/api/v6/images/fetch/",
    meta_names=(
        *("prompt", "model_id", "scheduler", "safety_checker", "negative_prompt", "W", "H"),
        *("guidance_scale", "init_image", "mask_image", "strength", "use_karras_sigmas", "algorithm_type"),
        *("safety_checker_type", "instant_response", "vae", "steps", "n_samples", "ip_adapter_id"),
        *("ip_adapter_scale", "ip_adapter_image", "enhance_prompt", "lora", "lora_strength", "upscale", "seed"),
        *("outdir", "watermark", "temp", "clip_skip", "base64", "webhook", "track_id", "id", "file_prefix"),
        *("is_sdxl", "output"),
    ),
)
VARIANTS = (REALTIME, COMMUNITY)

# Every code, of refusals and of failures, in this dialect's words.
WORDS = {
    "malformed_body": "Request body must be a JSON object or form fields",
    "unknown_model": "Model not found: {name}",
    "address_refused": "{field} must be a public http or https URL",
    "invalid_image": "{field} must be a URL or a base64 encoded image",
    "link_not_ready": "{field} is a link to an image that is not finished",
    "link_unknown": "{field} is a link to an image that does not exist",
    "missing_api_key": "API key required",
    "invalid_api_key": "Invalid API key",
    "job_not_found": "Request not found",
    "not_found": "There is no such endpoint",
    "method_not_allowed": "This endpoint does not take this method",
    "already_over": "This request is finished already",
    "body_too_large": "Request body is too large. Maximum {limit} bytes allowed.",
    "idempotency_conflict": "This Idempotency-Key was used before with another request body",
    "queue_full": "Rate limit exceeded. Maximum {limit} queued requests allowed.",
    "too_many_requests": "Rate limit exceeded. Maximum {limit} requests per minute allowed.",
    "storage_unavailable": "Service temporarily unavailable. Please try again later.",
    "internal_error": "Internal server error. Please try again.",
}
FAILURE_WORDS = {
    "input_refused": "{field} must be a public http or https URL",
    "input_unreachable": "Unable to fetch image from provided URL: {field}",
    "input_too_large": "{field} has too many bytes",
    "not_an_image": "{field} is not a valid image",
    "image_too_large": "{field} has too many pixels",
    "model_unavailable": "Model could not be loaded; its operator finds out why with: inpaintd models check",
    "safety_checker_unavailable": "Failed, the image could not be checked: the safety checker could not be loaded",
    "addon_unavailable": "{field} cannot be used with this model; the worker's log says why",
    "nothing_to_continue": "{field} covers the whole picture: there is nothing to continue",
    "prompt_too_long": "{field} has too many words",
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
    "missing": "{field} is required",
    "not_text": "{field} must be a string",
    "not_an_integer": "{field} must be an integer",
    "not_a_number": "{field} must be a number",
    "not_finite": "{field} must be a finite number",
    "not_a_flag": "{field} must be yes or no",
    "out_of_range": "{field} must be between {low} and {high}",
    "too_small": "{field} must be at least {low}",
    "too_long": "{field} must not be longer than {high} characters",
    "not_a_choice": "{field} must be one of {choices}",
    "no_safety_checker": "{field} cannot be used because this service has no safety checker",
    "unknown_addon": "{field} not found: {value}",
    "other_family": "{field} {value} is not for the model {model}",
    "wrong_count": "{field} must be one number, or {expected} with commas between as in lora_model",
    "too_many": "{field} must not name more than {high}",
}

blueprint = Blueprint(NAME, __name__)


def parse(body: Mapping[str, Any], variant: Variant, circumstances: Circumstances) -> InpaintJob:
    return family.parse(body, variant, circumstances, dialect=NAME)


def render(job: InpaintJob, *, eta: float, webhook_status: str = "") -> dict[str, Any]:
    """The answer to a submit. `eta` in seconds counts while the job is not over."""
    body = _render(job, eta, failed_status="error", message=family.PROGRESS_MESSAGE)
    return body | {"webhook_status": webhook_status}


def render_fetch(job: InpaintJob, *, eta: float, webhook_status: str = "") -> dict[str, Any]:
    """The answer to a fetch."""
    body = _render(job, eta, failed_status="failed", message=family.AGAIN_MESSAGE)
    return body | {"webhook_status": webhook_status}


def _render(job: InpaintJob, eta: float, *, failed_status: str, message: str) -> dict[str, Any]:
    variant = family.variant_of(job, VARIANTS)
    if job.status is JobStatus.SUCCEEDED:
        proxied = {"proxy_links": family.links(job), "nsfw_content_detected": job.nsfw}
        return family.success_body(job, variant) | proxied
    if job.status.is_final:
        return family.failure_body(job, failed_status, family.failure_words(job.failure, FAILURE_WORDS))
    body = family.processing_body(job, variant, eta=eta, message=message)
    if variant is REALTIME:
        return body | {"eta": math.ceil(eta)}
    return body | {"tip_1": f"Fetch the image at {body['fetch_result']}"}


def render_error(error: Refused) -> WireError:
    message = family.refusal_words(error, WORDS, PROBLEM_WORDS)
    body: dict[str, Any] = {"status": "error", "message": message, "messege": message}
    if isinstance(error, JobNotFound):
        body |= {"status": "failed", "id": "", "output": [], "tip": ""}
    if error.retry_after_seconds is not None:
        body["retry_after"] = error.retry_after_seconds
    return WireError(error.status, body, error.headers)


def render_webhook(job: InpaintJob) -> WebhookMessage:
    message = family.failure_words(job.failure, FAILURE_WORDS)
    return WebhookMessage(body=family.webhook_body(job, family.variant_of(job, VARIANTS), message))


family_views.add_submit(blueprint, "/api/v6/realtime/inpaint", REALTIME, parse=parse, render=render)
family_views.add_submit(blueprint, "/api/v6/images/inpaint", COMMUNITY, parse=parse, render=render)
family_views.add_fetch(blueprint, "/api/v6/realtime/fetch", render=render_fetch)
family_views.add_fetch(blueprint, "/api/v6/images/fetch", render=render_fetch)
family_views.add_fetch(blueprint, "/api/v5/images/fetch", render=render_fetch)
family_views.add_model_list(blueprint, "/api/v6/images/model_list")
family_views.add_upload(blueprint, "/api/v6/image_editing/base64_to_url")
