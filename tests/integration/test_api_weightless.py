"""The model without weights over every wire, without a prompt; and what each wire says where one is needed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from storage.job import InpaintJob
from tests.fal_clients import APP, Fal, fal_input
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with
from tests.stability import a_request, native, pictures

__all__ = ["front_end", "open_with"]

REALTIME, COMMUNITY, V3 = "/api/v6/realtime/inpaint", "/api/v6/images/inpaint", "/api/v3/inpaint"
BLANK: list[dict[str, Any]] = [{"prompt": None}, {"prompt": ""}, {"prompt": "  "}]


def only_job(front_end: FrontEnd) -> InpaintJob:
    job = front_end.parts.jobs.by_number(1)
    assert job is not None
    return job


@pytest.mark.parametrize("as_form", [False, True])
@pytest.mark.parametrize("path", [REALTIME, COMMUNITY, V3])
def test_the_family_takes_a_removal_without_a_prompt(front_end: FrontEnd, path: str, as_form: bool) -> None:
    body = front_end.body(prompt=None, model_id="remove")
    answer = front_end.client.post(path, **{"data" if as_form else "json": body})
    assert answer.get_json()["status"] == "processing", answer.text
    assert (only_job(front_end).model, only_job(front_end).prompt) == ("remove", "")
    assert front_end.work_once().model == "remove"


@pytest.mark.parametrize("prompt", BLANK)
@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        (REALTIME, 400, "prompt is required"),
        (COMMUNITY, 400, "prompt is required"),
        (V3, 200, {"prompt": ["The prompt field is required."]}),
    ],
)
def test_the_family_asks_for_a_prompt_where_a_model_paints(
    front_end: FrontEnd, path: str, status: int, message: Any, prompt: dict[str, Any]
) -> None:
    body = {**front_end.body(model_id="doodle"), **prompt}
    answer = front_end.client.post(path, json=body)
    assert answer.status_code == status
    assert (answer.get_json()["status"], answer.get_json()["message"]) == ("error", message)
    assert front_end.parts.jobs.by_number(1) is None


def test_a_bad_field_beside_a_missing_prompt_is_named_too(front_end: FrontEnd) -> None:
    answer = front_end.client.post(V3, json=front_end.body(prompt=None, samples=9))
    assert list(answer.get_json()["message"]) == ["prompt", "samples"]


def test_the_word_none_is_a_prompt(front_end: FrontEnd) -> None:
    front_end.submit(V3, prompt="none", enhance_prompt="no")
    assert only_job(front_end).prompt == "none"


@pytest.mark.parametrize("prompt", [{}, *BLANK])
def test_fal_takes_a_removal_without_a_prompt(front_end: FrontEnd, prompt: dict[str, Any]) -> None:
    fal = Fal(front_end)
    submitted = fal.call("POST", APP, json={**fal_input(prompt=None, model_name="remove"), **prompt}).get_json()
    assert only_job(front_end).prompt == ""
    front_end.work_once()
    assert fal.result(submitted["request_id"]).status_code == 200


@pytest.mark.parametrize(("prompt", "kind"), [({}, "missing"), ({"prompt": None}, "string_type")])
def test_fal_says_at_the_result_that_a_prompt_is_missing(
    front_end: FrontEnd, prompt: dict[str, Any], kind: str
) -> None:
    fal = Fal(front_end)
    submitted = fal.call("POST", APP, json={**fal_input(prompt=None), **prompt}).get_json()
    answer = fal.result(submitted["request_id"])
    assert answer.status_code == 422
    [row] = answer.get_json()["detail"]
    assert (row["loc"], row["type"]) == (["body", "prompt"], kind)


def test_fal_takes_an_empty_prompt_for_any_model(front_end: FrontEnd) -> None:
    fal = Fal(front_end)
    request_id = fal.submit(prompt="")
    front_end.work_once()
    assert fal.result(request_id).status_code == 200


def test_stability_takes_a_removal_without_a_text_and_asks_for_one_elsewhere(front_end: FrontEnd) -> None:
    request = a_request(engine_id="remove")
    del request.prompt[0]
    with FakeWorker(front_end), native(front_end) as channel:
        assert len(pictures(channel.generate(request, timeout=20))) == 1
        assert (only_job(front_end).model, only_job(front_end).prompt) == ("remove", "")
        request.engine_id = "doodle"
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.generate(request, timeout=20))
    error: Any = refused.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "no prompts provided")
