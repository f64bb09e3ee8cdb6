"""Who is calling: the key in the body or the headers, and what its holder may see."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from werkzeug.datastructures import Headers

from api.errors import InvalidApiKey, MissingApiKey
from api.fields import is_blank
from api.keys import ApiKey, KeyScope, KeyStore, plaintext_of
from storage.job import InpaintJob

MAX_CACHED_KEYS = 1024
MAX_KEY_CHARS = 512
SCHEMES = ("bearer", "key")


def presented_key(body: Mapping[str, Any], headers: Mapping[str, str] | Headers) -> str | None:
    """The plaintext key of a request: field `key`, else the header `Authorization`, else the header `key`.

    `Authorization` is `Bearer KEY`, `Key KEY`, or either with `ID:SECRET`.
    """
    in_body = body.get("key")
    if not is_blank(in_body):
        return str(in_body).strip()
    scheme, _, value = headers.get("Authorization", "").strip().partition(" ")
    if scheme.casefold() in SCHEMES and not is_blank(value):
        key_id, colon, secret = value.strip().partition(":")
        return plaintext_of(key_id, secret) if colon else value.strip()
    return headers.get("key", "").strip() or None


def may_see(api_key: ApiKey, job: InpaintJob) -> bool:
    """A key sees its own jobs, an admin's all."""
    return api_key.scope is KeyScope.ADMIN or job.key_id == api_key.key_id


class Doorkeeper:
    """Checks keys, and takes a good one as good for a few seconds. Keeps digests, never keys."""

    def __init__(self, keys: KeyStore, *, cache_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[ApiKey, float]] = {}

    def admit(self, plaintext: str | None) -> ApiKey:
        """The live key. Raises MissingApiKey, InvalidApiKey, StorageUnavailable."""
        if plaintext is None:
            raise MissingApiKey
        if len(plaintext) > MAX_KEY_CHARS:
            raise InvalidApiKey
        digest = hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            api_key, good_until = self._known.get(digest, (None, 0.0))
        if api_key is not None and self._clock() < good_until:
            return api_key
        api_key = self._keys.authenticate(plaintext)
        if api_key is None:
            with self._lock:
                self._known.pop(digest, None)
            raise InvalidApiKey
        with self._lock:
            if len(self._known) >= MAX_CACHED_KEYS:
                self._known.clear()
            self._known[digest] = (api_key, self._clock() + self._cache_seconds)
        return api_key
