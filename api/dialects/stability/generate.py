"""Generate: a request becomes a job like any other, and its answers follow the job until it is over."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from api.dialects.stability.answers import Envelope
from api.dialects.stability.calls import Call
from api.dialects.stability.errors import Code, WireStatus, status_of_failure
from api.dialects.stability.joining import Stay, sameness, submit_or_join
from api.dialects.stability.parse import Circumstances, parse
from api.dialects.stability.proto import generation_pb2 as wire
from api.inputs import Intake
from api.parts import Parts
from api.submission import count_submit
from storage.errors import StorageUnavailable
from storage.image_store import ObjectMissing
from storage.job import MAX_SEED, InpaintJob, JobStatus

KEEP_ALIVE_SECONDS = 1.0


def generate(parts: Parts, call: Call, request: wire.Request) -> Iterator[wire.Answer]:
    """One answer for each picture as it is finished; one without artifacts about every second until then.

    Raises WireStatus, Refused, NoPlace and StorageUnavailable.
    """
    api_key = call.admit(parts.doorkeeper)
    now = parts.clock()
    circumstances = Circumstances(
        key_id=api_key.key_id,
        client=call.client,
        catalog=parts.catalog,
        max_steps=parts.settings.max_steps,
        max_prompt_chars=parts.settings.max_prompt_chars,
        now=now,
        checks_pictures=parts.settings.stability_safety_checker,
        random_seed=lambda: 1 + secrets.randbelow(MAX_SEED),
    )
    job = parse(request, circumstances)
    count_submit(parts.redis, api_key.key_id, per_minute=parts.settings.max_submits_per_minute, now=now)
    envelope = Envelope(request.request_id, request.engine_id, now)
    with parts.arrivals.place():
        stay = submit_or_join(parts, _intake(parts), job, sameness(request, job))
        call.at_end(stay.leave)
        try:
            yield from _follow(parts, call, stay, envelope)
        finally:
            stay.leave()


def _follow(parts: Parts, call: Call, stay: Stay, envelope: Envelope) -> Iterator[wire.Answer]:
    sent, job = 0, stay.job
    for job in parts.arrivals.follow(stay.job, every_seconds=lambda: call.seconds_left(KEEP_ALIVE_SECONDS)):
        call.check()
        before = sent
        while sent < len(job.images) and (png := _png(parts, job, sent)) is not None:
            yield envelope.picture(job, sent, png, at=parts.clock())
            sent += 1
        if sent == before and not job.status.is_final:
            yield envelope.keep_alive(at=parts.clock())
        stay.renew()
    if not job.status.is_final:
        raise WireStatus(Code.UNAVAILABLE, "The service is being restarted. Try again.")
    if job.status is not JobStatus.SUCCEEDED:
        raise status_of_failure(job.failure)
    if sent < len(job.images):
        raise WireStatus(Code.NOT_FOUND, "The pictures of this request are no longer stored.")


def _png(parts: Parts, job: InpaintJob, index: int) -> bytes | None:
    """None where it is not there: a worker was lost, or the store is away, and there is time for another look."""
    try:
        return parts.images.get(job.images[index].key)
    except ObjectMissing:
        return None
    except StorageUnavailable:
        if job.status.is_final:
            raise
        return None


def _intake(parts: Parts) -> Intake:
    base = parts.settings.public_url or ""
    return Intake(
        jobs=parts.jobs,
        images=parts.images,
        door=parts.door,
        base_url=base,
        own_urls=(),
        own_hosts=(),
        input_ttl_seconds=parts.storage_settings.input_ttl,
    )
