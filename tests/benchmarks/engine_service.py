"""(e-b) The whole service, saturated, over the bare engine with the same jobs."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from storage.job_store import JobStore, open_redis
from storage.model_catalog import load_catalog
from storage.settings import StorageSettings
from tests.benchmarks.client import inline, submit
from tests.benchmarks.figures import Findings, Row
from tests.benchmarks.pictures import as_png, middle_mask, photographs
from tests.service import Service, running_service
from worker.engine import open_engine
from worker.sample import Painting
from worker.settings import WorkerSettings

SIZE, STEPS, GUIDANCE = 256, 20, 4.0
AIM = 0.97
WAIT_SECONDS = 600
SETTINGS = {"MAX_QUEUED_JOBS": "0", "TORCH_THREADS": "1"}


def service_over_engine(*, jobs: int = 64, rounds: int = 2) -> Findings:
    """Both ways in turns; the service's time is from its first claim to its last stored picture."""
    bare: list[float] = []
    served: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="inpaintd-benchmarks-") as folder,
        running_service(Path(folder), **SETTINGS) as service,
    ):
        _serve(service, 8, salt=1000)
        for salt in range(rounds):
            service.supervisorctl("stop", "worker")
            bare.append(jobs / _bare(jobs, salt))
            served.append(jobs / _serve(service, jobs, salt))
    rate, control = median(served), median(bare)
    return Findings(
        rows=[
            Row(
                part="e-b",
                measured=f"saturated service: {jobs} queued jobs of {SIZE} px, {STEPS} steps",
                figure=f"{rate:.2f} images/s",
                control=f"{control:.2f} images/s (bare engine)",
                ratio=rate / control,
                aim=f"≥ {AIM}",
                met=rate / control >= AIM,
                values={"service_images_per_second": rate, "engine_images_per_second": control},
            )
        ],
        remarks=[
            f"(e-b) {rounds} rounds in turns, one torch thread, {WorkerSettings().worker_threads} jobs at once on both "
            "sides, the built-in model. The service decodes, pastes, encodes and stores besides; the jobs were "
            "submitted before its worker started."
        ],
    )


def _prompt(salt: int, index: int) -> str:
    return f"a red circle on a blue background {salt} {index}"


def _bare(jobs: int, salt: int) -> float:
    catalog, settings = load_catalog(StorageSettings(models_file=None)), WorkerSettings(torch_threads=1)
    picture, mask = photographs(SIZE)[0].pixels, middle_mask(SIZE)
    engine = open_engine(catalog, settings)
    engine.start()
    try:
        paintings = [
            Painting(
                job_id=f"job-{salt}-{index}",
                model=catalog.default.id,
                prompt=_prompt(salt, index),
                negative_prompt="",
                picture=picture,
                mask=np.asarray(mask),
                seeds=(index,),
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                strength=1.0,
                scheduler="DDIMScheduler",
            )
            for index in range(-1, jobs)
        ]
        engine.paint(paintings[0])
        with ThreadPoolExecutor(settings.worker_threads) as threads:
            start = time.perf_counter()
            list(threads.map(engine.paint, paintings[1:]))
            return time.perf_counter() - start
    finally:
        engine.stop()


def _serve(service: Service, jobs: int, salt: int) -> float:
    picture, mask = inline(as_png(photographs(SIZE)[0].pixels)), inline(as_png(middle_mask(SIZE)))
    body: dict[str, Any] = {
        "key": service.key,
        "init_image": picture,
        "mask_image": mask,
        "width": SIZE,
        "height": SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "scheduler": "DDIMScheduler",
        "enhance_prompt": "no",
        "instant_response": "yes",
    }
    answers = [
        submit(service.url, {**body, "prompt": _prompt(salt, index), "seed": index}, expected="processing")
        for index in range(jobs)
    ]
    service.supervisorctl("start", "worker")
    settings = StorageSettings(redis_url=service.redis_url)
    store = JobStore(open_redis(settings), settings)
    done = [_ended(store, int(answer["id"])) for answer in answers]
    return max(job.finished_at for job in done) - min(job.started_at for job in done)


def _ended(store: JobStore, number: int) -> Any:
    until = time.monotonic() + WAIT_SECONDS
    while True:
        job = store.by_number(number)
        if job is not None and job.status.is_final:
            if not job.images:
                raise RuntimeError(f"a job failed: {job.failure}")
            return job
        if time.monotonic() > until:
            raise RuntimeError("the service did not finish its jobs")
        time.sleep(0.05)
