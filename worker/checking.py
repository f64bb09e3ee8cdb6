"""A model tried out as a worker would use it: loaded, and one small picture painted."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from storage.model_catalog import ModelCatalog, ModelEntry
from worker.devices import choose_device
from worker.engine import open_engine
from worker.errors import JobFailed, WorkerUnfit
from worker.masks import KEEP, REPAINT
from worker.painters import Painters
from worker.removals import Removals
from worker.sample import Painting
from worker.settings import WorkerSettings

NUM_STEPS = 2
GRAY = 128


class CheckFailed(Exception):
    """The model cannot paint here; the text says why."""


@dataclass(frozen=True)
class CheckReport:
    width: int
    height: int
    seconds: float
    device: str


def check_model(entry: ModelEntry, settings: WorkerSettings) -> CheckReport:
    """Load the model and repaint the middle of a gray picture of its smallest size. Raises CheckFailed."""
    started = time.monotonic()
    width, height = entry.worked_size(entry.min_size, entry.min_size)
    mask = np.full((height, width), KEEP, dtype=np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = REPAINT
    painting = Painting(
        job_id="check",
        model=entry.id,
        prompt="a red circle",
        negative_prompt=entry.negative_prompt,
        picture=np.full((height, width, 3), GRAY, dtype=np.uint8),
        mask=mask,
        seeds=(0,),
        num_inference_steps=NUM_STEPS,
        guidance_scale=entry.guidance_scale,
        strength=1.0,
        scheduler=entry.scheduler,
    )
    try:
        catalog = ModelCatalog(entries=(entry,), default=entry)
        painters = Painters(open_engine(catalog, settings), Removals(1), catalog)
        painters.start()
        try:
            painters.paint(painting)
        finally:
            painters.stop()
    except (JobFailed, WorkerUnfit) as error:
        raise CheckFailed(str(error)) from error
    return CheckReport(width, height, time.monotonic() - started, str(choose_device(settings)))
