"""The links we give out: nothing before the picture is there, then the picture, for as long as it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from api.app import create_app
from api.parts import EXTENSION
from api.settings import ApiSettings
from storage.job import InpaintJob, ResultImage
from tests.front_end import FrontEnd, front_end, open_with, png, storage_settings
from tests.jobs import a_job

__all__ = ["front_end", "open_with"]


def test_a_future_link_is_404_until_the_picture_is_there(front_end: FrontEnd) -> None:
    link = front_end.submit()["future_links"][0]
    early = front_end.client.get(link)
    assert early.status_code == 404
    assert early.headers["Cache-Control"] == "no-store"
    assert early.headers["Access-Control-Allow-Origin"] == "*"
    front_end.work_once()
    got = front_end.client.get(link)
    assert got.status_code == 200
    assert got.data == png(64, 64)


def test_a_picture_is_served_as_what_never_changes(front_end: FrontEnd) -> None:
    link = front_end.submit()["future_links"][0]
    front_end.work_once()
    got = front_end.client.get(link)
    assert got.mimetype == "image/png"
    assert got.content_length == len(png(64, 64))
    assert "immutable" in got.headers["Cache-Control"]
    assert got.headers["Access-Control-Allow-Origin"] == "*"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    head = front_end.client.head(link)
    assert (head.status_code, head.data, head.content_length) == (200, b"", got.content_length)
    again = front_end.client.get(link, headers={"If-None-Match": got.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    part = front_end.client.get(link, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.data) == (206, b"PNG")


def test_each_picture_of_a_job_has_its_link_and_no_more(front_end: FrontEnd) -> None:
    answer = front_end.submit(samples=3)
    job = front_end.work_once()
    assert [front_end.client.get(link).status_code for link in answer["future_links"]] == [200] * 3
    for name in (f"{job.image_id}-3.png", f"{job.image_id}.png", f"{job.image_id}-0.jpg", f"{job.image_id}-00000.png"):
        assert front_end.client.get(f"/images/{name}").status_code == 404


@pytest.mark.parametrize("temp", [True, False])
def test_a_temporary_picture_is_found_under_its_own_folder_alone(front_end: FrontEnd, temp: bool) -> None:
    answer = front_end.submit(temp=temp)
    job = front_end.work_once()
    places = {False: f"/images/{job.image_id}-0.png", True: f"/images/temp/{job.image_id}-0.png"}
    assert answer["future_links"] == [f"http://localhost{places[temp]}"]
    assert front_end.client.get(places[temp]).status_code == 200
    assert front_end.client.get(places[not temp]).status_code == 404
    day, week = 24 * 3600, 7 * 24 * 3600
    seconds = int(front_end.client.get(places[temp]).headers["Cache-Control"].split("max-age=")[1].split(",")[0])
    assert seconds == pytest.approx(day if temp else week, abs=30)


def test_a_picture_whose_time_is_over_is_gone(front_end: FrontEnd) -> None:
    link = front_end.submit(temp=True)["future_links"][0]

    def long_ago(job: InpaintJob) -> InpaintJob:
        return dataclasses.replace(front_end.painted(job), finished_at=front_end.parts.jobs.now() - 25 * 3600)

    front_end.work_once(long_ago)
    assert front_end.client.get(link).status_code == 404


def test_a_picture_that_was_deleted_is_404(front_end: FrontEnd) -> None:
    link = front_end.submit()["future_links"][0]
    job = front_end.work_once()
    front_end.parts.images.delete([image.key for image in job.images])
    assert front_end.client.get(link).status_code == 404
    assert front_end.client.get(link.replace(".png", ".base64")).status_code == 404


@pytest.mark.parametrize("name", ["x", "00000000-0000-4000-8000-000000000000", "../inputs/x", "%2e%2e%2fkeys"])
def test_an_upload_that_is_none_is_404(front_end: FrontEnd, name: str) -> None:
    assert front_end.client.get(f"/uploads/{name}").status_code == 404


def test_an_upload_that_is_no_picture_is_never_shown_as_a_page(front_end: FrontEnd) -> None:
    upload_id = "00000000-0000-4000-8000-00000000000a"
    front_end.parts.images.put(f"inputs/{upload_id}", b"<script>alert(1)</script>", "text/html")
    got = front_end.client.get(f"/uploads/{upload_id}")
    assert got.mimetype == "application/octet-stream"
    assert got.headers["X-Content-Type-Options"] == "nosniff"


def test_where_clients_reach_the_store_a_link_leads_there_freshly_signed(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    settings = storage_settings(
        redis_url,
        tmp_path,
        s3_bucket="pictures",
        s3_endpoint="http://127.0.0.1:1",
        s3_public_endpoint="https://store.example",
    )
    app = create_app(ApiSettings(), settings)
    jobs = app.extensions[EXTENSION].jobs
    jobs.submit(a_job())
    job = jobs.claim_next(worker="fake")
    image = ResultImage(key="results/a/1/0.png", seed=7, width=64, height=64, size_bytes=9)
    assert jobs.finish(job.succeeded((image,), at=jobs.now()))
    answer = app.test_client().get(f"/images/{job.image_id}-0.png")
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("https://store.example/pictures/results/a/1/0.png?")
    assert "X-Amz-Signature" in answer.headers["Location"]
    assert answer.headers["Cache-Control"] == "no-store"
    # Text is made from the picture here, so it cannot be fetched there; and the store is down in this test.
    assert app.test_client().get(f"/images/{job.image_id}-0.base64").status_code == 503
    app.extensions[EXTENSION].redis.close()


def test_the_picture_of_a_job_that_never_was_is_404(open_with: Callable[..., FrontEnd]) -> None:
    assert open_with().client.get("/images/00000000-0000-4000-8000-000000000000-0.png").status_code == 404
