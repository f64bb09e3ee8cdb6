"""LoRAs and VAEs through every dialect that has fields for them: from the client's body to the picture it fetches."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from api.app import create_app
from api.keys import KeyScope, KeyStore
from api.parts import EXTENSION
from api.settings import ApiSettings
from storage.job import JobStatus
from storage.model_catalog import load_catalog
from tests.front_end import FrontEnd, storage_settings
from tests.loras import write_lora, write_vae
from tests.painting import LIBRARY_WARNINGS, load_on_cpu
from tests.tiny_models import make_tiny_model, tiny_entry
from tests.workshops import Scene, a_mask, a_picture, png_of
from worker.engine import open_engine
from worker.settings import WorkerSettings
from worker.tasks import work_off_ticket
from worker.workshop import Workshop

pytestmark = LIBRARY_WARNINGS

SIZE = 64
FAMILY_PATHS = ("/api/v6/realtime/inpaint", "/api/v6/images/inpaint", "/api/v3/inpaint")
FAL_PATH = "/queue/fal-ai/inpaint"
MODELS = """
default = "tiny"
[models.tiny]
folder = "{model}"
min_size = 64
max_size = 128
num_inference_steps = 3
[loras.ink]
file = "ink.safetensors"
aliases = ["first"]
[loras.words]
file = "words.safetensors"
[loras.broken]
file = "broken.safetensors"
[vaes.other]
folder = "vae"
[vaes.gone]
folder = "nowhere"
"""

Picture = NDArray[np.uint8]


@dataclass
class Installation:
    front_end: FrontEnd
    workshop: Workshop

    def submit(self, path: str, **extras: Any) -> dict[str, Any]:
        picture, mask = (base64.b64encode(png_of(each(SIZE))).decode() for each in (a_picture, a_mask))
        if path == FAL_PATH:
            body = {"image_url": f"data:image/png;base64,{picture}", "mask_url": f"data:image/png;base64,{mask}"}
            body |= {"model_name": "tiny", "prompt": "a red cat", "seed": 7, **extras}
        else:
            body = {"init_image": picture, "mask_image": mask, "instant_response": True, "enhance_prompt": "no"}
            body |= {"model_id": "tiny", "prompt": "a red cat", "seed": 7, "width": SIZE, "height": SIZE, **extras}
        answer = self.front_end.client.post(path, json=body, headers={"Authorization": f"Key {self.front_end.key}"})
        assert answer.status_code == 200, answer.text
        submitted: dict[str, Any] = answer.get_json()
        return submitted

    def work(self) -> None:
        work_off_ticket(self.workshop)

    def fetch(self, submitted: dict[str, Any]) -> Any:
        """The answer of the dialect's own place for results."""
        address = submitted["fetch_result"] if "fetch_result" in submitted else submitted["response_url"]
        headers = {"Authorization": f"Key {self.front_end.key}"}
        return self.front_end.client.get(urlsplit(address).path, headers=headers)

    def painted(self, path: str, **extras: Any) -> tuple[dict[str, Any], Picture]:
        """What is answered at the end, and the picture."""
        submitted = self.submit(path, **extras)
        self.work()
        answer = self.fetch(submitted)
        body: dict[str, Any] = answer.get_json()
        assert answer.status_code == 200, body
        link = body["image"]["url"] if path == FAL_PATH else body["output"][0]
        data = self.front_end.client.get(urlsplit(link).path).data
        with Image.open(io.BytesIO(data)) as image:
            told = json.loads(image.text["parameters"])  # type: ignore[attr-defined]  # a PNG
            assert ("loras" in told, "vae" in told) == (bool({"loras", "lora_model"} & set(extras)), "vae" in extras)
            return body, np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("addons")
    source = make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")
    model = load_on_cpu(tiny_entry("tiny", source))
    write_lora(folder / "ink.safetensors", model)
    write_lora(folder / "words.safetensors", model, file_format="kohya", texts=True)
    (folder / "broken.safetensors").write_bytes((folder / "ink.safetensors").read_bytes()[:-100])
    write_vae(folder / "vae", seed=5)
    path = folder / "models.toml"
    path.write_text(MODELS.format(model=source))
    return path


@pytest.fixture
def installation(redis_url: str, tmp_path: Path, models_file: Path) -> Iterator[Installation]:
    storage = storage_settings(redis_url, tmp_path, models_file=models_file)
    app = create_app(ApiSettings(), storage)
    keys = KeyStore(app.extensions[EXTENSION].redis)
    api_key, key = keys.create(name="tests")
    _, admin_key = keys.create(name="operator", scope=KeyScope.ADMIN)
    front_end = FrontEnd(app=app, key=key, api_key=api_key, admin_key=admin_key, other_key="")
    scene = Scene(redis_url, tmp_path, lease_seconds=60.0)
    scene.storage, scene.images = storage, front_end.parts.images
    settings = WorkerSettings(device="cpu", torch_threads=1)  # type: ignore[arg-type]  # as the environment has it
    engine = open_engine(load_catalog(storage), settings)
    engine.start()
    scene.engine = engine  # type: ignore[assignment]  # the real one
    try:
        yield Installation(front_end, scene.workshop())
    finally:
        engine.stop()
        front_end.close()


@pytest.mark.parametrize("path", FAMILY_PATHS)
def test_a_client_of_the_family_gets_its_loras_and_vae_and_sees_them_in_meta(
    installation: Installation, path: str
) -> None:
    plain_body, plain = installation.painted(path)
    body, with_loras = installation.painted(path, lora_model="first, words", lora_strength="0.8,1")
    assert (body["meta"]["lora"], body["meta"]["lora_strength"]) == ("ink,words", "0.8,1")
    body, with_vae = installation.painted(path, vae="other")
    assert body["meta"]["vae"] == "other"
    again_body, again = installation.painted(path)

    mask = a_mask(SIZE) > 0
    for changed in (with_loras, with_vae):
        assert np.abs(changed.astype(int) - plain)[mask].max() > 10
        assert np.array_equal(changed[~mask], plain[~mask])
    assert np.array_equal(plain, again)
    assert plain_body["meta"]["ignored"] == again_body["meta"]["ignored"] == []


def test_a_client_of_fal_gets_its_loras_and_vae(installation: Installation) -> None:
    _, plain = installation.painted(FAL_PATH)
    _, with_loras = installation.painted(FAL_PATH, loras=[{"path": "ink", "scale": 0.8}, {"path": "words"}])
    _, with_vae = installation.painted(FAL_PATH, vae="other")
    _, again = installation.painted(FAL_PATH)
    mask = a_mask(SIZE) > 0
    for changed in (with_loras, with_vae):
        assert np.abs(changed.astype(int) - plain)[mask].max() > 10
        assert np.array_equal(changed[~mask], plain[~mask])
    assert np.array_equal(plain, again)


@pytest.mark.parametrize(("field", "name"), [("lora_model", "broken"), ("vae", "gone")])
def test_a_broken_file_fails_its_job_in_the_dialects_words_and_the_next_is_painted(
    installation: Installation, field: str, name: str
) -> None:
    submitted = {path: installation.submit(path, **{field: name}) for path in FAMILY_PATHS}
    asked = {"loras": [{"path": name}]} if field == "lora_model" else {field: name}
    submitted[FAL_PATH] = installation.submit(FAL_PATH, **asked)
    for _ in submitted:
        installation.work()
    for path in FAMILY_PATHS:
        answer = installation.fetch(submitted[path]).get_json()
        assert answer["status"] == "failed"
        assert answer["message"].lower().startswith(("the " if "v3" in path else "") + f"{field} cannot be used")
        job = installation.front_end.parts.jobs.by_number(submitted[path]["id"])
        assert job is not None
        assert job.status is JobStatus.FAILED
        assert job.failure is not None
        assert (job.failure.code, job.failure.field) == ("addon_unavailable", field)
        assert name in job.failure.message
    answer = installation.fetch(submitted[FAL_PATH])
    assert answer.status_code == 422
    [row] = answer.get_json()["detail"]
    assert row["loc"] == ["body", "loras" if field == "lora_model" else "vae"]
    installation.painted(FAMILY_PATHS[0])
