"""What a job says beside its prompt reaches the engine; what of it cannot be had fails that job alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from storage.addons import Addons, Embedding, IpAdapter
from storage.job import InpaintJob, IpAdapterUse, JobStatus
from tests.workshops import SIZE, Scene, a_picture, png_of
from worker.tasks import work_off_ticket
from worker.workshop import Workshop

EMBEDDINGS = tuple(Embedding(name, (), name, "sd", Path(f"{name}.safetensors"), name) for name in ("one", "two"))
ADAPTER = IpAdapter("face", (), "face", "sd", Path("face.safetensors"), Path("encoder"))


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def workshop_of(scene: Scene, **settings: int) -> Workshop:
    workshop = scene.workshop(**settings)
    addons = Addons(embeddings=EMBEDDINGS, ip_adapters=(ADAPTER,))
    return dataclasses.replace(workshop, catalog=dataclasses.replace(workshop.catalog, addons=addons))


def put(scene: Scene, data: bytes) -> str:
    scene.images.put("inputs/look", data, "image/png")
    return "object:inputs/look"


def failed(scene: Scene, job: InpaintJob) -> tuple[str, str | None]:
    failure = scene.job(job).failure
    assert failure is not None
    return failure.code, failure.field


def test_layers_words_and_a_picture_to_look_at_reach_the_engine(scene: Scene) -> None:
    look = IpAdapterUse("face", put(scene, png_of(a_picture(50))), 0.4)
    scene.submit(clip_skip=2, embeddings=("two", "one"), ip_adapter=look)
    work_off_ticket(workshop_of(scene))
    [painting] = scene.engine.paintings
    assert painting.clip_skip == 2
    assert painting.embeddings == EMBEDDINGS[::-1]
    assert painting.look is not None
    assert (painting.look.adapter, painting.look.scale) == (ADAPTER, 0.4)
    assert np.array_equal(painting.look.picture, a_picture(50))


def test_a_large_picture_to_look_at_is_made_smaller(scene: Scene) -> None:
    large = png_of(np.zeros((500, 3000, 3), np.uint8))
    scene.submit(ip_adapter=IpAdapterUse("face", put(scene, large), 1.0))
    work_off_ticket(workshop_of(scene))
    look = scene.engine.paintings[0].look
    assert look is not None
    assert look.picture.shape == (171, 1024, 3)


def test_what_the_engine_notes_is_recorded_with_the_job(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.engine, "_take_time", lambda painting: painting.notes.update(clip_skip=2))
    job = scene.submit(clip_skip=8)
    work_off_ticket(workshop_of(scene))
    assert scene.job(job).notes["clip_skip"] == 2


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (b"no picture", "not_an_image"),
        (png_of(a_picture(32))[:-40], "not_an_image"),
        (png_of(a_picture(SIZE + 8)), "image_too_large"),
        (None, "input_unreachable"),
        ("http://127.0.0.1:9/look.png", "input_refused"),
    ],
)
def test_a_picture_that_cannot_be_had_fails_its_job_alone(scene: Scene, picture: bytes | str | None, code: str) -> None:
    image = picture if isinstance(picture, str) else put(scene, picture) if picture else "object:inputs/gone"
    bad = scene.submit(ip_adapter=IpAdapterUse("face", image, 1.0))
    neighbour = scene.submit()
    workshop = workshop_of(scene, max_input_pixels=SIZE * SIZE)
    for _ in range(2):
        work_off_ticket(workshop)
    assert failed(scene, bad) == (code, "ip_adapter_image")
    assert scene.job(neighbour).status is JobStatus.SUCCEEDED


def test_add_ons_that_are_no_longer_there_fail_the_job(scene: Scene) -> None:
    look = IpAdapterUse("gone", put(scene, png_of(a_picture())), 1.0)
    jobs = [scene.submit(ip_adapter=look), scene.submit(embeddings=("one", "gone"))]
    workshop = workshop_of(scene)
    for _ in jobs:
        work_off_ticket(workshop)
    assert failed(scene, jobs[0]) == ("addon_unavailable", "ip_adapter_id")
    assert failed(scene, jobs[1]) == ("addon_unavailable", "embeddings_model")


def test_the_picture_to_look_at_is_kept_as_long_as_the_job_needs_it(scene: Scene) -> None:
    scene.submit(ip_adapter=IpAdapterUse("face", put(scene, png_of(a_picture())), 1.0))
    assert scene.jobs.is_input_in_use("inputs/look")
    work_off_ticket(workshop_of(scene))
    assert not scene.jobs.is_input_in_use("inputs/look")
