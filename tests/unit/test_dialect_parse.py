"""How a body becomes a job, where the golden files do not say it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from api.dialects.family import enhanced, meta, parse
from api.dialects.family_fields import InpaintBody
from api.dialects.modelslab import COMMUNITY, REALTIME
from api.dialects.stable_diffusion_v3 import INPAINT
from api.errors import InvalidFields, Problem, UnknownModel
from storage.job import InpaintJob
from storage.model_catalog import ModelCatalog
from storage.schedulers import KNOWN_SCHEDULERS, SCHEDULERS, STAND_INS
from tests.golden_pairs import DRAWN, PHOTO, circumstances

VARIANTS = [REALTIME, COMMUNITY, INPAINT]


def parsed(variant: Any = REALTIME, **changes: Any) -> InpaintJob:
    body = {"prompt": "p", "init_image": "i", "mask_image": "m", "model_id": "photo", **changes}
    return parse({k: v for k, v in body.items() if v is not None}, variant, circumstances(), dialect="modelslab")


def problem_of(variant: Any = REALTIME, **changes: Any) -> Problem:
    with pytest.raises(InvalidFields) as refused:
        parsed(variant, **changes)
    return refused.value.problems[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("name", ["prompt", "init_image", "mask_image"])
def test_what_every_job_needs_is_required(variant: Any, name: str) -> None:
    for blank in (None, "", "  "):
        assert (problem_of(variant, **{name: blank}).field, problem_of(variant, **{name: blank}).kind) == (
            name,
            "missing",
        )


def test_community_needs_a_model_and_the_others_take_the_default() -> None:
    assert problem_of(COMMUNITY, model_id=None).field == "model_id"
    assert parsed(REALTIME, model_id=None).model == "photo"
    assert parsed(INPAINT, model_id=None).model == "photo"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_model_is_found_by_id_and_alias_and_an_unknown_one_is_refused(variant: Any) -> None:
    assert parsed(variant, model_id="drawn").model == "drawn"
    assert parsed(variant, model_id="lazymixv4-inpaint").model == "photo"
    with pytest.raises(UnknownModel):
        parsed(variant, model_id="sdxl-unheard-of")


def test_meta_says_whether_the_model_is_of_xl() -> None:
    xl = dataclasses.replace(PHOTO, family="sdxl")
    body = {"prompt": "p", "init_image": "i", "mask_image": "m", "model_id": "photo"}
    job = parse(body, COMMUNITY, circumstances(catalog=ModelCatalog((xl,), xl)), dialect="modelslab")
    assert meta(job, COMMUNITY)["is_sdxl"] is True
    assert meta(parsed(COMMUNITY), COMMUNITY)["is_sdxl"] is False


def test_what_is_not_given_is_the_models() -> None:
    job = parsed(model_id="drawn")
    assert (job.num_inference_steps, job.guidance_scale, job.scheduler) == (30, 7.5, "DDIMScheduler")
    assert (job.width, job.height, job.num_images, job.strength) == (512, 512, 1, 1.0)


def test_more_steps_than_the_limit_are_capped_and_none_are_refused() -> None:
    assert parsed(steps=51).num_inference_steps == 51
    assert parsed(steps=52).num_inference_steps == 51
    assert parsed(num_inference_steps="1000").num_inference_steps == 51
    assert problem_of(steps=0).field == "steps"


def test_num_inference_steps_counts_where_both_are_given() -> None:
    assert parsed(steps=5, num_inference_steps=9).num_inference_steps == 9


@pytest.mark.parametrize("seed", [None, "", "null", -1, "-1"])
def test_a_seed_left_open_is_random(seed: Any) -> None:
    assert parsed(seed=seed).seed == 3163825381


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), ("4294967295", 2**32 - 1), (7.0, 7)])
def test_a_given_seed_is_kept(seed: Any, expected: int) -> None:
    assert parsed(seed=seed).seed == expected


@pytest.mark.parametrize("seed", [-2, 2**32, "x"])
def test_a_seed_outside_32_bits_is_refused(seed: Any) -> None:
    assert problem_of(seed=seed).field == "seed"


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_supported_scheduler_is_taken_whatever_its_case(name: str) -> None:
    assert parsed(scheduler=f" {name.upper()} ").scheduler == name


@pytest.mark.parametrize("name", STAND_INS)
def test_a_documented_scheduler_that_cannot_inpaint_is_painted_by_the_nearest_and_meta_names_both(name: str) -> None:
    job = parsed(scheduler=name.lower())
    assert (job.scheduler, job.wire["ignored"]) == (STAND_INS[name].scheduler, [])
    shown = meta(job, COMMUNITY)
    assert (shown["scheduler"], shown["scheduler_asked"]) == (job.scheduler, name)
    assert "scheduler_asked" not in meta(parsed(scheduler="DDIMScheduler"), COMMUNITY)


def test_the_stand_in_of_karras_ve_has_karras_sigmas_whatever_is_asked() -> None:
    assert [
        parsed(scheduler="KarrasVeScheduler", use_karras_sigmas=flag).use_karras_sigmas for flag in (None, "no")
    ] == [
        True,
        True,
    ]
    assert parsed(scheduler="KarrasVeScheduler", use_karras_sigmas="no").wire["ignored"] == ["use_karras_sigmas"]
    assert parsed(scheduler="IPNDMScheduler", use_karras_sigmas="yes").wire["ignored"] == ["use_karras_sigmas"]


def test_all_eighteen_documented_schedulers_are_known_and_the_docs_say_who_paints() -> None:
    assert len(SCHEDULERS) == 14
    assert len(KNOWN_SCHEDULERS) == len(set(KNOWN_SCHEDULERS)) == 18
    described = InpaintBody.model_fields["scheduler"].description or ""
    assert all(f"{name} is painted by {each.scheduler}" in described for name, each in STAND_INS.items())


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("dpmsolver+++", "dpmsolver++"),
        ("SDE-DPMSolver++", "sde-dpmsolver++"),
        ("none", None),
        (None, None),
    ],
)
def test_an_algorithm_type_is_taken_where_the_scheduler_has_one(
    scheduler: str, asked: str | None, expected: str | None
) -> None:
    job = parsed(scheduler=scheduler, algorithm_type=asked)
    assert job.algorithm_type == expected
    assert job.wire["ignored"] == []
    assert meta(job, COMMUNITY)["algorithm_type"] == (expected or "none")


def test_an_algorithm_type_without_effect_is_named_ignored_and_an_unknown_one_refused() -> None:
    job = parsed(scheduler="DDIMScheduler", algorithm_type="dpmsolver++")
    assert job.algorithm_type is None
    assert job.wire["ignored"] == ["algorithm_type"]
    problem = problem_of(algorithm_type="magic")
    assert (problem.field, problem.kind) == ("algorithm_type", "not_a_choice")


def test_an_unknown_scheduler_is_refused() -> None:
    assert problem_of(scheduler="MagicScheduler").kind == "not_a_choice"


def test_karras_sigmas_are_used_where_the_scheduler_has_them_and_named_ignored_where_not() -> None:
    assert parsed(scheduler="EulerDiscreteScheduler", use_karras_sigmas="yes").use_karras_sigmas
    without = parsed(scheduler="DDIMScheduler", use_karras_sigmas="yes")
    assert not without.use_karras_sigmas
    assert without.wire["ignored"] == ["use_karras_sigmas"]
    assert parsed(scheduler="DDIMScheduler", use_karras_sigmas="no").wire["ignored"] == []


def test_karras_sigmas_are_the_default_of_community_alone() -> None:
    chosen = {
        variant.name: parsed(variant, scheduler="EulerDiscreteScheduler").use_karras_sigmas for variant in VARIANTS
    }
    assert chosen == {"realtime": False, "community": True, "v3": False}
    assert parsed(COMMUNITY, scheduler="DDIMScheduler").wire["ignored"] == []


def test_the_prompt_is_enhanced_by_default_in_community_and_v3() -> None:
    prompts = {variant.name: parsed(variant).prompt for variant in VARIANTS}
    assert prompts == {"realtime": "p", "community": "p sharp focus, 8k", "v3": "p sharp focus, 8k"}
    assert parsed(COMMUNITY, enhance_prompt="no").prompt == "p"
    assert parsed(REALTIME, enhance_prompt="yes").prompt == "p sharp focus, 8k"


def test_enhancing_appends_what_the_model_says_and_nothing_where_it_says_nothing() -> None:
    assert enhanced("cat", "dog", PHOTO) == ("cat sharp focus, 8k", "dog, blurry, deformed")
    assert enhanced("cat", "", PHOTO) == ("cat sharp focus, 8k", "blurry, deformed")
    assert enhanced("cat", "dog", DRAWN) == ("cat", "dog")


def test_a_prompt_that_is_too_long_is_refused() -> None:
    assert parsed(prompt="x" * 1000).prompt == "x" * 1000
    problem = problem_of(negative_prompt="x" * 1001)
    assert (problem.field, problem.kind) == ("negative_prompt", "too_long")


@pytest.mark.parametrize("samples", [0, 5, "five", 1.5])
def test_samples_outside_one_to_four_are_refused(samples: Any) -> None:
    assert problem_of(samples=samples).field == "samples"


def test_the_key_is_nowhere_in_the_job() -> None:
    assert "sesame" not in repr(parsed(key="open-sesame").to_record())
