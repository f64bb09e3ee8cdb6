"""A request of this dialect, read: who sends it, which application and which job it is about."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

from flask import g, request

from api.addresses import UUID
from api.auth import may_see, presented_key
from api.callers import own_base_url, raw_body
from api.dialects.fal.answers import name_request
from api.dialects.fal.gateway import HOST_MARK
from api.dialects.fal.input import Circumstances
from api.dialects.fal.output import APP
from api.dialects.fal.words import UnknownApp
from api.errors import JobNotFound, MalformedBody
from api.keys import ApiKey
from api.parts import parts
from storage.job import MAX_SEED, InpaintJob, Priority

REQUEST_ID = re.compile(UUID, re.ASCII)
PRIORITY_HEADER = "X-Fal-Queue-Priority"
# The newer name wins; clients send the older one.
START_TIMEOUT_HEADERS = ("X-Fal-Request-Start-Timeout", "X-Fal-Request-Timeout")
LONGEST_START_SECONDS = 30 * 24 * 3600.0
SHOWN_NAME_CHARS = 100


def admitted() -> ApiKey:
    """The key of the request. Raises MissingApiKey, InvalidApiKey, StorageUnavailable."""
    return known(parts().doorkeeper.admit(presented_key({}, request.headers)))


def known(api_key: ApiKey) -> ApiKey:
    g.key_id = api_key.key_id
    return api_key


def check_app(owner: str, alias: str) -> None:
    """Raises UnknownApp."""
    name = f"{owner}/{alias}"
    if name != APP:
        raise UnknownApp(name=name[:SHOWN_NAME_CHARS])


def visible(job: InpaintJob | None, api_key: ApiKey) -> InpaintJob:
    """The job, if it is of this dialect and this key may see it. Raises JobNotFound."""
    if job is None or job.dialect != "fal" or not may_see(api_key, job):
        raise JobNotFound
    return job


def job_id_of(request_id: str) -> str:
    """Raises JobNotFound."""
    if not REQUEST_ID.fullmatch(request_id):
        raise JobNotFound
    name_request(request_id)
    return request_id


def find_job(request_id: str, api_key: ApiKey) -> InpaintJob:
    return visible(parts().jobs.get(job_id_of(request_id)), api_key)


def json_body() -> Mapping[str, Any]:
    """Of a request that is no model's input. Raises MalformedBody."""
    raw = raw_body()
    try:
        body = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError) as error:
        raise MalformedBody from error
    if not isinstance(body, dict):
        raise MalformedBody
    return body


def base_of(prefix: str) -> str:
    """What URLs of one of fal's hosts start with, for this caller."""
    is_named_by_host = parts().settings.public_url is None and request.environ.get(HOST_MARK) == prefix
    return own_base_url() if is_named_by_host else f"{own_base_url()}/{prefix}"


def circumstances(api_key: ApiKey, webhook_url: str | None = None) -> Circumstances:
    all_parts = parts()
    now = all_parts.clock()
    seconds = _start_seconds()
    return Circumstances(
        key_id=api_key.key_id,
        base_url=own_base_url(),
        catalog=all_parts.catalog,
        max_steps=all_parts.settings.fal_max_steps,
        max_prompt_chars=all_parts.settings.max_prompt_chars,
        now=now,
        random_seed=lambda: secrets.randbelow(MAX_SEED + 1),
        priority=Priority.LOW if request.headers.get(PRIORITY_HEADER, "").casefold() == "low" else Priority.NORMAL,
        webhook_url=webhook_url,
        ignores_missing_checker=all_parts.settings.without_safety_checker == "ignore",
        start_by=None if seconds is None else now + seconds,
    )


def _start_seconds() -> float | None:
    """How long the client gives the job to start; a header that says nothing sensible counts as none."""
    for name in START_TIMEOUT_HEADERS:
        try:
            seconds = float(request.headers[name])
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds > 0:
            return min(seconds, LONGEST_START_SECONDS)
    return None
