"""Short work on the device that is no painting: the engine's thread does it, one piece between two ticks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


class Errands:
    """What waits for the engine's thread, what it is doing included."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, action: Callable[[], Outcome]) -> Future[Outcome]:
        """Under the condition."""
        outcome: Future[Outcome] = Future()
        self._waiting.append((action, outcome))
        self._changed.notify_all()
        return outcome

    def do_next(self, judge: Callable[[Exception], Exception]) -> None:
        """In the engine's thread. What the action raises is its asker's, as `judge` sees it."""
        if not self._waiting:
            return
        action, outcome = self._waiting[0]
        try:
            outcome.set_result(action())
        except Exception as error:  # noqa: BLE001  # judged: whatever it is, only who asked may fail
            outcome.set_exception(judge(error))
        with self._changed:
            self._waiting.popleft()

    def end(self, reason: Exception) -> None:
        """Nothing more is done. Under the condition."""
        for _, outcome in self._waiting:
            if not outcome.done():
                outcome.set_exception(reason)
        self._waiting.clear()
