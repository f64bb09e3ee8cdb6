"""The input of `fal-ai/inpaint`, and the job it becomes: one to be done, or one that failed from the start."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.dialects.fal.addons import (
    EmbeddingInput,
    IpAdapterInput,
    LoraInput,
    Text,
    embedding_ids,
    ip_adapter_use,
    lora_uses,
    vae_id,
)
from api.dialects.fal.words import PROBLEMS, row
from api.safety import NoSafetyChecker, granted
from api.weightless import needs_prompt, settled
from storage.addons import MAX_EMBEDDINGS, MAX_LORAS
from storage.job import MAX_SEED, Failure, InpaintJob, Priority, SafetyAction
from storage.model_catalog import Hub, ModelCatalog, ModelEntry
from storage.schedulers import KNOWN_SCHEDULERS, SCHEDULERS, STAND_INS, known_scheduler, stand_ins_text

MAX_STEPS = 150
INVALID = "invalid_request"
SAFETY_FIELD = "enable_safety_checker"


def _leave_prompt_open(schema: dict[str, Any]) -> None:
    """Whether a prompt is missing depends on the model, which JSON Schema cannot look up."""
    schema["required"].remove("prompt")
    described = schema["properties"]["prompt"]
    described["anyOf"] = [{"type": described.pop("type")}, {"type": "null"}]


class InpaintInput(BaseModel):
    """What `fal-ai/inpaint` takes. Further fields are ignored."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), json_schema_extra=_leave_prompt_open)

    model_name: Text = Field(
        description="The model: an id or another name from this service's models file, or the hub id of one there. "
        "A URL only where the models file lists it as a name.",
        examples=["diffusers/stable-diffusion-xl-1.0-inpainting-0.1"],
    )
    prompt: Text = Field(
        description="What is to be painted; may be empty. Required, but for a model without weights (as `remove`).",
        examples=["a photo of a cat"],
    )
    negative_prompt: Text | None = Field(default="", description="What is not to be painted.", examples=["cartoon"])
    image_url: Text = Field(
        description="The picture: an http or https URL, or a data URI. The result has its size.",
        examples=["https://example.com/picture.png"],
    )
    mask_url: Text = Field(
        description="The mask: white areas are repainted, black areas preserved.",
        examples=["https://example.com/mask.png"],
    )
    num_inference_steps: int | None = Field(
        default=None,
        ge=0,
        le=MAX_STEPS,
        description="Denoising steps. Absent: the model's own number. 0 gives the picture back as it is.",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=20,
        allow_inf_nan=False,
        description="How closely the prompt is followed. Absent: the model's own value.",
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="The same seed gives the same picture. Absent: a random one."
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="An extra of this service: how far the masked area may move from the picture; 1 (as if absent) "
        "repaints it from nothing.",
    )
    scheduler: Text | None = Field(
        default=None,
        description=f"An extra of this service: one of {', '.join(SCHEDULERS)}; or of those that cannot inpaint, "
        f"painted by the nearest that can: {stand_ins_text()}. Absent: the model's own.",
    )
    enable_safety_checker: bool | None = Field(
        default=None,
        description="As other applications of fal have it: a picture in which the safety checker finds something comes "
        "back black, and the output has `has_nsfw_concepts`. Absent: false.",
    )
    loras: list[LoraInput] | None = Field(
        default=None,
        max_length=MAX_LORAS,
        description="An extra of this service: LoRAs, for a model of their family.",
    )
    vae: Text | None = Field(
        default=None,
        description="An extra of this service: a VAE of its models file in place of the model's own.",
    )
    clip_skip: int | None = Field(
        default=None,
        ge=1,
        le=8,
        description="An extra of this service: how many of the text encoder's last layers are left out for the prompt.",
    )
    embeddings: list[EmbeddingInput] | None = Field(
        default=None,
        max_length=MAX_EMBEDDINGS,
        description="An extra of this service: textual inversions, for a model of their family.",
    )
    ip_adapter: list[IpAdapterInput] | None = Field(
        default=None,
        max_length=1,
        description="An extra of this service: a picture that the model looks at beside the prompt.",
    )


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What an input needs besides itself to become a job."""

    key_id: str
    base_url: str
    catalog: ModelCatalog
    max_steps: int
    max_prompt_chars: int
    now: float
    random_seed: Callable[[], int]
    priority: Priority = Priority.NORMAL
    webhook_url: str | None = None
    start_by: float | None = None
    ignores_missing_checker: bool = False
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


def parse(raw: bytes, circumstances: Circumstances) -> InpaintJob:
    """The job that a body asks for, its pictures as the client gave them.

    A body that asks for nothing possible becomes a job that failed from the start: this wire reports bad
    input where the result would have been.
    """
    rows: list[dict[str, Any]] = []
    try:
        body = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        body, rows = None, [row(["body"], "json_invalid", "JSON decode error")]
    asked = None if rows else _read(_with_prompt(body, circumstances.catalog), rows)
    if asked is None:
        return failed_from_start(_blank(circumstances), rows, at=circumstances.now)
    rows += _too_long(asked, circumstances.max_prompt_chars)
    entry = _find_model(asked.model_name, circumstances.catalog)
    if entry is None:
        rows.append(row(["body", "model_name"], "value_error", _no_model(asked.model_name), asked.model_name))
    scheduler = _scheduler(asked.scheduler, rows)
    loras = lora_uses(asked.loras or (), entry, circumstances.catalog.addons, rows)
    vae = vae_id(asked.vae, entry, circumstances.catalog.addons, rows)
    embeddings = embedding_ids(asked.embeddings or (), entry, circumstances.catalog.addons, rows)
    look = ip_adapter_use(asked.ip_adapter or (), entry, circumstances.catalog.addons, rows)
    safety = _safety(asked, circumstances, rows)
    if rows or entry is None:
        return failed_from_start(_blank(circumstances), rows, at=circumstances.now)
    job = _job(asked, entry, scheduler, circumstances)
    ignored = {"ignored": [SAFETY_FIELD]} if asked.enable_safety_checker and safety is None else {}
    job = dataclasses.replace(
        job,
        loras=loras,
        vae=vae,
        clip_skip=asked.clip_skip,
        embeddings=embeddings,
        ip_adapter=look,
        safety_checker=safety,
        wire={**job.wire, **ignored},
    )
    return settled(job, entry)


def failed_from_start(job: InpaintJob, rows: list[dict[str, Any]], *, at: float) -> InpaintJob:
    failure = Failure(code=INVALID, message="The input cannot be used.", detail={"rows": rows})
    return job.failed(failure, at=at)


def _with_prompt(body: Any, catalog: ModelCatalog) -> Any:
    """The body with an empty prompt where it has none and its model needs none."""
    if not isinstance(body, dict) or body.get("prompt") is not None or not isinstance(body.get("model_name"), str):
        return body
    return body if needs_prompt(_find_model(body["model_name"].strip(), catalog)) else {**body, "prompt": ""}


def _read(body: Any, rows: list[dict[str, Any]]) -> InpaintInput | None:
    try:
        return InpaintInput.model_validate(body)
    except ValidationError as error:
        for each in error.errors():
            location = ["body", *(str(part) for part in each["loc"])]
            rows.append(row(location, each["type"], each["msg"], each["input"]))
        return None


def _too_long(asked: InpaintInput, max_chars: int) -> list[dict[str, Any]]:
    message = f"String should have at most {max_chars} characters"
    texts = {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt or ""}
    return [
        row(["body", name], "string_too_long", message, text) for name, text in texts.items() if len(text) > max_chars
    ]


def _find_model(name: str, catalog: ModelCatalog) -> ModelEntry | None:
    """By id, alias, or hub id of an entry of the models file: whatever the operator has listed there."""
    of_hub = (each for each in catalog.entries if isinstance(each.source, Hub) and each.source.repo_id == name)
    return catalog.find(name) or next(of_hub, None)


def _no_model(name: str) -> str:
    if "://" in name:
        return "Models may not be named by this URL here"
    return "There is no model of this name here"


def _scheduler(name: str | None, rows: list[dict[str, Any]]) -> str | None:
    if not name:
        return None
    known = known_scheduler(name)
    if known is None:
        choices = ", ".join(f"'{each}'" for each in KNOWN_SCHEDULERS)
        rows.append(row(["body", "scheduler"], "enum", f"Input should be {choices}", name))
    return known


def _safety(asked: InpaintInput, circumstances: Circumstances, rows: list[dict[str, Any]]) -> SafetyAction | None:
    wish = SafetyAction.BLACK if asked.enable_safety_checker else None
    try:
        return granted(wish, circumstances.catalog, ignores_missing=circumstances.ignores_missing_checker)
    except NoSafetyChecker:
        rows.append(row(["body", SAFETY_FIELD], *PROBLEMS["no_safety_checker"], asked.enable_safety_checker))
        return None


def _job(asked: InpaintInput, entry: ModelEntry, scheduler: str | None, circumstances: Circumstances) -> InpaintJob:
    steps = entry.num_inference_steps if asked.num_inference_steps is None else asked.num_inference_steps
    stand_in = STAND_INS.get(scheduler or "")
    return InpaintJob(
        **_frame(circumstances),
        model=entry.id,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt or "",
        init_image=asked.image_url,
        mask_image=asked.mask_url,
        num_inference_steps=min(steps, circumstances.max_steps),
        guidance_scale=entry.guidance_scale if asked.guidance_scale is None else asked.guidance_scale,
        strength=1.0 if asked.strength is None else asked.strength,
        seed=circumstances.random_seed() if asked.seed is None else asked.seed,
        scheduler=stand_in.scheduler if stand_in else scheduler or entry.scheduler,
        use_karras_sigmas=bool(stand_in and stand_in.use_karras_sigmas),
    )


def _blank(circumstances: Circumstances) -> InpaintJob:
    """The frame of a job without the picture in it."""
    entry = circumstances.catalog.default
    return InpaintJob(
        **_frame(circumstances),
        model=entry.id,
        prompt="",
        negative_prompt="",
        init_image="",
        mask_image="",
        num_inference_steps=0,
        guidance_scale=entry.guidance_scale,
        strength=1.0,
        seed=0,
        scheduler=entry.scheduler,
    )


def _frame(circumstances: Circumstances) -> Mapping[str, Any]:
    return {
        "job_id": circumstances.new_id(),
        "image_id": circumstances.new_id(),
        "key_id": circumstances.key_id,
        "dialect": "fal",
        "width": None,
        "height": None,
        "num_images": 1,
        "priority": circumstances.priority,
        "webhook_url": circumstances.webhook_url,
        "start_by": circumstances.start_by,
        "wire": {"base_url": circumstances.base_url},
        "submitted_at": circumstances.now,
    }
