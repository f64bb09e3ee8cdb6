"""From a request to an accepted job, for the queue and for those who wait: bad input is accepted, too."""

from __future__ import annotations

import dataclasses
import hashlib

from flask import request

from api import submission
from api.callers import intake, raw_body
from api.dialects.fal.input import Circumstances, failed_from_start, parse
from api.dialects.fal.words import INTAKE_FAILURES, WIRE_FIELDS, row
from api.errors import AddressRefused, InvalidImage, LinkNotReady, LinkUnknown, QueueTooLong
from api.keys import ApiKey
from api.parts import parts
from storage.job import InpaintJob
from storage.job_store import Idempotency
from storage.outbound import OutboundRefused

RETRY_SECONDS = 30
MAX_WEBHOOK_CHARS = 8192


def accept(api_key: ApiKey, circumstances: Circumstances) -> InpaintJob:
    """The job of the current request, stored; over already where its input cannot be used.

    Raises Refused for a webhook that may not be called, for limits and for a reused Idempotency-Key.
    """
    all_parts = parts()
    submission.count_submit(
        all_parts.redis, api_key.key_id, per_minute=all_parts.settings.max_submits_per_minute, now=circumstances.now
    )
    if circumstances.webhook_url is not None:
        _check_webhook(circumstances.webhook_url)
    raw = raw_body()
    idempotency = _idempotency(raw)
    job = parse(raw, circumstances)
    if job.status.is_final:
        return submission.submit_settled(all_parts, job, idempotency=idempotency)
    try:
        return submission.submit(all_parts, intake(), job, idempotency=idempotency)
    except (AddressRefused, InvalidImage, LinkNotReady, LinkUnknown) as error:
        field = WIRE_FIELDS.get(error.field or "", str(error.field))
        fault = INTAKE_FAILURES[error.code]
        value = getattr(job, error.field or "", None)
        rows = [row(["body", field], fault.type, fault.message.format(field=field), value)]
        # Pictures that came inside the body belong to no record.
        over = failed_from_start(dataclasses.replace(job, init_image="", mask_image=""), rows, at=circumstances.now)
        return submission.submit_settled(all_parts, over, idempotency=idempotency)


def check_queue_length() -> None:
    """`fal_max_queue_length`: how long the queue may be for this request to join it. Raises QueueTooLong."""
    try:
        limit = int(request.args["fal_max_queue_length"])
    except (KeyError, ValueError):
        return
    if parts().jobs.waiting_count() > limit:
        raise QueueTooLong(retry_after_seconds=RETRY_SECONDS, limit=limit)


def _check_webhook(url: str) -> None:
    try:
        if len(url) > MAX_WEBHOOK_CHARS:
            raise AddressRefused(field="fal_webhook")
        parts().door.check(url)
    except OutboundRefused as error:
        raise AddressRefused(field="fal_webhook") from error


def _idempotency(raw: bytes) -> Idempotency | None:
    asked = {"query": sorted(request.args.items(multi=True)), "body": hashlib.sha256(raw).hexdigest()}
    return submission.read_idempotency(request.headers.get(submission.IDEMPOTENCY_HEADER), request.path, asked)
