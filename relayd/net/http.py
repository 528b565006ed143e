"""The ways out over HTTPS: name look-up, dialling, trusted roots, urllib3's pool.

    Resolver    names looked up once stay usable while DNS is away
    Dialer      several addresses raced, each with its own limit, all within one budget
    roots       an SSLContext with the system's roots or one's own; loading costs 21 ms,
                so it is kept
    pool        urllib3's PoolManager on top of these, retries off: only the spool knows
                whether a request may be sent again

Nothing here reads the environment: proxy and roots come from the configuration. Works the
same under gevent (where threads are greenlets and getaddrinfo runs in gevent's pool) and
without it.

Source: RFC 8305 (happy eyeballs), urllib3 1.26 and 2.x.
"""

from __future__ import annotations

import base64
import errno
import functools
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Http
from relayd.values import frozen

Stage: TypeAlias = Literal["dns", "connect", "tls", "proxy", "send", "answer", "garbled", "time"]

_FRESH_S: Final = 60.0
"""A look-up is not repeated within this time."""

_PATIENCE_S: Final = 2.0
"""How long a look-up is waited for while an older answer is at hand."""

_HEAD_START_S: Final = 0.25  # RFC 8305 §5, Connection Attempt Delay

_SYSTEM_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
)


@frozen
class Response:
    """An answer. headers: names in lower case, repeated ones joined by ", ".

    body:      at most `MAX_BODY_BYTES`, cut there.
    sent_all:  False when the answer came before the request was complete.
    elapsed_s: from the first octet written to the answer.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    sent_all: bool
    elapsed_s: float


@frozen
class Unanswered:
    """No answer. stage: what was going on; sent_all: the server may have acted on it.

    stage "dns", "connect", "tls", "proxy": no octet of the request was written.
    "send": broke while writing. "answer": written, then silence or a reset.
    "garbled": written, then something that is no HTTP. "time": none left to begin.
    """

    stage: Stage
    text: str
    sent_all: bool
    elapsed_s: float


class ConnectFailed(OSError):
    """No connection; `stage` says where it ended."""

    def __init__(self, stage: Stage, text: str) -> None:
        super().__init__(text)
        self.stage: Stage = stage
        self.text = text


@frozen
class SocketAddress:
    """One result of getaddrinfo. where: what connect takes."""

    family: int
    where: tuple[str, int] | tuple[str, int, int, int]


@dataclass(slots=True)
class _Known:
    """What is known of one (host, port)."""

    addresses: tuple[SocketAddress, ...] = ()
    looked_up_at: float = -1e9
    error: str = ""
    running: threading.Event | None = None


@dataclass(slots=True)
class Resolver:
    """Names to addresses, for one process; a good answer is kept for when DNS is away.

    lookup: (host, port) -> addresses; raises OSError. Replaced in tests.
    """

    clock: Clock = SYSTEM
    lookup: Callable[[str, int], Sequence[SocketAddress]] = field(
        default_factory=lambda: system_lookup
    )
    _known: dict[tuple[str, int], _Known] = field(default_factory=dict)

    def addresses(self, host: str, port: int, *, timeout_s: float) -> tuple[SocketAddress, ...]:
        """Return at least one address, IPv6 and IPv4 in turns.

        An answer younger than a minute is used as it is. An older one is used when the
        look-up fails or takes longer than 2 s. raises: ConnectFailed("dns").
        """
        known = self._known.setdefault((host, port), _Known())
        if known.addresses and self.clock.monotonic() - known.looked_up_at < _FRESH_S:
            return known.addresses
        patience_s = min(timeout_s, _PATIENCE_S) if known.addresses else timeout_s
        self._begin(host, port, known).wait(patience_s)
        if known.addresses:
            return known.addresses
        raise ConnectFailed("dns", f"{host}: {known.error or 'no answer from the name server'}")

    def distrust(self, host: str, port: int) -> None:
        """Nobody answered there: look the name up again before the next dialling."""
        known = self._known.get((host, port))
        if known is not None:
            known.looked_up_at = -1e9

    def _begin(self, host: str, port: int, known: _Known) -> threading.Event:
        """Start a look-up, or join the one under way: a stuck one must not become ten."""
        if known.running is not None:
            return known.running
        done = known.running = threading.Event()

        def run() -> None:
            try:
                found = tuple(self.lookup(host, port))
                if found:
                    known.addresses = _interleaved(found)
                    known.looked_up_at = self.clock.monotonic()
                known.error = "" if found else "no addresses"
            except (OSError, UnicodeError) as error:
                known.error = str(getattr(error, "strerror", None) or error)
            finally:
                known.running = None
                done.set()

        threading.Thread(target=run, name=f"lookup {host}", daemon=True).start()
        return done


def system_lookup(host: str, port: int) -> list[SocketAddress]:
    """Ask the system's resolver; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [SocketAddress(int(family), _where(where)) for family, _, _, _, where in found]


def _where(where: tuple[object, ...]) -> tuple[str, int] | tuple[str, int, int, int]:
    match where:
        case (str(host), int(port), int(flow), int(scope)):
            return host, port, flow, scope
        case (str(host), int(port)):
            return host, port
        case _:
            raise OSError(errno.EAFNOSUPPORT, f"not an internet address: {where!r}")


def _interleaved(addresses: Sequence[SocketAddress]) -> tuple[SocketAddress, ...]:
    """Order by family in turns, the first one's family first (RFC 8305 §4)."""
    first = [a for a in addresses if a.family == addresses[0].family]
    other = [a for a in addresses if a.family != addresses[0].family]
    out: list[SocketAddress] = []
    while first or other:
        out += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return tuple(out)


@dataclass(slots=True)
class Dialer:
    """Opens TCP connections. each_s: limit for one address, seconds."""

    resolver: Resolver
    each_s: float = 10.0
    clock: Clock = SYSTEM

    def open(self, host: str, port: int, *, budget_s: float) -> socket.socket:
        """Return a connected socket, TCP_NODELAY and keepalive set, time-out `each_s`.

        host:   a name or an address, without brackets.
        raises: ConnectFailed ("dns" or "connect"), within `budget_s`.
        """
        deadline = self.clock.monotonic() + budget_s
        addresses = self.resolver.addresses(host.strip("[]"), port, timeout_s=budget_s)
        race = _Race(deque(addresses), self.each_s, deadline, self.clock)
        try:
            sock = race.run()
        except ConnectFailed:
            self.resolver.distrust(host.strip("[]"), port)
            raise
        finally:
            race.close_losers()
        sock.settimeout(max(min(self.each_s, deadline - self.clock.monotonic()), 0.001))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock


class _Race:
    """Connections begun one after the other, a quarter second apart; the first one wins."""

    def __init__(
        self, addresses: deque[SocketAddress], each_s: float, deadline: float, clock: Clock
    ) -> None:
        self._waiting = addresses
        self._running: dict[int, tuple[socket.socket, float, str]] = {}
        self._each_s = each_s
        self._deadline = deadline
        self._clock = clock
        self._next_start = 0.0
        self._errors: list[str] = []

    def run(self) -> socket.socket:
        while self._waiting or self._running:
            now = self._clock.monotonic()
            if now >= self._deadline:
                self._errors.append("time-out")
                break
            if self._waiting and (not self._running or now >= self._next_start):
                winner = self._start(self._waiting.popleft(), now)
                if winner is not None:
                    return winner
                continue
            winner = self._wait(now)
            if winner is not None:
                return winner
        raise ConnectFailed("connect", "; ".join(dict.fromkeys(self._errors)) or "no address")

    def close_losers(self) -> None:
        for sock, _, _ in self._running.values():
            sock.close()
        self._running.clear()

    def _start(self, address: SocketAddress, now: float) -> socket.socket | None:
        name = f"{address.where[0]}"
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # no IPv6 in this kernel
            self._errors.append(f"{name}: {error.strerror}")
            return None
        sock.setblocking(False)
        code = sock.connect_ex(address.where)
        if code == 0:
            return sock
        if code not in (errno.EINPROGRESS, errno.EAGAIN, errno.EWOULDBLOCK):
            sock.close()
            self._errors.append(f"{name}: {os.strerror(code)}")
            return None
        self._running[sock.fileno()] = sock, now + self._each_s, name
        self._next_start = now + _HEAD_START_S
        return None

    def _wait(self, now: float) -> socket.socket | None:
        """Wait for the first news, or until something else is to be done."""
        until = min([self._deadline, *(end for _, end, _ in self._running.values())])
        if self._waiting:
            until = min(until, self._next_start)
        poll = select.poll()
        for number in self._running:
            poll.register(number, select.POLLOUT)
        for number, _ in poll.poll(max(int((until - now) * 1000) + 1, 0)):
            sock, _, name = self._running.pop(number)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return sock
            sock.close()
            self._errors.append(f"{name}: {os.strerror(code)}")
        now = self._clock.monotonic()
        for number, (sock, end, name) in list(self._running.items()):
            if now >= end:
                del self._running[number]
                sock.close()
                self._errors.append(f"{name}: time-out")
        return None


@functools.lru_cache(maxsize=16)
def roots(ca_file: str = "", *, matched_by_urllib3: bool = False) -> ssl.SSLContext:
    """Return a client context that trusts `ca_file`, or the system's roots; kept.

    matched_by_urllib3: only for its pools, which compare the host name themselves (1.26 gives
            OpenSSL no name to compare where the host is an address).
    raises: OSError, ssl.SSLError - the file is missing or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # SECURITY: without urllib3 behind it, such a context would take anybody's certificate.
    context.check_hostname = not matched_by_urllib3
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
        return context
    # Not load_default_certs: SSL_CERT_FILE of whoever started us must not decide whom we trust.
    places = ssl.get_default_verify_paths()
    for path in (*_SYSTEM_ROOTS, places.openssl_cafile):
        if os.path.isfile(path):
            context.load_verify_locations(cafile=path)
            return context
    if os.path.isdir(places.openssl_capath):
        context.load_verify_locations(capath=places.openssl_capath)
        return context
    raise FileNotFoundError(errno.ENOENT, "no root certificates; install ca-certificates")


class _Direct(urllib3.PoolManager):
    """Follows nothing and repeats nothing; 1.26 does both unless each request forbids it."""

    def urlopen(  # type: ignore[override]  # urllib3's own classes differ among themselves
        self,
        method: str,
        url: str,
        redirect: bool = False,  # noqa: FBT001, FBT002, ARG002  the library's signature
        **settings: Any,
    ) -> urllib3.response.BaseHTTPResponse:
        """See urllib3; `redirect` is not obeyed."""
        settings.setdefault("retries", False)
        return super().urlopen(method, url, redirect=False, **settings)


class _Proxied(urllib3.ProxyManager):
    """The same through a proxy."""

    def urlopen(  # type: ignore[override]  # urllib3's own classes differ among themselves
        self,
        method: str,
        url: str,
        redirect: bool = False,  # noqa: FBT001, FBT002, ARG002  the library's signature
        **settings: Any,
    ) -> urllib3.response.BaseHTTPResponse:
        """See urllib3; `redirect` is not obeyed."""
        settings.setdefault("retries", False)
        return super().urlopen(method, url, redirect=False, **settings)


def pool(
    http: Http,
    *,
    ca_file: str = "",
    size: int = 4,
    dialer: Dialer | None = None,
) -> urllib3.PoolManager:
    """Make the PoolManager of one upstream: retries off, no redirects, roots and proxy set.

    ca_file: of the cloud; else that of [http]; else the system's.
    size:    connections kept open to one host.
    raises:  OSError, ssl.SSLError - the roots cannot be read; ValueError - the proxy's URL.
    """
    dialer = dialer or Dialer(Resolver(), each_s=http.connect_timeout)
    context = roots(ca_file or http.ca_file, matched_by_urllib3=True)
    timeout = urllib3.Timeout(connect=http.connect_timeout * 2, read=http.token_timeout)
    manager: urllib3.PoolManager
    if http.proxy:
        parts = urlsplit(http.proxy)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("[http] proxy: http://host:port or https://host:port is wanted")
        manager = _Proxied(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            proxy_headers=_proxy_headers(parts.username, parts.password),
            proxy_ssl_context=roots(http.ca_file),
            num_pools=8,
            maxsize=size,
            timeout=timeout,
            retries=False,
            ssl_context=context,
            cert_reqs="CERT_REQUIRED",
        )
    else:
        manager = _Direct(
            num_pools=8,
            maxsize=size,
            timeout=timeout,
            retries=False,
            ssl_context=context,
            cert_reqs="CERT_REQUIRED",
        )
    manager.pool_classes_by_scheme = _dialled_pools(dialer)
    return manager


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    login = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login).decode("ascii")}


def _dialled_pools(
    dialer: Dialer,
) -> dict[str, type[urllib3.HTTPConnectionPool | urllib3.HTTPSConnectionPool]]:
    """Return urllib3's pools with our dialling in the place of theirs."""

    def dial(connection: HTTPConnection) -> socket.socket:
        budget = connection.timeout
        budget_s = float(budget) if isinstance(budget, int | float) else dialer.each_s
        port = connection.port or connection.default_port or 443
        return dialer.open(str(connection._dns_host), port, budget_s=budget_s)  # noqa: SLF001  the seam that urllib3 offers

    class DialledHttp(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self)

    class DialledHttps(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self)

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = DialledHttp

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = DialledHttps

    return {"http": HttpPool, "https": HttpsPool}
