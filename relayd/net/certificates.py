"""A certificate authority of one's own and the leaves it signs.

For hosts that nobody gave a certificate: the listener's self-signed source and the
sandbox. Keys are EC P-256; every printer that speaks TLS 1.2 knows that curve. Nothing
here reads or writes files: PEM octets in, PEM octets out; who keeps a key keeps it 0600.

The certificates stand the strict checks of OpenSSL (X509_V_FLAG_X509_STRICT, on by default
in Python 3.13): key identifiers, critical constraints, a leaf never outlives its authority.

Source: RFC 5280 §4.2 (extensions), RFC 6125 (names live in subjectAltName).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relayd.clock import SYSTEM, Clock
from relayd.values import frozen

_SKEW: Final = timedelta(days=1)
"""How far a device's clock may be behind ours and still take the certificate."""

_COMMON_NAME_MAX: Final = 64  # RFC 5280 appendix A.1, ub-common-name


@frozen
class Authority:
    """A root and its private key, PEM. `key_pem` must never leave this host."""

    certificate_pem: bytes
    key_pem: bytes


@frozen
class Leaf:
    """A server's certificate and its private key (unencrypted PKCS #8), PEM."""

    certificate_pem: bytes
    key_pem: bytes


def make_ca(name: str, *, days: int, clock: Clock = SYSTEM) -> Authority:
    """Make a root that may sign leaves only.

    name:   what trust stores will show, e.g. "relayd on mail.example.lan".
    days:   lifetime from now, at least 1.
    raises: ValueError - empty name or no lifetime.
    """
    if not name.strip():
        raise ValueError("a certificate authority needs a name")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    certificate = (
        _builder(subject, subject, key.public_key(), _lifetime(days, clock))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key))


def make_leaf(
    authority: Authority, names: Sequence[str], *, days: int, clock: Clock = SYSTEM
) -> Leaf:
    """Make a server certificate signed by `authority`.

    names:  DNS names (A-labels; "*.example.lan" too) and IP addresses ("::1" or "[::1]"),
            all of them subjectAltNames; the first is the common name.
    days:   lifetime from now, cut to the authority's own end.
    raises: ValueError - no name, a name that is not ASCII, or no lifetime.
    """
    if not names:
        raise ValueError("a certificate needs at least one name")
    alternatives = [_general_name(name) for name in names]
    signer = x509.load_pem_x509_certificate(authority.certificate_pem)
    signing_key = _load_key(authority.key_pem)
    begin, end = _lifetime(days, clock)
    end = min(end, _not_after(signer))
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    certificate = (
        _builder(_subject(names[0]), signer.subject, key.public_key(), (begin, end))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(identifier, critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    return Leaf(_pem(certificate), _key_pem(key))


def not_after(pem: bytes) -> datetime:
    """Return the last moment, aware UTC, of the first certificate in `pem`.

    raises: ValueError - there is none, or it cannot be read.
    """
    return _not_after(x509.load_pem_x509_certificate(pem))


def _not_after(certificate: x509.Certificate) -> datetime:
    # cryptography 42 brought the aware name and warns of the naive one; Debian 12 has 38.
    aware: datetime | None = getattr(certificate, "not_valid_after_utc", None)
    return aware if aware is not None else certificate.not_valid_after.replace(tzinfo=UTC)


def _lifetime(days: int, clock: Clock) -> tuple[datetime, datetime]:
    if days < 1:
        raise ValueError(f"a certificate must last at least a day, not {days}")
    now = clock.utcnow().replace(microsecond=0)
    return now - _SKEW, now + timedelta(days=days)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    lifetime: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(lifetime[0])
        .not_valid_after(lifetime[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_MAX])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        if not name or not name.isascii():
            raise ValueError(f"not a DNS name in ASCII: {name!r}") from None
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an EC key")  # noqa: TRY004  # of its PEM, not of its type
    return key
