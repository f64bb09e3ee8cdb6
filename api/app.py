"""The front end put together: every part made once, every dialect's routes, every error in the right words."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
import structlog
from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import MethodNotAllowed as WrongMethod
from werkzeug.exceptions import NotFound as NoSuchPath

from api import health, images, jobs, openapi
from api.addresses import ForwardedByTrusted
from api.auth import Doorkeeper
from api.deliveries import deliveries_blueprint
from api.delivery_log import DeliveryLog
from api.dialects import Dialect, all_dialects
from api.dialects.fal.gateway import Gateway
from api.errors import (
    BodyTooLarge,
    MalformedBody,
    MethodNotAllowed,
    OutOfService,
    PathNotFound,
    Refused,
    Unexpected,
    WireError,
)
from api.keys import KeyStore
from api.parts import EXTENSION, Parts
from api.settings import ApiSettings
from api.waiting import Arrivals
from storage.errors import StorageUnavailable
from storage.image_store import open_image_store
from storage.job_queue import JobQueue, celery_app
from storage.job_store import JobStore, open_redis
from storage.logs import configure_logging
from storage.model_catalog import load_catalog
from storage.outbound import OutboundDoor
from storage.previews import PreviewStore
from storage.settings import StorageSettings
from storage.watchers import Watchers

OUT_OF_SERVICE_RETRY_SECONDS = 5
MILLISECONDS = 1000

log = structlog.get_logger(__name__)


def create_app(settings: ApiSettings | None = None, storage_settings: StorageSettings | None = None) -> Flask:
    """The WSGI application, composed from the settings: the environment's where none are given."""
    settings = settings or ApiSettings()
    if storage_settings is None:
        storage_settings = StorageSettings()
        configure_logging(storage_settings)
    dialects = all_dialects()
    app = Flask("api", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider, which this is
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions[EXTENSION] = make_parts(settings, storage_settings)
    for blueprint in (
        *(dialect.blueprint for dialect in dialects),
        images.blueprint,
        jobs.blueprint,
        deliveries_blueprint(),
        health.blueprint,
        openapi.blueprint,
    ):
        app.register_blueprint(blueprint)
    _add_errors(app, dialects)
    app.before_request(_start_watch)
    app.after_request(_finish)
    segments = {rule.rule.split("/")[1] for rule in app.url_map.iter_rules()}
    app.wsgi_app = Gateway(app.wsgi_app, settings.fal_prefixes, own_segments=segments)  # type: ignore[method-assign]  # Flask's documented way
    app.wsgi_app = ForwardedByTrusted(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]  # Flask's documented way
    return app


def make_parts(
    settings: ApiSettings, storage_settings: StorageSettings, *, clock: Callable[[], float] = time.time
) -> Parts:
    client = open_redis(storage_settings)
    job_store = JobStore(client, storage_settings)
    return Parts(
        settings=settings,
        storage_settings=storage_settings,
        redis=client,
        jobs=job_store,
        queue=JobQueue(celery_app(storage_settings)),
        images=open_image_store(storage_settings),
        catalog=load_catalog(storage_settings),
        door=OutboundDoor(allowed_private_networks=storage_settings.allowed_private_networks),
        doorkeeper=Doorkeeper(KeyStore(client), cache_seconds=settings.auth_cache_seconds),
        arrivals=Arrivals(client, job_store, max_waiting=settings.max_waiting_clients),
        deliveries=DeliveryLog(client),
        watchers=Watchers(client),
        previews=PreviewStore(client),
        clock=clock,
    )


def _add_errors(app: Flask, dialects: list[Dialect]) -> None:
    """Whatever goes wrong is a refusal, said in the words of the dialect whose path it is."""

    def render(refusal: Refused) -> WireError:
        for dialect in dialects:
            if request.path.startswith(tuple(dialect.PATH_PREFIXES)):
                return dialect.render_error(refusal)
        return jobs.render_error(refusal)

    def answer(error: Exception) -> Response:
        wire = render(_as_refusal(error))
        response = jsonify(wire.body)
        response.status_code = wire.status
        response.headers.update(wire.headers)
        return response

    app.register_error_handler(Exception, answer)


def _as_refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return _of_werkzeug(error)
    if isinstance(error, StorageUnavailable | redis.ConnectionError | redis.TimeoutError):
        log.warning("out_of_service", reason=type(error.__cause__ or error).__name__)
        return OutOfService(retry_after_seconds=OUT_OF_SERVICE_RETRY_SECONDS)
    log.error("unexpected_error", exc_info=error)
    return Unexpected()


def _of_werkzeug(error: HTTPException) -> Refused:
    match error:
        case RequestEntityTooLarge():
            return BodyTooLarge(limit=request.max_content_length)
        case NoSuchPath():
            return PathNotFound()
        case WrongMethod():
            return MethodNotAllowed()
        case _:
            return MalformedBody()


def _start_watch() -> None:
    g.started = time.monotonic()


def _finish(response: Response) -> Response:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    response.headers.setdefault("Cache-Control", "no-store")
    # The rule, not the path: whoever has a picture's path may have the picture.
    log.info(
        "answered",
        method=request.method,
        rule=request.url_rule.rule if request.url_rule else None,
        status=response.status_code,
        milliseconds=round((time.monotonic() - g.get("started", time.monotonic())) * MILLISECONDS, 1),
        key_id=g.get("key_id"),
    )
    return response
