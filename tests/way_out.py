"""What stands between a relay and Microsoft, for tests: a CONNECT proxy, odd certificates."""

from __future__ import annotations

import contextlib
import select
import socket
from datetime import UTC, datetime
from pathlib import Path

from relayd.clock import FakeClock
from relayd.net.certificates import make_ca, make_leaf
from relayd.net.http import Resolver, SocketAddress
from tests.raw_server import Conversation, RawServer, Script

OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


def tunnelling(heads: list[bytes]) -> Script:
    """Open the way to wherever CONNECT says, on 127.0.0.1; keep each head."""

    def script(talk: Conversation) -> None:
        head, _ = talk.request()
        heads.append(head)
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
            talk.say(OPEN)
            with contextlib.suppress(ValueError):  # the test is over: its socket has no number
                _pump(talk.sock, there)

    return script


def _pump(one: socket.socket, other: socket.socket) -> None:
    while True:
        pending = getattr(one, "pending", lambda: 0)()
        readable = [one] if pending else select.select([one, other], [], [], 10)[0]
        for sock in readable:
            octets = sock.recv(65536)
            if not octets:
                return
            (other if sock is one else one).sendall(octets)


def leading_to(port: int) -> Resolver:
    """Return a resolver for which every name is 127.0.0.1 with this port."""
    return Resolver(
        lookup=lambda _host, _port: [SocketAddress(socket.AF_INET, ("127.0.0.1", port))]
    )


def expired_leaf(folder: Path) -> tuple[Path, Path]:
    """Return (authority's file, leaf and key file) of a certificate of the year 2020."""
    authority = make_ca("a test", days=3650, clock=FakeClock(now=datetime(2019, 1, 1, tzinfo=UTC)))
    leaf = make_leaf(
        authority, ["127.0.0.1"], days=30, clock=FakeClock(now=datetime(2020, 1, 1, tzinfo=UTC))
    )
    (folder / "old-ca.pem").write_bytes(authority.certificate_pem)
    (folder / "old-leaf.pem").write_bytes(leaf.key_pem + leaf.certificate_pem)
    return folder / "old-ca.pem", folder / "old-leaf.pem"


def showing(server: RawServer, leaf: Path) -> RawServer:
    """Have a server with TLS show another certificate."""
    assert server._context is not None
    server._context.load_cert_chain(leaf)
    return server


def free_port() -> int:
    """Return a port at which nobody listens."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port
