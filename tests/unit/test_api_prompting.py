"""Skipped layers, textual inversions, IP-adapters and styles: how bodies ask, and what is refused by which field."""

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
from api.styles import STYLES
from storage.addons import MAX_EMBEDDINGS, Addons, Embedding, IpAdapter
from storage.job import InpaintJob, IpAdapterUse, JobStatus
from tests.golden_pairs import CATALOG, DRAWN, PHOTO, circumstances

XL = dataclasses.replace(PHOTO, id="xl", aliases=(), family="sdxl")
NO_PATH = Path("nowhere")
# The five of the vendor's documents.
ADAPTERS = {
    "ip-adapter_sdxl": "sdxl",
    "ip-adapter_sd15": "sd",
    "ip-adapter-plus-face_sd15": "sd",
    "ip-adapter-plus_sdxl_vit-h": "sdxl",
    "ip-adapter-plus-face_sdxl_vit-h": "sdxl",
}
ADDONS = Addons(
    ip_adapters=tuple(IpAdapter(each, (), "", family, NO_PATH, NO_PATH) for each, family in ADAPTERS.items()),
    embeddings=(
        Embedding("easynegative", ("easy",), "", "sd", NO_PATH, "easynegative"),
        Embedding("toy", (), "", "sd", NO_PATH, "<cat-toy>"),
        Embedding("xl-word", (), "", "sdxl", NO_PATH, "xl-word"),
        *(Embedding(f"word-{index}", (), "", "sd", NO_PATH, "p") for index in range(MAX_EMBEDDINGS)),
    ),
)
WITH_ADDONS = dataclasses.replace(CATALOG, entries=(PHOTO, DRAWN, XL), addons=ADDONS)
VARIANTS = [modelslab.REALTIME, modelslab.COMMUNITY, stable_diffusion_v3.INPAINT]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
LOOK = {"ip_adapter_id": "ip-adapter_sd15", "ip_adapter_image": "https://a/look.png"}


def asked(variant: Any = modelslab.COMMUNITY, **changes: Any) -> InpaintJob:
    body = {
        **{"prompt": "p", "init_image": "i", "mask_image": "m", "model_id": "photo", "enhance_prompt": "no"},
        **changes,
    }
    return parse(body, variant, circumstances(catalog=WITH_ADDONS), dialect="modelslab")


@every_variant
def test_a_body_says_how_its_words_are_read_and_what_is_shown(variant: Any) -> None:
    job = asked(variant, clip_skip="2", embeddings_model="easy, toy,easynegative", prompt="<CAT-toy>", **LOOK)
    assert job.clip_skip == 2
    assert job.embeddings == ("easynegative", "toy")
    assert job.ip_adapter == IpAdapterUse("ip-adapter_sd15", "https://a/look.png", 0.6)
    assert job.wire["ignored"] == []
    assert InpaintJob.from_record(json.loads(json.dumps(job.to_record()))) == job


@every_variant
def test_a_body_that_says_nothing_of_it_asks_for_nothing(variant: Any) -> None:
    for nothing in (None, "", "null", "no", [], 0, False):
        job = asked(variant, clip_skip=None, embeddings_model=nothing, ip_adapter_id=nothing, enhance_style=nothing)
        assert (job.clip_skip, job.embeddings, job.ip_adapter, job.prompt) == (None, (), None, "p")
        assert job.wire["ignored"] == []


@every_variant
def test_meta_shows_what_was_asked_for_and_what_came_of_it(variant: Any) -> None:
    job = asked(variant, clip_skip=8, embeddings_model="word-1", ip_adapter_scale="0.25", **LOOK)
    job = dataclasses.replace(job, wire={**job.wire, "ip_adapter_image": "https://b/shown.png"})
    shown = meta(job, variant)
    assert (shown["clip_skip"], shown["embeddings_model"]) == (8, "word-1")
    assert (shown["ip_adapter_id"], shown["ip_adapter_scale"]) == ("ip-adapter_sd15", 0.25)
    assert shown["ip_adapter_image"] == "https://b/shown.png"
    capped = dataclasses.replace(job, notes={"clip_skip": 3})
    assert meta(capped, variant)["clip_skip"] == 3


@pytest.mark.parametrize(("adapter", "family"), ADAPTERS.items())
def test_every_ip_adapter_of_the_vendors_documents_has_its_family(adapter: str, family: str) -> None:
    model = "photo" if family == "sd" else "xl"
    job = asked(ip_adapter_id=adapter, ip_adapter_image="u", model_id=model)
    assert job.ip_adapter is not None
    assert job.ip_adapter.id == adapter


@every_variant
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clip_skip": 0}, [("clip_skip", "out_of_range")]),
        ({"clip_skip": 9}, [("clip_skip", "out_of_range")]),
        ({"clip_skip": "two"}, [("clip_skip", "not_an_integer")]),
        ({"embeddings_model": "unheard-of,toy"}, [("embeddings_model", "unknown_addon")]),
        ({"embeddings_model": "xl-word"}, [("embeddings_model", "other_family")]),
        (
            {"embeddings_model": [*(f"word-{index}" for index in range(MAX_EMBEDDINGS)), "toy"]},
            [("embeddings_model", "too_many")],
        ),
        ({**LOOK, "ip_adapter_id": "unheard-of"}, [("ip_adapter_id", "unknown_addon")]),
        ({**LOOK, "ip_adapter_id": "ip-adapter_sdxl"}, [("ip_adapter_id", "other_family")]),
        ({**LOOK, "ip_adapter_image": None}, [("ip_adapter_image", "missing")]),
        ({**LOOK, "ip_adapter_scale": 1.5}, [("ip_adapter_scale", "out_of_range")]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(
    variant: Any, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    with pytest.raises(InvalidFields) as refused:
        asked(variant, **changes)
    assert [(each.field, each.kind) for each in refused.value.problems] == expected


@every_variant
def test_what_has_no_effect_is_said_to_be_ignored(variant: Any) -> None:
    job = asked(
        variant,
        embeddings_model="toy",
        prompt="no toy here",
        ip_adapter_scale=0.5,
        ip_adapter_image="u",
        enhance_style="unheard-of",
    )
    assert sorted(job.wire["ignored"]) == ["embeddings_model", "enhance_style", "ip_adapter_image", "ip_adapter_scale"]
    assert job.embeddings == ("toy",)


@every_variant
def test_a_word_in_the_negative_prompt_is_an_effect(variant: Any) -> None:
    job = asked(variant, embeddings_model="easynegative", negative_prompt="(EasyNegative:1.2)")
    assert job.wire["ignored"] == []


@every_variant
def test_a_style_puts_its_words_behind_both_prompts(variant: Any) -> None:
    for style, (wanted, unwanted) in STYLES.items():
        job = asked(variant, enhance_style=style.upper(), negative_prompt="n")
        assert (job.prompt, job.negative_prompt) == (f"p, {wanted}", f"n, {unwanted}")
        assert meta(job, variant)["enhance_style"] == style.upper()


def test_a_style_comes_before_what_the_models_maker_advises() -> None:
    job = asked(enhance_style="anime", enhance_prompt="yes")
    wanted, unwanted = STYLES["anime"]
    assert job.prompt == f"p, {wanted} sharp focus, 8k"
    assert job.negative_prompt == f"{unwanted}, blurry, deformed"


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


def test_fal_names_them_by_path_as_its_own_applications_do() -> None:
    look = {"path": "ip-adapter_sd15", "ip_adapter_image_url": "https://a/look.png", "scale": 0.3}
    job = of_fal(clip_skip=1, embeddings=[{"path": "easy"}, {"path": "toy"}], ip_adapter=[look])
    assert job.status is JobStatus.QUEUED
    assert (job.clip_skip, job.embeddings) == (1, ("easynegative", "toy"))
    assert job.ip_adapter == IpAdapterUse("ip-adapter_sd15", "https://a/look.png", 0.3)
    for nothing in ({}, {"clip_skip": None, "embeddings": None, "ip_adapter": None}, {"embeddings": []}):
        job = of_fal(**nothing)
        assert (job.clip_skip, job.embeddings, job.ip_adapter) == (None, (), None)


@pytest.mark.parametrize(
    ("changes", "location", "kind"),
    [
        ({"clip_skip": 9}, ["body", "clip_skip"], "less_than_equal"),
        ({"embeddings": [{"path": "unheard-of"}]}, ["body", "embeddings", "0", "path"], "value_error"),
        ({"embeddings": [{"path": "xl-word"}]}, ["body", "embeddings", "0", "path"], "value_error"),
        (
            {"ip_adapter": [{"path": "ip-adapter_sdxl", "ip_adapter_image_url": "u"}]},
            ["body", "ip_adapter", "0", "path"],
            "value_error",
        ),
        ({"ip_adapter": [{"path": "ip-adapter_sd15"}]}, ["body", "ip_adapter", "0", "ip_adapter_image_url"], "missing"),
    ],
)
def test_what_fal_cannot_mean_fails_at_the_result(changes: dict[str, Any], location: list[str], kind: str) -> None:
    job = of_fal(**changes)
    assert job.status is JobStatus.FAILED
    assert job.failure is not None
    [row] = job.failure.detail["rows"]
    assert (row["loc"], row["type"]) == (location, kind)
