"""(e-a) Many small jobs of strangers: the engine's shared steps, against one job at a time and plain diffusers."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from storage.schedulers import SCHEDULERS
from tests.benchmarks.figures import Findings, Row
from tests.painting import (
    load_on_cpu,
    load_stock,
    make_painting,
    paint_stock,
    paint_together,
    psnr,
    running_engine,
)
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.loading import LoadedModel
from worker.preparing import begin_samples
from worker.sample import Painting, predict_noise

NUM_JOBS = 32
MAX_BATCH = 32
STEPS = (10, 30)
AIM = 2.5
AIMED_SIZE = 64
MIN_PSNR = 45.0
WORDS = ("red", "blue", "cat", "dog", "circle", "white", "background")


def throughput(folder: Path, *, sizes: Sequence[int] = (64, 128, 256), rounds: int = 3) -> Findings:
    """Images per second of 32 queued one-image jobs: mixed prompts, seeds, guidance, steps and schedulers."""
    source = make_tiny_model(folder)
    stock = load_stock(source)
    pristine = stock.scheduler.config
    entry = tiny_entry("tiny", source)
    model = load_on_cpu(entry)
    rows: list[Row] = []
    with running_engine(entry, load=lambda _entry: model, max_batch=MAX_BATCH) as engine:
        for size in sizes:
            rows += _rows(engine, model, lambda painting: paint_stock(stock, pristine, painting), size, rounds)
    return Findings(
        rows=rows,
        remarks=[
            f"(e-a) {NUM_JOBS} one-image jobs of a tiny random model, {STEPS[0]} to {STEPS[1]} steps, all schedulers, "
            "one in four without guidance; the three ways take turns, medians; the pictures of all were compared. "
            "The batched call alone: the rows of a call over its time, against one job's call.",
        ],
    )


def mixed_paintings(size: int, count: int, *, salt: int = 0) -> list[Painting]:
    """Never twice the same prompt: what the engine keeps of earlier ones is no part of this."""
    chance = random.Random(1000 * salt + size)
    names = list(SCHEDULERS)
    return [
        make_painting(
            size=size,
            job_id=f"job-{index}",
            prompt=f"a {chance.choice(WORDS)} {chance.choice(WORDS)} {salt} {index}",
            negative_prompt=f"{chance.choice(WORDS)} {salt} {index}",
            seeds=(100 * salt + index,),
            guidance_scale=1.0 if index % 4 == 3 else chance.uniform(2, 9),
            num_inference_steps=chance.randint(*STEPS),
            scheduler=names[index % len(names)],
        )
        for index in range(count)
    ]


def _rows(engine: Engine, model: LoadedModel, stock: Callable[[Painting], Any], size: int, rounds: int) -> list[Row]:
    seconds: dict[str, list[float]] = {"together": [], "alone": [], "stock": []}
    paint_together(engine, mixed_paintings(size, len(SCHEDULERS), salt=99))
    for salt in range(rounds):
        paintings = mixed_paintings(size, NUM_JOBS, salt=salt)
        # A server's plans repeat; here nearly every job has one of its own, and whoever came first would find it.
        for each in paintings:
            model.schedulers.prepare(each.plan)
        made = _timed(seconds["together"], functools.partial(paint_together, engine, paintings))
        together = [pictures[0] for pictures in made]
        # Other prompts of the same length, so that neither finds the other's encodings.
        again = [dataclasses.replace(each, prompt=each.prompt + ".") for each in paintings]
        _timed(seconds["alone"], functools.partial(_each, engine.paint, again))
        expected = _timed(seconds["stock"], functools.partial(_each, stock, paintings))
        worst = min(psnr(one, other) for one, other in zip(together, expected, strict=True))
        if worst < MIN_PSNR:
            raise RuntimeError(f"engine and pipeline painted different pictures: {worst} dB")
    rate = {way: NUM_JOBS / median(each) for way, each in seconds.items()}
    allowed = _batched_call_gain(model, size)
    aimed = size == AIMED_SIZE
    ratio = rate["together"] / rate["alone"]
    return [
        Row(
            part="e-a",
            measured=f"{NUM_JOBS} mixed jobs at {size} px, shared steps",
            figure=f"{rate['together']:.2f} images/s",
            control=f"{rate['alone']:.2f} images/s (same engine, one job at a time)",
            ratio=ratio,
            aim=f"≥ {AIM}" if aimed else "–",
            met=ratio >= AIM if aimed else None,
            values={"images_per_second": rate["together"], "alone_images_per_second": rate["alone"]},
        ),
        Row(
            part="e-a",
            measured=f"the same at {size} px against plain diffusers",
            figure=f"{rate['together']:.2f} images/s",
            control=f"{rate['stock']:.2f} images/s (a loop over the pipeline)",
            ratio=rate["together"] / rate["stock"],
            values={"stock_images_per_second": rate["stock"]},
        ),
        Row(
            part="e-a",
            measured=f"what one batched UNet call alone allows at {size} px",
            figure=f"{allowed:.2f} times the rows a second",
            ratio=allowed,
            values={"batched_call_gain": allowed},
        ),
    ]


def _each(paint: Callable[[Painting], Any], paintings: Sequence[Painting]) -> list[Any]:
    return [paint(painting) for painting in paintings]


def _timed(seconds: list[float], action: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = action()
    seconds.append(time.perf_counter() - start)
    return result


def _batched_call_gain(model: LoadedModel, size: int, repeats: int = 10) -> float:
    """How many times more rows a second one call of MAX_BATCH jobs gives than one of one job, steps not counted."""
    with torch.inference_mode():
        torch.set_num_threads(1)
        samples = [begin_samples(model, each)[0] for each in mixed_paintings(size, MAX_BATCH, salt=98)]
        alone = _call_seconds(samples[:1], repeats)
        together = _call_seconds(samples, repeats)
    return MAX_BATCH * alone / together


def _call_seconds(samples: Sequence[Any], repeats: int) -> float:
    took: list[float] = []
    for _ in range(repeats):
        _timed(took, lambda: predict_noise(samples))
    return median(took)
