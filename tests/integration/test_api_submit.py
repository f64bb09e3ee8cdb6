"""Submitting: from a body to a stored job and its answer, through the real job store."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from storage.image_store import ObjectMissing
from storage.job import Failure, InpaintJob, JobStatus
from tests.front_end import PICTURE, FakeWorker, FrontEnd, front_end, open_with, png
from tests.gunicorn_process import serving

__all__ = ["front_end", "open_with"]

SUBMITS = ["/api/v6/realtime/inpaint", "/api/v6/images/inpaint", "/api/v3/inpaint"]
FETCHES = {
    "/api/v6/realtime/inpaint": "/api/v6/realtime/fetch/",
    "/api/v6/images/inpaint": "/api/v6/images/fetch/",
    "/api/v3/inpaint": "/api/v3/fetch/",
}


def stored(front_end: FrontEnd, number: int) -> InpaintJob:
    job = front_end.parts.jobs.by_number(number)
    assert job is not None
    return job


@pytest.mark.parametrize("path", SUBMITS)
def test_a_submit_is_answered_processing_with_all_that_clients_need(front_end: FrontEnd, path: str) -> None:
    answer = front_end.submit(path, model_id="lazymixv4-inpaint")
    assert answer["status"] == "processing"
    assert type(answer["id"]) is int
    assert answer["eta"] >= 1
    assert answer["output"] == []
    assert answer["message"] == answer["messege"]
    assert answer["fetch_result"] == f"http://localhost{FETCHES[path]}{answer['id']}"
    job = stored(front_end, answer["id"])
    assert answer["future_links"] == [f"http://localhost/images/{job.image_id}-0.png"]
    assert answer["meta"]["model_id"] == "doodle"
    assert answer["meta"]["seed"] == job.seed


@pytest.mark.parametrize("path", SUBMITS)
def test_a_submit_waits_for_a_result_that_comes_soon(front_end: FrontEnd, path: str) -> None:
    with FakeWorker(front_end):
        answer = front_end.submit(path, model_id="doodle", instant_response=False, samples=2)
    assert answer["status"] == "success"
    assert len(answer["output"]) == 2
    assert answer["generationTime"] == 0.25
    assert ("proxy_links" in answer) is (path != "/api/v3/inpaint")
    for link in answer["output"]:
        assert front_end.client.get(link).data == png(64, 64)


def test_a_submit_waits_only_so_long(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(wait_seconds=0.3)
    before = time.monotonic()
    assert front_end.submit(instant_response=None)["status"] == "processing"
    assert 0.3 <= time.monotonic() - before < 2


@pytest.mark.parametrize("path", SUBMITS)
def test_a_job_that_fails_while_its_client_waits_is_an_error_with_its_id(front_end: FrontEnd, path: str) -> None:
    def fail(job: InpaintJob) -> InpaintJob:
        failure = Failure(code="not_an_image", message="internal words", field="mask_image")
        return job.failed(failure, at=front_end.parts.jobs.now())

    with FakeWorker(front_end, fail):
        answer = front_end.submit(path, model_id="doodle", instant_response=False)
    assert answer["status"] == "error"
    assert type(answer["id"]) is int
    assert "mask_image" in answer["message"]
    assert "internal words" not in json.dumps(answer)


def test_a_ticket_is_sent_for_each_job(front_end: FrontEnd) -> None:
    front_end.submit()
    front_end.submit()
    assert front_end.parts.queue.tickets() == 2


def test_a_form_is_a_submit_too(front_end: FrontEnd) -> None:
    form = {
        **front_end.body(),
        "init_image": "http://127.0.0.1:9000/i.png",
        "mask_image": "http://127.0.0.1:9000/m.png",
    }
    answer = front_end.client.post("/api/v3/inpaint", data={name: str(value) for name, value in form.items()})
    assert answer.get_json()["status"] == "processing"
    assert stored(front_end, 1).init_image == "http://127.0.0.1:9000/i.png"


@pytest.mark.parametrize("header", ["Authorization", "key"])
def test_the_key_may_come_in_a_header(front_end: FrontEnd, header: str) -> None:
    value = f"Bearer {front_end.key}" if header == "Authorization" else front_end.key
    body = front_end.body(key=None)
    answer = front_end.client.post("/api/v6/realtime/inpaint", json=body, headers={header: value})
    assert answer.get_json()["status"] == "processing"


def test_inline_pictures_become_objects_that_expire(front_end: FrontEnd) -> None:
    answer = front_end.submit(mask_image=f"data:image/png;base64,{PICTURE}")
    job = stored(front_end, answer["id"])
    for reference, shown in ((job.init_image, "init_image"), (job.mask_image, "mask_image")):
        kind, _, key = reference.partition(":")
        assert kind == "object"
        assert front_end.parts.images.get(key) == png()
        score = front_end.parts.redis.zscore("inpaintd:expiry:inputs", key)
        assert isinstance(score, float)
        assert score == pytest.approx(time.time() + 24 * 3600, abs=60)
        link = answer["meta"][shown]
        assert link == f"http://localhost/uploads/{key.removeprefix('inputs/')}"
        assert front_end.client.get(link).data == png()
    assert PICTURE not in json.dumps(job.to_record())


def test_links_of_our_own_are_read_from_storage(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(public_url="https://pictures.example/x", own_hosts=("old.example",))
    front_end.submit(samples=2)
    finished = front_end.work_once()
    for host in ("https://pictures.example/x", "http://localhost", "http://old.example:99", "http://[::1]"):
        answer = front_end.submit(init_image=f"{host}/images/{finished.image_id}-1.png")
        assert stored(front_end, answer["id"]).init_image == f"result:{finished.image_id}-1"
    upload = front_end.client.post(
        "/api/v6/image_editing/base64_to_url", json={"key": front_end.key, "base64_string": PICTURE}
    ).get_json()
    assert upload["status"] == "success"
    assert type(upload["id"]) is int
    answer = front_end.submit(init_image=upload["output"][0])
    reference = stored(front_end, answer["id"]).init_image
    assert front_end.parts.images.get(reference.removeprefix("object:")) == png()


def test_links_start_with_the_public_url_where_there_is_one(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(public_url="https://pictures.example/x")
    answer = front_end.submit()
    assert answer["fetch_result"].startswith("https://pictures.example/x/api/v6/realtime/fetch/")
    assert answer["future_links"][0].startswith("https://pictures.example/x/images/")


def test_links_of_a_job_stay_those_under_which_it_was_submitted(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    front_end.work_once()
    fetched = front_end.client.post(
        f"/api/v6/realtime/fetch/{number}", json={"key": front_end.key}, base_url="http://elsewhere.example"
    )
    assert fetched.get_json()["output"][0].startswith("http://localhost/")


def test_the_same_idempotency_key_and_body_give_the_same_job(front_end: FrontEnd) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first, second = (
        front_end.client.post("/api/v6/realtime/inpaint", json=front_end.body(), headers=headers).get_json()
        for _ in range(2)
    )
    assert first["id"] == second["id"]
    assert first["meta"]["seed"] == second["meta"]["seed"]
    assert front_end.parts.jobs.waiting_count() == 1
    keys = [reference.removeprefix("object:") for reference in (stored(front_end, 1).init_image,)]
    assert front_end.parts.images.get(keys[0]) == png()
    assert front_end.parts.redis.zcard("inpaintd:expiry:inputs") == 2


@pytest.mark.parametrize(("path", "status"), [("/api/v6/realtime/inpaint", 422), ("/api/v3/inpaint", 200)])
def test_the_same_idempotency_key_with_another_body_is_refused(front_end: FrontEnd, path: str, status: int) -> None:
    headers = {"Idempotency-Key": "order-1"}
    front_end.client.post(path, json=front_end.body(), headers=headers)
    again = front_end.client.post(path, json=front_end.body(prompt="another"), headers=headers)
    assert again.status_code == status
    assert again.get_json()["status"] == "error"
    assert "Idempotency-Key" in again.get_json()["message"]
    assert front_end.parts.jobs.waiting_count() == 1


def test_an_idempotency_key_belongs_to_its_api_key(front_end: FrontEnd) -> None:
    headers = {"Idempotency-Key": "order-1"}
    numbers = {
        front_end.client.post("/api/v6/realtime/inpaint", json=front_end.body(key=key), headers=headers).get_json()[
            "id"
        ]
        for key in (front_end.key, front_end.other_key)
    }
    assert len(numbers) == 2


@pytest.mark.parametrize(("path", "status"), [("/api/v6/realtime/inpaint", 429), ("/api/v3/inpaint", 200)])
def test_more_queued_jobs_than_a_key_may_have_are_refused(
    open_with: Callable[..., FrontEnd], path: str, status: int
) -> None:
    front_end = open_with(max_queued_jobs=2)
    front_end.submit()
    front_end.submit()
    refused = front_end.client.post(path, json=front_end.body())
    assert refused.status_code == status
    assert refused.headers["Retry-After"] == str(refused.get_json()["retry_after"])
    assert "Rate limit exceeded" in refused.get_json()["message"]
    assert front_end.submit(key=front_end.other_key)["status"] == "processing"
    assert front_end.parts.redis.zcard("inpaintd:expiry:inputs") == 6
    front_end.work_once()
    front_end.work_once()
    assert front_end.submit()["status"] == "processing"


def test_more_submits_a_minute_than_a_key_may_send_are_refused(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(max_submits_per_minute=3)
    answers = [front_end.client.post("/api/v6/realtime/inpaint", json=front_end.body()) for _ in range(7)]
    codes = [answer.status_code for answer in answers]
    assert codes.count(429) >= 1
    assert codes[:3] == [200, 200, 200]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= refused.get_json()["retry_after"] <= 60
    assert front_end.submit(key=front_end.other_key)["status"] == "processing"


def test_the_estimate_grows_with_the_queue_and_follows_measured_times(front_end: FrontEnd) -> None:
    jobs = front_end.parts.jobs
    jobs.record_runtime("doodle", 256, 256, 20, 30.0)
    estimates = [front_end.submit("/api/v3/inpaint")["eta"] for _ in range(3)]
    assert estimates == [30.0, 60.0, 90.0]
    for name in ("a", "b"):
        jobs.heartbeat_worker(name, {})
    assert front_end.submit("/api/v3/inpaint")["eta"] == pytest.approx(30 + 90 / 2)


def test_a_job_with_a_webhook_is_due_when_it_is_over(front_end: FrontEnd) -> None:
    answer = front_end.submit(webhook="http://127.0.0.1:9000/hook", track_id=7)
    assert answer["webhook_status"] == "queued"
    front_end.work_once()
    assert front_end.parts.jobs.claim_due_webhooks(5, hold_seconds=60) == [stored(front_end, answer["id"]).job_id]


def test_the_key_stands_in_no_record_and_no_log(front_end: FrontEnd, capfd: pytest.CaptureFixture[str]) -> None:
    answer = front_end.submit(webhook="http://127.0.0.1:9000/hook")
    front_end.client.get(f"/api/v5/images/fetch/{answer['id']}?key={front_end.key}")
    front_end.client.post("/api/v6/realtime/inpaint", json={"key": front_end.key, "prompt": 5})
    record = json.dumps(stored(front_end, answer["id"]).to_record())
    secret = front_end.key.rsplit("_", 1)[1]
    assert secret not in record + json.dumps(answer)
    out, err = capfd.readouterr()
    assert "answered" in out + err
    assert secret not in out + err


def test_base64_results_are_links_to_bare_base64_text(front_end: FrontEnd) -> None:
    answer = front_end.submit(base64="yes", temp=1)
    front_end.work_once()
    link = answer["future_links"][0]
    assert link.startswith("http://localhost/images/temp/")
    assert link.endswith("-0.base64")
    got = front_end.client.get(link)
    assert got.mimetype == "text/plain"
    assert base64.b64decode(got.data, validate=True) == png(64, 64)


def test_uploads_of_a_refused_submit_are_deleted(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(max_queued_jobs=1)
    front_end.submit()
    put: list[str] = []
    images = front_end.parts.images
    put_for_real = images.put

    def watch(key: str, data: bytes, content_type: str) -> None:
        put.append(key)
        put_for_real(key, data, content_type)

    images.put = watch  # type: ignore[method-assign]
    assert front_end.client.post("/api/v6/realtime/inpaint", json=front_end.body()).status_code == 429
    assert len(put) == 2
    for key in put:
        with pytest.raises(ObjectMissing):
            images.get(key)


def test_a_cancelled_job_is_an_error_to_the_client_that_waits(front_end: FrontEnd) -> None:
    def cancel(job: InpaintJob) -> InpaintJob:
        return job.cancelled(at=front_end.parts.jobs.now())

    with FakeWorker(front_end, cancel):
        answer: dict[str, Any] = front_end.submit(instant_response="no")
    assert answer["status"] == "error"
    assert "cancelled" in answer["message"]
    assert stored(front_end, answer["id"]).status is JobStatus.CANCELLED


def test_only_trusted_proxies_say_how_the_service_was_reached(
    front_end: FrontEnd, redis_url: str, tmp_path: Path
) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "public.example"}
    for trusted, base in (("10.0.0.0/8", ""), ("127.0.0.0/8", "https://public.example")):
        with serving(redis_url, tmp_path, TRUSTED_PROXIES=trusted) as url:
            answer = requests.post(
                f"{url}/api/v6/realtime/inpaint",
                json=front_end.body(instant_response=True),
                headers=headers,
                timeout=10,
            ).json()
            assert answer["fetch_result"].startswith(f"{base or url}/api/v6/realtime/fetch/")
