"""What the vendors' documents show and name is done: no example and no parameter of theirs is refused or ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import JobStatus, MaskPaints
from tests.fal_clients import Fal
from tests.front_end import FakeWorker, FrontEnd, open_with, png
from tests.stability import native, pictures

__all__ = ["open_with"]

DOCUMENTED = json.loads((Path(__file__).parents[1] / "documented_requests.json").read_text())
SEEDS = Path(__file__).parents[3] / "shared" / "seeds"
# The mathematics of these cannot inpaint: what is nearest paints, and `meta` may name them.
MAPPED_SCHEDULERS = {"DDIMInverseScheduler", "IPNDMScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler"}
MODELS = """
[models.sd]
folder = "sd"
[models.xl]
folder = "xl"
family = "sdxl"
[loras.contrast-fix]
file = "contrast-fix.safetensors"
[loras.yae-miko-genshin]
file = "yae.safetensors"
[vaes.sd-vae-ft-mse]
folder = "vae"
[embeddings.easynegative]
file = "easynegative.safetensors"
[safety_checker]
folder = "checker"
"""
FACE = "https://example.com/face.png"
# What a parameter needs at its side to mean anything.
BESIDE: dict[str, dict[str, Any]] = {
    "safety_checker_type": {"safety_checker": "yes"},
    "use_karras_sigmas": {"scheduler": "UniPCMultistepScheduler"},
    "algorithm_type": {"scheduler": "DPMSolverMultistepScheduler"},
    "lora_strength": {"lora_model": "contrast-fix"},
    "embeddings_model": {"negative_prompt": "easynegative"},
    "ip_adapter_id": {"ip_adapter_image": FACE},
    "ip_adapter_scale": {"ip_adapter_id": "ip-adapter_sd15", "ip_adapter_image": FACE},
    "ip_adapter_image": {"ip_adapter_id": "ip-adapter_sd15"},
}


def adapters() -> Iterator[str]:
    for name in DOCUMENTED["values"]["/api/v6/images/inpaint"]["ip_adapter_id"]:
        family = "sdxl" if "sdxl" in name else "sd"
        yield f'[ip_adapters."{name}"]\nfile = "{name}.safetensors"\nimage_encoder = "encoder"\nfamily = "{family}"\n'


@pytest.fixture
def front_end(open_with: Callable[..., FrontEnd], tmp_path: Path) -> FrontEnd:
    models_file = tmp_path / "models.toml"
    models_file.write_text(MODELS + "".join(adapters()))
    return open_with(models_file=models_file, wait_seconds=0)


def post(front_end: FrontEnd, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = front_end.client.post(path, json=body | {"key": front_end.key}).get_json()
    assert answer["status"] == "processing", answer
    meta: dict[str, Any] = answer["meta"]
    return meta


@pytest.mark.parametrize("example", DOCUMENTED["bodies"], ids=lambda example: example["name"])
def test_the_example_of_each_document_is_taken_and_nothing_of_it_is_ignored(
    front_end: FrontEnd, example: dict[str, Any]
) -> None:
    meta = post(front_end, example["path"], example["body"])
    assert meta["ignored"] == []
    assert {name: meta[name] for name in example["meta"]} == example["meta"]
    assert meta["prompt"].startswith(example["body"]["prompt"])
    assert (meta["init_image"], meta["mask_image"]) == (example["body"]["init_image"], example["body"]["mask_image"])


def cases() -> Iterator[Any]:
    """Each parameter with all its values."""
    for path, fields in DOCUMENTED["values"].items():
        for name, values in fields.items():
            yield pytest.param(path, name, values, id=f"{path.split('/')[-2]}-{name}")


@pytest.mark.parametrize(("path", "name", "values"), list(cases()))
def test_every_parameter_that_the_documents_name_is_taken_with_every_value_and_not_ignored(
    front_end: FrontEnd, path: str, name: str, values: list[Any]
) -> None:
    example = next(each["body"] for each in DOCUMENTED["bodies"] if each["path"] == path)
    for value in values:
        model = "xl" if "sdxl" in str(value) else "sd"
        lora = {"lora_model": "contrast-fix,yae-miko-genshin"} if name == "lora_strength" and "," in str(value) else {}
        asked = {**example, "model_id": model, **BESIDE.get(name, {}), **lora, name: value}
        if name == "scheduler":
            del asked["use_karras_sigmas"]  # not every scheduler has them
        ignored = post(front_end, path, asked)["ignored"]
        assert [each for each in ignored if value not in MAPPED_SCHEDULERS or each != "scheduler"] == []


# -- fal --------------------------------------------------------------------------------------------


def fal_cases() -> Iterator[dict[str, Any]]:
    yield from DOCUMENTED["fal"]
    for name, values in DOCUMENTED["fal_values"].items():
        yield from (DOCUMENTED["fal"][1] | {name: value} for value in values)


def test_fals_examples_are_done_with_all_they_ask_for(front_end: FrontEnd) -> None:
    fal = Fal(front_end)
    for body in fal_cases():
        answer = fal.call("POST", "/queue/fal-ai/inpaint", json=body)
        request_id = answer.get_json()["request_id"]
        job = front_end.parts.jobs.get(request_id)
        assert job is not None
        assert job.status is JobStatus.QUEUED, job.failure
        assert not job.wire.get("ignored")
        assert (job.prompt, job.init_image, job.mask_image) == (body["prompt"], body["image_url"], body["mask_url"])
        assert job.negative_prompt == body.get("negative_prompt", "")
        for name in ("num_inference_steps", "guidance_scale", "seed"):
            assert name not in body or getattr(job, name) == body[name]
        front_end.work_once()
        assert set(fal.result(request_id).get_json()) == {"image", "seed"}
        assert {each["level"] for each in fal.status(request_id, "?logs=1").get_json()["logs"]} <= {"INFO"}


# -- Stability --------------------------------------------------------------------------------------


def documented_request() -> wire.Request:
    """What the documented helpers make of the documented call."""
    request = wire.Request(engine_id="stable-diffusion-xl-beta-v2-2-2", requested_type=wire.ARTIFACT_IMAGE)
    request.prompt.add(
        text="rainbow galactic nebula, star-filled sky, spectral, psychedelic, masterpiece"
    ).parameters.weight = 1
    init = request.prompt.add(artifact=wire.Artifact(type=wire.ARTIFACT_IMAGE, binary=png(512, 512)))
    init.parameters.init = True
    request.prompt.add(artifact=wire.Artifact(type=wire.ARTIFACT_MASK, binary=png(512, 512)))
    request.image.CopyFrom(wire.ImageParameters(seed=[1823948], samples=1, steps=30))
    request.image.transform.diffusion = wire.SAMPLER_K_DPMPP_2M
    step = request.image.parameters.add()
    step.sampler.cfg_scale = 8
    step.schedule.start = 1
    return request


def test_stabilitys_example_is_done_with_all_it_asks_for(front_end: FrontEnd) -> None:
    request = documented_request()
    with native(front_end) as channel, FakeWorker(front_end):
        (image,) = pictures(channel.generate(request))
    assert (image.finish_reason, image.seed, image.mime) == (wire.NULL, 1823948, "image/png")
    job = front_end.parts.jobs.by_number(1)
    assert job is not None
    assert (job.prompt, job.seed, job.num_images) == (request.prompt[0].text, 1823948, 1)
    assert (job.num_inference_steps, job.guidance_scale, job.strength) == (30, 8.0, 1.0)
    assert (job.scheduler, job.algorithm_type) == ("DPMSolverMultistepScheduler", None)
    assert job.mask_paints is MaskPaints.BLACK


# -- the documents themselves -----------------------------------------------------------------------


def bodies_of(text: str) -> Iterator[dict[str, Any]]:
    """Every request body in a document: as JSON, JavaScript, PHP, Python, or a string of Java."""
    text = text.replace('\\"', '"').replace("\\n", "\n")
    for found in re.findall(r"[{\[][^{}\[\]]*(?:init_image|image_url)\"?\s*(?::|=>)[^{}\[\]]*[}\]]", text):
        inside = found[1:-1].replace("=>", ":").replace("None", "null")
        inside = re.sub(r"^(\s*)(\w+):", r'\1"\2":', inside, flags=re.MULTILINE)
        body = json.loads("{" + re.sub(r",\s*$", "", inside) + "}")
        if "file_prefix" not in body:  # which only answers have
            yield body


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the vendors' documents are not part of the repository")
def test_the_examples_here_are_those_of_the_documents() -> None:
    ours = [*(each["body"] for each in DOCUMENTED["bodies"]), *DOCUMENTED["fal"]]
    found = {path.name[:3]: list(bodies_of(path.read_text(errors="replace"))) for path in SEEDS.glob("*.txt")}
    assert {name: len(bodies) for name, bodies in found.items()} == {"000": 0, "001": 1, "002": 1, "003": 5, "004": 6}
    for body in (each for bodies in found.values() for each in bodies):
        # One of the languages leaves a field out.
        assert any(body.items() <= each.items() for each in ours), body


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the vendors' documents are not part of the repository")
def test_the_parameters_and_choices_here_are_those_of_the_documents() -> None:
    community = next(SEEDS.glob("002*")).read_text()
    values = DOCUMENTED["values"]["/api/v6/images/inpaint"]
    for name, schema in (
        ("scheduler", "SchedulerEnum"),
        ("ip_adapter_id", "IPAdapterIDEnum"),
        ("safety_checker_type", "SafetyCheckerTypeEnum"),
    ):
        listed = re.search(
            rf"^    {schema}:\n      type: string\n      enum:\n((?:        - .*\n)+)", community, re.MULTILINE
        )
        assert listed is not None
        assert re.findall(r"- (\S+)", listed[1]) == values[name]
    for seed, path in (("001", "/api/v6/realtime/inpaint"), ("002", "/api/v6/images/inpaint")):
        text = next(SEEDS.glob(f"{seed}*")).read_text()
        schemas = re.findall(r"^    \w+(?:Request|Params):\n(.*?)(?=^    \w|^  \w|\Z)", text, re.DOTALL | re.MULTILINE)
        names = {name for each in schemas for name in re.findall(r"^        (\w+):$", each, re.MULTILINE)}
        always = {"key", "prompt", "init_image", "mask_image", "model_id"}
        assert names - always == set(DOCUMENTED["values"][path]) - {"embeddings_model"}
    legacy = next(SEEDS.glob("004*")).read_text(errors="replace").replace("\\", "")
    attributes = set(re.findall(r"^\| \*\*(\w+)\*\* \|", legacy, re.MULTILINE))
    assert attributes - {"key", "prompt", "init_image", "mask_image"} == set(DOCUMENTED["values"]["/api/v3/inpaint"])
