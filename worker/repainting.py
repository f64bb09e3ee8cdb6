"""A claimed job's own work: open its pictures, let the engine paint, paste, store."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from storage.errors import StorageUnavailable
from storage.job import InpaintJob, ResultImage
from storage.model_catalog import ModelEntry
from storage.schedulers import num_evaluations
from worker.clerk import Claim
from worker.errors import ModelUnavailable, StartTimedOut
from worker.framing import Frame, Whole, frame_for
from worker.inputs import Inputs, open_inputs
from worker.inversions import find_embeddings
from worker.ip_adapters import find_look
from worker.known_words import unknown_words
from worker.masks import feather, is_empty, paste_weight
from worker.png import encode_png
from worker.sample import Painting
from worker.workshop import Workshop, check, patiently

log = structlog.get_logger(__name__)

PNG_CONTENT_TYPE = "image/png"
SOFTWARE = "inpaintd"


def repaint(workshop: Workshop, claim: Claim) -> InpaintJob:
    """The job, succeeded. Raises JobFailed, LeaseLost, StorageUnavailable and WorkerUnfit; all else is a fault."""
    job = claim.job
    if job.start_by is not None and job.fence == 1 and claim.now > job.start_by:
        raise StartTimedOut
    inputs = patiently(workshop, claim, lambda: open_inputs(job, workshop.sources, deadline=claim.deadline))
    check(claim)
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
            check(claim)
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
    patiently(workshop, claim, lambda: workshop.images.put(key, png, PNG_CONTENT_TYPE))
    return ResultImage(key=key, seed=seed, width=width, height=height, size_bytes=len(png), nsfw=nsfw)
