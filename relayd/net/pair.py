"""A certificate chain and its key, as they lie in files: whether they work, and what they say.

OpenSSL reads them, by way of `ssl`. cryptography could as well, and costs each worker 3 to 9 MiB;
it is imported only to make certificates, and for the odd one that OpenSSL uses but will not show.

Source: RFC 5280; X509_VERIFY_PARAM_set_flags(3).
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, cast

from relayd.values import frozen

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)  # has no name in `ssl`
_HOSTS: Final = frozenset({"DNS", "IP Address"})
_MOST_TURNS: Final = 4  # of TLS 1.2; 1.3 needs fewer


class CertificateRefused(Exception):
    """A certificate cannot be used; the text is for the operator."""


@frozen
class Pair:
    """Where a certificate chain and its key lie; both may be one file."""

    certificate: str
    key: str


@frozen
class Facts:
    """What a certificate says. end: its last moment, aware UTC; names: hosts and addresses."""

    end: datetime
    names: frozenset[str]


Mark = tuple[str, int, int, int]


def marks(pair: Pair) -> tuple[Mark, ...]:
    """Return what changes when a file is replaced: place, inode, time, size. raises: OSError."""
    out = []
    for path in dict.fromkeys((pair.certificate, pair.key)):
        real = os.path.realpath(path)
        found = os.stat(real)
        out.append((real, found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(out)


def read(path: str) -> bytes:
    """Return a file, a mebibyte at most. raises: OSError."""
    with open(path, "rb") as file:
        return file.read(1_048_576)


def server_context(pair: Pair, minimum_version: str) -> ssl.SSLContext:
    """Return a listener's context. raises: OSError (ssl.SSLError), ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[minimum_version]
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    )
    try:
        # An empty password: OpenSSL would ask for one on the terminal, and wait for ever.
        context.load_cert_chain(pair.certificate, pair.key, password=b"")
    except ssl.SSLError as error:
        if b"ENCRYPTED" in read(pair.key):  # OpenSSL says only "PEM lib"
            text = "the key has a passphrase; take it off (openssl pkey) and keep the file 0600"
            raise ValueError(text) from error
        raise
    return context


def facts(pair: Pair) -> Facts:
    """Return what the certificate says, expired or not, whoever signed it.

    raises: OSError (ssl.SSLError), ValueError - the pair cannot be used, or is no server's.
    """
    # `ssl` shows a certificate in one way only: to a client that trusts it.
    server = server_context(pair, "1.2")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(cafile=pair.certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(_MOST_TURNS):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = sides[0].getpeercert() or {}
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    names = cast("Iterable[tuple[str, str]]", shown.get("subjectAltName", ()))
    return Facts(end, frozenset(_host(name) for kind, name in names if kind in _HOSTS))


def last_moment(pair: Pair) -> datetime:
    """Return when the certificate ends, aware UTC. raises: OSError, ValueError."""
    try:
        return facts(pair).end
    except (ssl.SSLError, ValueError):
        # One that is not for servers, say: some devices do not mind, so it is used.
        server_context(pair, "1.2")
        from relayd.net.certificates import not_after  # noqa: PLC0415  imports cryptography

        return not_after(read(pair.certificate))


def _host(name: str) -> str:
    """Return a DNS name as it is, an address in its shortest form: OpenSSL writes all zeros."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def words(error: Exception) -> str:
    """Return OpenSSL's complaint as something to act on."""
    text = str(error)
    if "KEY_VALUES_MISMATCH" in text:
        return "the key does not belong to the certificate"
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM certificate and key ({error.reason or text})"
    return str(getattr(error, "strerror", None) or text)
