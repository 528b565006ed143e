"""The steps below a token, one at a time: names, addresses, proxy, TLS, the server's clock.

The relay itself goes this way in one piece (net.http, MSAL) and can only say that it failed;
here each step is taken alone, so that it can be named. What is found is a value, and every wait
is bounded. Nothing secret is sent but a proxy's own login.

Source: RFC 9110 §9.3.6 (CONNECT), RFC 8446; OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import base64
import email.utils
import errno
import http.client
import io
import os
import re
import select
import socket
import ssl
from collections.abc import Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID
from urllib3.util.ssltransport import SSLTransport

from relayd.clock import SYSTEM, Clock
from relayd.net.http import ConnectFailed, Resolver, SocketAddress
from relayd.values import frozen

_MAX_ANSWER_BYTES: Final = 256 * 1024
_MAX_HEAD_BYTES: Final = 16 * 1024
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?:\r\n|\Z)")
_CHUNKED: Final = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked")
HTTPS: Final = 443

NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


@frozen
class Place:
    """Somewhere to connect to."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS else f"{host}:{self.port}"


@frozen
class Proxy:
    """[http] proxy, taken apart. login: "user:password", shown nowhere."""

    place: Place
    is_tls: bool
    login: str = field(default="", repr=False)


class Broken(Exception):
    """A step could not be taken; the text is for people, without its own name."""


class Refused(Broken):
    """The proxy answered, and not with yes. status: its HTTP status, 0 for nonsense."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@frozen(kw_only=True)
class Certificate:
    """What a server showed of itself. organisation: of the issuer, "" if it names none."""

    subject: str
    issuer: str
    organisation: str
    not_before: datetime
    not_after: datetime


class NotTrusted(Broken):
    """TLS was refused. certificate: what was shown, None where it could not be had."""

    def __init__(self, text: str, code: int, certificate: Certificate | None) -> None:
        super().__init__(text)
        self.code = code
        self.certificate = certificate


@frozen
class Dialled:
    """Of the addresses of one place: those that answered, and the others with why not."""

    answered: tuple[str, ...]
    silent: tuple[tuple[str, str], ...]


def place_of(url: str) -> Place:
    """Return where an https URL points; raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{url!r} is no https URL")
    return Place(parts.hostname, parts.port or HTTPS)


def proxy_of(url: str) -> Proxy | None:
    """Return [http] proxy taken apart; None for ""; raises ValueError."""
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("http://host:port or https://host:port is wanted")
    login = ""
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    port = parts.port or (HTTPS if parts.scheme == "https" else 80)
    return Proxy(Place(parts.hostname, port), parts.scheme == "https", login)


def look_up(place: Place, *, resolver: Resolver, timeout_s: float) -> tuple[SocketAddress, ...]:
    """Return the addresses of a place; raises Broken."""
    try:
        return resolver.addresses(place.host, place.port, timeout_s=timeout_s)
    except ConnectFailed as error:
        raise Broken(error.text.removeprefix(f"{place.host}: ")) from error


def dial_each(
    addresses: Sequence[SocketAddress], *, timeout_s: float, clock: Clock = SYSTEM
) -> Dialled:
    """Connect to every address at once, so that ten dead ones cost the time of one."""
    silent: dict[str, str] = {}
    running: dict[int, tuple[socket.socket, str]] = {}
    answered: list[str] = []
    for address in addresses:
        name = str(address.where[0])
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # no IPv6 in this kernel
            silent[name] = _reason(error)
            continue
        sock.setblocking(False)
        code = sock.connect_ex(address.where)
        if code in (0, errno.EINPROGRESS, errno.EAGAIN):
            running[sock.fileno()] = sock, name
        else:
            sock.close()
            silent[name] = os.strerror(code)
    deadline = clock.monotonic() + timeout_s
    try:
        while running and (left_s := deadline - clock.monotonic()) > 0:
            poll = select.poll()
            for number in running:
                poll.register(number, select.POLLOUT)
            for number, _ in poll.poll(int(left_s * 1000) + 1):
                sock, name = running.pop(number)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                sock.close()
                if code == 0:
                    answered.append(name)
                else:
                    silent[name] = os.strerror(code)
    finally:
        for sock, name in running.values():
            sock.close()
            silent[name] = f"no answer within {timeout_s:g} s"
    return Dialled(tuple(answered), tuple(silent.items()))


Secured: TypeAlias = ssl.SSLSocket | SSLTransport
"""A TLS connection; the second kind where it runs inside the proxy's own TLS."""


def _secured(sock: socket.socket, context: ssl.SSLContext, host: str) -> Secured:
    if isinstance(sock, ssl.SSLSocket):
        return SSLTransport(sock, context, server_hostname=host)
    return context.wrap_socket(sock, server_hostname=host)


class Way:
    """How sockets to one cloud are opened: directly, or through the proxy.

    resolver:  keeps what was looked up, so that later steps go the way the first one saw.
    timeout_s: for each connection, from the first packet to the end of TLS.
    """

    def __init__(
        self,
        proxy: Proxy | None,
        *,
        resolver: Resolver,
        timeout_s: float,
        proxy_roots: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.proxy = proxy
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._proxy_roots = proxy_roots
        self._clock = clock

    def connect(self, place: Place) -> socket.socket:
        """Return a connected socket, the proxy's CONNECT done; raises Broken, Refused."""
        deadline = self._clock.monotonic() + self._timeout_s
        if self.proxy is None:
            return self._dial(place, deadline)
        sock = self._dial(self.proxy.place, deadline)
        try:
            if self.proxy.is_tls and self._proxy_roots is not None:
                sock = self._proxy_roots.wrap_socket(sock, server_hostname=self.proxy.place.host)
            self._tunnel(sock, place, self.proxy, deadline)
        except OSError as error:
            sock.close()
            raise Broken(_reason(error)) from error
        except BaseException:
            sock.close()
            raise
        return sock

    def secure(self, place: Place, roots: ssl.SSLContext) -> tuple[Secured, Certificate]:
        """Return a TLS connection and what the server showed; raises Broken, NotTrusted."""
        sock = self.connect(place)
        try:
            secured = _secured(sock, roots, place.host)
        except ssl.SSLCertVerificationError as error:
            sock.close()
            shown = self._look_at(place)
            raise NotTrusted(error.verify_message, error.verify_code, shown) from error
        except OSError as error:
            sock.close()
            raise Broken(f"TLS could not be agreed on ({_reason(error)})") from error
        return secured, read_certificate(secured.getpeercert(binary_form=True) or b"")

    def _look_at(self, place: Place) -> Certificate | None:
        """Return the certificate of a server that is not trusted; nothing is sent to it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        # SECURITY: only to name who issued it; the connection is closed without a word.
        context.verify_mode = ssl.CERT_NONE
        try:
            with _secured(self.connect(place), context, place.host) as sock:
                return read_certificate(sock.getpeercert(binary_form=True) or b"")
        except (OSError, ValueError, Broken):
            return None

    def _dial(self, place: Place, deadline: float) -> socket.socket:
        left_s = max(deadline - self._clock.monotonic(), 0.1)
        addresses = look_up(place, resolver=self._resolver, timeout_s=left_s)
        reason = "timed out" if addresses else "no address"
        for address in addresses:
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                break
            sock = None
            try:
                sock = socket.socket(address.family, socket.SOCK_STREAM)
                sock.settimeout(left_s)
                sock.connect(address.where)
            except OSError as error:
                reason = _reason(error)
                if sock is not None:
                    sock.close()
            else:
                return sock
        raise Broken(reason)

    def _tunnel(self, sock: socket.socket, place: Place, proxy: Proxy, deadline: float) -> None:
        host = f"[{place.host}]" if ":" in place.host else place.host
        head = f"CONNECT {host}:{place.port} HTTP/1.1\r\nHost: {host}:{place.port}\r\n"
        if proxy.login:
            login = base64.b64encode(proxy.login.encode()).decode("ascii")
            head += f"Proxy-Authorization: Basic {login}\r\n"
        sock.sendall(f"{head}\r\n".encode("ascii"))
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            sock.settimeout(max(deadline - self._clock.monotonic(), 0.1))
            # Octet by octet: what follows the head belongs to TLS.
            octet = sock.recv(1)
            if not octet or len(answer) > _MAX_HEAD_BYTES:
                raise Refused("it closed the connection without an answer", 0)
            answer += octet
        words = bytes(answer).split(b"\r\n")[0].decode("ascii", "replace").split(" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0
        if not 200 <= status < 300:
            said = " ".join(words[1:]) or "something that is no HTTP"
            raise Refused(f"it answered {said[:100]}", status)


@frozen
class Fetched:
    """An answer to a GET. date: the server's own clock; None if it tells none.

    at: our wall clock in the middle of the question.
    """

    status: int
    date: datetime | None
    at: datetime
    body: bytes


def get(sock: Secured, place: Place, path: str, *, timeout_s: float, clock: Clock) -> Fetched:
    """Send a GET without anything secret and read all of the answer; raises Broken."""
    deadline = clock.monotonic() + timeout_s
    octets = bytearray()
    asked_at = clock.utcnow()
    try:
        sock.settimeout(timeout_s)
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: relayd\r\n"
            "Accept: application/json\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        while len(octets) < _MAX_ANSWER_BYTES:
            left_s = deadline - clock.monotonic()
            if left_s <= 0:
                raise Broken(f"no whole answer within {timeout_s:g} s")
            sock.settimeout(left_s)
            piece = sock.recv(65536)
            if not isinstance(piece, bytes) or not piece:
                break
            octets += piece
            if _is_whole(bytes(octets)):
                break
    except OSError as error:
        raise Broken(_reason(error)) from error
    at = asked_at + (clock.utcnow() - asked_at) / 2
    response = http.client.HTTPResponse(_Said(bytes(octets)), method="GET")  # type: ignore[arg-type]  # only makefile is used
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise Broken("the answer is no HTTP") from error
    return Fetched(response.status, _date(response.getheader("Date", "")), at, body)


def _is_whole(octets: bytes) -> bool:
    """Tell whether an answer is complete though the server leaves the connection open."""
    head, end, body = octets.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is not None:
        return bool(end) and len(body) >= int(length[1])
    return bool(_CHUNKED.search(head)) and body.endswith(b"0\r\n\r\n")


class _Said:
    """Octets already read, in the form of a socket."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._octets)


def _date(text: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def read_certificate(octets: bytes) -> Certificate:
    """Return what a certificate (DER) says of itself; raises ValueError."""
    shown = x509.load_der_x509_certificate(octets)
    return Certificate(
        subject=_common_name(shown.subject),
        issuer=_common_name(shown.issuer),
        organisation=_named(shown.issuer, NameOID.ORGANIZATION_NAME),
        not_before=_moment(shown, "not_valid_before"),
        not_after=_moment(shown, "not_valid_after"),
    )


def _moment(shown: x509.Certificate, which: str) -> datetime:
    aware = getattr(shown, f"{which}_utc", None)  # cryptography 42 and later; the other one warns
    found: datetime = aware if aware is not None else getattr(shown, which)
    return found.replace(tzinfo=UTC)


def _common_name(name: x509.Name) -> str:
    return _named(name, NameOID.COMMON_NAME) or name.rfc4514_string()[:200] or "nobody"


def _named(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value)[:200] if found else ""


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "it broke off").lower().replace("_", " ")
    return error.strerror or str(error) or type(error).__name__
