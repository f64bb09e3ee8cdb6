"""A certificate for localhost, and the authority that clients are to trust: made once, kept in the state folder."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.files import write_private

NAMES = ("localhost",)
ADDRESSES = ("127.0.0.1", "::1")
# Apple's systems refuse a server's certificate that is good for more than 825 days.
LIFETIME = timedelta(days=800)
RENEWED_BEFORE_END = timedelta(days=30)
CLOCK_TOLERANCE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """`ca` is for clients; `certificate` (with its key) for whoever serves. All PEM."""

    ca: Path
    certificate: Path
    key: Path


def certificate_files(state_dir: Path) -> CertificateFiles:
    """Where the files lie, whether they exist or not."""
    return CertificateFiles(ca=state_dir / "ca.pem", certificate=state_dir / "tls.pem", key=state_dir / "tls-key.pem")


def make_certificates(state_dir: Path, *, now: datetime | None = None) -> CertificateFiles:
    """The files of `certificate_files`, made where they are missing or close to their end.

    The authority's own key is not kept: whoever trusts its certificate trusts these names and no others, ever.
    """
    files = certificate_files(state_dir)
    now = now or datetime.now(tz=UTC)
    if not _are_good(files, now):
        _make(files, now)
    return files


def _are_good(files: CertificateFiles, now: datetime) -> bool:
    try:
        authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    belongs = key.public_key() == certificate.public_key()
    return belongs and now < certificate.not_valid_after_utc - RENEWED_BEFORE_END


def _make(files: CertificateFiles, now: datetime) -> None:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, now)
    certificate = _certificate(authority, authority_key, key.public_key(), now)
    write_private(files.key, _pem_of_key(key))
    for path, each in ((files.certificate, certificate), (files.ca, authority)):
        path.write_text(each.public_bytes(serialization.Encoding.PEM).decode())


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name("inpaintd on this machine")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _begun(name, name, key.public_key(), key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> x509.Certificate:
    hosts = [
        *(x509.DNSName(name) for name in NAMES),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES),
    ]
    return (
        _begun(_name("localhost"), authority.subject, key, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> x509.CertificateBuilder:
    # Both identifiers: Python 3.13 refuses certificates without them.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now - CLOCK_TOLERANCE + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
