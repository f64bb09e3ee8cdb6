"""The synchronous API: the answer is the output, after a wait or at the end of a stream of steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from api.callers import own_base_url
from api.dialects.fal import submitting, tokens
from api.dialects.fal.answers import name_request
from api.dialects.fal.events import Watch, event_stream, take_place, watch
from api.dialects.fal.input import InpaintInput
from api.dialects.fal.output import FalError, InpaintOutput, InpaintStep, render_output, render_step
from api.dialects.fal.queue import answer_output
from api.dialects.fal.requests import admitted, check_app, circumstances
from api.dialects.fal.words import RunTimedOut, render_failure
from api.openapi import documented
from api.parts import parts
from storage.errors import StorageUnavailable
from storage.job import InpaintJob, JobStatus
from storage.previews import Preview, PreviewStore

Glimpses = Iterator[tuple[InpaintJob, Preview | None]]

TOKEN_PARAMETER = "fal_jwt_token"  # noqa: S105 - the name of a parameter


def add_to(blueprint: Blueprint) -> None:
    for app in ("/run/<owner>/<alias>", "/run/<owner>/<alias>/<path:sub>"):
        for rest, view in (("/stream", stream), ("", run)):
            rule = app + rest
            blueprint.add_url_rule(rule, f"POST_{rule}", view, methods=["POST"], strict_slashes=False)


@documented("Repaint a picture and wait for it", body=InpaintInput, answers=[InpaintOutput], error=FalError)
def run(owner: str, alias: str, sub: str = "") -> ResponseReturnValue:
    api_key = admitted()
    check_app(owner, alias)
    take_place()
    try:
        job = submitting.accept(api_key, circumstances(api_key))
        name_request(job.job_id)
        return answer_output(_over(job))
    finally:
        parts().arrivals.leave_place()


@documented(
    "The same as a stream of events: the steps, with previews, then the output",
    body=InpaintInput,
    answers=[InpaintStep, InpaintOutput],
)
def stream(owner: str, alias: str, sub: str = "") -> ResponseReturnValue:
    """Nothing is answered before the first step is done, so that bad input has a status of its own."""
    token = request.args.get(TOKEN_PARAMETER)
    api_key = admitted() if token is None else tokens.admitted_by(token, app=alias)
    check_app(owner, alias)
    take_place()
    try:
        job = submitting.accept(api_key, circumstances(api_key))
        name_request(job.job_id)
        watched = _with_previews(watch(_started(job)), parts().previews)
        first = next(((seen, preview) for seen, preview in watched if seen.step or seen.status.is_final), None)
        if first is not None and first[0].status.is_final and first[0].status is not JobStatus.SUCCEEDED:
            parts().arrivals.leave_place()
            return answer_output(first[0])
        seen_first = itertools.chain([first] if first else [], watched)
        return event_stream(_steps(seen_first, own_base_url()))
    except BaseException:
        parts().arrivals.leave_place()
        raise


def _over(job: InpaintJob) -> InpaintJob:
    """Wait for the end of the job. Raises RunTimedOut; then it is cancelled."""
    all_parts = parts()
    give_up_at = all_parts.clock() + all_parts.settings.fal_run_seconds
    job = _started(job)
    if not job.status.is_final:
        job = all_parts.arrivals.wait_in_place(job, give_up_at - all_parts.clock())
    if not job.status.is_final:
        all_parts.jobs.cancel(job.job_id)
        raise RunTimedOut
    return job


def _started(job: InpaintJob) -> InpaintJob:
    """The job at once where it may start whenever it will, else once it has, or has failed to."""
    all_parts = parts()
    if job.start_by is None or job.status.is_final:
        return job
    job = all_parts.arrivals.wait_in_place(job, job.start_by - all_parts.clock())
    if job.status is JobStatus.QUEUED and not job.fence:
        all_parts.jobs.fail_late_start(job)
    return all_parts.jobs.get(job.job_id) or job


def _with_previews(watched: Watch, previews: PreviewStore) -> Glimpses:
    """The job with its newest preview; while this is read, some are made. None once it is over."""
    newest = None
    for job, _ in watched:
        if job.status.is_final:
            newest = None
        else:
            with suppress(StorageUnavailable):
                newest = previews.watch(job.job_id, newest) or newest
        yield job, newest


def _steps(glimpses: Glimpses, base_url: str) -> Iterator[dict[str, Any] | None]:
    """Each step; the last of those that are seen at once brings the preview, if that was not shown before."""
    told, shown = 0, None
    for job, preview in glimpses:
        if job.step == told and not job.status.is_final:
            yield None
        for step in range(told + 1, job.step):
            yield render_step(job, step)
        if job.step > told:
            yield render_step(job, job.step, preview if preview is not shown else None)
            shown = preview
        told = job.step
        if job.status is JobStatus.SUCCEEDED:
            yield render_output(job, base_url)
        elif job.status.is_final:
            error = render_failure(job.failure)
            yield {"status": int(error.status), **error.body}
