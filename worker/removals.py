"""Removals, each in a process of its own that is killed when the job is cancelled or overdue, and else kept warm."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from worker.errors import Cancelled, InternalError, NothingToContinue, OutOfMemory, TimedOut, WorkerUnfit
from worker.masks import KEEP
from worker.removing.fill import STAGES, surroundings
from worker.removing.wire import PING, Answer, Request, read_answer, request_parts
from worker.sample import Painting

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.05
CHUNK_BYTES = 2**20
# One core for each, whatever the libraries find.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(eq=False)
class _Run:
    """A painting that is being done. `ended` is set to make it leave; `stages_done`: of all its pictures."""

    painting: Painting
    ended: threading.Event = field(default_factory=threading.Event)
    stages_done: int = 0

    def check(self) -> None:
        if self.ended.is_set():
            raise Cancelled
        if self.painting.deadline is not None and time.monotonic() > self.painting.deadline:
            raise TimedOut


class Removals:
    """Does paintings of models without weights, so many at once; the others wait. Its methods are the engine's."""

    def __init__(self, max_processes: int) -> None:
        self._free = threading.BoundedSemaphore(max_processes)
        self._lock = threading.Lock()
        self._runs: list[_Run] = []
        self._idle: list[_Process] = []
        self._stopped = False

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]:
        """One picture per seed, (H, W, 3), with its index: what the mask covers is continued, all else as it was.

        Raises JobFailed; WorkerUnfit when this was stopped meanwhile. Whoever stops taking them ends the painting.
        """
        run = _Run(painting)
        with self._known(run), self._process(run) as process:
            for index, seed in enumerate(painting.seeds):
                yield index, _remove(process, run, seed, done=index * STAGES)

    def cancel(self, job_id: str) -> None:
        with self._lock:
            for run in self._runs:
                if run.painting.job_id == job_id:
                    run.ended.set()

    def progress(self) -> dict[str, tuple[int, int]]:
        """The stages done and to be done, as if each job had one picture."""
        with self._lock:
            return {run.painting.job_id: (run.stages_done // len(run.painting.seeds), STAGES) for run in self._runs}

    def stop(self) -> None:
        """End all processes; removals that are not done raise WorkerUnfit."""
        with self._lock:
            self._stopped = True
            for run in self._runs:
                run.ended.set()
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    @contextmanager
    def _known(self, run: _Run) -> Iterator[None]:
        with self._lock:
            if self._stopped:
                raise WorkerUnfit("The removals have stopped.")
            self._runs.append(run)
        try:
            yield
        except Cancelled:
            if self._stopped:
                raise WorkerUnfit("The removals have stopped.") from None
            raise
        finally:
            with self._lock:
                self._runs.remove(run)

    @contextmanager
    def _process(self, run: _Run) -> Iterator[_Process]:
        while not self._free.acquire(timeout=POLL_SECONDS):
            run.check()
        try:
            process = self._warm(run) or _Process()
            try:
                yield process
            except BaseException:
                process.end()
                raise
            with self._lock:
                keep = not self._stopped
                if keep:
                    self._idle.append(process)
            if not keep:
                process.end()
        finally:
            self._free.release()

    def _warm(self, run: _Run) -> _Process | None:
        """One that has no work and answers."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            return None
        ready = False
        try:
            ready = process.is_ready(run)
        finally:
            if not ready:
                process.end()
        return process if ready else None


def _remove(process: _Process, run: _Run, seed: int, *, done: int) -> NDArray[np.uint8]:
    picture, hole = run.painting.picture, run.painting.mask > KEEP
    if hole.all():
        raise NothingToContinue(field="mask_image")
    result = picture.copy()
    if not hole.any():
        return result
    part = surroundings(hole)
    request = Request(picture=np.ascontiguousarray(picture[part]), hole=hole[part], seed=seed)
    for data in request_parts(request):
        process.write(data, run)
    while True:
        kind, answer = read_answer(lambda count: process.read(count, run))
        if kind is Answer.STAGE:
            run.stages_done = done + answer[0]
        elif kind is Answer.FILLED:
            result[part][hole[part]] = np.frombuffer(answer, np.uint8).reshape(-1, 3)
            return result
        else:
            raise OutOfMemory


class _Process:
    """A process of `worker.removing`. It ends by itself when this one does: then its lifeline closes."""

    def __init__(self) -> None:
        """Raises OutOfMemory where there is no room for another process."""
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "worker.removing", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[lifeline],
                env={**os.environ, **ONE_THREAD},
            )
        except OSError as error:
            os.close(self._lifeline)
            if error.errno in (errno.ENOMEM, errno.EAGAIN):
                raise OutOfMemory from error
            raise
        finally:
            os.close(lifeline)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both were asked for")
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)

    def is_ready(self, run: _Run) -> bool:
        """False where it is dead or just dying; raises JobFailed as soon as the run is to end."""
        try:
            self.write(PING, run)
            kind, _ = read_answer(lambda count: self.read(count, run))
        except (InternalError, OutOfMemory):
            return False
        return kind is Answer.READY

    def write(self, data: bytes, run: _Run) -> None:
        """Raises JobFailed as soon as the run is to end."""
        left = memoryview(data)
        while left:
            self._await(self._input, selectors.EVENT_WRITE, run)
            try:
                left = left[os.write(self._input, left[:CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._lost() from None

    def read(self, count: int, run: _Run) -> bytes:
        """Raises JobFailed as soon as the run is to end, and when the process is lost."""
        data = bytearray()
        while len(data) < count:
            self._await(self._output, selectors.EVENT_READ, run)
            piece = os.read(self._output, min(CHUNK_BYTES, count - len(data)))
            if not piece:
                raise self._lost()
            data += piece
        return bytes(data)

    def end(self) -> None:
        """Kill it, and leave nothing of it behind."""
        self._process.kill()
        self._process.wait()
        os.close(self._lifeline)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _await(self, pipe: int, event: int, run: _Run) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            while True:
                run.check()
                if selector.select(POLL_SECONDS):
                    return

    def _lost(self) -> InternalError | OutOfMemory:
        code = self._process.wait()
        log.error("removal_process_lost", exit_code=code)
        # What the system kills of its own accord, it kills for want of memory.
        return OutOfMemory() if code == -signal.SIGKILL else InternalError()
