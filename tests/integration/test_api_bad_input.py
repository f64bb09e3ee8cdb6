"""Bad input is refused clearly, in the dialect's own words, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.front_end import PICTURE, FrontEnd, front_end, open_with
from tests.gunicorn_process import serving
from tests.servers import RedisServer

__all__ = ["front_end", "open_with"]

V6 = "/api/v6/images/inpaint"
V3 = "/api/v3/inpaint"
UUID = "00000000-0000-4000-8000-000000000000"

BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "prompt is required"),
    ({"init_image": None}, "init_image", "init_image is required"),
    ({"mask_image": ""}, "mask_image", "mask_image is required"),
    ({"prompt": 5}, "prompt", "prompt must be a string"),
    ({"width": 63}, "width", "width must be between 64 and 1024"),
    ({"height": "4096"}, "height", "height must be between 64 and 1024"),
    ({"width": "wide"}, "width", "width must be an integer"),
    ({"samples": 5}, "samples", "samples must be between 1 and 4"),
    ({"guidance_scale": 0.5}, "guidance_scale", "guidance_scale must be between 1 and 20"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "guidance_scale must be a finite number"),
    ({"strength": float("inf")}, "strength", "strength must be a finite number"),
    ({"strength": 1.01}, "strength", "strength must be between 0 and 1"),
    ({"steps": 0}, "steps", "steps must be at least 1"),
    ({"seed": 2**32}, "seed", "seed must be between -1 and 4294967295"),
    ({"base64": "perhaps"}, "base64", "base64 must be yes or no"),
    ({"scheduler": "Magic"}, "scheduler", "scheduler must be one of "),
    ({"lora_model": "style"}, "lora_model", "lora_model not found: style"),
    ({"vae": "other"}, "vae", "vae not found: other"),
    ({"embeddings_model": "style"}, "embeddings_model", "embeddings_model not found: style"),
    (
        {"ip_adapter_id": "x", "ip_adapter_image": "i"},
        "ip_adapter_id",
        "ip_adapter_id not found: x",
    ),
    ({"clip_skip": 9}, "clip_skip", "clip_skip must be between 1 and 8"),
    ({"init_image": "cat.png"}, "init_image", "init_image must be a URL or a base64 encoded image"),
    ({"mask_image": "data:text/html;base64,PGI+"}, "mask_image", "mask_image must be a URL or a base64"),
    ({"init_image": "ftp://x.example/i.png"}, "init_image", "init_image must be a public http or https URL"),
    ({"init_image": "file:///etc/passwd"}, "init_image", "init_image must be a public http or https URL"),
    ({"init_image": "http://x.example/" + "a" * 9000}, "init_image", "init_image must be a public http or https URL"),
    ({"mask_image": "http://169.254.169.254/latest"}, "mask_image", "mask_image must be a public http or https URL"),
    ({"mask_image": "http://10.0.0.1/m.png"}, "mask_image", "mask_image must be a public http or https URL"),
    ({"init_image": "http://[fe80::1]/i.png"}, "init_image", "init_image must be a public http or https URL"),
    ({"webhook": "http://192.168.0.1/hook"}, "webhook", "webhook must be a public http or https URL"),
    ({"webhook": "http://3232235521/hook"}, "webhook", "webhook must be a public http or https URL"),
    ({"webhook": "hook"}, "webhook", "webhook must be a public http or https URL"),
    (
        {"init_image": f"http://localhost/images/{UUID}-0.png"},
        "init_image",
        "init_image is a link to an image that does",
    ),
    (
        {"init_image": f"http://localhost/uploads/{UUID}"},
        "init_image",
        "init_image is a link to an image that does not",
    ),
    ({"init_image": "http://localhost/health"}, "init_image", "init_image is a link to an image that does not exist"),
]


def post(front_end: FrontEnd, path: str, body: dict[str, Any], **options: Any) -> Any:
    return front_end.client.post(path, data=json.dumps(body), content_type="application/json", **options)


def is_untouched(front_end: FrontEnd) -> bool:
    names = {name.split(":")[1] for name in front_end.parts.redis.scan_iter("inpaintd:*")}
    return names <= {"key", "keys"}


@pytest.mark.parametrize(("changes", "field", "message"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_refused_by_name_in_both_dialects(
    front_end: FrontEnd, changes: dict[str, Any], field: str, message: str
) -> None:
    v6 = post(front_end, V6, front_end.body(model_id="doodle") | changes)
    assert v6.status_code == 400
    assert v6.get_json()["status"] == "error"
    assert v6.get_json()["message"].startswith(message)
    v3 = post(front_end, V3, front_end.body() | changes)
    assert v3.status_code == 200
    assert v3.get_json()["status"] == "error"
    [text] = v3.get_json()["message"][field]
    assert text.removeprefix("The ").removeprefix("selected ").startswith(field)
    assert is_untouched(front_end)


def test_an_unknown_model_is_refused(front_end: FrontEnd) -> None:
    v6 = post(front_end, V6, front_end.body(model_id="unheard-of"))
    assert (v6.status_code, v6.get_json()["message"]) == (400, "Model not found: unheard-of")
    v3 = post(front_end, V3, front_end.body(model_id="unheard-of"))
    assert (v3.status_code, v3.get_json()["message"]) == (200, "Model id not found")


def test_a_link_to_a_picture_that_is_not_finished_is_refused(front_end: FrontEnd) -> None:
    link = front_end.submit()["future_links"][0]
    answer = post(front_end, V6, front_end.body(model_id="doodle", mask_image=link))
    assert answer.status_code == 400
    assert answer.get_json()["message"] == "mask_image is a link to an image that is not finished"


@pytest.mark.parametrize(
    ("key", "message"), [(None, "API key required"), ("", "API key required"), ("x", "Invalid API key")]
)
def test_a_missing_or_wrong_key_is_refused(front_end: FrontEnd, key: str | None, message: str) -> None:
    for path in (V6, "/api/v6/realtime/fetch/1", "/api/v6/image_editing/base64_to_url"):
        v6 = post(front_end, path, front_end.body() | {"key": key})
        assert (v6.status_code, v6.get_json()["status"], v6.get_json()["message"]) == (401, "error", message)
    for path in (V3, "/api/v3/fetch/1", "/api/v3/system_load", "/api/v4/dreambooth/model_list"):
        v3 = post(front_end, path, front_end.body() | {"key": key})
        assert (v3.status_code, v3.get_json()["status"], v3.get_json()["message"]) == (200, "error", "Invalid Api Key")
        assert v3.get_json()["tip"]
    assert is_untouched(front_end)


@pytest.mark.parametrize("raw", [b'{"key": "k"', b"[]", b"nonsense", b"\x89PNG"])
def test_a_malformed_body_is_refused(front_end: FrontEnd, raw: bytes) -> None:
    v6 = front_end.client.post(V6, data=raw, content_type="application/json")
    assert v6.status_code == 400
    assert v6.get_json()["message"] == "Request body must be a JSON object or form fields"
    v3 = front_end.client.post(V3, data=raw)
    assert (v3.status_code, v3.get_json()["message"]) == (200, "Invalid API Request")


@pytest.mark.parametrize("path", [V6, V3])
def test_a_body_over_the_limit_is_413_in_both_dialects(open_with: Callable[..., FrontEnd], path: str) -> None:
    front_end = open_with(max_body_bytes=10_000)
    answer = post(front_end, path, front_end.body(prompt="x" * 10_000))
    assert answer.status_code == 413
    assert answer.get_json()["status"] == "error"
    assert "10000 bytes" in answer.get_json()["message"]


def test_a_body_far_over_the_limit_is_told_so_by_the_real_server(
    front_end: FrontEnd, redis_url: str, tmp_path: Path
) -> None:
    with serving(redis_url, tmp_path, MAX_BODY_BYTES="100000") as url:
        known = requests.post(f"{url}{V6}", data=b"x" * 3_000_000, timeout=30)
        assert (known.status_code, known.json()["status"]) == (413, "error")
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=30) as chunked:
            head = f"POST {V6} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunked.sendall(head.encode() + b"30d40\r\n" + b"x" * 200_000 + b"\r\n")
            assert b" 413 " in chunked.recv(4096).split(b"\r\n")[0]
        small = requests.post(f"{url}{V6}", data=(part for part in (b'{"key":', b'"x"}')), timeout=30)
        assert (small.status_code, small.json()["message"]) == (401, "Invalid API key")
        assert requests.get(f"{url}/health", timeout=5).ok


@pytest.mark.parametrize("path", [V6, V3])
def test_redis_down_is_503_at_once_and_leaves_no_half_made_job(
    front_end: FrontEnd, redis_server: RedisServer, tmp_path: Path, path: str
) -> None:
    front_end.submit()  # the key is known from now on, so that the refusal comes from the job store too
    objects = sorted(tmp_path.rglob("*"))
    redis_server.stop()
    try:
        for key in (front_end.key, front_end.other_key):
            before = time.monotonic()
            answer = post(front_end, path, front_end.body(key=key, model_id="doodle"))
            assert time.monotonic() - before < 2
            assert answer.status_code == 503
            assert answer.get_json()["status"] == "error"
            assert "temporarily unavailable" in answer.get_json()["message"]
            assert answer.headers["Retry-After"]
        links = {"init_image": "http://127.0.0.1:9000/i.png", "mask_image": "http://127.0.0.1:9000/m.png"}
        assert post(front_end, path, front_end.body(model_id="doodle", **links)).status_code == 503
        assert front_end.client.get("/ready").status_code == 503
        assert front_end.client.get("/jobs/1", headers={"key": front_end.key}).status_code == 503
        assert front_end.client.get("/health").status_code == 200
    finally:
        redis_server.start()
    assert sorted(tmp_path.rglob("*")) == objects
    assert front_end.submit()["id"] == 2
    assert front_end.parts.jobs.waiting_count() == 2


def test_storage_down_is_503_and_no_job(front_end: FrontEnd, tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("a file where a folder should be")
    answer = post(front_end, V6, front_end.body(model_id="doodle"))
    assert answer.status_code == 503
    assert front_end.parts.jobs.waiting_count() == 0


def test_what_goes_wrong_inside_is_never_shown(front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall_over(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(front_end.parts.jobs, "submit", fall_over)
    for path in (V6, V3):
        answer = post(front_end, path, front_end.body(model_id="doodle"))
        assert answer.status_code == 500
        assert answer.get_json()["message"] == "Internal server error. Please try again."
        assert "secret of the house" not in answer.text


def test_unknown_fields_are_ignored(front_end: FrontEnd) -> None:
    answer = front_end.submit(nonsense={"a": [1, 2]}, full_url="no", Prompt="not this one")
    assert answer["meta"]["prompt"] == "a red circle"
    assert answer["meta"]["ignored"] == ["full_url"]


def test_an_idempotency_key_that_is_too_long_is_refused(front_end: FrontEnd) -> None:
    answer = post(front_end, V6, front_end.body(model_id="doodle"), headers={"Idempotency-Key": "x" * 256})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.get_json()["message"]


def test_a_mask_that_is_bad_leaves_no_upload_of_the_init_image(front_end: FrontEnd, tmp_path: Path) -> None:
    answer = post(front_end, V6, front_end.body(model_id="doodle", init_image=PICTURE, mask_image="bad"))
    assert answer.status_code == 400
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
