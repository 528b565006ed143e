"""A Graph that swallows: TLS, keep-alive, 202 for every POST, a token for the token URL.

Framing only, so that it costs less than what it measures. It says its port and its
authority's file on standard output, one line, then serves until standard input ends.

    python -m bench.sink [--plain]
"""

from __future__ import annotations

import gevent.monkey
import gevent.os

gevent.monkey.patch_all()

import re  # noqa: E402  after the patching
import ssl  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Final  # noqa: E402

from gevent.server import StreamServer  # noqa: E402
from gevent.socket import socket  # noqa: E402

from relayd.net.certificates import make_ca, make_leaf  # noqa: E402

_ACCEPTED: Final = (
    b"HTTP/1.1 202 Accepted\r\nCache-Control: private\r\nContent-Length: 0\r\n"
    b"Content-Type: text/plain\r\nrequest-id: 5d7ac8a6-6c1f-4f0c-9c07-0a2a3c0b6d11\r\n"
    b"Date: Fri, 20 Nov 2026 10:00:00 GMT\r\n\r\n"
)
_TOKEN_BODY: Final = (
    b'{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"%s"}'
    % (b"t" * 1500)
)
_TOKEN: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(_TOKEN_BODY)
    + _TOKEN_BODY
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


def serve(sock: socket, _address: object) -> None:
    """Answer every request of one connection."""
    buffer = b""
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            octets = sock.recv(65_536)
            if not octets:
                return
            buffer += octets
            continue
        head, buffer = buffer[: end + 4], buffer[end + 4 :]
        match = _LENGTH.search(head)
        missing = (int(match[1]) if match else 0) - len(buffer)
        if missing <= 0:
            buffer = buffer[len(buffer) + missing :]
        while missing > 0:
            octets = sock.recv(65_536)
            if not octets:
                return
            buffer = octets[missing:]
            missing -= len(octets)
        sock.sendall(_TOKEN if b"/oauth2/" in head.partition(b"\r\n")[0] else _ACCEPTED)


def main() -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory() as folder:
        authority = make_ca("relayd bench", days=2)
        leaf = make_leaf(authority, ["localhost", "127.0.0.1"], days=2)
        ca_file, leaf_file = Path(folder, "ca.pem"), Path(folder, "leaf.pem")
        ca_file.write_bytes(authority.certificate_pem)
        leaf_file.write_bytes(leaf.certificate_pem + leaf.key_pem)
        if "--plain" in sys.argv:
            server = StreamServer(("127.0.0.1", 0), serve, backlog=256)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(leaf_file)
            server = StreamServer(("127.0.0.1", 0), serve, backlog=256, ssl_context=context)
        server.start()
        print(server.server_port, ca_file, flush=True)
        while gevent.os.tp_read(0, 4096):  # in a thread: standard input blocks the hub
            pass
        server.stop()


if __name__ == "__main__":
    main()
