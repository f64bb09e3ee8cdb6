"""LoRAs and VAEs as bodies ask for them: names of the models file, strengths, and what is refused by which field."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from api.dialects import modelslab, stable_diffusion_v3
from api.dialects.fal.input import Circumstances as FalCircumstances
from api.dialects.fal.input import parse as parse_fal
from api.dialects.family import meta, parse
from api.errors import InvalidFields
from storage.addons import MAX_LORAS, Addons, Lora, Vae
from storage.job import InpaintJob, JobStatus, LoraUse
from tests.golden_pairs import CATALOG, DRAWN, PHOTO, circumstances

XL = dataclasses.replace(PHOTO, id="xl", aliases=(), family="sdxl")
NO_PATH = Path("nowhere")
ADDONS = Addons(
    loras=(
        Lora("contrast-fix", ("contrast",), "", "sd", NO_PATH),
        Lora("yae-miko-genshin", (), "", "sd", NO_PATH),
        Lora("xl-detail", (), "", "sdxl", NO_PATH),
        *(Lora(f"lora-{index}", (), "", "sd", NO_PATH) for index in range(MAX_LORAS)),
    ),
    vaes=(Vae("mse", ("sd-vae-ft-mse",), "", "sd", NO_PATH), Vae("xl-vae", (), "", "sdxl", NO_PATH)),
)
WITH_ADDONS = dataclasses.replace(CATALOG, entries=(PHOTO, DRAWN, XL), addons=ADDONS)
VARIANTS = [modelslab.REALTIME, modelslab.COMMUNITY, stable_diffusion_v3.INPAINT]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def asked(variant: Any = modelslab.COMMUNITY, **changes: Any) -> InpaintJob:
    body = {"prompt": "p", "init_image": "i", "mask_image": "m", "model_id": "photo", **changes}
    return parse(body, variant, circumstances(catalog=WITH_ADDONS), dialect="modelslab")


def problems_of(variant: Any = modelslab.COMMUNITY, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidFields) as refused:
        asked(variant, **changes)
    return [(each.field, each.kind) for each in refused.value.problems]


@every_variant
@pytest.mark.parametrize(
    ("model", "strength", "expected"),
    [
        ("contrast-fix", None, [("contrast-fix", 1.0)]),
        ("contrast", 0.5, [("contrast-fix", 0.5)]),
        ("contrast-fix, yae-miko-genshin", "0.7", [("contrast-fix", 0.7), ("yae-miko-genshin", 0.7)]),
        ("contrast-fix,yae-miko-genshin", "0.7,-1", [("contrast-fix", 0.7), ("yae-miko-genshin", -1.0)]),
        (["yae-miko-genshin", "contrast"], [0, 1], [("yae-miko-genshin", 0.0), ("contrast-fix", 1.0)]),
    ],
)
def test_several_loras_take_one_strength_or_one_each(
    variant: Any, model: Any, strength: Any, expected: list[tuple[str, float]]
) -> None:
    job = asked(variant, lora_model=model, lora_strength=strength)
    assert [(use.id, use.strength) for use in job.loras] == expected
    assert job.wire["ignored"] == []


@every_variant
def test_meta_shows_what_was_asked_for(variant: Any) -> None:
    job = asked(variant, lora_model="contrast,yae-miko-genshin", lora_strength="0.70,1", vae="sd-vae-ft-mse")
    shown = meta(job, variant)
    assert (shown["lora"], shown["lora_strength"], shown["vae"]) == ("contrast-fix,yae-miko-genshin", "0.7,1", "mse")
    shown = meta(asked(variant), variant)
    assert [shown.get(name) for name in ("lora", "lora_strength", "vae")] == [None, None, None]


@every_variant
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_model": "unheard-of"}, [("lora_model", "unknown_addon")]),
        ({"lora_model": "contrast-fix,a,b"}, [("lora_model", "unknown_addon")] * 2),
        ({"lora_model": "xl-detail"}, [("lora_model", "other_family")]),
        ({"lora_model": "contrast-fix", "model_id": "xl"}, [("lora_model", "other_family")]),
        ({"lora_model": "contrast-fix", "lora_strength": "0.5,0.5"}, [("lora_strength", "wrong_count")]),
        (
            {"lora_model": "contrast-fix,yae-miko-genshin,contrast", "lora_strength": [1, 2]},
            [("lora_strength", "wrong_count")],
        ),
        ({"lora_model": "contrast-fix", "lora_strength": "much"}, [("lora_strength", "not_a_number")]),
        ({"lora_model": "contrast-fix", "lora_strength": 6}, [("lora_strength", "out_of_range")]),
        (
            {"lora_model": ",".join(f"lora-{index}" for index in range(MAX_LORAS)) + ",contrast"},
            [("lora_model", "too_many")],
        ),
        ({"vae": "unheard-of"}, [("vae", "unknown_addon")]),
        ({"vae": "xl-vae"}, [("vae", "other_family")]),
        ({"vae": 7}, [("vae", "not_text")]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(
    variant: Any, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert problems_of(variant, **changes) == expected


@every_variant
def test_a_strength_of_nothing_is_said_to_be_ignored(variant: Any) -> None:
    assert asked(variant, lora_strength=0.5).wire["ignored"] == ["lora_strength"]
    for nothing in (None, "", "null", "no", [], 0, False):
        job = asked(variant, lora_model=nothing, vae=None)
        assert (job.loras, job.vae, job.wire["ignored"]) == ((), None, [])


def test_a_refusal_shows_the_name_cut_short() -> None:
    with pytest.raises(InvalidFields) as refused:
        asked(lora_model="a" * 10_000)
    message = modelslab.render_error(refused.value).body["message"]
    assert message.startswith("lora_model not found: aaa")
    assert len(message) < 200


def test_a_job_with_loras_survives_its_record() -> None:
    job = asked(lora_model="contrast,yae-miko-genshin", lora_strength="0.7,0.2", vae="mse")
    assert InpaintJob.from_record(json.loads(json.dumps(job.to_record()))) == job


# -- fal ------------------------------------------------------------------------------------------


def of_fal(**changes: Any) -> InpaintJob:
    body = {"model_name": "photo", "prompt": "p", "image_url": "https://a/i", "mask_url": "https://a/m", **changes}
    numbers = itertools.count(1)
    circumstances = FalCircumstances(
        key_id="key-a",
        base_url="https://pictures.example",
        catalog=WITH_ADDONS,
        max_steps=51,
        max_prompt_chars=1000,
        now=1_800_000_000.0,
        random_seed=lambda: 1,
        new_id=lambda: f"00000000-0000-4000-8000-{next(numbers):012d}",
    )
    return parse_fal(json.dumps(body).encode(), circumstances)


def test_fal_names_loras_by_path_and_scale() -> None:
    job = of_fal(loras=[{"path": "contrast", "scale": 0.4}, {"path": "yae-miko-genshin"}], vae="mse")
    assert job.status is JobStatus.QUEUED
    assert job.loras == (LoraUse("contrast-fix", 0.4), LoraUse("yae-miko-genshin", 1.0))
    assert job.vae == "mse"
    for nothing in ({}, {"loras": None, "vae": None}, {"loras": [], "vae": ""}):
        assert (of_fal(**nothing).loras, of_fal(**nothing).vae) == ((), None)


@pytest.mark.parametrize(
    ("changes", "location", "kind"),
    [
        ({"loras": [{"path": "contrast"}, {"path": "unheard-of"}]}, ["body", "loras", "1", "path"], "value_error"),
        ({"loras": [{"path": "https://a/b.safetensors"}]}, ["body", "loras", "0", "path"], "value_error"),
        ({"loras": [{"path": "xl-detail"}]}, ["body", "loras", "0", "path"], "value_error"),
        ({"loras": [{"scale": 1}]}, ["body", "loras", "0", "path"], "missing"),
        ({"loras": [{"path": "contrast", "scale": 9}]}, ["body", "loras", "0", "scale"], "less_than_equal"),
        ({"loras": [{"path": "contrast"}] * (MAX_LORAS + 1)}, ["body", "loras"], "too_long"),
        ({"loras": "contrast"}, ["body", "loras"], "list_type"),
        ({"vae": "xl-vae"}, ["body", "vae"], "value_error"),
    ],
)
def test_what_fal_cannot_mean_fails_at_the_result(changes: dict[str, Any], location: list[str], kind: str) -> None:
    job = of_fal(**changes)
    assert job.status is JobStatus.FAILED
    assert job.failure is not None
    [row] = job.failure.detail["rows"]
    assert (row["loc"], row["type"]) == (location, kind)
