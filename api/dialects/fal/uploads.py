"""Every way in which the clients upload a file; each ends as an object whose link is good as a picture's."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from api.addresses import upload_link
from api.auth import presented_key
from api.callers import own_base_url, raw_body
from api.dialects.fal import tokens
from api.dialects.fal.answers import answer
from api.dialects.fal.requests import admitted, base_of, json_body, known
from api.errors import BodyTooLarge, InvalidFields, PathNotFound, Problem
from api.inputs import content_type_of, upload_key
from api.keys import ApiKey
from api.parts import parts
from storage.redis_client import PREFIX, redis_outages

LIFECYCLE_HEADERS = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")
TOKEN_SECONDS = 24 * 3600
UPLOAD_SECONDS = 6 * 3600
MOST_PARTS = 1000
UNKNOWN_TYPE = "application/octet-stream"


def add_to(blueprint: Blueprint) -> None:
    routes = (
        ("POST", "/rest/storage/auth/token", give_token),
        ("POST", "/rest/storage/upload/initiate", initiate),
        ("POST", "/rest/storage/upload/initiate-multipart", initiate),
        ("PUT", "/cdn/put/<token>", put),
        ("PUT", "/cdn/put/<token>/<int:number>", put_part),
        ("POST", "/cdn/put/<token>/complete", complete),
        ("POST", "/cdn/files/upload", upload),
        ("POST", "/cdn/files/upload/multipart", begin_multipart),
        ("PUT", "/uploads/<upload_id>/multipart/<token>/<int:number>", put_part),
        ("POST", "/uploads/<upload_id>/multipart/<token>/complete", complete),
    )
    for method, rule, view in routes:
        blueprint.add_url_rule(rule, f"{method}_{rule}", view, methods=[method], strict_slashes=False)


def give_token() -> ResponseReturnValue:
    """A token for the CDN, and where that is."""
    api_key = admitted()
    token = tokens.grant(parts().redis, "cdn", {"key_id": api_key.key_id}, seconds=TOKEN_SECONDS)
    expires_at = datetime.fromtimestamp(parts().clock() + TOKEN_SECONDS, tz=UTC).isoformat()
    return answer({"token": token, "token_type": "Bearer", "base_url": base_of("cdn"), "expires_at": expires_at})


def upload() -> ResponseReturnValue:
    """A file in one piece."""
    _admitted_at_cdn()
    upload_id = str(uuid.uuid4())
    _store(upload_id, _file_body(), _lifetime_seconds())
    return answer({"access_url": upload_link(upload_id, own_base_url())})


def begin_multipart() -> ResponseReturnValue:
    """A file in parts, which go below its final address."""
    upload_id, token = _begin(_admitted_at_cdn())
    return answer({"access_url": upload_link(upload_id, own_base_url()), "uploadId": token})


def initiate() -> ResponseReturnValue:
    """A file that is put to an address of its own, by whoever knows it: whole, or in parts below it."""
    api_key = admitted()
    json_body()
    upload_id, token = _begin(api_key)
    return answer({"upload_url": f"{base_of('cdn')}/put/{token}", "file_url": upload_link(upload_id, own_base_url())})


def put(token: str) -> ResponseReturnValue:
    facts = _begun(token)
    _store(facts["upload_id"], _file_body(), facts["seconds"])
    return Response(status=200)


def put_part(token: str, number: int, upload_id: str | None = None) -> ResponseReturnValue:
    facts = _begun(token, upload_id)
    if not 1 <= number <= MOST_PARTS:
        raise InvalidFields([Problem("partNumber", "out_of_range", {"low": 1, "high": MOST_PARTS})])
    data = _file_body()
    _count_part(facts["upload_id"], number, len(data))
    key = _part_key(facts["upload_id"], number)
    _keep(key, UPLOAD_SECONDS)
    parts().images.put(key, data, UNKNOWN_TYPE)
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    return answer({"partNumber": number, "etag": etag}, headers={"ETag": etag})


def complete(token: str, upload_id: str | None = None) -> ResponseReturnValue:
    """Put the parts together, in the order of their numbers. Those that the client names must be there."""
    facts = _begun(token, upload_id)
    stored = sorted(_part_sizes(facts["upload_id"]))
    named = _named_parts(json_body())
    if not stored or not named <= set(stored):
        raise InvalidFields([Problem("parts", "missing")])
    keys = [_part_key(facts["upload_id"], number) for number in sorted(named or stored)]
    images = parts().images
    _store(facts["upload_id"], b"".join(images.get(key) for key in keys), facts["seconds"])
    every_key = [_part_key(facts["upload_id"], number) for number in stored]
    images.delete(every_key)
    for key in every_key:
        parts().jobs.forget("inputs", key)
    tokens.revoke(parts().redis, "upload", token)
    return answer({"access_url": upload_link(facts["upload_id"], own_base_url())})


def _admitted_at_cdn() -> ApiKey:
    """By the CDN's token or by the key itself."""
    presented = presented_key({}, request.headers)
    facts = tokens.redeem(parts().redis, "cdn", presented) if presented else None
    return tokens.key_behind(facts) if facts else known(parts().doorkeeper.admit(presented))


def _begin(api_key: ApiKey) -> tuple[str, str]:
    """A new upload: its id, and the token with which it is done."""
    upload_id = str(uuid.uuid4())
    facts = {"key_id": api_key.key_id, "upload_id": upload_id, "seconds": _lifetime_seconds()}
    return upload_id, tokens.grant(parts().redis, "upload", facts, seconds=UPLOAD_SECONDS)


def _begun(token: str, upload_id: str | None = None) -> dict[str, Any]:
    """What was said when the upload began. Raises PathNotFound."""
    facts = tokens.redeem(parts().redis, "upload", token)
    if facts is None or upload_id not in (None, facts["upload_id"]):
        raise PathNotFound
    tokens.key_behind(facts)
    return facts


def _file_body() -> bytes:
    """Raises werkzeug's RequestEntityTooLarge."""
    request.max_content_length = parts().settings.max_upload_bytes
    return raw_body()


def _store(upload_id: str, data: bytes, seconds: float) -> None:
    key = upload_key(upload_id)
    _keep(key, seconds)
    parts().images.put(key, data, content_type_of(data) or UNKNOWN_TYPE)


def _keep(key: str, seconds: float) -> None:
    parts().jobs.keep_until("inputs", key, parts().jobs.now() + seconds)


def _lifetime_seconds() -> float:
    """How long the client wants the file to be kept, up to what the operator grants."""
    for name in LIFECYCLE_HEADERS:
        try:
            seconds = float(json.loads(request.headers[name])["expiration_duration_seconds"])
        except (KeyError, ValueError, TypeError, RecursionError):
            continue
        if math.isfinite(seconds) and seconds > 0:
            return min(seconds, parts().settings.max_upload_ttl)
    return parts().storage_settings.input_ttl


def _named_parts(body: Mapping[str, Any]) -> set[int]:
    try:
        return {int(each["partNumber"]) for each in body.get("parts", [])}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFields([Problem("parts", "not_an_integer")]) from error


def _count_part(upload_id: str, number: int, size: int) -> None:
    """Raises BodyTooLarge when all parts together are more than one file may have."""
    limit = parts().settings.max_upload_bytes
    with redis_outages(), parts().redis.pipeline() as pipeline:
        pipeline.hset(_sizes_name(upload_id), str(number), size)
        pipeline.expire(_sizes_name(upload_id), UPLOAD_SECONDS)
        pipeline.hvals(_sizes_name(upload_id))
        *_, sizes = pipeline.execute()
    if sum(map(int, sizes)) > limit:
        with redis_outages():
            parts().redis.hdel(_sizes_name(upload_id), str(number))
        raise BodyTooLarge(limit=limit)


def _part_sizes(upload_id: str) -> dict[int, int]:
    with redis_outages():
        sizes = cast("dict[str, str]", parts().redis.hgetall(_sizes_name(upload_id)))
    return {int(number): int(size) for number, size in sizes.items()}


def _sizes_name(upload_id: str) -> str:
    return f"{PREFIX}fal:parts:{upload_id}"


def _part_key(upload_id: str, number: int) -> str:
    return f"{upload_key(upload_id)}.part-{number}"
