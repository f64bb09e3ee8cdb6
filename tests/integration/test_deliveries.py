"""`/jobs/{id}/deliveries` over the whole application: who may look, what is shown, what may be sent again."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug import Response

from api.app import create_app
from api.keys import KeyScope
from api.settings import ApiSettings
from storage.job import Failure, ResultImage
from storage.settings import StorageSettings
from tests.jobs import a_job
from tests.servers import RedisServer
from tests.webhook_scenes import LOOPBACK, Inbox, Scene, inbox_and_url, plain, receiver

__all__ = ["inbox_and_url", "plain", "receiver"]

pytestmark = pytest.mark.usefixtures("plain")
Target = tuple[Inbox, str]


class House(Scene):
    """A scene in real time with its front end."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        super().__init__(redis_url, clock=time.time)
        self.key, self.plaintext = self.keys.create(name="mine")
        app = create_app(
            ApiSettings(), StorageSettings(redis_url=redis_url, image_dir=folder, allowed_private_networks=LOOPBACK)
        )
        self.client_of_api: FlaskClient = app.test_client()

    def get(self, path: str, key: str | None = None) -> Any:
        return self.client_of_api.get(path, headers=self._headers(key))

    def post(self, path: str, key: str | None = None) -> Any:
        return self.client_of_api.post(path, headers=self._headers(key))

    def _headers(self, key: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self.plaintext}"}


@pytest.fixture
def house(redis_url: str, tmp_path: Path) -> House:
    return House(redis_url, tmp_path)


def test_every_try_is_listed_with_its_outcome(house: House, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 302, {"Location": "https://elsewhere.example/?token=private"})
    job = house.over(url)
    house.work()
    answer = house.get(f"/jobs/{job.job_id}/deliveries")
    assert answer.status_code == 200
    body = answer.json
    assert (body["id"], body["number"], body["webhook_status"]) == (job.job_id, job.number, "retrying")
    (first,) = body["deliveries"]
    at, next_at = datetime.fromisoformat(first.pop("at")), datetime.fromisoformat(first.pop("next_at"))
    assert 5 <= (next_at - at).total_seconds() < 7
    assert first.pop("duration_seconds") >= 0
    assert first == {
        "number": 1,
        "outcome": "redirect",
        "status": 302,
        "redirect_host": "elsewhere.example",
    }
    assert "private" not in answer.text


def test_a_job_is_found_by_its_number_too(house: House) -> None:
    job = house.over("http://127.0.0.1/hook")
    assert house.get(f"/jobs/{job.number}/deliveries").json["id"] == job.job_id


def test_a_job_without_a_webhook_has_no_deliveries(house: House) -> None:
    job = house.over(None)
    body = house.get(f"/jobs/{job.job_id}/deliveries").json
    assert (body["webhook_status"], body["deliveries"]) == ("", [])


def test_a_webhook_given_up_is_sent_again_on_demand_under_the_same_id(house: House, inbox_and_url: Target) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 410)
    job = house.over(url)
    house.work()
    path = f"/jobs/{job.job_id}/deliveries"
    assert house.get(path).json["webhook_status"] == "failed"
    inbox.answer = Response("", 200)
    again = house.post(f"{path}/redeliver")
    assert (again.status_code, again.json["webhook_status"]) == (202, "queued")
    house.work()
    body = house.get(path).json
    assert body["webhook_status"] == "delivered"
    assert [(each["number"], each["status"]) for each in body["deliveries"]] == [(1, 410), (2, 200)]
    assert inbox.ids == [f"msg_{job.job_id}"] * 2


def test_a_delivered_webhook_is_sent_again_on_demand_and_retried_if_it_fails(
    house: House, inbox_and_url: Target
) -> None:
    inbox, url = inbox_and_url
    job = house.over(url)
    house.work()
    inbox.answer = Response("", 500)
    house.post(f"/jobs/{job.job_id}/deliveries/redeliver")
    house.work()
    body = house.get(f"/jobs/{job.job_id}/deliveries").json
    assert body["webhook_status"] == "retrying"
    assert body["deliveries"][-1]["next_at"] is not None
    assert house.standing(job).round_tries == 1, "the whole schedule is before it again"


def test_a_webhook_that_is_being_delivered_is_not_queued_twice(house: House, inbox_and_url: Target) -> None:
    _, url = inbox_and_url
    job = house.over(url)
    with house.log.alone(job.job_id, at_most_seconds=10):
        answer = house.post(f"/jobs/{job.job_id}/deliveries/redeliver")
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "delivery_under_way")


@pytest.mark.parametrize("is_over", [True, False])
def test_where_there_is_nothing_to_deliver_it_is_said(house: House, is_over: bool) -> None:
    if is_over:
        job = house.over(None)
    else:
        job = house.jobs.submit(a_job(key_id=house.key.key_id, webhook_url="http://127.0.0.1/hook"))
    answer = house.post(f"/jobs/{job.job_id}/deliveries/redeliver")
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "nothing_to_deliver")
    assert house.due() == []


@pytest.mark.parametrize(("method", "path"), [("get", "deliveries"), ("post", "deliveries/redeliver")])
def test_only_the_jobs_own_key_and_admins_may(house: House, method: str, path: str) -> None:
    job = house.over("http://127.0.0.1/hook")
    _, strangers = house.keys.create(name="stranger")
    _, admins = house.keys.create(name="admin", scope=KeyScope.ADMIN)
    call = getattr(house, method)
    hidden, missing = call(f"/jobs/{job.job_id}/{path}", strangers), call(f"/jobs/999999/{path}", strangers)
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json == missing.json
    assert call(f"/jobs/{job.job_id}/{path}", admins).status_code in (200, 202)
    assert call(f"/jobs/{job.job_id}/{path}", "ip_wrong").status_code == 401
    assert house.client_of_api.open(f"/jobs/{job.job_id}/{path}", method=method.upper()).status_code == 401


def test_the_key_may_be_in_the_body(house: House) -> None:
    job = house.over("http://127.0.0.1/hook")
    answer = house.client_of_api.post(f"/jobs/{job.job_id}/deliveries/redeliver", json={"key": house.plaintext})
    assert answer.status_code == 202


def test_redis_out_of_service_is_a_503(house: House, redis_server: RedisServer) -> None:
    job = house.over("http://127.0.0.1/hook")
    path = f"/jobs/{job.job_id}/deliveries"
    assert house.get(path).status_code == 200
    redis_server.stop()
    try:
        assert house.get(path).status_code == 503
        assert house.post(f"{path}/redeliver").status_code == 503
    finally:
        redis_server.start()


@pytest.mark.parametrize("path", ["/api/v6/realtime/inpaint", "/api/v6/images/inpaint", "/api/v3/inpaint"])
@pytest.mark.parametrize("succeeds", [True, False])
def test_what_a_client_submits_with_a_webhook_comes_back_to_it_in_its_dialect(
    house: House, inbox_and_url: Target, path: str, succeeds: bool
) -> None:
    inbox, url = inbox_and_url
    fields = {
        "key": house.plaintext,
        "prompt": "a red circle " * 700,
        "model_id": "doodle",
        "init_image": "https://pictures.example/init.png",
        "mask_image": "https://pictures.example/mask.png",
        "width": 128,
        "height": 128,
        "instant_response": True,
        "webhook": url,
        "track_id": "order_1",
    }
    submitted = house.client_of_api.post(path, json=fields).json
    assert (submitted["status"], submitted["webhook_status"]) == ("processing", "queued"), submitted
    claimed = house.jobs.claim_next(worker="tests")
    assert claimed is not None
    if succeeds:
        picture = ResultImage(key="results/x/1/0.png", seed=1, width=128, height=128, size_bytes=3)
        house.jobs.finish(claimed.succeeded((picture,), at=house.jobs.now()))
    else:
        failure = Failure(code="out_of_memory", message="The model ran out of memory.")
        house.jobs.finish(claimed.failed(failure, at=house.jobs.now()))
    house.work()
    (body,) = inbox.verified(house.key.webhook_secret)
    assert (body["id"], body["track_id"]) == (submitted["id"], "order_1")
    if succeeds:
        assert body["status"] == "success"
        assert body["output"] == submitted["future_links"]
    else:
        assert body["status"] == "failed"
        assert body["message"]
    assert house.plaintext not in str(body)
    assert len(inbox.requests[0][1]) < 20_000
