"""The certificate of a local installation, judged by the TLS of the standard library."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.certificates import LIFETIME, CertificateFiles, make_certificates


def shake_hands(files: CertificateFiles, *, as_host: str) -> str | None:
    """The TLS version agreed on by a strict client that trusts our authority alone."""
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(files.certificate, files.key)
    client_context = ssl.create_default_context(cafile=str(files.ca))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server_context.wrap_socket(theirs, server_side=True) as secured:
                secured.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with client_context.wrap_socket(ours, server_hostname=as_host) as secured:
            return secured.version()
    finally:
        ours.close()
        serving.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_strict_client_trusts_the_certificate_for_this_machine(tmp_path: Path, host: str) -> None:
    assert shake_hands(make_certificates(tmp_path), as_host=host) == "TLSv1.3"


def test_no_client_trusts_it_for_another_host(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(make_certificates(tmp_path), as_host="example.com")


def test_it_is_made_once_and_again_before_its_end(tmp_path: Path) -> None:
    now = datetime.now(tz=UTC)
    made = make_certificates(tmp_path).ca.read_bytes()
    assert make_certificates(tmp_path, now=now + LIFETIME / 2).ca.read_bytes() == made
    assert make_certificates(tmp_path, now=now + LIFETIME - timedelta(days=20)).ca.read_bytes() != made


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_a_file_that_is_lost_or_another_ones_makes_all_again(tmp_path: Path, name: str) -> None:
    (other := tmp_path / "other").mkdir()
    files, others = make_certificates(tmp_path), make_certificates(other)
    getattr(files, name).write_bytes(getattr(others, name).read_bytes())
    assert shake_hands(make_certificates(tmp_path), as_host="localhost")
    getattr(files, name).unlink()
    assert shake_hands(make_certificates(tmp_path), as_host="localhost")


def test_the_key_is_its_owners_and_the_authoritys_is_not_kept(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    assert files.key.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "tls.pem", "tls-key.pem"}
