"""Jobs whose pictures are checked: what is stored, what is told, and that no picture goes unchecked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.job import JobStatus, ResultImage, SafetyAction
from storage.previews import PreviewStore
from storage.redis_client import open_redis
from tests.jobs import a_job
from tests.tiny_checkers import ALWAYS, NEVER, make_tiny_checker
from tests.workshops import SIZE, Scene, a_mask
from worker.hiding import hidden
from worker.inputs import scale_picture
from worker.previewer import Previewer
from worker.previews import Preview
from worker.tasks import work_off_ticket


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path, safety_checker=make_tiny_checker(tmp_path / "checker", threshold=ALWAYS))


def coarse(seed: int, size: int) -> Any:
    """Plainly another picture for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (size // 16, size // 16, 3), np.uint8)
    return colours.repeat(16, axis=0).repeat(16, axis=1)


def unhidden(scene: Scene, **changes: Any) -> Any:
    """The picture of the same job that is not checked."""
    job = scene.submit(seed=41, **changes)
    work_off_ticket(scene.workshop())
    return scene.result(job)


@pytest.mark.parametrize("action", list(SafetyAction))
def test_what_is_found_is_stored_hidden_and_nothing_else_is(scene: Scene, action: SafetyAction) -> None:
    plain = unhidden(scene)
    job = scene.submit(seed=41, safety_checker=action)
    before = set(scene.stored_results())
    work_off_ticket(scene.workshop())
    done = scene.job(job)
    assert done.status is JobStatus.SUCCEEDED
    assert done.nsfw
    assert [image.nsfw for image in done.images] == [True]
    assert np.array_equal(scene.result(job), hidden(plain, action))
    assert len(set(scene.stored_results()) - before) == 1


def test_what_passes_is_stored_as_it_is(scene: Scene, tmp_path: Path) -> None:
    plain = unhidden(scene)
    make_tiny_checker(tmp_path / "checker", threshold=NEVER)
    job = scene.submit(seed=41, safety_checker=SafetyAction.BLACK)
    work_off_ticket(scene.workshop())
    assert not scene.job(job).nsfw
    assert np.array_equal(scene.result(job), plain)


def test_what_is_looked_at_is_the_composited_picture_at_the_size_asked_for(scene: Scene, tmp_path: Path) -> None:
    """Of another size than the model works at, with its kept parts: that picture and no other is found."""
    asked = {"width": 160, "height": 160, "mask": a_mask(), "picture": coarse(3, SIZE)}
    composited = unhidden(scene, **asked)
    assert composited.shape == (160, 160, 3)
    scaled = scale_picture(asked["picture"], 160, 160)
    for picture, expected in ((composited, True), (scaled, False), (255 - scaled, False), (composited[::-1], False)):
        make_tiny_checker(tmp_path / "checker", like=picture)
        job = scene.submit(seed=41, safety_checker=SafetyAction.BLACK, **asked)
        work_off_ticket(scene.workshop())
        assert scene.job(job).nsfw is expected
        assert bool(scene.result(job).any()) is not expected


@pytest.mark.parametrize("changes", [{"mask": np.zeros((SIZE, SIZE), np.uint8)}, {"num_inference_steps": 0}])
def test_a_picture_that_comes_back_as_it_came_is_checked_too(scene: Scene, changes: dict[str, Any]) -> None:
    job = scene.submit(safety_checker=SafetyAction.BLACK, **changes)
    work_off_ticket(scene.workshop())
    assert scene.job(job).nsfw
    assert not scene.result(job).any()


def test_each_picture_of_a_job_is_told_apart_as_soon_as_it_is_published(scene: Scene, tmp_path: Path) -> None:
    """The second of three is one that is found."""
    scene.engine._picture = lambda painting, seed: coarse(seed, painting.picture.shape[0])  # type: ignore[method-assign]
    second = unhidden(scene)
    make_tiny_checker(tmp_path / "checker", like=second)
    job = scene.submit(seed=40, num_images=3, safety_checker=SafetyAction.PIXELATE)
    published: list[list[bool]] = []
    publish = scene.jobs.publish

    def note(claimed: Any, images: list[ResultImage]) -> bool:
        done = publish(claimed, images)
        published.append([image.nsfw for image in scene.job(job).images])
        return done

    scene.jobs.publish = note  # type: ignore[method-assign, assignment]  # looks in, and does the same
    work_off_ticket(scene.workshop())
    assert published == [[False], [False, True]]
    done = scene.job(job)
    assert [image.nsfw for image in done.images] == [False, True, False]
    assert done.nsfw


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize("spoil", [_gone, _cut_short])
def test_a_checker_that_cannot_be_loaded_fails_who_asks_before_anything_is_painted_and_nobody_else(
    scene: Scene, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "checker")
    workshop = scene.workshop()
    checked = scene.submit(safety_checker=SafetyAction.BLUR)
    neighbour = scene.submit(seed=41)
    said = [work_off_ticket(workshop) for _ in range(2)]
    failed = scene.job(checked)
    assert failed.failure is not None
    assert failed.failure.code == "safety_checker_unavailable"
    assert str(tmp_path) not in failed.failure.message
    assert "failed (safety_checker_unavailable)" in said[0]
    assert not failed.images
    assert [painting.job_id for painting in scene.engine.paintings] == [neighbour.job_id]
    assert scene.job(neighbour).status is JobStatus.SUCCEEDED
    assert len(scene.stored_results()) == 1


def test_no_glimpse_is_given_of_a_job_that_is_to_be_checked(scene: Scene) -> None:
    """Whoever watches would see what the checker has not."""
    asked: list[set[str]] = []

    class Engine:
        def previews(self, job_ids: Collection[str]) -> dict[str, Preview]:
            asked.append(set(job_ids))
            return {}

    client = open_redis(scene.storage)
    previewer = Previewer(Engine(), PreviewStore(client))
    plain, checked = a_job(), a_job(safety_checker=SafetyAction.BLUR)
    previewer.watch([plain, checked])
    previewer.round()
    previewer.watch([checked])
    previewer.round()
    client.close()
    assert asked == [{plain.job_id}, set()]


def test_a_worker_without_a_checker_fails_who_asks(redis_url: str, tmp_path: Path) -> None:
    """The front end has read another models file than this worker."""
    scene = Scene(redis_url, tmp_path)
    job = scene.submit(safety_checker=SafetyAction.BLUR)
    work_off_ticket(scene.workshop())
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "safety_checker_unavailable"
    assert not scene.stored_results()
