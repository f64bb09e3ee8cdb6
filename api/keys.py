"""API keys: who may call, what for, and what signs their webhooks. Only hashes of keys are stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, cast

import redis
from redis.client import Pipeline

from storage.redis_client import PREFIX, redis_outages

SECRET_BYTES = 32
KEY_ID_BYTES = 6
WEBHOOK_SECRET_BYTES = 32
WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix that Standard Webhooks prescribes, not a secret
DEFAULT_GRACE_SECONDS = 24 * 3600.0

KEY_PREFIX = "ip_"
_KEY_FORMAT = re.compile(r"ip_(?P<key_id>[0-9a-f]{12})_(?P<secret>[0-9a-f]{64})", re.ASCII)
_NO_HASH = hashlib.sha256(b"").hexdigest()

Changed = TypeVar("Changed")


class KeyScope(StrEnum):
    """A user sees the jobs of its own key; an admin sees all."""

    USER = "user"
    ADMIN = "admin"


class UnknownKey(Exception):
    """No live key has this id."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known of a key once its secret has been shown. Times are seconds since the epoch.

    `webhook_secret` lies in Redis as it is, not as a hash: every webhook has to be signed with it. It opens
    nothing here; who reads it can forge webhooks to that key's receivers, so it is left out of `repr`.
    """

    key_id: str
    name: str
    scope: KeyScope
    webhook_secret: str = field(repr=False)
    created_at: float
    revoked_at: float | None = None
    expires_at: float | None = None
    rotated_at: float | None = None

    def is_live(self, *, at: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


Change = Callable[[ApiKey, Mapping[str, str], Pipeline], Changed]


class KeyStore:
    """The keys in Redis, one hash each. Every method raises StorageUnavailable when Redis does not answer.

    `redis` must decode its responses. Source of the format: 256 random bits need no slow hash, so a single
    SHA-256 is stored, and the id inside the key makes the look-up one round trip.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = PREFIX, clock: Callable[[], float] = time.time) -> None:
        self._redis = client
        self._prefix = prefix
        self._clock = clock

    def create(
        self, *, name: str, scope: KeyScope = KeyScope.USER, expires_at: float | None = None
    ) -> tuple[ApiKey, str]:
        """The new key and its plaintext, which can be read here and never again."""
        key_id = secrets.token_hex(KEY_ID_BYTES)
        secret = secrets.token_hex(SECRET_BYTES)
        signing_key = secrets.token_bytes(WEBHOOK_SECRET_BYTES)
        api_key = ApiKey(
            key_id=key_id,
            name=name,
            scope=scope,
            webhook_secret=WEBHOOK_SECRET_PREFIX + b64encode(signing_key).decode(),
            created_at=self._clock(),
            expires_at=expires_at,
        )
        with redis_outages(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._record(key_id), mapping=_to_record(api_key, secret))
            pipe.zadd(self._index, {key_id: api_key.created_at})
            pipe.execute()
        return api_key, _plaintext(key_id, secret)

    def authenticate(self, plaintext: str) -> ApiKey | None:
        """The live key this plaintext belongs to, or None. One round trip, none for what is no key at all."""
        parts = _KEY_FORMAT.fullmatch(plaintext)
        record = self._read(parts["key_id"]) if parts else {}
        presented = _hash(parts["secret"] if parts else plaintext)
        now = self._clock()
        # An unknown id is compared too, so that the time taken tells nothing about which ids exist.
        current = hmac.compare_digest(record.get("secret_hash", _NO_HASH), presented)
        previous = hmac.compare_digest(record.get("previous_hash", _NO_HASH), presented)
        previous_is_live = now < float(record.get("previous_until", 0))
        if not record or not (current or (previous and previous_is_live)):
            return None
        api_key = _from_record(record)
        return api_key if api_key.is_live(at=now) else None

    def get(self, key_id: str) -> ApiKey | None:
        record = self._read(key_id)
        return _from_record(record) if record else None

    def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with redis_outages():
            key_ids = cast("list[str]", self._redis.zrange(self._index, 0, -1))
            with self._redis.pipeline(transaction=False) as pipe:
                for key_id in key_ids:
                    pipe.hgetall(self._record(key_id))
                records = cast("list[dict[str, str]]", pipe.execute())
        return [_from_record(record) for record in records if record]

    def revoke(self, key_id: str) -> ApiKey:
        """Ends the key at once, both of its secrets too. Again: no change. Raises UnknownKey."""

        def change(api_key: ApiKey, record: Mapping[str, str], pipe: Pipeline) -> ApiKey:
            if api_key.revoked_at is not None:
                return api_key
            now = self._clock()
            pipe.hset(self._record(key_id), "revoked_at", repr(now))
            return _from_record({**record, "revoked_at": repr(now)})

        return self._change(key_id, change)

    def rotate(self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> str:
        """A new plaintext for the same key; the one before it stays good for the grace.

        At most two secrets are live: rotating again within the grace ends the oldest. The webhook secret
        stays. Raises UnknownKey, for revoked and expired keys too.
        """
        secret = secrets.token_hex(SECRET_BYTES)

        def change(api_key: ApiKey, record: Mapping[str, str], pipe: Pipeline) -> str:
            now = self._clock()
            if not api_key.is_live(at=now):
                raise UnknownKey(key_id)
            rotated: dict[Any, Any] = {
                "secret_hash": _hash(secret),
                "previous_hash": record["secret_hash"],
                "previous_until": repr(now + grace_seconds),
                "rotated_at": repr(now),
            }
            pipe.hset(self._record(key_id), mapping=rotated)
            return _plaintext(key_id, secret)

        return self._change(key_id, change)

    def _change(self, key_id: str, change: Change[Changed]) -> Changed:
        """Reads, changes and writes one record; starts again when another process wrote it meanwhile."""
        name = self._record(key_id)

        def attempt(pipe: Pipeline) -> Changed:
            record = cast("dict[str, str]", pipe.hgetall(name))
            if not record:
                raise UnknownKey(key_id)
            pipe.multi()
            return change(_from_record(record), record, pipe)

        # redis-py's annotation forgets the value that value_from_callable hands through.
        hands_through = cast("Callable[[Pipeline], None]", attempt)
        with redis_outages():
            return cast("Changed", self._redis.transaction(hands_through, name, value_from_callable=True))

    def _read(self, key_id: str) -> dict[str, str]:
        with redis_outages():
            return cast("dict[str, str]", self._redis.hgetall(self._record(key_id)))

    def _record(self, key_id: str) -> str:
        return f"{self._prefix}key:{key_id}"

    @property
    def _index(self) -> str:
        return f"{self._prefix}keys"


def plaintext_of(key_id: str, secret: str) -> str:
    """The plaintext of a key that came as its public id and its secret, which may be the plaintext itself.

    One whose id is another's is no key.
    """
    whole = _KEY_FORMAT.fullmatch(secret)
    key_id = key_id.removeprefix(KEY_PREFIX)
    if whole is None:
        return _plaintext(key_id, secret)
    return secret if whole["key_id"] == key_id else ""


def _plaintext(key_id: str, secret: str) -> str:
    return f"{KEY_PREFIX}{key_id}_{secret}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _to_record(api_key: ApiKey, secret: str) -> dict[Any, Any]:
    record = {
        "key_id": api_key.key_id,
        "name": api_key.name,
        "scope": api_key.scope.value,
        "webhook_secret": api_key.webhook_secret,
        "created_at": repr(api_key.created_at),
        "secret_hash": _hash(secret),
    }
    return record if api_key.expires_at is None else {**record, "expires_at": repr(api_key.expires_at)}


def _from_record(record: Mapping[str, str]) -> ApiKey:
    def moment(name: str) -> float | None:
        return float(record[name]) if name in record else None

    return ApiKey(
        key_id=record["key_id"],
        name=record["name"],
        scope=KeyScope(record["scope"]),
        webhook_secret=record["webhook_secret"],
        created_at=float(record["created_at"]),
        revoked_at=moment("revoked_at"),
        expires_at=moment("expires_at"),
        rotated_at=moment("rotated_at"),
    )
