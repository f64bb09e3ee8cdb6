"""Fetching: every form of it, and what the other endpoints of the dialects answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from storage.job import Failure, InpaintJob
from tests.front_end import PICTURE, FrontEnd, front_end, open_with

__all__ = ["front_end", "open_with"]

BY_PATH = [
    "/api/v6/realtime/fetch/{id}",
    "/api/v6/images/fetch/{id}",
    "/api/v5/images/fetch/{id}",
    "/api/v3/fetch/{id}",
    "/api/v3/fetch/{id}/",
    "/api/v3/dreambooth/fetch/{id}",
    "/api/v4/dreambooth/fetch/{id}",
]
BY_BODY = [
    "/api/v6/realtime/fetch",
    "/api/v6/images/fetch",
    "/api/v3/fetch",
    "/api/v3/dreambooth/fetch",
    "/api/v4/dreambooth/fetch",
]


def failed(front_end: FrontEnd, code: str = "out_of_memory") -> Callable[[InpaintJob], InpaintJob]:
    return lambda job: job.failed(Failure(code=code, message="internal words"), at=front_end.parts.jobs.now())


@pytest.mark.parametrize("path", BY_PATH)
def test_a_result_is_fetched_by_the_id_in_the_path(front_end: FrontEnd, path: str) -> None:
    number = front_end.submit()["id"]
    place = path.format(id=number)
    waiting = front_end.client.post(place, json={"key": front_end.key}).get_json()
    assert (waiting["status"], waiting["output"]) == ("processing", [])
    assert waiting["eta"] >= 1
    assert waiting["message"] == waiting["messege"]
    front_end.work_once()
    answers = [
        front_end.client.post(place, json={"key": front_end.key}),
        front_end.client.post(place, data={"key": front_end.key}),
        front_end.client.post(place, headers={"Authorization": f"Bearer {front_end.key}"}),
        front_end.client.get(place, query_string={"key": front_end.key}),
        front_end.client.get(place, headers={"key": front_end.key}),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.get_json()["status"] == "success"
        assert answer.get_json()["id"] == number
        assert len(answer.get_json()["output"]) == 1


@pytest.mark.parametrize("path", BY_BODY)
def test_a_result_is_fetched_by_the_id_in_the_body(front_end: FrontEnd, path: str) -> None:
    number = front_end.submit()["id"]
    front_end.work_once()
    for request_id in (number, str(number), f" {number} ", front_end.parts.jobs.by_number(number).job_id):  # type: ignore[union-attr]
        body = {"key": front_end.key, "request_id": request_id}
        assert front_end.client.post(path, json=body).get_json()["status"] == "success"
        assert front_end.client.post(path, data=body).get_json()["status"] == "success"


@pytest.mark.parametrize(("path", "status"), [("/api/v6/images/fetch", 400), ("/api/v3/fetch", 200)])
def test_a_fetch_without_an_id_names_the_field(front_end: FrontEnd, path: str, status: int) -> None:
    answer = front_end.client.post(path, json={"key": front_end.key})
    assert answer.status_code == status
    assert "request_id" in json.dumps(answer.get_json()["message"])


@pytest.mark.parametrize(("path", "status"), [("/api/v6/images/fetch/", 404), ("/api/v3/fetch/", 200)])
@pytest.mark.parametrize("name", ["999", "0", "-1", "x", "9" * 40, "00000000-0000-4000-8000-000000000000", "1.0"])
def test_an_unknown_id_is_failed_request_not_found(front_end: FrontEnd, path: str, status: int, name: str) -> None:
    answer = front_end.client.post(path + name, json={"key": front_end.key})
    assert answer.status_code == status
    assert answer.get_json()["status"] == "failed"
    assert answer.get_json()["message"] == "Request not found"
    assert answer.get_json()["id"] == ""


def test_a_job_of_another_key_is_not_found_and_an_admin_sees_it(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    place = f"/api/v6/images/fetch/{number}"
    assert front_end.client.post(place, json={"key": front_end.other_key}).status_code == 404
    assert front_end.client.post(place, json={"key": front_end.admin_key}).status_code == 200


@pytest.mark.parametrize("path", ["/api/v6/realtime/fetch/1", "/api/v3/fetch/1"])
def test_a_failed_job_is_failed_in_the_dialects_words(front_end: FrontEnd, path: str) -> None:
    front_end.submit()
    front_end.work_once(failed(front_end))
    answer = front_end.client.post(path, json={"key": front_end.key})
    assert answer.status_code == 200
    assert answer.get_json()["status"] == "failed"
    assert "memory" in answer.get_json()["message"]
    assert "internal words" not in answer.text


def test_what_the_worker_notes_stands_in_meta(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    front_end.work_once(
        lambda job: front_end.painted(job, mask_empty=True, worked_size=[64, 64], unknown_words=["fox"])
    )
    meta = front_end.client.post(f"/api/v3/fetch/{number}", json={"key": front_end.key}).get_json()["meta"]
    assert meta["mask_empty"] is True
    assert meta["worked_size"] == [64, 64]
    assert meta["unknown_words"] == ["fox"]
    assert meta["model_id"] == "doodle"


@pytest.mark.parametrize("path", ["/api/v3/system_load"])
def test_the_load_counts_waiting_jobs_and_seconds(front_end: FrontEnd, path: str) -> None:
    empty = front_end.client.post(path, json={"key": front_end.key}).get_json()
    assert empty == {"queue_num": 0, "queue_time": 0, "status": "ok"}
    front_end.submit()
    front_end.submit()
    busy = front_end.client.post(path, data={"key": front_end.key}).get_json()
    assert busy["queue_num"] == 2
    assert busy["queue_time"] > 0


@pytest.mark.parametrize(
    "path",
    [
        "/api/v3/model_list",
        "/api/v3/dreambooth/model_list",
        "/api/v4/dreambooth/model_list",
        "/api/v6/images/model_list",
    ],
)
def test_the_model_list_is_a_bare_array(front_end: FrontEnd, path: str) -> None:
    models = front_end.client.post(path, json={"key": front_end.key}).get_json()
    assert [model["model_id"] for model in models] == [entry.id for entry in front_end.parts.catalog.entries]
    (doodle,) = (model for model in models if model["model_id"] == "doodle")
    assert "demo model" in doodle["description"]
    assert models[0]["status"] == "model_ready"
    assert models[0]["model_name"]


@pytest.mark.parametrize("value", [PICTURE, f"data:image/png;base64,{PICTURE}"])
def test_base64_becomes_a_link(front_end: FrontEnd, value: str) -> None:
    answer = front_end.client.post(
        "/api/v6/image_editing/base64_to_url", json={"key": front_end.key, "base64_string": value}
    ).get_json()
    got = front_end.client.get(answer["output"][0])
    assert (got.status_code, got.mimetype) == (200, "image/png")


@pytest.mark.parametrize("body", [{}, {"base64_string": "no picture"}, {"base64_string": "http://127.0.0.1/a.png"}])
def test_what_is_no_base64_picture_is_refused_naming_the_field(front_end: FrontEnd, body: dict[str, Any]) -> None:
    answer = front_end.client.post("/api/v6/image_editing/base64_to_url", json={"key": front_end.key, **body})
    assert answer.status_code == 400
    assert "base64_string" in answer.get_json()["message"]
