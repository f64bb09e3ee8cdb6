"""What a ticket needs to be worked off, and the ways to wait and to leave that all of its work shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from storage.errors import StorageUnavailable
from storage.image_store import ImageStore
from storage.job_queue import JobQueue
from storage.job_store import JobStore
from storage.model_catalog import ModelCatalog
from worker.clerk import Claim, Clerk, Watched
from worker.errors import Cancelled, TimedOut
from worker.inputs import Sources
from worker.places import Places
from worker.safety import Safety
from worker.sample import Painting
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0

Value = TypeVar("Value")


class Painter(Watched, Protocol):
    """The engine as a ticket's thread sees it."""

    def favoured_models(self) -> frozenset[str]: ...

    def paint(self, painting: Painting) -> Sequence[NDArray[np.uint8]]: ...

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]: ...

    def aside(self, action: Callable[[], Value]) -> Value: ...


class LeaseLost(Exception):
    """The job is another's now, or over: whatever comes of this claim is dropped."""


@dataclass(frozen=True)
class Workshop:
    """All that a ticket needs."""

    name: str
    jobs: JobStore
    queue: JobQueue
    images: ImageStore
    sources: Sources
    catalog: ModelCatalog
    engine: Painter
    safety: Safety
    clerk: Clerk
    places: Places
    settings: WorkerSettings
    max_attempts: int
    unfit: Callable[[], None]
    """Called when this process can paint no more."""


def check(claim: Claim) -> None:
    """Leave between two pieces of work when the job is no longer wanted here."""
    if claim.lost:
        raise LeaseLost
    if claim.cancelled:
        raise Cancelled
    if time.monotonic() > claim.deadline:
        raise TimedOut


def patiently(workshop: Workshop, claim: Claim, action: Callable[[], Value]) -> Value:
    """Under the live lease, try again while a storage does not answer. Raises StorageUnavailable at the end."""
    give_up_at = time.monotonic() + workshop.settings.store_retry_seconds
    pause = FIRST_RETRY_SECONDS
    while True:
        check(claim)
        try:
            return action()
        except StorageUnavailable as error:
            if time.monotonic() + pause > give_up_at:
                raise
            log.warning("storage_unavailable", error=str(error), **claim.job.log_context())
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)
