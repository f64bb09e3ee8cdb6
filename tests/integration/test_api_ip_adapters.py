"""The picture for an IP-adapter goes through the same door as the others, and is said by its own field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.keys import KeyStore
from api.parts import EXTENSION
from api.settings import ApiSettings
from storage.job import InpaintJob
from tests.front_end import PICTURE, FrontEnd, storage_settings

MODELS_FILE = """
[ip_adapters.face]
file = "face.safetensors"
image_encoder = "encoder"
"""


@pytest.fixture
def front_end(redis_url: str, tmp_path: Path) -> Iterator[FrontEnd]:
    models_file = tmp_path / "models.toml"
    models_file.write_text(MODELS_FILE)
    app = create_app(ApiSettings(), storage_settings(redis_url, tmp_path / "images", models_file=models_file))
    api_key, key = KeyStore(app.extensions[EXTENSION].redis).create(name="tests")
    front_end = FrontEnd(app=app, key=key, api_key=api_key, admin_key="", other_key="")
    yield front_end
    front_end.close()


def job_of(front_end: FrontEnd, answer: dict[str, Any]) -> InpaintJob:
    job = front_end.parts.jobs.by_number(answer["id"])
    assert job is not None
    return job


def test_a_picture_in_the_body_becomes_an_object_and_a_url_stays_one(front_end: FrontEnd) -> None:
    answer = front_end.submit(ip_adapter_id="face", ip_adapter_image=PICTURE)
    look = job_of(front_end, answer).ip_adapter
    assert look is not None
    assert look.image.startswith("object:inputs/")
    assert front_end.parts.images.get(look.image.removeprefix("object:"))
    assert answer["meta"]["ip_adapter_image"].startswith("http")
    assert PICTURE not in str(answer)
    answer = front_end.submit(ip_adapter_id="face", ip_adapter_image="https://example.com/look.png")
    look = job_of(front_end, answer).ip_adapter
    assert look is not None
    assert look.image == answer["meta"]["ip_adapter_image"] == "https://example.com/look.png"


@pytest.mark.parametrize("image", ["no picture", "file:///etc/passwd", "http://10.0.0.1/look.png"])
def test_what_may_not_be_opened_is_refused_by_its_field(front_end: FrontEnd, image: str) -> None:
    body = front_end.body(ip_adapter_id="face", ip_adapter_image=image)
    answer = front_end.client.post("/api/v6/realtime/inpaint", json=body)
    assert answer.get_json()["status"] == "error"
    assert "ip_adapter_image" in answer.get_json()["message"]


def test_fal_says_so_at_the_result(front_end: FrontEnd) -> None:
    look = {"path": "face", "ip_adapter_image_url": "http://10.0.0.1/look.png"}
    body = {"model_name": "doodle", "prompt": "p", "image_url": f"data:image/png;base64,{PICTURE}"}
    body |= {"mask_url": body["image_url"], "ip_adapter": [look]}
    headers = {"Authorization": f"Key {front_end.key}"}
    request_id = front_end.client.post("/queue/fal-ai/inpaint", json=body, headers=headers).get_json()["request_id"]
    answer = front_end.client.get(f"/queue/fal-ai/inpaint/requests/{request_id}", headers=headers)
    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["loc"][:2] == ["body", "ip_adapter"]
