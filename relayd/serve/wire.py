"""A session's socket: octets with deadlines, TLS begun in the middle, an end without RST.

Works on gevent's sockets (a worker's are all patched) and blocks its greenlet only. A
deadline is the socket's own time-out: gevent starts a timer for it only when it really has
to wait (measured: 0.2 us a call, where a gevent.Timeout around each costs 1.5).

Source: RFC 3207 §4 (STARTTLS), RFC 8446 §6.1 (close_notify), RFC 1122 §4.2.2.13 (RST on a
close with unread octets; the client would lose the reply it has not read yet).
"""

from __future__ import annotations

import fcntl
import os
import ssl
import struct
import termios
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import gevent
from gevent import get_hub, getcurrent, socket
from greenlet import greenlet

from relayd.clock import SYSTEM
from relayd.serve.session import PeerGone, PeerSilent

MAX_RECEIVE: Final = 65536
HANDSHAKE_S: Final = 30.0
SEND_S: Final = 60.0
LINGER_S: Final = 1.0
"""How long a closed session waits for the peer's own end, so that it reads our last reply."""

_MAX_LINGER: Final = 1 << 20
_SHORTEST_S: Final = 0.001  # 0 would make the socket non-blocking

_HANDSHAKE_WORDS: Final[Mapping[str, str]] = {
    "UNSUPPORTED_PROTOCOL": "the client knows only TLS versions this listener does not allow",
    "VERSION_TOO_LOW": "the client knows only TLS versions this listener does not allow",
    "NO_SHARED_CIPHER": "the client and this listener share no cipher",
    "HTTP_REQUEST": "the client speaks HTTP",
    "WRONG_VERSION_NUMBER": "the client does not speak TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not trust our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not trust our certificate",
    "UNEXPECTED_EOF_WHILE_READING": "the client closed the connection",
}


class _Woken(BaseException):
    """Thrown into a greenlet that waits in `receive`; never leaves this file."""


class SocketWire:
    """One accepted connection; owns the socket from here on. sock: gevent's, connected."""

    __slots__ = ("_socket", "_unwrap", "_waiter")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._waiter: greenlet | None = None  # who waits in `receive` now
        self._unwrap: Callable[[], object] | None = None  # says close_notify; None: no TLS
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # gone already: the first `receive` will tell
                _tune(sock)

    @property
    def is_secure(self) -> bool:
        """True once TLS is up."""
        return self._unwrap is not None

    def receive(self, timeout_s: float) -> bytes:
        """Return 1..65536 octets; b"" at end of file, or after `wake`.

        raises: PeerSilent, PeerGone.
        """
        self._socket.settimeout(max(timeout_s, _SHORTEST_S))
        self._waiter = getcurrent()
        try:
            return self._socket.recv(MAX_RECEIVE)
        except _Woken:
            return b""
        except TimeoutError:
            raise PeerSilent("no octet came") from None
        except (OSError, ValueError) as error:  # ValueError: TLS was shut down by the peer
            raise PeerGone(_words(error)) from error
        finally:
            self._waiter = None

    def has_input(self) -> bool:
        """Tell whether octets wait to be received; never blocks. Not for TLS."""
        try:
            waiting = fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, bytes(4))
        except (OSError, ValueError):  # closed
            return False
        return bool(struct.unpack("i", waiting)[0])

    def send(self, octets: bytes) -> None:
        """Send all of `octets`; raises PeerSilent, PeerGone."""
        try:
            if self._unwrap is None:
                octets = self._written(octets)
                if not octets:
                    return
            self._socket.settimeout(SEND_S)
            self._socket.sendall(octets)
        except TimeoutError:
            raise PeerSilent("our replies are not read") from None
        except (OSError, ValueError) as error:
            raise PeerGone(_words(error)) from error

    def _written(self, octets: bytes) -> bytes:
        """Write what the kernel takes at once, nearly always all; return what is left.

        Past gevent's `sendall`, which costs more than the write itself: a session has a reply
        for each command.
        """
        try:
            return octets[os.write(self._socket.fileno(), octets) :]
        except BlockingIOError:
            return octets

    def start_tls(self, context: ssl.SSLContext) -> tuple[str, str]:
        """Do the server's handshake; return protocol version and cipher.

        raises: PeerGone with the reason, PeerSilent.
        """
        try:
            with gevent.Timeout(HANDSHAKE_S, PeerSilent("TLS handshake not finished in time")):
                self._socket.settimeout(None)
                wrapped = context.wrap_socket(
                    self._socket, server_side=True, do_handshake_on_connect=False
                )
                self._socket = wrapped
                wrapped.do_handshake()
        except (OSError, ValueError) as error:
            raise PeerGone("TLS handshake: " + _words(error)) from error
        self._unwrap = wrapped.unwrap
        cipher = wrapped.cipher()
        return wrapped.version() or "", cipher[0] if cipher else ""

    def wake(self) -> None:
        """Make a blocked `receive` return b""; nothing is lost, nothing else is disturbed."""
        get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        # In the hub: whoever is in `receive` is waiting there and nowhere else. A throw
        # scheduled for later could hit the greenlet in the middle of a commit.
        if self._waiter is not None:
            self._waiter.throw(_Woken())

    def close(self) -> None:
        """End with FIN; wait a moment for the peer's. Never raises; may be called twice."""
        try:
            with suppress(OSError, ValueError):
                self._linger()
        finally:
            self._socket.close()

    def _linger(self) -> None:
        until = SYSTEM.monotonic() + LINGER_S
        self._socket.settimeout(LINGER_S)
        if self._unwrap is not None:
            with suppress(OSError, ValueError):
                self._unwrap()
        self._socket.shutdown(socket.SHUT_WR)
        left = _MAX_LINGER
        while left > 0:
            self._socket.settimeout(max(until - SYSTEM.monotonic(), _SHORTEST_S))
            octets = self._socket.recv(MAX_RECEIVE)
            if not octets:
                return
            left -= len(octets)


def _tune(sock: socket.socket) -> None:
    # Replies are small and whole: waiting to fill a segment only adds 40 ms to each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A camera that lost its power says no goodbye.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def _words(error: Exception) -> str:
    """Return why, for the log; never for the peer."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return _HANDSHAKE_WORDS.get(error.reason, error.reason.replace("_", " ").lower())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
