"""API keys in a real Redis."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import replace

import pytest

from api.keys import ApiKey, KeyScope, KeyStore, UnknownKey
from storage.errors import StorageUnavailable
from storage.job_store import open_redis
from storage.settings import StorageSettings
from tests.servers import RedisServer
from tests.webhook_scenes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis_url: str, clock: Clock) -> KeyStore:
    return KeyStore(open_redis(StorageSettings(redis_url=redis_url)), clock=clock)


def test_a_new_key_is_known_by_its_plaintext(store: KeyStore) -> None:
    api_key, plaintext = store.create(name="Ada", scope=KeyScope.ADMIN)
    assert plaintext.startswith(f"ip_{api_key.key_id}_")
    assert store.authenticate(plaintext) == api_key
    assert store.get(api_key.key_id) == api_key
    assert (api_key.name, api_key.scope) == ("Ada", KeyScope.ADMIN)


def test_a_key_is_a_users_unless_said_otherwise(store: KeyStore) -> None:
    assert store.create(name="")[0].scope is KeyScope.USER


def test_secrets_have_256_random_bits(store: KeyStore) -> None:
    made = [store.create(name="") for _ in range(20)]
    secrets = {plaintext.split("_")[2] for _, plaintext in made}
    assert len(secrets) == 20
    assert all(len(bytes.fromhex(secret)) == 32 for secret in secrets)
    webhook_secrets = {api_key.webhook_secret.removeprefix("whsec_") for api_key, _ in made}
    assert len(webhook_secrets) == 20
    assert all(len(b64decode(secret, validate=True)) == 32 for secret in webhook_secrets)


def test_no_plaintext_lies_in_redis(store: KeyStore, redis_url: str) -> None:
    api_key, plaintext = store.create(name="Ada")
    rotated = store.rotate(api_key.key_id)
    client = open_redis(StorageSettings(redis_url=redis_url))
    record = client.hgetall(f"inpaintd:key:{api_key.key_id}")
    for each in (plaintext, rotated):
        secret = each.split("_")[2]
        assert secret not in str(record)
        assert hashlib.sha256(secret.encode()).hexdigest() in record.values()


def test_the_webhook_secret_does_not_show_in_a_log_line(store: KeyStore) -> None:
    api_key, _ = store.create(name="Ada")
    assert api_key.webhook_secret not in repr(api_key)


@pytest.mark.parametrize(
    "plaintext",
    [
        "",
        "ip_",
        "secret",
        "ip_0123456789ab_" + "0" * 64,
        "ip_0123456789ab_" + "0" * 63,
        "ip_*_" + "0" * 64,
        "ip_0123456789ab_" + "٠" * 64,
        "ip_0123456789ab_" + "0" * 64 + "\n",
        "\ud800",
        "x" * 100_000,
    ],
)
def test_what_is_no_key_is_nobody(store: KeyStore, plaintext: str) -> None:
    assert store.authenticate(plaintext) is None


def test_a_key_with_one_digit_changed_is_nobody(store: KeyStore) -> None:
    _, plaintext = store.create(name="")
    last = "0" if plaintext[-1] != "0" else "1"
    assert store.authenticate(plaintext[:-1] + last) is None


def test_the_secret_of_one_key_does_not_open_another(store: KeyStore) -> None:
    ada, _ = store.create(name="Ada")
    _, bobs = store.create(name="Bob")
    assert store.authenticate(f"ip_{ada.key_id}_{bobs.split('_')[2]}") is None


def test_authentication_is_one_round_trip(store: KeyStore, redis_url: str) -> None:
    _, plaintext = store.create(name="")
    store.authenticate(plaintext)
    client = open_redis(StorageSettings(redis_url=redis_url))
    before = client.info("stats")["total_commands_processed"]
    store.authenticate(plaintext)
    after = client.info("stats")["total_commands_processed"]
    assert after - before == 2, "the key's own command, and the first INFO"


def test_a_revoked_key_is_nobody_and_stays_listed(store: KeyStore, clock: Clock) -> None:
    api_key, plaintext = store.create(name="Ada")
    clock.advance(10)
    revoked = store.revoke(api_key.key_id)
    assert store.authenticate(plaintext) is None
    assert revoked == replace(api_key, revoked_at=clock())
    assert store.list() == [revoked]


def test_revoking_twice_keeps_the_first_time(store: KeyStore, clock: Clock) -> None:
    api_key, _ = store.create(name="Ada")
    first = store.revoke(api_key.key_id)
    clock.advance(10)
    assert store.revoke(api_key.key_id) == first


def test_keys_are_listed_oldest_first(store: KeyStore, clock: Clock) -> None:
    made: list[ApiKey] = []
    for name in ("Ada", "Bob", "Cem"):
        made.append(store.create(name=name)[0])
        clock.advance(1)
    assert store.list() == made


def test_a_key_ends_at_its_time(store: KeyStore, clock: Clock) -> None:
    _, plaintext = store.create(name="", expires_at=clock() + 60)
    clock.advance(59)
    assert store.authenticate(plaintext) is not None
    clock.advance(1)
    assert store.authenticate(plaintext) is None


def test_after_a_rotation_both_secrets_are_good_for_the_grace(store: KeyStore, clock: Clock) -> None:
    api_key, old = store.create(name="")
    new = store.rotate(api_key.key_id, grace_seconds=60)
    clock.advance(59)
    for plaintext in (old, new):
        found = store.authenticate(plaintext)
        assert found is not None
        assert (found.key_id, found.webhook_secret) == (api_key.key_id, api_key.webhook_secret)
    clock.advance(1)
    assert store.authenticate(old) is None
    assert store.authenticate(new) is not None


def test_without_a_grace_the_old_secret_ends_at_once(store: KeyStore) -> None:
    api_key, old = store.create(name="")
    store.rotate(api_key.key_id, grace_seconds=0)
    assert store.authenticate(old) is None


def test_rotating_again_within_the_grace_ends_the_oldest_secret(store: KeyStore) -> None:
    api_key, first = store.create(name="")
    second = store.rotate(api_key.key_id, grace_seconds=60)
    third = store.rotate(api_key.key_id, grace_seconds=60)
    assert store.authenticate(first) is None
    assert store.authenticate(second) is not None
    assert store.authenticate(third) is not None


def test_revoking_ends_both_secrets(store: KeyStore) -> None:
    api_key, old = store.create(name="")
    new = store.rotate(api_key.key_id, grace_seconds=60)
    store.revoke(api_key.key_id)
    assert store.authenticate(old) is None
    assert store.authenticate(new) is None


def test_a_revoked_key_cannot_be_rotated(store: KeyStore) -> None:
    api_key, _ = store.create(name="")
    store.revoke(api_key.key_id)
    with pytest.raises(UnknownKey):
        store.rotate(api_key.key_id)


def test_an_unknown_id_is_said_and_leaves_nothing_behind(store: KeyStore) -> None:
    for change in (store.revoke, store.rotate):
        with pytest.raises(UnknownKey):
            change("0123456789ab")
    assert store.get("0123456789ab") is None
    assert store.list() == []


def test_redis_out_of_service_is_said(store: KeyStore, redis_server: RedisServer) -> None:
    api_key, plaintext = store.create(name="")
    redis_server.stop()
    try:
        for call in (
            lambda: store.authenticate(plaintext),
            lambda: store.create(name=""),
            lambda: store.get(api_key.key_id),
            lambda: store.revoke(api_key.key_id),
            lambda: store.rotate(api_key.key_id),
            store.list,
        ):
            with pytest.raises(StorageUnavailable):
                call()
    finally:
        redis_server.start()
    assert store.authenticate(plaintext) == api_key
