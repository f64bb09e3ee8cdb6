"""OpenAPI 3.1, made from the models that validate, and the docs page made from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, jsonify, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.callers import own_base_url

REF_TEMPLATE = "#/components/schemas/{model}"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
DOCUMENTED = ("GET", "POST", "PUT")
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "key"},
}
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

blueprint = Blueprint("openapi", __name__)
View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Documentation:
    """What OpenAPI says of a view beyond its path and its methods."""

    summary: str
    body: type[BaseModel] | None
    answers: tuple[type[BaseModel], ...]
    error: type[BaseModel] | None
    is_list: bool
    is_open: bool

    @property
    def models(self) -> Iterator[type[BaseModel]]:
        yield from (model for model in (self.body, *self.answers, self.error) if model is not None)


def documented(
    summary: str,
    *,
    body: type[BaseModel] | None = None,
    answers: Sequence[type[BaseModel]] = (),
    error: type[BaseModel] | None = None,
    is_list: bool = False,
    is_open: bool = False,
) -> Callable[[View], View]:
    """Marks a view to be described. `is_list`: it answers a bare array; `is_open`: it takes no key."""

    def mark(view: View) -> View:
        view.documentation = Documentation(  # type: ignore[attr-defined]  # a function takes attributes
            summary=summary, body=body, answers=tuple(answers), error=error, is_list=is_list, is_open=is_open
        )
        return view

    return mark


def build_document(app: Flask, base_url: str) -> dict[str, Any]:
    """The OpenAPI document of every documented view of the application."""
    marked = list(_marked_rules(app))
    models = {model: None for _, _, docs in marked for model in docs.models}
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF_TEMPLATE)
    schemas = definitions.get("$defs", {})
    for schema in schemas.values():
        _allow_null_where_optional(schema)
    paths: dict[str, Any] = {}
    for path, method, docs in marked:
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, docs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "inpaintd",
            "version": "1",
            "description": "Self-hosted inpainting in the words of the ModelsLab v6, Stable Diffusion v3 and fal APIs.",
        },
        "servers": [{"url": base_url}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": SECURITY_SCHEMES},
    }


def _marked_rules(app: Flask) -> Iterator[tuple[str, str, Documentation]]:
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        docs = getattr(app.view_functions[rule.endpoint], "documentation", None)
        if docs is not None:
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
            yield from ((path, method, docs) for method in DOCUMENTED if method in (rule.methods or ()))


def _operation(path: str, method: str, docs: Documentation) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": docs.summary, "responses": _responses(docs)}
    names = re.findall(r"{([^{}]+)}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if docs.body is not None and method != "GET":
        schema = {"$ref": REF_TEMPLATE.format(model=docs.body.__name__)}
        operation["requestBody"] = {"content": {JSON: {"schema": schema}, FORM: {"schema": schema}}}
    if not docs.is_open:
        # The key may also be in the body, which OpenAPI has no word for.
        operation["security"] = [{"bearer": []}, {"header": []}, {}]
    return operation


def _responses(docs: Documentation) -> dict[str, Any]:
    refs = [{"$ref": REF_TEMPLATE.format(model=model.__name__)} for model in docs.answers]
    success: dict[str, Any] = {"description": "Answered"}
    if refs:
        schema: dict[str, Any] = refs[0] if len(refs) == 1 else {"oneOf": refs}
        success["content"] = {JSON: {"schema": {"type": "array", "items": schema} if docs.is_list else schema}}
    responses = {"200": success}
    if docs.error is not None:
        error = {"schema": {"$ref": REF_TEMPLATE.format(model=docs.error.__name__)}}
        responses["default"] = {"description": "Refused", "content": {JSON: error}}
    return responses


def _allow_null_where_optional(schema: dict[str, Any]) -> None:
    """Clients send null for what they leave open."""
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        if name not in required and "default" in described and not described.keys().isdisjoint(("anyOf", "type")):
            kinds = described.pop("anyOf", None) or [{"type": described.pop("type")}]
            described["anyOf"] = [*(kind for kind in kinds if kind != {"type": "null"}), {"type": "null"}]


@blueprint.get("/openapi.json")
def openapi_json() -> ResponseReturnValue:
    return jsonify(build_document(current_app, own_base_url()))


@blueprint.get("/docs")
def docs_page() -> ResponseReturnValue:
    from api.dialects.family_fields import FIELDS  # noqa: PLC0415 - the dialects mark their views with this module

    page = render_template(
        "docs.html",
        base=own_base_url(),
        fields=FIELDS,
        document=build_document(current_app, own_base_url()),
    )
    response = Response(page, mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


@blueprint.get("/")
def front_page() -> ResponseReturnValue:
    return redirect(url_for("openapi.docs_page"))
