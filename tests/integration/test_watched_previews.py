"""A preview's way on a real Redis: asked for, made by a worker that holds the job, seen, and gone with the job."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.job import InpaintJob, JobStatus, SafetyAction
from storage.job_store import Beat
from storage.previews import KEPT_SECONDS, WATCHED_SECONDS, Preview, PreviewStore
from storage.redis_client import open_redis, redis_key
from tests.workshops import Scene
from worker.previewer import Previewer
from worker.previews import Preview as Glimpse
from worker.tasks import work_off_ticket

JPEG = b"\xff\xd8 a picture \xff\xd9"


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Scene:
    return Scene(redis_url, tmp_path)


@pytest.fixture
def store(scene: Scene) -> Iterator[PreviewStore]:
    client = open_redis(scene.storage)
    yield PreviewStore(client)
    client.close()


def claimed(scene: Scene) -> InpaintJob:
    scene.submit()
    job = scene.jobs.claim_next(worker="test")
    assert job is not None
    return job


def put(store: PreviewStore, job: InpaintJob, step: int = 1) -> bool:
    return store.put(job, JPEG, step=step, width=4, height=3)


def is_watched(scene: Scene, job: InpaintJob) -> bool:
    return scene.jobs.heartbeat([Beat(job.job_id, job.fence, 1, 9)])[job.job_id].watched


def until(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_worker_hears_with_its_heartbeat_which_jobs_are_watched_and_for_a_while_only(
    scene: Scene, store: PreviewStore
) -> None:
    job, other = claimed(scene), claimed(scene)
    assert not is_watched(scene, job)
    store.watch(job.job_id)
    assert is_watched(scene, job)
    assert not is_watched(scene, other)
    scene.jobs._redis.hset(redis_key("job", job.job_id), "previews_until", time.time() - 0.01)
    assert not is_watched(scene, job)
    store.watch(job.job_id)
    left = float(scene.jobs._redis.hget(redis_key("job", job.job_id), "previews_until")) - time.time()
    assert WATCHED_SECONDS - 1 < left < WATCHED_SECONDS + 0.1


def test_a_job_may_be_watched_before_it_is_claimed(scene: Scene, store: PreviewStore) -> None:
    submitted = scene.submit()
    store.watch(submitted.job_id)
    job = scene.jobs.claim_next(worker="test")
    assert job is not None
    assert is_watched(scene, job)


def test_each_preview_is_seen_once_and_forgotten_soon(scene: Scene, store: PreviewStore) -> None:
    job, other = claimed(scene), claimed(scene)
    assert store.watch(job.job_id) is None
    assert put(store, job, step=1)
    first = store.watch(job.job_id)
    assert first == Preview(mark=f"{job.fence}-1", width=4, height=3, jpeg_base64="/9ggYSBwaWN0dXJlIP/Z")
    assert store.watch(job.job_id, first) is None
    assert store.watch(other.job_id) is None
    assert put(store, job, step=2)
    assert store.watch(job.job_id, first) != first
    assert 0 < scene.jobs._redis.ttl(redis_key("preview", job.job_id)) <= KEPT_SECONDS


def test_a_preview_does_not_outlive_its_job_nor_its_claim(scene: Scene, store: PreviewStore) -> None:
    job = claimed(scene)
    assert put(store, job)
    assert scene.jobs.finish(job.returned())
    assert store.watch(job.job_id) is None
    assert not put(store, job)
    again = scene.jobs.claim_next(worker="another")
    assert again is not None
    assert not put(store, job)
    assert put(store, again)
    assert scene.jobs.finish(again.cancelled(at=time.time()))
    assert store.watch(job.job_id) is None
    assert not put(store, again)
    assert not scene.jobs._redis.exists(redis_key("preview", job.job_id))


def test_watching_a_job_that_nobody_knows_leaves_nothing_behind(scene: Scene, store: PreviewStore) -> None:
    assert store.watch("nobody's") is None
    assert not scene.jobs._redis.exists(redis_key("job", "nobody's"))


def test_previews_of_a_watched_job_are_made_until_it_is_over_and_the_engine_is_asked_for_no_others(
    scene: Scene, store: PreviewStore
) -> None:
    asked: list[set[str]] = []
    genuine = scene.engine.previews

    def previews(job_ids: Collection[str]) -> object:
        asked.append(set(job_ids))
        return genuine(job_ids)

    scene.engine.previews = previews  # type: ignore[assignment,method-assign]  # the GPU's side
    previewer = Previewer(scene.engine, store)
    workshop = scene.workshop(show_previews=previewer.watch, clerk_interval_seconds=0.05)
    workshop.clerk.start()
    previewer.start()
    watched, other = scene.submit(prompt="seconds 2"), scene.submit(prompt="seconds 2", key_id="key-b")
    threads = [threading.Thread(target=work_off_ticket, args=(workshop,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: all(scene.job(job).step for job in (watched, other)))
    assert asked == []
    seen: dict[str, Preview] = {}
    newest = None
    while not scene.job(watched).status.is_final:
        if (preview := store.watch(watched.job_id, newest)) is not None:
            newest = seen[preview.mark] = preview
        time.sleep(0.02)
    for thread in threads:
        thread.join(10)
    assert len(seen) >= 3
    assert {each for ids in asked for each in ids} == {watched.job_id}
    until(lambda: not previewer._anyone.is_set())
    count = len(asked)
    time.sleep(0.5)
    assert len(asked) == count
    previewer.stop()
    workshop.clerk.stop()
    assert not previewer._thread.is_alive()
    assert scene.job(watched).status is JobStatus.SUCCEEDED


def test_a_job_that_wants_its_result_checked_is_not_shown_before(scene: Scene, store: PreviewStore) -> None:
    asked: list[set[str]] = []

    def previews(job_ids: Collection[str]) -> object:
        asked.append(set(job_ids))
        return {}

    scene.engine.previews = previews  # type: ignore[assignment,method-assign]  # the GPU's side
    previewer = Previewer(scene.engine, store)
    plain, checked = claimed(scene), dataclasses.replace(claimed(scene), safety_checker=SafetyAction.BLACK)
    previewer.watch([plain, checked])
    previewer.round()
    assert asked == [{plain.job_id}]


def test_a_previewer_survives_an_engine_that_cannot(scene: Scene, store: PreviewStore) -> None:
    job = claimed(scene)
    failures = iter([ValueError("no glimpse")])

    def previews(_job_ids: Collection[str]) -> object:
        for failure in failures:
            raise failure
        return {job.job_id: Glimpse(1, np.zeros((4, 4, 3), np.uint8))}

    scene.engine.previews = previews  # type: ignore[assignment,method-assign]  # the GPU's side
    previewer = Previewer(scene.engine, store)
    previewer.start()
    previewer.watch([job])
    until(lambda: store.watch(job.job_id) is not None)
    previewer.stop()
