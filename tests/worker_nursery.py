"""Imports everything that a worker needs, once, and forks into workers whose engine is a fake; orders on stdin."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from storage.logs import configure_logging
from storage.model_catalog import load_catalog
from storage.settings import storage_settings
from tests.fake_engine import FakeEngine
from worker.__main__ import run
from worker.settings import worker_settings


def run_worker(environment: dict[str, str], log: str) -> None:
    """What a forked worker does; like `worker.__main__.main`, but for the engine."""
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        storage = storage_settings()
        configure_logging(storage)
        journal, warm_up_seconds = environment["FAKE_ENGINE_JOURNAL"], environment["FAKE_ENGINE_WARM_UP_SECONDS"]
        engine = FakeEngine(Path(journal), warm_up_seconds=float(warm_up_seconds))
        code = run(engine, load_catalog(storage), storage, worker_settings())
    except Exception:  # noqa: BLE001 - whatever it is stands in the log, and ends this worker
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Each line is an order, {"start": environment, "log": path} or {"exit_code": pid}, and gets one answer."""
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer: int | None = os.fork()
            if answer == 0:
                run_worker(order["start"], order["log"])
            codes[answer or 0] = None
        else:
            pid = order["exit_code"]
            if codes[pid] is None:
                gone, status = os.waitpid(pid, os.WNOHANG)
                codes[pid] = os.waitstatus_to_exitcode(status) if gone else None
            answer = codes[pid]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
