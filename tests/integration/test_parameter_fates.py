"""Each parameter submitted by itself over HTTP: it meets the fate that the table of parameters says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from api.parts import EXTENSION
from deploy.parameter_probes import FAMILIES, HONOURED, IGNORED, REFUSED, catalog
from deploy.parameter_table import cell, parameters
from tests.front_end import FrontEnd, open_with

__all__ = ["open_with"]

PATHS = {
    "ModelsLab realtime": "/api/v6/realtime/inpaint",
    "ModelsLab community": "/api/v6/images/inpaint",
    "Stable Diffusion v3": "/api/v3/inpaint",
}


def of_family(value: Any, model: str) -> Any:
    return value.replace("{family}", model) if isinstance(value, str) else value


# Every endpoint with the first family, every other family at one of them.
CASES = [*((column, FAMILIES[0]) for column in PATHS), *(("ModelsLab community", model) for model in FAMILIES[1:])]


@pytest.mark.parametrize(("column", "model"), CASES)
def test_a_parameter_is_refused_or_named_in_meta_or_neither_as_its_cell_says(
    open_with: Callable[..., FrontEnd], column: str, model: str
) -> None:
    front_end = open_with(max_queued_jobs=0, wait_seconds=0)
    front_end.app.extensions[EXTENSION] = dataclasses.replace(front_end.parts, catalog=catalog())

    def post(changes: dict[str, Any]) -> dict[str, Any]:
        body = front_end.body(**{"model_id": model, **changes})
        answer: dict[str, Any] = front_end.client.post(PATHS[column], json=body).get_json()
        return answer

    for parameter in (each for each in parameters() if each.values):
        beside = {name: of_family(value, model) for name, value in parameter.beside.items()}
        asked = [{parameter.name: of_family(value, model)} for value in parameter.values]
        answers = [post(beside | each) for each in asked]
        if all(each["status"] == "error" for each in answers):
            answers = [post(each) for each in asked]  # what is beside it may be refused itself
        fates = set()
        for answer in answers:
            if answer["status"] == "error":
                assert parameter.name in str(answer["message"])
                fates.add(REFUSED)
            else:
                fates.add(IGNORED if parameter.name in answer["meta"]["ignored"] else HONOURED)
        said = cell(parameter, column, model)
        assert (HONOURED if said.startswith("mapped") else said) in fates, (parameter, said, fates)
        if said != HONOURED:
            assert len(fates) == 1, (parameter, said, fates)
