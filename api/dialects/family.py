"""What the two ModelsLab dialects have in common on purpose: a body becomes a job, a job becomes `meta`.

Both grew out of one API: the same fields, the same links, the same life of a job. Their words, their
routes and their HTTP codes differ, and live in the dialects.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.addresses import picture_links
from api.dialects import family_addons
from api.dialects.family_fields import RANDOM_SEED, InpaintBody, idle_without_weights, ignored_fields
from api.dialects.family_safety import safety_of
from api.dialects.family_sampling import sampling_of
from api.errors import InvalidFields, Problem, Refused, UnknownModel
from api.fields import WireText, is_blank, read_fields
from api.weightless import WEIGHTLESS, needs_prompt, settled
from storage.job import Failure, InpaintJob, JobStatus, SafetyAction
from storage.model_catalog import ModelCatalog, ModelEntry

SHOWN_CHARS = 100
PROGRESS_MESSAGE = "Try to fetch request after seconds estimated"
AGAIN_MESSAGE = "try again later."
# What the worker notes beside the pictures, where there is something to say.
SHOWN_NOTES = ("mask_empty", "worked_size", "worked_box", "unknown_words")
# What a model without weights does nothing with: its meta has no value to show.
MEANT_FOR_WEIGHTS = ("steps", "guidance_scale", "strength", "scheduler")
PROCESSING_TIP = "The image is being made: get it from fetch_result, or wait for your webhook."


@dataclass(frozen=True)
class Variant:
    """One submit endpoint. `fetch_path` ends in the number; `meta_names` are the keys of its `meta`."""

    name: str
    body: type[InpaintBody]
    enhance_by_default: bool
    karras_by_default: bool
    safety_action: SafetyAction
    fetch_path: str
    meta_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a body needs besides itself to become a job."""

    key_id: str
    base_url: str
    catalog: ModelCatalog
    max_steps: int
    max_prompt_chars: int
    now: float
    random_seed: Callable[[], int]
    ignores_missing_checker: bool = False
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


# -- parse ----------------------------------------------------------------------------------------


def parse(body: Mapping[str, Any], variant: Variant, circumstances: Circumstances, *, dialect: str) -> InpaintJob:
    """The job that a body of read_body asks for; its pictures are still as the client gave them.

    Raises UnknownModel, or InvalidFields with every problem found.
    """
    _expect_known(body.get("model_id"), circumstances.catalog)
    asked = _read(body, variant.body, circumstances)
    entry = _model(asked.model_id, circumstances.catalog)
    sampling = sampling_of(asked, entry, karras_by_default=variant.karras_by_default)
    enhances = variant.enhance_by_default if asked.enhance_prompt is None else asked.enhance_prompt
    prompt, negative_prompt = _prompts(asked, entry, enhances=enhances)
    embeddings = family_addons.embeddings_of(asked, entry, circumstances.catalog)
    safety_action, unchecked = safety_of(asked, variant.safety_action, circumstances)
    ignored = [
        *unchecked,
        *ignored_fields(body),
        *sampling.ignored,
        *family_addons.ignored_fields(asked, embeddings, (prompt, negative_prompt)),
    ]
    job = InpaintJob(
        job_id=circumstances.new_id(),
        image_id=circumstances.new_id(),
        key_id=circumstances.key_id,
        dialect=dialect,
        model=entry.id,
        prompt=prompt,
        negative_prompt=negative_prompt,
        **_pictures(asked, circumstances),
        num_inference_steps=_steps(asked, entry, circumstances.max_steps),
        guidance_scale=entry.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        strength=asked.strength,
        scheduler=sampling.scheduler,
        use_karras_sigmas=sampling.use_karras_sigmas,
        algorithm_type=sampling.algorithm_type,
        **family_addons.addons_of(asked, entry, circumstances.catalog),
        embeddings=tuple(each.id for each in embeddings),
        webhook_url=asked.webhook,
        track_id=None if asked.track_id is None else str(asked.track_id),
        temporary=asked.temp,
        safety_checker=safety_action,
        wire={
            "variant": variant.name,
            "base_url": circumstances.base_url,
            "enhance_prompt": enhances,
            "ignored": ignored if entry.has_weights else _with_idle(ignored, body),
            **_noted(asked, entry),
            **sampling.wire,
        },
        submitted_at=circumstances.now,
    )
    return settled(job, entry)


def _prompts(asked: InpaintBody, entry: ModelEntry, *, enhances: bool) -> tuple[str, str]:
    """What to paint and what not, in the style asked for."""
    prompt, negative_prompt = family_addons.in_style(asked)
    return enhanced(prompt, negative_prompt, entry) if enhances else (prompt, negative_prompt)


def _pictures(asked: InpaintBody, circumstances: Circumstances) -> dict[str, Any]:
    """What a job is told of the pictures given, and of those it is to make."""
    return {
        "init_image": asked.init_image,
        "mask_image": asked.mask_image,
        "width": asked.width,
        "height": asked.height,
        "num_images": asked.samples,
        "seed": circumstances.random_seed() if asked.seed in (None, RANDOM_SEED) else asked.seed,
    }


def _with_idle(ignored: Sequence[str], body: Mapping[str, Any]) -> list[str]:
    return [*ignored, *(name for name in idle_without_weights(body) if name not in ignored)]


def _noted(asked: InpaintBody, entry: ModelEntry) -> dict[str, Any]:
    """What the record keeps of the body for the answers alone."""
    noted: dict[str, Any] = {
        "base64": asked.base64,
        "instant_response": asked.instant_response,
        "track_id": asked.track_id,
    }
    if entry.has_weights and family_addons.style_of(asked):
        noted["enhance_style"] = asked.enhance_style
    return noted | ({"is_sdxl": True} if entry.family == "sdxl" else {})


def _read(body: Mapping[str, Any], model: type[InpaintBody], circumstances: Circumstances) -> InpaintBody:
    max_prompt_chars = circumstances.max_prompt_chars
    asked, problems = read_fields(model, body)
    if WireText().is_blank(body.get("prompt")) and needs_prompt(_named(body.get("model_id"), circumstances.catalog)):
        problems.insert(0, Problem("prompt", "missing"))
    if asked is not None:
        texts = {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt}
        problems += [
            Problem(name, "too_long", {"high": max_prompt_chars})
            for name, text in texts.items()
            if len(text) > max_prompt_chars
        ]
    if asked is None or problems:
        raise InvalidFields(problems)
    return asked


def _expect_known(name: Any, catalog: ModelCatalog) -> None:
    """Before anything else is said of a body, since what else it needs depends on its model."""
    if isinstance(name, str) and not is_blank(name):
        _model(name.strip(), catalog)


def _named(name: Any, catalog: ModelCatalog) -> ModelEntry | None:
    """The model of a body that is not read yet."""
    if is_blank(name):
        return catalog.default
    return catalog.find(name.strip()) if isinstance(name, str) else None


def _model(name: str | None, catalog: ModelCatalog) -> ModelEntry:
    if name is None:
        return catalog.default
    entry = catalog.find(name)
    if entry is None:
        raise UnknownModel(field="model_id", name=name[:SHOWN_CHARS])
    return entry


def _steps(asked: InpaintBody, entry: ModelEntry, max_steps: int) -> int:
    steps = asked.num_inference_steps or asked.steps or entry.num_inference_steps
    return min(steps, max_steps)


def enhanced(prompt: str, negative_prompt: str, entry: ModelEntry) -> tuple[str, str]:
    """Both prompts with what the model's maker advises to append."""
    suffix = entry.prompt_suffix.strip()
    negatives = [text for text in (negative_prompt, entry.negative_prompt.strip()) if text]
    return f"{prompt} {suffix}" if suffix else prompt, ", ".join(negatives)


# -- render ---------------------------------------------------------------------------------------


def base_of(job: InpaintJob) -> str:
    """The base URL under which the job was submitted: what its links start with for good."""
    return str(job.wire.get("base_url", ""))


def links(job: InpaintJob) -> list[str]:
    return picture_links(job, base_of(job), base64_text=bool(job.wire.get("base64")))


def paint_seconds(job: InpaintJob) -> float:
    """How long the pictures took, from claim to stored."""
    seconds = job.notes.get("seconds")
    if seconds is None:
        seconds = (job.finished_at or 0) - (job.started_at or 0)
    return round(max(0.0, float(seconds)), 3)


def meta(job: InpaintJob, variant: Variant) -> dict[str, Any]:
    """What was asked, after defaults, as flat values: "yes" and "no" for flags, the real seed and steps."""
    values = _meta_values(job)
    if job.wire.get(WEIGHTLESS):
        values |= dict.fromkeys(MEANT_FOR_WEIGHTS)
    shown = {name: values[name] for name in variant.meta_names}
    shown["ignored"] = list(job.wire.get("ignored", ()))
    shown |= {name: job.wire[name] for name in ("scheduler_asked",) if name in job.wire}
    shown |= {name: value for name, value in family_addons.meta(job).items() if value is not None}
    return shown | {name: job.notes[name] for name in SHOWN_NOTES if job.notes.get(name)}


def _meta_values(job: InpaintJob) -> dict[str, Any]:
    wire = job.wire
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "model_id": job.notes.get("model", job.model),
        "W": job.width,
        "H": job.height,
        "width": job.width,
        "height": job.height,
        "n_samples": job.num_images,
        "steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "strength": job.strength,
        "seed": job.seed,
        "scheduler": job.scheduler,
        "use_karras_sigmas": yes_no(job.use_karras_sigmas),
        "algorithm_type": job.algorithm_type or "none",
        "init_image": wire.get("init_image"),
        "mask_image": wire.get("mask_image"),
        "base64": yes_no(bool(wire.get("base64"))),
        "temp": yes_no(job.temporary),
        "instant_response": yes_no(bool(wire.get("instant_response"))),
        "enhance_prompt": yes_no(bool(wire.get("enhance_prompt"))),
        "webhook": job.webhook_url,
        "track_id": wire.get("track_id", job.track_id),
        "id": str(job.number),
        "file_prefix": job.image_id,
        "outdir": "images",
        "output": links(job),
        "is_sdxl": bool(wire.get("is_sdxl")),
        "safety_checker": yes_no(job.safety_checker is not None),
        "safetychecker": yes_no(job.safety_checker is not None),
        "safety_checker_type": job.safety_checker,
        **NOT_DONE,
        **family_addons.meta(job),
    }


def yes_no(flag: bool) -> str:
    return "yes" if flag else "no"


# What the vendor's meta names and this service does not do, each with the value that says so.
NOT_DONE: dict[str, Any] = {
    "upscale": "no",
    "watermark": "no",
    "opacity": 0,
    "padding_down": 0,
    "padding_right": 0,
    "pag_scale": 0,
    "rescale": "no",
    "scale_down": 0,
}


def processing_body(job: InpaintJob, variant: Variant, *, eta: float, message: str) -> dict[str, Any]:
    """Of an answer that a job is not over. `eta` in seconds, above 0."""
    return {
        "status": "processing",
        "tip": PROCESSING_TIP,
        "eta": eta,
        "message": message,
        "messege": message,
        "webhook_status": "",
        "fetch_result": f"{base_of(job)}{variant.fetch_path}{job.number}",
        "id": job.number,
        "output": [],
        "meta": meta(job, variant),
        "future_links": links(job),
    }


def success_body(job: InpaintJob, variant: Variant) -> dict[str, Any]:
    """Of an answer that the pictures are there, without what only one dialect sends."""
    return {
        "status": "success",
        "generationTime": paint_seconds(job),
        "id": job.number,
        "output": links(job),
        "webhook_status": "",
        "tip": "",
        "meta": meta(job, variant),
    }


def failure_body(job: InpaintJob, status: str, message: str) -> dict[str, Any]:
    return {
        "status": status,
        "id": job.number,
        "message": message,
        "messege": message,
        "output": [],
        "webhook_status": "",
        "tip": "",
    }


def webhook_body(job: InpaintJob, variant: Variant, failure_message: str) -> dict[str, Any]:
    """What is posted to the webhook of a job that is over."""
    track_id = job.wire.get("track_id", job.track_id)
    if job.status is JobStatus.SUCCEEDED:
        return {
            "status": "success",
            "id": job.number,
            "output": links(job),
            "proxy_links": links(job),
            "generationTime": paint_seconds(job),
            "nsfw_content_detected": job.nsfw,
            "track_id": track_id,
            "meta": meta(job, variant),
        }
    return {
        "status": "failed",
        "id": job.number,
        "message": failure_message,
        "messege": failure_message,
        "track_id": track_id,
    }


def variant_of(job: InpaintJob, variants: Sequence[Variant]) -> Variant:
    """The one a job was submitted to; the first for a job of another dialect."""
    return next((each for each in variants if each.name == job.wire.get("variant")), variants[0])


# -- words ----------------------------------------------------------------------------------------


def failure_words(failure: Failure | None, words: Mapping[str, str]) -> str:
    """A recorded failure in a dialect's words; a code without any is an internal error."""
    code = failure.code if failure else "internal_error"
    field = failure.field if failure and failure.field else "image"
    return words.get(code, words["internal_error"]).format(field=field)


def refusal_words(error: Refused, words: Mapping[str, str], problem_words: Mapping[str, str]) -> str:
    """A refusal in a dialect's words; of several problems the first."""
    if isinstance(error, InvalidFields):
        return problem_text(error.problems[0], problem_words)
    return words[error.code].format(**{"field": error.field or "request", **error.facts})


def problem_text(problem: Problem, problem_words: Mapping[str, str]) -> str:
    return problem_words[problem.kind].format(**{"field": problem.field, **problem.facts})
