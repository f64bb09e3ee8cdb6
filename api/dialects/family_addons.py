"""What a body of the ModelsLab family puts onto its model: found in the models file, and shown in `meta`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.dialects.family_fields import DEFAULT_IP_ADAPTER_SCALE, InpaintBody
from api.errors import InvalidFields, Problem
from api.styles import STYLES, styled
from storage.addons import MAX_EMBEDDINGS, MAX_LORAS, Addon, Embedding, find_addon
from storage.job import InpaintJob, IpAdapterUse, LoraUse
from storage.model_catalog import ModelCatalog, ModelEntry

SHOWN_CHARS = 100
FULL_STRENGTH = 1.0


def addons_of(asked: InpaintBody, entry: ModelEntry, catalog: ModelCatalog) -> dict[str, Any]:
    """What goes onto the model, as fields of the job. Raises InvalidFields."""
    return {
        "loras": loras_of(asked, entry, catalog),
        "vae": vae_of(asked, entry, catalog),
        "clip_skip": asked.clip_skip,
        "ip_adapter": ip_adapter_of(asked, entry, catalog),
    }


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


def embeddings_of(asked: InpaintBody, entry: ModelEntry, catalog: ModelCatalog) -> tuple[Embedding, ...]:
    """Each once, in the order of the body. Raises InvalidFields."""
    names = tuple(dict.fromkeys(asked.embeddings_model))
    if len(names) > MAX_EMBEDDINGS:
        raise InvalidFields([Problem("embeddings_model", "too_many", {"high": MAX_EMBEDDINGS})])
    found = [find_addon(catalog.addons.embeddings, name) for name in names]
    problems = []
    for name, embedding in zip(names, found, strict=True):
        problems += _problems("embeddings_model", name, embedding, entry)
    if problems:
        raise InvalidFields(problems)
    return tuple(dict.fromkeys(embedding for embedding in found if embedding))


def ip_adapter_of(asked: InpaintBody, entry: ModelEntry, catalog: ModelCatalog) -> IpAdapterUse | None:
    """Its picture is still as the client gave it. Raises InvalidFields."""
    if asked.ip_adapter_id is None:
        return None
    adapter = find_addon(catalog.addons.ip_adapters, asked.ip_adapter_id)
    problems = _problems("ip_adapter_id", asked.ip_adapter_id, adapter, entry)
    if asked.ip_adapter_image is None:
        problems.append(Problem("ip_adapter_image", "missing"))
    if problems or adapter is None or asked.ip_adapter_image is None:
        raise InvalidFields(problems)
    scale = DEFAULT_IP_ADAPTER_SCALE if asked.ip_adapter_scale is None else asked.ip_adapter_scale
    return IpAdapterUse(adapter.id, asked.ip_adapter_image, scale)


def ignored_fields(asked: InpaintBody, embeddings: Sequence[Embedding], texts: Sequence[str]) -> list[str]:
    """Those that have no effect beside the others of the body. `texts`: the prompts as the model reads them."""
    read = " ".join(texts).casefold()
    without_effect = {
        "lora_strength": asked.lora_strength and not asked.lora_model,
        "embeddings_model": embeddings and not any(each.token.casefold() in read for each in embeddings),
        "ip_adapter_scale": asked.ip_adapter_scale is not None and asked.ip_adapter_id is None,
        "ip_adapter_image": asked.ip_adapter_image and asked.ip_adapter_id is None,
        "enhance_style": asked.enhance_style and style_of(asked) is None,
    }
    return [name for name, is_without in without_effect.items() if is_without]


def style_of(asked: InpaintBody) -> tuple[str, str] | None:
    """A style's words for the prompt and for the negative prompt; None for no style, or one that is not known."""
    return STYLES.get((asked.enhance_style or "").casefold())


def in_style(asked: InpaintBody) -> tuple[str, str]:
    """The prompt and the negative prompt, with the words of the style behind them."""
    style = style_of(asked)
    if style is None:
        return asked.prompt, asked.negative_prompt
    return styled(asked.prompt, style[0]), styled(asked.negative_prompt, style[1])


def meta(job: InpaintJob) -> dict[str, Any]:
    """As the body spells it, names for aliases; None for what was not asked for."""
    strengths = [f"{use.strength:g}" for use in job.loras]
    return {
        "lora": ",".join(use.id for use in job.loras) or None,
        "lora_strength": ",".join(strengths) or None,
        "vae": job.vae,
        "clip_skip": job.notes.get("clip_skip", job.clip_skip),
        "embeddings_model": ",".join(job.embeddings) or None,
        "ip_adapter_id": job.ip_adapter.id if job.ip_adapter else None,
        "ip_adapter_scale": job.ip_adapter.scale if job.ip_adapter else None,
        "ip_adapter_image": job.wire.get("ip_adapter_image"),
        "enhance_style": job.wire.get("enhance_style"),
    }


def _problems(field: str, name: str, addon: Addon | None, entry: ModelEntry) -> list[Problem]:
    shown = name[:SHOWN_CHARS]
    if addon is None:
        return [Problem(field, "unknown_addon", {"value": shown})]
    if addon.family != entry.family:
        return [Problem(field, "other_family", {"value": shown, "model": entry.id})]
    return []
