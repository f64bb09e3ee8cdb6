"""What LoRAs cost: jobs over several models and LoRAs against the same jobs on one model with none.

python -m tests.benchmarks.adapters [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import structlog
import torch

from storage.job import LoraUse
from storage.model_catalog import ModelEntry
from tests.benchmarks.figures import Findings, Row, markdown, milliseconds
from tests.benchmarks.machine import load, machine_facts
from tests.loras import addons_of, write_lora
from tests.painting import load_on_cpu, make_painting, paint_together, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.loading import LoadedModel
from worker.sample import Painting

NUM_JOBS, NUM_MODELS, NUM_LORAS = 64, 3, 5
AIM_SECONDS = 0.05
SWITCHES = 200
CAPACITY_BYTES = 2**33


@dataclass(frozen=True)
class Crowd:
    """Models with their LoRAs; `paint_all` is for as many jobs as there are."""

    entries: Sequence[ModelEntry]
    models: Mapping[str, LoadedModel]
    loras: Mapping[str, Path]
    family: str = "sd"


def adapters(folder: Path, *, jobs: int = NUM_JOBS, rounds: int = 3) -> Findings:
    """Images per second of 64 queued one-image jobs over 3 models × 5 LoRAs of tiny models; loads; switches."""
    crowd = make_crowd(folder)
    return mixed_against_plain(crowd, make_painting, jobs=jobs, rounds=rounds, part="l")


def make_crowd(folder: Path) -> Crowd:
    entries = [
        tiny_entry(f"tiny-{seed}", make_tiny_model(folder, weight_seed=seed)) for seed in range(1, NUM_MODELS + 1)
    ]
    models = {entry.id: load_on_cpu(entry) for entry in entries}
    first = models[entries[0].id]
    loras = {
        f"lora-{index}": write_lora(folder / f"lora-{index}.safetensors", first, seed=index, texts=index % 2 == 0)
        for index in range(NUM_LORAS)
    }
    return Crowd(entries, models, loras)


def mixed_against_plain(crowd: Crowd, paint: Callable[..., Painting], *, jobs: int, rounds: int, part: str) -> Findings:
    """`paint` makes a painting of a model; never twice the same prompt, so that nothing is found in a cache."""
    shelf = Adapters(addons_of(crowd.loras, family=crowd.family), capacity_bytes=CAPACITY_BYTES)
    loads: list[str] = []

    def load_model(entry: ModelEntry) -> LoadedModel:
        loads.append(entry.id)
        return crowd.models[entry.id]

    mixed, plain, switches = [], [], []
    with running_engine(*crowd.entries, load=load_model, adapters=shelf, checks_files=False) as engine:
        for salt in range(rounds + 1):
            ours = [_job(crowd, paint, salt, index, is_mixed=True) for index in range(jobs)]
            theirs = [_job(crowd, paint, salt, index, is_mixed=False) for index in range(jobs)]
            before = _switches(crowd)
            mixed.append(_seconds(lambda ours=ours: paint_together(engine, ours)))
            switches.append(_switches(crowd) - before)
            plain.append(_seconds(lambda theirs=theirs: paint_together(engine, theirs)))
    # The first round loads and warms up.
    rate, control = jobs / median(mixed[1:]), jobs / median(plain[1:])
    groups = len(crowd.entries) * len(crowd.loras)
    return Findings(
        rows=[
            Row(
                part=part,
                measured=f"{jobs} jobs over {len(crowd.entries)} models × {len(crowd.loras)} LoRAs",
                figure=f"{rate:.2f} images/s",
                control=f"{control:.2f} images/s (one model, no LoRA)",
                ratio=rate / control,
                values={"images_per_second": rate, "plain_images_per_second": control},
            ),
            Row(
                part=part,
                measured=f"loads in {rounds + 1} rounds",
                figure=f"{len(loads)} models, {shelf.shelf.loads} LoRAs",
                aim=f"{len(crowd.entries)} and {len(crowd.loras)}",
                met=(len(loads), shelf.shelf.loads) == (len(crowd.entries), len(crowd.loras)),
                values={"model_loads": len(loads), "lora_loads": shelf.shelf.loads},
            ),
            Row(
                part=part,
                measured="switches of LoRAs in a round",
                figure=f"{median(switches[1:]):.0f}",
                values={"switches": median(switches[1:])},
            ),
            switch_row(crowd, part),
        ],
        remarks=[
            f"({part}) One-image jobs with prompts, seeds and strengths of their own, {groups} pairs of model and LoRA "
            "at once in the engine; the same jobs on one model share their calls. The two ways take turns, medians.",
        ],
    )


def switch_row(crowd: Crowd, part: str) -> Row:
    """One set off and another on, UNet and text encoders: what the engine's thread spends on it."""
    model, shelf = crowd.models[crowd.entries[0].id], Adapters(addons_of(crowd.loras, family=crowd.family))
    names = list(crowd.loras)
    sets = []
    for name in names[:2]:
        with shelf.fitted(model, make_painting(loras=(LoraUse(name, 1.0),)), lambda: None) as fitted:
            sets.append(fitted.loras)
    layers = len(sets[0].layers)
    took = [_seconds(lambda turn=turn: model.lora_host.put_on(sets[turn % 2])) for turn in range(SWITCHES)]
    model.lora_host.take_off(sets[(SWITCHES - 1) % 2])
    return Row(
        part=part,
        measured=f"one switch, {layers} layers",
        figure=milliseconds(median(took)),
        aim=f"≤ {milliseconds(AIM_SECONDS)}",
        met=median(took) <= AIM_SECONDS,
        values={"seconds": median(took), "longest_seconds": max(took)},
    )


def _job(crowd: Crowd, paint: Callable[..., Painting], salt: int, index: int, *, is_mixed: bool) -> Painting:
    model = crowd.entries[index % len(crowd.entries) if is_mixed else 0].id
    name = list(crowd.loras)[index // len(crowd.entries) % len(crowd.loras)]
    return dataclasses.replace(
        paint(model),
        job_id=f"{is_mixed}-{salt}-{index}",
        prompt=f"a red cat {salt} {index} {'with' if is_mixed else 'none'}",
        seeds=(1000 * salt + index,),
        loras=(LoraUse(name, 0.8),) if is_mixed else (),
    )


def _switches(crowd: Crowd) -> int:
    return sum(model.lora_host.switches for model in crowd.models.values())


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adapters")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it runs, not to be quoted")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="inpaintd-benchmarks-") as folder:
        found = adapters(Path(folder), jobs=15 if asked.quick else NUM_JOBS, rounds=1 if asked.quick else 3)
    for name, fact in {**machine_facts(), "torch threads": "1", "load after": load()}.items():
        print(f"{name}: {fact}  ")
    print()
    print(markdown(found.rows))
    print()
    for remark in found.remarks:
        print(f"- {remark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
