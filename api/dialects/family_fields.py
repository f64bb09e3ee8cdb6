"""The fields of the ModelsLab family: which are honoured, which refused, which ignored. One table for all uses.

The pydantic models read the bodies and make OpenAPI; the table is also what the docs page shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from api.fields import (
    WireFlag,
    WireInteger,
    WireName,
    WireNames,
    WireNumber,
    WireNumbers,
    WireTag,
    WireText,
    WireWish,
    is_blank,
)
from api.styles import STYLES
from storage.addons import MAX_LORA_STRENGTH, MIN_LORA_STRENGTH
from storage.job import MAX_SEED, SafetyAction
from storage.schedulers import SCHEDULERS, stand_ins_text

MIN_SIZE = 64
MAX_SIZE = 1024
DEFAULT_SIZE = 512
MAX_SAMPLES = 4
MIN_GUIDANCE_SCALE = 1
MAX_GUIDANCE_SCALE = 20
DEFAULT_STRENGTH = 1.0
RANDOM_SEED = -1
MAX_CLIP_SKIP = 8
DEFAULT_IP_ADAPTER_SCALE = 0.6  # as the vendor's


class KeyBody(BaseModel):
    """What every body may carry."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: Annotated[
        str | None,
        WireName(),
        Field(description="The API key; or in the header `Authorization: Bearer` or `key`."),
    ] = None


class FetchBody(KeyBody):
    request_id: Annotated[
        str | int | None, WireTag(), Field(description="The `id` of the job, where the path has none.")
    ] = None


class UploadBody(KeyBody):
    base64_string: Annotated[str, WireText(), Field(description="The picture: a data URI or bare base64.")]


SAFETY_DEFAULTS = "Default: sensitive_content_text on the community endpoint, black on the others."
SIZE_MEANING = f"Of the result, in pixels: any number from {MIN_SIZE} to {MAX_SIZE}, whatever the picture's own size."


class InpaintBody(KeyBody):
    prompt: Annotated[
        str,
        WireText(),
        Field(
            description="What to paint where the mask is white. Required, but for a model without weights "
            "(as `remove`)."
        ),
    ] = ""
    negative_prompt: Annotated[str, WireText(), Field(description="What not to paint.")] = ""
    init_image: Annotated[str, WireText(), Field(description="The picture: URL, data URI or bare base64.")]
    mask_image: Annotated[
        str, WireText(), Field(description="White is repainted, black stays; any size. As init_image.")
    ]
    model_id: Annotated[
        str | None, WireName(), Field(description="An id or alias of the models file; default: its default.")
    ] = None
    width: Annotated[int, WireInteger(MIN_SIZE, MAX_SIZE), Field(description=SIZE_MEANING)] = DEFAULT_SIZE
    height: Annotated[int, WireInteger(MIN_SIZE, MAX_SIZE), Field(description=SIZE_MEANING)] = DEFAULT_SIZE
    samples: Annotated[int, WireInteger(1, MAX_SAMPLES), Field(description="How many pictures.")] = 1
    num_inference_steps: Annotated[
        int | None,
        WireInteger(1),
        Field(description="Denoising steps; more than the limit is capped, see meta.steps. Default: the model's."),
    ] = None
    steps: Annotated[
        int | None, WireInteger(1), Field(description="The same; num_inference_steps counts if both are given.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        WireNumber(MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE),
        Field(description="How closely to follow the prompt. Default: the model's."),
    ] = None
    strength: Annotated[
        float,
        WireNumber(0, 1),
        Field(description="How much of what lies under the mask is lost; 1 is all. At least one step is made."),
    ] = DEFAULT_STRENGTH
    seed: Annotated[
        int | None,
        WireInteger(RANDOM_SEED, MAX_SEED),
        Field(description="Null or -1: random, see meta.seed. Picture k uses seed + k, modulo 2^32."),
    ] = None
    scheduler: Annotated[
        str | None,
        WireName(),
        Field(
            description=f"A class name of diffusers: one of {', '.join(SCHEDULERS)}; or of those that cannot inpaint, "
            f"painted by the nearest that can, which meta.scheduler names: {stand_ins_text()}. Default: the model's."
        ),
    ] = None
    use_karras_sigmas: Annotated[
        bool | None,
        WireFlag(),
        Field(description="For the schedulers that have them; meta.ignored names it elsewhere."),
    ] = None
    algorithm_type: Annotated[
        str | None,
        WireName(),
        Field(
            description="none, dpmsolver++ (also written dpmsolver+++) or sde-dpmsolver++, for the DPM solvers; "
            "meta.ignored names it elsewhere."
        ),
    ] = None
    base64: Annotated[bool, WireFlag(), Field(description="Links to base64 text files instead of PNGs.")] = False
    temp: Annotated[bool, WireFlag(), Field(description="The result is deleted after 24 hours.")] = False
    webhook: Annotated[
        str | None, WireName(), Field(description="URL that gets a signed POST when the job is over.")
    ] = None
    track_id: Annotated[
        str | int | float | None, WireTag(), Field(description="Given back in the webhook, as it came.")
    ] = None
    instant_response: Annotated[
        bool, WireFlag(), Field(description="Answer `processing` at once instead of waiting a while.")
    ] = False
    enhance_prompt: Annotated[
        bool | None,
        WireFlag(),
        Field(description="Append the model's prompt suffix and negative prompt, see meta.prompt."),
    ] = None
    safety_checker: Annotated[
        bool | None,
        WireFlag(),
        Field(description="Hide pictures in which the safety checker finds something, see nsfw_content_detected."),
    ] = None
    safetychecker: Annotated[
        bool | None, WireFlag(), Field(description="The same, its older name; safety_checker counts if both are given.")
    ] = None
    safety_checker_type: Annotated[
        str | None,
        WireName(),
        Field(description=f"How: {', '.join(SafetyAction)}. No effect without safety_checker. {SAFETY_DEFAULTS}"),
    ] = None
    lora_model: Annotated[
        tuple[str, ...],
        WireNames(),
        Field(description="LoRAs of the models file, with commas between; for models of their family."),
    ] = ()
    lora_strength: Annotated[
        tuple[float, ...],
        WireNumbers(MIN_LORA_STRENGTH, MAX_LORA_STRENGTH),
        Field(description="One strength for all of lora_model, or one for each, with commas between. Default: 1."),
    ] = ()
    vae: Annotated[
        str | None,
        WireName(),
        Field(description="A VAE of the models file in place of the model's own; for models of its family."),
    ] = None
    clip_skip: Annotated[
        int | None,
        WireInteger(1, MAX_CLIP_SKIP),
        Field(
            description="How many of the text encoder's last layers to leave out, for the prompt; more than there are "
            "is capped, see meta.clip_skip. Default: none."
        ),
    ] = None
    embeddings_model: Annotated[
        tuple[str, ...],
        WireNames(),
        Field(
            description="Textual inversions of the models file, with commas between: each one's word in a prompt "
            "stands for what it has learned. For models of their family."
        ),
    ] = ()
    ip_adapter_id: Annotated[
        str | None,
        WireWish(),
        Field(description="An IP-adapter of the models file, for models of its family: shows ip_adapter_image."),
    ] = None
    ip_adapter_scale: Annotated[
        float | None,
        WireNumber(0, 1),
        Field(description=f"How much the model heeds the picture. Default: {DEFAULT_IP_ADAPTER_SCALE}."),
    ] = None
    ip_adapter_image: Annotated[
        str | None, WireName(), Field(description="What the IP-adapter shows the model. As init_image.")
    ] = None
    enhance_style: Annotated[
        str | None,
        WireWish(),
        Field(description=f"Append a style's words to both prompts: {', '.join(STYLES)}. Others are ignored."),
    ] = None


class RealtimeBody(InpaintBody):
    """Body of the v6 realtime endpoint."""


class CommunityBody(InpaintBody):
    """Body of the v6 community endpoint."""

    model_id: Annotated[str, WireName(), Field(description="An id or alias of the models file.")]


class LegacyBody(InpaintBody):
    """Body of the v3 endpoint."""


class Fate(StrEnum):
    HONOURED = "honoured"
    IGNORED = "ignored"


@dataclass(frozen=True)
class FieldFate:
    name: str
    fate: Fate
    note: str


_NOT_HERE = "Belongs to other endpoints of these APIs."
IGNORED = {
    "upscale": _NOT_HERE,
    "watermark": "Nothing is stamped on the result.",
    "opacity": "Of the watermark.",
    "padding_down": "Of the watermark.",
    "padding_right": "Of the watermark.",
    "scale_down": "Of the watermark.",
    "pag_scale": _NOT_HERE,
    "rescale": "The result always has the size asked for.",
    "outdir": "The image store has its own order.",
    "file_prefix": "File names are ours, so that links cannot be guessed.",
    "multi_lingual": _NOT_HERE,
    "panorama": _NOT_HERE,
    "self_attention": _NOT_HERE,
    "tomesd": _NOT_HERE,
    "full_url": _NOT_HERE,
}

FIELDS: tuple[FieldFate, ...] = (
    *(FieldFate(name, Fate.HONOURED, info.description or "") for name, info in InpaintBody.model_fields.items()),
    *(FieldFate(name, Fate.IGNORED, note) for name, note in IGNORED.items()),
)


NO_EFFECT_WITHOUT_WEIGHTS = frozenset(
    {
        *("prompt", "negative_prompt", "enhance_prompt", "num_inference_steps", "steps", "guidance_scale"),
        *("strength", "scheduler", "use_karras_sigmas", "algorithm_type", "clip_skip", "enhance_style"),
    }
)


def ignored_fields(body: Mapping[str, Any]) -> list[str]:
    """Those that were given a value and have no effect."""
    return [name for name in body if name in IGNORED and not is_blank(body[name])]


def idle_without_weights(body: Mapping[str, Any]) -> list[str]:
    """Those that were given a value and say nothing to a model without weights."""
    return [name for name in body if name in NO_EFFECT_WITHOUT_WEIGHTS and not is_blank(body[name])]
