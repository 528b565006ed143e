"""A session's socket: octets with deadlines, TLS begun in the middle, an end without RST.

Works on gevent's sockets (a worker's are all patched) and blocks its greenlet only. A session
waits once for each command, so this goes past gevent's `recv` and `sendall`, which make a time-out
object for each wait: here it is one system call, and only when it would block a wait on the hub
with a watcher and an alarm that the connection keeps (net.patience). (Measured, one command and
its reply, system calls included: 12.9 us before, 8.1 so.)

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
from functools import partial
from typing import Final

import gevent
from gevent import get_hub, socket

from relayd.clock import SYSTEM
from relayd.net.patience import Patience
from relayd.serve.session import PeerGone, PeerSilent

MAX_RECEIVE: Final = 65536
HANDSHAKE_S: Final = 30.0
SEND_S: Final = 60.0
LINGER_S: Final = 1.0
"""How long a closed session waits for the peer's own end, so that it reads our last reply."""

_MAX_LINGER: Final = 1 << 20
_FEW: Final = 4096  # what a read has room for, until one fills it: commands are short
_READ: Final = 1  # the event loop's word for "readable"

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

    __slots__ = (
        "_has_answered",
        "_is_closed",
        "_patience",
        "_read",
        "_readable",
        "_room",
        "_socket",
        "_until_readable",
        "_unwrap",
        "_write",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unwrap: Callable[[], object] | None = None  # says close_notify; None: no TLS
        self._read: Callable[[int], bytes]  # neither blocks; with TLS through it
        self._write: Callable[[bytes], int]
        self._use(sock.fileno())
        self._room = _FEW
        self._has_answered = False  # nothing was received since: only a wait can bring octets
        hub = get_hub()
        self._patience = Patience()
        self._readable = hub.loop.io(sock.fileno(), _READ)
        self._until_readable: Callable[[], object] = partial(hub.wait, self._readable)
        self._is_closed = False

    def _use(self, descriptor: int) -> None:
        """Read and write in the clear. descriptor: -1 once closed, or it may be somebody else's."""
        self._read = partial(os.read, descriptor)
        self._write = partial(os.write, descriptor)

    @property
    def is_secure(self) -> bool:
        """True once TLS is up."""
        return self._unwrap is not None

    def receive(self, deadline: float) -> bytes:
        """Return 1..65536 octets; b"" at end of file, or after `wake`.

        deadline: monotonic; what has come by then is returned, also when it is over already.
        raises:   PeerSilent, PeerGone.
        """
        is_time = True
        try:
            if self._has_answered:
                self._has_answered = False
                is_time = self._patience.wait(self._until_readable, deadline)
            while True:
                try:
                    octets = self._read(self._room)
                    self._room = MAX_RECEIVE if len(octets) == self._room else _FEW
                    return octets
                except (BlockingIOError, ssl.SSLWantReadError):
                    wait = self._until_readable
                except ssl.SSLWantWriteError:  # TLS has something of its own to say first
                    wait = self._until_writable
                if not is_time:
                    raise PeerSilent("no octet came")
                is_time = self._patience.wait(wait, deadline)
        except _Woken:
            return b""
        except TimeoutError:  # the kernel's: nobody answers its keep-alive
            raise PeerSilent("no octet came") from None
        except (OSError, ValueError) as error:  # ValueError: TLS was shut down by the peer
            raise PeerGone(_words(error)) from error

    def _until_writable(self) -> None:
        socket.wait_write(self._socket.fileno())

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
            try:
                sent = self._write(octets)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent = 0
            if sent < len(octets):
                self._send_patiently(octets[sent:])
        except TimeoutError:
            raise PeerSilent("our replies are not read") from None
        except (OSError, ValueError) as error:
            raise PeerGone(_words(error)) from error
        self._has_answered = self._unwrap is None  # TLS may hold octets it has read already

    def _send_patiently(self, octets: bytes) -> None:
        self._socket.settimeout(SEND_S)
        try:
            self._socket.sendall(octets)
        finally:
            self._socket.settimeout(0.0)

    def start_tls(self, context: ssl.SSLContext) -> tuple[str, str]:
        """Do the server's handshake; return protocol version and cipher.

        raises: PeerGone with the reason, PeerSilent.
        """
        self._use(-1)  # where wrapping fails the descriptor is closed, and soon somebody else's
        try:
            with gevent.Timeout(HANDSHAKE_S, PeerSilent("TLS handshake not finished in time")):
                self._socket.settimeout(None)
                wrapped = context.wrap_socket(
                    self._socket, server_side=True, do_handshake_on_connect=False
                )
                self._socket = wrapped
                self._use(wrapped.fileno())
                wrapped.do_handshake()
        except (OSError, ValueError) as error:
            raise PeerGone("TLS handshake: " + _words(error)) from error
        wrapped.settimeout(0.0)
        self._read, self._write, self._unwrap = wrapped.read, wrapped.write, wrapped.unwrap
        self._has_answered = False
        cipher = wrapped.cipher()
        return wrapped.version() or "", cipher[0] if cipher else ""

    def wake(self) -> None:
        """Make a blocked `receive` return b""; nothing is lost, nothing else is disturbed."""
        get_hub().loop.run_callback(self._patience.interrupt, _Woken())

    def let_go(self) -> None:
        """Stop watching a socket that somebody else closes; nothing may be received any more."""
        self._use(-1)
        self._has_answered = False
        self._readable.close()
        self._patience.close()

    def close(self) -> None:
        """End with FIN; wait a moment for the peer's. Never raises; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with suppress(OSError, ValueError, PeerGone, PeerSilent):
                self._linger()
        finally:
            self.let_go()
            self._socket.close()

    def _linger(self) -> None:
        until = SYSTEM.monotonic() + LINGER_S
        if self._unwrap is not None:
            self._socket.settimeout(LINGER_S)
            with suppress(OSError, ValueError):
                self._unwrap()
            self._use(self._socket.fileno())
        self._socket.shutdown(socket.SHUT_WR)
        left = _MAX_LINGER
        while left > 0:
            octets = self.receive(until)
            if not octets:
                return
            left -= len(octets)


def tune(listening: socket.socket) -> None:
    """Set what every connection accepted from this socket shall have; Linux hands it on."""
    # Replies are small and whole: waiting to fill a segment only adds 40 ms to each.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A camera that lost its power says no goodbye.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def _words(error: Exception) -> str:
    """Return why, for the log; never for the peer."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return _HANDSHAKE_WORDS.get(error.reason, error.reason.replace("_", " ").lower())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
