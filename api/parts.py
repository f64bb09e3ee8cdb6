"""What one process of the front end is composed of; `create_app` puts it together, the views take it from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import redis
from flask import current_app

from api.auth import Doorkeeper
from api.delivery_log import DeliveryLog
from api.settings import ApiSettings
from api.waiting import Arrivals
from storage.image_store import ImageStore
from storage.job_queue import JobQueue
from storage.job_store import JobStore
from storage.model_catalog import ModelCatalog
from storage.outbound import OutboundDoor
from storage.previews import PreviewStore
from storage.settings import StorageSettings
from storage.watchers import Watchers

EXTENSION = "inpaintd"


@dataclass(frozen=True, kw_only=True)
class Parts:
    settings: ApiSettings
    storage_settings: StorageSettings
    redis: redis.Redis
    jobs: JobStore
    queue: JobQueue
    images: ImageStore
    catalog: ModelCatalog
    door: OutboundDoor
    doorkeeper: Doorkeeper
    arrivals: Arrivals
    deliveries: DeliveryLog
    watchers: Watchers
    previews: PreviewStore
    clock: Callable[[], float]


def parts() -> Parts:
    """Those of the application that answers the current request."""
    return cast("Parts", current_app.extensions[EXTENSION])
