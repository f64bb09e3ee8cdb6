"""The truth about every job: records, the waiting index, leases and due times, in Redis.

Each change of a job's state is one Lua script, so one transaction. See storage/scripts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from storage import cancellations
from storage.cancellations import Cancellations
from storage.due_times import HOLD_SECONDS, DueTimes, ExpiryKind
from storage.errors import StorageUnavailable
from storage.job import OBJECT_REFERENCE, Failure, InpaintJob, JobStatus, Priority, ResultImage
from storage.redis_client import PREFIX, Scripts, open_redis, redis_key, redis_outages
from storage.roster import Roster, Runtime
from storage.settings import DAY_SECONDS, StorageSettings

__all__ = [
    "DONE_CHANNEL",
    "Beat",
    "ExpiryKind",
    "Idempotency",
    "IdempotencyConflict",
    "JobStore",
    "Pulse",
    "QueueFull",
    "Runtime",
    "open_redis",
]

DONE_CHANNEL = PREFIX + "done"
IDEMPOTENCY_SECONDS = DAY_SECONDS
LEASES_AT_ONCE = 100
PRIORITIES = sorted((priority.value for priority in Priority), reverse=True)


class QueueFull(Exception):
    """This key has as many jobs waiting as it may have."""

    def __init__(self, waiting: int) -> None:
        super().__init__(self.__doc__)
        self.waiting = waiting


class IdempotencyConflict(Exception):
    """The idempotency key was used before, with another body."""


@dataclass(frozen=True)
class Idempotency:
    """A client's own name for a submission (scoped to its API key), and a digest of the body."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Beat:
    """What a worker says about a job it holds."""

    job_id: str
    fence: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class Pulse:
    """What it hears back. Not alive: the lease is another's now, or the job is over."""

    alive: bool
    cancelled: bool
    watched: bool = False
    """Somebody wants to see previews."""


class JobStore(DueTimes, Roster):
    """All methods raise StorageUnavailable while Redis is out of service."""

    def __init__(
        self, client: redis.Redis, settings: StorageSettings, *, clock: Callable[[], float] | None = None
    ) -> None:
        super().__init__(client, clock=clock)
        self._settings = settings
        scripts = Scripts(client)
        self._submit = scripts.load("submit")
        self._claim = scripts.load("claim")
        self._transition = scripts.load("transition")
        self._heartbeat = scripts.load("heartbeat")
        self._position = scripts.load("position")
        self._look = scripts.load("look")
        self._publish = scripts.load("publish")

    # -- the API's side ---------------------------------------------------------------------------

    def submit(
        self, job: InpaintJob, *, max_waiting: int | None = None, idempotency: Idempotency | None = None
    ) -> InpaintJob:
        """Store the job, in the waiting index unless it is final already; answers it with its number.

        With an idempotency key that is known, answers the job stored then. Raises QueueFull and
        IdempotencyConflict. Storing the same job twice stores it once.
        """
        submission: dict[str, Any] = {
            "job_id": job.job_id,
            "image_id": job.image_id,
            "key_id": job.key_id,
            "priority": job.priority.value,
            "priorities": PRIORITIES,
            "model": job.model,
            "status": job.status.value,
            "inputs": _stored_inputs(job),
            "not_after": self.now() + self._settings.redis_timeout_seconds,
        }
        if job.start_by is not None:
            submission["start_by"] = job.start_by
        if max_waiting is not None:
            submission["max_waiting"] = max_waiting
        if idempotency is not None:
            submission["idempotency"] = {
                "key": idempotency.key,
                "fingerprint": idempotency.fingerprint,
                "seconds": IDEMPOTENCY_SECONDS,
            }
        if job.status.is_final:
            submission["ending"] = self._ending(job, inputs=[])
        with redis_outages():
            outcome, value = self._submit(self._given_now(), json.dumps(submission), _dump(job))
        if outcome == "late":
            raise StorageUnavailable("Redis: it answered too late")
        if outcome == "full":
            raise QueueFull(int(value))
        if outcome == "conflict":
            raise IdempotencyConflict(IdempotencyConflict.__doc__)
        if outcome == "created":
            return dataclasses.replace(job, number=int(value))
        stored = self.get(value)
        if stored is None:
            raise LookupError(f"job {value} vanished while it was submitted")
        return stored

    def get(self, job_id: str) -> InpaintJob | None:
        with redis_outages():
            return _load(self._redis.hgetall(redis_key("job", job_id)))

    def look(self, job_id: str) -> tuple[InpaintJob, int | None] | None:
        """The job, and how many jobs will be claimed before it while it waits: one round trip."""
        with redis_outages():
            fields, ahead = self._look(job_id, json.dumps(PRIORITIES))
        job = _load(dict(zip(fields[::2], fields[1::2], strict=True)))
        return None if job is None else (job, ahead)

    def by_number(self, number: int) -> InpaintJob | None:
        return self._by_alias(redis_key("number", number))

    def by_image_id(self, image_id: str) -> InpaintJob | None:
        return self._by_alias(redis_key("image", image_id))

    def position(self, job: InpaintJob) -> int:
        """How many jobs will be claimed before this one; 0 as well for a job that no longer waits."""
        with redis_outages():
            return int(self._position(job.job_id, json.dumps(PRIORITIES)) or 0)

    def waiting_count(self, key_id: str | None = None) -> int:
        """Jobs in the waiting index: one key's, or all."""
        with redis_outages():
            rings = {p: [key_id] if key_id else self._redis.zrange(redis_key("waiting", p), 0, -1) for p in PRIORITIES}
            with self._redis.pipeline(transaction=False) as pipeline:
                for priority, key_ids in rings.items():
                    for each in key_ids:
                        pipeline.zcard(redis_key("waiting", priority, each))
                return sum(pipeline.execute())

    def processing(self) -> list[InpaintJob]:
        with redis_outages(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in self._redis.zrange(redis_key("leases"), 0, -1):
                pipeline.hgetall(redis_key("job", job_id))
            jobs = [_load(fields) for fields in pipeline.execute()]
        return [job for job in jobs if job is not None]

    def cancel(self, job_id: str) -> InpaintJob | None:
        """A queued job is cancelled now; a running one leaves at its next step; a final one stays."""
        while (job := self.get(job_id)) is not None:
            if job.status is JobStatus.QUEUED:
                if self._change(job, job.cancelled(at=self.now())):
                    break
            elif job.status is JobStatus.PROCESSING:
                with redis_outages(), self._redis.pipeline() as pipeline:
                    pipeline.hset(redis_key("job", job_id), "cancel", "1")
                    pipeline.publish(cancellations.CHANNEL, job_id)
                    pipeline.execute()
                break
            else:
                break
        return self.get(job_id)

    def fail_late_start(self, job: InpaintJob) -> bool:
        """Fail a queued job that nobody has claimed by its `start_by`. False: it does not wait any more."""
        failure = Failure(code="start_timed_out", message="No worker took the job in the time it was given to start.")
        return self._change(job, job.failed(failure, at=self.now()))

    def fail_late_starts(self, limit: int) -> list[InpaintJob]:
        """The same for every job whose time to start is over. A job that was claimed once has started."""
        with redis_outages():
            due = self._take_due(self._given_now(), "starts", limit, HOLD_SECONDS)
        late = []
        for job_id in due:
            job = self.get(job_id)
            if job is not None and job.status is JobStatus.QUEUED and not job.fence and self.fail_late_start(job):
                late.append(job)
            with redis_outages():
                self._redis.zrem(redis_key("starts"), job_id)
        return late

    # -- the worker's side ------------------------------------------------------------------------

    def claim_next(
        self, *, worker: str, resident_models: Collection[str] = (), full_models: Collection[str] = ()
    ) -> InpaintJob | None:
        """Take the job whose turn it is: highest priority, then round robin over keys, then oldest.

        A job whose model is resident may go first, until another has waited `model_patience_seconds`. Jobs of
        `full_models` are left for later, or for another worker; only the first few of each key are looked at.
        """
        arguments = (
            self._settings.lease_seconds,
            self._settings.model_patience_seconds,
            json.dumps(list(resident_models)) if resident_models else "[]",
            json.dumps(PRIORITIES),
            json.dumps(list(full_models)) if full_models else "[]",
        )
        with redis_outages():
            claim = self._claim(self._given_now(), *arguments)
            if not claim:
                return None
            fields, now = claim
            before = _load(dict(zip(fields[::2], fields[1::2], strict=True)))
            if before is None:
                raise LookupError("a job without a record stood in the waiting index")
            self._redis.hset(redis_key("job", before.job_id), "worker", worker)
        return before.claimed(at=float(now))

    def heartbeat(self, beats: Sequence[Beat]) -> dict[str, Pulse]:
        """Renew the leases of the jobs held, write their progress, hear of cancels and watchers: one round trip."""
        if not beats:
            return {}
        rows = [[beat.job_id, beat.fence, beat.step, beat.num_steps] for beat in beats]
        with redis_outages():
            answers = self._heartbeat(self._given_now(), self._settings.lease_seconds, json.dumps(rows))
        return {
            beat.job_id: Pulse(alive=state != "lost", cancelled=state == "cancel", watched=bool(watched))
            for beat, (state, watched) in zip(beats, answers, strict=True)
        }

    def publish(self, job: InpaintJob, images: Sequence[ResultImage]) -> bool:
        """Note the pictures that a claimed job has so far, and wake who waits. False: the lease was lost."""
        with redis_outages():
            return bool(self._publish(job.job_id, job.fence, json.dumps([dataclasses.asdict(each) for each in images])))

    def cancellations(self) -> Cancellations:
        return Cancellations(self._redis)

    def finish(self, job: InpaintJob) -> bool:
        """End a claim: `job` is the claimed job after its last verb (an outcome, or back to the queue).

        False: the lease was lost to another, and nothing was changed. A job that goes back although its
        client cancelled it is cancelled.
        """
        return self._end_claim(job, only_expired=False)

    def return_expired_leases(self) -> list[InpaintJob]:
        """Jobs whose worker went silent: back to the queue, or failed after the last attempt."""
        with redis_outages():
            expired = self._redis.zrangebyscore(redis_key("leases"), "-inf", self.now(), start=0, num=LEASES_AT_ONCE)
        changed = []
        for job_id in expired:
            job = self.get(job_id)
            if job is None or job.status is not JobStatus.PROCESSING:
                with redis_outages():
                    self._redis.zrem(redis_key("leases"), job_id)
            elif self._end_claim(after := self._after_lost_worker(job), only_expired=True):
                changed.append(after)
        return changed

    def _after_lost_worker(self, job: InpaintJob) -> InpaintJob:
        if job.cancel_requested:
            return job.cancelled(at=self.now())
        if job.attempts < self._settings.max_attempts:
            return job.returned()
        message = f"The worker was lost {job.attempts} times while it painted this job."
        return job.failed(Failure(code="worker_lost", message=message), at=self.now())

    def _end_claim(self, job: InpaintJob, *, only_expired: bool) -> bool:
        if job.status is JobStatus.QUEUED and (stored := self.get(job.job_id)) and stored.cancel_requested:
            job = job.cancelled(at=self.now())
        return self._change(job, job, was=JobStatus.PROCESSING, only_expired=only_expired)

    def drop_record(self, job_id: str) -> None:
        """Delete all that is known of a job that is over. Its pictures are the caller's to delete first."""
        job = self.get(job_id)
        with redis_outages(), self._redis.pipeline() as pipeline:
            if job is not None:
                pipeline.delete(redis_key("number", job.number), redis_key("image", job.image_id))
            pipeline.delete(redis_key("job", job_id))
            pipeline.zrem(redis_key("webhooks"), job_id)
            pipeline.zrem(redis_key("starts"), job_id)
            pipeline.zrem(redis_key("expiry", "records"), job_id)
            pipeline.execute()

    # -- inside -----------------------------------------------------------------------------------

    def _change(
        self,
        before: InpaintJob,
        after: InpaintJob,
        *,
        was: JobStatus | None = None,
        only_expired: bool = False,
    ) -> bool:
        change: dict[str, Any] = {
            "job_id": after.job_id,
            "key_id": after.key_id,
            "priority": after.priority.value,
            "number": after.number,
            "status": after.status.value,
            "attempts": after.attempts,
            "fence": after.fence,
            "expected_status": (was or before.status).value,
            "only_expired": only_expired,
        }
        if after.status.is_final:
            change["ending"] = self._ending(after, inputs=_stored_inputs(after))
        with redis_outages():
            return bool(self._transition(self._given_now(), json.dumps(change), _dump(after)))

    def _ending(self, job: InpaintJob, *, inputs: list[str]) -> dict[str, Any]:
        ending: dict[str, Any] = {
            "webhook": job.webhook_url is not None,
            "record_ttl": self._settings.record_ttl,
        }
        if inputs:
            ending |= {"inputs": inputs, "input_ttl": self._settings.input_ttl}
        if job.images:
            ttl = self._settings.temporary_result_ttl if job.temporary else self._settings.result_ttl
            ending["results_ttl"] = ttl
        return ending

    def _by_alias(self, alias: str) -> InpaintJob | None:
        with redis_outages():
            job_id = self._redis.get(alias)
        return self.get(job_id) if job_id else None


def _stored_inputs(job: InpaintJob) -> list[str]:
    references = {job.init_image, job.mask_image}
    if job.ip_adapter is not None:
        references.add(job.ip_adapter.image)
    return sorted(each.removeprefix(OBJECT_REFERENCE) for each in references if each.startswith(OBJECT_REFERENCE))


def _dump(job: InpaintJob) -> str:
    return json.dumps(job.to_record(), sort_keys=True)


def _load(fields: Mapping[str, str]) -> InpaintJob | None:
    if "record" not in fields:
        return None
    record = json.loads(fields["record"])
    record["number"] = int(fields["number"])
    record["status"] = fields["status"]
    record["fence"] = int(fields["fence"])
    record["attempts"] = int(fields["attempts"])
    record["cancel_requested"] = "cancel" in fields
    if "marks" in fields:
        record["step_marks"] = [mark.split("@") for mark in fields["marks"].split()]
    if fields["status"] == JobStatus.PROCESSING:
        record["started_at"] = float(fields["started_at"])
        record["step"] = int(fields.get("step", 0))
        record["num_steps"] = int(fields.get("num_steps", 0))
        record["images"] = json.loads(fields.get("images", "[]"))
    return InpaintJob.from_record(record)
