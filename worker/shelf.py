"""What jobs bring onto models, in memory: loaded once by the first who needs it, kept up to a byte budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from worker.errors import JobFailed, WorkerUnfit

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2

Check = Callable[[], None]


class _LoaderLeft(Exception):
    """The job that loaded it has ended."""


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


@dataclass(eq=False)
class _Place:
    loaded: Future[Any] = field(default_factory=Future)
    size_bytes: int = 0
    holders: int = 0
    outdated: bool = False
    """There is a newer version; this one leaves with its last holder."""


class Shelf:
    """By key, least recently used leave first, what is in use stays. Safe to use from many threads.

    What is in use may take more than the budget together: a job is never refused for it. Of a thing that comes in
    versions, only the last one asked for stays after its use.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Lock()
        self._places: OrderedDict[tuple[Hashable, Hashable], _Place] = OrderedDict()
        self.loads = 0

    @property
    def held_bytes(self) -> int:
        with self._changed:
            return sum(place.size_bytes for place in self._places.values())

    @contextmanager
    def hold(
        self, key: Hashable, load: Callable[[], Sized], check: Check, *, version: Hashable = None
    ) -> Iterator[Any]:
        """The thing, loaded in this thread or another, and kept meanwhile.

        Blocks while it loads elsewhere; `check` is called again and again then, and may raise to leave: so may
        `load`, and another of those who wait loads it. Raises what else `load` raises; the next one tries again.
        """
        while True:
            place, is_first = self._enter(key, version)
            try:
                if is_first:
                    self._fill((key, version), place, load)
                try:
                    thing = _wait_for(place.loaded, check)
                except _LoaderLeft:
                    continue
                yield thing
                return
            finally:
                with self._changed:
                    place.holders -= 1
                    self._make_room()

    def _enter(self, key: Hashable, version: Hashable) -> tuple[_Place, bool]:
        """The place of this version, and whether it is a new one. The others are outdated from now on."""
        with self._changed:
            for (other, _), outdated in self._places.items():
                outdated.outdated = outdated.outdated or other == key
            name = (key, version)
            is_first = name not in self._places
            place = self._places.setdefault(name, _Place())
            place.holders += 1
            place.outdated = False
            self._places.move_to_end(name)
            self._make_room()
            return place, is_first

    def _fill(self, name: tuple[Hashable, Hashable], place: _Place, load: Callable[[], Sized]) -> None:
        try:
            thing = load()
        except BaseException as error:
            with self._changed:
                del self._places[name]
            # Whatever it is, all who wait must hear of it; but that this job ends is no fault of what it loads.
            if isinstance(error, JobFailed | WorkerUnfit):
                place.loaded.set_exception(_LoaderLeft())
                raise
            place.loaded.set_exception(error)
            return
        with self._changed:
            self.loads += 1
            place.size_bytes = thing.size_bytes
            self._make_room()
        place.loaded.set_result(thing)

    def _make_room(self) -> None:
        over_bytes = sum(each.size_bytes for each in self._places.values()) - self._capacity_bytes
        for name, place in list(self._places.items()):
            if not place.holders and (place.outdated or over_bytes > 0):
                del self._places[name]
                over_bytes -= place.size_bytes
                log.info("addon_dropped", addon=name[0], size_bytes=place.size_bytes, outdated=place.outdated)


def _wait_for(loaded: Future[Any], check: Check) -> Any:
    while True:
        check()
        try:
            return loaded.result(timeout=POLL_SECONDS)
        except TimeoutError:
            if loaded.done():
                raise
