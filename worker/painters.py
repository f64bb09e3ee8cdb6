"""All that paints, behind one door: the engine for models with weights, processes of their own for those without."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.model_catalog import ModelCatalog
from worker.engine import EnginePulse
from worker.removals import Removals
from worker.sample import Painting
from worker.workshop import Painter

Outcome = TypeVar("Outcome")


class StartedPainter(Painter, Protocol):
    """A painter that is started and stopped."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Painters:
    """An engine, and removals beside it: they take nothing of its turn, and its pulse is its own."""

    def __init__(self, engine: StartedPainter, removals: Removals, catalog: ModelCatalog) -> None:
        self._engine = engine
        self._removals = removals
        self._weightless = frozenset(entry.id for entry in catalog.entries if not entry.has_weights)

    def start(self) -> None:
        self._engine.start()

    def stop(self) -> None:
        self._removals.stop()
        self._engine.stop()

    def paint(self, painting: Painting) -> list[NDArray[np.uint8]]:
        pictures = dict(self.paint_each(painting))
        return [pictures[index] for index in range(len(painting.seeds))]

    def paint_each(self, painting: Painting) -> Generator[tuple[int, NDArray[np.uint8]]]:
        painter = self._removals if painting.model in self._weightless else self._engine
        return painter.paint_each(painting)

    def aside(self, action: Callable[[], Outcome]) -> Outcome:
        """In the engine's thread."""
        return self._engine.aside(action)

    def cancel(self, job_id: str) -> None:
        self._removals.cancel(job_id)
        self._engine.cancel(job_id)

    def progress(self) -> dict[str, tuple[int, int]]:
        return {**self._engine.progress(), **self._removals.progress()}

    def pulse(self) -> EnginePulse:
        return self._engine.pulse()

    def resident_models(self) -> frozenset[str]:
        return self._engine.resident_models() | self._weightless

    def favoured_models(self) -> frozenset[str]:
        return self._engine.favoured_models() | self._weightless
