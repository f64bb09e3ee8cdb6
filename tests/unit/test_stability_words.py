"""Every refusal and every failure as a gRPC status."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from api.dialects import stability
from api.dialects.stability.errors import (
    FAILURE_WORDS,
    PROBLEM_WORDS,
    WORDS,
    Code,
    as_status,
    status_of_failure,
    status_of_refusal,
)
from api.errors import InvalidFields, Problem, Refused
from storage.errors import StorageUnavailable
from storage.job import Failure
from tests.jobs import a_job
from tests.unit.test_dialect_words import failure_codes, refusals


class QuotaExhausted(Refused):
    """There is nothing left on this account."""

    code = "brand_new_refusal"
    status = HTTPStatus.PAYMENT_REQUIRED


@pytest.mark.parametrize("refusal", list(refusals()), ids=lambda refusal: refusal.code)
def test_every_refusal_has_a_status_and_words(refusal: Refused) -> None:
    status = status_of_refusal(refusal)
    assert status.code is not Code.OK
    assert status.message
    assert "{" not in status.message
    assert refusal.code in WORDS or isinstance(refusal, InvalidFields)


@pytest.mark.parametrize("code", sorted(failure_codes()))
def test_every_failure_has_a_status_and_words(code: str) -> None:
    assert code in FAILURE_WORDS
    status = status_of_failure(Failure(code=code, message="a text that stays inside", field="mask_image"))
    assert "stays inside" not in status.message
    assert "{" not in status.message


def test_only_an_empty_account_and_a_message_too_large_are_exhausted_resources() -> None:
    assert {code for code, (status, _) in WORDS.items() if status is Code.RESOURCE_EXHAUSTED} == {"body_too_large"}
    assert "message larger than max" in WORDS["body_too_large"][1]
    assert not [code for code, (status, _) in FAILURE_WORDS.items() if status is Code.RESOURCE_EXHAUSTED]
    status = status_of_refusal(QuotaExhausted())
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "There is nothing left on this account.")


def test_several_problems_are_told_together() -> None:
    problems = [Problem("samples", "out_of_range", {"low": 1, "high": 10}), Problem("mask_image", "missing")]
    assert status_of_refusal(InvalidFields(problems)).message == (
        "samples must be between 1 and 10; mask_image is required"
    )
    assert PROBLEM_WORDS


def test_what_was_not_expected_is_not_shown() -> None:
    assert "secret" not in as_status(RuntimeError("secret")).message
    assert as_status(StorageUnavailable("secret")).code is Code.UNAVAILABLE
    assert "secret" not in as_status(StorageUnavailable("secret")).message


def test_outside_of_calls_errors_are_http_with_the_status_beside() -> None:
    wire = stability.render_error(QuotaExhausted())
    assert wire.headers["grpc-status"] == str(Code.RESOURCE_EXHAUSTED.value[0])
    failed = a_job(dialect="stability").failed(Failure(code="timed_out", message="-"), at=1.0)
    assert stability.render_webhook(failed).body["message"] == "The picture took too long."
