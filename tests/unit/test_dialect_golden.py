"""Each dialect's answers, held to files: a body as clients send it, the job it becomes, every answer it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.dialects.family_answers import FailureAnswer, ProcessingAnswer, SuccessAnswer
from tests.golden_pairs import answers, dialect_of, golden_files, job_facts, parsed


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_body_becomes_the_job_and_the_answers_of_its_golden_file(path: Path) -> None:
    pair = json.loads(path.read_text())
    dialect = dialect_of(path)
    job = parsed(dialect, pair["variant"], pair["body"])
    assert json.loads(json.dumps(job_facts(job))) == pair["job"]
    given = answers(dialect, job)
    assert json.loads(json.dumps(given)) == pair["answers"]
    # Byte for byte, so the order of the names too.
    assert json.dumps(given, indent=2) == json.dumps(pair["answers"], indent=2)


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_golden_answers_are_what_openapi_promises(path: Path) -> None:
    golden = json.loads(path.read_text())["answers"]
    for name, model in {
        "processing": ProcessingAnswer,
        "fetch_processing": ProcessingAnswer,
        "success": SuccessAnswer,
        "fetch_success": SuccessAnswer,
        "error": FailureAnswer,
        "fetch_failed": FailureAnswer,
    }.items():
        model.model_validate(golden[name], strict=True)


def test_every_dialect_has_golden_files() -> None:
    assert {path.parent.name for path in golden_files()} == {"modelslab", "stable_diffusion_v3"}
