"""Every code, of refusals and of failures, has words in every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import pytest

import worker.errors
from api import jobs
from api.dialects import modelslab, stable_diffusion_v3
from api.errors import InvalidFields, Problem, Refused, all_refusals
from storage.job import Failure
from tests.jobs import a_job

DIALECTS = [modelslab, stable_diffusion_v3]
PROBLEM_KINDS = (
    *("missing", "not_text", "not_an_integer", "not_a_number", "not_finite", "not_a_flag", "out_of_range"),
    *("too_small", "too_long", "not_a_choice", "no_safety_checker"),
    *("unknown_addon", "other_family", "wrong_count", "too_many"),
)
FACTS = {"low": 1, "high": 9, "choices": "a, b", "value": "c", "limit": 5, "name": "m"}
FACTS |= {"model": "m", "expected": 2}
FROM_THE_STORE = {"worker_lost", "storage_unavailable", "cancelled"}


def refusals() -> Iterator[Refused]:
    for kind in all_refusals():
        if kind.__module__ != "api.errors":
            continue
        if kind is InvalidFields:
            yield from (InvalidFields([Problem("width", each, FACTS)]) for each in PROBLEM_KINDS)
        else:
            yield kind(
                field="width", retry_after_seconds=7, **{n: v for n, v in FACTS.items() if n not in ("low", "high")}
            )


def failure_codes() -> set[str]:
    def below(kind: type) -> Iterator[type]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    return {kind.code for kind in below(worker.errors.JobFailed)} | FROM_THE_STORE  # type: ignore[attr-defined]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
@pytest.mark.parametrize("refusal", list(refusals()), ids=lambda refusal: refusal.code)
def test_every_refusal_is_said_in_the_words_of_every_dialect(dialect: ModuleType, refusal: Refused) -> None:
    wire = dialect.render_error(refusal)
    said = json.dumps(wire.body)
    assert "{" not in said.strip("{}").replace('{"width": [', "")
    assert wire.body["status"] in ("error", "failed")
    assert wire.body["message"]
    assert wire.body["messege"] == wire.body["message"]
    if refusal.status == 429:
        assert wire.body["retry_after"] == 7
        assert wire.headers["Retry-After"] == "7"


@pytest.mark.parametrize("refusal", list(refusals()), ids=lambda refusal: refusal.code)
def test_every_refusal_has_our_own_words(refusal: Refused) -> None:
    error = jobs.render_error(refusal).body["error"]
    assert error["code"] == refusal.code
    assert error["message"].endswith(".")
    assert error["field"] == "width"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
@pytest.mark.parametrize("code", sorted(failure_codes()))
def test_every_failure_is_said_in_the_words_of_every_dialect(dialect: ModuleType, code: str) -> None:
    assert code in dialect.FAILURE_WORDS
    failure = Failure(code=code, message="a text that stays inside", field="mask_image")
    job = a_job(number=5, dialect=dialect.NAME).failed(failure, at=1_700_000_001.0)
    for body in (dialect.render(job, eta=0.0), dialect.render_fetch(job, eta=0.0), dialect.render_webhook(job).body):
        assert body["message"]
        assert "{" not in body["message"]
        assert "stays inside" not in json.dumps(dict(body))
        assert body["id"] == 5


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
def test_a_code_of_a_newer_worker_is_a_failure_without_reasons(dialect: ModuleType) -> None:
    job = a_job().failed(Failure(code="brand_new", message="-"), at=1_700_000_001.0)
    assert dialect.render_fetch(job, eta=0.0)["message"] == "Failed, Try Again"


def test_v6_answers_with_real_codes_and_v3_with_200_for_callers_errors() -> None:
    for refusal in refusals():
        v6 = modelslab.render_error(refusal).status
        v3 = stable_diffusion_v3.render_error(refusal).status
        assert v6 == refusal.status
        is_real = refusal.status in (413, 405, 500, 503) or refusal.code == "not_found"
        assert v3 == (refusal.status if is_real else 200)


def test_v3_says_what_is_wrong_with_each_field() -> None:
    problems = [Problem("prompt", "missing"), Problem("width", "out_of_range", {"low": 64, "high": 1024})]
    assert stable_diffusion_v3.render_error(InvalidFields(problems)).body["message"] == {
        "prompt": ["The prompt field is required."],
        "width": ["The width must be between 64 and 1024."],
    }


def test_v6_says_the_first_problem() -> None:
    problems = [Problem("width", "out_of_range", {"low": 64, "high": 1024}), Problem("prompt", "missing")]
    assert modelslab.render_error(InvalidFields(problems)).body["message"] == "width must be between 64 and 1024"
