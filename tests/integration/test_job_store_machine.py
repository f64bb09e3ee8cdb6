"""Any order of submits, claims, crashes, cancels and ends: no job is lost, none is done twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from storage.job import Failure, InpaintJob, JobStatus, Priority
from storage.job_store import Beat, JobStore, open_redis
from storage.settings import StorageSettings
from tests.jobs import a_job


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def machine(redis_url: str) -> Iterator[type[RuleBasedStateMachine]]:  # noqa: C901 (one machine, many rules)
    store_settings = StorageSettings(redis_url=redis_url)
    client = open_redis(store_settings)

    class Jobs(RuleBasedStateMachine):
        claims = Bundle("claims")
        ids = Bundle("ids")

        def __init__(self) -> None:
            super().__init__()
            client.flushall()
            self.clock = Clock()
            self.store = JobStore(client, store_settings, clock=self.clock)
            self.submitted: set[str] = set()
            self.ended: dict[str, JobStatus] = {}
            self.leases: dict[str, int] = {}  # job id -> the newest fence handed out

        @rule(target=ids, key=st.sampled_from("abc"), priority=st.sampled_from(Priority))
        def submit(self, key: str, priority: Priority) -> str:
            job = self.store.submit(a_job(key_id=key, priority=priority, webhook_url="https://example.com/"))
            self.submitted.add(job.job_id)
            return job.job_id

        @rule(target=claims)
        def claim(self) -> InpaintJob | None:
            job = self.store.claim_next(worker="w")
            if job is None:
                assert self.store.waiting_count() == 0
            else:
                assert job.job_id not in self.ended
                assert job.fence > self.leases.get(job.job_id, 0)
                self.leases[job.job_id] = job.fence
            return job

        @rule(job=claims)
        def beat(self, job: InpaintJob | None) -> None:
            if job is not None and self.store.heartbeat([Beat(job.job_id, job.fence, 1, 2)])[job.job_id].alive:
                assert job.job_id not in self.ended and self.leases[job.job_id] == job.fence

        @rule(job=consumes(claims), how=st.sampled_from(["succeeded", "failed", "cancelled", "given_back"]))
        def finish(self, job: InpaintJob | None, how: str) -> None:
            if job is None:
                return
            after = {
                "succeeded": lambda: job.succeeded((), at=self.clock.now),
                "failed": lambda: job.failed(Failure(code="c", message="m"), at=self.clock.now),
                "cancelled": lambda: job.cancelled(at=self.clock.now),
                "given_back": job.given_back,
            }[how]()
            if self.store.finish(after):
                assert self.leases[job.job_id] == job.fence
                self.note_ends()

        @rule(job_id=ids)
        def cancel(self, job_id: str) -> None:
            job = self.store.cancel(job_id)
            assert job is not None
            assert job.status.is_final or job.cancel_requested
            self.note_ends()

        @rule(seconds=st.sampled_from([1, 10, 16]))
        def wait(self, seconds: int) -> None:
            self.clock.now += seconds

        @rule()
        def return_expired(self) -> None:
            self.store.return_expired_leases()
            self.note_ends()

        def note_ends(self) -> None:
            for job_id in self.submitted:
                job = self.store.get(job_id)
                assert job is not None
                if job.status.is_final:
                    assert self.ended.setdefault(job_id, job.status) is job.status

        @invariant()
        def every_job_is_somewhere_and_only_there(self) -> None:
            jobs = [self.store.get(job_id) for job_id in self.submitted]
            statuses = [job.status for job in jobs if job is not None]
            assert len(statuses) == len(self.submitted)
            assert self.store.waiting_count() == statuses.count(JobStatus.QUEUED)
            assert len(self.store.processing()) == statuses.count(JobStatus.PROCESSING)

        def teardown(self) -> None:
            """Whatever happened, all that is left can be brought to an end, and every end is announced once."""
            self.clock.now += 1000
            self.store.return_expired_leases()
            while (job := self.store.claim_next(worker="last")) is not None:
                assert self.store.finish(job.succeeded((), at=self.clock.now))
            due = self.store.claim_due_webhooks(1000, hold_seconds=1)
            assert sorted(due) == sorted(self.submitted)

    yield Jobs
    client.close()


def test_no_job_is_lost_and_none_is_done_twice(machine: type[RuleBasedStateMachine]) -> None:
    limits = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=limits)
