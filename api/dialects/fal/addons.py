"""What an input of `fal-ai/inpaint` puts onto its model: extras of this service, in fal's own habits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.dialects.fal.words import row
from storage.addons import MAX_LORA_STRENGTH, MIN_LORA_STRENGTH, Addon, Addons, find_addon
from storage.job import IpAdapterUse, LoraUse
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


class EmbeddingInput(BaseModel):
    """A textual inversion: its word in a prompt stands for what it has learned."""

    model_config = ConfigDict(frozen=True)

    path: Text = Field(description="An id or another name from this service's models file; no URL.")


class IpAdapterInput(BaseModel):
    """An IP-adapter, and the picture it shows the model."""

    model_config = ConfigDict(frozen=True)

    path: Text = Field(description="An id or another name from this service's models file; no URL.")
    ip_adapter_image_url: Text = Field(description="The picture: an http or https URL, or a data URI.")
    scale: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False, description="How much it is heeded.")


def lora_uses(asked: Sequence[LoraInput], entry: ModelEntry | None, addons: Addons, rows: Rows) -> tuple[LoraUse, ...]:
    """What is wrong is added to `rows`."""
    uses = []
    for index, each in enumerate(asked):
        lora = find_addon(addons.loras, each.path)
        if lora is not None:
            uses.append(LoraUse(lora.id, each.scale))
        rows += _problems(["body", "loras", str(index), "path"], "LoRA", each.path, lora, entry)
    return tuple(uses)


def embedding_ids(
    asked: Sequence[EmbeddingInput], entry: ModelEntry | None, addons: Addons, rows: Rows
) -> tuple[str, ...]:
    """Each once. What is wrong is added to `rows`."""
    ids = []
    for index, each in enumerate(asked):
        embedding = find_addon(addons.embeddings, each.path)
        if embedding is not None:
            ids.append(embedding.id)
        rows += _problems(["body", "embeddings", str(index), "path"], "embedding", each.path, embedding, entry)
    return tuple(dict.fromkeys(ids))


def ip_adapter_use(
    asked: Sequence[IpAdapterInput], entry: ModelEntry | None, addons: Addons, rows: Rows
) -> IpAdapterUse | None:
    """Of a list of one. What is wrong is added to `rows`."""
    for each in asked:
        adapter = find_addon(addons.ip_adapters, each.path)
        rows += _problems(["body", "ip_adapter", "0", "path"], "IP-adapter", each.path, adapter, entry)
        if adapter is not None:
            return IpAdapterUse(adapter.id, each.ip_adapter_image_url, each.scale)
    return None


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
