"""Certificates and TLS contexts of the listeners: from files, or made here.

    file         the administrator's pair; renewed under us by certbot and the like
    self-signed  our own authority (10 years) and a leaf (90 days, renewed when a third is
                 left) for the host's name and all its addresses; devices may trust ca.crt
    off          no TLS

`refresh`, every half minute, looks at the files' places, inodes, times and sizes; only a pair
that belongs together is taken, all at once; else what is in use stays and the log says why. A
session that is up keeps the context it began with. Each listener has its own context, so that
session tickets of one are worth nothing at another; what name a client asks for (SNI) is not
looked at.

Source: RFC 8446, RFC 3207 (STARTTLS), RFC 6125 §6 (names), netdevice(7).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
import ssl
import stat
import struct
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Listener
from relayd.errors import ConfigError
from relayd.net.certificates import Authority, Leaf, make_ca, make_leaf, not_after
from relayd.observe import metrics
from relayd.values import frozen

log = structlog.get_logger()

FOLDER: Final = "tls"
CA_FILE: Final = "ca.crt"
_CA_KEY: Final = "ca.key"
_LEAF_FILE: Final = "leaf.pem"
_LOCK: Final = ".lock"
_CA_DAYS: Final = 3650
_LEAF_DAYS: Final = 90
_RENEW_BEFORE: Final = timedelta(days=30)
_WARN_BEFORE: Final = timedelta(days=14)
_MOST_NAMES: Final = 100
_MOST_ADDRESSES: Final = 256
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateRefused(Exception):
    """A certificate cannot be used; the text is for the operator."""


@frozen
class _Pair:
    """Where a certificate chain and its key lie; both may be one file."""

    certificate: str
    key: str


_Mark = tuple[str, int, int, int]


class ServerTls:
    """The listeners' TLS; one for each worker. `refresh` it every half minute."""

    def __init__(self, config: Config, *, clock: Clock = SYSTEM) -> None:
        """Load, or make, the certificate. raises: ConfigError - there is none to begin with."""
        self._config = config
        self._clock = clock
        self._listeners = [one for one in config.listener if one.tls != "off"]
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._marks: tuple[_Mark, ...] = ()
        self._warned_of: str = ""
        if config.tls.source == "off" or not self._listeners:
            return
        try:
            self._take(self._pair())
        except CertificateRefused as error:
            raise ConfigError([f"[tls] {error}"]) from error

    def context(self, listener: str) -> ssl.SSLContext | None:
        """Return what `listener` wraps a new session with; None: it has no TLS."""
        return self._contexts.get(listener)

    def refresh(self) -> bool:
        """Take a renewed certificate, if there is one; True when it was taken; never raises."""
        if not self._contexts:
            return False
        try:
            pair = self._pair()
            marks = _marks(pair)
            if marks == self._marks:
                return False
            self._take(pair)
        except (CertificateRefused, OSError) as error:
            self._warn(str(error))
            return False
        return True

    def _warn(self, text: str) -> None:
        """Say it once, not every half minute."""
        if text and text != self._warned_of:
            log.warning("certificate.refused", text=text)
        self._warned_of = text

    def _pair(self) -> _Pair:
        tls = self._config.tls
        if tls.source == "file":
            return _Pair(tls.certificate, tls.key or tls.certificate)
        if tls.source == "self-signed":
            pair, trouble = _SelfSigned(self._config, self._clock).pair()
            self._warn(trouble)
            return pair
        raise CertificateRefused(f'source = "{tls.source}" is not available yet')

    def _take(self, pair: _Pair) -> None:
        """Make all contexts anew, then swap them in together. raises: CertificateRefused."""
        try:
            marks = _marks(pair)
            end = not_after(_read(pair.certificate))
            contexts = {
                one.name: _server_context(pair, self._config.tls.minimum_version)
                for one in self._listeners
            }
            if marks != _marks(pair):
                raise CertificateRefused("the files changed while they were read")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateRefused(f"{pair.certificate}: {_words(error)}") from error
        if self._contexts and end <= self._clock.utcnow():
            raise CertificateRefused(f"{pair.certificate}: expired {end:%Y-%m-%d}")
        self._contexts = contexts
        self._marks = marks
        for name in contexts:
            metrics.gauge(
                "relayd_certificate_expiry_timestamp_seconds", end.timestamp(), listener=name
            )
        log.info(
            "certificate.loaded",
            source=self._config.tls.source,
            file=pair.certificate,
            expires=end.isoformat(timespec="seconds"),
        )


def problems(config: Config) -> list[str]:
    """Return why listeners could not do TLS as configured; for `check`."""
    out = [
        f'[listener.{one.name}] tls = "{one.tls}" needs a certificate, but [tls] source is "off"'
        for one in config.listener
        if config.tls.source == "off" and one.tls in ("required", "implicit")
    ]
    if config.tls.source == "file" and _wants_tls(config.listener):
        out += _file_problems(config)
    return out


def warnings(config: Config, *, clock: Clock = SYSTEM) -> list[str]:
    """Return what is allowed but will hurt: a certificate that has ended, or soon will."""
    if config.tls.source != "file" or not _wants_tls(config.listener):
        return []
    try:
        end = not_after(_read(config.tls.certificate))
    except (OSError, ValueError):
        return []  # a problem, told above
    if end <= clock.utcnow():
        text = "devices that look at it refuse to send; renew it, no restart is needed"
        return [f"[tls] certificate: {config.tls.certificate} expired {end:%Y-%m-%d}; {text}"]
    if end - clock.utcnow() < _WARN_BEFORE:
        return [f"[tls] certificate: {config.tls.certificate} ends {end:%Y-%m-%d}; renew it"]
    return []


def _wants_tls(listeners: Sequence[Listener]) -> bool:
    return any(one.tls != "off" for one in listeners)


def _file_problems(config: Config) -> list[str]:
    tls = config.tls
    if not tls.certificate:
        return ['[tls] certificate: source = "file" needs the file of the certificate chain (PEM)']
    out = []
    for key, path in (("certificate", tls.certificate), ("key", tls.key or tls.certificate)):
        try:
            _read(path)
        except OSError as error:
            out.append(f"[tls] {key}: {path}: {error.strerror}; relayd must be able to read it")
    if out:
        return out
    try:
        _server_context(_Pair(tls.certificate, tls.key or tls.certificate), tls.minimum_version)
    except (OSError, ValueError) as error:
        return [f"[tls] certificate: {tls.certificate}: {_words(error)}"]
    return []


def _server_context(pair: _Pair, minimum_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[minimum_version]
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    )
    # An empty password: OpenSSL would ask for one on the terminal, and wait for ever.
    context.load_cert_chain(pair.certificate, pair.key, password=b"")
    return context


def _words(error: Exception) -> str:
    """Return OpenSSL's complaint as something to act on."""
    text = str(error)
    if "KEY_VALUES_MISMATCH" in text:
        return "the key does not belong to the certificate"
    if isinstance(error, ssl.SSLError):
        if "BAD_DECRYPT" in text or "BAD_PASSWORD" in text or "empty password" in text.lower():
            return "the key has a passphrase; take it off (openssl pkey) and keep the file 0600"
        return f"no usable PEM certificate and key ({error.reason or text})"
    return str(getattr(error, "strerror", None) or text)


def _marks(pair: _Pair) -> tuple[_Mark, ...]:
    out = []
    for path in dict.fromkeys((pair.certificate, pair.key)):
        real = os.path.realpath(path)
        found = os.stat(real)
        out.append((real, found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(out)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1_048_576)


# --- self-signed --------------------------------------------------------------------------------


class _SelfSigned:
    """state_dir/tls: an authority and a leaf, made once for all workers, under a lock."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._folder = os.path.join(config.server.state_dir, FOLDER)
        self._hostname = config.server.hostname
        self._names = names_of(config)
        self._clock = clock

    def pair(self) -> tuple[_Pair, str]:
        """Return the leaf's place, after making what is missing or ends soon, and any trouble.

        raises: CertificateRefused - the folder cannot be written, and there is nothing in it.
        """
        leaf, trouble = os.path.join(self._folder, _LEAF_FILE), ""
        if not self._is_good(leaf):
            try:
                self._make(leaf)
            except (OSError, ValueError) as error:
                if not os.path.isfile(leaf):
                    raise CertificateRefused(f"{leaf} cannot be made: {_words(error)}") from error
                trouble = f"{leaf} not renewed: {_words(error)}"
        return _Pair(leaf, leaf), trouble

    def _is_good(self, leaf: str) -> bool:
        """Tell whether the leaf lasts, and names all that devices may call us."""
        try:
            certificate = x509.load_pem_x509_certificate(_read(leaf))
            left = not_after(_read(leaf)) - self._clock.utcnow()
        except (OSError, ValueError):
            return False
        return left > _RENEW_BEFORE and self._names <= _names_in(certificate)

    def _make(self, leaf: str) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with _locked(os.path.join(self._folder, _LOCK)):
            if self._is_good(leaf):
                return  # another worker was quicker
            authority = self._authority()
            ordered = sorted(self._names, key=lambda name: (name != self._hostname, name))
            made = make_leaf(authority, ordered, days=_LEAF_DAYS, clock=self._clock)
            self._write(_LEAF_FILE, _chain(made, authority), 0o600)
            log.info("certificate.made", file=leaf, names=", ".join(ordered))

    def _authority(self) -> Authority:
        """Return the authority, made where it is missing, broken or ends before a leaf would."""
        certificate, key = (os.path.join(self._folder, one) for one in (CA_FILE, _CA_KEY))
        try:
            found = Authority(certificate_pem=_read(certificate), key_pem=_read(key))
            left = not_after(found.certificate_pem) - self._clock.utcnow()
            if left > timedelta(days=_LEAF_DAYS) and _belongs(found):
                return found
        except (OSError, ValueError):
            pass  # made anew below
        made = make_ca(f"relayd on {self._hostname}", days=_CA_DAYS, clock=self._clock)
        # DURABILITY: the key first; a certificate without its key would be trusted in vain.
        self._write(_CA_KEY, made.key_pem, 0o600)
        self._write(CA_FILE, made.certificate_pem, 0o644)
        return made

    def _write(self, name: str, octets: bytes, mode: int) -> None:
        """Replace a file whole; nobody ever reads half of it."""
        descriptor, scratch = tempfile.mkstemp(dir=self._folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(octets)
                file.flush()
                os.fsync(descriptor)
            os.replace(scratch, os.path.join(self._folder, name))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            raise


def _chain(leaf: Leaf, authority: Authority) -> bytes:
    return leaf.key_pem + leaf.certificate_pem + authority.certificate_pem


def _belongs(authority: Authority) -> bool:
    """Tell whether key and certificate are a pair; raises ValueError."""
    certificate = x509.load_pem_x509_certificate(authority.certificate_pem)
    key = serialization.load_pem_private_key(authority.key_pem, password=None)
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ours = key.public_key().public_bytes(encoding, form)
    return ours == certificate.public_key().public_bytes(encoding, form)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def names_of(config: Config) -> frozenset[str]:
    """Return all that devices may call us: host name, localhost, our addresses.

    An address a listener is bound to counts, and for "all addresses" all the host has now,
    but link-local ones; at most a hundred, so that no docker host makes a monster.
    """
    names = {"localhost", "127.0.0.1", "::1"}
    if config.server.hostname and config.server.hostname.isascii():
        names.add(config.server.hostname)
    everywhere = False
    for one in config.listener:
        for text in one.address:
            host = text.rpartition(":")[0].strip("[]")
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(host)
                everywhere |= address.is_unspecified
                if not address.is_unspecified:
                    names.add(str(address))
    if everywhere:
        found = sorted(local_addresses(), key=lambda text: (":" in text, text))
        names |= set(found[: _MOST_NAMES - len(names)])
    return frozenset(names)


def local_addresses() -> set[str]:
    """Return this host's addresses, link-local ones left out; empty where it will not say."""
    return {
        text
        for text in (*_local_ipv4(), *_local_ipv6())
        if not ipaddress.ip_address(text).is_link_local
    }


def _local_ipv4() -> list[str]:
    """Ask the kernel (SIOCGIFCONF): struct ifreq is 40 octets, the address at 20."""
    buffer = array.array("B", bytes(40 * _MOST_ADDRESSES))
    address, _ = buffer.buffer_info()
    request = struct.pack("iL", len(buffer), address)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock.fileno(), 0x8912, request)
    except OSError:
        return []
    used = struct.unpack("iL", answer)[0]
    octets = buffer.tobytes()
    return [socket.inet_ntoa(octets[at + 20 : at + 24]) for at in range(0, used, 40)]


def _local_ipv6() -> list[str]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in file]
    except (OSError, ValueError):
        return []


def _names_in(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    names = extension.value.get_values_for_type(x509.DNSName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return frozenset([*names, *(str(one) for one in addresses)])
