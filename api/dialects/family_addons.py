"""What a body of the ModelsLab family puts onto its model: found in the models file, and shown in `meta`."""

from __future__ import annotations

from typing import Any

from api.dialects.family_fields import InpaintBody
from api.errors import InvalidFields, Problem
from storage.addons import MAX_LORAS, Addon, find_addon
from storage.job import InpaintJob, LoraUse
from storage.model_catalog import ModelCatalog, ModelEntry

SHOWN_CHARS = 100
FULL_STRENGTH = 1.0


def loras_of(asked: InpaintBody, entry: ModelEntry, catalog: ModelCatalog) -> tuple[LoraUse, ...]:
    """In the order of the body; one strength is that of all. Raises InvalidFields."""
    names, strengths = asked.lora_model, asked.lora_strength or (FULL_STRENGTH,)
    if len(names) > MAX_LORAS:
        raise InvalidFields([Problem("lora_model", "too_many", {"high": MAX_LORAS})])
    if not names:
        return ()
    problems = []
    if len(strengths) not in (1, len(names)):
        problems.append(Problem("lora_strength", "wrong_count", {"expected": len(names)}))
    found = [find_addon(catalog.addons.loras, name) for name in names]
    for name, lora in zip(names, found, strict=True):
        problems += _problems("lora_model", name, lora, entry)
    if problems:
        raise InvalidFields(problems)
    each = strengths * len(names) if len(strengths) == 1 else strengths
    return tuple(LoraUse(lora.id, strength) for lora, strength in zip(found, each, strict=True) if lora)


def vae_of(asked: InpaintBody, entry: ModelEntry, catalog: ModelCatalog) -> str | None:
    """Its id. Raises InvalidFields."""
    if asked.vae is None:
        return None
    vae = find_addon(catalog.addons.vaes, asked.vae)
    problems = _problems("vae", asked.vae, vae, entry)
    if problems or vae is None:
        raise InvalidFields(problems)
    return vae.id


def ignored_fields(asked: InpaintBody) -> list[str]:
    """Those that have no effect beside the others of the body."""
    return ["lora_strength"] if asked.lora_strength and not asked.lora_model else []


def meta(job: InpaintJob) -> dict[str, Any]:
    """As the body spells it, names for aliases; None for what was not asked for."""
    strengths = [f"{use.strength:g}" for use in job.loras]
    return {
        "lora": ",".join(use.id for use in job.loras) or None,
        "lora_strength": ",".join(strengths) or None,
        "vae": job.vae,
    }


def _problems(field: str, name: str, addon: Addon | None, entry: ModelEntry) -> list[Problem]:
    shown = name[:SHOWN_CHARS]
    if addon is None:
        return [Problem(field, "unknown_addon", {"value": shown})]
    if addon.family != entry.family:
        return [Problem(field, "other_family", {"value": shown, "model": entry.id})]
    return []
