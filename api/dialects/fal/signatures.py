"""The Ed25519 keys that sign fal's webhooks: one for all replicas, published before it is used, rotated by hand."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr

from storage.job import InpaintJob
from storage.redis_client import PREFIX, redis_outages

STORED = f"{PREFIX}fal:webhook-keys"
SEED_BYTES = 32
KEY_ID_CHARS = 16
# Receivers keep the published keys for a day.
PUBLISHED_BEFORE_SECONDS = 24 * 3600.0
KEPT_AFTER_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class SigningKey:
    """`seed`: the private key, base64. It signs from `signs_from` (seconds since the epoch) on."""

    seed: str
    signs_from: float

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(self.seed))

    @property
    def public_bytes(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        return hashlib.sha256(self.public_bytes).hexdigest()[:KEY_ID_CHARS]


@dataclass(frozen=True)
class Signer:
    """Signs with the newest key whose time has come, and publishes all. `read` answers them, the oldest first."""

    read: Callable[[], Sequence[SigningKey]]

    def jwks(self, *, now: float) -> dict[str, Any]:
        """RFC 8037. Source of what receivers read: fal's documentation of webhooks."""
        return {"keys": [_public(key) for key in _published(self.read(), now)]}

    def current(self, *, now: float) -> SigningKey:
        """The one that signs."""
        keys = self.read()
        return next((key for key in reversed(keys) if key.signs_from <= now), keys[0])

    def headers(self, job: InpaintJob, body: bytes, *, now: float) -> dict[str, str]:
        """What fal sends beside a webhook; every try has its own time and so its own signature."""
        key = self.current(now=now)
        timestamp = str(int(now))
        message = "\n".join((job.job_id, job.key_id, timestamp, hashlib.sha256(body).hexdigest()))
        return {
            "X-Fal-Webhook-Request-Id": job.job_id,
            "X-Fal-Webhook-User-Id": job.key_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": key.private_key.sign(message.encode()).hex(),
        }


def open_signing_keys(client: redis.Redis, given: SecretStr | None) -> Signer:
    """Those of the operator's secret where there is one, else those in Redis, made when there are none."""
    if given is not None:
        keys = given_keys(given)
        return Signer(lambda: keys)
    return Signer(lambda: _shared(client))


def given_keys(given: SecretStr) -> list[SigningKey]:
    """Base64 seeds of 32 bytes, comma separated: the first signs, all are published. Raises ValueError."""
    seeds = [part.strip() for part in given.get_secret_value().split(",") if part.strip()]
    if not seeds or any(len(base64.b64decode(seed, validate=True)) != SEED_BYTES for seed in seeds):
        raise ValueError(f"a key is {SEED_BYTES} bytes, base64")
    return [SigningKey(seed, math.inf if index else 0.0) for index, seed in enumerate(seeds)]


def rotate(client: redis.Redis, *, after_seconds: float = PUBLISHED_BEFORE_SECONDS) -> SigningKey:
    """A new key: published at once, in use after a while. Those out of use for long are forgotten."""
    added = _new_key(time.time() + after_seconds)

    def change(pipe: redis.client.Pipeline) -> None:
        stored = cast("str | None", pipe.get(STORED))
        now = time.time()
        keys = _published(_read(stored), now) if stored else [_new_key(now)]
        pipe.multi()
        pipe.set(STORED, _written([*keys, added]))

    with redis_outages():
        _shared(client)
        client.transaction(change, STORED)
    return added


def _shared(client: redis.Redis) -> Sequence[SigningKey]:
    with redis_outages():
        stored = client.get(STORED)
        if stored is None:
            # Whoever comes first makes it for all.
            client.set(STORED, _written([_new_key(0.0)]), nx=True)
            stored = client.get(STORED)
    return _read(str(stored))


def _published(keys: Sequence[SigningKey], now: float) -> list[SigningKey]:
    """All but those that another has followed so long ago that nothing signed by them is tried any more."""
    followed = {key: after.signs_from for key, after in itertools.pairwise(keys)}
    return [key for key in keys if now < followed.get(key, now) + KEPT_AFTER_SECONDS]


def _new_key(signs_from: float) -> SigningKey:
    return SigningKey(base64.b64encode(secrets.token_bytes(SEED_BYTES)).decode(), signs_from)


def _public(key: SigningKey) -> Mapping[str, str]:
    x = base64.urlsafe_b64encode(key.public_bytes).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": key.key_id, "use": "sig", "alg": "EdDSA"}


def _read(stored: str) -> list[SigningKey]:
    return [SigningKey(**each) for each in json.loads(stored)]


def _written(keys: Sequence[SigningKey]) -> str:
    return json.dumps([asdict(key) for key in keys])
