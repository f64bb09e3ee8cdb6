"""Stability's gRPC and gRPC-Web: a dialect whose answers are streams. This is its face to the front end."""

from __future__ import annotations

from api.dialects.stability.errors import status_of_failure, status_of_refusal
from api.dialects.stability.grpc_web import CORS, blueprint, quoted
from api.dialects.stability.parse import NAME
from api.errors import Refused, WireError
from api.webhook_message import WebhookMessage
from storage.job import InpaintJob

__all__ = ["NAME", "PATH_PREFIXES", "blueprint", "render_error", "render_webhook"]

PATH_PREFIXES = ("/gooseai.",)


def render_error(error: Refused) -> WireError:
    """For what goes wrong outside a call, such as another verb than POST; calls say it in their trailers."""
    status = status_of_refusal(error)
    headers = {"grpc-status": str(status.code.value[0]), "grpc-message": quoted(status.message)}
    return WireError(
        error.status, {"code": status.code.name, "message": status.message}, {**error.headers, **headers, **CORS}
    )


def render_webhook(job: InpaintJob) -> WebhookMessage:
    """No request of this wire names a webhook; whoever is called all the same learns how the job ended."""
    message = {"status": job.status.value, "request_id": job.wire.get("request_id", "")}
    if job.failure is not None:
        message["message"] = status_of_failure(job.failure).message
    return WebhookMessage(body=message)
