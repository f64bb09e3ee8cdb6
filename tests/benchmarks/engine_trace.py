"""(e-c) Small and big jobs as they come in life: how long the small ones wait for the big ones."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.figures import Findings, Row, milliseconds, quantile
from tests.painting import load_on_cpu, make_painting, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.sample import Painting
from worker.settings import WorkerSettings

SMALL = {"size": 64, "num_inference_steps": 10}
BIG = {"size": 128, "num_inference_steps": 30}
BIG_SHARE = 0.3
LOAD = 0.85


@dataclass(frozen=True)
class Arrival:
    at_seconds: float
    painting: Painting
    is_big: bool


def small_among_big(folder: Path, *, jobs: int = 100) -> Findings:
    """The same Poisson trace twice: with shared steps, and one job at a time."""
    source = make_tiny_model(folder)
    entry, model = tiny_entry("tiny", source), load_on_cpu(tiny_entry("tiny", source))
    with running_engine(entry, load=lambda _entry: model) as engine:
        unloaded = {is_big: _unloaded(engine, is_big=is_big) for is_big in (False, True)}
        threads = WorkerSettings().worker_threads
        capacity = {count: _capacity(engine, count) for count in (threads, 1)}
        # As fast as one at a time could just bear: above that, its queue would only grow.
        rate = LOAD * capacity[threads]
        alone_rate = LOAD * capacity[1]
        together = _latencies(engine, _trace(jobs, rate), threads)
        controlled = _latencies(engine, _trace(jobs, alone_rate), 1)
    rows = []
    for is_big, name in ((False, "small"), (True, "big")):
        mine, control = ([took for took, big in each if big is is_big] for each in (together, controlled))
        rows.append(
            Row(
                part="e-c",
                measured=f"p99 of {name} jobs at {LOAD:.0%} of capacity, over the unloaded p50",
                figure=f"{quantile(mine, 0.99) / unloaded[is_big]:.1f} ({milliseconds(quantile(mine, 0.99))})",
                control=f"{quantile(control, 0.99) / unloaded[is_big]:.1f} (one job at a time)",
                ratio=quantile(mine, 0.99) / quantile(control, 0.99),
                values={"p99_seconds": quantile(mine, 0.99), "unloaded_seconds": unloaded[is_big]},
            )
        )
    waits, control_waits = (
        median([took - unloaded[False] for took, big in each if not big]) for each in (together, controlled)
    )
    rows.append(
        Row(
            part="e-c",
            measured="median time that a small job takes longer than unloaded",
            figure=milliseconds(waits),
            control=f"{milliseconds(control_waits)} (one job at a time)",
            ratio=waits / control_waits if control_waits > 0 else None,
        )
    )
    return Findings(
        rows=rows,
        remarks=[
            f"(e-c) {jobs} jobs of a tiny random model: {1 - BIG_SHARE:.0%} small ({SMALL}), {BIG_SHARE:.0%} big "
            f"({BIG}). Arrivals {rate:.2f}/s with shared steps, {alone_rate:.2f}/s one at a time: each {LOAD:.0%} of "
            f"what that way can do ({capacity[threads]:.2f} and {capacity[1]:.2f} jobs/s); {threads} jobs at once."
        ],
    )


def _painting(index: int, *, is_big: bool) -> Painting:
    shape: dict[str, Any] = BIG if is_big else SMALL
    return make_painting(job_id=f"job-{index}", seeds=(index,), prompt=f"a cat {index}", **shape)


def _unloaded(engine: Engine, *, is_big: bool) -> float:
    took = []
    for index in range(6):
        start = time.perf_counter()
        engine.paint(_painting(9000 + index, is_big=is_big))
        took.append(time.perf_counter() - start)
    return median(took[1:])


def _kinds(count: int) -> list[bool]:
    chance = random.Random(1)
    kinds = [index < BIG_SHARE * count for index in range(count)]
    chance.shuffle(kinds)
    return kinds


def _capacity(engine: Engine, threads: int, count: int = 40) -> float:
    paintings = [_painting(5000 + index, is_big=is_big) for index, is_big in enumerate(_kinds(count))]
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(engine.paint, paintings))
        return count / (time.perf_counter() - start)


def _trace(jobs: int, rate: float) -> list[Arrival]:
    chance, now, arrivals = random.Random(2), 0.0, []
    for index, is_big in enumerate(_kinds(jobs)):
        now += chance.expovariate(rate)
        arrivals.append(Arrival(now, _painting(index, is_big=is_big), is_big))
    return arrivals


def _latencies(engine: Engine, trace: Sequence[Arrival], threads: int) -> list[tuple[float, bool]]:
    """From arrival to the painted picture, in seconds; no more than `threads` jobs are held, as in a worker."""
    begin = time.perf_counter()

    def serve(arrival: Arrival) -> tuple[float, bool]:
        engine.paint(arrival.painting)
        return time.perf_counter() - begin - arrival.at_seconds, arrival.is_big

    with ThreadPoolExecutor(threads) as pool:
        served = []
        for arrival in trace:
            time.sleep(max(0.0, begin + arrival.at_seconds - time.perf_counter()))
            served.append(pool.submit(serve, arrival))
        return [each.result() for each in served]
