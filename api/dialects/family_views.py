"""The endpoints that both ModelsLab dialects have, each in the words that the dialect gives."""

from __future__ import annotations

import math
import secrets
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue

from api import submission
from api.callers import admitted, find_job, intake, own_base_url
from api.dialects import family_answers as answers
from api.dialects.family import Circumstances, Variant
from api.dialects.family_fields import FetchBody, KeyBody, UploadBody
from api.errors import InvalidFields, Problem
from api.eta import eta_seconds, queue_seconds
from api.fields import require_fields
from api.inputs import read_inline
from api.keys import ApiKey
from api.openapi import documented
from api.parts import parts
from storage.errors import StorageUnavailable
from storage.job import MAX_SEED, InpaintJob
from storage.model_catalog import ModelEntry

UPLOAD_ID_BITS = 31


class Parse(Protocol):
    def __call__(self, body: Mapping[str, Any], variant: Variant, circumstances: Circumstances, /) -> InpaintJob: ...


class Render(Protocol):
    def __call__(self, job: InpaintJob, /, *, eta: float, webhook_status: str) -> dict[str, Any]: ...


def add_submit(blueprint: Blueprint, path: str, variant: Variant, *, parse: Parse, render: Render) -> None:
    @documented(
        "Repaint the white part of a mask",
        body=variant.body,
        answers=(answers.SuccessAnswer, answers.ProcessingAnswer, answers.FailureAnswer),
        error=answers.ErrorAnswer,
    )
    def submit() -> ResponseReturnValue:
        all_parts = parts()
        body, api_key = admitted()
        _count(api_key)
        idempotency = submission.read_idempotency(request.headers.get(submission.IDEMPOTENCY_HEADER), path, body)
        job = parse(body, variant, _circumstances(api_key))
        job = submission.submit(all_parts, intake(), job, idempotency=idempotency)
        job = submission.wait_for(all_parts, job, instantly=bool(job.wire.get("instant_response")))
        return _answer(job, render)

    _add(blueprint, path, submit, methods=["POST"])


def add_fetch(blueprint: Blueprint, path: str, *, render: Render) -> None:
    """`path` itself takes `request_id` in the body; below it, the id is in the path."""

    @documented(
        "Fetch the result of a job",
        body=FetchBody,
        answers=(answers.SuccessAnswer, answers.ProcessingAnswer, answers.FailureAnswer),
        error=answers.ErrorAnswer,
    )
    def fetch(job_name: str | None = None) -> ResponseReturnValue:
        body, api_key = admitted()
        name = job_name if job_name is not None else require_fields(FetchBody, body).request_id
        if name is None:
            raise InvalidFields([Problem("request_id", "missing")])
        return _answer(find_job(name, api_key), render)

    _add(blueprint, path, fetch, methods=["POST", "GET"])
    _add(blueprint, f"{path}/<job_name>", fetch, methods=["POST", "GET"])


def add_model_list(blueprint: Blueprint, path: str) -> None:
    @documented(
        "List the models", body=KeyBody, answers=(answers.ModelAnswer,), error=answers.ErrorAnswer, is_list=True
    )
    def model_list() -> ResponseReturnValue:
        admitted()
        return jsonify([_model(entry) for entry in parts().catalog.entries])

    _add(blueprint, path, model_list, methods=["POST", "GET"])


def add_system_load(blueprint: Blueprint, path: str) -> None:
    @documented("How busy the service is", body=KeyBody, answers=(answers.LoadAnswer,), error=answers.ErrorAnswer)
    def system_load() -> ResponseReturnValue:
        admitted()
        all_parts = parts()
        return jsonify(
            queue_num=all_parts.jobs.waiting_count(),
            queue_time=math.ceil(queue_seconds(all_parts.jobs, all_parts.catalog)),
            status="ok",
        )

    _add(blueprint, path, system_load, methods=["POST", "GET"])


def add_upload(blueprint: Blueprint, path: str) -> None:
    @documented(
        "Turn a base64 picture into a link", body=UploadBody, answers=(answers.UploadAnswer,), error=answers.ErrorAnswer
    )
    def upload() -> ResponseReturnValue:
        body, api_key = admitted()
        _count(api_key)
        text = require_fields(UploadBody, body).base64_string
        stored = intake().store(read_inline("base64_string", text), [])
        # The vendor's answer carries a number here; nothing can be fetched by it.
        number = uuid.uuid4().int >> (128 - UPLOAD_ID_BITS)
        return jsonify(status="success", id=number, output=[stored.shown])

    _add(blueprint, path, upload, methods=["POST"])


def _add(blueprint: Blueprint, path: str, view: Any, *, methods: list[str]) -> None:
    endpoint = f"{'_'.join(methods)}{path}".replace("/", "_").replace(".", "_")
    blueprint.add_url_rule(path, endpoint, view, methods=methods, strict_slashes=False)


def _count(api_key: ApiKey) -> None:
    all_parts = parts()
    submission.count_submit(
        all_parts.redis,
        api_key.key_id,
        per_minute=all_parts.settings.max_submits_per_minute,
        now=all_parts.clock(),
    )


def _circumstances(api_key: ApiKey) -> Circumstances:
    all_parts = parts()
    return Circumstances(
        key_id=api_key.key_id,
        base_url=own_base_url(),
        catalog=all_parts.catalog,
        max_steps=all_parts.settings.max_steps,
        max_prompt_chars=all_parts.settings.max_prompt_chars,
        now=all_parts.clock(),
        ignores_missing_checker=all_parts.settings.without_safety_checker == "ignore",
        random_seed=lambda: secrets.randbelow(MAX_SEED + 1),
    )


def _answer(job: InpaintJob, render: Render) -> Response:
    all_parts = parts()
    eta = 0.0 if job.status.is_final else round(eta_seconds(job, all_parts.jobs, all_parts.catalog), 1)
    try:
        webhook_status = all_parts.deliveries.webhook_status(job)
    except StorageUnavailable:
        webhook_status = ""
    return jsonify(render(job, eta=eta, webhook_status=webhook_status))


def _model(entry: ModelEntry) -> dict[str, Any]:
    return {
        "model_id": entry.id,
        "status": "model_ready",
        "created_at": None,
        "instance_prompt": None,
        "model_name": entry.name,
        "description": entry.description,
        "screenshots": "",
        "model_category": "inpainting",
        "model_format": "safetensors" if entry.has_weights else "none",
        "is_nsfw": False,
        "feature": "inpainting",
        "aliases": list(entry.aliases),
    }
