"""What a dialect makes of one parameter: found out by asking its parser, with the parameter and without."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

from api.dialects import family, modelslab, stable_diffusion_v3
from api.dialects.fal import input as fal
from api.dialects.stability import parse as stability
from api.dialects.stability.errors import WireStatus
from api.dialects.stability.proto import generation_pb2 as wire
from api.errors import InvalidFields, Refused
from api.settings import ApiSettings
from storage.addons import Addons, Embedding, Family, IpAdapter, Lora, Vae
from storage.job import InpaintJob
from storage.model_catalog import ModelCatalog, ModelEntry, load_catalog
from storage.settings import StorageSettings

HONOURED, REFUSED, IGNORED, NO_EFFECT = "honoured", "refused", "ignored", "no effect"
PICTURE, OTHER_PICTURE = "https://example.com/picture.png", "https://example.com/other.png"
ADDON_FAMILIES: tuple[str, ...] = get_args(Family)
BUILTIN = load_catalog(StorageSettings(models_file=None))
FAMILIES = tuple(dict.fromkeys((*ADDON_FAMILIES, *(entry.family for entry in BUILTIN.entries))))
SCHEDULER, LENIENT_SCHEDULER = "DDIMScheduler", "DPMSolverMultistepScheduler"

Body: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A parser's answer. `job` without what differs from one request to the next; None: it was refused."""

    job: InpaintJob | None
    ignored: tuple[str, ...] = ()


def catalog() -> ModelCatalog:
    """Two models of each family, add-ons of each kind, a safety checker: nothing is refused for want of it."""
    entries = [_entry(name, each) for each in FAMILIES for name in (each, f"another-{each}")]
    return ModelCatalog(entries=tuple(entries), default=entries[0], addons=_addons())


def _entry(name: str, family_name: str) -> ModelEntry:
    return dataclasses.replace(
        next((entry for entry in BUILTIN.entries if entry.family == family_name), BUILTIN.default),
        id=name,
        aliases=(),
        family=family_name,
        scheduler=SCHEDULER,
        prompt_suffix="in pencil",
        negative_prompt="blurry",
    )


def _addons() -> Addons:
    def common(kind: str, family_name: str) -> dict[str, Any]:
        name = f"{kind}-{family_name}"
        return {"id": name, "aliases": (), "name": name, "family": family_name, "path": Path(name)}

    return Addons(
        loras=tuple(Lora(**common("lora", each)) for each in ADDON_FAMILIES),
        vaes=tuple(Vae(**common("vae", each)) for each in ADDON_FAMILIES),
        ip_adapters=tuple(IpAdapter(**common("ip-adapter", each), image_encoder=Path(each)) for each in ADDON_FAMILIES),
        embeddings=tuple(Embedding(**common("embedding", each) | {"token": each}) for each in ADDON_FAMILIES),
        safety_checker=Path("checker"),
    )


def _default(name: str) -> Any:
    return ApiSettings.model_fields[name].default


def _frame() -> dict[str, Any]:
    """What every parser wants beside the request, the same each time."""
    counted = itertools.count(1)
    return {
        "key_id": "key",
        "catalog": catalog(),
        "max_prompt_chars": _default("max_prompt_chars"),
        "now": 0.0,
        "random_seed": lambda: 1,
        "new_id": lambda: f"00000000-0000-4000-8000-{next(counted):012d}",
    }


@dataclass(frozen=True)
class Wish:
    """A request with the parameter in it, and the value that it asks for."""

    request: Any
    value: Any


# -- one asker for each dialect: a family and a request's changes in, what became of it out ---------


def ask_family(variant: family.Variant, model: str, body: Body) -> Asked:
    whole = {"prompt": "a cat", "init_image": PICTURE, "mask_image": PICTURE, "model_id": model, **body}
    circumstances = family.Circumstances(base_url="", max_steps=_default("max_steps"), **_frame())
    try:
        job = family.parse(whole, variant, circumstances, dialect="any")
    except Refused:
        return Asked(None)
    return Asked(_comparable(job), tuple(job.wire["ignored"]))


def ask_fal(model: str, body: Body) -> Asked:
    whole = {"model_name": model, "prompt": "a cat", "image_url": PICTURE, "mask_url": PICTURE, **body}
    circumstances = fal.Circumstances(base_url="", max_steps=_default("fal_max_steps"), **_frame())
    job = fal.parse(json.dumps(whole).encode(), circumstances)
    return Asked(None) if job.status.is_final else Asked(_comparable(job), tuple(job.wire.get("ignored", ())))


def ask_stability(model: str, change: Callable[[wire.Request], None]) -> Asked:
    request = wire.Request(engine_id=model, prompt=[wire.Prompt(text="a cat")])
    for kind in (wire.ARTIFACT_IMAGE, wire.ARTIFACT_MASK):
        request.prompt.add().artifact.CopyFrom(wire.Artifact(type=kind, binary=b"picture"))
    request.image.SetInParent()
    change(request)
    circumstances = stability.Circumstances(client="", max_steps=_default("max_steps"), **_frame())
    try:
        return Asked(_comparable(stability.parse(request, circumstances)))
    except (InvalidFields, Refused, WireStatus):
        return Asked(None)


NOTED = ("ignored", "sampler", "sampler_painted_as", "style_preset")


def _comparable(job: InpaintJob) -> InpaintJob:
    """What is done: not who asked, and not what is only noted."""
    kept = {name: value for name, value in job.wire.items() if name not in NOTED}
    return dataclasses.replace(job, job_id="", image_id="", wire=kept)


# -- outcomes ---------------------------------------------------------------------------------------


def outcome(ask: Callable[[Any], Asked], without: Any, wishes: Sequence[Wish], name: str = "", reads: str = "") -> str:
    """What becomes of a parameter called `name` when any of the wishes for it is made of `ask`.

    `without`: a request that does not have it. `reads`: where the job keeps it, if it may become another there.
    """
    base = ask(without)
    answers = [(wish.value, ask(wish.request)) for wish in wishes]
    if all(answer.job is None for _, answer in answers):
        return REFUSED
    for value, answer in answers:
        if answer.job is None or answer.job == base.job or name in answer.ignored:
            continue
        kept = getattr(answer.job, reads) if reads else value
        return HONOURED if kept == value else f"mapped to {kept}"
    return IGNORED if any(name in answer.ignored for _, answer in answers) else NO_EFFECT


VARIANTS = {
    "ModelsLab realtime": modelslab.REALTIME,
    "ModelsLab community": modelslab.COMMUNITY,
    "Stable Diffusion v3": stable_diffusion_v3.INPAINT,
}


def stability_fields() -> Iterator[tuple[str, Callable[[wire.Request], None]]]:
    """Every plain field of the image parameters, by its path, with what gives it a value."""
    for path, field in _leaves(wire.ImageParameters.DESCRIPTOR, ()):
        yield ".".join((*path, field.name)), _setter(path, field)


def _leaves(message: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in message.fields:
        # Guidance nests prompts, which nest artifacts: what is below its instances is one thing here.
        if field.message_type is None or field.name == "instances":
            yield path, field
        else:
            yield from _leaves(field.message_type, (*path, field.name))


def _setter(path: tuple[str, ...], field: Any) -> Callable[[wire.Request], None]:
    def change(request: wire.Request) -> None:
        message: Any = request.image
        for name in path:
            inner = getattr(message, name)
            message = inner.add() if hasattr(inner, "add") else inner
        target = getattr(message, field.name)
        if field.message_type is not None:
            target.add()
        elif hasattr(target, "append"):
            target.append(_a_value(field))
        else:
            setattr(message, field.name, _a_value(field))

    return change


def _a_value(field: Any) -> Any:
    """One that is allowed, and no default."""
    match field.cpp_type:
        case field.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case field.CPPTYPE_FLOAT:
            return 0.5
        case field.CPPTYPE_STRING:
            return "x"
        case field.CPPTYPE_BOOL:
            return True
        case _:
            return 2 if field.name == "samples" else 64
