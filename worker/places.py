"""How many jobs of models without weights a worker holds: as many as it works on, so that the others find threads."""

from __future__ import annotations

import threading

from storage.model_catalog import ModelCatalog
from worker.settings import WorkerSettings


class Places:
    """For the jobs of these models. Whoever claims takes a place first, and leaves it when it is not needed."""

    def __init__(self, models: frozenset[str], count: int) -> None:
        self.models = models
        self._free = threading.BoundedSemaphore(count)

    def take(self) -> bool:
        """False: all are taken. Does not block."""
        return self._free.acquire(blocking=False)

    def leave(self) -> None:
        self._free.release()


def places_for(catalog: ModelCatalog, settings: WorkerSettings) -> Places:
    """As many as there are processes for them; but one thread is for the models with weights, where there are two."""
    models = frozenset(entry.id for entry in catalog.entries if not entry.has_weights)
    return Places(models, max(1, min(settings.removal_processes, settings.worker_threads - 1)))
