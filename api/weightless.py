"""Models without weights: what a request may leave out for them, and what of it has no effect."""

from __future__ import annotations

import dataclasses

from storage.job import InpaintJob, MaskedAreaInit
from storage.model_catalog import ModelEntry

FULL_STRENGTH = 1.0
WEIGHTLESS = "weightless"


def needs_prompt(entry: ModelEntry | None) -> bool:
    """Whether a request for this model (None: for one that is not known) must say what is to be painted."""
    return entry is None or entry.has_weights


def settled(job: InpaintJob, entry: ModelEntry) -> InpaintJob:
    """The job with what has no effect as it is, whatever was asked for; as it came where the model has weights."""
    if entry.has_weights:
        return job
    return dataclasses.replace(
        job,
        prompt="",
        negative_prompt="",
        weighted_prompts=(),
        clip_skip=None,
        masked_area_init=MaskedAreaInit.ORIGINAL,
        num_inference_steps=entry.num_inference_steps,
        guidance_scale=entry.guidance_scale,
        strength=FULL_STRENGTH,
        scheduler=entry.scheduler,
        use_karras_sigmas=False,
        algorithm_type=None,
        wire={**job.wire, WEIGHTLESS: True},
    )
