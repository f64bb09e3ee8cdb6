"""The current request, read: its fields, who sends it, and which job it is about."""

from __future__ import annotations

import re
from typing import Any

from flask import g, request

from api.addresses import UUID, base_url, loopback_urls
from api.auth import may_see, presented_key
from api.errors import JobNotFound
from api.fields import fold, read_body
from api.inputs import Intake
from api.keys import ApiKey
from api.parts import parts
from storage.job import InpaintJob

NUMBER = re.compile(r"\d{1,18}", re.ASCII)
JOB_ID = re.compile(UUID, re.ASCII)


def admitted() -> tuple[dict[str, Any], ApiKey]:
    """The body's fields (a GET's are in its query) and the key that came with them.

    Raises MalformedBody, BodyTooLarge, MissingApiKey, InvalidApiKey, StorageUnavailable.
    """
    body = read_body(raw_body(), request.content_type or "")
    if request.method == "GET":
        body = fold(request.args) | body
    api_key = parts().doorkeeper.admit(presented_key(body, request.headers))
    g.key_id = api_key.key_id
    return body, api_key


def raw_body() -> bytes:
    """Chunked bodies too. Raises werkzeug's RequestEntityTooLarge, which is said in the dialect's words."""
    if request.content_length is not None:
        return request.get_data()
    data = request.stream.read()
    # werkzeug 3.1 ends a chunked body silently at the limit; an attempt to read on raises.
    request.stream.read(1)
    return data


def find_job(name: object, api_key: ApiKey) -> InpaintJob:
    """A job by its number or its id, if this key may see it. Raises JobNotFound."""
    text = str(name).strip()
    job = None
    if NUMBER.fullmatch(text):
        job = parts().jobs.by_number(int(text))
    elif JOB_ID.fullmatch(text):
        job = parts().jobs.get(text)
    if job is None or not may_see(api_key, job):
        raise JobNotFound
    return job


def own_base_url() -> str:
    """What our links start with, for this caller."""
    return base_url(request, parts().settings.public_url)


def intake() -> Intake:
    """For the pictures of the current submission."""
    all_parts = parts()
    base = own_base_url()
    return Intake(
        jobs=all_parts.jobs,
        images=all_parts.images,
        door=all_parts.door,
        base_url=base,
        own_urls=(base, request.root_url, *loopback_urls(request)),
        own_hosts=all_parts.settings.own_hosts,
        input_ttl_seconds=all_parts.storage_settings.input_ttl,
    )
