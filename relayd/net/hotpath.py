"""One POST over a kept TLS connection, with our own framing: the hot request of a worker.

urllib3 makes the connections (TLS, verification, CONNECT); its `urlopen` and http.client
are gone round because they cost ten times what the octets do (docs: bench). What they take
care of is taken care of here:

    a kept connection that the server has closed is found out before writing; if the very
        first write fails on it, or a 408 met the request on its way, a fresh one is taken,
        once. Once an octet of the request may have been read, nothing is ever repeated here
    one deadline for the whole exchange; a body of known length, never more, never less
    1xx, chunked, no length, Connection: close, HTTP/1.0, folded and huge headers, garbage
    an answer that comes before the request is complete ends the sending; a 1xx does not, for
        it may come at any time, asked for or not

An answer counts from its head on: a body that breaks off is cut, and the connection closed.

Source: RFC 9112 (HTTP/1.1), RFC 9110 §15.2 (1xx), RFC 9112 §9.3.1 (retrying requests),
RFC 9110 §15.5.9 (408).
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol
from urllib.parse import urlsplit

import gevent
import gevent.socket
import urllib3
from gevent import get_hub
from gevent.monkey import get_original

from relayd.clock import SYSTEM, Clock
from relayd.net.http import ConnectFailed, Response, Stage, Unanswered
from relayd.net.patience import Patience
from relayd.values import frozen

MAX_HEAD_BYTES: Final = 65_536
MAX_BODY_BYTES: Final = 65_536
_MAX_SKIPPED_BYTES: Final = 1_048_576
_MAX_INTERIM: Final = 8
_MAX_INTERIM_MEANWHILE: Final = 64
"""While a body is written: a gateway may say 102 every few seconds."""

_FIRST_WRITE_BYTES: Final = 16_384
"""One TLS record: if its write fails, the server cannot have read any of the request."""

_IDLE_LIMIT_S: Final = 45.0
"""Kept connections older than this are not trusted: the server may close any moment."""

_SHORTEST_S: Final = 0.001  # 0 would make the socket non-blocking
_MOST_READ: Final = 8192  # an answer is short; a larger buffer costs more than the read
_READ: Final = 1  # the event loop's word for "readable"
_POLL: Final = get_original(
    "select", "poll"
)  # one that does not wait: gevent's would go to the hub

_DIALLING_FIRST_S: Final = 0.25
"""The dialling has the same limit, and says more when it ends by itself."""

_UNACKED: Final = struct.Struct("=24xI")
"""tcpi_unacked in Linux's tcp_info: segments sent and not acknowledged, see tcp(7)."""

_LATE_ANSWER_S: Final = 2.0
"""How long an answer is waited for after the writing broke."""


@frozen
class Body:
    """What is sent. length: octets in all; whole: all of it, or pieces that yield it."""

    length: int
    whole: bytes = b""
    pieces: Iterator[bytes] | None = None


class BodyMismatch(RuntimeError):
    """The pieces were not as long as promised: a bug; the request was not completed."""


class _NoHead(Exception):
    """The answer's head did not come. stage: "answer" or "garbled"."""

    def __init__(self, stage: Stage, text: str) -> None:
        super().__init__(text)
        self.stage: Stage = stage


class HotPath:
    """POSTs to one origin; owned by one upstream of one worker, used by all its greenlets.

    opened: connections made so far.
    """

    def __init__(
        self,
        manager: urllib3.PoolManager,
        url: str,
        *,
        connect_timeout_s: float = 10.0,
        max_idle: int = 8,
        clock: Clock = SYSTEM,
    ) -> None:
        """Prepare; nothing is connected yet. raises: ValueError - not a usable URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an HTTP address: {url!r}")
        self._pool = manager.connection_from_url(f"{parts.scheme}://{parts.netloc}")
        if self._pool.proxy is not None and parts.scheme != "https":
            raise ValueError("through a proxy only https goes")
        self._fixed = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode("ascii")
        self._connect_timeout_s = connect_timeout_s
        self._max_idle = max_idle
        self._clock = clock
        self._idle: list[_Link] = []
        self.opened = 0

    def post(
        self,
        path: bytes,
        headers: bytes,
        body: Body,
        *,
        deadline: float,
        may_begin: Callable[[], bool] | None = None,
    ) -> Response | Unanswered:
        """Send one POST and return what came of it; never raises for remote failures.

        path:      as on the request line, already quoted.
        headers:   whole lines, each ending in CRLF, without Host and Content-Length.
        deadline:  monotonic, for everything from look-up to the end of the answer.
        may_begin: asked just before the first octet; False: stage "time".
        raises:    what `body.pieces` raises, and BodyMismatch; the server then has not got
                   the whole request.
        """
        start = self._clock.monotonic()
        # SECURITY: a line break in a mailbox name or token would let its owner write headers.
        if b"\n" in path or b" " in path or b"\r" in path:
            raise ValueError("not a request path")
        first = b"".join(
            (
                b"POST ",
                path,
                self._fixed,
                headers,
                b"Content-Length: %d\r\n\r\n" % body.length,
                body.whole,
            )
        )
        link = self._kept(start)
        while True:
            kept = link is not None
            if link is None:
                opened = self._open(deadline)
                if isinstance(opened, ConnectFailed):
                    elapsed_s = self._clock.monotonic() - start
                    return Unanswered(opened.stage, opened.text, False, elapsed_s)
                link = opened
            began = self._clock.monotonic()
            if began >= deadline or (may_begin is not None and not may_begin()):
                self._keep(link, began)
                return Unanswered("time", "no time left to begin", False, began - start)
            result = self._exchange(link, first, body, began, deadline, kept=kept)
            if result is not None:
                return result
            link = None  # the kept connection was dead before the first octet

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(
        self, link: _Link, first: bytes, body: Body, began: float, deadline: float, *, kept: bool
    ) -> Response | Unanswered | None:
        """Return None when `link` was dead and not one octet can have been read."""
        try:
            error = self._write(link, first, body, deadline)
            if error is None:
                response = self._read(link, began, deadline, sent_all=True)
                if response.status == 408 and kept and body.pieces is None and link.is_unread():
                    # RFC 9110 §15.5.9: it was idle for too long, and ends as we write.
                    link.close()
                    return None
                self._keep(link, began + response.elapsed_s)
                return response
            if kept and not link.wrote and not isinstance(error, TimeoutError):
                link.close()
                return None
            # The server may have answered (413, 401) and closed while we were writing.
            link.reusable = False
            late = min(deadline, self._clock.monotonic() + _LATE_ANSWER_S)
            try:
                return self._read(link, began, late, sent_all=False)
            except _NoHead:
                elapsed_s = self._clock.monotonic() - began
                return Unanswered("send", _words(error), False, elapsed_s)
            finally:
                link.close()
        except _NoHead as failure:
            link.close()
            elapsed_s = self._clock.monotonic() - began
            return Unanswered(failure.stage, str(failure), True, elapsed_s)
        except BaseException:
            link.close()  # a half-written request must never be followed by another
            raise

    # --- connections ---------------------------------------------------------------------

    def _kept(self, now: float) -> _Link | None:
        """Return a kept connection that the server has not closed, the youngest first."""
        while self._idle:
            link = self._idle.pop()
            if now < link.stale_at and link.is_quiet():
                return link
            link.close()
        return None

    def _keep(self, link: _Link, now: float) -> None:
        if not link.reusable or len(self._idle) >= self._max_idle:
            link.close()
            return
        link.wrote = False
        link.stale_at = now + link.idle_limit_s
        self._idle.append(link)
        if self._idle[0].stale_at <= now:
            self._idle.pop(0).close()

    def _open(self, deadline: float) -> _Link | ConnectFailed:
        """Connect: look-up, TCP, proxy and TLS together, within twice `connect_timeout_s`."""
        left_s = deadline - self._clock.monotonic()
        if left_s <= 0:
            return ConnectFailed("time", "no time left to connect")
        connection = self._pool._new_conn()  # noqa: SLF001  the pool's own way to a connection with its TLS settings
        # All addresses together may take twice what one may.
        budget_s = connection.timeout = min(left_s, 2 * self._connect_timeout_s)
        through = self._pool.proxy is not None
        # Each wait of a handshake is bounded, their number is not: who sends an octet now and
        # then would hold this greenlet, and its mailbox's slot, for ever. An OSError, so that
        # those who have the socket half made close it.
        overdue = ConnectFailed("proxy" if through else "tls", f"not open within {budget_s:.3g} s")
        limit = gevent.Timeout.start_new(budget_s + _DIALLING_FIRST_S, overdue)
        try:
            if through:
                self._pool._prepare_proxy(connection)  # noqa: SLF001  CONNECT, as urlopen does it
            else:
                connection.connect()
        except ConnectFailed as error:
            connection.close()
            return error
        except (ssl.SSLError, urllib3.exceptions.SSLError, ValueError) as error:
            # urllib3's own CertificateError, for a host name that does not match, is a ValueError.
            connection.close()
            return ConnectFailed("tls", _words(error))
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            connection.close()
            return ConnectFailed("proxy" if through else "tls", _words(error))
        except BaseException:
            connection.close()
            raise
        finally:
            limit.close()
        self.opened += 1
        wire: _Wire = getattr(connection, "sock")  # noqa: B009  1.26 has no annotation for it
        return _Link(connection, wire, self._clock)

    # --- writing -------------------------------------------------------------------------

    def _write(self, link: _Link, first: bytes, body: Body, deadline: float) -> OSError | None:
        """Write everything; return what went wrong at the other end."""
        written, interim = len(body.whole), 0
        try:
            link.send(first, deadline)
        except OSError as error:
            return error
        for piece in body.pieces or ():
            written += len(piece)
            if written > body.length:
                break
            # An answer before the end is a refusal; a TLS record that is none costs nothing.
            if not link.is_quiet():
                interim += link.drop_interim(_MAX_INTERIM_MEANWHILE - interim)
                if not link.reusable:
                    return ConnectionAbortedError("the server answered before the end")
            try:
                link.send(piece, deadline)
            except OSError as error:
                return error
        if written != body.length:
            raise BodyMismatch(f"{written} octets for a length of {body.length}")
        return None

    # --- reading -------------------------------------------------------------------------

    def _read(self, link: _Link, began: float, deadline: float, *, sent_all: bool) -> Response:
        """Read one answer; raises _NoHead when none came or it cannot be read."""
        source = _Source(link, deadline)
        for _ in range(_MAX_INTERIM):
            head = parse_head(source.head())
            if head.status >= 200:
                break
            if head.status == 101:
                raise _NoHead("garbled", "the server switched protocols")
        else:
            raise _NoHead("garbled", "nothing but interim answers")
        octets, is_complete = _read_body(source, head)
        link.reusable = sent_all and is_complete and head.keeps_open and not source.buffer
        if head.idle_limit_s is not None:
            link.idle_limit_s = min(_IDLE_LIMIT_S, max(head.idle_limit_s - 1.0, 0.0))
        elapsed_s = self._clock.monotonic() - began
        return Response(head.status, head.headers, octets, sent_all, elapsed_s)


class _Wire(Protocol):
    """A socket, a TLS socket, or urllib3's TLS inside TLS (through an https proxy)."""

    def fileno(self) -> int: ...
    def settimeout(self, value: float | None, /) -> None: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def recv(self, buflen: int, /) -> bytes: ...


class _Connection(Protocol):
    """What is needed of urllib3's connections besides their socket."""

    def close(self) -> None: ...


class _Link:
    """One open connection; one greenlet uses it at a time.

    wrote: an octet of a request has gone out since it was kept.
    early: octets that `is_quiet` found.
    """

    __slots__ = (
        "_clock", "_connection", "_must_wait", "_patience", "_poll", "_readable", "_until_readable",
        "early", "idle_limit_s", "reusable", "sock", "stale_at", "wrote",
    )  # fmt: skip

    def __init__(self, connection: _Connection, wire: _Wire, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self.sock = wire
        self.wrote = False
        self.early = b""
        self.reusable = True
        self.idle_limit_s = _IDLE_LIMIT_S
        self.stale_at = 0.0
        self._must_wait = False  # nothing was received since the last write
        self._patience: Patience | None = None  # None: the wire waits by itself
        if isinstance(wire, socket.socket):  # TLS inside TLS must not be left half-way
            wire.settimeout(0.0)
            self._patience = Patience(clock)
            self._poll = _POLL()
            self._poll.register(wire.fileno(), select.POLLIN)
            self._readable = get_hub().loop.io(wire.fileno(), _READ)
            self._until_readable = partial(get_hub().wait, self._readable)

    def send(self, octets: bytes, deadline: float) -> None:
        """Send all of it; raises OSError, TimeoutError when the deadline comes first.

        Of the first octets of a request so few that, if it fails, the server has read none.
        """
        view, sent = memoryview(octets), 0
        while sent < len(octets):
            limit = len(octets) if self.wrote else _FIRST_WRITE_BYTES
            if self._patience is None:
                self.sock.settimeout(max(deadline - self._clock.monotonic(), _SHORTEST_S))
                sent += self.sock.send(view[sent:limit])
            else:
                try:
                    count = self.sock.send(view[sent:limit])
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    count = 0
                if not count:  # so gevent's TLS says it: asked again at once, nobody else would run
                    self._wait(self._until_writable, deadline)
                    continue
                sent += count
            self.wrote = self._must_wait = True

    def receive(self, deadline: float) -> bytes:
        """Return 1..8192 octets; b"" at the end.

        deadline: monotonic. raises: OSError, TimeoutError when the deadline comes first.
        """
        if self._patience is None:
            self.sock.settimeout(max(deadline - self._clock.monotonic(), _SHORTEST_S))
            return self.sock.recv(_MOST_READ)
        if self._must_wait:
            self._must_wait = False
            self._wait(self._until_readable, deadline)
        while True:
            try:
                return self.sock.recv(_MOST_READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(self._until_readable, deadline)
            except ssl.SSLWantWriteError:  # TLS has something of its own to say first
                self._wait(self._until_writable, deadline)

    def is_quiet(self) -> bool:
        """Tell whether there is nothing to read: no answer, no end, no error.

        A read that does not wait takes in what TLS itself has to say (session tickets).
        """
        if not self.reusable:
            return False
        if self._patience is None:
            self.sock.settimeout(0.0)
        elif not self._poll.poll(0):
            return True
        self._must_wait = False  # TLS may keep the rest of what is read now
        try:
            octets = self.sock.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            octets = b""
        self.reusable = False
        self.early += octets
        return False

    def drop_interim(self, limit: int) -> int:
        """Drop the interim answers that `is_quiet` met; return how many, at most `limit`.

        `reusable` again if that is all there was; what may become another one stays in `early`.
        RFC 9110 §15.2: a client must take any number of 1xx, also where it asked for none.
        """
        dropped = 0
        while _may_be_interim(self.early) and len(self.early) <= MAX_HEAD_BYTES:
            end = _END_OF_HEAD.search(self.early)
            if end is None:
                octets = self._at_hand()
                self.reusable = octets is None
                if not octets:
                    break
                self.early += octets
            elif dropped < limit:
                self.early = self.early[end.end() :]
                dropped += 1
            else:
                break
        return dropped

    def _at_hand(self) -> bytes | None:
        """Return octets that need not be waited for; b"" at the end, None when there are none.

        To be called until there are none: what TLS keeps back no poll tells of.
        """
        if self._patience is None:
            self.sock.settimeout(0.0)
        try:
            return self.sock.recv(_MOST_READ)
        except (ssl.SSLWantReadError, BlockingIOError):
            return None
        except OSError:
            return b""

    def is_unread(self) -> bool:
        """Tell whether the end of what was sent has certainly not reached the other host.

        What it says after that would acknowledge it. False when nobody can tell.
        """
        if not isinstance(self.sock, socket.socket):
            return False
        try:
            told = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
        except OSError:
            return False
        return len(told) == _UNACKED.size and _UNACKED.unpack(told)[0] > 0

    def _wait(self, wait: Callable[[], object], deadline: float) -> None:
        if self._patience is None or not self._patience.wait(wait, deadline):
            raise TimeoutError("timed out")

    def _until_writable(self) -> None:
        gevent.socket.wait_write(self.sock.fileno())

    def close(self) -> None:
        """Close; never raises."""
        self.reusable = False
        if self._patience is not None:
            self._patience.close()
            self._readable.close()
        try:
            self._connection.close()
        except OSError:
            return


class _Source:
    """Octets of one connection, with what was read too far."""

    __slots__ = ("_deadline", "_link", "buffer")

    def __init__(self, link: _Link, deadline: float) -> None:
        self._link = link
        self._deadline = deadline
        self.buffer = link.early
        link.early = b""

    def more(self) -> bool:
        """Take in what comes next; False at the end; raises OSError, also for the deadline."""
        octets = self._link.receive(self._deadline)
        self.buffer = self.buffer + octets if self.buffer else octets
        return bool(octets)

    def head(self) -> bytes:
        """Return the next head, its empty line included; raises _NoHead."""
        while True:
            end = _END_OF_HEAD.search(self.buffer) if self.buffer else None
            if end is not None:
                head, self.buffer = self.buffer[: end.end()], self.buffer[end.end() :]
                return head
            if len(self.buffer) > MAX_HEAD_BYTES:
                raise _NoHead("garbled", "the answer's head is too long")
            try:
                goes_on = self.more()
            except OSError as error:
                raise _NoHead("answer", _words(error)) from error
            if not goes_on:
                if self.buffer and not _STATUS_LINE.match(self.buffer):
                    raise _NoHead("garbled", f"not HTTP: {self.buffer[:40]!r}")
                raise _NoHead("answer", "the server closed without an answer")

    def take(self, count: int) -> bytes | None:
        """Return exactly `count` octets; None when they do not come."""
        if count == 0:
            return b""
        while len(self.buffer) < count:
            if not self.more():
                return None
        octets, self.buffer = self.buffer[:count], self.buffer[count:]
        return octets

    def line(self) -> bytes | None:
        """Return a line without its end; None when it does not come or is absurd."""
        while b"\n" not in self.buffer:
            if len(self.buffer) > 4096 or not self.more():
                return None
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.rstrip(b"\r")


@frozen
class Head:
    """A response's head. length: of the body, octets; None: chunked, or until the end."""

    status: int
    headers: dict[str, str]
    keeps_open: bool
    length: int | None
    is_chunked: bool
    idle_limit_s: float | None


_MOST_DIGITS: Final = 15
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01])[ \t]+(\d{3})(?=[ \t\r\n])")
_INTERIM_BEGUN: Final = re.compile(rb"HTTP/1\.(?:[01](?:[ \t]{1,8}(?:1\d{0,2})?)?)?")
_FIELD: Final = re.compile(r"\n([!-9;-~]+):[ \t]*+((?:[!-~]++|[ \t]++(?=[!-~]))*)[ \t]*+\r(?=\n)")
_KEEP_ALIVE: Final = re.compile(r"timeout=(\d{1,6})")


def parse_head(octets: bytes) -> Head:
    """Read a status line and header lines; raises _NoHead("garbled").

    Lines without a colon are skipped, folded ones joined. A length that is no number, or two
    that differ, means: the body ends with the connection.
    """
    match = _STATUS_LINE.match(octets)
    if match is None:
        raise _NoHead("garbled", f"not HTTP: {octets[:40]!r}")
    status = int(match[2])
    headers = _fields(octets.decode("latin-1"))
    is_chunked = "transfer-encoding" in headers
    length = None if is_chunked else _length(headers.get("content-length"))
    if status < 200 or status in (204, 304):
        length, is_chunked = 0, False
    keep = headers.get("keep-alive")
    timeout = _KEEP_ALIVE.search(keep) if keep else None
    is_new = match[1] == b"1"
    connection = headers.get("connection")
    return Head(
        status,
        headers,
        is_new if connection is None else _keeps_open(connection.lower(), is_new=is_new),
        length,
        is_chunked,
        float(timeout[1]) if timeout else None,
    )


def _may_be_interim(octets: bytes) -> bool:
    """Tell whether what begins so is, or may become, an interim answer (1xx but 101)."""
    match = _STATUS_LINE.match(octets)
    if match is not None:
        return match[2].startswith(b"1") and match[2] != b"101"
    return b"HTTP/1.".startswith(octets) or _INTERIM_BEGUN.fullmatch(octets) is not None


def _fields(text: str) -> dict[str, str]:
    """Return the header fields below a status line, their names in lower case."""
    plain = _FIELD.findall(text)
    headers = {name.lower(): value for name, value in plain}
    # Every line a field, no name twice: the ordinary case.
    if len(headers) == len(plain) == text.count("\n") - 2:
        return headers
    return _line_by_line(text)


def _line_by_line(text: str) -> dict[str, str]:
    """Return the same, whatever stands there: folded lines are joined, odd ones left out."""
    headers: dict[str, str] = {}
    name = ""
    for line in text.split("\n")[1:]:
        if line[:1] in (" ", "\t"):
            if name:
                headers[name] += " " + line.strip()
            continue
        key, colon, value = line.partition(":")
        if not colon:
            continue
        name = key.strip().lower()
        value = value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _keeps_open(connection: str, *, is_new: bool) -> bool:
    if not connection:
        return is_new
    return "close" not in connection and (is_new or "keep-alive" in connection)


def _length(value: str | None) -> int | None:
    if value is None:
        return None
    if value.isdigit() and value.isascii() and len(value) <= _MOST_DIGITS:
        return int(value)
    values = {part.strip() for part in value.split(",")}
    text = values.pop()
    if values or not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS:
        return None
    return int(text)


def _read_body(source: _Source, head: Head) -> tuple[bytes, bool]:
    """Return (the body, cut to MAX_BODY_BYTES; whether its end is certain)."""
    try:
        if head.is_chunked:
            return _read_chunked(source)
        if head.length is None:
            while len(source.buffer) < MAX_BODY_BYTES and source.more():
                pass
            return source.buffer[:MAX_BODY_BYTES], False
        if head.length <= MAX_BODY_BYTES:
            octets = source.take(head.length)
            return (source.buffer, False) if octets is None else (octets, True)
        octets = source.take(MAX_BODY_BYTES)
        return (octets or source.buffer), False
    except OSError:
        return source.buffer[:MAX_BODY_BYTES], False


def _read_chunked(source: _Source) -> tuple[bytes, bool]:
    body, total = bytearray(), 0
    try:
        while True:
            line = source.line()
            size = _chunk_size(line)
            if size is None or total + size > _MAX_SKIPPED_BYTES:
                return bytes(body), False
            if size == 0:
                return bytes(body), _read_trailers(source)
            total += size
            chunk = source.take(size)
            if chunk is None or source.line() != b"":
                return bytes(body), False
            body += chunk[: MAX_BODY_BYTES - len(body)]
    except OSError:
        return bytes(body), False


def _chunk_size(line: bytes | None) -> int | None:
    if line is None:
        return None
    text = line.partition(b";")[0].strip()
    if not text or len(text) > 8 or text.strip(b"0123456789abcdefABCDEF"):
        return None
    return int(text, 16)


def _read_trailers(source: _Source) -> bool:
    for _ in range(64):
        line = source.line()
        if not line:
            return line is not None
    return False


def _words(error: BaseException) -> str:
    """Return what an error says, without Python's decoration; for the operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "time-out"
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__
