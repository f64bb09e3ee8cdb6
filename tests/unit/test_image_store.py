"""The folder twin's own behaviour, and which twin the settings choose."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from storage.errors import StorageUnavailable
from storage.image_store import FolderImageStore, S3ImageStore, open_image_store
from storage.settings import StorageSettings


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)


def test_without_a_bucket_pictures_lie_in_the_image_folder(tmp_path: Path) -> None:
    store = open_image_store(StorageSettings(image_dir=tmp_path / "images"))
    store.put("results/a/0.png", b"picture", "image/png")
    assert isinstance(store, FolderImageStore)
    assert (tmp_path / "images/results/a/0.png").read_bytes() == b"picture"


def test_with_a_bucket_pictures_lie_there() -> None:
    settings = StorageSettings(s3_bucket="pictures", s3_endpoint="http://127.0.0.1:1")
    assert isinstance(open_image_store(settings), S3ImageStore)


def test_an_endpoint_that_is_no_url_fails_at_start() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        S3ImageStore(bucket="pictures", region="us-east-1", endpoint="no url")


def test_no_credentials_at_all_are_an_unavailable_store() -> None:
    store = S3ImageStore(bucket="pictures", region="us-east-1", endpoint="http://127.0.0.1:1")
    with pytest.raises(StorageUnavailable, match="pictures: NoCredentialsError"):
        store.check()


def test_deleting_the_last_object_removes_the_empty_folders_above_it_and_no_others(tmp_path: Path) -> None:
    store = FolderImageStore(tmp_path / "images")
    for key in ("results/a/1/0.png", "results/b/1/0.png"):
        store.put(key, b"picture", "image/png")
    store.delete(["results/a/1/0.png"])
    assert not (tmp_path / "images/results/a").exists()
    assert (tmp_path / "images/results/b/1/0.png").exists()
    store.delete(["results/b/1/0.png"])
    assert (tmp_path / "images").is_dir()
    assert not (tmp_path / "images/results").exists()


def test_a_reader_never_sees_half_a_picture(tmp_path: Path) -> None:
    store = FolderImageStore(tmp_path)
    pictures = {letter * 300_000 for letter in (b"a", b"b")}
    store.put("results/a/0.png", b"a" * 300_000, "image/png")
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for picture in pictures:
                store.put("results/a/0.png", picture, "image/png")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {store.get("results/a/0.png") for _ in range(200)}
    finally:
        over.set()
        writer.join()
    assert seen <= pictures


def test_a_put_survives_deletes_that_empty_its_folder_again_and_again(tmp_path: Path) -> None:
    store = FolderImageStore(tmp_path)
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            store.put("results/a/other.png", b"other", "image/png")
            store.delete(["results/a/other.png"])

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        for number in range(200):
            store.put(f"results/a/{number}.png", b"picture", "image/png")
            assert store.get(f"results/a/{number}.png") == b"picture"
            store.delete([f"results/a/{number}.png"])
    finally:
        over.set()
        churner.join()


def test_a_put_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = FolderImageStore(tmp_path)
    (tmp_path / "results").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageUnavailable):
        store.put("results/a/0.png", b"picture", "image/png")
    assert not list((tmp_path / ".unfinished").iterdir())


def test_the_check_removes_what_killed_processes_left_unfinished(tmp_path: Path) -> None:
    store = FolderImageStore(tmp_path)
    store.check()
    old, young = tmp_path / ".unfinished/old", tmp_path / ".unfinished/young"
    for path in (old, young):
        path.write_bytes(b"half a pict")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    store.check()
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_made_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="image folder"):
        FolderImageStore(tmp_path / "file").check()
