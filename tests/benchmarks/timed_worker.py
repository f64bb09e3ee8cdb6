"""The worker as it is, with a stopwatch at its seams: one JSON line for each job it ends, into a file.

python -m tests.benchmarks.timed_worker FILE
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import worker.framing
import worker.repainting
from storage.image_store import FolderImageStore
from storage.job import InpaintJob
from storage.job_store import JobStore
from worker.__main__ import main
from worker.sample import Sample

Span = tuple[str, float, float]


class Stopwatch:
    """Spans of wall time, (name, start, end) in seconds since the epoch: Redis' clock is the same machine's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self._spans.append((name, start, time.time()))

        return timed

    def take(self) -> list[Span]:
        with self._lock:
            spans, self._spans = self._spans, []
        return spans


# Functions where they are called, methods where they are defined.
TIMED: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (worker.repainting, ("open_inputs", "feather", "encode_png")),
    (worker.framing, ("scale_picture", "scale_part", "composite")),
    (Sample, ("decode",)),
    (FolderImageStore, ("put",)),
    (JobStore, ("claim_next",)),
)


def install(stopwatch: Stopwatch, file: Path) -> None:
    """Only one job at a time is told apart from another: its submitter waits before it sends the next."""
    for owner, names in TIMED:
        for name in names:
            setattr(owner, name, stopwatch.around(name, getattr(owner, name)))
    finish = stopwatch.around("finish", JobStore.finish)

    def finish_and_tell(store: JobStore, job: InpaintJob) -> bool:
        ended: bool = finish(store, job)
        line = {"job_id": job.job_id, "number": job.number, "spans": stopwatch.take()}
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return ended

    JobStore.finish = finish_and_tell  # type: ignore[assignment, method-assign]  # a stopwatch is what this file is for


if __name__ == "__main__":
    install(Stopwatch(), Path(sys.argv[1]))
    sys.exit(main())
