"""Celery as the queue of tickets: which messages there are, and how they are sent."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError

from storage.errors import StorageUnavailable
from storage.settings import StorageSettings, storage_settings

TICKET_QUEUE = "inpaint"
DELIVERY_QUEUE = "webhooks"
TICKET_TASK = "inpaint"
DELIVERY_TASK = "webhooks.deliver"
# A message taken but not acknowledged (its worker died) is seen again after this time. A repeated
# ticket finds nothing to do and a repeated delivery nothing due, so it can be short.
VISIBILITY_TIMEOUT_SECONDS = 600
BROKER_ERRORS = (OperationalError, RedisError, OSError)


def celery_app(settings: StorageSettings) -> Celery:
    """The Celery application of both sides and of Flower. It keeps no results: the job store does."""
    app = Celery("inpaintd", broker=settings.celery_broker_url)
    timeout = settings.redis_timeout_seconds
    app.conf.update(
        task_queues=(Queue(TICKET_QUEUE), Queue(DELIVERY_QUEUE)),
        task_routes={TICKET_TASK: {"queue": TICKET_QUEUE}, DELIVERY_TASK: {"queue": DELIVERY_QUEUE}},
        task_default_queue=TICKET_QUEUE,
        task_ignore_result=True,
        task_track_started=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        task_publish_retry=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=timeout,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "health_check_interval": 10,
            # Publishing gives up at once; the worker's own reconnecting does not go by these.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
        },
    )
    return app


class JobQueue:
    """Sends messages. Raises StorageUnavailable while the broker is out of service."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send_ticket(self) -> None:
        """Say that there is a job to do. Which one is decided when a worker claims."""
        self._send(TICKET_TASK)

    def send_delivery(self, job_id: str) -> None:
        self._send(DELIVERY_TASK, job_id)

    def tickets(self) -> int:
        """Tickets that no worker has taken yet."""
        return self._untaken(TICKET_QUEUE)

    def deliveries(self) -> int:
        """Delivery messages that no dispatcher has taken yet."""
        return self._untaken(DELIVERY_QUEUE)

    def _untaken(self, queue: str) -> int:
        try:
            with self._app.connection_for_read() as connection:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
        except ChannelError:  # On Redis an empty queue does not exist.
            return 0
        except BROKER_ERRORS as error:
            raise StorageUnavailable("The broker does not answer.") from error

    def _send(self, name: str, *arguments: Any) -> None:
        try:
            self._app.send_task(name, args=arguments)
        except BROKER_ERRORS as error:
            raise StorageUnavailable("The broker does not answer.") from error


def flower_app() -> Celery:
    """What `celery --app storage.job_queue:flower_app` looks at."""
    return celery_app(storage_settings())
