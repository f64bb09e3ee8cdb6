"""The engine through any order of events: no job lost, none done twice, every one ends."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from structlog.testing import capture_logs

from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting
from tests.studio import WAIT_SECONDS, WatchedUNet, folder, loaded
from tests.tiny_models import catalog_of, tiny_entry
from worker.engine import Engine
from worker.errors import Cancelled, InternalError, OutOfMemory, TimedOut
from worker.loading import LoadedModel
from worker.models import ResidentModels
from worker.sample import Sample

__all__ = ["folder", "loaded"]

pytestmark = LIBRARY_WARNINGS

POISON = "poison"
FAITHFUL_ENDS = (Cancelled, InternalError, OutOfMemory, TimedOut)


@dataclasses.dataclass(frozen=True)
class Job:
    id: str
    images: int
    is_bad: bool
    future: Future[list[Any]]


class EngineMachine(RuleBasedStateMachine):
    """The engine's thread is this test: `tick` is called, not awaited. Jobs come in on threads as they do in life."""

    entry: Any
    model: LoadedModel

    def __init__(self) -> None:
        super().__init__()
        self.watched = WatchedUNet(self.model.unet, before=self.check_call)
        self.poison = self.model.prompts.encode(POISON).hidden
        model = dataclasses.replace(self.model, unet=self.watched)
        models = ResidentModels(
            catalog_of(self.entry), lambda _entry: model, budget_bytes=2**30, bytes_per_weight=4, turn_seconds=20
        )
        self.engine = Engine(models, max_batch=4, torch_threads=1, flight_bytes=400_000)
        self.threads = ThreadPoolExecutor(32)
        self.jobs: list[Job] = []
        self.cancelled: set[str] = set()
        self.decodes: Counter[int] = Counter()
        self.scarce = False

    def check_call(self, latents: torch.Tensor, conditioning: torch.Tensor) -> None:
        if self.scarce and latents.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if any(torch.equal(row, self.poison[0]) for row in conditioning):
            raise ValueError("poison")

    @rule(images=st.integers(1, 3), steps=st.integers(1, 4), size=st.sampled_from([64, 64, 128]), bad=st.booleans())
    def submit(self, images: int, steps: int, size: int, bad: bool) -> None:
        job_id = f"job-{len(self.jobs)}"
        painting = make_painting(
            job_id=job_id,
            size=size,
            seeds=tuple(range(images)),
            num_inference_steps=steps,
            guidance_scale=1.0,
            prompt=POISON if bad and images == 1 else "a red cat",
        )
        self._begin(painting, is_bad=bad and images == 1)

    @rule()
    def submit_overdue(self) -> None:
        self._begin(
            make_painting(job_id=f"job-{len(self.jobs)}", deadline=time.monotonic() + 0.001, num_inference_steps=50),
            is_bad=True,
        )

    def _begin(self, painting: Any, *, is_bad: bool) -> None:
        future = self.threads.submit(self.engine.paint, painting)
        self.jobs.append(Job(painting.job_id, len(painting.seeds), is_bad, future))
        self._until(lambda: future.done() or any(self._is_in(run, painting.job_id) for run in self._seen()))

    def _seen(self) -> list[Any]:
        return [*self.engine._waiting, *self.engine._painting]

    @staticmethod
    def _is_in(run: Any, job_id: str) -> bool:
        return bool(run.painting.job_id == job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        if not job.future.done():
            self.cancelled.add(job.id)
        self.engine.cancel(job.id)
        self._tick()
        if job.id in self.cancelled:
            # Within one tick, whatever state it was in.
            job.future.exception(WAIT_SECONDS)

    @rule()
    def memory_becomes_scarce_or_not(self) -> None:
        self.scarce = not self.scarce

    @rule(count=st.integers(1, 3))
    def tick(self, count: int) -> None:
        for _ in range(count):
            self._tick()

    def _tick(self) -> None:
        with torch.inference_mode():
            self.engine._tick()

    @invariant()
    def nobody_is_in_two_places_and_nobody_who_is_done_is_in_one(self) -> None:
        ids = [run.painting.job_id for run in self._seen()]
        assert len(ids) == len(set(ids))
        assert not any(run.done.is_set() for run in self._seen())
        samples = [id(sample) for run in self._seen() for sample in run.samples]
        assert len(samples) == len(set(samples))

    def teardown(self) -> None:
        for _ in range(400):
            if all(job.future.done() for job in self.jobs):
                break
            self._tick()
            time.sleep(0.0005)
        assert not self._seen()
        for job in self.jobs:
            error = job.future.exception(WAIT_SECONDS)
            if error is None:
                assert len(job.future.result()) == job.images
                assert not job.is_bad
            else:
                assert isinstance(error, FAITHFUL_ENDS)
                assert job.is_bad or isinstance(error, Cancelled) == (job.id in self.cancelled)
        assert self.engine.progress() == {}
        self.threads.shutdown()

    @staticmethod
    def _until(condition: Any) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.0005)


def test_no_job_is_lost_and_none_is_done_twice_in_any_order_of_events(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    decode = Sample.decode
    keep: list[Sample] = []
    lock = threading.Lock()

    def counted(sample: Sample) -> Any:
        with lock:
            keep.append(sample)  # so that no other gets its id
            decoded[id(sample)] += 1
        return decode(sample)

    monkeypatch.setattr(Sample, "decode", counted)
    EngineMachine.entry = tiny_entry("tiny", folder)
    EngineMachine.model = load_on_cpu(EngineMachine.entry)
    with torch.inference_mode():
        EngineMachine.model.prompts.encode(POISON)
    with capture_logs():
        run_state_machine_as_test(
            EngineMachine,
            settings=settings(
                max_examples=25,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert decoded, "nothing was painted"
    assert set(decoded.values()) == {1}, "a picture was made twice"
