"""Real worker processes with a fake engine: started through the nursery."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 20.0


@dataclass
class WorkerProcess:
    pid: int
    nursery: Nursery
    log: Path

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        code: int | None = self.nursery.order({"exit_code": self.pid})
        return code

    def wait(self, seconds: float) -> int:
        """Its exit code; an error when it runs on."""
        until = time.monotonic() + seconds
        while (code := self.exit_code()) is None:
            if time.monotonic() > until:
                raise AssertionError(f"the worker still runs:\n{self.log.read_text()}")
            time.sleep(0.02)
        return code


class Nursery:
    """The process that workers are forked from; importing torch for each of them would take seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker_nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def start(self, environment: dict[str, str], log: Path) -> WorkerProcess:
        return WorkerProcess(self.order({"start": environment, "log": str(log)}), self, log)

    def order(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()
