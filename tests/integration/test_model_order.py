"""A queue of mixed models, as a trace: few loads, and nobody waits much longer than in the order of arrival."""

from __future__ import annotations

import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from storage.job_store import JobStore, open_redis
from storage.model_catalog import BUILTIN_DIR, ModelEntry
from storage.settings import StorageSettings
from tests.jobs import a_job
from tests.tiny_models import catalog_of, tiny_entry
from worker.models import ResidentModels

LOAD_SECONDS, JOB_SECONDS, PATIENCE_SECONDS = 5.0, 1.0, 20.0
MODELS = ("one", "two", "three")
START = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis_url: str, clock: Clock) -> Iterator[JobStore]:
    settings = StorageSettings(redis_url=redis_url, model_patience_seconds=PATIENCE_SECONDS)
    client = open_redis(settings)
    yield JobStore(client, settings, clock=clock)
    client.close()


@dataclass
class Trace:
    """When each job began (by its prompt, a number), in the order of beginning, and how often a model was loaded."""

    began: dict[str, float] = field(default_factory=dict)
    loads: int = 0


def work(store: JobStore, clock: Clock, arrivals: Sequence[tuple[float, str, str]], *, fit: int) -> Trace:
    """One worker that has room for `fit` models works off jobs of (arrival, key, model), until all have begun."""
    trace, resident = Trace(), OrderedDict[str, None]()
    coming = list(enumerate(arrivals))
    while len(trace.began) < len(arrivals):
        while coming and START + coming[0][1][0] <= clock.now:
            number, (_, key_id, model) = coming.pop(0)
            store.submit(a_job(prompt=str(number), key_id=key_id, model=model))
        job = store.claim_next(worker="w", resident_models=frozenset(resident))
        if job is None:
            clock.now = START + coming[0][1][0]
            continue
        if job.model not in resident:
            trace.loads += 1
            clock.now += LOAD_SECONDS
            if len(resident) == fit:
                resident.popitem(last=False)
        resident[job.model] = None
        resident.move_to_end(job.model)
        trace.began[job.prompt] = clock.now - START
        clock.now += JOB_SECONDS
    return trace


def in_order_of_arrival(arrivals: Sequence[tuple[float, str, str]], *, fit: int) -> Trace:
    trace, resident, now = Trace(), OrderedDict[str, None](), 0.0
    for number, (arrival, _, model) in enumerate(arrivals):
        now = max(now, arrival)
        if model not in resident:
            trace.loads += 1
            now += LOAD_SECONDS
            if len(resident) == fit:
                resident.popitem(last=False)
        resident[model] = None
        resident.move_to_end(model)
        trace.began[str(number)] = now
        now += JOB_SECONDS
    return trace


@pytest.mark.parametrize("fit", [1, 2])
@pytest.mark.parametrize("keys", [1, 5])
def test_a_backlog_of_mixed_models_is_worked_off_with_few_loads(
    store: JobStore, clock: Clock, keys: int, fit: int
) -> None:
    chance = random.Random(7)
    arrivals = [(0.0, f"key-{index % keys}", chance.choice(MODELS)) for index in range(240)]
    trace, plain = work(store, clock, arrivals, fit=fit), in_order_of_arrival(arrivals, fit=fit)
    assert plain.loads > 60
    assert trace.loads <= plain.loads / 6
    assert max(trace.began.values()) < max(plain.began.values())
    # At worst it waits for a turn of each other model.
    turns = (len(MODELS) - 1) * (PATIENCE_SECONDS + LOAD_SECONDS)
    assert all(trace.began[number] - plain.began[number] <= turns for number in plain.began)


def test_threads_that_claim_for_models_in_memory_load_each_few_times(redis_url: str) -> None:
    """The store and the models in memory together, as a worker with four threads uses them; one model fits."""
    patience_seconds, num_jobs = 1.0, 150
    settings = StorageSettings(redis_url=redis_url, model_patience_seconds=patience_seconds)
    store = JobStore(open_redis(settings), settings)
    loads: list[str] = []

    def load(entry: ModelEntry) -> Any:
        loads.append(entry.id)
        time.sleep(0.02)
        return entry.id

    entries = [tiny_entry(name, BUILTIN_DIR / "doodle") for name in MODELS]
    models = ResidentModels(
        catalog_of(*entries), load, budget_bytes=1, bytes_per_weight=1, turn_seconds=patience_seconds
    )
    chance = random.Random(7)
    asked = [chance.choice(MODELS) for _ in range(num_jobs)]
    for model in asked:
        store.submit(a_job(model=model, key_id=chance.choice("abc")))
    painted: list[str] = []

    def work_off() -> None:
        while (job := store.claim_next(worker="w", resident_models=models.favoured())) is not None:
            with models.hold(job.model, lambda: None) as model:
                time.sleep(0.005)
            painted.append(str(model))
            store.finish(job.cancelled(at=0.0))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work_off) for _ in range(4)]:
            done.result(60)
    assert sorted(painted) == sorted(asked)
    changes = sum(one != other for one, other in itertools.pairwise(asked))
    assert changes > 90
    assert len(loads) <= changes / 6


def test_a_model_that_hardly_anyone_asks_for_gets_its_turn_in_an_endless_stream(store: JobStore, clock: Clock) -> None:
    """Jobs of one model arrive faster than they are painted; a rare one is passed over for a time only."""
    stream = [(index * JOB_SECONDS / 2, f"key-{index % 3}", "one") for index in range(400)]
    rare = [(10.5, "rare", "two"), (60.5, "rare", "three"), (61.5, "key-1", "two")]
    arrivals = sorted(stream + rare)
    trace = work(store, clock, arrivals, fit=1)
    waits = [
        trace.began[str(number)] - arrival for number, (arrival, key_id, _) in enumerate(arrivals) if key_id == "rare"
    ]
    assert len(waits) == 2
    assert max(waits) <= PATIENCE_SECONDS + LOAD_SECONDS + 2 * JOB_SECONDS
    assert trace.loads == 1 + 2 * 3, "once for each of the three, and back"
