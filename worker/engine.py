"""The engine: one thread that owns the device and ticks; samples of all jobs share its UNet calls."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from storage.addons import NO_ADDONS
from storage.model_catalog import ModelCatalog
from worker.adapters import Adapters, one_at_a_time
from worker.denoising import Denoiser
from worker.devices import (
    addon_budget_bytes,
    choose_device,
    choose_dtype,
    free_cached_memory,
    is_fatal,
    model_budget_bytes,
)
from worker.errands import Errands
from worker.errors import JobFailed, WorkerUnfit
from worker.graphs import GraphedUNet
from worker.loading import LOADING, LoadedModel, load_model
from worker.models import ResidentModels
from worker.preparing import begin_samples, make_canvas, warm_up_graphs
from worker.previews import Preview, paste_preview
from worker.runs import Run
from worker.safety import checker_bytes
from worker.sample import Painting
from worker.settings import WorkerSettings
from worker.verdicts import attempt, judge

__all__ = ["Activity", "Engine", "EnginePulse", "Painting", "open_engine"]

log = structlog.get_logger(__name__)

IDLE_WAIT_SECONDS = 1.0
STOP_WAIT_SECONDS = 30.0
PREVIEW_WAIT_SECONDS = 10.0
DEFAULT_FLIGHT_BYTES = 2**30
STOPPED = "The engine has stopped."

Activity = Literal["idle", "loading", "warming_up", "painting"]
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class EnginePulse:
    """What the engine does. `since`: time.monotonic() of its last sign of life, or of the load's start."""

    activity: Activity
    since: float


class Engine:
    """Paints. `paint` may be called from many threads; all work on the device happens in one.

    Each tick admits waiting samples, makes one UNet call for those that can share it, lets every sample
    take its own scheduler's step, and hands back what is finished. Jobs leave between ticks.
    `unfit` is set when this process cannot paint any more.
    """

    def __init__(
        self,
        models: ResidentModels,
        *,
        max_batch: int,
        torch_threads: int,
        flight_bytes: int = DEFAULT_FLIGHT_BYTES,
        adapters: Adapters | None = None,
    ) -> None:
        self.unfit: WorkerUnfit | None = None
        self._models = models
        self._adapters = adapters or Adapters(NO_ADDONS)
        self._max_batch = max_batch
        self._flight_bytes = flight_bytes
        self._torch_threads = torch_threads
        self._changed = threading.Condition()
        self._errands = Errands(self._changed)
        self._runs: list[Run] = []
        self._waiting: list[Run] = []
        self._painting: list[Run] = []
        self._stopping = False
        self._warming_since: float | None = None
        self._alive_at = time.monotonic()
        self._denoiser = Denoiser(max_batch=max_batch, changed=self._changed, show_life=self._show_life)
        self._has_threads = threading.Event()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._has_threads.wait()
        # Of all threads that begin to calculate after this: beside a second pool, the threads of the engine's would
        # sleep and be woken in every operation instead of spinning for a moment.
        torch.set_num_threads(1)

    def stop(self) -> None:
        """End after the current tick; paintings that are not done raise WorkerUnfit."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_WAIT_SECONDS)

    def paint(self, painting: Painting) -> list[NDArray[np.uint8]]:
        """One picture per seed, (H, W, 3) RGB as the model gives it, unmasked parts included.

        Blocks until they are there. Raises JobFailed; WorkerUnfit when the job is to be done elsewhere.
        """
        pictures = dict(self.paint_each(painting))
        return [pictures[index] for index in range(len(painting.seeds))]

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]:
        """The same, each picture with its index as soon as it is finished.

        Whoever stops taking them ends the painting.
        """
        run = Run(painting)
        with (
            self._known(run),
            self._models.hold(painting.model, run.check) as loaded,
            self._adapters.fitted(loaded, painting, run.check) as model,
        ):
            run.model = model
            # In this thread: what needs no device is no part of the engine's turn.
            run.canvas = attempt(run, functools.partial(make_canvas, model, painting), repeatable=False)
            with self._changed:
                run.check()
                self._waiting.append(run)
                self._changed.notify_all()
            try:
                while (index := run.finished.get()) is not None:
                    yield index, run.pictures[index]
            finally:
                # The model is held until the engine's thread has let the painting go.
                run.cancelled = True
                run.done.wait()
        if run.failure is not None:
            raise run.failure

    def aside(self, action: Callable[[], Outcome]) -> Outcome:
        """Do this in the engine's thread, between two ticks: for work on the device that is short.

        Blocks until it is done. Raises what the action raises, OutOfMemory and InternalError for what is no
        JobFailed, and WorkerUnfit.
        """
        with self._changed:
            if self._stopping:
                raise self.unfit or WorkerUnfit(STOPPED)
            outcome = self._errands.add(action)
        return outcome.result()

    def cancel(self, job_id: str) -> None:
        """Let the job leave at the next tick; its `paint` raises Cancelled."""
        with self._changed:
            for run in self._runs:
                if run.painting.job_id == job_id:
                    run.cancelled = True

    def progress(self) -> dict[str, tuple[int, int]]:
        """Of each job here: the UNet evaluations done and to be done for one of its samples."""
        with self._changed:
            return {run.painting.job_id: run.progress for run in self._runs}

    def previews(self, job_ids: Collection[str]) -> dict[str, Preview]:
        """What the first picture of each of these jobs looks like so far, made small, of those that run.

        Blocks for a step at most.
        """
        with self._changed:
            asked = [run for run in self._painting if run.painting.job_id in job_ids and run.samples]
            for run in asked:
                run.preview = run.preview or Future()
            waiting = [(run, run.preview) for run in asked if run.preview is not None]
        until = time.monotonic() + PREVIEW_WAIT_SECONDS
        previews = {}
        for run, future in waiting:
            if run.done.is_set():
                continue
            try:
                preview = future.result(until - time.monotonic())
            except TimeoutError:
                continue
            if preview is not None:
                pixels = paste_preview(preview.pixels, run.painting)
                previews[run.painting.job_id] = Preview(preview.step, pixels)
        return previews

    def pulse(self) -> EnginePulse:
        loading_since, warming_since = self._models.loading_since(), self._warming_since
        if warming_since is not None:
            return EnginePulse("warming_up", warming_since)
        with self._changed:
            if self._waiting or self._painting or self._errands:
                return EnginePulse("painting", self._alive_at)
        if loading_since is not None:
            return EnginePulse("loading", loading_since)
        return EnginePulse("idle", self._alive_at)

    def resident_models(self) -> frozenset[str]:
        return self._models.names()

    def favoured_models(self) -> frozenset[str]:
        """See ResidentModels.favoured."""
        return self._models.favoured()

    @contextmanager
    def _known(self, run: Run) -> Iterator[None]:
        with self._changed:
            if self._stopping:
                raise self.unfit or WorkerUnfit(STOPPED)
            self._runs.append(run)
        try:
            yield
        finally:
            with self._changed:
                self._runs.remove(run)

    def _live(self) -> None:
        try:
            self._take_threads()
            with torch.inference_mode():
                while self._await_work():
                    self._tick()
        except Exception as error:
            self.unfit = error if isinstance(error, WorkerUnfit) else WorkerUnfit()
            log.critical("engine_died", exc_info=True)
        finally:
            with self._changed:
                self._stopping = True
                for run in self._runs:
                    run.end(self.unfit or WorkerUnfit(STOPPED))
                self._errands.end(self.unfit or WorkerUnfit(STOPPED))

    def _take_threads(self) -> None:
        try:
            torch.set_num_threads(self._torch_threads)
            # What has not been asked for yet would still follow what another thread sets later.
            torch.get_num_threads()
        finally:
            self._has_threads.set()

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._painting or self._errands or self._stopping):
                self._alive_at = time.monotonic()
                self._changed.wait(IDLE_WAIT_SECONDS)
            return not self._stopping

    def _tick(self) -> None:
        self._let_go()
        self._admit()
        self._denoiser.step(self._painting)
        self._retire()
        if self._errands:
            self._errands.do_next(lambda error: judge(error, []))
            self._show_life()

    def _let_go(self) -> None:
        """Cancelled and overdue jobs leave."""
        with self._changed:
            for run in self._waiting + self._painting:
                try:
                    run.check()
                except JobFailed as reason:
                    run.end(reason)
            self._forget_done()

    def _admit(self) -> None:
        """In the order of arrival, as far as the memory for what is in flight goes; one job alone always may."""
        with self._changed:
            held_bytes = sum(run.size_bytes for run in self._painting)
            admitted: list[Run] = []
            for run in self._waiting:
                if (self._painting or admitted) and held_bytes + run.size_bytes > self._flight_bytes:
                    break
                held_bytes += run.size_bytes
                admitted.append(run)
            self._waiting = self._waiting[len(admitted) :]
            self._painting += admitted
        for run in admitted:
            if run.model is not None:
                self._warm_up(run.model)
                begin = functools.partial(begin_samples, run.model, run.painting, run.canvas)
                run.samples = attempt(run, begin) or []
            self._show_life()

    def _warm_up(self, model: LoadedModel) -> None:
        """On CUDA: build the graphs of a model that is new here, and none after that."""
        if not (isinstance(model.unet, GraphedUNet) and model.unet.warming):
            return
        started = self._warming_since = time.monotonic()
        try:
            warm_up_graphs(model, max_rows=2 * self._max_batch)
        except Exception as error:
            if is_fatal(error):
                raise
            log.warning("graphs_not_built", model=model.id, exc_info=True)
            free_cached_memory()
        finally:
            model.unet.end_warm_up()
            self._warming_since = None
        seconds = round(time.monotonic() - started, 2)
        log.info("graphs_built", model=model.id, graphs=model.unet.graphs_built, seconds=seconds)

    def _retire(self) -> None:
        for run in self._painting:
            for index, sample in enumerate(run.samples):
                if sample.finished and index not in run.pictures:
                    picture = attempt(run, sample.decode)
                    self._show_life()
                    if picture is None:
                        break
                    run.pictures[index] = picture
                    run.finished.put(index)
            if len(run.pictures) == len(run.painting.seeds):
                run.end()
        with self._changed:
            self._forget_done()

    def _forget_done(self) -> None:
        for run in self._painting:
            if run.done.is_set() and run.model is not None:
                run.model.lora_host.take_off(run.model.loras)
        self._waiting = [run for run in self._waiting if not run.done.is_set()]
        self._painting = [run for run in self._painting if not run.done.is_set()]

    def _show_life(self) -> None:
        self._alive_at = time.monotonic()


def open_engine(catalog: ModelCatalog, settings: WorkerSettings) -> Engine:
    """The engine this machine and these settings make. Raises WorkerUnfit when the device is not there."""
    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    load = functools.partial(
        load_model,
        device=device,
        dtype=dtype,
        prompt_cache_entries=settings.prompt_cache_entries,
        picture_cache_bytes=settings.picture_cache_bytes,
    )
    adapters = Adapters(catalog.addons, capacity_bytes=addon_budget_bytes(settings, device), loading=LOADING)
    models = ResidentModels(
        catalog,
        one_at_a_time(load, LOADING),
        budget_bytes=model_budget_bytes(settings, device, beside_bytes=checker_bytes(catalog.addons.safety_checker)),
        bytes_per_weight=dtype.itemsize,
        turn_seconds=settings.model_turn_seconds,
    )
    threads = settings.torch_thread_count
    log.info("engine_opened", device=str(device), dtype=str(dtype), torch_threads=threads, max_batch=settings.max_batch)
    return Engine(
        models,
        max_batch=settings.max_batch,
        torch_threads=threads,
        flight_bytes=settings.flight_memory_bytes,
        adapters=adapters,
    )
