"""The previewer: one thread that asks the engine for glimpses of the jobs that somebody watches, and stores them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import structlog

from storage.errors import StorageUnavailable
from storage.job import InpaintJob
from storage.previews import PreviewStore
from worker.previews import encode_jpeg

if TYPE_CHECKING:
    from worker.previews import Preview

log = structlog.get_logger(__name__)

# Between two previews of a job: more would be seen by nobody, and each costs the engine a moment.
PAUSE_SECONDS = 0.2
STOP_WAIT_SECONDS = 2.0


class Previewed(Protocol):
    """What the previewer asks of the engine."""

    def previews(self, job_ids: Collection[str]) -> Mapping[str, Preview]: ...


class Previewer:
    """Sleeps while nobody watches. A thread of its own: an engine answers only at its next step."""

    def __init__(self, engine: Previewed, store: PreviewStore) -> None:
        self._engine = engine
        self._store = store
        self._watched: dict[str, InpaintJob] = {}
        self._anyone = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="previewer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. It may wait for a step that takes longer: what comes of that is of no matter."""
        self._stopped.set()
        self._anyone.set()
        self._thread.join(STOP_WAIT_SECONDS)

    def watch(self, jobs: Collection[InpaintJob]) -> None:
        """From now on these claimed jobs are watched, and no others. Does not block.

        Nothing is shown of a job whose pictures are to be checked: no glimpse has been.
        """
        self._watched = {job.job_id: job for job in jobs if job.safety_checker is None}
        if self._watched:
            self._anyone.set()
        elif not self._stopped.is_set():
            self._anyone.clear()

    def _live(self) -> None:
        while True:
            self._anyone.wait()
            if self._stopped.is_set():
                return
            try:
                self.round()
            except StorageUnavailable:
                log.warning("previews_not_stored")
            except Exception:
                # No job suffers for want of a glimpse; the next ones may be well.
                log.exception("previews_failed")
            self._stopped.wait(PAUSE_SECONDS)

    def round(self) -> None:
        """One preview of each job that is watched and runs. Raises StorageUnavailable."""
        watched = self._watched
        for job_id, preview in self._engine.previews(watched).items():
            height, width = preview.pixels.shape[:2]
            self._store.put(watched[job_id], encode_jpeg(preview.pixels), step=preview.step, width=width, height=height)
