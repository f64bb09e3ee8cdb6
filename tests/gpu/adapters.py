"""What LoRAs of true sizes cost on a CUDA machine: jobs over several models and LoRAs against one model with none.

python -m tests.gpu.adapters [--only sd,sdxl] [--dtype float16] [--smoke]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import torch

from tests.benchmarks.adapters import NUM_JOBS, NUM_LORAS, NUM_MODELS, Crowd, mixed_against_plain
from tests.benchmarks.figures import Findings, Row, markdown, milliseconds
from tests.benchmarks.machine import machine_facts
from tests.gpu.random_models import make_random_model
from tests.loras import write_lora
from tests.painting import make_painting
from tests.tiny_models import tiny_entry
from worker.lora_files import read_lora

SIZES = {"sd": 512, "sdxl": 1024}
RANK = 16
STEPS = 20


def bench(family: str, folder: Path, *, device: torch.device, dtype: torch.dtype, smoke: bool) -> Findings:
    """`smoke`: models a fraction of the size, to see on a CPU that it runs."""
    size = 64 if smoke else SIZES[family]
    crowd = make_crowd(family, folder, device=device, dtype=dtype, smoke=smoke)
    paint = functools.partial(make_painting, size=size, num_inference_steps=2 if smoke else STEPS)
    jobs = NUM_MODELS * NUM_LORAS if smoke else NUM_JOBS
    found = mixed_against_plain(crowd, paint, jobs=jobs, rounds=1 if smoke else 2, part=family)
    return dataclasses.replace(found, rows=[*found.rows, _read_row(crowd, family)])


def make_crowd(family: str, folder: Path, *, device: torch.device, dtype: torch.dtype, smoke: bool) -> Crowd:
    """Models of one weight each: what differs is their names, and where they lie in memory."""
    size = 64 if smoke else SIZES[family]
    entries = [
        dataclasses.replace(tiny_entry(f"{family}-{number}", folder, family=family), native_size=size)
        for number in range(NUM_MODELS)
    ]
    models = {
        entry.id: dataclasses.replace(
            make_random_model(family, folder, device=device, dtype=dtype, small=smoke).loaded, id=entry.id
        )
        for entry in entries
    }
    first = models[entries[0].id]
    loras = {
        f"lora-{number}": write_lora(
            folder / f"{family}-{number}.safetensors", first, seed=number, rank=RANK, texts=number % 2 == 0
        )
        for number in range(NUM_LORAS)
    }
    return Crowd(entries, models, loras, family=family)


def _read_row(crowd: Crowd, family: str) -> Row:
    """In a job's own thread, beside the engine's."""
    model = crowd.models[crowd.entries[0].id]
    path = next(iter(crowd.loras.values()))
    start = time.perf_counter()
    lora = read_lora(path, model.unet.config, family=family, device=model.device, dtype=model.dtype)
    seconds = time.perf_counter() - start
    return Row(
        part=family,
        measured=f"reading a LoRA of rank {RANK}, {lora.size_bytes / 2**20:.0f} MiB, onto the device",
        figure=milliseconds(seconds),
        values={"seconds": seconds, "bytes": lora.size_bytes},
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.adapters")
    parser.add_argument("--only", default="sd,sdxl", help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--smoke", action="store_true", help="small models, on any device: figures mean nothing")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if not (torch.cuda.is_available() or asked.smoke):
        print("There is no CUDA device here.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, asked.dtype) if device.type == "cuda" else torch.float32
    found: list[Any] = []
    for family in asked.only.split(","):
        with tempfile.TemporaryDirectory(prefix="inpaintd-gpu-") as folder:
            found += bench(family, Path(folder), device=device, dtype=dtype, smoke=asked.smoke).rows
    for fact, value in {**machine_facts(), "device": str(device), "type": str(dtype)}.items():
        print(f"{fact}: {value}  ")
    print()
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
