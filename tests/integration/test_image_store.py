"""One behaviour list for both twins of the image store, then what only S3 can do; against a real radosgw."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests

from storage.errors import StorageUnavailable
from storage.image_store import FolderImageStore, ImageStore, ObjectMissing, S3ImageStore, open_image_store
from storage.settings import StorageSettings
from tests.radosgw import Radosgw, radosgw

__all__ = ["radosgw"]

KEY = "results/5f0c5f9a-1a39-4b7c-8a3a-0e9a2c1c6b11/1/0.png"


@dataclass(frozen=True)
class Bucket:
    server: Radosgw
    name: str

    def store(self, *, public: bool = False, name: str | None = None) -> S3ImageStore:
        return S3ImageStore(
            bucket=name or self.name,
            region=self.server.region,
            endpoint=self.server.endpoint,
            public_endpoint=self.server.endpoint if public else None,
        )


@pytest.fixture
def bucket(radosgw: Radosgw, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in radosgw.environment.items():
        monkeypatch.setenv(name, value)
    return Bucket(radosgw, radosgw.new_bucket())


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageStore]:
    if request.param == "folder":
        yield FolderImageStore(tmp_path / "images")
    else:
        yield request.getfixturevalue("bucket").store()


# ---- both twins


def test_what_was_put_is_got_back(store: ImageStore) -> None:
    data = bytes(range(256)) * 5000
    store.put(KEY, data, "image/png")
    assert store.get(KEY) == data


def test_an_empty_object_is_an_object(store: ImageStore) -> None:
    store.put(KEY, b"", "image/png")
    assert store.get(KEY) == b""


def test_a_second_put_replaces_the_first(store: ImageStore) -> None:
    store.put(KEY, b"first, and longer", "image/png")
    store.put(KEY, b"second", "image/png")
    assert store.get(KEY) == b"second"


def test_an_object_that_is_not_there_is_missing(store: ImageStore) -> None:
    with pytest.raises(ObjectMissing):
        store.get(KEY)


def test_a_key_that_is_only_the_beginning_of_others_is_missing(store: ImageStore) -> None:
    store.put("results/a/0.png", b"picture", "image/png")
    with pytest.raises(ObjectMissing):
        store.get("results/a")


def test_a_key_below_an_object_is_missing(store: ImageStore) -> None:
    store.put("results/a", b"picture", "image/png")
    with pytest.raises(ObjectMissing):
        store.get("results/a/0.png")


def test_a_deleted_object_is_missing_and_its_neighbours_are_not(store: ImageStore) -> None:
    for number in range(3):
        store.put(f"results/a/1/{number}.png", b"picture", "image/png")
    store.delete(f"results/a/1/{number}.png" for number in range(2))
    with pytest.raises(ObjectMissing):
        store.get("results/a/1/0.png")
    with pytest.raises(ObjectMissing):
        store.get("results/a/1/1.png")
    assert store.get("results/a/1/2.png") == b"picture"


def test_deleting_is_idempotent(store: ImageStore) -> None:
    store.put(KEY, b"picture", "image/png")
    store.delete([KEY, "inputs/never-there"])
    store.delete([KEY, "inputs/never-there"])
    store.delete([])
    with pytest.raises(ObjectMissing):
        store.get(KEY)


def test_a_key_can_be_used_again_after_its_deletion(store: ImageStore) -> None:
    store.put(KEY, b"first", "image/png")
    store.delete([KEY])
    store.put(KEY, b"second", "image/png")
    assert store.get(KEY) == b"second"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "../secret",
        "results/../../secret",
        "results/./a",
        "results//a",
        "results/",
        "..",
        ".unfinished/a",
        "results/.hidden",
        "results\\a",
        "results/a\0b",
        "results/a\n",
        "results/%2e%2e/a",
        "results/ä",
        "results/a b",
        "C:/a",
        "a" * 256,
    ],
)
def test_a_key_that_is_not_ours_is_refused_everywhere(store: ImageStore, key: str) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        store.put(key, b"picture", "image/png")
    with pytest.raises(ValueError, match="not an object key"):
        store.get(key)
    with pytest.raises(ValueError, match="not an object key"):
        store.delete([key])
    with pytest.raises(ValueError, match="not an object key"):
        store.signed_link(key, seconds=60)


def test_a_store_that_works_passes_its_check(store: ImageStore) -> None:
    store.check()


def test_no_link_is_signed_where_clients_cannot_reach_the_store(store: ImageStore) -> None:
    store.put(KEY, b"picture", "image/png")
    assert store.signed_link(KEY, seconds=60) is None


def test_many_threads_share_one_store(store: ImageStore) -> None:
    def round_trip(number: int) -> bool:
        key, data = f"results/{number % 7}/{number}.png", str(number).encode() * 10_000
        store.put(key, data, "image/png")
        same = store.get(key) == data
        store.delete([key])
        return same

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(round_trip, range(160)))


# ---- S3 only


def test_the_settings_open_the_s3_twin(bucket: Bucket) -> None:
    settings = StorageSettings(
        s3_endpoint=bucket.server.endpoint, s3_bucket=bucket.name, s3_public_endpoint=bucket.server.endpoint
    )
    store = open_image_store(settings)
    store.check()
    store.put(KEY, b"picture", "image/png")
    link = store.signed_link(KEY, seconds=60)
    assert link is not None
    assert requests.get(link, timeout=5).content == b"picture"


def test_a_signed_link_gives_the_object_with_its_type_and_file_name(bucket: Bucket) -> None:
    store = bucket.store(public=True)
    store.put(KEY, b"picture", "image/png")
    link = store.signed_link(KEY, seconds=60, file_name="picture-0.png")
    assert link is not None
    answer = requests.get(link, timeout=5)
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Disposition"] == 'inline; filename="picture-0.png"'


def test_a_signed_link_is_path_style_on_the_public_endpoint(bucket: Bucket) -> None:
    store = S3ImageStore(
        bucket=bucket.name,
        region="us-east-1",
        endpoint=bucket.server.endpoint,
        public_endpoint="https://pictures.example",
    )
    link = store.signed_link(KEY, seconds=60)
    assert link is not None
    assert link.startswith(f"https://pictures.example/{bucket.name}/{KEY}?")
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
    assert bucket.server.secret_key not in link


def test_a_link_for_longer_than_a_week_is_signed_for_a_week(bucket: Bucket) -> None:
    store = bucket.store(public=True)
    store.put(KEY, b"picture", "image/png")
    link = store.signed_link(KEY, seconds=30 * 86400)
    assert link is not None
    assert "X-Amz-Expires=604800" in link
    assert requests.get(link, timeout=5).status_code == 200


def test_a_file_name_that_would_break_the_header_is_refused(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        bucket.store(public=True).signed_link(KEY, seconds=60, file_name='a"; x="b.png')


def test_a_tampered_link_is_forbidden(bucket: Bucket) -> None:
    store = bucket.store(public=True)
    for key in (KEY, "results/other/1/0.png"):
        store.put(key, b"picture", "image/png")
    link = store.signed_link(KEY, seconds=60)
    assert link is not None
    signature = link.rpartition("X-Amz-Signature=")[2]
    changed = ("0" if signature[0] != "0" else "1") + signature[1:]
    for tampered in (
        link.replace(signature, changed),
        link.replace(KEY, "results/other/1/0.png"),
        link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
    ):
        assert tampered != link
        assert requests.get(tampered, timeout=5).status_code == 403
    assert requests.put(link, data=b"mine", timeout=5).status_code == 403
    assert requests.get(link, timeout=5).status_code == 200


def test_an_expired_link_is_forbidden(bucket: Bucket) -> None:
    store = bucket.store(public=True)
    store.put(KEY, b"picture", "image/png")
    link = store.signed_link(KEY, seconds=1)
    assert link is not None
    assert requests.get(link, timeout=5).status_code == 200
    time.sleep(2.1)
    assert requests.get(link, timeout=5).status_code == 403


def test_without_a_signature_nothing_is_given(bucket: Bucket) -> None:
    bucket.store().put(KEY, b"picture", "image/png")
    base = f"{bucket.server.endpoint}/{bucket.name}"
    assert requests.get(f"{base}/{KEY}", timeout=5).status_code == 403
    assert requests.get(base, timeout=5).status_code == 403


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_an_unavailable_store_everywhere(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    bucket.store().put(KEY, b"picture", "image/png")
    monkeypatch.setenv(variable, "not-the-one")
    store = bucket.store()
    for call in (
        store.check,
        lambda: store.put(KEY, b"other", "image/png"),
        lambda: store.get(KEY),
        lambda: store.delete([KEY]),
    ):
        with pytest.raises(StorageUnavailable, match="these credentials are refused") as caught:
            call()
        assert "not-the-one" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_named_and_never_mistaken_for_a_missing_object(bucket: Bucket) -> None:
    store = bucket.store(name=f"none-{uuid4().hex}")
    for call in (store.check, lambda: store.put(KEY, b"picture", "image/png"), lambda: store.get(KEY)):
        with pytest.raises(StorageUnavailable, match=r"the bucket none-\w+: it does not exist"):
            call()


def test_a_closed_port_is_an_unavailable_store_within_seconds(bucket: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = S3ImageStore(bucket=bucket.name, region="us-east-1", endpoint=f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        store.check()
    assert time.monotonic() - started < 1
    for call in (lambda: store.put(KEY, b"picture", "image/png"), lambda: store.get(KEY)):
        with pytest.raises(StorageUnavailable):
            call()
    assert time.monotonic() - started < 12


def test_an_endpoint_that_accepts_and_says_nothing_fails_the_check_in_about_three_seconds(bucket: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        store = S3ImageStore(bucket=bucket.name, region="us-east-1", endpoint=f"http://127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="ReadTimeoutError"):
            store.check()
        assert time.monotonic() - started < 3.5


def test_a_store_that_comes_back_is_used_again_without_a_new_client(bucket: Bucket) -> None:
    """A proxy of one thread stands for the store's outage: it closes, then opens on the same port."""
    host, port = urlsplit(bucket.server.endpoint).hostname, urlsplit(bucket.server.endpoint).port
    assert host is not None
    assert port is not None
    with socket.create_server(("127.0.0.1", 0)) as gone:
        proxy_port = gone.getsockname()[1]
    store = S3ImageStore(bucket=bucket.name, region="us-east-1", endpoint=f"http://127.0.0.1:{proxy_port}")
    with pytest.raises(StorageUnavailable):
        store.check()
    with socket.create_server(("127.0.0.1", proxy_port)) as proxy, ThreadPoolExecutor(2) as threads:
        threads.submit(_relay_once, proxy, host, port)
        store.check()


def _relay_once(proxy: socket.socket, host: str, port: int) -> None:
    client, _ = proxy.accept()
    with client, socket.create_connection((host, port)) as server:
        server.sendall(client.recv(65536))
        client.sendall(server.recv(65536))
