"""A real socket pair: deadlines, waking, TLS, and an end that loses nothing."""

from __future__ import annotations

import errno
import os
import ssl as std_ssl
import struct
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import gevent
import pytest
from gevent import socket, ssl

from relayd.clock import SYSTEM
from relayd.net.certificates import make_ca, make_leaf
from relayd.serve import wire as wire_module
from relayd.serve.session import PeerGone, PeerSilent
from relayd.serve.wire import SocketWire, tune


@pytest.fixture
def ends() -> Iterator[tuple[SocketWire, socket.socket]]:
    """Yield our wire and the peer's socket, over TCP."""
    listener = socket.socket()
    tune(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    peer = socket.create_connection(listener.getsockname(), timeout=5)
    ours, _ = listener.accept()
    listener.close()
    wire = SocketWire(ours)
    yield wire, peer
    peer.close()
    wire.close()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and a trusting client's context."""
    folder: Path = tmp_path_factory.mktemp("tls")
    ca = make_ca("test CA", days=1)
    leaf = make_leaf(ca, ["relay.test"], days=1)
    (folder / "cert.pem").write_bytes(leaf.certificate_pem)
    (folder / "key.pem").write_bytes(leaf.key_pem)
    server = ssl.SSLContext(std_ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.SSLContext(std_ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=ca.certificate_pem.decode())
    return server, client


Ends = tuple[SocketWire, socket.socket]
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def soon(seconds: float = 5) -> float:
    return SYSTEM.monotonic() + seconds


def test_octets_go_both_ways(ends: Ends) -> None:
    wire, peer = ends
    peer.sendall(b"EHLO a\r\n")
    wire.send(b"250 ok\r\n")

    assert wire.receive(soon()) == b"EHLO a\r\n"
    assert peer.recv(100) == b"250 ok\r\n"


def test_replies_are_not_held_back_by_nagle(ends: Ends) -> None:
    sock = ends[0]._socket

    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_unix_socket_will_do() -> None:
    ours, peer = socket.socketpair()
    peer.sendall(b"x")

    assert SocketWire(ours).receive(soon()) == b"x"
    ours.close()
    peer.close()


@pytest.mark.parametrize("timeout_s", [0.01, 0.0, -1.0])
def test_silence_ends_at_the_deadline(ends: Ends, timeout_s: float) -> None:
    with pytest.raises(PeerSilent):
        ends[0].receive(soon(timeout_s))


def arrive(wire: SocketWire, octets: bytes, peer: socket.socket) -> None:
    """Send octets and return when they are there."""
    peer.sendall(octets)
    socket.wait_read(wire._socket.fileno())


@pytest.mark.parametrize("has_answered", [False, True])
def test_what_came_before_the_deadline_is_taken_after_it(ends: Ends, *, has_answered: bool) -> None:
    wire, peer = ends
    if has_answered:
        wire.send(b"250 ok\r\n")
    arrive(wire, b"NOOP\r\n", peer)

    assert wire.receive(soon(-1)) == b"NOOP\r\n"


def test_after_an_answer_silence_ends_at_the_deadline_too(ends: Ends) -> None:
    wire, _ = ends
    wire.send(b"250 ok\r\n")

    with pytest.raises(PeerSilent):
        wire.receive(soon(0.01))


def test_a_sooner_deadline_is_kept_while_the_alarm_is_set_for_a_later_one(ends: Ends) -> None:
    wire, peer = ends
    waiting = gevent.spawn(wire.receive, soon())
    gevent.idle()
    peer.sendall(b"x")
    waiting.get(timeout=5)

    with pytest.raises(PeerSilent):
        wire.receive(soon(0.01))


def test_much_is_read_in_few_calls(ends: Ends) -> None:
    wire, peer = ends
    peer.sendall(b"x" * 200_000)
    sizes = list[int]()
    while sum(sizes) < 200_000:
        sizes.append(len(wire.receive(soon())))

    assert sizes[0] <= 4096
    assert 4096 < max(sizes) <= wire_module.MAX_RECEIVE


def test_a_wire_that_was_let_go_reads_nobody_elses_descriptor(ends: Ends) -> None:
    wire, _ = ends
    wire.send(b"250 ok\r\n")
    wire.let_go()

    with pytest.raises(PeerGone):
        wire.receive(soon())
    with pytest.raises(PeerGone):
        wire.send(b"x")


def test_end_of_file_is_empty(ends: Ends) -> None:
    ends[1].close()

    assert ends[0].receive(soon()) == b""


def test_a_reset_is_told_in_words(ends: Ends) -> None:
    wire, peer = ends
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    with pytest.raises(PeerGone, match="reset by peer"):
        wire.receive(soon())


def flood_clear(wire: SocketWire) -> None:
    """Fill what the kernel takes, past TLS."""
    with suppress(BlockingIOError):
        while True:
            os.write(wire._socket.fileno(), b"x" * 65536)


def flood(wire: SocketWire) -> None:
    for _ in range(1000):
        wire.send(b"x" * 65536)


def test_sending_to_nobody_is_told(ends: Ends) -> None:
    wire, peer = ends
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    with pytest.raises(PeerGone):
        flood(wire)


def test_a_peer_that_does_not_read_is_given_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "SEND_S", 0.02)

    with pytest.raises(PeerSilent, match="not read"):
        flood(ends[0])


def test_waiting_input_is_seen_without_taking_it(ends: Ends) -> None:
    wire, peer = ends
    assert not wire.has_input()

    peer.sendall(b"EHLO")
    wire._socket.settimeout(5)
    wire._socket.recv(1, socket.MSG_PEEK)

    assert wire.has_input()
    assert wire.receive(soon()) == b"EHLO"


def test_a_closed_wire_has_no_input(ends: Ends) -> None:
    ends[1].close()
    ends[0].close()

    assert not ends[0].has_input()


def test_waking_ends_a_wait_and_loses_nothing(ends: Ends) -> None:
    wire, peer = ends
    waiting = gevent.spawn(wire.receive, soon())
    gevent.idle()

    wire.wake()

    assert waiting.get(timeout=5) == b""
    peer.sendall(b"more")
    assert wire.receive(soon()) == b"more"
    wire.send(b"421 bye\r\n")
    assert peer.recv(100) == b"421 bye\r\n"


def test_waking_somebody_who_does_not_wait_does_nothing(ends: Ends) -> None:
    wire, peer = ends
    peer.sendall(b"x")

    wire.wake()
    gevent.idle()

    assert wire.receive(soon()) == b"x"


def test_close_sends_fin_even_with_octets_unread(ends: Ends) -> None:
    # RFC 1122: unread octets would make it RST, and the peer would lose our last reply.
    wire, peer = ends
    peer.sendall(b"NOOP\r\n" * 1000)
    wire.send(b"421 4.4.2 bye\r\n")
    closing = gevent.spawn(wire.close)

    assert peer.recv(100) == b"421 4.4.2 bye\r\n"
    assert peer.recv(100) == b""
    assert not closing.ready()  # told at once, not when the wait is over
    peer.close()
    closing.get(timeout=5)


def test_close_waits_but_briefly(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "LINGER_S", 0.02)

    ends[0].close()
    ends[0].close()

    with pytest.raises(PeerGone):
        ends[0].receive(soon())


def handshake(ends: Ends, contexts: Contexts, name: str) -> ssl.SSLSocket:
    """Return the peer's socket, TLS up on both sides."""
    wire, peer = ends
    ours = gevent.spawn(wire.start_tls, contexts[0])
    secured = contexts[1].wrap_socket(peer, server_hostname=name, suppress_ragged_eofs=False)
    assert ours.get(timeout=5)[0].startswith("TLSv1.")
    return secured


def test_tls_begins_in_the_middle(ends: Ends, contexts: Contexts) -> None:
    wire, _ = ends
    with handshake(ends, contexts, "relay.test") as peer:
        assert wire.is_secure
        peer.sendall(b"EHLO a\r\n")
        assert wire.receive(soon()) == b"EHLO a\r\n"
        wire.send(b"250 ok\r\n")
        assert peer.recv(100) == b"250 ok\r\n"
        with pytest.raises(PeerSilent):
            wire.receive(soon(0.01))


def test_tls_that_must_write_before_it_reads_is_let(ends: Ends, contexts: Contexts) -> None:
    # A key update's answer, while the peer's window is full.
    wire, _ = ends
    with handshake(ends, contexts, "relay.test") as peer:
        peer.sendall(b"x")
        read, blocked = wire._read, [True]

        def block_once(size: int) -> bytes:
            if blocked:
                blocked.clear()
                raise std_ssl.SSLWantWriteError
            return read(size)

        wire._read = block_once
        assert wire.receive(soon()) == b"x"


def test_tls_that_may_not_write_ends_at_the_deadline(ends: Ends, contexts: Contexts) -> None:
    wire, peer = ends
    with handshake(ends, contexts, "relay.test"):

        def block(_size: int) -> bytes:
            raise std_ssl.SSLWantWriteError

        wire._read = block
        flood_clear(wire)
        with pytest.raises(PeerSilent):
            wire.receive(soon(0.01))
        peer.close()


def test_a_peer_that_does_not_read_tls_is_given_up(
    ends: Ends, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "SEND_S", 0.02)
    monkeypatch.setattr(wire_module, "LINGER_S", 0.02)
    with handshake(ends, contexts, "relay.test"), pytest.raises(PeerSilent, match="not read"):
        flood(ends[0])


def test_much_goes_out_through_tls_whole(ends: Ends, contexts: Contexts) -> None:
    wire, _ = ends
    whole = b"0123456789" * 100_000
    with handshake(ends, contexts, "relay.test") as peer:
        sending = gevent.spawn(wire.send, whole)
        came = b""
        while len(came) < len(whole):
            came += peer.recv(65536)
        sending.get(timeout=5)

        assert came == whole
        peer.sendall(b"x")
        assert wire.receive(soon()) == b"x"


def test_waking_leaves_tls_usable(ends: Ends, contexts: Contexts) -> None:
    wire, _ = ends
    with handshake(ends, contexts, "relay.test") as peer:
        waiting = gevent.spawn(wire.receive, soon())
        gevent.idle()
        gevent.idle()
        wire.wake()

        assert waiting.get(timeout=5) == b""
        wire.send(b"421 bye\r\n")
        assert peer.recv(100) == b"421 bye\r\n"


def test_tls_ends_with_close_notify(ends: Ends, contexts: Contexts) -> None:
    wire, _ = ends
    peer = handshake(ends, contexts, "relay.test")
    closing = gevent.spawn(wire.close)

    assert peer.recv(100) == b""  # without close_notify this raises
    peer.close()
    closing.get(timeout=5)


def test_a_client_without_trust_is_told_apart(ends: Ends, contexts: Contexts) -> None:
    wire, peer = ends

    def serve() -> None:
        # TLS 1.3: the server may be done before the client judges; then reading tells.
        wire.start_tls(contexts[0])
        wire.receive(soon())

    ours = gevent.spawn(serve)
    with pytest.raises(std_ssl.SSLCertVerificationError):
        contexts[1].wrap_socket(peer, server_hostname="other.test")

    with pytest.raises(PeerGone, match="trust our certificate"):
        ours.get(timeout=5)


def test_plain_text_in_a_handshake_is_told_apart(ends: Ends, contexts: Contexts) -> None:
    wire, peer = ends
    peer.sendall(b"MAIL FROM:<a@b.c>\r\n" * 20)

    with pytest.raises(PeerGone, match="does not speak TLS"):
        wire.start_tls(contexts[0])
    assert not wire.is_secure


def test_a_socket_that_cannot_be_wrapped_is_not_touched_any_more(
    ends: Ends, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, _ = ends
    descriptor = wire._socket.fileno()

    def fail(_self: object, sock: socket.socket, **_options: object) -> None:
        os.close(sock.detach())
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", fail)
    with pytest.raises(PeerGone, match="Invalid argument"):
        wire.start_tls(contexts[0])
    # Whoever is accepted next gets the number.
    other, far_end = socket.socketpair()
    assert descriptor in (other.fileno(), far_end.fileno())
    heard = far_end if other.fileno() == descriptor else other

    with pytest.raises(PeerGone):
        wire.send(b"x")
    wire.close()

    heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        heard.recv(1)
    other.close()
    far_end.close()


def test_a_handshake_has_a_limit(
    ends: Ends, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "HANDSHAKE_S", timedelta(milliseconds=20).total_seconds())

    with pytest.raises(PeerSilent):
        ends[0].start_tls(contexts[0])


def test_the_peers_close_notify_is_end_of_file(
    ends: Ends, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, _ = ends
    monkeypatch.setattr(wire_module, "LINGER_S", 0.02)
    peer = handshake(ends, contexts, "relay.test")
    leaving = gevent.spawn(peer.unwrap)

    assert wire.receive(soon()) == b""
    wire.close()
    leaving.join(timeout=5)
    peer.close()
