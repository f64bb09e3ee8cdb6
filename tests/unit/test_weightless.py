"""A model without weights in every dialect: no prompt is asked for, and what has no effect is said."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api.dialects import modelslab, stable_diffusion_v3
from api.dialects.fal import input as fal_input
from api.dialects.family import meta, parse
from api.dialects.modelslab import COMMUNITY, REALTIME
from api.dialects.stability import parse as stability_parse
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stable_diffusion_v3 import INPAINT
from api.errors import InvalidFields, UnknownModel
from storage.job import InpaintJob, JobStatus
from storage.model_catalog import BadModelsFile, ModelCatalog, NoWeights, load_catalog
from storage.settings import StorageSettings

FAMILY = [(REALTIME, modelslab), (COMMUNITY, modelslab), (INPAINT, stable_diffusion_v3)]


@pytest.fixture(scope="module")
def catalog() -> ModelCatalog:
    return load_catalog(StorageSettings(models_file=None))


def circumstances(catalog: ModelCatalog, **more: Any) -> dict[str, Any]:
    return {
        "key_id": "key",
        "catalog": catalog,
        "max_steps": 51,
        "max_prompt_chars": 100,
        "now": 0.0,
        "random_seed": lambda: 5,
        **more,
    }


def of_family(catalog: ModelCatalog, variant: Any = REALTIME, **body: Any) -> InpaintJob:
    given = modelslab.family.Circumstances(**circumstances(catalog, base_url="http://here"))
    return parse({"init_image": "i", "mask_image": "m", **body}, variant, given, dialect="modelslab")


def of_fal(catalog: ModelCatalog, **body: Any) -> InpaintJob:
    given = fal_input.Circumstances(**circumstances(catalog, base_url="http://here"))
    return fal_input.parse(json.dumps({"image_url": "i", "mask_url": "m", **body}).encode(), given)


def of_stability(catalog: ModelCatalog, engine: str, text: str | None = None, **image: Any) -> InpaintJob:
    request = wire.Request(engine_id=engine, image=wire.ImageParameters(**image))
    if text is not None:
        request.prompt.add(text=text)
    for kind in (wire.ARTIFACT_IMAGE, wire.ARTIFACT_MASK):
        request.prompt.add(artifact=wire.Artifact(type=kind, binary=b"png"))
    given = stability_parse.Circumstances(**circumstances(catalog, client="test"))
    return stability_parse.parse(request, given)


def test_the_built_in_one_has_no_weights_and_works_at_any_size(catalog: ModelCatalog) -> None:
    entry = catalog.find("remove")
    assert entry is not None
    assert not entry.has_weights
    assert entry.worked_size(1021, 67) == (1021, 67)
    assert catalog.default.has_weights


def test_a_models_file_may_rename_it_but_give_it_no_files(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.eraser]\nfamily = "remove"\naliases = ["magic-eraser"]\n')
    entry = load_catalog(StorageSettings(models_file=file)).find("magic-eraser")
    assert entry is not None
    assert entry.source == NoWeights()
    file.write_text('[models.eraser]\nfamily = "remove"\nfolder = "."\n')
    with pytest.raises(BadModelsFile, match="no weights"):
        load_catalog(StorageSettings(models_file=file))


@pytest.mark.parametrize("prompt", [{}, {"prompt": ""}, {"prompt": None}, {"prompt": "  "}])
@pytest.mark.parametrize(("variant", "dialect"), FAMILY)
def test_the_family_asks_for_no_prompt(catalog: ModelCatalog, variant: Any, dialect: Any, prompt: Any) -> None:
    job = of_family(catalog, variant, model_id="remove", **prompt)
    assert (job.model, job.prompt, job.num_inference_steps, job.strength) == ("remove", "", 4, 1.0)
    with pytest.raises(InvalidFields) as refused:
        of_family(catalog, variant, model_id="doodle", **prompt)
    assert [problem.field for problem in refused.value.problems] == ["prompt"]


def test_the_family_still_asks_for_the_rest(catalog: ModelCatalog) -> None:
    with pytest.raises(InvalidFields) as refused:
        of_family(catalog, model_id="remove", init_image="", strength=7)
    assert {problem.field for problem in refused.value.problems} == {"init_image", "strength"}


def test_where_it_is_the_default_no_model_need_be_named(catalog: ModelCatalog) -> None:
    entry = catalog.find("remove")
    assert entry is not None
    assert of_family(dataclasses.replace(catalog, default=entry)).model == "remove"


def test_the_familys_meta_names_what_had_no_effect(catalog: ModelCatalog) -> None:
    given = {
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "steps": 20,
        "guidance_scale": 9,
        "strength": 0.5,
        "scheduler": "UniPCMultistepScheduler",
        "use_karras_sigmas": "yes",
        "algorithm_type": "dpmsolver++",
    }
    job = of_family(catalog, model_id="remove", seed=3, samples=2, **given)
    shown = meta(job, REALTIME)
    assert sorted(shown["ignored"]) == sorted(given)
    assert (shown["seed"], job.num_images) == (3, 2)
    assert [shown[name] for name in ("steps", "guidance_scale", "strength", "scheduler")] == [None] * 4
    painted = meta(of_family(catalog, prompt="a cat"), REALTIME)
    assert all(painted[name] is not None for name in ("steps", "guidance_scale", "strength", "scheduler"))
    assert (job.scheduler, job.algorithm_type, job.use_karras_sigmas) == ("DDIMScheduler", None, False)
    assert meta(of_family(catalog, model_id="remove", negative_prompt=""), REALTIME)["ignored"] == []
    assert meta(of_family(catalog, model_id="doodle", **given), REALTIME)["ignored"] == ["algorithm_type"]


def test_an_unknown_model_is_named_before_the_prompt_that_it_may_not_need(catalog: ModelCatalog) -> None:
    for variant, _ in FAMILY:
        with pytest.raises(UnknownModel):
            of_family(catalog, variant, model_id="removes")
    with pytest.raises(InvalidFields):
        of_family(catalog, model_id="doodle")


@pytest.mark.parametrize("prompt", [{}, {"prompt": ""}, {"prompt": None}])
def test_fal_asks_for_no_prompt(catalog: ModelCatalog, prompt: Any) -> None:
    job = of_fal(catalog, model_name="remove", strength=0.1, num_inference_steps=0, **prompt)
    assert (job.status, job.model, job.prompt) == (JobStatus.QUEUED, "remove", "")
    assert (job.strength, job.num_inference_steps) == (1.0, 4)
    if prompt.get("prompt") is None:
        assert of_fal(catalog, model_name="doodle", **prompt).status is JobStatus.FAILED


def test_stability_asks_for_no_prompt(catalog: ModelCatalog) -> None:
    job = of_stability(catalog, "remove", steps=50)
    assert (job.model, job.prompt, job.num_inference_steps) == ("remove", "", 4)
    assert base64.b64decode(job.init_image) == b"png"
    assert of_stability(catalog, "remove", "a cat").prompt == ""
    with pytest.raises(InvalidFields):
        of_stability(catalog, "doodle")


def test_no_validation_error_of_the_reader_gets_out(catalog: ModelCatalog) -> None:
    try:
        of_family(catalog, model_id=["remove"])
    except ValidationError:
        pytest.fail("the reader's own error got out")
    except InvalidFields as refused:
        assert {problem.field for problem in refused.problems} >= {"model_id"}
