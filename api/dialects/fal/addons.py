"""What an input of `fal-ai/inpaint` puts onto its model: extras of this service, in fal's own habits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.dialects.fal.words import row
from storage.addons import MAX_LORA_STRENGTH, MIN_LORA_STRENGTH, Addon, Addons, find_addon
from storage.job import LoraUse
from storage.model_catalog import ModelEntry

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


def _cleaned(text: str) -> str:
    return NOT_TEXT.sub("", text).strip()


Text = Annotated[str, AfterValidator(_cleaned)]
Rows = list[dict[str, Any]]


class LoraInput(BaseModel):
    """A LoRA, and how much of it."""

    model_config = ConfigDict(frozen=True)

    path: Text = Field(description="An id or another name from this service's models file; no URL.")
    scale: float = Field(
        default=1.0,
        ge=MIN_LORA_STRENGTH,
        le=MAX_LORA_STRENGTH,
        allow_inf_nan=False,
        description="1 is all of it, 0 none.",
    )


def lora_uses(asked: Sequence[LoraInput], entry: ModelEntry | None, addons: Addons, rows: Rows) -> tuple[LoraUse, ...]:
    """What is wrong is added to `rows`."""
    uses = []
    for index, each in enumerate(asked):
        lora = find_addon(addons.loras, each.path)
        if lora is not None:
            uses.append(LoraUse(lora.id, each.scale))
        rows += _problems(["body", "loras", str(index), "path"], "LoRA", each.path, lora, entry)
    return tuple(uses)


def vae_id(name: str | None, entry: ModelEntry | None, addons: Addons, rows: Rows) -> str | None:
    """What is wrong is added to `rows`."""
    if not name:
        return None
    vae = find_addon(addons.vaes, name)
    rows += _problems(["body", "vae"], "VAE", name, vae, entry)
    return None if vae is None else vae.id


def _problems(location: list[str], kind: str, name: str, addon: Addon | None, entry: ModelEntry | None) -> Rows:
    if addon is None:
        return [row(location, "value_error", f"There is no {kind} of this name here", name)]
    if entry is not None and addon.family != entry.family:
        return [row(location, "value_error", f"This {kind} is not for the model {entry.id}", name)]
    return []
