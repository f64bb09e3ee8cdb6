"""Which models are in memory: loaded beside the engine, kept up to a byte budget, never taken from a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from storage.model_catalog import ModelCatalog, ModelEntry
from worker.errors import ModelUnavailable
from worker.loading import LoadedModel
from worker.model_files import BadModelFiles, count_weights, find_files

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2

Load = Callable[[ModelEntry], LoadedModel]


@dataclass(eq=False)
class _Place:
    """One model's place in memory: `holders` are the jobs that use it or wait for its loading."""

    model_id: str
    size_bytes: int
    loaded: Future[LoadedModel] = field(default_factory=Future)
    holders: int = 0
    used_at: float = 0.0


@dataclass(eq=False)
class _Waiter:
    """A job that wants a model; `blocked_since` when it lacks room for it."""

    entry: ModelEntry
    blocked_since: float | None = None


class ResidentModels:
    """The loaded models. Safe to use from many threads.

    A model that does not fit beside the ones in use waits for its turn: after `turn_seconds` no new job
    is let to the models that stand in its way, so that they fall idle and make room.
    """

    def __init__(
        self,
        catalog: ModelCatalog,
        load: Load,
        *,
        budget_bytes: int,
        bytes_per_weight: int,
        turn_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._load = load
        self._budget_bytes = budget_bytes
        self._bytes_per_weight = bytes_per_weight
        self._turn_seconds = turn_seconds
        self._changed = threading.Condition()
        self._places: dict[str, _Place] = {}
        self._waiters: list[_Waiter] = []
        self._loading_since: float | None = None

    @contextmanager
    def hold(self, model_id: str, check: Callable[[], None]) -> Iterator[LoadedModel]:
        """The model, loaded, and not evicted meanwhile.

        Blocks while it loads or waits for room; `check` is called again and again and may raise to
        leave. Raises ModelUnavailable.
        """
        entry = self._catalog.find(model_id)
        if entry is None:
            raise ModelUnavailable(f"There is no model {model_id} here any more.")
        place = self._enter(entry, check)
        try:
            yield _wait_for(place, check)
        finally:
            with self._changed:
                place.holders -= 1
                place.used_at = time.monotonic()
                self._changed.notify_all()

    def names(self) -> frozenset[str]:
        with self._changed:
            return frozenset(name for name, place in self._places.items() if place.loaded.done())

    def favoured(self) -> frozenset[str]:
        """The models whose jobs should come to this process next: those in memory or on their way there.

        While one waits for room it is that one alone: the others fall idle, and it does not come in for one job.
        """
        with self._changed:
            waiting = (waiter for waiter in self._waiters if waiter.blocked_since is not None)
            blocked = {waiter.entry.id for waiter in waiting if waiter.entry.id not in self._places}
            return frozenset(blocked or self._places)

    def loading_since(self) -> float | None:
        """time.monotonic() of the start of the load that is going on."""
        return self._loading_since

    def _enter(self, entry: ModelEntry, check: Callable[[], None]) -> _Place:
        waiter = _Waiter(entry)
        with self._changed:
            self._waiters.append(waiter)
            try:
                while True:
                    check()
                    place = self._try_enter(waiter)
                    if place is not None:
                        place.holders += 1
                        return place
                    self._changed.wait(POLL_SECONDS)
            finally:
                self._waiters.remove(waiter)
                self._changed.notify_all()

    def _try_enter(self, waiter: _Waiter) -> _Place | None:
        place = self._places.get(waiter.entry.id)
        if place is not None:
            return None if self._another_has_its_turn(waiter) else place
        if self._loading_since is not None:
            return None
        size_bytes = self._size_of(waiter.entry)
        if self._make_room(waiter.entry.id, size_bytes):
            return self._begin_load(waiter.entry, size_bytes)
        waiter.blocked_since = waiter.blocked_since or time.monotonic()
        return None

    def _another_has_its_turn(self, waiter: _Waiter) -> bool:
        longest = time.monotonic() - self._turn_seconds
        return any(
            other.blocked_since is not None
            and other.blocked_since < longest
            and other.entry.id not in self._places
            and other.entry.id != waiter.entry.id
            for other in self._waiters
        )

    def _size_of(self, entry: ModelEntry) -> int:
        try:
            return count_weights(find_files(entry.source)) * self._bytes_per_weight
        except BadModelFiles as reason:
            raise _unavailable(entry, reason) from reason

    def _make_room(self, model_id: str, size_bytes: int) -> bool:
        busy = [place for place in self._places.values() if place.holders]
        if busy and sum(place.size_bytes for place in busy) + size_bytes > self._budget_bytes:
            return False
        idle = sorted((place for place in self._places.values() if not place.holders), key=lambda p: p.used_at)
        while idle and sum(place.size_bytes for place in self._places.values()) + size_bytes > self._budget_bytes:
            evicted = self._places.pop(idle.pop(0).model_id)
            log.info("model_evicted", model=evicted.model_id, size_bytes=evicted.size_bytes)
        if size_bytes > self._budget_bytes:
            log.warning("model_above_budget", model=model_id, size_bytes=size_bytes, budget=self._budget_bytes)
        return True

    def _begin_load(self, entry: ModelEntry, size_bytes: int) -> _Place:
        place = _Place(entry.id, size_bytes)
        self._places[entry.id] = place
        self._loading_since = time.monotonic()
        log.info("model_loading", model=entry.id, size_bytes=size_bytes)
        threading.Thread(target=self._load_into, args=(place, entry), name="model-loader", daemon=True).start()
        return place

    def _load_into(self, place: _Place, entry: ModelEntry) -> None:
        failure: ModelUnavailable | None = None
        try:
            place.loaded.set_result(self._load(entry))
        except BadModelFiles as reason:
            failure = _unavailable(entry, reason)
            log.warning("model_unavailable", model=entry.id, source=str(entry.source), reason=str(reason))
        except Exception:  # whatever a library raises, the waiting jobs must hear of it
            failure = ModelUnavailable(f"The model {entry.id} cannot be loaded.")
            log.exception("model_load_failed", model=entry.id, source=str(entry.source))
        with self._changed:
            self._loading_since = None
            if failure is not None:
                del self._places[entry.id]
                place.loaded.set_exception(failure)
            self._changed.notify_all()


def _wait_for(place: _Place, check: Callable[[], None]) -> LoadedModel:
    while True:
        check()
        try:
            return place.loaded.result(timeout=POLL_SECONDS)
        except TimeoutError:
            continue


def _unavailable(entry: ModelEntry, reason: BadModelFiles) -> ModelUnavailable:
    return ModelUnavailable(f"The model {entry.id} cannot be loaded: {reason}.")
