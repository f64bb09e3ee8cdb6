"""The fal queue over real HTTP paths and a real Redis: submit, status, result, cancel, and what each says of errors."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis

from api.dialects.fal.output import wire_status
from storage.job import Failure, JobStatus, Priority
from tests.fal_clients import APP, DATA_URI, Fal, fal_input
from tests.front_end import FrontEnd, front_end, open_with

__all__ = ["front_end", "open_with"]

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def fal(front_end: FrontEnd) -> Fal:
    return Fal(front_end)


def rows(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 422, answer.text
    found: list[dict[str, Any]] = answer.get_json()["detail"]
    assert all(isinstance(part, str) for row in found for part in row["loc"])
    assert all({"loc", "msg", "type", "input", "url"} == set(row) for row in found)
    return found


# -- the life of a request --------------------------------------------------------------------------


def test_a_submit_is_answered_with_the_three_urls(fal: Fal) -> None:
    answer = fal.call("POST", APP, json=fal_input())
    body = answer.get_json()
    request_url = f"http://localhost{APP}/requests/{body['request_id']}"
    assert answer.status_code == 200
    assert body == {
        "status": "IN_QUEUE",
        "request_id": str(uuid.UUID(body["request_id"])),
        "response_url": request_url,
        "status_url": f"{request_url}/status",
        "cancel_url": f"{request_url}/cancel",
        "queue_position": 0,
        "logs": None,
        "metrics": {},
    }
    assert answer.headers["x-fal-request-id"] == body["request_id"]


def test_a_status_is_202_until_it_is_over_and_then_200(fal: Fal) -> None:
    first, second = fal.submit(), fal.submit()
    waiting = fal.status(second)
    assert (waiting.status_code, waiting.get_json()["status"], waiting.get_json()["queue_position"]) == (
        202,
        "IN_QUEUE",
        1,
    )
    job = fal.claimed()
    running = fal.status(first)
    assert (running.status_code, running.get_json()["status"], running.get_json()["logs"]) == (202, "IN_PROGRESS", None)
    assert "queue_position" not in running.get_json()
    assert fal.result(first).status_code == 400
    assert fal.result(first).get_json()["detail"] == "Request is still in progress"
    fal.finish(job)
    over = fal.status(first)
    assert (over.status_code, over.get_json()["status"]) == (200, "COMPLETED")
    assert over.get_json()["metrics"] == {"inference_time": 0.25}
    assert over.headers["x-fal-request-id"] == first


def test_the_result_has_the_fields_of_the_documentation(fal: Fal) -> None:
    request_id = fal.submit(seed=42)
    job = fal.claimed()
    fal.finish(job)
    answer = fal.result(request_id)
    size = len(fal.front_end.parts.images.get(f"results/{job.job_id}/1/0.png"))
    name = f"{job.image_id}-0.png"
    assert answer.status_code == 200
    assert answer.get_json() == {
        "image": {
            "url": f"http://localhost/images/{name}",
            "content_type": "image/png",
            "file_name": name,
            "file_size": size,
            "width": 64,
            "height": 64,
        },
        "seed": 42,
    }
    assert answer.headers["x-fal-request-id"] == request_id
    assert fal.client.get(f"/images/{name}").status_code == 200


def test_the_link_keeps_the_address_that_the_caller_used(fal: Fal) -> None:
    request_id = fal.submit()
    fal.finish(fal.claimed())
    answer = fal.call("GET", f"{APP}/requests/{request_id}", base_url="https://pictures.test:8443")
    assert answer.get_json()["image"]["url"].startswith("https://pictures.test:8443/images/")


def test_a_configured_address_is_in_every_link(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(public_url="https://public.example/inpaint"))
    submitted = fal.call("POST", APP, json=fal_input()).get_json()
    fal.finish(fal.claimed())
    assert submitted["status_url"].startswith("https://public.example/inpaint/queue/fal-ai/inpaint/requests/")
    url = fal.result(submitted["request_id"]).get_json()["image"]["url"]
    assert url.startswith("https://public.example/inpaint/images/")


def test_every_step_is_a_line_of_the_log_with_its_time(fal: Fal) -> None:
    request_id = fal.submit()
    job = fal.claimed()
    assert fal.status(request_id, "?logs=1").get_json()["logs"] == []
    fal.beat(job, 2, 5)
    fal.beat(job, 2, 5)
    fal.beat(job, 3, 5)
    running = fal.status(request_id, "?logs=true").get_json()
    assert [line["message"] for line in running["logs"]] == ["step 1/5", "step 2/5", "step 3/5"]
    assert {(line["level"], line["source"]) for line in running["logs"]} == {("INFO", "USER")}
    times = [line["timestamp"] for line in running["logs"]]
    assert times == sorted(times)
    assert all(each.endswith("Z") for each in times)
    fal.finish(job, num_steps=5)
    over = fal.status(request_id, "?logs=true").get_json()
    assert [line["message"] for line in over["logs"]] == [f"step {step}/5" for step in range(1, 6)]
    assert over["logs"][:3] == running["logs"]
    assert fal.status(request_id, "?logs=false").get_json()["logs"] is None


def test_the_stream_of_statuses_brings_each_log_line_once(fal: Fal) -> None:
    request_id = fal.submit()
    stream = fal.client.open(f"{APP}/requests/{request_id}/status/stream?logs=1", headers=fal.headers)
    events = stream.iter_encoded()
    assert stream.mimetype == "text/event-stream"
    seen = [json.loads(next(events).decode().removeprefix("data: "))]
    job = fal.claimed()
    fal.beat(job, 2, 4)
    seen.append(json.loads(next(events).decode().removeprefix("data: ")))
    fal.finish(job, num_steps=4)
    seen += [json.loads(event.decode().removeprefix("data: ")) for event in events]
    stream.close()
    assert [each["status"] for each in seen] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert [[line["message"] for line in each["logs"]] for each in seen] == [
        [],
        ["step 1/4", "step 2/4"],
        ["step 3/4", "step 4/4"],
    ]


@pytest.mark.parametrize(
    "form",
    [
        "/requests/{}/status/",
        "/requests/{}/",
        "/requests/{}/response",
        "/sub/path/requests/{}/status",
        "/sub/requests/{}",
    ],
)
def test_slashes_and_sub_paths_lead_to_the_same_place_without_redirect(fal: Fal, form: str) -> None:
    request_id = fal.call("POST", f"{APP}/sub/path/", json=fal_input()).get_json()["request_id"]
    fal.finish(fal.claimed())
    answer = fal.call("GET", APP + form.format(request_id))
    assert answer.status_code == 200
    assert answer.headers["x-fal-request-id"] == request_id


# -- cancel -----------------------------------------------------------------------------------------


def test_a_queued_request_is_cancelled_and_its_result_says_so(fal: Fal) -> None:
    request_id = fal.submit()
    answer = fal.cancel(request_id)
    assert (answer.status_code, answer.get_json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert fal.front_end.parts.jobs.claim_next(worker="fake") is None
    over = fal.status(request_id).get_json()
    assert (over["status"], over["error"], over["error_type"]) == (
        "COMPLETED",
        "Invalid status code: 499",
        "client_cancelled",
    )
    result = fal.result(request_id)
    assert (result.status_code, result.headers["X-Fal-Error-Type"]) == (499, "client_cancelled")
    again = fal.cancel(request_id)
    assert (again.status_code, again.get_json()["status"]) == (400, "ALREADY_COMPLETED")
    assert again.get_json()["message"] == again.get_json()["detail"]


def test_a_running_request_is_told_to_stop(fal: Fal) -> None:
    request_id = fal.submit()
    job = fal.claimed()
    assert fal.cancel(request_id).status_code == 202
    stored = fal.front_end.parts.jobs.get(job.job_id)
    assert stored is not None
    assert stored.cancel_requested


@pytest.mark.parametrize(("method", "path"), [("GET", "/status"), ("GET", ""), ("PUT", "/cancel")])
def test_a_request_of_nobody_or_of_somebody_else_is_not_found(fal: Fal, method: str, path: str) -> None:
    other = Fal(fal.front_end, fal.front_end.other_key).submit()
    for request_id in (NOBODY, other, "7", "nonsense"):
        answer = fal.call(method, f"{APP}/requests/{request_id}{path}")
        assert (answer.status_code, answer.get_json()["status"]) == (404, "NOT_FOUND")
        assert answer.headers["x-fal-request-id"]


# -- what bad input becomes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "kind"),
    [
        ({"mask_url": None}, "mask_url", "missing"),
        ({"num_inference_steps": 151}, "num_inference_steps", "less_than_equal"),
        ({"num_inference_steps": "many"}, "num_inference_steps", "int_parsing"),
        ({"guidance_scale": -1}, "guidance_scale", "greater_than_equal"),
        ({"prompt": 5}, "prompt", "string_type"),
        ({"model_name": "nobody/nothing"}, "model_name", "value_error"),
        ({"model_name": "https://example.com/model.safetensors"}, "model_name", "value_error"),
        ({"scheduler": "Nonsense"}, "scheduler", "enum"),
        ({"image_url": "not a picture"}, "image_url", "image_load_error"),
        ({"image_url": "ftp://example.com/a.png"}, "image_url", "file_download_error"),
        ({"mask_url": "http://10.0.0.1/a.png"}, "mask_url", "file_download_error"),
        ({"mask_url": f"http://localhost/uploads/{NOBODY}"}, "mask_url", "file_download_error"),
    ],
)
def test_bad_input_is_accepted_and_said_at_the_result(fal: Fal, changes: dict[str, Any], field: str, kind: str) -> None:
    request_id = fal.submit(**changes)
    status = fal.status(request_id)
    assert (status.status_code, status.get_json()["status"]) == (200, "COMPLETED")
    assert status.get_json()["error"] == "Invalid status code: 422"
    (row,) = rows(fal.result(request_id))
    assert (row["loc"], row["type"]) == (["body", field], kind)
    assert fal.front_end.parts.jobs.claim_next(worker="fake") is None


@pytest.mark.parametrize("body", [b"{", b"[]", b"5", b'{"seed": NaN}', b"\xff"])
def test_what_is_no_input_at_all_is_said_at_the_result_too(fal: Fal, body: bytes) -> None:
    request_id = fal.call("POST", APP, data=body, content_type="application/json").get_json()["request_id"]
    assert rows(fal.result(request_id))


def test_all_that_is_wrong_is_said_and_pictures_are_cut_short(fal: Fal) -> None:
    found = rows(fal.result(fal.submit(prompt=None, model_name=None, image_url=DATA_URI * 50)))
    assert [row["loc"][1] for row in found] == ["model_name", "prompt"]
    assert len(json.dumps(found)) < 2000


def test_unknown_fields_and_headers_are_tolerated(fal: Fal) -> None:
    headers = {"X-Fal-Runner-Hint": "h", "X-Fal-Store-IO": "0", "X-Fal-No-Retry": "1", "X-Fal-Request-Timeout": "soon"}
    request_id = fal.submit(num_images=1, sync_mode=True, headers=headers, negative_prompt=None)
    assert fal.status(request_id).get_json()["status"] == "IN_QUEUE"


def test_absent_numbers_are_the_models_own_and_extras_are_taken(fal: Fal) -> None:
    fal.submit()
    fal.submit(num_inference_steps=0, guidance_scale=0, strength=0.5, scheduler="eulerdiscretescheduler", seed=7)
    fal.submit(num_inference_steps=150)
    plain, full, most = fal.claimed(), fal.claimed(), fal.claimed()
    assert (plain.num_inference_steps, plain.guidance_scale, plain.scheduler) == (20, 4.0, "DDIMScheduler")
    assert (plain.width, plain.height, plain.strength) == (None, None, 1.0)
    assert (full.num_inference_steps, full.guidance_scale, full.strength, full.seed) == (0, 0.0, 0.5, 7)
    assert full.scheduler == "EulerDiscreteScheduler"
    assert most.num_inference_steps == 150


def test_a_scheduler_that_cannot_inpaint_is_painted_by_its_stand_in(fal: Fal) -> None:
    fal.submit(scheduler="karrasvescheduler")
    job = fal.claimed()
    assert (job.scheduler, job.use_karras_sigmas) == ("HeunDiscreteScheduler", True)


def test_a_failure_of_the_worker_names_the_wires_field(fal: Fal) -> None:
    request_id = fal.submit()
    job = fal.claimed()
    failure = Failure(code="not_an_image", message="secret", field="mask_image")
    fal.front_end.parts.jobs.finish(job.failed(failure, at=time.time()))
    answer = fal.result(request_id)
    (row,) = rows(answer)
    assert (row["loc"], row["type"]) == (["body", "mask_url"], "image_load_error")
    assert "secret" not in answer.text


# -- what is said at the door -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["Key nonsense", "Bearer nonsense", "Key {id}:nonsense", "Key 0123456789ab:{key}", "Basic x"]
)
def test_a_wrong_key_is_refused_at_once(fal: Fal, header: str) -> None:
    value = header.format(id=fal.front_end.api_key.key_id, key=fal.front_end.key)
    answer = fal.call("POST", APP, json=fal_input(), headers={"Authorization": value})
    assert answer.status_code == 401
    assert answer.get_json()["message"] == answer.get_json()["detail"]
    assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize(
    "header", ["Key {key}", "key {key}", "Bearer {key}", "Key {id}:{secret}", "Key {id}:{key}", "Key ip_{id}:{secret}"]
)
def test_a_key_may_come_in_every_form(fal: Fal, header: str) -> None:
    key = fal.front_end.key
    value = header.format(key=key, id=fal.front_end.api_key.key_id, secret=key.rpartition("_")[2])
    assert fal.call("POST", APP, json=fal_input(), headers={"Authorization": value}).status_code == 200


def test_an_unknown_application_is_not_found(fal: Fal) -> None:
    answer = fal.call("POST", "/queue/fal-ai/flux", json=fal_input())
    assert (answer.status_code, answer.get_json()["detail"]) == (404, 'Application "fal-ai/flux" not found')


@pytest.mark.parametrize("webhook", ["http://10.0.0.1/hook", "ftp://example.com/", "nonsense"])
def test_a_webhook_that_may_not_be_called_is_refused_at_once(fal: Fal, webhook: str) -> None:
    answer = fal.call("POST", APP, query_string={"fal_webhook": webhook}, json=fal_input())
    (row,) = rows(answer)
    assert row["loc"] == ["query", "fal_webhook"]
    assert fal.front_end.parts.jobs.claim_next(worker="fake") is None


def test_a_queue_longer_than_the_client_wants_is_429(fal: Fal) -> None:
    fal.submit()
    assert fal.call("POST", f"{APP}?fal_max_queue_length=1", json=fal_input()).status_code == 200
    full = fal.call("POST", f"{APP}?fal_max_queue_length=1", json=fal_input())
    assert full.status_code == 429
    assert full.headers["X-Fal-Error-Type"] == "concurrent_requests_limit"
    assert full.headers["Retry-After"]


def test_a_key_may_not_have_more_waiting_than_the_operator_grants(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(max_queued_jobs=1))
    fal.submit()
    assert fal.call("POST", APP, json=fal_input()).status_code == 429


def test_low_priority_waits_behind_normal(fal: Fal) -> None:
    low = fal.submit(headers={"X-Fal-Queue-Priority": "low"})
    fal.submit(headers={"X-Fal-Queue-Priority": "normal"})
    assert fal.status(low).get_json()["queue_position"] == 1
    assert (fal.claimed().priority, fal.claimed().priority) == (Priority.NORMAL, Priority.LOW)


def test_the_same_idempotency_key_is_the_same_request(fal: Fal) -> None:
    headers = {"Idempotency-Key": "once"}
    first = fal.submit(headers=headers)
    assert fal.submit(headers=headers) == first
    assert rows(fal.call("POST", APP, json=fal_input(prompt="another"), headers=headers))
    bad = fal.submit(mask_url=None, headers={"Idempotency-Key": "bad"})
    assert fal.submit(mask_url=None, headers={"Idempotency-Key": "bad"}) == bad


@pytest.mark.parametrize("name", ["X-Fal-Request-Timeout", "x-fal-request-start-timeout"])
def test_a_request_that_nobody_starts_in_time_is_504(fal: Fal, name: str) -> None:
    request_id = fal.submit(headers={name: "0.2"})
    jobs = fal.front_end.parts.jobs
    assert jobs.fail_late_starts(10) == []
    time.sleep(0.25)
    assert [job.job_id for job in jobs.fail_late_starts(10)] == [request_id]
    answer = fal.result(request_id)
    assert answer.status_code == 504
    assert answer.headers["X-Fal-Request-Timeout-Type"] == "user"
    assert answer.get_json()["error_type"] == "request_timeout"


def test_a_request_that_has_started_in_time_goes_on(fal: Fal) -> None:
    request_id = fal.submit(headers={"X-Fal-Request-Timeout": "0.2"})
    job = fal.claimed()
    time.sleep(0.25)
    jobs = fal.front_end.parts.jobs
    assert jobs.finish(job.given_back())
    assert jobs.fail_late_starts(10) == []
    stored = jobs.get(request_id)
    assert stored is not None
    assert (stored.status, wire_status(stored)) == (JobStatus.QUEUED, "IN_QUEUE")


def test_a_status_costs_one_round_trip(fal: Fal, redis_url: str) -> None:
    request_id = fal.submit()
    fal.status(request_id)
    with redis.Redis.from_url(redis_url, decode_responses=True) as other, other.monitor() as commands:
        fal.status(request_id, "?logs=true")
        other.ping()
        seen = []
        while (command := commands.next_command())["command"] != "PING":
            seen.append(command)
    # HELLO and CLIENT: the connection of the one who listens.
    names = [command["command"].split()[0] for command in seen if command["client_type"] != "lua"]
    asked = [name for name in names if name not in ("HELLO", "CLIENT")]
    assert asked == ["EVALSHA"]
