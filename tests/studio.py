"""An engine for tests that look into it: its UNet notes each call, and a gate holds it before one."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from storage.model_catalog import ModelEntry
from tests.painting import load_on_cpu, make_painting, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.loading import LoadedModel

WAIT_SECONDS = 20


@dataclass(eq=False)
class WatchedUNet:
    """A UNet that notes the rows of each call, and lets a test step in before it is made."""

    unet: Any
    before: Callable[[torch.Tensor, torch.Tensor], None] = lambda latents, conditioning: None
    rows: list[int] = field(default_factory=list)

    @property
    def config(self) -> Any:
        return self.unet.config

    def __call__(self, latents: torch.Tensor, timesteps: Any, *, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        self.rows.append(latents.shape[0])
        self.before(latents, encoder_hidden_states)
        return self.unet(latents, timesteps, encoder_hidden_states=encoder_hidden_states, **kwargs)


class Gate:
    """Holds the engine before a UNet call until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._open = False

    def __call__(self, _latents: torch.Tensor, _conditioning: torch.Tensor) -> None:
        if not self._open:
            self.reached.release()
            assert self._passes.acquire(timeout=WAIT_SECONDS)

    def wait(self) -> None:
        assert self.reached.acquire(timeout=WAIT_SECONDS), "the engine made no call"

    def pass_one(self) -> None:
        self._passes.release()

    def open(self) -> None:
        self._open = True
        self._passes.release()


@dataclass
class Studio:
    engine: Engine
    models: dict[str, LoadedModel]
    watched: WatchedUNet
    threads: ThreadPoolExecutor
    log: list[Any]

    def begin(self, **changes: Any) -> Future[list[Any]]:
        return self.threads.submit(self.engine.paint, make_painting(**changes))

    def has(self, *job_ids: str) -> bool:
        """Whether these jobs wait for the engine's next tick or are painted."""
        runs = self.engine._waiting + self.engine._painting
        return {run.painting.job_id for run in runs} >= set(job_ids)

    def num_jobs(self) -> int:
        return len(self.engine._waiting + self.engine._painting)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_on_cpu(tiny_entry("tiny", folder))


@pytest.fixture
def studio(folder: Path, loaded: LoadedModel) -> Iterator[Studio]:
    watched = WatchedUNet(loaded.unet)
    models = {"tiny": dataclasses.replace(loaded, unet=watched)}

    def load(entry: ModelEntry) -> LoadedModel:
        return models[entry.id]

    with (
        capture_logs() as log,
        running_engine(tiny_entry("tiny", folder), load=load, max_batch=4) as engine,
        ThreadPoolExecutor(8) as threads,
    ):
        engine.paint(make_painting(num_inference_steps=1))
        watched.rows.clear()
        yield Studio(engine, models, watched, threads, log)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def held_at_first_step(studio: Studio, **changes: Any) -> tuple[Gate, Future[list[Any]]]:
    gate = Gate()
    studio.watched.before = gate
    running = studio.begin(**changes)
    gate.wait()
    return gate, running
