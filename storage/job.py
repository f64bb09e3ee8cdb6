"""The job: what was asked, where it stands, how it ended. Pure data; every change is a verb."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

MAX_SEED = 2**32 - 1
# How references to our own pictures begin; every other is an http(s) URL.
OBJECT_REFERENCE, RESULT_REFERENCE = "object:", "result:"


class JobStatus(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class MaskPaints(StrEnum):
    """Which end of the mask's gray scale asks for repainting."""

    WHITE = "white"
    BLACK = "black"


class MaskedAreaInit(StrEnum):
    """What lies under the mask before noise is added to it; of no matter where `strength` is 1."""

    ORIGINAL = "original"
    ZERO = "zero"
    RANDOM = "random"


class SafetyAction(StrEnum):
    """What becomes of a picture in which the safety checker has found something."""

    BLUR = "blur"
    TEXT = "sensitive_content_text"
    PIXELATE = "pixelate"
    BLACK = "black"


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2


class InvalidTransition(Exception):
    """The job is not in a state from which this change is possible."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job did not succeed. `code` is stable; `field` names the input at fault, if one is."""

    code: str
    message: str
    field: str | None = None
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class WeightedPrompt:
    """One text of several. Below 0: what not to paint."""

    text: str
    weight: float


@dataclass(frozen=True)
class LoraUse:
    """A LoRA of the models file, and how much of it: 0 is none, 1 all."""

    id: str
    strength: float


@dataclass(frozen=True)
class IpAdapterUse:
    """An IP-adapter of the models file, and the picture it shows the model (a reference, as `init_image`)."""

    id: str
    image: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class ResultImage:
    """One picture of a job as it lies in the image store; `seed` makes it again alone.

    `nsfw`: the safety checker has found something, and what lies there is what may be shown instead.
    """

    key: str
    seed: int
    width: int
    height: int
    size_bytes: int
    nsfw: bool = False


@dataclass(frozen=True, kw_only=True)
class InpaintJob:
    """One accepted request.

    `init_image` and `mask_image` are references: an http(s) URL, `object:KEY` (an object of the image
    store) or `result:IMAGE_ID-K` (picture K of another job). `width` and `height` are those of the
    result; None means the init image's own. Where there are `weighted_prompts`, the model is told the mean of
    them by weight, and `prompt` and `negative_prompt` are for people. `seeds` are those of the first
    pictures; the others go on from `seed`. `loras`, `vae` and `embeddings` (textual inversions) are ids of the models
    file; `clip_skip` is diffusers' (the number of last layers of the text encoder that are left out). `safety_checker`
    asks for the result to be looked at. A job that nobody has claimed by `start_by` fails. While the job
    runs, `images` are those finished so far. `wire` is what the dialect needs to answer in its own words; nobody
    else reads it. Times are seconds since the epoch.
    """

    job_id: str
    image_id: str
    key_id: str
    dialect: str
    model: str
    prompt: str
    negative_prompt: str
    init_image: str
    mask_image: str
    mask_paints: MaskPaints = MaskPaints.WHITE
    width: int | None
    height: int | None
    num_images: int
    num_inference_steps: int
    guidance_scale: float
    strength: float
    seed: int
    scheduler: str
    use_karras_sigmas: bool = False
    algorithm_type: str | None = None
    priority: Priority = Priority.NORMAL
    webhook_url: str | None = None
    track_id: str | None = None
    temporary: bool = False
    start_by: float | None = None
    weighted_prompts: tuple[WeightedPrompt, ...] = ()
    seeds: tuple[int, ...] = ()
    masked_area_init: MaskedAreaInit = MaskedAreaInit.ORIGINAL
    loras: tuple[LoraUse, ...] = ()
    vae: str | None = None
    clip_skip: int | None = None
    ip_adapter: IpAdapterUse | None = None
    embeddings: tuple[str, ...] = ()
    safety_checker: SafetyAction | None = None
    wire: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: float

    number: int = 0
    status: JobStatus = JobStatus.QUEUED
    fence: int = 0
    attempts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    step: int = 0
    num_steps: int = 0
    step_marks: tuple[tuple[int, float], ...] = ()
    """Steps with the times at which they were seen done; not every step is seen."""
    cancel_requested: bool = False
    images: tuple[ResultImage, ...] = ()
    nsfw: bool = False
    failure: Failure | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def claimed(self, *, at: float) -> InpaintJob:
        """A thread takes the job: a new fencing token, one attempt more."""
        self._expect(JobStatus.QUEUED)
        return self._evolve(
            status=JobStatus.PROCESSING,
            fence=self.fence + 1,
            attempts=self.attempts + 1,
            started_at=at,
            step=0,
            num_steps=0,
            step_marks=(),
        )

    def returned(self) -> InpaintJob:
        """Back to the waiting index after a claim that ended without an outcome (a crash)."""
        self._expect(JobStatus.PROCESSING)
        return self._evolve(status=JobStatus.QUEUED, images=(), started_at=None, step=0, num_steps=0)

    def given_back(self) -> InpaintJob:
        """Back to the waiting index by a worker that stops in good order: not the job's fault."""
        return dataclasses.replace(self.returned(), attempts=self.attempts - 1)

    def succeeded(
        self,
        images: tuple[ResultImage, ...],
        *,
        at: float,
        num_steps: int = 0,
        nsfw: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> InpaintJob:
        """`num_steps`: the UNet evaluations that each picture took."""
        self._expect(JobStatus.PROCESSING)
        return self._evolve(
            status=JobStatus.SUCCEEDED,
            images=images,
            nsfw=nsfw,
            notes=dict(notes or {}),
            finished_at=at,
            step=num_steps,
            num_steps=num_steps,
        )

    def failed(self, failure: Failure, *, at: float) -> InpaintJob:
        self._expect(JobStatus.QUEUED, JobStatus.PROCESSING)
        return self._evolve(status=JobStatus.FAILED, images=(), failure=failure, finished_at=at)

    def cancelled(self, *, at: float) -> InpaintJob:
        self._expect(JobStatus.QUEUED, JobStatus.PROCESSING)
        failure = Failure(code="cancelled", message="The job was cancelled.")
        return self._evolve(status=JobStatus.CANCELLED, images=(), failure=failure, finished_at=at)

    def seed_of(self, index: int) -> int:
        """The seed of picture `index`: it makes that picture again as a job of its own."""
        return self.seeds[index] if index < len(self.seeds) else (self.seed + index) % (MAX_SEED + 1)

    def log_context(self) -> dict[str, Any]:
        """What may stand in a log line about this job: no key, no picture, no link."""
        return {
            "job_id": self.job_id,
            "number": self.number,
            "key_id": self.key_id,
            "dialect": self.dialect,
            "model": self.model,
            "status": self.status.value,
            "attempts": self.attempts,
        }

    def to_record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> InpaintJob:
        values = dict(record)
        values["status"] = JobStatus(values["status"])
        values["mask_paints"] = MaskPaints(values["mask_paints"])
        values["priority"] = Priority(values["priority"])
        values["step_marks"] = tuple((int(step), float(at)) for step, at in values.get("step_marks", ()))
        # Records of before these existed have none of them.
        values["weighted_prompts"] = tuple(WeightedPrompt(**each) for each in values.get("weighted_prompts", ()))
        values["seeds"] = tuple(values.get("seeds", ()))
        values["masked_area_init"] = MaskedAreaInit(values.get("masked_area_init", MaskedAreaInit.ORIGINAL))
        values["loras"] = tuple(LoraUse(**each) for each in values.get("loras", ()))
        values["embeddings"] = tuple(values.get("embeddings", ()))
        if values.get("ip_adapter") is not None:
            values["ip_adapter"] = IpAdapterUse(**values["ip_adapter"])
        if values.get("safety_checker") is not None:
            values["safety_checker"] = SafetyAction(values["safety_checker"])
        values["images"] = tuple(ResultImage(**image) for image in values["images"])
        if values["failure"] is not None:
            values["failure"] = Failure(**values["failure"])
        return cls(**values)

    def _expect(self, *statuses: JobStatus) -> None:
        if self.status not in statuses:
            raise InvalidTransition(f"job {self.job_id} is {self.status}")

    def _evolve(self, **changes: Any) -> InpaintJob:
        return dataclasses.replace(self, **changes)
