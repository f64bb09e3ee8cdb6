"""An engine without a model, for tests of what happens around one: the prompt says how a painting goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from worker.engine import EnginePulse
from worker.errors import Cancelled, OutOfMemory, TimedOut, WorkerUnfit
from worker.previews import Preview
from worker.sample import Painting

STEP_SECONDS = 0.02
Outcome = TypeVar("Outcome")
PREVIEW_SIDE = 16


class FakeEngine:
    """Paints the negative of the picture. What the prompt may say:

    "seconds N": takes that long, in steps; "stall": shows no life any more; "out of memory", "unfit" and
    "crash" end as they say. The seed goes into the upper left pixel. `journal`: where each painting that
    begins and ends is noted, for tests that look in from another process. "apart N": each picture comes N
    seconds after the one before.
    """

    def __init__(self, journal: Path | None = None, *, warm_up_seconds: float = 0.0) -> None:
        self._warm_up_seconds = warm_up_seconds
        self.paintings: list[Painting] = []
        self._journal = journal
        self._cancelled: set[str] = set()
        self._progress: dict[str, tuple[int, int]] = {}
        self._stalled_since: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def cancel(self, job_id: str) -> None:
        with self._lock:
            if job_id in self._progress:
                self._cancelled.add(job_id)

    def progress(self) -> dict[str, tuple[int, int]]:
        with self._lock:
            return dict(self._progress)

    def previews(self, job_ids: Collection[str]) -> dict[str, Preview]:
        """Of each job that is here: as gray as its step."""
        with self._lock:
            return {
                job_id: Preview(step, np.full((PREVIEW_SIDE, PREVIEW_SIDE, 3), step, np.uint8))
                for job_id, (step, _) in self._progress.items()
                if job_id in job_ids
            }

    def pulse(self) -> EnginePulse:
        if self._stalled_since is not None:
            return EnginePulse("painting", self._stalled_since)
        return EnginePulse("painting" if self._progress else "idle", time.monotonic())

    def resident_models(self) -> frozenset[str]:
        return frozenset({"doodle"})

    def favoured_models(self) -> frozenset[str]:
        return self.resident_models()

    def paint(self, painting: Painting) -> list[NDArray[np.uint8]]:
        return [picture for _, picture in self.paint_each(painting)]

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]:
        self._note("begin", painting)
        with self._lock:
            self.paintings.append(painting)
            self._progress[painting.job_id] = (0, painting.num_inference_steps)
        try:
            self._take_time(painting)
        finally:
            with self._lock:
                del self._progress[painting.job_id]
                self._cancelled.discard(painting.job_id)
        self._note("end", painting)
        for index, seed in enumerate(painting.seeds):
            yield index, self._picture(painting, seed)
            time.sleep(float(painting.prompt.split()[1]) if painting.prompt.startswith("apart ") else 0.0)

    def aside(self, action: Callable[[], Outcome]) -> Outcome:
        with self._lock:
            return action()

    def _take_time(self, painting: Painting) -> None:
        if painting.job_id == "warm-up":
            time.sleep(self._warm_up_seconds)
        words = painting.prompt.split()
        if painting.prompt == "stall":
            self._stalled_since = time.monotonic()
        if painting.prompt == "out of memory":
            raise OutOfMemory
        if painting.prompt == "unfit":
            raise WorkerUnfit
        if painting.prompt == "crash":
            raise RuntimeError("secret details")
        until = time.monotonic() + (float(words[1]) if words and words[0] == "seconds" else 0.0)
        start = time.monotonic()
        while time.monotonic() < until or self._stalled_since is not None:
            if painting.job_id in self._cancelled:
                raise Cancelled
            if painting.deadline is not None and time.monotonic() > painting.deadline:
                raise TimedOut
            done = (time.monotonic() - start) / max(1e-9, until - start)
            with self._lock:
                steps = painting.num_inference_steps
                self._progress[painting.job_id] = (min(steps, max(0, int(done * steps))), steps)
            time.sleep(STEP_SECONDS)

    def _picture(self, painting: Painting, seed: int) -> NDArray[np.uint8]:
        picture = 255 - painting.picture
        picture[0, 0] = seed % 256
        return picture

    def _note(self, what: str, painting: Painting) -> None:
        if self._journal is not None:
            with self._journal.open("a") as journal:
                journal.write(f"{what} {painting.job_id} {os.getpid()}\n")
