"""A job's state in our own words, its cancellation, and whether the service is ready."""

from __future__ import annotations

from typing import Any

import pytest

from storage.job import Failure
from storage.job_store import Beat
from tests.front_end import FrontEnd, front_end, open_with

__all__ = ["front_end", "open_with"]


def show(front_end: FrontEnd, name: object, key: str | None = None) -> dict[str, Any]:
    answer = front_end.client.get(f"/jobs/{name}", headers={"key": key or front_end.key})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.get_json()
    return shown


def cancel(front_end: FrontEnd, name: object, key: str | None = None) -> Any:
    return front_end.client.post(f"/jobs/{name}/cancel", headers={"Authorization": f"Bearer {key or front_end.key}"})


def test_a_queued_job_has_a_place_in_the_queue(front_end: FrontEnd) -> None:
    numbers = [front_end.submit()["id"] for _ in range(3)]
    assert [show(front_end, number)["queue_position"] for number in numbers] == [0, 1, 2]
    queued = show(front_end, numbers[2])
    assert queued["status"] == "queued"
    assert queued["eta_seconds"] >= 1
    assert queued["attempts"] == 0
    assert queued["timings"]["started_at"] is None
    assert queued["images"] == []


def test_a_running_job_has_its_progress(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    job = front_end.parts.jobs.claim_next(worker="fake")
    assert job is not None
    front_end.parts.jobs.heartbeat([Beat(job.job_id, job.fence, 3, 20)])
    running = show(front_end, number)
    assert running["status"] == "processing"
    assert running["progress"] == {"step": 3, "steps": 20}
    assert running["queue_position"] is None
    assert running["attempts"] == 1
    assert running["timings"]["running_seconds"] >= 0


def test_a_finished_job_has_its_links_and_timings(front_end: FrontEnd) -> None:
    answer = front_end.submit()
    job = front_end.work_once()
    for name in (answer["id"], job.job_id):
        done = show(front_end, name)
        assert done["status"] == "succeeded"
        assert done["images"] == answer["future_links"]
        assert done["id"] == job.job_id
        assert done["timings"]["finished_at"].endswith("+00:00")
        assert done["eta_seconds"] is None


def test_a_failed_job_has_its_failure(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    failure = Failure(code="not_an_image", message="A picture of this job cannot be read.", field="mask_image")
    front_end.work_once(lambda job: job.failed(failure, at=front_end.parts.jobs.now()))
    assert show(front_end, number)["failure"] == {
        "code": "not_an_image",
        "message": "A picture of this job cannot be read.",
        "field": "mask_image",
    }


def test_a_queued_job_is_cancelled_at_once(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    answer = cancel(front_end, number)
    assert answer.status_code == 200
    assert answer.get_json()["status"] == "cancelled"
    assert front_end.parts.jobs.claim_next(worker="fake") is None
    fetched = front_end.client.post(f"/api/v6/images/fetch/{number}", json={"key": front_end.key}).get_json()
    assert (fetched["status"], fetched["message"]) == ("failed", "The request was cancelled")
    assert cancel(front_end, number).status_code == 200


def test_a_running_job_is_asked_to_leave(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    job = front_end.parts.jobs.claim_next(worker="fake")
    assert job is not None
    answer = cancel(front_end, job.job_id)
    assert answer.status_code == 202
    assert answer.get_json()["cancel_requested"] is True
    assert front_end.parts.jobs.heartbeat([Beat(job.job_id, job.fence, 1, 20)])[job.job_id].cancelled
    assert front_end.parts.jobs.finish(job.cancelled(at=front_end.parts.jobs.now()))
    assert show(front_end, number)["status"] == "cancelled"


def test_a_job_that_is_over_cannot_be_cancelled(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    front_end.work_once()
    answer = cancel(front_end, number)
    assert answer.status_code == 409
    assert answer.get_json()["error"]["code"] == "already_over"
    assert show(front_end, number)["status"] == "succeeded"


def test_jobs_are_seen_and_cancelled_by_their_own_key_and_by_admins(front_end: FrontEnd) -> None:
    number = front_end.submit()["id"]
    for answer in (
        front_end.client.get(f"/jobs/{number}", headers={"key": front_end.other_key}),
        cancel(front_end, number, front_end.other_key),
        front_end.client.get("/jobs/999", headers={"key": front_end.key}),
    ):
        assert answer.status_code == 404
        assert answer.get_json()["error"]["code"] == "job_not_found"
    assert show(front_end, number, front_end.admin_key)["number"] == number
    assert cancel(front_end, number, front_end.admin_key).status_code == 200


def test_a_key_is_needed(front_end: FrontEnd) -> None:
    missing = front_end.client.get("/jobs/1")
    assert (missing.status_code, missing.get_json()["error"]["code"]) == (401, "missing_api_key")
    wrong = front_end.client.get("/jobs/1", headers={"key": "x"})
    assert (wrong.status_code, wrong.get_json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_deliveries_of_a_job_are_listed(front_end: FrontEnd) -> None:
    number = front_end.submit(webhook="http://127.0.0.1:9000/hook")["id"]
    answer = front_end.client.get(f"/jobs/{number}/deliveries", headers={"key": front_end.key})
    assert answer.status_code == 200
    assert answer.get_json()["deliveries"] == []


def test_the_service_is_ready_when_redis_storage_and_a_worker_answer(front_end: FrontEnd) -> None:
    without = front_end.client.get("/ready")
    assert without.status_code == 503
    assert without.get_json()["parts"] == {"redis": "ok", "storage": "ok", "worker": "unavailable"}
    front_end.parts.jobs.heartbeat_worker("fake", {})
    ready = front_end.client.get("/ready")
    assert ready.status_code == 200
    assert ready.get_json()["status"] == "ready"


@pytest.mark.parametrize("name", ["x", "-1", "9" * 40])
def test_a_name_that_is_none_is_not_found(front_end: FrontEnd, name: str) -> None:
    assert front_end.client.get(f"/jobs/{name}", headers={"key": front_end.key}).status_code == 404
