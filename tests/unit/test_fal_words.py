"""Every refusal and every failure has words in fal's dialect, in the shape that its clients read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from api.dialects import fal
from api.dialects.fal.output import logs, render_status
from api.dialects.fal.words import render_failure, shown
from api.errors import Refused
from storage.job import Failure
from tests.jobs import a_job
from tests.unit.test_dialect_words import failure_codes, refusals

MOMENT = 1_700_000_001.0


def held_to_the_wire(status: int, body: Any, headers: Any) -> None:
    assert status >= 400
    detail = body["detail"]
    if isinstance(detail, str):
        assert body["message"] == detail
        assert "{" not in detail
        assert headers.get("X-Fal-Error-Type") == body.get("error_type")
        return
    for row in detail:
        assert all(isinstance(part, str) for part in row["loc"])
        assert row["msg"]
        assert "{" not in row["msg"]
        assert row["url"].endswith(f"#{row['type']}")


@pytest.mark.parametrize("refusal", list(refusals()), ids=lambda refusal: refusal.code)
def test_every_refusal_is_said_in_its_words(refusal: Refused) -> None:
    wire = fal.render_error(refusal)
    held_to_the_wire(wire.status, wire.body, wire.headers)
    if refusal.status == 429:
        assert wire.headers["Retry-After"] == "7"
        assert wire.headers["X-Fal-Needs-Retry"] == "1"
    if refusal.code != "internal_error":
        assert wire.body.get("error_type") != "internal_error"


@pytest.mark.parametrize("code", sorted(failure_codes()))
def test_every_failure_is_said_at_the_result_and_in_the_status(code: str) -> None:
    failure = Failure(code=code, message="a text that stays inside", field="mask_image")
    wire = render_failure(failure)
    held_to_the_wire(wire.status, wire.body, wire.headers)
    job = a_job(dialect="fal").failed(failure, at=MOMENT)
    status = render_status(job, queue_base="https://q", position=None, with_logs=True)
    assert status["status"] == "COMPLETED"
    assert status["error"] == f"Invalid status code: {int(wire.status)}"
    assert status["error_type"]
    told = json.dumps([wire.body, status, dict(fal.render_webhook(job).body)])
    assert "stays inside" not in told
    if code != "internal_error":
        assert "Internal server error" not in told


def test_a_code_of_a_newer_worker_is_a_failure_without_reasons() -> None:
    assert render_failure(Failure(code="brand_new", message="-")).status == 500


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * 300, "x" * 199 + "…"),
        (float("nan"), "nan"),
        ({"a": {"b": {"c": {"d": {"e": 1}}}}}, {"a": {"b": {"c": {"d": "…"}}}}),
        ([1] * 60, [1] * 50),
        (True, True),
    ],
)
def test_what_is_given_back_of_an_input_is_bounded(value: Any, expected: Any) -> None:
    assert shown(value) == expected


def test_steps_that_nobody_saw_lie_evenly_between_those_that_somebody_did() -> None:
    job = a_job(dialect="fal").claimed(at=1000.0)
    assert logs(job) == []
    seen = [line["timestamp"][17:23] for line in logs(dataclasses.replace(job, step_marks=((2, 1002.0), (3, 1004.0))))]
    assert seen == ["41.000", "42.000", "44.000"]
