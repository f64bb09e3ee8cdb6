"""The queue's OpenAPI document, where fal has it; the proxy's refusal; and the keys that sign webhooks."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.dialects.fal import signatures
from api.dialects.fal.answers import answer
from api.dialects.fal.gateway import PROXIED_METHODS, PROXY_PATH
from api.dialects.fal.input import InpaintInput
from api.dialects.fal.output import APP, FalError, InpaintOutput, QueueStatus
from api.dialects.fal.requests import base_of, check_app
from api.dialects.fal.words import NotAProxyTarget
from api.openapi import documented
from api.parts import parts

REF = "#/components/schemas/{model}"
DOCUMENT_PATH = "/api/openapi/queue/openapi.json"
MODELS: tuple[type[BaseModel], ...] = (InpaintInput, InpaintOutput, QueueStatus, FalError)
JWKS_SECONDS = 3600
SECURITY_SCHEME = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "Key YOUR_KEY, or Key KEY_ID:SECRET",
}
DESCRIPTION = (
    "Repaints the white part of a mask. Where `num_inference_steps` or `guidance_scale` is absent, the model named "
    "by `model_name` uses its own default, which its maker or the operator of this service has chosen for it: there "
    "is no number that holds for all of them. `strength`, `scheduler`, `loras`, `vae`, `clip_skip`, `embeddings`, "
    "`ip_adapter` and `enable_safety_checker` are extras. "
    "What is wrong with an input is said at the result, with status 422; a submit is refused only for its key, an "
    "unknown application, a full queue, or a `fal_webhook` that may not be called."
)


def add_to(blueprint: Blueprint) -> None:
    blueprint.add_url_rule(DOCUMENT_PATH, "openapi", document)
    blueprint.add_url_rule(PROXY_PATH, "proxy", proxy, methods=PROXIED_METHODS, strict_slashes=False)
    for name, rule in (("jwks", "/.well-known/jwks.json"), ("rest_jwks", "/rest/.well-known/jwks.json")):
        blueprint.add_url_rule(rule, name, jwks)


@documented("The queue's own OpenAPI document, by endpoint_id", is_open=True)
def document() -> ResponseReturnValue:
    check_app(*_endpoint(request.args.get("endpoint_id", APP)))
    return answer(build(base_of("queue")))


@documented("What x-fal-target-url names, of this API's own", error=FalError)
def proxy() -> ResponseReturnValue:
    """Reached only where the gateway has found no target among our routes."""
    raise NotAProxyTarget


@documented("The public keys that sign webhooks", is_open=True)
def jwks() -> ResponseReturnValue:
    keys = signatures.open_signing_keys(parts().redis, parts().settings.fal_webhook_key)
    headers = {"Cache-Control": f"public, max-age={JWKS_SECONDS}", "Access-Control-Allow-Origin": "*"}
    return answer(keys.jwks(now=parts().clock()), headers=headers)


def build(queue_url: str) -> dict[str, Any]:
    """The OpenAPI 3 document of the endpoint's queue."""
    _, definitions = models_json_schema([(model, "validation") for model in MODELS], ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Queue OpenAPI for {APP}", "version": "1.0.0", "description": DESCRIPTION},
        "servers": [{"url": queue_url}],
        "security": [{"apiKeyAuth": []}],
        "paths": _paths(),
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"apiKeyAuth": SECURITY_SCHEME},
        },
    }


def _paths() -> dict[str, Any]:
    request_path = f"/{APP}/requests/{{request_id}}"
    request_id = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    with_logs = {"name": "logs", "in": "query", "required": False, "schema": {"type": "boolean"}}
    failed = {"default": _response("The request is refused, or has failed", "FalError")}
    return {
        f"/{APP}": {
            "post": {
                "summary": "Submit a request",
                "parameters": _submit_parameters(),
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": REF.format(model="InpaintInput")}}},
                },
                "responses": {"200": _response("The request is in the queue", "QueueStatus"), **failed},
            }
        },
        f"{request_path}/status": {
            "get": {
                "summary": "Where the request stands",
                "parameters": [request_id, with_logs],
                "responses": {
                    "200": _response("It is over", "QueueStatus"),
                    "202": _response("It is not over", "QueueStatus"),
                    **failed,
                },
            }
        },
        request_path: {
            "get": {
                "summary": "The output",
                "parameters": [request_id],
                "responses": {"200": _response("The output", "InpaintOutput"), **failed},
            }
        },
        f"{request_path}/cancel": {
            "put": {
                "summary": "Cancel the request, queued or running",
                "parameters": [request_id],
                "responses": {"202": {"description": "It will end"}, **failed},
            }
        },
    }


def _submit_parameters() -> list[dict[str, Any]]:
    return [
        {
            "name": "fal_webhook",
            "in": "query",
            "required": False,
            "description": "Where the output is posted to.",
            "schema": {"type": "string", "format": "uri"},
        },
        {
            "name": "fal_max_queue_length",
            "in": "query",
            "required": False,
            "description": "Answer 429 where more requests wait already.",
            "schema": {"type": "integer"},
        },
    ]


def _response(description: str, model: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=model)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _endpoint(endpoint_id: str) -> tuple[str, str]:
    owner, _, alias = endpoint_id.strip("/").partition("/")
    return owner, alias
