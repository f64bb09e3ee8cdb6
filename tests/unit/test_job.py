import json

import pytest

from storage.job import Failure, InpaintJob, InvalidTransition, JobStatus, MaskedAreaInit, ResultImage, WeightedPrompt
from tests.jobs import a_job

VERBS = {
    "claimed": lambda job: job.claimed(at=2.0),
    "returned": lambda job: job.returned(),
    "given_back": lambda job: job.given_back(),
    "succeeded": lambda job: job.succeeded((), at=3.0),
    "failed": lambda job: job.failed(Failure(code="internal_error", message="m"), at=3.0),
    "cancelled": lambda job: job.cancelled(at=3.0),
}
ALLOWED = {
    JobStatus.QUEUED: {"claimed", "failed", "cancelled"},
    JobStatus.PROCESSING: {"returned", "given_back", "succeeded", "failed", "cancelled"},
    JobStatus.SUCCEEDED: set(),
    JobStatus.FAILED: set(),
    JobStatus.CANCELLED: set(),
}


def in_status(status: JobStatus) -> InpaintJob:
    queued = a_job()
    processing = queued.claimed(at=2.0)
    return {
        JobStatus.QUEUED: queued,
        JobStatus.PROCESSING: processing,
        JobStatus.SUCCEEDED: processing.succeeded((), at=3.0),
        JobStatus.FAILED: VERBS["failed"](processing),
        JobStatus.CANCELLED: processing.cancelled(at=3.0),
    }[status]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", JobStatus)
def test_each_verb_works_from_its_states_and_no_other(status: JobStatus, verb: str) -> None:
    job = in_status(status)
    if verb in ALLOWED[status]:
        assert VERBS[verb](job).status is not job.status
    else:
        with pytest.raises(InvalidTransition):
            VERBS[verb](job)


def test_a_crash_costs_an_attempt_and_an_orderly_stop_does_not() -> None:
    claimed = a_job().claimed(at=1.0)
    assert claimed.returned().attempts == 1
    assert claimed.given_back().attempts == 0
    assert claimed.given_back().fence == 1


def test_a_job_survives_its_record_as_json() -> None:
    image = ResultImage(key="results/a/1/0.png", seed=7, width=64, height=48, size_bytes=99)
    done = a_job(wire={"ignored": ["vae"]}).claimed(at=2.0).succeeded((image,), at=3.0, notes={"model": "doodle"})
    failed = a_job().failed(Failure(code="c", message="m", field="f", detail={"a": 1}), at=2.0)
    for job in (done, failed):
        assert InpaintJob.from_record(json.loads(json.dumps(job.to_record()))) == job


def test_the_seed_of_a_picture_wraps_at_32_bits() -> None:
    assert [a_job(seed=2**32 - 2).seed_of(index) for index in range(3)] == [2**32 - 2, 2**32 - 1, 0]


def test_the_log_context_holds_no_picture_prompt_or_webhook() -> None:
    job = a_job(init_image="https://host/secret.png?sig=1", webhook_url="https://hook/?t=1", prompt="private")
    assert not {"secret", "hook", "private"} & set(" ".join(map(str, job.log_context().values())).split())
    assert "secret" not in str(job.log_context()) and "hook" not in str(job.log_context())


def test_listed_seeds_count_before_those_that_go_on_from_the_first() -> None:
    job = a_job(seed=5, seeds=(5, 100), num_images=3)
    assert [job.seed_of(index) for index in range(3)] == [5, 100, 7]


def test_weights_seeds_and_fill_are_read_back_and_missing_in_old_records() -> None:
    job = a_job(
        weighted_prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", -2.0)),
        seeds=(1, 9),
        masked_area_init=MaskedAreaInit.RANDOM,
    )
    record = json.loads(json.dumps(job.to_record()))
    assert InpaintJob.from_record(record) == job
    for name in ("weighted_prompts", "seeds", "masked_area_init"):
        del record[name]
    assert InpaintJob.from_record(record) == a_job(job_id=job.job_id, image_id=job.image_id)
