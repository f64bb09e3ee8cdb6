"""The engine's benchmarks in one command, and one table.

python -m tests.benchmarks.engine [--only a,b,c,d] [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import structlog
import torch

from tests.benchmarks.engine_counts import counts
from tests.benchmarks.engine_service import service_over_engine
from tests.benchmarks.engine_throughput import throughput
from tests.benchmarks.engine_trace import small_among_big
from tests.benchmarks.figures import Findings, markdown
from tests.benchmarks.machine import load, machine_facts

Part = Callable[[Path, bool], Findings]
PARTS: Mapping[str, Part] = {
    "a": lambda folder, quick: throughput(folder, sizes=(64,) if quick else (64, 128, 256), rounds=1 if quick else 3),
    "b": lambda _folder, quick: service_over_engine(jobs=16 if quick else 64, rounds=1 if quick else 2),
    "c": lambda folder, quick: small_among_big(folder, jobs=20 if quick else 100),
    "d": lambda folder, _quick: counts(folder),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine")
    parser.add_argument("--only", default=",".join(PARTS), metavar="a,c", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it runs, not to be quoted")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(1)
    facts = dict(machine_facts()) | {"torch threads": "1"}
    found = []
    with tempfile.TemporaryDirectory(prefix="inpaintd-benchmarks-") as folder:
        for part in asked.only.split(","):
            print(f"({part}) …", file=sys.stderr, flush=True)
            found.append(PARTS[part.strip()](Path(folder), asked.quick))
    for name, fact in {**facts, "load after": load()}.items():
        print(f"{name}: {fact}  ")
    print()
    print(markdown([row for findings in found for row in findings.rows]))
    print()
    for findings in found:
        for remark in findings.remarks:
            print(f"- {remark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
