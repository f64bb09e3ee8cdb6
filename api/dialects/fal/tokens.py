"""Short-lived tokens that stand for a key: for one application, for uploads, for one upload."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import redis
from flask import Blueprint
from flask.typing import ResponseReturnValue

from api.dialects.fal.answers import answer
from api.dialects.fal.requests import admitted, json_body, known
from api.errors import InvalidApiKey, InvalidFields, Problem
from api.keys import ApiKey, KeyStore
from api.parts import parts
from storage.redis_client import PREFIX, redis_outages

TOKEN_BYTES = 32
DEFAULT_SECONDS, LONGEST_SECONDS = 120, 24 * 3600

Purpose = Literal["app", "cdn", "upload"]


def add_to(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/rest/tokens", "tokens", create, methods=["POST"], strict_slashes=False)


def create() -> ResponseReturnValue:
    """A token for browsers, which should not have the key. The answer is a JSON string."""
    api_key = admitted()
    body = json_body()
    apps = body.get("allowed_apps", [])
    if not isinstance(apps, list) or not all(isinstance(app, str) for app in apps):
        raise InvalidFields([Problem("allowed_apps", "not_text")])
    try:
        seconds = int(body.get("token_expiration") or DEFAULT_SECONDS)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidFields([Problem("token_expiration", "not_an_integer")]) from error
    seconds = max(1, min(seconds, LONGEST_SECONDS))
    return answer(grant(parts().redis, "app", {"key_id": api_key.key_id, "apps": apps}, seconds=seconds))


def admitted_by(token: str, *, app: str) -> ApiKey:
    """The key behind a token for this application. Raises InvalidApiKey."""
    facts = redeem(parts().redis, "app", token)
    # Endpoints are named by their alias or whole.
    if facts is None or not any(each.split("/")[-1] == app for each in facts["apps"]):
        raise InvalidApiKey
    return key_behind(facts)


def key_behind(facts: Mapping[str, Any]) -> ApiKey:
    """A token is worth what its key is worth at the moment. Raises InvalidApiKey."""
    api_key = KeyStore(parts().redis).get(facts["key_id"])
    if api_key is None or not api_key.is_live(at=parts().clock()):
        raise InvalidApiKey
    return known(api_key)


def grant(client: redis.Redis, purpose: Purpose, facts: Mapping[str, Any], *, seconds: int) -> str:
    """A new token for these facts. Only its digest is stored."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with redis_outages():
        client.set(_name(purpose, token), json.dumps(dict(facts)), ex=seconds)
    return token


def redeem(client: redis.Redis, purpose: Purpose, token: str) -> dict[str, Any] | None:
    """The facts of a token that is still good."""
    with redis_outages():
        stored = client.get(_name(purpose, token))
    if not isinstance(stored, str):
        return None
    facts: dict[str, Any] = json.loads(stored)
    return facts


def revoke(client: redis.Redis, purpose: Purpose, token: str) -> None:
    with redis_outages():
        client.delete(_name(purpose, token))


def _name(purpose: Purpose, token: str) -> str:
    digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{PREFIX}fal:token:{purpose}:{digest}"
