"""`/jobs/{id}/deliveries`: what became of a job's webhook, for those who may see the job; and once more, please."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal

import structlog
from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field

from api.callers import admitted, find_job
from api.delivery_log import Outcome, Try
from api.errors import AlreadyOver, JobNotFound
from api.jobs import OwnErrorAnswer
from api.openapi import documented
from api.parts import parts
from storage.job import InpaintJob

ALONE_SECONDS = 10.0  # for two writes

logger = structlog.get_logger(__name__)


class NothingToDeliver(JobNotFound):
    """This job has no webhook, or it is not over yet."""

    code = "nothing_to_deliver"
    status = HTTPStatus.CONFLICT


class DeliveryUnderWay(AlreadyOver):
    """This job's webhook is being delivered at this moment."""

    code = "delivery_under_way"


class DeliveryTry(BaseModel):
    """One POST to the webhook. Moments in ISO 8601, UTC."""

    number: int
    at: str
    duration_seconds: float
    outcome: Outcome
    status: int | None = Field(description="The HTTP status of the receiver; none where no answer came.")
    redirect_host: str | None = Field(description="Where a redirect pointed. It is not followed.")
    next_at: str | None = Field(description="When the next try is due; none where there will be none.")


class WebhookAnswer(BaseModel):
    id: str
    number: int
    webhook_status: Literal["", "queued", "delivered", "retrying", "failed"]


class DeliveriesAnswer(WebhookAnswer):
    deliveries: list[DeliveryTry] = Field(description="The latest tries, oldest first.")


def deliveries_blueprint() -> Blueprint:
    """The two routes. What they refuse they raise; the application says it as it does for `/jobs/{id}`."""
    blueprint = Blueprint("deliveries", __name__)
    blueprint.get("/jobs/<name>/deliveries")(list_deliveries)
    blueprint.post("/jobs/<name>/deliveries/redeliver")(redeliver)
    return blueprint


@documented("What became of a job's webhook", answers=[DeliveriesAnswer], error=OwnErrorAnswer)
def list_deliveries(name: str) -> ResponseReturnValue:
    _, api_key = admitted()
    job = find_job(name, api_key)
    tries = [_shown(attempt) for attempt in parts().deliveries.tries(job.job_id)]
    answer = DeliveriesAnswer(**_where_it_stands(job).model_dump(), deliveries=tries)
    return jsonify(answer.model_dump(mode="json"))


@documented("Send a job's webhook again", answers=[WebhookAnswer], error=OwnErrorAnswer)
def redeliver(name: str) -> ResponseReturnValue:
    """202: it is queued again, whatever became of it so far, under the same id and with its whole schedule."""
    _, api_key = admitted()
    job = find_job(name, api_key)
    if job.webhook_url is None or not job.status.is_final:
        raise NothingToDeliver
    with parts().deliveries.alone(job.job_id, at_most_seconds=ALONE_SECONDS) as is_alone:
        if not is_alone:
            raise DeliveryUnderWay
        parts().deliveries.restart(job.job_id)
        parts().jobs.set_webhook_due(job.job_id, parts().jobs.now())
    logger.info("webhook queued again", **job.log_context())
    return jsonify(_where_it_stands(job).model_dump()), HTTPStatus.ACCEPTED


def _where_it_stands(job: InpaintJob) -> WebhookAnswer:
    status = parts().deliveries.webhook_status(job)
    return WebhookAnswer.model_validate({"id": job.job_id, "number": job.number, "webhook_status": status})


def _shown(attempt: Try) -> DeliveryTry:
    return DeliveryTry(
        number=attempt.number,
        at=_iso(attempt.at),
        duration_seconds=attempt.duration_seconds,
        outcome=attempt.outcome,
        status=attempt.status,
        redirect_host=attempt.redirect_host,
        next_at=None if attempt.next_at is None else _iso(attempt.next_at),
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds")
