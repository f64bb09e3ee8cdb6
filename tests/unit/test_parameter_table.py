"""The table of parameters says what the code does: it is made from it, and here it is held to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from api.dialects import modelslab, stable_diffusion_v3
from api.dialects.fal.input import InpaintInput
from api.dialects.family_fields import FIELDS, Fate
from deploy import parameter_table
from deploy.parameter_probes import FAMILIES, HONOURED, IGNORED, NO_EFFECT, REFUSED, VARIANTS, stability_fields
from deploy.parameter_table import NOT_SHOWN, Parameter, cell, parameters

PARAMETERS = parameters()
NAMED = [each for each in PARAMETERS if each.values]


def ids(parameter: Parameter) -> str:
    return parameter.label or parameter.name or next(iter(parameter.stability))


WEIGHTLESS = "remove"


# What the legend says that the model without weights heeds.
HEEDED_WITHOUT_WEIGHTS = {
    *("model_id", "init_image", "mask_image", "width", "height", "samples", "seed"),
    *("safety_checker", "safetychecker", "safety_checker_type"),
    *("base64", "temp", "webhook", "track_id", "instant_response"),
}


def test_the_document_is_what_the_code_does() -> None:
    document = parameter_table.DOCUMENT.read_text()
    assert document == parameter_table.with_table(document), "run: .venv/bin/python -m deploy.parameter_table"


def test_the_model_without_weights_heeds_what_the_legend_says_and_nothing_else() -> None:
    heeded = {
        ids(row)
        for row in PARAMETERS
        for column in parameter_table.COLUMNS
        if cell(row, column, WEIGHTLESS).startswith((HONOURED, "mapped"))
    }
    assert heeded == HEEDED_WITHOUT_WEIGHTS


def test_every_field_of_every_dialect_is_in_the_table() -> None:
    assert {each.name for each in FIELDS} - NOT_SHOWN == {each.name for each in NAMED}
    assert set(InpaintInput.model_fields) == {each.fal_name for each in PARAMETERS if each.fal_name}
    paths = {path for path, _ in stability_fields()}
    assert {"width", "parameters.schedule.start", "adapter.adapter_type", "transform.upscaler"} <= paths
    assert paths <= {path for each in PARAMETERS for path in each.stability}


@pytest.mark.parametrize("column", VARIANTS)
@pytest.mark.parametrize("field", [each for each in FIELDS if each.name not in NOT_SHOWN], ids=lambda each: each.name)
def test_the_rows_of_a_field_agree_with_the_table_of_fields(field: Any, column: str) -> None:
    said = {cell(row, column, model).split()[0] for row in NAMED if row.name == field.name for model in FAMILIES}
    if field.fate is Fate.HONOURED:
        assert HONOURED in said
    else:
        assert said == {IGNORED}


@pytest.mark.parametrize(
    ("label", "column", "expected"),
    [
        ("prompt", "fal", HONOURED),
        ("num_inference_steps", "Stable Diffusion v3", HONOURED),
        ("more steps than the limit", "ModelsLab realtime", "mapped to 51"),
        ("more steps than the limit", "Stability", "mapped to 51"),
        ("`use_karras_sigmas` with DDIMScheduler", "ModelsLab community", IGNORED),
        ("safety_checker", "fal", HONOURED),
        ("safety_checker", "Stability", "–"),
        ("upscale", "ModelsLab community", IGNORED),
        ("base64", "fal", "–"),
        ("masked_area_init", "Stability", HONOURED),
        ("adapter.adapter_strength", "Stability", NO_EFFECT),
        ("transform.upscaler", "Stability", REFUSED),
    ],
)
def test_what_is_known_of_some_is_what_the_table_says(label: str, column: str, expected: str) -> None:
    row = next(each for each in PARAMETERS if ids(each) == label)
    assert {cell(row, column, model) for model in FAMILIES if model != WEIGHTLESS} == {expected}


@pytest.mark.parametrize(
    ("label", "column", "expected"),
    [
        ("prompt", "ModelsLab community", IGNORED),
        ("prompt", "fal", NO_EFFECT),
        ("strength", "Stability", NO_EFFECT),
        ("lora_model", "fal", REFUSED),
        ("seed", "Stable Diffusion v3", HONOURED),
        ("safety_checker", "fal", HONOURED),
    ],
)
def test_what_is_known_of_the_model_without_weights_is_what_the_table_says(
    label: str, column: str, expected: str
) -> None:
    assert cell(next(each for each in PARAMETERS if ids(each) == label), column, WEIGHTLESS) == expected


def test_a_parser_that_forgets_a_field_changes_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(each for each in PARAMETERS if each.name == "strength")
    parse = modelslab.family.parse

    def forgetful(*arguments: Any, **options: Any) -> Any:
        return dataclasses.replace(parse(*arguments, **options), strength=1.0)

    assert cell(row, "Stable Diffusion v3", "sd") == HONOURED
    monkeypatch.setattr(stable_diffusion_v3.family, "parse", forgetful)
    assert cell(row, "Stable Diffusion v3", "sd") == NO_EFFECT
