"""A ticket's way: claim a job, have it repainted, record the outcome."""

from __future__ import annotations

import time
from contextlib import ExitStack

import structlog
from celery import Celery

from storage.errors import StorageUnavailable
from storage.job import Failure, InpaintJob, JobStatus
from storage.job_queue import TICKET_TASK
from worker.clerk import Claim
from worker.errors import Cancelled, JobFailed, ResultNotStored, WorkerUnfit
from worker.repainting import repaint
from worker.workshop import FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, LeaseLost, Workshop

log = structlog.get_logger(__name__)

# An outcome is worth more patience than a claim: without it the whole job is painted again.
FINISH_PATIENCE_SECONDS = 600.0


def register_ticket_task(app: Celery, workshop: Workshop) -> None:
    """Make `app` work off tickets in this workshop."""

    def inpaint() -> str:
        return work_off_ticket(workshop)

    app.task(name=TICKET_TASK)(inpaint)


def work_off_ticket(workshop: Workshop) -> str:
    """Do one job, if one waits. The answer is a line for people, shown in Flower."""
    if not workshop.clerk.open_for_work:
        workshop.clerk.owe_ticket()
        return "no job claimed: this worker stops"
    with ExitStack() as leaving:
        if has_place := workshop.places.take():
            leaving.callback(_leave_place, workshop)
        try:
            job = workshop.jobs.claim_next(
                worker=workshop.name,
                resident_models=workshop.engine.favoured_models(),
                full_models=() if has_place else workshop.places.models,
            )
        except StorageUnavailable as error:
            log.warning("claim_failed", error=str(error))
            return "no job claimed: Redis does not answer"
        if job is None:
            return "no job waiting" if has_place else _turned_away(workshop)
        if job.model not in workshop.places.models:
            leaving.close()
        return _work_on(workshop, job)


def _work_on(workshop: Workshop, job: InpaintJob) -> str:
    with workshop.clerk.holding(job) as claim:
        log.info("job_claimed", worker=workshop.name, **job.log_context())
        outcome = _do(workshop, claim)
        ending = "dropped: the lease was lost" if outcome is None else _ending(outcome)
        return f"job {job.number} ({job.job_id}) {ending} in {claim.seconds:.1f} s"


def _turned_away(workshop: Workshop) -> str:
    """The ticket may be that of a job that was left to wait for a place."""
    workshop.clerk.owe_ticket()
    if workshop.places.take():
        # It has become free meanwhile, before it could be known that a ticket is owed.
        _leave_place(workshop)
    return "no job claimed: none that waits can be worked on here now"


def _leave_place(workshop: Workshop) -> None:
    """And let the next one know who waits for it."""
    workshop.places.leave()
    try:
        workshop.clerk.settle_tickets(at_most=1)
    except StorageUnavailable:
        log.warning("ticket_not_sent")  # every clerk tops missing tickets up


def _ending(job: InpaintJob) -> str:
    if job.status is JobStatus.QUEUED:
        return "went back to the queue"
    return f"failed ({job.failure.code})" if job.status is JobStatus.FAILED and job.failure else job.status.value


def _do(workshop: Workshop, claim: Claim) -> InpaintJob | None:
    """The job as it was recorded at its end; None when it was no longer ours."""
    try:
        outcome = _outcome(workshop, claim)
        if not _finish(workshop, claim, outcome):
            raise LeaseLost
    except LeaseLost:
        log.warning("outcome_dropped", **claim.job.log_context())
        _delete_pictures(workshop, claim)
        return None
    if not outcome.images:
        _delete_pictures(workshop, claim)
    failure = {"failure": outcome.failure.code} if outcome.failure else {}
    log.info("job_ended", seconds=round(claim.seconds, 3), **failure, **outcome.log_context())
    if outcome.status is JobStatus.SUCCEEDED:
        _record_runtime(workshop, outcome)
    return outcome


def _outcome(workshop: Workshop, claim: Claim) -> InpaintJob:
    """Paint, whatever comes of it. Raises LeaseLost."""
    job = claim.job
    try:
        return repaint(workshop, claim)
    except LeaseLost:
        raise
    except Cancelled:
        if claim.lost:
            raise LeaseLost from None
        return job.cancelled(at=claim.now)
    except JobFailed as reason:
        failure = Failure(code=reason.code, message=reason.message, field=reason.field)
    except StorageUnavailable as error:
        log.warning("storage_gave_up", error=str(error), **job.log_context())
        failure = Failure(code=ResultNotStored.code, message="The storage for pictures did not answer.")
    except WorkerUnfit as error:
        log.critical("worker_unfit", error=str(error), **job.log_context())
        workshop.unfit()
        if job.attempts < workshop.max_attempts:
            return job.returned()
        failure = Failure(
            code="worker_lost", message=f"The worker broke {job.attempts} times while it painted this job."
        )
    except Exception:
        log.exception("job_broke", **job.log_context())
        failure = Failure(code="internal_error", message="Something unexpected went wrong; it was logged.")
    return job.failed(failure, at=claim.now)


def _finish(workshop: Workshop, claim: Claim, outcome: InpaintJob) -> bool:
    """Record the outcome, however long Redis is away. False: the lease was lost."""
    claim.ending = True
    give_up_at = time.monotonic() + FINISH_PATIENCE_SECONDS
    pause = FIRST_RETRY_SECONDS
    while True:
        try:
            # The same outcome as often as it takes: the store knows one that it has recorded already.
            finished = workshop.jobs.finish(outcome)
            break
        except StorageUnavailable as error:
            if time.monotonic() + pause > give_up_at:
                log.error("outcome_lost", error=str(error), **claim.job.log_context())
                return False
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)
    if finished and outcome.status is JobStatus.QUEUED:
        _send_ticket(workshop)
    return finished


def give_back(workshop: Workshop, claim: Claim) -> None:
    """Put a running job back into the queue, for another worker; what its thread still does is dropped.

    Raises StorageUnavailable; the job goes back when its lease has run out, then.
    """
    claim.lost = True
    workshop.engine.cancel(claim.job.job_id)
    if workshop.jobs.finish(claim.job.given_back()):
        log.info("job_given_back", **claim.job.log_context())
        _send_ticket(workshop)


def _send_ticket(workshop: Workshop) -> None:
    try:
        workshop.queue.send_ticket()
    except StorageUnavailable:
        log.warning("ticket_not_sent")  # every clerk tops missing tickets up


def _delete_pictures(workshop: Workshop, claim: Claim) -> None:
    if not claim.stored_keys:
        return
    try:
        workshop.images.delete(claim.stored_keys)
    except StorageUnavailable:
        log.warning("pictures_left_behind", **claim.job.log_context())


def _record_runtime(workshop: Workshop, job: InpaintJob) -> None:
    evaluations = job.notes["unet_evaluations"]
    if not evaluations:
        return
    width, height = job.notes["worked_size"]
    try:
        workshop.jobs.record_runtime(job.model, width, height, evaluations, job.notes["seconds"])
    except StorageUnavailable:
        log.warning("runtime_not_recorded", **job.log_context())
