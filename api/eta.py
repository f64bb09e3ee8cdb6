"""How long a job will take from here, from measured run times and the queue ahead of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from storage.errors import StorageUnavailable
from storage.job import InpaintJob, JobStatus
from storage.job_store import JobStore, Runtime
from storage.model_catalog import ModelCatalog
from storage.schedulers import num_evaluations

MIN_SECONDS = 1.0
# Before anything was measured: a middling GPU at 512 x 512, or a small model on a CPU.
UNMEASURED_SECONDS_PER_EVALUATION = 0.1
UNMEASURED_JOB_SECONDS = 10.0

Runtimes = Mapping[tuple[int, int], Runtime]


def evaluations(job: InpaintJob) -> int:
    """UNet evaluations of the whole job."""
    return job.num_images * num_evaluations(job.num_inference_steps, job.strength, job.scheduler)


def job_seconds(runtimes: Runtimes, worked_size: tuple[int, int], num_evaluations: int) -> float:
    """From claim to stored pictures. A size never measured is scaled by area from the nearest one that was."""
    if worked_size in runtimes:
        return runtimes[worked_size].seconds_per_evaluation * num_evaluations
    if not runtimes:
        return UNMEASURED_SECONDS_PER_EVALUATION * num_evaluations
    area = worked_size[0] * worked_size[1]
    nearest = min(runtimes, key=lambda size: abs(math.log(size[0] * size[1] / area)))
    scale = area / (nearest[0] * nearest[1])
    return runtimes[nearest].seconds_per_evaluation * scale * num_evaluations


def remaining_seconds(full_seconds: float, step: int, num_steps: int) -> float:
    """Of a running job, by its steps."""
    return full_seconds * (1 - min(step, num_steps) / num_steps) if num_steps else full_seconds


def estimate(own_seconds: float, *, ahead_seconds: Sequence[float], workers: int) -> float:
    """Seconds until a job is done that needs `own_seconds` itself, once those ahead are. At least 1."""
    return max(MIN_SECONDS, own_seconds + sum(ahead_seconds) / max(1, workers))


def queue_seconds(jobs: JobStore, catalog: ModelCatalog) -> float:
    """Until a job submitted now would be taken, if all that wait were like those that run."""
    running = jobs.processing()
    cost = _costs(jobs, catalog)
    remaining = [remaining_seconds(cost(job), job.step, job.num_steps) for job in running]
    usual = sum(map(cost, running)) / len(running) if running else UNMEASURED_JOB_SECONDS
    return (sum(remaining) + usual * jobs.waiting_count()) / max(1, len(jobs.workers()))


def eta_seconds(job: InpaintJob, jobs: JobStore, catalog: ModelCatalog) -> float:
    """The same for a stored job; a plain guess while Redis is out of service."""
    try:
        cost = _costs(jobs, catalog)
        own = cost(job)
        others = [other for other in jobs.processing() if other.job_id != job.job_id]
        running = [remaining_seconds(cost(other), other.step, other.num_steps) for other in others]
        if job.status is JobStatus.PROCESSING:
            # Those beside it share the worker's time with it.
            own = remaining_seconds(own, job.step, job.num_steps)
            ahead = [min(own, other) for other in running]
        else:
            ahead = running + [own] * jobs.position(job)
        return estimate(own, ahead_seconds=ahead, workers=len(jobs.workers()))
    except StorageUnavailable:
        return UNMEASURED_JOB_SECONDS


def _costs(jobs: JobStore, catalog: ModelCatalog) -> Callable[[InpaintJob], float]:
    """What a job costs in full, in seconds; each model's run times are read once."""
    measured: dict[str, Runtimes] = {}

    def cost(job: InpaintJob) -> float:
        if job.model not in measured:
            measured[job.model] = jobs.runtimes(job.model)
        entry = catalog.find(job.model) or catalog.default
        size = entry.worked_size(job.width or entry.native_size, job.height or entry.native_size)
        return job_seconds(measured[job.model], size, evaluations(job))

    return cost
