"""Uploads as fal's clients make them, step by step: where the bytes lie, for how long, and what is refused."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fal_clients import Fal
from tests.front_end import FrontEnd, front_end, open_with, png

__all__ = ["front_end", "open_with"]

HOUR = 3600


@pytest.fixture
def fal(front_end: FrontEnd) -> Fal:
    return Fal(front_end)


def path_of(url: str) -> str:
    return urlsplit(url).path


def kept_for(fal: Fal, url: str) -> float:
    score = fal.front_end.parts.redis.zscore("inpaintd:expiry:inputs", f"inputs/{path_of(url).rpartition('/')[2]}")
    assert score is not None
    return float(score) - time.time()  # type: ignore[arg-type]  # redis-py's types know of asynchronous clients


def cdn_token(fal: Fal) -> dict[str, Any]:
    answer = fal.call("POST", "/rest/storage/auth/token?storage_type=fal-cdn-v3", json={})
    assert answer.status_code == 200
    token: dict[str, Any] = answer.get_json()
    return token


def initiated(fal: Fal, way: str = "initiate", **options: Any) -> dict[str, str]:
    body = {"file_name": "t.png", "content_type": "image/png"}
    answer = fal.call("POST", f"/rest/storage/upload/{way}?storage_type=gcs", json=body, **options)
    assert answer.status_code == 200
    places: dict[str, str] = answer.get_json()
    return places


def test_the_cdn_takes_a_file_for_its_token(fal: Fal) -> None:
    token = cdn_token(fal)
    assert token["base_url"] == "http://localhost/cdn"
    assert token["token_type"] == "Bearer"
    headers = {"Authorization": f"Bearer {token['token']}", "X-Fal-File-Name": "t.png", "Content-Type": "image/png"}
    answer = fal.client.post("/cdn/files/upload", data=png(), headers=headers)
    got = fal.client.get(path_of(answer.get_json()["access_url"]))
    assert (got.data, got.content_type) == (png(), "image/png")
    assert fal.call("POST", "/cdn/files/upload", data=png()).status_code == 200


@pytest.mark.parametrize("path", ["/cdn/files/upload", "/cdn/files/upload/multipart", "/rest/storage/auth/token"])
def test_strangers_may_not_upload(fal: Fal, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        answer = fal.client.post(path, data=b"{}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Key whatever"}])
def test_a_file_is_put_to_its_own_address_by_whoever_knows_it(fal: Fal, headers: dict[str, str]) -> None:
    places = initiated(fal)
    assert fal.client.get(path_of(places["file_url"])).status_code == 404
    answer = fal.client.put(path_of(places["upload_url"]), data=png(), headers=headers, content_type="image/png")
    assert answer.status_code == 200
    assert fal.client.get(path_of(places["file_url"])).data == png()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_are_put_together_in_the_order_of_their_numbers(fal: Fal, order: tuple[int, ...]) -> None:
    places = initiated(fal, "initiate-multipart")
    path = path_of(places["upload_url"])
    told = []
    for number in order:
        data = str(number).encode() * 5
        answer = fal.client.put(f"{path}/{number}?x=y", data=data)
        assert answer.headers["ETag"] == answer.get_json()["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        told.append(answer.get_json())
    assert fal.client.post(f"{path}/complete", json={"parts": told}).status_code == 200
    assert fal.client.get(path_of(places["file_url"])).data == b"111112222233333"
    assert fal.front_end.parts.redis.zcard("inpaintd:expiry:inputs") == 1
    assert fal.client.put(f"{path}/4", data=b"late").status_code == 404


def test_the_cdns_parts_go_below_the_files_own_address(fal: Fal) -> None:
    token = cdn_token(fal)
    headers = {"Authorization": f"Bearer {token['token']}"}
    begun = fal.client.post("/cdn/files/upload/multipart", headers=headers).get_json()
    path = f"{path_of(begun['access_url'])}/multipart/{begun['uploadId']}"
    for number in (1, 2):
        part = fal.client.put(f"{path}/{number}", data=str(number).encode(), headers=headers)
        assert part.headers["ETag"]
        assert part.headers["x-fal-request-id"]
    body = {"parts": [{"partNumber": 1, "etag": '"a"'}, {"partNumber": 2, "etag": '"b"'}]}
    assert fal.client.post(f"{path}/complete", json=body, headers=headers).status_code == 200
    assert fal.client.get(path_of(begun["access_url"])).data == b"12"


@pytest.mark.parametrize("parts", [[{"partNumber": 2}], [{"partNumber": "x"}], [{}], 5])
def test_parts_that_are_not_there_cannot_be_put_together(fal: Fal, parts: Any) -> None:
    path = path_of(initiated(fal, "initiate-multipart")["upload_url"])
    fal.client.put(f"{path}/1", data=b"1")
    assert fal.client.post(f"{path}/complete", json={"parts": parts}).status_code == 422


def test_a_file_may_be_larger_than_a_body_and_not_larger_than_the_limit(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(max_body_bytes=2000, max_upload_bytes=5000))
    assert fal.call("POST", "/cdn/files/upload", data=b"x" * 5000).status_code == 200
    too_large = fal.call("POST", "/cdn/files/upload", data=b"x" * 5001)
    assert too_large.status_code == 413
    assert "5000" in too_large.get_json()["message"]
    path = path_of(initiated(fal)["upload_url"])
    assert fal.client.put(path, data=b"x" * 5001).status_code == 413
    assert fal.client.put(f"{path}/1", data=b"x" * 3000).status_code == 200
    assert fal.client.put(f"{path}/2", data=b"x" * 2001).status_code == 413
    assert fal.client.put(f"{path}/1", data=b"x" * 2000).status_code == 200
    assert fal.client.put(f"{path}/2", data=b"x" * 2001).status_code == 200


@pytest.mark.parametrize("name", ["X-Fal-Object-Lifecycle", "x-fal-object-lifecycle-preference"])
def test_a_file_is_kept_for_as_long_as_its_client_asks(fal: Fal, name: str) -> None:
    headers = {name: json.dumps({"expiration_duration_seconds": HOUR})}
    link = fal.call("POST", "/cdn/files/upload", data=png(), headers=headers).get_json()["access_url"]
    assert HOUR - 60 < kept_for(fal, link) <= HOUR
    places = initiated(fal, headers=headers)
    fal.client.put(path_of(places["upload_url"]), data=png())
    assert HOUR - 60 < kept_for(fal, places["file_url"]) <= HOUR


@pytest.mark.parametrize("value", ["", "{}", "nonsense", '{"expiration_duration_seconds": -5}', "[1]"])
def test_a_lifecycle_that_says_nothing_is_the_operators(fal: Fal, value: str) -> None:
    headers = {"X-Fal-Object-Lifecycle": value}
    link = fal.call("POST", "/cdn/files/upload", data=png(), headers=headers).get_json()["access_url"]
    assert 23 * HOUR < kept_for(fal, link) <= 24 * HOUR


def test_the_operator_has_the_last_word_on_how_long_and_use_does_not_shorten_it(
    open_with: Callable[..., FrontEnd],
) -> None:
    fal = Fal(open_with(max_upload_ttl=72 * HOUR))
    headers = {"X-Fal-Object-Lifecycle": json.dumps({"expiration_duration_seconds": 999 * HOUR})}
    link = fal.call("POST", "/cdn/files/upload", data=png(), headers=headers).get_json()["access_url"]
    assert 71 * HOUR < kept_for(fal, link) <= 72 * HOUR
    request_id = fal.submit(image_url=link)
    assert fal.status(request_id).get_json()["status"] == "IN_QUEUE"
    assert 71 * HOUR < kept_for(fal, link) <= 72 * HOUR


def test_a_link_of_one_listener_is_known_at_the_others(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(own_ports="8080,8443"))
    link = fal.call("POST", "/cdn/files/upload", data=png(), base_url="https://10.1.2.3:8443").get_json()["access_url"]
    assert link.startswith("https://10.1.2.3:8443/uploads/")
    body = {"model_name": "doodle", "prompt": "p", "image_url": link, "mask_url": link}
    answer = fal.call("POST", "/queue/fal-ai/inpaint", json=body, base_url="http://10.1.2.3:8080")
    assert fal.status(answer.get_json()["request_id"]).get_json()["status"] == "IN_QUEUE"
    elsewhere = {**body, "image_url": link.replace("8443", "9000")}
    answer = fal.call("POST", "/queue/fal-ai/inpaint", json=elsewhere, base_url="http://10.1.2.3:8080")
    assert fal.result(answer.get_json()["request_id"]).status_code == 422
