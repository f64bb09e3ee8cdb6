"""`inpaintd keys …` as an operator types it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import keys
from api.keys import KeyScope, KeyStore
from storage.job_store import open_redis
from storage.settings import StorageSettings, storage_settings


@pytest.fixture
def store(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyStore]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    storage_settings.cache_clear()
    yield KeyStore(open_redis(StorageSettings(redis_url=redis_url)))
    storage_settings.cache_clear()


def typed(*words: str) -> Result:
    return CliRunner().invoke(keys, list(words))


def answered(*words: str) -> Any:
    result = typed(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_create_prints_a_key_that_works_and_the_webhook_secret(store: KeyStore) -> None:
    result = typed("create", "--name", "Ada", "--scope", "admin")
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    api_key = store.authenticate(shown["key"])
    assert api_key is not None
    assert (api_key.key_id, api_key.webhook_secret) == (shown["id"], shown["webhook_secret"])
    assert (api_key.name, api_key.scope) == ("Ada", KeyScope.ADMIN)


def test_create_prints_json_for_programs(store: KeyStore) -> None:
    answer = answered("create", "--name", "Ada")
    api_key = store.authenticate(answer["key"])
    assert api_key is not None
    assert answer["id"] == api_key.key_id
    assert answer["webhook_secret"] == api_key.webhook_secret


def test_create_writes_the_key_to_a_file_of_its_owner_only(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "var" / "api-key"
    answer = answered("create", "--file", str(path))
    plaintext = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert store.authenticate(plaintext) is not None
    assert plaintext not in json.dumps(answer)
    assert [each.name for each in path.parent.iterdir()] == ["api-key"]


def test_a_file_that_others_could_read_is_replaced_by_one_they_cannot(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("something much longer than a key " * 10)
    path.chmod(0o644)
    answered("create", "--file", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert store.authenticate(path.read_text().strip()) is not None


def test_a_file_that_cannot_be_written_makes_no_key(store: KeyStore, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = typed("create", "--file", str(tmp_path / "taken" / "api-key"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert store.list() == []


def test_list_shows_every_key_and_no_secret(store: KeyStore) -> None:
    ada, plaintext = store.create(name="Ada [red]")
    bob, _ = store.create(name="Bob")
    store.revoke(bob.key_id)
    shown = typed("list").stdout
    assert "Ada [red]" in shown
    assert "live" in shown
    assert "revoked" in shown
    for each in (ada.key_id, bob.key_id):
        assert each in shown
    for secret in (plaintext.split("_")[2], ada.webhook_secret):
        assert secret not in shown
    facts = answered("list")
    assert [each["id"] for each in facts] == [ada.key_id, bob.key_id]
    assert ada.webhook_secret not in json.dumps(facts)


def test_revoke_ends_a_key(store: KeyStore) -> None:
    api_key, plaintext = store.create(name="")
    assert answered("revoke", api_key.key_id)["revoked_at"] is not None
    assert store.authenticate(plaintext) is None


def test_rotate_prints_a_new_key_and_keeps_the_old_one_for_the_grace(store: KeyStore) -> None:
    api_key, old = store.create(name="")
    new = answered("rotate", api_key.key_id, "--grace", "60")["key"]
    assert store.authenticate(old) is not None
    newest = answered("rotate", api_key.key_id, "--grace", "0")["key"]
    assert store.authenticate(new) is None
    assert store.authenticate(newest) is not None


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_an_unknown_id_is_said(store: KeyStore, command: str) -> None:
    result = typed(command, "0123456789ab")
    assert result.exit_code == 1
    assert "0123456789ab" in result.stderr


def test_a_failed_rotation_leaves_the_file_as_it_was(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("before")
    assert typed("rotate", "0123456789ab", "--file", str(path)).exit_code == 1
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["api-key"]


def test_redis_out_of_service_is_said_in_a_sentence(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:a-password@127.0.0.1:1/0")
    storage_settings.cache_clear()
    result = typed("list")
    assert result.exit_code == 1
    assert "Redis does not answer" in result.stderr
    assert "STATE_DIR" in result.stderr
    assert "a-password" not in result.output
