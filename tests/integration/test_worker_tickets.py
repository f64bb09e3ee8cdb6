"""One ticket after another, on a real Redis: every way in which a job can go is recorded."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage.errors import StorageUnavailable
from storage.image_store import FolderImageStore
from storage.job import JobStatus, MaskedAreaInit, MaskPaints, WeightedPrompt
from tests.workshops import SIZE, Scene, a_mask, a_picture
from worker.inputs import scale_picture
from worker.tasks import give_back, work_off_ticket


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class FlakyStore(FolderImageStore):
    """A folder that does not answer the next calls of one method."""

    def __init__(self, folder: Path, method: str, failures: int) -> None:
        super().__init__(folder)
        self._method = method
        self._failures = failures

    def _maybe_fail(self, method: str) -> None:
        if method == self._method and self._failures > 0:
            self._failures -= 1
            raise StorageUnavailable("the folder is away")

    def put(self, key: str, data: bytes, content_type: str) -> None:
        self._maybe_fail("put")
        super().put(key, data, content_type)

    def get(self, key: str) -> bytes:
        self._maybe_fail("get")
        return super().get(key)

    def delete(self, keys: Iterable[str]) -> None:
        self._maybe_fail("delete")
        super().delete(keys)


def test_a_ticket_takes_a_job_from_the_claim_to_its_stored_pictures(scene: Scene) -> None:
    job = scene.submit(num_images=2, seed=41)
    said = work_off_ticket(scene.workshop())
    done = scene.job(job)
    assert done.status is JobStatus.SUCCEEDED
    assert said.startswith(f"job {job.number} ({job.job_id}) succeeded in ")
    assert [(image.seed, image.width, image.height) for image in done.images] == [(41, SIZE, SIZE), (42, SIZE, SIZE)]
    assert [image.key for image in done.images] == [f"results/{job.job_id}/1/{k}.png" for k in (0, 1)]
    assert all(image.size_bytes == len(scene.images.get(image.key)) for image in done.images)
    assert done.notes["model"] == "doodle"
    assert done.notes["worked_size"] == [SIZE, SIZE]
    assert done.notes["unet_evaluations"] == 40
    assert 0 < done.notes["seconds"] < 5
    assert "mask_empty" not in done.notes
    assert done.started_at is not None
    assert done.finished_at is not None
    assert 0 <= done.finished_at - done.started_at < 5


def test_what_was_not_masked_is_the_picture_and_what_was_masked_is_the_engine_s(scene: Scene) -> None:
    job = scene.submit(seed=41)
    work_off_ticket(scene.workshop())
    result, mask, picture = scene.result(job), a_mask(), a_picture()
    assert np.array_equal(result[mask == 0], picture[mask == 0])
    assert np.array_equal(result[mask == 255], 255 - picture[mask == 255])


def test_a_larger_result_is_worked_around_its_mask_and_keeps_the_scaled_picture(scene: Scene) -> None:
    job = scene.submit(width=1000, height=700)
    work_off_ticket(scene.workshop())
    (painting,) = scene.engine.paintings
    scaled = scale_picture(a_picture(), 1000, 700)
    assert np.array_equal(painting.picture, scaled[6:518, 119:631])
    assert painting.mask.shape == (512, 512)
    notes = scene.job(job).notes
    assert (notes["worked_size"], notes["worked_box"]) == ([512, 512], [119, 6, 512, 512])
    assert painting.whole is not None, "for previews"
    assert np.array_equal(painting.whole.picture, scaled)
    assert painting.whole.frame.box == [119, 6, 512, 512]
    kept = np.ones((700, 1000), bool)
    kept[175:350, 250:500] = False
    assert np.array_equal(scene.result(job)[kept], scaled[kept])
    assert not np.array_equal(scene.result(job)[200:300, 300:400], scaled[200:300, 300:400])


def test_a_job_without_a_prompt_gets_what_its_model_takes_for_one(scene: Scene) -> None:
    scene.submit(prompt="  ")
    work_off_ticket(scene.workshop())
    (painting,) = scene.engine.paintings
    assert painting.prompt == "background"


def test_words_that_the_model_does_not_know_are_noted(scene: Scene) -> None:
    job = scene.submit(prompt="A red Elephant on a blue background", negative_prompt="an antler, a star")
    work_off_ticket(scene.workshop())
    assert scene.job(job).notes["unknown_words"] == ["elephant", "antler"]


def test_the_engine_gets_what_the_job_asks_for(scene: Scene) -> None:
    asked: dict[str, Any] = {
        "prompt": "a fox",
        "negative_prompt": "blue",
        "num_inference_steps": 11,
        "guidance_scale": 3.5,
        "strength": 0.7,
        "scheduler": "EulerDiscreteScheduler",
        "use_karras_sigmas": True,
    }
    job = scene.submit(**asked, num_images=3, seed=2**32 - 2)
    workshop = scene.workshop(job_timeout_seconds=50)
    work_off_ticket(workshop)
    (painting,) = scene.engine.paintings
    assert {name: getattr(painting, name) for name in asked} == asked
    assert (painting.job_id, painting.model) == (job.job_id, "doodle")
    assert painting.seeds == (2**32 - 2, 2**32 - 1, 0)
    assert painting.deadline == pytest.approx(time.monotonic() + 50, abs=5)
    assert scene.job(job).notes["unet_evaluations"] == 7 * 3


def test_a_png_tells_its_parameters_and_nothing_secret(scene: Scene) -> None:
    job = scene.submit(prompt="a fox, 狐", num_images=2, seed=5, webhook_url="https://hook.example/secret")
    work_off_ticket(scene.workshop())
    with Image.open(io.BytesIO(scene.images.get(scene.job(job).images[1].key))) as image:
        image.load()
        text = image.text
    assert list(text) == ["parameters"]
    assert json.loads(text["parameters"]) == {
        "prompt": "a fox, 狐",
        "negative_prompt": "",
        "seed": 6,
        "steps": 20,
        "guidance_scale": 4.0,
        "strength": 1.0,
        "scheduler": "DDIMScheduler",
        "model": "doodle",
        "size": f"{SIZE}x{SIZE}",
        "software": "inpaintd",
    }


def test_a_mask_that_is_all_black_gives_the_scaled_picture_without_the_engine(scene: Scene) -> None:
    job = scene.submit(mask=np.zeros((7, 9), np.uint8), num_images=2, width=70)
    work_off_ticket(scene.workshop())
    done = scene.job(job)
    assert done.notes["mask_empty"] is True
    assert done.notes["unet_evaluations"] == 0
    assert not scene.engine.paintings
    for index in (0, 1):
        assert np.array_equal(scene.result(job, index), scale_picture(a_picture(), 70, SIZE))
    assert not scene.jobs.runtimes("doodle")


def test_a_black_painting_mask_means_the_opposite(scene: Scene) -> None:
    job = scene.submit(mask=255 - a_mask(), mask_paints=MaskPaints.BLACK)
    work_off_ticket(scene.workshop())
    mask, picture = a_mask(), a_picture()
    assert np.array_equal(scene.result(job)[mask == 0], picture[mask == 0])
    assert np.array_equal(scene.engine.paintings[0].mask, mask)


def test_the_run_time_of_a_success_is_remembered_for_its_worked_size(scene: Scene) -> None:
    scene.submit(width=512, height=512)
    work_off_ticket(scene.workshop())
    assert scene.jobs.runtimes("doodle")[512, 512].jobs == 1


def test_a_ticket_too_many_finds_nothing(scene: Scene) -> None:
    assert work_off_ticket(scene.workshop()) == "no job waiting"


def test_a_worker_that_stops_claims_nothing_and_owes_the_ticket(scene: Scene) -> None:
    job = scene.submit()
    workshop = scene.workshop()
    workshop.clerk.close()
    before = scene.queue.tickets()
    assert work_off_ticket(workshop) == "no job claimed: this worker stops"
    assert scene.job(job).status is JobStatus.QUEUED
    assert scene.queue.tickets() == before
    workshop.clerk.settle_tickets()
    assert scene.queue.tickets() == before + 1
    workshop.clerk.settle_tickets()
    assert scene.queue.tickets() == before + 1


def test_a_lasting_failure_is_recorded_with_its_code_and_field(scene: Scene) -> None:
    job = scene.submit(mask_image="object:inputs/gone")
    said = work_off_ticket(scene.workshop())
    done = scene.job(job)
    assert done.status is JobStatus.FAILED
    assert done.failure is not None
    assert (done.failure.code, done.failure.field) == ("input_unreachable", "mask_image")
    assert "failed (input_unreachable)" in said


def test_a_failure_of_the_engine_is_recorded(scene: Scene) -> None:
    job = scene.submit(prompt="out of memory")
    work_off_ticket(scene.workshop())
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "out_of_memory"


def test_a_model_that_is_no_longer_there_fails_the_job(scene: Scene) -> None:
    job = scene.submit(model="gone")
    work_off_ticket(scene.workshop())
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "model_unavailable"


def test_something_unexpected_fails_the_job_without_showing_its_text(scene: Scene) -> None:
    job = scene.submit(prompt="crash")
    work_off_ticket(scene.workshop())
    done = scene.job(job)
    assert done.failure is not None
    assert done.failure.code == "internal_error"
    assert "secret" not in json.dumps(done.to_record())


def test_a_job_over_its_time_fails(scene: Scene) -> None:
    job = scene.submit(prompt="seconds 9")
    work_off_ticket(scene.workshop(job_timeout_seconds=0.3))
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "timed_out"
    assert not scene.stored_results()


def test_a_cancelled_job_leaves_the_engine_within_a_step(scene: Scene) -> None:
    job = scene.submit(prompt="seconds 9")
    workshop = scene.workshop(clerk_interval_seconds=0.05)
    workshop.clerk.start()
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(work_off_ticket(workshop)))
    thread.start()
    eventually(lambda: scene.job(job).step > 0)
    assert scene.job(job).num_steps == 20
    scene.jobs.cancel(job.job_id)
    thread.join(2)
    workshop.clerk.stop()
    assert not thread.is_alive()
    assert scene.job(job).status is JobStatus.CANCELLED
    assert "cancelled" in said[0]


def test_a_cancel_between_painting_and_storing_counts(scene: Scene) -> None:
    job = scene.submit(num_images=3)

    class Cancelling(FolderImageStore):
        def put(self, key: str, data: bytes, content_type: str) -> None:
            super().put(key, data, content_type)
            scene.jobs.cancel(job.job_id)
            workshop.clerk.round()

    scene.images = Cancelling(scene.storage.image_dir)
    workshop = scene.workshop()
    work_off_ticket(workshop)
    assert scene.job(job).status is JobStatus.CANCELLED
    assert not scene.stored_results()


@pytest.mark.parametrize("method", ["get", "put"])
def test_a_storage_that_comes_back_in_time_costs_nothing(scene: Scene, method: str) -> None:
    job = scene.submit()
    scene.images = FlakyStore(scene.storage.image_dir, method, failures=2)
    work_off_ticket(scene.workshop(store_retry_seconds=5))
    assert scene.job(job).status is JobStatus.SUCCEEDED
    assert scene.job(job).attempts == 1
    assert len(scene.engine.paintings) == 1


@pytest.mark.parametrize("method", ["get", "put"])
def test_a_storage_that_stays_away_fails_the_job_with_a_code(scene: Scene, method: str) -> None:
    job = scene.submit()
    scene.images = FlakyStore(scene.storage.image_dir, method, failures=10_000)
    work_off_ticket(scene.workshop(store_retry_seconds=0.3))
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "storage_unavailable"
    assert "folder" not in failure.message


def test_pictures_of_a_half_stored_job_are_deleted(scene: Scene) -> None:
    job = scene.submit(num_images=3)

    class Full(FolderImageStore):
        def put(self, key: str, data: bytes, content_type: str) -> None:
            if key.endswith("2.png"):
                raise StorageUnavailable("full")
            super().put(key, data, content_type)

    scene.images = Full(scene.storage.image_dir)
    work_off_ticket(scene.workshop(store_retry_seconds=0.2))
    assert scene.job(job).status is JobStatus.FAILED
    assert not scene.stored_results()


def test_a_job_whose_lease_was_lost_is_stopped_and_its_outcome_dropped(scene: Scene) -> None:
    job = scene.submit(prompt="seconds 9")
    workshop = scene.workshop()
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(work_off_ticket(workshop)))
    thread.start()
    eventually(scene.engine.progress)
    # Nobody renews the lease: another takes the job over.
    eventually(scene.jobs.return_expired_leases)
    taken = scene.jobs.claim_next(worker="another")
    assert taken is not None
    workshop.clerk.round()
    thread.join(2)
    assert not thread.is_alive()
    assert "dropped" in said[0]
    assert scene.job(job).status is JobStatus.PROCESSING
    assert scene.job(job).fence == taken.fence == 2
    assert not scene.stored_results()


def test_results_that_come_after_the_lease_are_deleted_again(scene: Scene) -> None:
    job = scene.submit()

    class Slow(FolderImageStore):
        def put(self, key: str, data: bytes, content_type: str) -> None:
            super().put(key, data, content_type)
            eventually(scene.jobs.return_expired_leases)

    scene.images = Slow(scene.storage.image_dir)
    assert "dropped" in work_off_ticket(scene.workshop())
    assert scene.job(job).status is JobStatus.QUEUED
    assert scene.job(job).images == ()
    assert not scene.stored_results()


def test_a_job_given_back_is_done_by_another_without_counting_the_attempt(scene: Scene) -> None:
    job = scene.submit(prompt="seconds 1")
    workshop = scene.workshop()
    thread = threading.Thread(target=work_off_ticket, args=(workshop,))
    thread.start()
    eventually(scene.engine.progress)
    (claim,) = workshop.clerk.claims()
    before = scene.queue.tickets()
    give_back(workshop, claim)
    thread.join(2)
    assert not thread.is_alive()
    assert scene.queue.tickets() == before + 1
    assert scene.job(job).status is JobStatus.QUEUED
    assert scene.job(job).attempts == 0
    work_off_ticket(scene.workshop())
    assert scene.job(job).status is JobStatus.SUCCEEDED
    assert scene.job(job).attempts == 1
    assert len(scene.stored_results()) == 1


def test_an_unfit_worker_returns_the_job_and_stops_and_the_third_time_fails_it(scene: Scene) -> None:
    job = scene.submit(prompt="unfit")
    for attempt in (1, 2):
        workshop = scene.workshop()
        assert "went back" in work_off_ticket(workshop)
        assert not workshop.clerk.open_for_work
        assert scene.job(job).status is JobStatus.QUEUED
        assert scene.job(job).attempts == attempt
    work_off_ticket(scene.workshop())
    failure = scene.job(job).failure
    assert failure is not None
    assert failure.code == "worker_lost"


def test_each_picture_is_there_for_those_who_wait_as_soon_as_it_is_finished(scene: Scene) -> None:
    job = scene.submit(num_images=3, seed=41, prompt="apart 0.4")
    ticket = threading.Thread(target=work_off_ticket, args=(scene.workshop(),))
    ticket.start()
    eventually(lambda: len(scene.job(job).images) == 1)
    first = scene.job(job)
    assert first.status is JobStatus.PROCESSING
    assert first.images[0].seed == 41
    assert scene.images.get(first.images[0].key)
    ticket.join()
    done = scene.job(job)
    assert done.status is JobStatus.SUCCEEDED
    assert done.images[0] == first.images[0]
    assert len(done.images) == 3


def test_pictures_published_by_a_job_that_is_cancelled_do_not_stay(scene: Scene) -> None:
    job = scene.submit(num_images=3, prompt="apart 0.4")
    workshop = scene.workshop()
    ticket = threading.Thread(target=work_off_ticket, args=(workshop,))
    ticket.start()
    eventually(lambda: scene.job(job).images)
    scene.jobs.cancel(job.job_id)
    workshop.clerk.round()
    ticket.join()
    assert scene.job(job).status is JobStatus.CANCELLED
    assert scene.job(job).images == ()
    assert scene.stored_results() == []


def test_the_engine_gets_weights_and_fill(scene: Scene) -> None:
    prompts = (WeightedPrompt("a fox", 1.0), WeightedPrompt("blue", -2.0))
    scene.submit(weighted_prompts=prompts, masked_area_init=MaskedAreaInit.ZERO, seeds=(9, 3), num_images=2)
    work_off_ticket(scene.workshop())
    (painting,) = scene.engine.paintings
    assert painting.weighted_prompts == prompts
    assert painting.masked_area_init is MaskedAreaInit.ZERO
    assert painting.seeds == (9, 3)
