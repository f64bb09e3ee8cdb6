"""For tests of the front end: an application on a real Redis, keys, and a worker that paints at once."""

from __future__ import annotations

import base64
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from api.keys import ApiKey, KeyScope, KeyStore
from api.parts import EXTENSION, Parts
from api.settings import ApiSettings
from storage.errors import StorageUnavailable
from storage.job import InpaintJob, ResultImage
from storage.settings import StorageSettings

LOOPBACK = "127.0.0.0/8"


def png(width: int = 2, height: int = 2) -> bytes:
    """A gray picture, valid, made by hand: the front end knows no picture library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURE = base64.b64encode(png()).decode()

Ending = Callable[[InpaintJob], InpaintJob]


@dataclass
class FrontEnd:
    """The application with a key of each scope. `body()` is a valid submit."""

    app: Flask
    key: str
    api_key: ApiKey
    admin_key: str
    other_key: str
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.app.extensions[EXTENSION]

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def body(self, **changes: Any) -> dict[str, Any]:
        values = {
            "key": self.key,
            "prompt": "a red circle",
            "init_image": PICTURE,
            "mask_image": PICTURE,
            "width": 64,
            "height": 64,
            "instant_response": True,
        }
        return {name: value for name, value in {**values, **changes}.items() if value is not None}

    def submit(self, path: str = "/api/v6/realtime/inpaint", **changes: Any) -> dict[str, Any]:
        answer = self.client.post(path, json=self.body(**changes))
        assert answer.status_code == 200, answer.text
        submitted: dict[str, Any] = answer.get_json()
        return submitted

    def painted(self, job: InpaintJob, **notes: Any) -> InpaintJob:
        """What a worker makes of a claimed job: its pictures in the store, and the job succeeded."""
        images = []
        for index in range(job.num_images):
            key = f"results/{job.job_id}/{job.fence}/{index}.png"
            data = png(job.width or 2, job.height or 2)
            self.parts.images.put(key, data, "image/png")
            images.append(ResultImage(key=key, seed=job.seed_of(index), width=64, height=64, size_bytes=len(data)))
        return job.succeeded(
            tuple(images), at=self.parts.jobs.now(), notes={"seconds": 0.25, "model": job.model, **notes}
        )

    def work_once(self, ending: Ending | None = None) -> InpaintJob:
        """Claim the next job and end it."""
        job = self.parts.jobs.claim_next(worker="fake")
        assert job is not None
        ended = (ending or self.painted)(job)
        assert self.parts.jobs.finish(ended)
        return ended

    def close(self) -> None:
        self.parts.arrivals.close()
        self.parts.redis.close()


class FakeWorker(threading.Thread):
    """Stands at the GPU seam: claims through the real job store and ends jobs as it is told."""

    def __init__(self, front_end: FrontEnd, ending: Ending | None = None) -> None:
        super().__init__(daemon=True)
        self._front_end = front_end
        self._ending = ending or front_end.painted
        self._stopped = threading.Event()

    def run(self) -> None:
        jobs = self._front_end.parts.jobs
        while not self._stopped.wait(0.01):
            try:
                jobs.heartbeat_worker("fake", {})
                while (job := jobs.claim_next(worker="fake")) is not None:
                    jobs.finish(self._ending(job))
            except StorageUnavailable:
                continue

    def __enter__(self) -> FakeWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join(10)


def storage_settings(redis_url: str, folder: Path, **changes: Any) -> StorageSettings:
    values: dict[str, Any] = {
        "redis_url": redis_url,
        "image_dir": folder,
        "allowed_private_networks": (ip_network(LOOPBACK),),
    }
    return StorageSettings(**(values | changes))


def open_front_end(redis_url: str, folder: Path, *, models_file: Path | None = None, **settings: Any) -> FrontEnd:
    app = create_app(ApiSettings(**settings), storage_settings(redis_url, folder, models_file=models_file))
    keys = KeyStore(app.extensions[EXTENSION].redis)
    api_key, key = keys.create(name="tests")
    _, other_key = keys.create(name="someone else")
    _, admin_key = keys.create(name="operator", scope=KeyScope.ADMIN)
    return FrontEnd(app=app, key=key, api_key=api_key, admin_key=admin_key, other_key=other_key)


@pytest.fixture
def open_with(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., FrontEnd]]:
    """Opens front ends with settings of the test's own."""
    opened: list[FrontEnd] = []

    def open_one(**settings: Any) -> FrontEnd:
        opened.append(open_front_end(redis_url, tmp_path, **settings))
        return opened[-1]

    yield open_one
    for front_end in opened:
        front_end.close()


@pytest.fixture
def front_end(open_with: Callable[..., FrontEnd]) -> FrontEnd:
    return open_with()
