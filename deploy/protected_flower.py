"""Flower with a password before every route: its own check leaves out /metrics, /healthcheck and static files."""

from __future__ import annotations

import atexit
import hmac
import signal
import sys
from base64 import b64decode
from types import FrameType
from typing import Any

from flower.app import Flower  # type: ignore[import-untyped]  # flower ships no types
from flower.options import default_options  # type: ignore[import-untyped]  # the same
from flower.urls import settings as flower_urls_settings  # type: ignore[import-untyped]  # the same
from pydantic import Field, SecretStr
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.web import RequestHandler

from storage.job_queue import celery_app
from storage.settings import EnvironmentSettings, StorageSettings

TASK_COLUMNS = "name,uuid,state,result,received,runtime,worker"
MAX_TASKS = 10_000


class FlowerSettings(EnvironmentSettings):
    flower_address: str = Field(default="127.0.0.1", description="The address that Flower listens at.")
    flower_port: int = Field(default=5555, description="Flower's port.")
    flower_user: str = Field(default="inpaintd", description="Who may look.")
    flower_password: SecretStr = Field(description="With which password; deploy/up makes one.")

    @property
    def credentials(self) -> str:
        return f"{self.flower_user}:{self.flower_password.get_secret_value()}"


class Denied(RequestHandler):
    """401, whatever was asked for and by whichever method."""

    def check_xsrf_cookie(self) -> None:
        """Not asked for: the answer is 401 in any case."""

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="inpaintd flower", charset="UTF-8"')
        self.finish("A user and a password are needed.\n")


class ProtectedFlower(Flower):  # type: ignore[misc]  # flower ships no types
    """Decides before any route is chosen, so that a route added by a later Flower is not open either."""

    def __init__(self, *, credentials: str, **options: Any) -> None:
        super().__init__(**options)
        self._credentials = credentials.encode()

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> HTTPMessageDelegate:
        if not self._may_enter(request.headers.get("Authorization", "")):
            denied: HTTPMessageDelegate = self.get_handler_delegate(request, Denied)
            return denied
        found: HTTPMessageDelegate = super().find_handler(request, **options)
        return found

    def _may_enter(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._credentials)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    settings = FlowerSettings()
    default_options.address = settings.flower_address
    default_options.port = settings.flower_port
    default_options.basic_auth = [settings.credentials]
    default_options.tasks_columns = TASK_COLUMNS
    default_options.max_tasks = MAX_TASKS
    flower = ProtectedFlower(
        credentials=settings.credentials,
        capp=celery_app(StorageSettings()),
        options=default_options,
        **flower_urls_settings,
    )
    atexit.register(flower.stop)
    signal.signal(signal.SIGTERM, _leave)
    flower.start_http_server()
    flower.start()


if __name__ == "__main__":
    main()
