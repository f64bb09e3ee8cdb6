"""All benchmarks in one command, and one table. It starts what it needs, on free ports, and stops it again.

python -m tests.benchmarks [--only a,c] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

# As the worker has it: its libraries' advice is not part of the table, and nothing is fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from tests.benchmarks.fal_polling import fal_polling
from tests.benchmarks.figures import Findings, markdown
from tests.benchmarks.latency import latency
from tests.benchmarks.machine import load, machine_facts
from tests.benchmarks.one_job import one_job
from tests.benchmarks.png_encoding import png_encoding
from tests.benchmarks.submits import submits
from tests.service import Service, running_service

TERMINATED = 128 + signal.SIGTERM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How often each benchmark repeats."""

    pairs: int = 15
    bursts: int = 5
    burst_submits: int = 400
    jobs: int = 60
    encodes: int = 15
    polling_seconds: float = 10.0


QUICK = Counts(pairs=2, bursts=1, burst_submits=64, jobs=5, encodes=3, polling_seconds=2.0)

# In this order: the last two leave the service without its worker.
SERVED: Mapping[str, Callable[[Service, Counts], Findings]] = {
    "a": lambda service, counts: one_job(service, pairs=counts.pairs),
    "f": lambda service, counts: fal_polling(service, seconds=counts.polling_seconds),
    "c": lambda service, counts: latency(service, jobs=counts.jobs),
    "b": lambda service, counts: submits(service, rounds=counts.bursts, count=counts.burst_submits),
}
ALONE: Mapping[str, Callable[[Counts], Findings]] = {"d": lambda counts: png_encoding(rounds=counts.encodes)}
PARTS = sorted([*SERVED, *ALONE])


def run(parts: Sequence[str], counts: Counts) -> dict[str, Findings]:
    found = {part: _reported(part, functools.partial(ALONE[part], counts)) for part in ALONE if part in parts}
    served = [part for part in SERVED if part in parts]
    if served:
        with tempfile.TemporaryDirectory(prefix="inpaintd-benchmarks-") as folder:
            _say("starting a service")
            # Nobody is turned away: the queue's length is what some of them are about.
            with running_service(Path(folder), MAX_QUEUED_JOBS="0") as service:
                for part in served:
                    found[part] = _reported(part, functools.partial(SERVED[part], service, counts))
                _say("stopping the service")
    return dict(sorted(found.items()))


def _reported(part: str, benchmark: Callable[[], Findings]) -> Findings:
    _say(f"({part}) …")
    start = time.monotonic()
    findings = benchmark()
    _say(f"({part}) done in {time.monotonic() - start:.0f} s")
    return findings


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(facts: Mapping[str, str], found: Mapping[str, Findings]) -> None:
    for name, fact in facts.items():
        print(f"{name}: {fact}  ")
    print()
    print(markdown([row for findings in found.values() for row in findings.rows]))
    print()
    for findings in found.values():
        for remark in findings.remarks:
            print(f"- {remark}")


def _write(file: Path, facts: Mapping[str, str], found: Mapping[str, Findings]) -> None:
    rows = [dataclasses.asdict(row) for findings in found.values() for row in findings.rows]
    remarks = [remark for findings in found.values() for remark in findings.remarks]
    file.write_text(json.dumps({**facts, "rows": rows, "remarks": remarks}, indent=2, ensure_ascii=False) + "\n")


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return parts


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="a,c", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it runs, not to be quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # so that the service is stopped then, too
    facts = dict(machine_facts())
    found = run(asked.only, QUICK if asked.quick else Counts())
    facts["load after"] = f"{load()} (with the benchmarks' own)"
    _show(facts, found)
    if asked.json:
        _write(asked.json, facts, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
