"""A ticket's way: claim a job, open its pictures, let the engine paint, store the result, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog
from celery import Celery
from numpy.typing import NDArray

from storage.errors import StorageUnavailable
from storage.image_store import ImageStore
from storage.job import Failure, InpaintJob, JobStatus, ResultImage
from storage.job_queue import TICKET_TASK, JobQueue
from storage.job_store import JobStore
from storage.model_catalog import ModelCatalog, ModelEntry
from storage.schedulers import num_evaluations
from worker.clerk import Claim, Clerk, Watched
from worker.errors import Cancelled, JobFailed, ModelUnavailable, ResultNotStored, StartTimedOut, TimedOut, WorkerUnfit
from worker.framing import Frame, Whole, frame_for
from worker.inputs import Inputs, Sources, open_inputs
from worker.inversions import find_embeddings
from worker.ip_adapters import find_look
from worker.known_words import unknown_words
from worker.masks import feather, is_empty, paste_weight
from worker.places import Places
from worker.png import encode_png
from worker.safety import Safety
from worker.sample import Painting
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

PNG_CONTENT_TYPE = "image/png"
SOFTWARE = "inpaintd"
FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
# An outcome is worth more patience than a claim: without it the whole job is painted again.
FINISH_PATIENCE_SECONDS = 600.0

Value = TypeVar("Value")


class Painter(Watched, Protocol):
    """The engine as a ticket's thread sees it."""

    def favoured_models(self) -> frozenset[str]: ...

    def paint(self, painting: Painting) -> Sequence[NDArray[np.uint8]]: ...

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]: ...

    def aside(self, action: Callable[[], Value]) -> Value: ...


class LeaseLost(Exception):
    """The job is another's now, or over: whatever comes of this claim is dropped."""


@dataclass(frozen=True)
class Workshop:
    """All that a ticket needs."""

    name: str
    jobs: JobStore
    queue: JobQueue
    images: ImageStore
    sources: Sources
    catalog: ModelCatalog
    engine: Painter
    safety: Safety
    clerk: Clerk
    places: Places
    settings: WorkerSettings
    max_attempts: int
    unfit: Callable[[], None]
    """Called when this process can paint no more."""


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
        return _paint(workshop, claim)
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


def _paint(workshop: Workshop, claim: Claim) -> InpaintJob:
    job = claim.job
    if job.start_by is not None and job.fence == 1 and claim.now > job.start_by:
        raise StartTimedOut
    inputs = _patiently(workshop, claim, lambda: open_inputs(job, workshop.sources, deadline=claim.deadline))
    _check(claim)
    workshop.safety.prepare(job.safety_checker)
    entry = workshop.catalog.find(job.model)
    if entry is None:
        raise ModelUnavailable(f"There is no model {job.model} here any more.")
    frame = frame_for(inputs.mask, entry)
    notes: dict[str, Any] = {"model": job.model, "worked_size": list(frame.worked_size)}
    if unknown := _unknown_words(workshop, job, entry):
        notes["unknown_words"] = unknown
    evaluations = 0
    if is_empty(inputs.mask):
        notes["mask_empty"] = True
    elif _is_part(frame, inputs):
        notes["worked_box"] = frame.box
    if is_empty(inputs.mask) or not job.num_inference_steps:
        pictures = (inputs.picture for _ in range(job.num_images))
    else:
        evaluations = num_evaluations(job.num_inference_steps, job.strength, job.scheduler)
        pictures = _repainted(workshop, claim, inputs, frame, entry=entry, notes=notes)
    images: list[ResultImage] = []
    with closing(pictures):
        for picture in pictures:
            shown, found = workshop.safety.checked(picture, job.safety_checker)
            images.append(_store(workshop, claim, len(images), shown, nsfw=found))
            if len(images) < job.num_images:
                _publish(workshop, claim, images)
    notes |= {"unet_evaluations": evaluations * job.num_images, "seconds": round(claim.seconds, 3)}
    nsfw = any(image.nsfw for image in images)
    return job.succeeded(tuple(images), at=claim.now, num_steps=evaluations, nsfw=nsfw, notes=notes)


def _unknown_words(workshop: Workshop, job: InpaintJob, entry: ModelEntry) -> list[str]:
    tokens = [each.token for each in find_embeddings(workshop.catalog.addons, job.embeddings)]
    texts = [job.prompt, *(each.text for each in job.weighted_prompts), job.negative_prompt]
    return unknown_words(entry, texts, taught=tokens)


def _repainted(
    workshop: Workshop, claim: Claim, inputs: Inputs, frame: Frame, *, entry: ModelEntry, notes: dict[str, Any]
) -> Generator[NDArray[np.uint8]]:
    """The job's pictures at the size asked for, each as it is finished; what was not masked is untouched.

    `notes` gets what the engine has to say about the job.
    """
    job = claim.job
    painting = Painting(
        job_id=job.job_id,
        model=job.model,
        prompt=job.prompt.strip() or entry.empty_prompt,
        negative_prompt=job.negative_prompt,
        picture=frame.picture_for_model(inputs.picture),
        mask=frame.mask_for_model(inputs.mask),
        seeds=tuple(job.seed_of(index) for index in range(job.num_images)),
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        strength=job.strength,
        scheduler=job.scheduler,
        use_karras_sigmas=job.use_karras_sigmas,
        algorithm_type=job.algorithm_type,
        weighted_prompts=job.weighted_prompts,
        clip_skip=job.clip_skip,
        embeddings=find_embeddings(workshop.catalog.addons, job.embeddings),
        look=find_look(workshop.catalog.addons, job.ip_adapter, inputs.look),
        masked_area_init=job.masked_area_init,
        loras=job.loras,
        vae=job.vae,
        whole=Whole(inputs.picture, frame) if _is_part(frame, inputs) else None,
        deadline=claim.deadline,
        notes=notes,
    )
    # Before the engine's part: nothing that can be done by then is left for when the client waits.
    # What continues the picture exactly needs no edge in which the old one shines through.
    feather_pixels = workshop.settings.feather_pixels if entry.has_weights else 0
    soft_mask = feather(paste_weight(inputs.mask), feather_pixels)
    with closing(_in_order(workshop.engine.paint_each(painting))) as painted:
        for picture in painted:
            _check(claim)
            yield frame.paste(picture, inputs.picture, soft_mask)


def _is_part(frame: Frame, inputs: Inputs) -> bool:
    return (frame.width, frame.height) != (inputs.width, inputs.height)


def _in_order(painted: Generator[tuple[int, NDArray[np.uint8]]]) -> Generator[NDArray[np.uint8]]:
    early: dict[int, NDArray[np.uint8]] = {}
    wanted = 0
    for index, picture in painted:
        early[index] = picture
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1


def _publish(workshop: Workshop, claim: Claim, images: list[ResultImage]) -> None:
    """Tell who waits that there is another picture. They all come with the outcome: no reason to wait for Redis."""
    try:
        workshop.jobs.publish(claim.job, images)
    except StorageUnavailable:
        log.warning("picture_not_published", **claim.job.log_context())


def _store(workshop: Workshop, claim: Claim, index: int, picture: NDArray[np.uint8], *, nsfw: bool) -> ResultImage:
    job, seed = claim.job, claim.job.seed_of(index)
    height, width = picture.shape[:2]
    parameters = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": seed,
        "steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "strength": job.strength,
        "scheduler": job.scheduler,
        "model": job.model,
        **({"loras": {use.id: use.strength for use in job.loras}} if job.loras else {}),
        **({"vae": job.vae} if job.vae else {}),
        "size": f"{width}x{height}",
        "software": SOFTWARE,
    }
    png, key = encode_png(picture, parameters), f"results/{job.job_id}/{job.fence}/{index}.png"
    claim.stored_keys.append(key)
    _patiently(workshop, claim, lambda: workshop.images.put(key, png, PNG_CONTENT_TYPE))
    return ResultImage(key=key, seed=seed, width=width, height=height, size_bytes=len(png), nsfw=nsfw)


def _check(claim: Claim) -> None:
    """Leave between two pieces of work when the job is no longer wanted here."""
    if claim.lost:
        raise LeaseLost
    if claim.cancelled:
        raise Cancelled
    if time.monotonic() > claim.deadline:
        raise TimedOut


def _patiently(workshop: Workshop, claim: Claim, action: Callable[[], Value]) -> Value:
    """Under the live lease, try again while a storage does not answer. Raises StorageUnavailable at the end."""
    give_up_at = time.monotonic() + workshop.settings.store_retry_seconds
    pause = FIRST_RETRY_SECONDS
    while True:
        _check(claim)
        try:
            return action()
        except StorageUnavailable as error:
            if time.monotonic() + pause > give_up_at:
                raise
            log.warning("storage_unavailable", error=str(error), **claim.job.log_context())
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)


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
