"""fal's synchronous API on a real Redis: the wait, the stream of steps, the end of patience, the tokens of browsers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from api.keys import KeyStore
from storage.job import Failure, InpaintJob, JobStatus
from storage.job_store import Beat
from tests.fal_clients import Fal, fal_input
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with

__all__ = ["front_end", "open_with"]

RUN = "/run/fal-ai/inpaint"


@pytest.fixture
def fal(front_end: FrontEnd) -> Fal:
    return Fal(front_end)


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.mimetype == "text/event-stream"
    with answer:
        return [json.loads(block.removeprefix("data: ")) for block in answer.text.split("\n\n") if block]


def in_steps(fal: Fal) -> Callable[[InpaintJob], InpaintJob]:
    """A worker that reports two steps, one of which is seen alone."""

    def paint(job: InpaintJob) -> InpaintJob:
        fal.beat(job, 1, 3)
        time.sleep(0.3)
        done = fal.front_end.painted(job)
        return job.succeeded(done.images, at=fal.front_end.parts.jobs.now(), num_steps=3, notes=done.notes)

    return paint


@pytest.mark.parametrize("path", [RUN, f"{RUN}/", f"{RUN}/sub/path"])
def test_run_answers_with_the_output(fal: Fal, path: str) -> None:
    with FakeWorker(fal.front_end):
        answer = fal.call("POST", path, json=fal_input(seed=5))
    assert answer.status_code == 200
    assert answer.get_json()["seed"] == 5
    assert answer.headers["x-fal-request-id"]


def test_run_says_bad_input_at_once(fal: Fal) -> None:
    answer = fal.call("POST", RUN, json=fal_input(prompt=None))
    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["loc"] == ["body", "prompt"]


def test_run_that_takes_too_long_is_504_and_the_job_is_cancelled(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(fal_run_seconds=0.2))
    answer = fal.call("POST", RUN, json=fal_input())
    assert (answer.status_code, answer.get_json()["error_type"]) == (504, "request_timeout")
    assert "X-Fal-Request-Timeout-Type" not in answer.headers
    assert fal.status(answer.headers["x-fal-request-id"]).get_json()["error_type"] == "client_cancelled"


def test_run_that_nobody_starts_in_time_is_504_with_the_header_that_stops_retries(fal: Fal) -> None:
    answer = fal.call("POST", RUN, json=fal_input(), headers={"X-Fal-Request-Timeout": "0.2"})
    assert (answer.status_code, answer.headers["X-Fal-Request-Timeout-Type"]) == (504, "user")
    assert fal.front_end.parts.jobs.claim_next(worker="fake") is None


def test_run_without_a_place_to_wait_makes_no_job(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(max_waiting_clients=0))
    for path in (RUN, f"{RUN}/stream"):
        answer = fal.call("POST", path, json=fal_input())
        assert answer.status_code == 429
        assert answer.headers["X-Fal-Needs-Retry"] == "1"
    assert fal.front_end.parts.jobs.waiting_count() == 0


def test_every_place_is_given_back(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(max_waiting_clients=1))
    with FakeWorker(fal.front_end, in_steps(fal)):
        for _ in range(2):
            assert fal.call("POST", RUN, json=fal_input()).status_code == 200
            assert fal.call("POST", f"{RUN}/stream", json=fal_input(seed="x")).status_code == 422
            assert len(events_of(fal.call("POST", f"{RUN}/stream", json=fal_input()))) == 4
            request_id = fal.submit()
            over = fal.call("GET", f"/queue/fal-ai/inpaint/requests/{request_id}/status/stream")
            assert events_of(over)[-1]["status"] == "COMPLETED"


def test_the_stream_tells_every_step_and_ends_with_the_output(fal: Fal) -> None:
    with FakeWorker(fal.front_end, in_steps(fal)):
        answer = fal.call("POST", f"{RUN}/stream", json=fal_input(seed=5))
        events = events_of(answer)
    assert events[:-1] == [{"step": step, "num_steps": 3} for step in (1, 2, 3)]
    assert events[-1]["seed"] == 5
    assert answer.headers["x-fal-request-id"]


def test_the_stream_shows_a_preview_beside_the_step_and_each_only_once(fal: Fal) -> None:
    all_parts = fal.front_end.parts

    def paint(job: InpaintJob) -> InpaintJob:
        for step in (1, 2, 3):
            if step < 3:
                assert all_parts.previews.put(job, b"a jpeg", step=step, width=4, height=3)
            fal.beat(job, step, 4)
            time.sleep(0.3)
        assert all_parts.jobs.heartbeat([Beat(job.job_id, job.fence, 3, 4)])[job.job_id].watched
        done = fal.front_end.painted(job)
        return job.succeeded(done.images, at=all_parts.jobs.now(), num_steps=4, notes=done.notes)

    with FakeWorker(fal.front_end, paint):
        events = events_of(fal.call("POST", f"{RUN}/stream", json=fal_input()))
    shown = {"url": "data:image/jpeg;base64,YSBqcGVn", "content_type": "image/jpeg", "width": 4, "height": 3}
    assert events[:-1] == [
        {"step": 1, "num_steps": 4, "images": [shown]},
        {"step": 2, "num_steps": 4, "images": [shown]},
        {"step": 3, "num_steps": 4},
        {"step": 4, "num_steps": 4},
    ]
    assert set(events[-1]) == {"image", "seed"}


def test_nobody_watches_a_job_that_is_run_or_queued_without_a_stream(fal: Fal) -> None:
    heard = []

    def paint(job: InpaintJob) -> InpaintJob:
        heard.append(fal.front_end.parts.jobs.heartbeat([Beat(job.job_id, job.fence, 1, 4)])[job.job_id].watched)
        return fal.front_end.painted(job)

    with FakeWorker(fal.front_end, paint):
        assert fal.call("POST", RUN, json=fal_input()).status_code == 200
        request_id = fal.submit()
        fal.call("GET", f"/queue/fal-ai/inpaint/requests/{request_id}/status/stream").get_data()
    assert heard == [False, False]


def test_a_stream_that_fails_before_its_first_step_has_the_failures_status(fal: Fal) -> None:
    def fail(job: InpaintJob) -> InpaintJob:
        return job.failed(Failure(code="not_an_image", message="-", field="mask_image"), at=time.time())

    with FakeWorker(fal.front_end, fail):
        answer = fal.call("POST", f"{RUN}/stream", json=fal_input())
    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["loc"] == ["body", "mask_url"]


def test_a_stream_that_fails_later_ends_with_what_went_wrong(fal: Fal) -> None:
    def fail(job: InpaintJob) -> InpaintJob:
        fal.beat(job, 1, 3)
        time.sleep(0.3)
        return job.failed(Failure(code="timed_out", message="-"), at=time.time())

    with FakeWorker(fal.front_end, fail):
        events = events_of(fal.call("POST", f"{RUN}/stream", json=fal_input()))
    assert events[0] == {"step": 1, "num_steps": 3}
    assert (events[-1]["status"], events[-1]["detail"][0]["type"]) == (504, "generation_timeout")


def test_a_client_that_hangs_up_gives_its_place_back(open_with: Callable[..., FrontEnd]) -> None:
    fal = Fal(open_with(max_waiting_clients=1))
    request_id = fal.submit()
    path = f"/queue/fal-ai/inpaint/requests/{request_id}/status/stream"
    stream = fal.client.open(path, headers=fal.headers)
    next(stream.iter_encoded())
    assert fal.client.open(path, headers=fal.headers).status_code == 429
    stream.close()
    assert fal.front_end.parts.arrivals.take_place()


# -- tokens -----------------------------------------------------------------------------------------


def test_a_token_opens_the_stream_of_its_application_and_nothing_else(fal: Fal) -> None:
    def token(**body: Any) -> str:
        answer = fal.call("POST", "/rest/tokens/", json=body)
        assert answer.status_code == 200
        given: str = answer.get_json()
        return given

    with FakeWorker(fal.front_end, in_steps(fal)):
        good = token(allowed_apps=["inpaint"], token_expiration=120)
        answer = fal.client.post(f"{RUN}/stream?fal_jwt_token={good}", json=fal_input())
        assert events_of(answer)[-1]["image"]
    for bad in (token(allowed_apps=["flux"]), token(), "nonsense"):
        assert fal.client.post(f"{RUN}/stream?fal_jwt_token={bad}", json=fal_input()).status_code == 401
    assert fal.client.post(RUN, json=fal_input(), headers={"Authorization": f"Key {good}"}).status_code == 401


def test_a_token_ends_with_its_time_and_with_its_key(fal: Fal) -> None:
    short = fal.call("POST", "/rest/tokens", json={"allowed_apps": ["inpaint"], "token_expiration": 1}).get_json()
    other = Fal(fal.front_end, fal.front_end.other_key)
    orphan = other.call("POST", "/rest/tokens", json={"allowed_apps": ["inpaint"]}).get_json()
    keys = KeyStore(fal.front_end.parts.redis)
    keys.revoke(next(key.key_id for key in keys.list() if key.name == "someone else"))
    time.sleep(1.1)
    for token in (short, orphan):
        assert fal.client.post(f"{RUN}/stream?fal_jwt_token={token}", json=fal_input()).status_code == 401


@pytest.mark.parametrize("body", [{"allowed_apps": "inpaint"}, {"token_expiration": "soon"}, [], {"allowed_apps": [1]}])
def test_a_token_for_nonsense_is_refused(fal: Fal, body: Any) -> None:
    assert fal.call("POST", "/rest/tokens/", json=body).status_code in (400, 422)


def test_waiting_for_the_start_ends_as_soon_as_it_is_over(fal: Fal) -> None:
    answers = []
    headers = {"X-Fal-Request-Timeout": "30"}
    asking = threading.Thread(target=lambda: answers.append(fal.call("POST", RUN, json=fal_input(), headers=headers)))
    started = time.monotonic()
    asking.start()
    while fal.front_end.parts.jobs.waiting_count() == 0:
        time.sleep(0.01)
    job = fal.claimed()
    fal.finish(job)
    asking.join(10)
    assert answers[0].status_code == 200
    assert time.monotonic() - started < 5
    stored = fal.front_end.parts.jobs.get(job.job_id)
    assert stored is not None
    assert stored.status is JobStatus.SUCCEEDED
