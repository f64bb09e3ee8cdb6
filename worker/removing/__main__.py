"""A process that does removals, one after the other, for the worker that started it; it ends with that worker."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from typing import BinaryIO

import cv2

from worker.removing.fill import fill
from worker.removing.wire import Answer, Request, read_request, write_answer

MEMORY_LIMIT_BYTES = 4 * 2**30


def main(lifeline: int, requests: BinaryIO, answers: BinaryIO) -> None:
    """`lifeline`: a pipe on which nothing ever comes; its end is the end of the worker, and of this process."""
    # A stop is the worker's to hear: what it still lets run goes on.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _limit_memory()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    cv2.setNumThreads(1)
    while (request := read_request(requests)) is not None:
        if request.hole.size:
            _remove(request, answers)
        else:
            write_answer(answers, Answer.READY)


def _limit_memory() -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    bytes_at_most = MEMORY_LIMIT_BYTES if hard_limit == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard_limit)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_at_most, hard_limit))


def _remove(request: Request, answers: BinaryIO) -> None:
    stage = 0

    def tell(now: int) -> None:
        nonlocal stage
        if now != stage:
            stage = now
            write_answer(answers, Answer.STAGE, bytes([now]))

    try:
        filled = fill(request.picture, request.hole, seed=request.seed, tell=tell)
    except MemoryError:
        write_answer(answers, Answer.OUT_OF_MEMORY)
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        write_answer(answers, Answer.OUT_OF_MEMORY)
    else:
        write_answer(answers, Answer.FILLED, filled[request.hole].tobytes())


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
