"""fal's hosts by name and by proxy, and the document that describes the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import ValidationError

from api.settings import ApiSettings
from tests.fal_clients import APP, Fal, fal_input
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with

__all__ = ["front_end", "open_with"]

HOSTS = "queue=queue.fal.test,run=fal.test,rest=rest.fal.test,cdn=cdn.fal.test"
PROXY = "/api/fal/proxy"


@pytest.fixture
def fal(open_with: Callable[..., FrontEnd]) -> Fal:
    return Fal(open_with(fal_hosts=HOSTS))


# -- hosts ------------------------------------------------------------------------------------------


def test_each_host_leads_to_its_prefix(fal: Fal) -> None:
    with FakeWorker(fal.front_end):
        ran = fal.call("POST", "/fal-ai/inpaint", json=fal_input(), base_url="https://fal.test")
    assert ran.status_code == 200
    assert ran.get_json()["image"]["url"].startswith("https://fal.test/images/")
    token = fal.call("POST", "/storage/auth/token", json={}, base_url="https://rest.fal.test").get_json()
    assert token["base_url"] == "https://rest.fal.test/cdn"
    uploaded = fal.call("POST", "/files/upload", data=b"x", base_url="https://cdn.fal.test:8443").get_json()
    assert uploaded["access_url"].startswith("https://cdn.fal.test:8443/uploads/")


def test_the_queues_own_host_is_in_its_urls_and_they_lead_back(fal: Fal) -> None:
    base = "https://queue.fal.test"
    submitted = fal.call("POST", "/fal-ai/inpaint", json=fal_input(), base_url=base).get_json()
    assert submitted["status_url"] == f"{base}/fal-ai/inpaint/requests/{submitted['request_id']}/status"
    path = submitted["status_url"].removeprefix(base)
    assert fal.call("GET", path, base_url=base).get_json()["status"] == "IN_QUEUE"
    fal.finish(fal.claimed())
    link = fal.call("GET", submitted["response_url"].removeprefix(base), base_url=base).get_json()["image"]["url"]
    assert fal.client.get(link.removeprefix(base), base_url=base).status_code == 200


def test_prefixes_and_other_paths_work_under_every_host(fal: Fal) -> None:
    assert fal.call("POST", APP, json=fal_input(), base_url="https://queue.fal.test").status_code == 200
    assert fal.client.get("/health", base_url="https://fal.test").status_code == 200
    assert fal.client.get("/.well-known/jwks.json", base_url="https://rest.fal.test").status_code == 200
    assert fal.call("POST", "/fal-ai/inpaint", json=fal_input(), base_url="https://other.test").status_code == 404


@pytest.mark.parametrize("value", ["queue.example.com", "gold=example.com", "queue="])
def test_a_host_without_its_prefix_is_named_at_the_start(value: str) -> None:
    with pytest.raises(ValidationError, match="fal_hosts"):
        ApiSettings(fal_hosts=value)


# -- proxy ------------------------------------------------------------------------------------------


def proxied(fal: Fal, method: str, target: str, **options: Any) -> Any:
    return fal.call(method, PROXY, headers={"x-fal-target-url": target}, **options)


def test_the_proxy_leads_to_our_own_queue(fal: Fal) -> None:
    submitted = proxied(fal, "POST", "https://queue.fal.run/fal-ai/inpaint?fal_max_queue_length=5", json=fal_input())
    assert submitted.status_code == 200
    request_id = submitted.get_json()["request_id"]
    for base in ("https://queue.fal.run/", "http://localhost/queue/", "https://queue.fal.test/"):
        target = f"{base}fal-ai/inpaint/requests/{request_id}/status?logs=1"
        assert proxied(fal, "GET", target).get_json()["logs"] == []
    assert proxied(fal, "PUT", f"https://queue.fal.run/fal-ai/inpaint/requests/{request_id}/cancel").status_code == 202


def test_the_proxy_leads_to_the_other_hosts_too(fal: Fal) -> None:
    with FakeWorker(fal.front_end):
        assert proxied(fal, "POST", "https://fal.run/fal-ai/inpaint", json=fal_input()).get_json()["image"]
    for host in ("rest.fal.ai", "rest.alpha.fal.ai"):
        body = {"file_name": "a", "content_type": "image/png"}
        assert proxied(fal, "POST", f"https://{host}/storage/upload/initiate", json=body).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "",
        "nonsense",
        "https://example.com/fal-ai/inpaint",
        "https://queue.fal.run@example.com/fal-ai/inpaint",
        "http://169.254.169.254/latest",
        "http://localhost/api/v6/images/inpaint",
        "http://localhost/jobs/1",
        f"http://localhost{PROXY}",
        "file:///etc/passwd",
        "http://[",
    ],
)
def test_the_proxy_leads_nowhere_else(fal: Fal, target: str) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = proxied(fal, method, target, json={})
        assert answer.status_code == 400
        assert answer.get_json()["error_type"] == "bad_request"


def test_a_target_in_other_letters_is_an_unknown_application(fal: Fal) -> None:
    for target in ("https://queue.fal.run/fal-ai/%E2%9C%93", "https://queue.fal.run/f%FFl/inpaint"):
        assert proxied(fal, "POST", target, json=fal_input()).status_code == 404


def test_the_proxy_needs_a_key_like_any_other_call(fal: Fal) -> None:
    headers = {"x-fal-target-url": "https://queue.fal.run/fal-ai/inpaint"}
    assert fal.client.post(PROXY, json=fal_input(), headers=headers).status_code == 401


# -- the document -----------------------------------------------------------------------------------


def test_the_queue_is_described_where_the_clients_documentation_looks(fal: Fal) -> None:
    path = "/api/openapi/queue/openapi.json?endpoint_id=fal-ai/inpaint"
    document = fal.client.get(path).get_json()
    OpenAPIV31SpecValidator(document).validate()
    assert document["servers"] == [{"url": "http://localhost/queue"}]
    assert "/fal-ai/inpaint/requests/{request_id}/status" in document["paths"]
    schemas = document["components"]["schemas"]
    assert schemas["InpaintInput"]["required"] == ["model_name", "image_url", "mask_url"]
    for name in ("num_inference_steps", "guidance_scale"):
        assert "the model's own" in schemas["InpaintInput"]["properties"][name]["description"]
    assert "its own default" in document["info"]["description"]
    assert schemas["InpaintOutput"]["required"] == ["image", "seed"]


def test_an_endpoint_that_is_none_has_no_document(fal: Fal) -> None:
    assert fal.client.get("/api/openapi/queue/openapi.json?endpoint_id=fal-ai/flux").status_code == 404
