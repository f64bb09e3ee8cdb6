"""(c) How long the house itself takes: from the record to the claim, and from the last pixel to the picture."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import redis

from storage.redis_client import PREFIX
from tests.benchmarks.client import ask_once, inline, picture_bytes, submit
from tests.benchmarks.figures import NONE, Findings, Row, milliseconds, quantile
from tests.benchmarks.pictures import as_png, from_png, middle_mask, photographs
from tests.service import SOURCE_DIR, Service

SIZES = (256, 512)
AIM_SECONDS = 0.005
START_SECONDS, STOP_SECONDS = 90.0, 30.0
POLL_SECONDS = 0.2
JOB_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Between two jobs: long enough for the worker to be idle, never in step with anything that ticks.
PAUSE_SECONDS = (0.05, 0.15)


@dataclass(frozen=True, kw_only=True)
class Times:
    """One job's way, in seconds since the epoch. `spans` are the worker's (name, start, end)."""

    recorded: float
    started: float
    answered: float
    ping_seconds: float
    spans: Sequence[tuple[str, float, float]]

    def to_claim(self) -> float:
        return self.started - self.recorded

    @property
    def last_pixel(self) -> float:
        return max(end for name, _, end in self.spans if name == "decode")

    @property
    def stored(self) -> float:
        """From here on the record says succeeded and the link gives the picture."""
        return max(end for name, _, end in self.spans if name == "finish")

    @property
    def returned(self) -> float:
        """The job's own thread has the picture."""
        return min(start for name, start, _ in self.spans if name == "scale_part" and start >= self.last_pixel)

    def spent(self, name: str) -> float:
        """In spans of this name that began after the last pixel."""
        return sum(end - start for each, start, end in self.spans if each == name and start >= self.last_pixel)

    def after_last_pixel(self, until: float) -> float:
        """Without the encode."""
        return until - self.last_pixel - self.spent("encode_png")


def latency(service: Service, *, jobs: int) -> Findings:
    """Leaves the service without a worker."""
    with _timed_worker(service) as lines, redis.Redis.from_url(service.redis_url, decode_responses=True) as store:
        records = _Records(store)
        found = {size: _jobs(service, store, records, lines, size=size, count=jobs) for size in SIZES}
    rows = [_claim_row([times for each in found.values() for times in each])]
    rows += [_stored_row(size, times) for size, times in found.items()]
    rows += [_answered_row(size, times) for size, times in found.items()]
    remarks = [
        "(c) One job at a time of one step at 256 px, on an idle worker: the product's, with a stopwatch around its "
        "calls. Record and claim are stamped by Redis. `fetchable`: the record says succeeded; every picture was "
        "fetched at once and decoded. The encode's own time is taken off. ratio: how many PINGs it is."
    ]
    remarks += [_where_it_goes(size, times) for size, times in found.items()]
    return Findings(rows=rows, remarks=remarks)


@contextmanager
def _timed_worker(service: Service) -> Iterator[Path]:
    """The service with this worker in the place of its own; the file that its lines go to."""
    service.supervisorctl("stop", "worker")
    lines, log = service.state_dir / "spans.jsonl", service.state_dir / "logs" / "timed_worker.log"
    lines.touch()
    environment = {
        **service.env,
        "REDIS_URL_FILE": str(service.state_dir / "redis-url"),
        "IMAGE_DIR": str(service.state_dir / "images"),
        "MODELS_DIR": str(service.state_dir / "models"),
    }
    command = [sys.executable, "-m", "tests.benchmarks.timed_worker", str(lines)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=SOURCE_DIR, env=environment, stdout=output, stderr=output)
    try:
        _await_ready(service, process, log)
        yield lines
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(service: Service, process: subprocess.Popen[bytes], log: Path) -> None:
    """Of the service's own worker nothing is left to answer: it signed off when it was stopped."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask_once(service.url, "GET", "/ready")
            return
        except RuntimeError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker does not start:\n{log.read_text()}") from None
        time.sleep(POLL_SECONDS)


class _Records:
    """When Redis was first told of each job, by its own clock, as its MONITOR says."""

    def __init__(self, store: redis.Redis) -> None:
        self._first_seen: dict[str, float] = {}
        self._monitor = store.monitor().__enter__()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with suppress(redis.ConnectionError, ValueError):  # the service ends while this listens
            for told in self._monitor.listen():
                for job_id in JOB_ID.findall(told["command"]):
                    self._first_seen.setdefault(job_id, told["time"])

    def made_at(self, job_id: str) -> float:
        return self._first_seen[job_id]


def _jobs(
    service: Service, store: redis.Redis, records: _Records, lines: Path, *, size: int, count: int
) -> list[Times]:
    body = {
        "key": service.key,
        "prompt": "a red circle on a blue background",
        "init_image": inline(as_png(photographs(size)[0].pixels)),
        "mask_image": inline(as_png(middle_mask(size))),
        "width": size,
        "height": size,
        "num_inference_steps": 1,
    }
    all_times = [_job(service, store, records, lines, body, size=size) for _ in range(count + 2)]
    return all_times[2:]  # the first ones warm up


def _job(service: Service, store: Any, records: _Records, lines: Path, body: Mapping[str, Any], *, size: int) -> Times:
    time.sleep(random.uniform(*PAUSE_SECONDS))
    told = len(lines.read_text().splitlines())
    answer = submit(service.url, body, expected="success")
    answered = time.time()
    png = picture_bytes(service.url, answer["output"][0])
    if from_png(png).shape != (size, size, 3):
        raise RuntimeError("the picture has another size")
    while len(found := lines.read_text().splitlines()) == told:
        time.sleep(0.001)
    line = json.loads(found[-1])
    if line["number"] != answer["id"]:
        raise RuntimeError("another job came between")
    started = store.hget(f"{PREFIX}job:{line['job_id']}", "started_at")
    return Times(
        recorded=records.made_at(line["job_id"]),
        started=float(started),
        answered=answered,
        ping_seconds=_ping_seconds(store),
        spans=[tuple(span) for span in line["spans"]],
    )


def _ping_seconds(store: Any) -> float:
    start = time.perf_counter()
    store.ping()
    return time.perf_counter() - start


def _claim_row(times: Sequence[Times]) -> Row:
    return _row("submit → claim: record made to job claimed", times, Times.to_claim, aim=AIM_SECONDS)


def _stored_row(size: int, times: Sequence[Times]) -> Row:
    measured = f"last pixel → fetchable, {size} px, without the encode"
    return _row(measured, times, lambda each: each.after_last_pixel(each.stored), aim=AIM_SECONDS)


def _answered_row(size: int, times: Sequence[Times]) -> Row:
    measured = f"last pixel → waiting client answered, {size} px, without the encode"
    return _row(measured, times, lambda each: each.after_last_pixel(each.answered))


def _row(
    measured: str, times: Sequence[Times], seconds_of: Callable[[Times], float], *, aim: float | None = None
) -> Row:
    seconds, ping_seconds = [seconds_of(each) for each in times], median([each.ping_seconds for each in times])
    p50, p95 = quantile(seconds, 0.5), quantile(seconds, 0.95)
    return Row(
        part="c",
        measured=f"{measured} ({len(seconds)} jobs)",
        figure=f"p50 {milliseconds(p50)}, p95 {milliseconds(p95)}",
        control=f"{milliseconds(ping_seconds)} (a PING to its Redis)",
        ratio=p50 / ping_seconds,
        aim=NONE if aim is None else f"p50 ≤ {milliseconds(aim)}",
        met=None if aim is None else p50 <= aim,
        values={"p50_seconds": p50, "p95_seconds": p95, "ping_seconds": ping_seconds},
    )


def _where_it_goes(size: int, times: Sequence[Times]) -> str:
    """Medians of what lies between the last pixel and the stored record."""
    handed_over = median([each.returned - each.last_pixel for each in times])
    names = ("scale_part", "feather", "composite", "encode_png", "put", "finish")
    parts = {name: median([each.spent(name) for each in times]) for name in names}
    total = median([each.stored - each.last_pixel for each in times])
    shown = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in parts.items())
    rest = total - handed_over - sum(parts.values())
    return (
        f"(c) {size} px, of {milliseconds(total)} from the last pixel on (medians): to the job's thread "
        f"{milliseconds(handed_over)}, {shown}, between them {milliseconds(max(0.0, rest))}."
    )
