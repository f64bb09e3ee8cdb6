"""A worker's inside on real servers, with a fake engine, for tests in one process."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from storage.image_store import FolderImageStore, ImageStore
from storage.job import InpaintJob
from storage.job_queue import JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.model_catalog import load_catalog
from storage.outbound import OutboundDoor
from storage.settings import StorageSettings
from tests.fake_engine import FakeEngine
from tests.jobs import a_job
from worker.clerk import Clerk
from worker.inputs import Sources
from worker.places import places_for
from worker.safety import Safety
from worker.settings import WorkerSettings
from worker.workshop import Workshop

SIZE = 256
LEASE_SECONDS = 1.0


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def a_picture(size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)


def a_mask(size: int = SIZE) -> NDArray[np.uint8]:
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 255
    return mask


@dataclass
class Scene:
    """Redis, a folder of pictures, and whoever works on them."""

    redis_url: str
    folder: Path
    lease_seconds: float = LEASE_SECONDS
    worker_options: dict[str, Any] = field(default_factory=dict)
    safety_checker: Path | None = None

    def __post_init__(self) -> None:
        self.storage = StorageSettings(
            redis_url=self.redis_url,
            image_dir=self.folder / "images",
            lease_seconds=self.lease_seconds,
            redis_timeout_seconds=2.0,
        )
        self.jobs = JobStore(open_redis(self.storage), self.storage)
        self.queue = JobQueue(celery_app(self.storage))
        self.images: ImageStore = FolderImageStore(self.storage.image_dir)
        self.engine = FakeEngine()
        self.deaths: list[int] = []

    def submit(self, **changes: Any) -> InpaintJob:
        """A job with its pictures in the store, and its ticket."""
        names = {"init_image": f"inputs/{uuid.uuid4()}", "mask_image": f"inputs/{uuid.uuid4()}"}
        self.images.put(names["init_image"], png_of(changes.pop("picture", a_picture())), "image/png")
        self.images.put(names["mask_image"], png_of(changes.pop("mask", a_mask())), "image/png")
        references = {name: f"object:{key}" for name, key in names.items()}
        job = a_job(**({"width": SIZE, "height": SIZE} | references | changes))
        stored = self.jobs.submit(job)
        self.queue.send_ticket()
        return stored

    def workshop(self, **options: Any) -> Workshop:
        """A worker that is open for work; its clerk's thread does not run."""
        show_previews = options.pop("show_previews", lambda _jobs: None)
        settings = WorkerSettings(**({"feather_pixels": 0, "store_retry_seconds": 1.0} | options))
        clerk = Clerk(
            worker="test",
            jobs=self.jobs,
            queue=self.queue,
            engine=self.engine,
            settings=settings,
            show_previews=show_previews,
            die=self.deaths.append,
        )
        clerk.open()
        door = OutboundDoor(allowed_private_networks=self.storage.allowed_private_networks)
        catalog = load_catalog(self.storage)
        return Workshop(
            name="test",
            jobs=self.jobs,
            queue=self.queue,
            images=self.images,
            sources=Sources(images=self.images, jobs=self.jobs, door=door, settings=settings),
            catalog=catalog,
            engine=self.engine,
            safety=Safety(self.safety_checker, self.engine, lambda: torch.device("cpu")),
            clerk=clerk,
            places=places_for(catalog, settings),
            settings=settings,
            max_attempts=self.storage.max_attempts,
            unfit=clerk.close,
        )

    def job(self, job: InpaintJob) -> InpaintJob:
        stored = self.jobs.get(job.job_id)
        assert stored is not None
        return stored

    def result(self, job: InpaintJob, index: int = 0) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(self.images.get(self.job(job).images[index].key))) as image:
            return np.asarray(image.convert("RGB"))

    def stored_results(self) -> list[Path]:
        return sorted((self.folder / "images" / "results").rglob("*.png"))
