"""What the application is made of, as far as no server is needed to see it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import ValidationError
from werkzeug.test import EnvironBuilder

from api.addresses import ForwardedByTrusted
from api.app import create_app
from api.auth import Doorkeeper, may_see, presented_key
from api.dialects.family_fields import FIELDS
from api.errors import InvalidApiKey, MissingApiKey
from api.keys import ApiKey, KeyScope
from api.openapi import build_document
from api.settings import ApiSettings
from tests.front_end import storage_settings
from tests.golden_pairs import golden_files
from tests.jobs import a_job

FAMILY_BODIES = ("RealtimeBody", "CommunityBody", "LegacyBody")
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return create_app(ApiSettings(), storage_settings(NOWHERE, tmp_path))


@pytest.fixture
def document(app: Flask) -> dict[str, Any]:
    return build_document(app, "https://pictures.example")


# -- OpenAPI --------------------------------------------------------------------------------------


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_path_of_the_dialects_is_documented(app: Flask, document: dict[str, Any]) -> None:
    paths = {rule.rule.replace("<job_name>", "{job_name}") for rule in app.url_map.iter_rules()}
    assert {path for path in paths if path.startswith("/api/")} <= set(document["paths"])


def validator(document: dict[str, Any], model: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{model}", **document})


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_bodies_and_answers_of_the_golden_files_fit_the_document(path: Path, document: dict[str, Any]) -> None:
    pair = json.loads(path.read_text())
    model = {"REALTIME": "RealtimeBody", "COMMUNITY": "CommunityBody", "INPAINT": "LegacyBody"}[pair["variant"]]
    validator(document, model).validate(pair["body"])
    validator(document, "SuccessAnswer").validate(pair["answers"]["success"])
    validator(document, "ProcessingAnswer").validate(pair["answers"]["processing"])
    validator(document, "FailureAnswer").validate(pair["answers"]["error"])


def test_a_body_out_of_range_does_not_fit_the_document(document: dict[str, Any]) -> None:
    body = {"prompt": "p", "init_image": "i", "mask_image": "m", "width": 2000}
    with pytest.raises(jsonschema.ValidationError):
        validator(document, "RealtimeBody").validate(body)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        *((model, {"model_id": "remove", "init_image": "i", "mask_image": "m"}) for model in FAMILY_BODIES),
        ("InpaintInput", {"model_name": "remove", "image_url": "i", "mask_url": "m"}),
    ],
)
def test_the_document_asks_for_no_prompt_since_not_every_model_needs_one(
    document: dict[str, Any], model: str, fields: dict[str, str]
) -> None:
    for prompt in ({}, {"prompt": None}, {"prompt": ""}, {"prompt": "a cat"}):
        validator(document, model).validate(fields | prompt)
    described = document["components"]["schemas"][model]
    assert "prompt" not in described["required"]
    assert "Required, but for a model without weights" in described["properties"]["prompt"]["description"]
    assert set(fields) - {"model_id"} <= set(described["required"])
    with pytest.raises(jsonschema.ValidationError):
        validator(document, model).validate(fields | {"prompt": 5})


def test_the_docs_page_shows_every_field_and_needs_nobody_else(app: Flask) -> None:
    answer = app.test_client().get("/docs")
    page = answer.get_data(as_text=True)
    assert answer.mimetype == "text/html"
    for each in FIELDS:
        assert f'<code>{each.name}</code></td><td class="{each.fate}">' in page
    assert "curl http://localhost/api/v6/images/inpaint" in page
    assert "<code>doodle</code> is the built-in demo model" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert app.test_client().get("/").headers["Location"] == "/docs"


# -- paths that are nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v6/nothing", "/api/v3/nothing", "/nothing", "/images/nothing.png", "/api/v6"])
def test_an_unknown_path_is_404_in_json(app: Flask, path: str) -> None:
    answer = app.test_client().get(path)
    assert answer.status_code == 404
    assert answer.is_json


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v6/realtime/inpaint"), ("PUT", "/api/v3/inpaint"), ("DELETE", "/health")]
)
def test_a_wrong_method_is_405_in_json(app: Flask, method: str, path: str) -> None:
    answer = app.test_client().open(path, method=method)
    assert answer.status_code == 405
    assert answer.is_json


def test_alive_is_alive_without_redis(app: Flask) -> None:
    assert app.test_client().get("/health").get_json() == {"status": "ok"}


# -- settings ---------------------------------------------------------------------------------------


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_URL", "https://pictures.example/inpaint/")
    monkeypatch.setenv("OWN_HOSTS", "Old.example, cdn.example:9000")
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8,::1/128")
    monkeypatch.setenv("WAIT_SECONDS", "2.5")
    settings = ApiSettings()
    assert settings.public_url == "https://pictures.example/inpaint"
    assert settings.own_hosts == ("old.example", "cdn.example:9000")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.wait_seconds == 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", "pictures.example"),
        ("PUBLIC_URL", "ftp://pictures.example"),
        ("TRUSTED_PROXIES", "everyone"),
        ("WAIT_SECONDS", "-1"),
        ("MAX_BODY_BYTES", "0"),
    ],
)
def test_a_bad_setting_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        ApiSettings()


# -- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "key"),
    [
        ({"key": " k1 "}, {"Authorization": "Bearer k2", "key": "k3"}, "k1"),
        ({"key": ""}, {"Authorization": "Bearer k2", "key": "k3"}, "k2"),
        ({"key": None}, {"Authorization": "bearer  k2 "}, "k2"),
        ({}, {"Authorization": "Basic k2", "key": "k3"}, "k3"),
        ({"key": 5}, {}, "5"),
        ({}, {"Authorization": "Bearer ", "key": " "}, None),
        ({}, {}, None),
    ],
)
def test_a_key_is_found_in_the_body_or_the_headers(
    body: dict[str, Any], headers: dict[str, str], key: str | None
) -> None:
    assert presented_key(body, headers) == key


class Keys:
    """Counts what is asked of it."""

    def __init__(self, api_key: ApiKey) -> None:
        self.api_key: ApiKey | None = api_key
        self.asked = 0

    def authenticate(self, plaintext: str) -> ApiKey | None:
        self.asked += 1
        return self.api_key if plaintext == "good" else None


def an_api_key(key_id: str = "key-a", scope: KeyScope = KeyScope.USER) -> ApiKey:
    return ApiKey(key_id=key_id, name="n", scope=scope, webhook_secret="whsec_", created_at=0.0)


def test_a_good_key_is_not_asked_for_again_for_a_few_seconds() -> None:
    now = 0.0
    keys = Keys(an_api_key())
    doorkeeper = Doorkeeper(keys, cache_seconds=3, clock=lambda: now)  # type: ignore[arg-type]
    assert doorkeeper.admit("good") == doorkeeper.admit("good")
    assert keys.asked == 1
    keys.api_key = None
    now = 3.5
    with pytest.raises(InvalidApiKey):
        doorkeeper.admit("good")


def test_a_bad_key_is_asked_for_each_time_and_a_missing_one_never() -> None:
    keys = Keys(an_api_key())
    doorkeeper = Doorkeeper(keys, cache_seconds=3)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(InvalidApiKey):
            doorkeeper.admit("bad")
    with pytest.raises(MissingApiKey):
        doorkeeper.admit(None)
    with pytest.raises(InvalidApiKey):
        doorkeeper.admit("x" * 10_000)
    assert keys.asked == 2


def test_a_key_sees_its_own_jobs_and_an_admin_all() -> None:
    assert may_see(an_api_key("key-a"), a_job(key_id="key-a"))
    assert not may_see(an_api_key("key-b"), a_job(key_id="key-a"))
    assert may_see(an_api_key("key-b", KeyScope.ADMIN), a_job(key_id="key-a"))


# -- proxies ----------------------------------------------------------------------------------------


def seen_by_app(remote: str) -> str:
    seen = []

    def inner(environ: Any, start_response: Any) -> Iterable[bytes]:
        seen.append(f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{environ['SCRIPT_NAME']}")
        start_response("200 OK", [])
        return [b""]

    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "public.example", "X-Forwarded-Prefix": "/inpaint"}
    builder = EnvironBuilder(base_url="http://inside:8080/", headers=headers, environ_base={"REMOTE_ADDR": remote})
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    ForwardedByTrusted(inner, networks)(builder.get_environ(), lambda *_: None)  # type: ignore[arg-type,return-value]
    return seen[0]


@pytest.mark.parametrize("remote", ["10.1.2.3", "fd00::1", "::ffff:10.1.2.3"])
def test_forwarded_headers_of_a_trusted_proxy_are_believed(remote: str) -> None:
    assert seen_by_app(remote) == "https://public.example/inpaint"


@pytest.mark.parametrize("remote", ["11.1.2.3", "fe80::1", "", "unix:"])
def test_forwarded_headers_of_anybody_else_are_not_seen(remote: str) -> None:
    assert seen_by_app(remote) == "http://inside:8080"
