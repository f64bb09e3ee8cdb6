"""What an error in the engine's thread means: the end of a job, of some, or of the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from worker.devices import free_cached_memory, is_fatal, is_out_of_memory
from worker.errors import InternalError, JobFailed, OutOfMemory, WorkerUnfit
from worker.runs import Run

log = structlog.get_logger(__name__)

Outcome = TypeVar("Outcome")


def judge(error: Exception, runs: Sequence[Run]) -> JobFailed:
    """What the error means for the jobs concerned. Raises WorkerUnfit when it is the end of the process."""
    if isinstance(error, JobFailed):
        return error
    if is_fatal(error):
        raise WorkerUnfit("The device has failed.") from error
    job_ids = [run.painting.job_id for run in runs]
    if is_out_of_memory(error):
        log.warning("out_of_memory", jobs=job_ids)
        return OutOfMemory()
    log.error("painting_failed", jobs=job_ids, exc_info=error)
    return InternalError()


def attempt(run: Run, action: Callable[[], Outcome], *, repeatable: bool = True) -> Outcome | None:
    """Do this for one run; it alone fails with it. Out of memory: once more, with the caches emptied."""
    for is_last in (not repeatable, True):
        try:
            return action()
        except Exception as error:  # noqa: BLE001  # judged: whatever it is, only this run may fail
            failure = judge(error, [run])
        free_cached_memory()
        if is_last or not isinstance(failure, OutOfMemory):
            break
    run.end(failure)
    return None
