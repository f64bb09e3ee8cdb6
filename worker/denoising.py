"""The UNet calls and scheduler steps of a tick, which strangers share. The engine's thread alone."""

from __future__ import annotations

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog
import torch

from worker.devices import free_cached_memory, is_fatal
from worker.errors import JobFailed, OutOfMemory
from worker.previews import Preview, make_preview
from worker.runs import Run
from worker.sample import CallShape, Sample, advance_together, predict_noise
from worker.verdicts import attempt, judge

log = structlog.get_logger(__name__)

_Seat = tuple[Run, Sample]


class Denoiser:
    """One step for every sample that is not finished, in as few calls as their shapes and the batch limit allow.

    What fails together is tried in halves, so that a run ends only with what fails for it alone. Where a batch was
    too large for the memory, its shape keeps the smaller limit as long as there are samples of that shape.
    """

    def __init__(self, *, max_batch: int, changed: threading.Condition, show_life: Callable[[], None]) -> None:
        self._max_batch = max_batch
        self._changed = changed
        self._show_life = show_life
        self._batch_limits: dict[CallShape, int] = {}

    def step(self, runs: Sequence[Run]) -> None:
        for shape, group in self._groups(runs):
            limit = self._batch_limits.get(shape, self._max_batch)
            num_calls = math.ceil(len(group) / limit)
            size = math.ceil(len(group) / num_calls)
            for start in range(0, len(group), size):
                self._call(shape, group[start : start + size])

    def _groups(self, runs: Sequence[Run]) -> list[tuple[CallShape, list[_Seat]]]:
        """Those whose LoRAs are on come first: one change less in each tick."""
        groups: dict[CallShape, list[_Seat]] = defaultdict(list)
        for run in runs:
            for sample in run.samples:
                if not sample.finished:
                    groups[sample.call_shape].append((run, sample))
        self._batch_limits = {shape: limit for shape, limit in self._batch_limits.items() if shape in groups}
        return sorted(groups.items(), key=lambda each: not each[1][0][1].model.wears_its_loras)

    def _call(self, shape: CallShape, seats: Sequence[_Seat]) -> None:
        """One step of these samples in one UNet call."""
        seats = [(run, sample) for run, sample in seats if not run.done.is_set()]
        if not seats:
            return
        failure: JobFailed | None = None
        try:
            predictions = predict_noise([sample for _, sample in seats])
        except Exception as error:  # noqa: BLE001  # judged: whatever it is, only these samples may fail
            failure = judge(error, [run for run, _ in seats])
        self._show_life()
        if failure is None:
            for (run, sample), prediction in zip(seats, predictions, strict=True):
                if run.preview is not None and sample is run.samples[0]:
                    self._show_preview(run, sample, prediction)
            self._advance(seats, predictions)
            return
        if len(seats) == 1:
            seats[0][0].end(failure)
            return
        half = math.ceil(len(seats) / 2)
        if isinstance(failure, OutOfMemory):
            free_cached_memory()
            self._batch_limits[shape] = min(half, self._batch_limits.get(shape, half))
            log.warning("batch_halved", model=shape.model, latent_shape=shape.latent_shape, limit=half)
        self._call(shape, seats[:half])
        self._call(shape, seats[half:])

    def _advance(self, seats: Sequence[_Seat], predictions: Sequence[torch.Tensor]) -> None:
        """The scheduler's steps; where that fails for all together, each by itself."""
        samples = [sample for _, sample in seats]
        targets = [sample.index + 1 for sample in samples]
        try:
            advance_together(samples, predictions)
        except Exception as error:  # noqa: BLE001  # judged: whatever it is, only these samples may fail
            judge(error, [run for run, _ in seats])
            free_cached_memory()
        for (run, sample), prediction, target in zip(seats, predictions, targets, strict=True):
            if sample.index < target and not run.done.is_set():
                attempt(run, functools.partial(sample.advance, prediction), repeatable=False)

    def _show_preview(self, run: Run, sample: Sample, prediction: torch.Tensor) -> None:
        try:
            preview = Preview(sample.index + 1, make_preview(sample, prediction))
        except Exception as error:  # no job fails for want of a glimpse
            if is_fatal(error):
                raise
            log.warning("preview_failed", job=run.painting.job_id, exc_info=True)
            preview = None
        with self._changed:
            run.show(preview)
