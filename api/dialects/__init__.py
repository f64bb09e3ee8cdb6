"""The dialects: what clients speak. Each is a module with the names below; shared code asks for nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from flask import Blueprint

from api.errors import Refused, WireError
from api.webhook_message import WebhookMessage
from storage.job import InpaintJob

DIALECTS = ("modelslab", "stable_diffusion_v3", "fal", "stability")


class Dialect(Protocol):
    """`PATH_PREFIXES` say which paths are its own, so that their refusals are in its words."""

    NAME: str
    PATH_PREFIXES: Sequence[str]
    blueprint: Blueprint

    def render_error(self, error: Refused, /) -> WireError: ...

    def render_webhook(self, job: InpaintJob, /) -> WebhookMessage: ...


def all_dialects() -> list[Dialect]:
    return [cast("Dialect", importlib.import_module(f"{__name__}.{name}")) for name in DIALECTS]
