"""A server of raw octets on loopback, with or without TLS, that does exactly what it is told.

with RawServer(script) as server:      # script(conversation) runs for each connection
    … f"{server.url}/path" …
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shutil
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from relayd.net.certificates import make_ca, make_leaf

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nrequest-id: r1\r\nContent-Length: 0\r\n\r\n"


@functools.cache
def certificates() -> tuple[str, str]:
    """Return (authority's file, leaf and key file) for localhost; kept for the test run."""
    folder = Path(tempfile.mkdtemp(prefix="relayd-test-raw-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    authority = make_ca("a test", days=10)
    leaf = make_leaf(authority, ["localhost", "127.0.0.1"], days=5)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    (folder / "leaf.pem").write_bytes(leaf.key_pem + leaf.certificate_pem)
    return str(folder / "ca.pem"), str(folder / "leaf.pem")


class Conversation:
    """One connection, seen from the server. number: 0 for the first."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self._buffer = b""

    def request(self) -> tuple[bytes, bytes]:
        """Read one request, return (head, body); raises EOFError."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        match = _LENGTH.search(head)
        length = int(match[1]) if match else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return head, body

    def _more(self) -> None:
        octets = self.sock.recv(65_536)
        if not octets:
            raise EOFError
        self._buffer += octets

    def say(self, *pieces: bytes) -> None:
        """Send each piece in a segment of its own, as far as the kernel allows."""
        for piece in pieces:
            self.sock.sendall(piece)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script: TypeAlias = Callable[[Conversation], None]


class RawServer:
    """requests: all that were read whole; connections: how many were made."""

    def __init__(self, script: Script, *, tls: bool = False) -> None:
        self._script = script
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificates()[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.connections = 0
        self.errors: list[BaseException] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)
        if error is None and self.errors:
            raise self.errors[0]

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            number = self.connections
            self.connections += 1
            self._spawn(functools.partial(self._serve, sock, number))

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            with sock:
                self._script(Conversation(sock, number))
        except (OSError, EOFError):
            return  # the client went; that is its right
        except BaseException as error:  # told by __exit__
            self.errors.append(error)


def answering(*answers: bytes) -> Script:
    """Answer each request of a connection with the next; hold the connection open after."""

    def script(talk: Conversation) -> None:
        for answer in answers:
            talk.request()
            talk.say(answer)
        talk.sock.recv(1)

    return script


def accepting(talk: Conversation) -> None:
    """Answer 202 as long as the client likes."""
    while True:
        talk.request()
        talk.say(ACCEPTED)
