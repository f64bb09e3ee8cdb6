"""From each API's request to the picture its client downloads, past a real checker: only the painting is faked."""

from __future__ import annotations

import base64
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import SafetyAction
from storage.model_catalog import ModelEntry
from tests.fal_clients import Fal, data_uri
from tests.front_end import FrontEnd, open_front_end
from tests.painting import CPU, LIBRARY_WARNINGS, running_engine
from tests.stability import a_request, artifact, native, text
from tests.tiny_checkers import ALWAYS, NEVER, make_tiny_checker
from tests.tiny_models import catalog_of, make_tiny_model, tiny_entry
from tests.workshops import SIZE, Scene, a_mask, a_picture, png_of
from worker.hiding import hidden
from worker.safety import Safety
from worker.tasks import work_off_ticket

PICTURE, MASK = png_of(a_picture()), png_of(a_mask())
SEED = 7


@dataclass
class House:
    """Front end and worker on one Redis, one folder of pictures, one models file."""

    scene: Scene
    front_end: FrontEnd

    def work(self) -> None:
        work_off_ticket(self.scene.workshop())

    def download(self, link: str) -> NDArray[np.uint8]:
        answer = self.front_end.client.get(link)
        assert answer.status_code == 200
        return pixels(answer.data)


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def painted() -> NDArray[np.uint8]:
    """What the fake engine makes of it, composited."""
    picture = a_picture()
    return np.where(a_mask()[..., np.newaxis] == 255, 255 - picture, picture).astype(np.uint8)


@pytest.fixture
def open_house(redis_url: str, tmp_path: Path) -> Iterator[Callable[[float], House]]:
    opened: list[FrontEnd] = []

    def open_one(threshold: float) -> House:
        checker = make_tiny_checker(tmp_path / "checker", threshold=threshold)
        models_file = tmp_path / "models.toml"
        models_file.write_text('[safety_checker]\nfolder = "checker"\n')
        scene = Scene(redis_url, tmp_path, safety_checker=checker)
        opened.append(open_front_end(redis_url, scene.storage.image_dir, models_file=models_file))
        return House(scene, opened[-1])

    yield open_one
    for each in opened:
        each.close()


CASES = pytest.mark.parametrize(("threshold", "found"), [(ALWAYS, True), (NEVER, False)])


def expected(found: bool, action: SafetyAction) -> NDArray[np.uint8]:
    return hidden(painted(), action) if found else painted()


@CASES
@pytest.mark.parametrize(
    ("path", "fetch", "asked", "action"),
    [
        ("/api/v6/realtime/inpaint", "/api/v6/realtime/fetch", {}, SafetyAction.BLACK),
        ("/api/v6/images/inpaint", "/api/v6/images/fetch", {"model_id": "doodle"}, SafetyAction.TEXT),
        ("/api/v3/inpaint", "/api/v3/fetch", {"safety_checker_type": "pixelate"}, SafetyAction.PIXELATE),
    ],
)
def test_the_modelslab_family(
    open_house: Callable[[float], House],
    *,
    threshold: float,
    found: bool,
    path: str,
    fetch: str,
    asked: dict[str, Any],
    action: SafetyAction,
) -> None:
    house = open_house(threshold)
    pictures = {
        "init_image": base64.b64encode(PICTURE).decode(),
        "mask_image": base64.b64encode(MASK).decode(),
    }
    size = {"width": SIZE, "height": SIZE, "seed": SEED}
    submitted = house.front_end.submit(path, **pictures, **size, safety_checker="yes", **asked)
    house.work()
    key = {"key": house.front_end.key}
    done = house.front_end.client.post(f"{fetch}/{submitted['id']}", json=key).get_json()
    assert (done["status"], done["nsfw_content_detected"]) == ("success", found)
    assert done["output"] == submitted["future_links"]
    assert np.array_equal(house.download(done["output"][0]), expected(found, action))
    assert len(house.scene.stored_results()) == 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelEntry]:
    folder = tmp_path_factory.getbasetemp() / "tiny-models"
    kinds = {"sd9": ("sd", 9), "sd4": ("sd", 4), "xl": ("sdxl", 9)}
    return [
        tiny_entry(name, make_tiny_model(folder, family=family, channels=channels), family=family)
        for name, (family, channels) in kinds.items()
    ]


@LIBRARY_WARNINGS
def test_models_of_every_family_in_the_real_engine(redis_url: str, tmp_path: Path, models: list[ModelEntry]) -> None:
    scene = Scene(redis_url, tmp_path, safety_checker=make_tiny_checker(tmp_path / "checker", threshold=ALWAYS))
    with running_engine(*models) as engine:
        safety = Safety(scene.safety_checker, engine, lambda: CPU)
        workshop = dataclasses.replace(scene.workshop(), engine=engine, safety=safety, catalog=catalog_of(*models))
        for model in models:
            asked = {"model": model.id, "num_inference_steps": 2, "seed": SEED}
            plain, checked = scene.submit(**asked), scene.submit(**asked, safety_checker=SafetyAction.PIXELATE)
            for _ in range(2):
                work_off_ticket(workshop)
            assert (scene.job(plain).nsfw, scene.job(checked).nsfw) == (False, True), scene.job(checked).failure
            assert np.array_equal(scene.result(checked), hidden(scene.result(plain), SafetyAction.PIXELATE))


@CASES
def test_fal(open_house: Callable[[float], House], threshold: float, found: bool) -> None:
    house = open_house(threshold)
    fal = Fal(house.front_end)
    pictures = {"image_url": data_uri(PICTURE), "mask_url": data_uri(MASK)}
    request_id = fal.submit(**pictures, seed=SEED, enable_safety_checker=True)
    house.work()
    output = fal.result(request_id).get_json()
    assert output["has_nsfw_concepts"] == [found]
    assert np.array_equal(house.download(output["image"]["url"]), expected(found, SafetyAction.BLACK))


@CASES
def test_stability(open_house: Callable[[float], House], threshold: float, found: bool) -> None:
    house = open_house(threshold)
    request = a_request(text("a red circle"), width=None, height=None, seed=[SEED])
    del request.prompt[1:]
    # Black is repainted on this wire.
    inverted = png_of((255 - a_mask()).astype(np.uint8))
    request.prompt.extend([artifact(wire.ARTIFACT_IMAGE, PICTURE), artifact(wire.ARTIFACT_MASK, inverted)])
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            house.work()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with native(house.front_end) as channel:
            answers = list(channel.generate(request, timeout=20))
    finally:
        over.set()
        worker.join()
    artifacts = [each for answer in answers for each in answer.artifacts]
    (image,) = [each for each in artifacts if each.type == wire.ARTIFACT_IMAGE]
    assert image.finish_reason == (wire.FILTER if found else wire.NULL)
    assert np.array_equal(pixels(image.binary), expected(found, SafetyAction.BLUR))
