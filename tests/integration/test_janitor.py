"""What has outlived its time is really gone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from werkzeug import Response

from api.janitor import Janitor
from storage.errors import StorageUnavailable
from storage.image_store import FolderImageStore, ImageStore, ObjectMissing, S3ImageStore
from tests.jobs import a_job
from tests.radosgw import Radosgw
from tests.webhook_scenes import Inbox, Scene, inbox_and_url, pictures_of, plain, receiver

__all__ = ["inbox_and_url", "plain", "receiver"]

pytestmark = pytest.mark.usefixtures("plain")
DAY = 24 * 3600.0


@dataclass
class House:
    scene: Scene
    folder: Path
    images: FolderImageStore
    janitor: Janitor

    @property
    def files(self) -> set[str]:
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in found if not str(path).startswith(".")}


@pytest.fixture
def house(redis_url: str, tmp_path: Path) -> House:
    scene = Scene(redis_url)
    images = FolderImageStore(tmp_path / "images")
    janitor = Janitor(jobs=scene.jobs, images=images, log=scene.log, rest_seconds=0)
    return House(scene, tmp_path / "images", images, janitor)


def test_results_live_for_their_time_and_are_then_deleted(house: House) -> None:
    job = house.scene.over(None, num_images=2)
    pictures_of(house.images, job)
    house.scene.clock.advance(house.scene.storage.result_ttl - 1)
    house.janitor.sweep()
    assert house.files == {image.key for image in job.images}
    house.scene.clock.advance(1)
    house.janitor.sweep()
    assert house.files == set()
    assert house.scene.jobs.get(job.job_id) is not None, "the record lives longer"
    house.scene.clock.advance(DAY)
    assert house.scene.jobs.claim_expired("results", 10) == []


def test_temporary_results_are_gone_after_a_day(house: House) -> None:
    lasting, temporary = house.scene.over(None), house.scene.over(None, temporary=True)
    for job in (lasting, temporary):
        pictures_of(house.images, job)
    house.scene.clock.advance(DAY)
    house.janitor.sweep()
    assert house.files == {lasting.images[0].key}


def test_records_are_deleted_after_their_time_and_their_pictures_with_them(house: House) -> None:
    job = house.scene.over(None)
    house.scene.jobs.forget("results", job.job_id)
    pictures_of(house.images, job)
    house.scene.clock.advance(house.scene.storage.record_ttl)
    house.janitor.sweep()
    assert house.scene.jobs.get(job.job_id) is None
    assert house.scene.jobs.by_number(job.number) is None
    assert house.scene.jobs.by_image_id(job.image_id) is None
    assert house.files == set()
    for kind in ("results", "records"):
        house.scene.clock.advance(DAY)
        assert house.scene.jobs.claim_expired(kind, 10) == []


def test_pictures_of_a_claim_that_lost_its_lease_are_deleted_too(house: House) -> None:
    jobs, clock = house.scene.jobs, house.scene.clock
    job = jobs.submit(a_job())
    lost = jobs.claim_next(worker="first")
    assert lost is not None
    orphan = f"results/{job.job_id}/{lost.fence}/0.png"
    house.images.put(orphan, b"png", "image/png")
    clock.advance(house.scene.storage.lease_seconds + 1)
    assert [each.job_id for each in jobs.return_expired_leases()] == [job.job_id]
    claimed = jobs.claim_next(worker="second")
    assert claimed is not None
    jobs.finish(claimed.given_back())
    jobs.cancel(job.job_id)
    clock.advance(house.scene.storage.record_ttl)
    house.janitor.sweep()
    assert house.files == set()


def test_inputs_are_deleted_after_their_time(house: House) -> None:
    jobs, clock = house.scene.jobs, house.scene.clock
    for name, seconds in (("early", 60), ("late", 120)):
        house.images.put(f"inputs/{name}", b"png", "image/png")
        jobs.keep_until("inputs", f"inputs/{name}", clock() + seconds)
    clock.advance(60)
    house.janitor.sweep()
    assert house.files == {"inputs/late"}


def test_delivery_logs_are_deleted_after_their_time(house: House, inbox_and_url: tuple[Inbox, str]) -> None:
    inbox, url = inbox_and_url
    inbox.answer = Response("", 410)
    job = house.scene.over(url)
    house.scene.work()
    house.scene.clock.advance(house.scene.storage.delivery_ttl - 1)
    house.janitor.sweep()
    assert len(house.scene.log.tries(job.job_id)) == 1
    house.scene.clock.advance(1)
    house.janitor.sweep()
    assert house.scene.log.tries(job.job_id) == []
    assert house.scene.client.keys(f"*deliver*{job.job_id}*") == []


def test_nothing_of_a_job_is_left_in_redis_when_all_its_times_are_over(
    house: House, inbox_and_url: tuple[Inbox, str]
) -> None:
    _, url = inbox_and_url
    job = house.scene.over(url)
    pictures_of(house.images, job)
    house.scene.work()
    house.scene.clock.advance(2 * house.scene.storage.record_ttl)
    house.janitor.sweep()
    assert [name for name in house.scene.client.keys("*") if job.job_id in name] == []
    assert house.scene.client.keys("inpaintd:expiry:*") == []


def test_many_are_deleted_over_several_sweeps(house: House) -> None:
    jobs, clock = house.scene.jobs, house.scene.clock
    for number in range(45):
        house.images.put(f"inputs/{number}", b"png", "image/png")
        jobs.keep_until("inputs", f"inputs/{number}", clock())
    swept = [house.janitor.sweep() for _ in range(4)]
    assert swept == [20, 20, 5, 0]
    assert house.files == set()


class BrokenStore(FolderImageStore):
    """A real folder behind a door that is shut for now."""

    shut = True

    def delete(self, keys: Iterable[str]) -> None:
        if self.shut:
            raise StorageUnavailable("shut")
        super().delete(keys)


def test_what_cannot_be_deleted_now_is_deleted_later(house: House) -> None:
    store = BrokenStore(house.folder)
    as_any_store: ImageStore = store
    janitor = Janitor(jobs=house.scene.jobs, images=as_any_store, log=house.scene.log, rest_seconds=0)
    job = house.scene.over(None)
    pictures_of(house.images, job)
    house.scene.clock.advance(house.scene.storage.record_ttl)
    with pytest.raises(StorageUnavailable):
        janitor.sweep()
    assert house.files == {job.images[0].key}
    assert house.scene.jobs.get(job.job_id) is not None
    store.shut = False
    house.scene.clock.advance(120)
    janitor.sweep()
    assert house.files == set()
    assert house.scene.jobs.get(job.job_id) is None


def test_after_an_outage_a_store_that_hangs_is_left_alone_for_a_while(house: House) -> None:
    store = BrokenStore(house.folder)
    janitor = Janitor(jobs=house.scene.jobs, images=store, log=house.scene.log, rest_seconds=0.3)
    job = house.scene.over(None)
    pictures_of(house.images, job)
    house.scene.clock.advance(house.scene.storage.result_ttl)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            janitor.sweep()
        store.shut = False
        house.scene.clock.advance(120)
    assert house.files == {job.images[0].key}
    time.sleep(0.3)
    janitor.sweep()
    assert house.files == set()


def test_one_that_cannot_be_deleted_does_not_keep_the_next(house: House) -> None:
    jobs, clock = house.scene.jobs, house.scene.clock
    jobs.keep_until("inputs", "../no key of ours", clock() - 1)
    house.images.put("inputs/good", b"png", "image/png")
    jobs.keep_until("inputs", "inputs/good", clock())
    house.janitor.sweep()
    assert house.files == set()


def test_two_janitors_share_the_work(house: House) -> None:
    other = Janitor(jobs=house.scene.jobs, images=house.images, log=house.scene.log)
    for number in range(30):
        house.scene.jobs.keep_until("inputs", f"inputs/{number}", house.scene.clock())
    assert house.janitor.sweep() + other.sweep() == 30


def test_an_input_is_kept_while_its_job_waits_and_for_its_time_after(house: House) -> None:
    jobs, clock, ttl = house.scene.jobs, house.scene.clock, house.scene.storage.input_ttl
    shared = {"init_image": "object:inputs/shared", "mask_image": "object:inputs/mask"}
    first, second = jobs.submit(a_job(**shared)), jobs.submit(a_job(**shared))
    for key in ("inputs/shared", "inputs/mask"):
        house.images.put(key, b"png", "image/png")
        jobs.keep_until("inputs", key, clock() + ttl)
    for job in (first, second):
        clock.advance(2 * ttl)
        house.janitor.sweep()
        assert house.files == {"inputs/shared", "inputs/mask"}
        jobs.cancel(job.job_id)
    clock.advance(ttl - 1)
    house.janitor.sweep()
    assert house.files == {"inputs/shared", "inputs/mask"}
    clock.advance(1)
    house.janitor.sweep()
    assert house.files == set()


def test_in_an_s3_store_too_what_is_over_is_gone(
    redis_url: str, radosgw: Radosgw, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in radosgw.environment.items():
        monkeypatch.setenv(name, value)
    images = S3ImageStore(bucket=radosgw.new_bucket(), region=radosgw.region, endpoint=radosgw.endpoint)
    scene = Scene(redis_url)
    janitor = Janitor(jobs=scene.jobs, images=images, log=scene.log, rest_seconds=0)
    lasting, temporary = scene.over(None), scene.over(None, temporary=True)
    for job in (lasting, temporary):
        for image in job.images:
            images.put(image.key, b"png", "image/png")
    images.put("inputs/upload", b"png", "image/png")
    scene.jobs.keep_until("inputs", "inputs/upload", scene.clock() + DAY)
    scene.clock.advance(DAY)
    janitor.sweep()
    assert images.get(lasting.images[0].key) == b"png"
    for gone in (temporary.images[0].key, "inputs/upload"):
        with pytest.raises(ObjectMissing):
            images.get(gone)
