from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.settings import StorageSettings


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:secret@host:1/0\n")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.delenv("REDIS_URL", raising=False)
    settings = StorageSettings()
    assert settings.redis_url.get_secret_value() == "redis://:secret@host:1/0"
    assert "secret" not in repr(settings)


def test_networks_are_read_from_a_comma_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_PRIVATE_NETWORKS", "127.0.0.0/8, fd00::/8")
    assert StorageSettings().allowed_private_networks == (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEASE_SECONDS", "soon"), ("ALLOWED_PRIVATE_NETWORKS", "here"), ("LOG_FORMAT", "xml")],
)
def test_a_bad_value_fails_at_start_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        StorageSettings()


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "")
    assert StorageSettings().s3_bucket is None
