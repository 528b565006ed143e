"""One POST over a kept connection, against a server that misbehaves in every way."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from relayd.clock import SYSTEM, Clock, SystemClock
from relayd.config.model import Http
from relayd.net import hotpath
from relayd.net.hotpath import (
    MAX_BODY_BYTES,
    Body,
    BodyMismatch,
    HotPath,
    _NoHead,
    _Wire,
    parse_head,
)
from relayd.net.http import Dialer, Resolver, Response, SocketAddress, Unanswered, pool
from tests.raw_server import (
    ACCEPTED,
    Conversation,
    RawServer,
    accepting,
    answering,
    certificates,
)

HEADERS = b"Content-Type: text/plain\r\n"
BODY = Body(4, b"aGk=")
LARGE = 6 * 1024 * 1024


MADE: list[HotPath] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


class Ahead(SystemClock):
    """The real clock, moved ahead when told: so that only the waiting is cut short."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s

    def nearly_over(self) -> bool:
        """Leave a tenth of a second of the ten; for `may_begin`."""
        self.ahead_s += 9.9
        return True


def hot_for(server: RawServer, *, max_idle: int = 8, clock: Clock = SYSTEM) -> HotPath:
    return hot_to(server.url, Http(), max_idle=max_idle, clock=clock)


def hot_to(url: str, http: Http, *, max_idle: int = 8, clock: Clock = SYSTEM) -> HotPath:
    manager = pool(http, ca_file=certificates()[0])
    MADE.append(HotPath(manager, url, max_idle=max_idle, clock=clock))
    return MADE[-1]


def post(
    hot: HotPath,
    body: Body = BODY,
    *,
    within_s: float = 10.0,
    may_begin: Callable[[], bool] | None = None,
) -> Response | Unanswered:
    return hot.post(
        b"/v1.0/x", HEADERS, body, deadline=time.monotonic() + within_s, may_begin=may_begin
    )


def response(result: Response | Unanswered) -> Response:
    assert isinstance(result, Response), result
    return result


def unanswered(result: Response | Unanswered) -> Unanswered:
    assert isinstance(result, Unanswered), result
    return result


def once(answer: bytes) -> Callable[[Conversation], None]:
    """Answer one request and close."""

    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(answer)

    return script


@pytest.mark.parametrize("tls", [False, True])
def test_a_request_is_framed_as_http_wants_it(tls: bool) -> None:  # noqa: FBT001
    seen: list[tuple[bytes, bytes]] = []

    def script(talk: Conversation) -> None:
        seen.append(talk.request())
        talk.say(ACCEPTED)

    with RawServer(script, tls=tls) as server:
        answer = response(post(hot_for(server)))

    head, body = seen[0]
    assert head.split(b"\r\n") == [
        b"POST /v1.0/x HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"Content-Type: text/plain",
        b"Content-Length: 4",
    ]
    assert body == b"aGk="
    assert (answer.status, answer.body, answer.sent_all) == (202, b"", True)
    assert answer.headers["request-id"] == "r1"


@pytest.mark.parametrize("tls", [False, True])
def test_one_connection_carries_many_requests(tls: bool) -> None:  # noqa: FBT001
    with RawServer(accepting, tls=tls) as server:
        hot = hot_for(server)
        for _ in range(20):
            assert response(post(hot)).status == 202

        assert server.connections == hot.opened == 1
        hot.close()


# --- answers the library understands, and we no worse ----------------------------------------

CHUNKED = (
    b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\nRetry-After: 7\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)
ANSWERS = {
    "no body": ACCEPTED,
    "with a length": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": CHUNKED,
    "chunked, empty": b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no length, then the end": b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>",
    "HTTP/1.0": b"HTTP/1.0 503 Away\r\nContent-Length: 2\r\n\r\nno",
    "close": b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 202\r\nContent-Length: 0\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + ACCEPTED,
    "204": b"HTTP/1.1 204 None\r\n\r\n",
    "folded": b"HTTP/1.1 202 A\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 202 A\nContent-Length: 2\n\nok",
    "twice the same length": b"HTTP/1.1 400 A\r\nContent-Length: 2, 2\r\n\r\nno",
    "huge header": b"HTTP/1.1 202 A\r\nX: " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many headers": b"HTTP/1.1 202 A\r\n" + b"X: y\r\n" * 90 + b"Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_urllib3_reads_it(name: str) -> None:
    with RawServer(once(ANSWERS[name])) as server:
        ours = response(post(hot_for(server)))
        with urllib3.PoolManager(retries=False) as library:
            theirs = library.request("POST", server.url, body=b"aGk=")

    assert (ours.status, ours.body) == (theirs.status, theirs.data)
    assert ours.sent_all


def test_interim_answers_that_the_library_stumbles_over_are_skipped() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"
    with RawServer(once(hints + hints + ACCEPTED)) as server:
        assert response(post(hot_for(server))).status == 202


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_octet_by_octet_is_the_same(name: str) -> None:
    octets = ANSWERS[name]
    if len(octets) > 1000:
        octets = octets.replace(b"x" * 59_000, b"")

    def script(talk: Conversation) -> None:
        talk.request()
        for at in range(len(octets)):
            talk.say(octets[at : at + 1])

    with RawServer(once(octets)) as whole, RawServer(script) as pieces:
        first, second = response(post(hot_for(whole))), response(post(hot_for(pieces)))

    assert (first.status, first.headers, first.body) == (
        second.status,
        second.headers,
        second.body,
    )


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("no body", True),
        ("with a length", True),
        ("chunked", True),
        ("interim", True),
        ("204", True),
        ("HTTP/1.0", False),
        ("close", False),
    ],
)
def test_a_connection_is_kept_when_its_state_is_certain(name: str, is_kept: bool) -> None:  # noqa: FBT001
    with RawServer(answering(ANSWERS[name], ACCEPTED)) as server:
        hot = hot_for(server)
        post(hot)
        post(hot)
        assert hot.opened == (1 if is_kept else 2)
        hot.close()


def test_http_1_0_with_keep_alive_is_kept() -> None:
    answer = b"HTTP/1.0 202 A\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    with RawServer(answering(answer, answer)) as server:
        hot = hot_for(server)
        post(hot)
        post(hot)
        assert hot.opened == 1
        hot.close()


def test_octets_after_the_answer_spoil_the_connection() -> None:
    with RawServer(answering(ACCEPTED + b"HTTP/1.1 200 OK\r\n", ACCEPTED)) as server:
        hot = hot_for(server)
        assert response(post(hot)).status == 202
        post(hot)
        assert hot.opened == 2
        hot.close()


def test_the_servers_keep_alive_limit_is_kept() -> None:
    answer = ACCEPTED.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=1\r\n\r\n")
    with RawServer(answering(answer, answer)) as server:
        hot = hot_for(server)
        post(hot)
        post(hot)
        assert hot.opened == 2
        hot.close()


# --- bodies that break off: the head already told what became of the message -----------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 A\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 202 A\r\nContent-Length: ten\r\n\r\nhalf",
        b"HTTP/1.1 202 A\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
        b"HTTP/1.1 202 A\r\nContent-Length: -4\r\n\r\nhalf",
        b"HTTP/1.1 202 A\r\nContent-Length: 99999999999999999999\r\n\r\nhalf",
    ],
)
def test_an_answer_counts_though_its_body_breaks_off(answer: bytes) -> None:
    with RawServer(once(answer)) as server:
        hot = hot_for(server)
        got = response(post(hot))
        assert (got.status, got.body) == (202, b"half")
        post(hot)
        assert hot.opened == 2


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nhello",
        b"5\r\nhel",
        b"5\r\nhelloXX",
        b"\r\n",
        b"999999999\r\n",
        b"5\r\nhello\r\n0\r\nX",
    ],
)
def test_broken_chunks_end_the_body_not_the_answer(chunks: bytes) -> None:
    answer = b"HTTP/1.1 429 A\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    with RawServer(once(answer)) as server:
        hot = hot_for(server)
        assert response(post(hot)).status == 429
        post(hot)
        assert hot.opened == 2


@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_an_endless_body_is_cut(framing: str) -> None:
    piece = b"x" * 65_536

    def script(talk: Conversation) -> None:
        talk.request()
        if framing == "chunked":
            talk.say(b"HTTP/1.1 500 A\r\nTransfer-Encoding: chunked\r\n\r\n")
        elif framing == "length":
            talk.say(b"HTTP/1.1 500 A\r\nContent-Length: 99999999999\r\n\r\n")
        else:
            talk.say(b"HTTP/1.1 500 A\r\n\r\n")
        while True:
            talk.say(b"10000\r\n" + piece + b"\r\n" if framing == "chunked" else piece)

    with RawServer(script) as server:
        got = response(post(hot_for(server)))

    assert got.status == 500
    assert got.body == b"x" * MAX_BODY_BYTES


# --- no answer: was it sent or not? ----------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/2 202\r\n\r\n",
        b"HTTP/1.1 2022 A\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"HTTP/1.1 202 A\r\nX: " + b"x" * 70_000,
        b"<html>",
    ],
)
def test_garbage_is_no_answer_and_leaves_it_open(garbage: bytes) -> None:
    with RawServer(once(garbage)) as server:
        got = unanswered(post(hot_for(server)))

    assert (got.stage, got.sent_all) == ("garbled", True)


def test_the_end_instead_of_an_answer_leaves_it_open() -> None:
    with RawServer(once(b"")) as server:
        got = unanswered(post(hot_for(server)))

    assert (got.stage, got.sent_all) == ("answer", True)


def test_half_a_head_is_no_answer() -> None:
    with RawServer(once(b"HTTP/1.1 202 Accepted\r\nDate: x")) as server:
        got = unanswered(post(hot_for(server)))

    assert (got.stage, got.sent_all) == ("answer", True)


def test_a_reset_after_the_body_leaves_it_open() -> None:
    def script(talk: Conversation) -> None:
        talk.request()
        talk.reset()

    with RawServer(script) as server:
        got = unanswered(post(hot_for(server)))

    assert (got.stage, got.sent_all) == ("answer", True)


def test_silence_ends_with_the_deadline() -> None:
    def script(talk: Conversation) -> None:
        talk.request()
        talk.sock.recv(1)

    with RawServer(script) as server:
        clock = Ahead()
        got = unanswered(post(hot_for(server, clock=clock), may_begin=clock.nearly_over))

    assert (got.stage, got.sent_all, got.text) == ("answer", True, "time-out")


def test_dripping_octets_do_not_stretch_the_deadline() -> None:
    stop = threading.Event()

    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(b"HTTP/1.1 202 A\r\n")
        while not stop.wait(0.02):
            talk.say(b"X: y\r\n")

    with RawServer(script) as server:
        clock = Ahead()
        got = unanswered(post(hot_for(server, clock=clock), may_begin=clock.nearly_over))
        stop.set()

    assert got.stage == "answer", "without a deadline for the whole it would never end"


# --- kept connections that are dead ----------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_closed_while_idle_is_found_out_before_writing(tls: bool) -> None:  # noqa: FBT001
    closed = threading.Event()
    heads: list[bytes] = []

    def script(talk: Conversation) -> None:
        heads.append(talk.request()[0])
        talk.say(ACCEPTED)
        if talk.number == 0:
            talk.sock.close()
            closed.set()
        else:
            talk.sock.recv(1)

    with RawServer(script, tls=tls) as server:
        hot = hot_for(server)
        post(hot)
        assert closed.wait(10)
        assert response(post(hot)).status == 202
        hot.close()

    assert len(heads) == 2, "each request was received once"


def test_an_answer_nobody_asked_for_spoils_a_kept_connection() -> None:
    said = threading.Event()

    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(ACCEPTED)
        if talk.number == 0:
            talk.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            said.set()
        talk.sock.recv(1)

    with RawServer(script) as server:
        hot = hot_for(server)
        post(hot)
        assert said.wait(10)
        assert response(post(hot)).status == 202
        assert hot.opened == 2
        hot.close()


def test_a_kept_connection_that_dies_at_the_first_write_is_replaced_once() -> None:
    with RawServer(accepting) as server:
        hot = hot_for(server)
        post(hot)
        link = hot._idle[0]
        link.sock = _DeadAtWrite(link.sock)
        assert response(post(hot)).status == 202
        assert hot.opened == 2
        hot.close()


def test_a_fresh_connection_that_dies_at_the_first_write_is_not_tried_again() -> None:
    with RawServer(accepting) as server:
        clock = Ahead()
        hot = hot_for(server, clock=clock)
        real = hot._open

        def opened(deadline: float) -> object:
            link = real(deadline)
            assert not isinstance(link, OSError)
            link.sock = _DeadAtWrite(link.sock)
            return link

        hot._open = opened  # type: ignore[method-assign,assignment]  # the fault under test
        got = unanswered(post(hot, may_begin=clock.nearly_over))
        assert (got.stage, got.sent_all, hot.opened) == ("send", False, 1)


def test_a_kept_connection_that_dies_after_the_write_is_never_repeated() -> None:
    requests = []

    def script(talk: Conversation) -> None:
        requests.append(talk.request())
        talk.say(ACCEPTED)
        requests.append(talk.request())
        talk.reset()

    with RawServer(script) as server:
        hot = hot_for(server)
        post(hot)
        got = unanswered(post(hot))
        assert (got.stage, got.sent_all) == ("answer", True)

    assert (len(requests), server.connections) == (2, 1)


class _Unacknowledged(socket.socket):
    """One of which the kernel says that what was sent last is still on its way."""

    unacked = 1

    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> bytes:  # type: ignore[override]  # all that is needed
        assert (level, optname) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        told = bytearray(super().getsockopt(level, optname, 232))
        told[24:28] = self.unacked.to_bytes(4, sys.byteorder)
        return bytes(told[:buflen])


TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("unacked", "is_large", "statuses"),
    [(1, False, [202, 202]), (0, False, [202, 408]), (1, True, [202, 408])],
)
def test_a_408_that_crossed_the_request_is_no_answer_to_it(
    unacked: int,
    is_large: bool,  # noqa: FBT001  a column
    statuses: list[int],
) -> None:
    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(ACCEPTED)
        if talk.number == 0:
            talk.request()
            talk.say(TIMED_OUT)

    with RawServer(script) as server:
        hot = hot_for(server)
        got = [response(post(hot)).status]
        (link,) = hot._idle
        assert isinstance(link.sock, socket.socket)
        link.sock = _Unacknowledged(fileno=os.dup(link.sock.fileno()))
        link.sock.unacked = unacked
        link.sock.settimeout(0.0)
        body = Body(4, b"", iter([b"aG", b"k="])) if is_large else BODY
        got.append(response(post(hot, body)).status)
        link.sock.close()
        hot.close()

    assert got == statuses
    assert hot.opened == (2 if statuses[1] == 202 else 1)


def test_a_408_on_a_fresh_connection_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotpath._Link, "is_unread", lambda _: True)

    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(TIMED_OUT)

    with RawServer(script) as server:
        hot = hot_for(server)
        assert response(post(hot)).status == 408
        hot.close()
    assert hot.opened == 1


def test_the_limit_for_opening_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[gevent.Timeout] = []
    real = gevent.Timeout.start_new

    def kept(seconds: float, error: BaseException) -> gevent.Timeout:
        limits.append(real(seconds, error))
        return limits[-1]

    monkeypatch.setattr(gevent.Timeout, "start_new", kept)
    with RawServer(accepting) as server:
        hot = hot_for(server)
        assert response(post(hot)).status == 202
        hot.close()
    assert [limit.pending for limit in limits] == [False]


def test_what_has_arrived_or_is_closed_is_not_called_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        link = hotpath._Link(ours, ours, SYSTEM)
        with theirs, ours:
            assert not link.is_unread()
        assert not link.is_unread(), "closed: nobody can tell"
        link.close()


class _DeadAtWrite:
    """A wire whose first write finds the other end gone."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def send(self, data: object, /) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return self._wire.fileno()

    def settimeout(self, value: float | None, /) -> None:
        self._wire.settimeout(value)

    def recv(self, buflen: int, /) -> bytes:
        return self._wire.recv(buflen)


class _Counting:
    """A wire that takes all it is given, and how much that was each time."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def fileno(self) -> int:
        return -1

    def settimeout(self, value: float | None, /) -> None: ...

    def send(self, data: bytes | memoryview, /) -> int:
        self.taken.append(len(data))
        return len(data)

    def recv(self, buflen: int, /) -> bytes:
        return b""

    def close(self) -> None: ...


def test_the_first_write_is_one_tls_record_so_that_its_failure_says_all() -> None:
    wire = _Counting()
    link = hotpath._Link(wire, wire, SYSTEM)

    link.send(bytes(100_000), SYSTEM.monotonic() + 5)

    assert wire.taken == [16_384, 100_000 - 16_384]


class _Coy(socket.socket):
    """Says that it is full as gevent's TLS sockets do: it has sent nothing."""

    refusals = 0

    def send(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # all that is needed
        try:
            return super().send(data)
        except BlockingIOError:
            self.refusals += 1
            assert self.refusals < 1000, "asked again and again, and nobody else runs meanwhile"
            return 0


def test_a_wire_that_is_full_is_waited_for_until_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    wire = _Coy(fileno=ours.detach())
    clock = Ahead()
    link = hotpath._Link(wire, wire, clock)
    clock.ahead_s = 9.9
    with theirs, pytest.raises(TimeoutError):
        link.send(bytes(LARGE), time.monotonic() + 10.0)
    link.close()

    assert wire.refusals


def in_a_worker(program: str) -> str:
    """Run it as a worker runs: gevent's patches first. Returns what it prints."""
    # A server in it is a greenlet of the same process.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=90, text=True
    )
    return done.stdout + done.stderr


LARGE_BODY = """
from relayd import lean
lean.patch()
import time
from relayd.config.model import Http
from relayd.net.hotpath import Body, HotPath
from relayd.net.http import pool
from tests.raw_server import ACCEPTED, RawServer, certificates

MORE_THAN_KERNELS_HOLD = 64 * 524288

def script(talk):
    left = MORE_THAN_KERNELS_HOLD
    while left > 0:
        left -= len(talk.sock.recv(65536))
    talk.say(ACCEPTED)
    talk.sock.recv(1)

with RawServer(script, tls=True) as server:
    hot = HotPath(pool(Http(), ca_file=certificates()[0]), server.url)
    body = Body(MORE_THAN_KERNELS_HOLD, b"", (bytes(524288) for _ in range(64)))
    print(hot.post(b"/", b"", body, deadline=time.monotonic() + 60.0).status)
    hot.close()
"""


def test_in_a_worker_a_large_body_lets_others_run() -> None:
    # The server is a greenlet too: it cannot read while we do not wait.
    assert in_a_worker(LARGE_BODY) == "202\n"


# --- large bodies ----------------------------------------------------------------------------


def large_body(pieces: int = 128) -> Body:
    return Body(LARGE, b"", (bytes(LARGE // pieces) for _ in range(pieces)))


@pytest.mark.parametrize("tls", [False, True])
def test_a_large_body_streams_whole(tls: bool) -> None:  # noqa: FBT001
    got: list[int] = []

    def script(talk: Conversation) -> None:
        got.append(len(talk.request()[1]))
        talk.say(ACCEPTED)
        talk.sock.recv(1)

    with RawServer(script, tls=tls) as server:
        hot = hot_for(server)
        assert response(post(hot, large_body())).status == 202
        hot.close()

    assert got == [LARGE]


@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_in_the_middle_of_a_large_body_is_heard(tls: bool) -> None:  # noqa: FBT001
    def script(talk: Conversation) -> None:
        talk.sock.recv(1)
        talk.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        with_rest = 0
        while with_rest < LARGE:  # a polite server reads on for a while
            octets = talk.sock.recv(65_536)
            if not octets:
                return
            with_rest += len(octets)

    with RawServer(script, tls=tls) as server:
        hot = hot_for(server)
        got = response(post(hot, large_body()))
        assert (got.status, got.body, got.sent_all) == (413, b"no", False)
        assert not hot._idle


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX: " + b"y" * 10_000 + b"\r\n\r\n"


class _Talkative:
    """A wire whose other end says the next of `said` before each piece that it takes.

    None: nothing now. said is no answer: that comes when all is written.
    """

    def __init__(self, *said: bytes | None, then: bytes = ACCEPTED) -> None:
        self._said = [b"", *said]
        self._then = then
        self._ready = b""
        self._waits = True
        self.taken = 0

    def fileno(self) -> int:
        return -1

    def settimeout(self, value: float | None, /) -> None:
        self._waits = value != 0.0

    def send(self, data: bytes | memoryview, /) -> int:
        self.taken += len(data)
        if self._said:
            self._ready += self._said.pop(0) or b""
        return len(data)

    def recv(self, buflen: int, /) -> bytes:
        if not self._ready and not self._waits:
            raise ssl.SSLWantReadError
        if not self._ready:
            self._ready, self._then = self._then, b""
        octets, self._ready = self._ready[:buflen], self._ready[buflen:]
        return octets

    def close(self) -> None: ...


def talked(wire: _Talkative, pieces: int = 100) -> Response | Unanswered:
    hot = hot_to("http://127.0.0.1:9", Http())
    hot._open = lambda _deadline: hotpath._Link(wire, wire, SYSTEM)  # type: ignore[method-assign,assignment]  # no network
    return post(hot, Body(pieces * 10, b"", (bytes(10) for _ in range(pieces))))


@pytest.mark.parametrize(
    "said",
    [
        [CONTINUE],
        [CONTINUE + HINTS + CONTINUE],
        [CONTINUE] * 64,
        [HINTS[:9_000], None, HINTS[9_000:] + CONTINUE[:3], CONTINUE[3:]],
        [CONTINUE[at : at + 1] for at in range(len(CONTINUE))],
        [b"HTTP/1.0  102 \r\n", b"\r\n"],
        [CONTINUE[:12]],
    ],
)
def test_interim_answers_while_a_body_is_written_are_passed_over(said: list[bytes | None]) -> None:
    rest = CONTINUE[12:] if said == [CONTINUE[:12]] else b""
    wire = _Talkative(*said, then=rest + ACCEPTED)

    got = response(talked(wire))

    assert (got.status, got.sent_all) == (202, True)
    assert wire.taken > 1000, "all of the body, and the head"


TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "then", "status"),
    [
        ([CONTINUE + TOO_LARGE], b"", 413),
        ([CONTINUE, TOO_LARGE[:10]], TOO_LARGE[10:], 413),
        ([b"HTTP/1.1 101 Switching\r\n\r\n"], b"", 0),
        ([CONTINUE + b"HTTP/2 100\r\n\r\n"], b"", 0),
        ([b"HTP"], b"", 0),
        ([CONTINUE] * 65, b"", 0),
        ([CONTINUE * 65], b"", 0),
        ([b"HTTP/1.1 103 Hints\r\nX: " + b"y" * 70_000], b"", 0),
    ],
)
def test_what_is_no_interim_answer_ends_the_writing(
    said: list[bytes | None], then: bytes, status: int
) -> None:
    wire = _Talkative(*said, then=then)

    got = talked(wire)

    assert not got.sent_all
    assert wire.taken < 900, "the rest is not wanted"
    if status:
        assert response(got).status == status
    else:
        assert unanswered(got).stage == "send"


@pytest.mark.parametrize("tls", [False, True])
def test_a_large_body_is_written_whole_though_it_was_told_to_continue(tls: bool) -> None:  # noqa: FBT001
    got: list[int] = []
    begun = threading.Event()

    def script(talk: Conversation) -> None:
        while True:
            got.append(0)
            talk._more()
            talk.say(CONTINUE, HINTS)
            begun.set()
            got[-1] = len(talk.request()[1])
            talk.say(ACCEPTED)

    def pieces() -> Iterator[bytes]:
        yield bytes(LARGE // 2)
        assert begun.wait(10)
        yield bytes(LARGE // 4)
        yield bytes(LARGE // 4)

    with RawServer(script, tls=tls) as server:
        hot = hot_for(server)
        for _ in range(2):
            begun.clear()
            assert response(post(hot, Body(LARGE, b"", pieces()))).status == 202
        assert hot.opened == 1, "and the connection is as good as before"
        hot.close()

    assert got[:2] == [LARGE, LARGE]


def test_a_connection_that_breaks_in_the_middle_was_not_sent() -> None:
    def script(talk: Conversation) -> None:
        talk.sock.recv(1)
        talk.reset()

    with RawServer(script) as server:
        got = unanswered(post(hot_for(server), large_body()))

    assert (got.stage, got.sent_all) == ("send", False)


def test_a_kept_connection_that_breaks_in_the_middle_is_never_repeated() -> None:
    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(ACCEPTED)
        talk.sock.recv(1)
        talk.reset()

    with RawServer(script) as server:
        hot = hot_for(server)
        post(hot)
        got = unanswered(post(hot, large_body()))
        assert (got.stage, got.sent_all, server.connections) == ("send", False, 1)


def test_not_an_octet_more_than_promised_is_written() -> None:
    seen: list[bytes] = []

    def script(talk: Conversation) -> None:
        while octets := talk.sock.recv(65_536):
            seen.append(octets)

    with RawServer(script) as server, pytest.raises(BodyMismatch):
        post(hot_for(server), Body(3, b"", iter([b"abc", b"GET /evil HTTP/1.1\r\n\r\n"])))
    assert b"evil" not in b"".join(seen)


def test_a_server_that_stops_reading_ends_with_the_deadline() -> None:
    stop = threading.Event()

    def script(talk: Conversation) -> None:
        stop.wait(10)

    with RawServer(script) as server:
        clock = Ahead()
        hot = hot_for(server, clock=clock)
        got = unanswered(post(hot, large_body(), may_begin=clock.nearly_over))
        stop.set()

    assert (got.stage, got.sent_all) == ("send", False)


@pytest.mark.parametrize("length", [3, 5])
def test_a_body_of_another_length_than_promised_is_never_completed(length: int) -> None:
    with RawServer(accepting) as server:
        hot = hot_for(server)
        with pytest.raises(BodyMismatch):
            post(hot, Body(length, b"", iter([b"aG", b"k="])))
        assert not hot._idle, "a half-written request must never be followed by another"


def test_what_reading_the_content_raises_goes_through() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"aG"
        raise KeyError("spool")

    with RawServer(accepting) as server:
        hot = hot_for(server)
        with pytest.raises(KeyError):
            post(hot, Body(4, b"", pieces()))
        assert not hot._idle


# --- before the first octet ------------------------------------------------------------------


def test_without_leave_to_begin_not_an_octet_is_written() -> None:
    seen: list[bytes] = []

    def script(talk: Conversation) -> None:
        seen.append(talk.sock.recv(1))

    with RawServer(script) as server:
        hot = hot_for(server)
        got = unanswered(post(hot, may_begin=lambda: False))
        assert (got.stage, got.sent_all) == ("time", False)
        assert len(hot._idle) == 1, "the connection is as good as new"
        hot.close()

    assert b"".join(seen) == b""


def test_a_deadline_that_has_passed_connects_nowhere() -> None:
    with RawServer(accepting) as server:
        got = unanswered(post(hot_for(server), within_s=-1.0))

        assert (got.stage, server.connections) == ("time", 0)


def test_nobody_listening() -> None:
    with RawServer(accepting) as server:
        hot = hot_for(server)
    got = unanswered(post(hot))

    assert (got.stage, got.sent_all) == ("connect", False)
    assert "refused" in got.text


def test_a_certificate_of_a_stranger_is_refused_with_words() -> None:
    with RawServer(accepting, tls=True) as server:
        hot = HotPath(pool(Http()), server.url)
        got = unanswered(post(hot))

    assert (got.stage, got.sent_all) == ("tls", False)
    assert "certificate" in got.text


def test_a_certificate_for_another_name_is_refused() -> None:
    with RawServer(accepting, tls=True) as server:
        here = SocketAddress(socket.AF_INET, ("127.0.0.1", server.port))
        dialer = Dialer(Resolver(lookup=lambda _host, _port: [here]))
        manager = pool(Http(), ca_file=certificates()[0], dialer=dialer)
        got = unanswered(post(HotPath(manager, "https://graph.example.com/")))

    assert (got.stage, got.sent_all) == ("tls", False)


def test_plain_text_where_tls_was_expected() -> None:
    def script(talk: Conversation) -> None:
        talk.sock.recv(1)
        talk.say(b"HTTP/1.1 400 Bad\r\n\r\n")

    with RawServer(script) as server:
        got = unanswered(post(hot_to(server.url.replace("http:", "https:"), Http())))

    assert (got.stage, got.sent_all) == ("tls", False)


DRIPS = """
from relayd import lean
lean.patch()
import sys
import threading
import time
from relayd.config.model import Http
from relayd.net.hotpath import Body, HotPath
from relayd.net.http import pool
from tests.raw_server import RawServer

closed = threading.Event()

def script(talk):
    talk.sock.recv(10)
    try:
        talk.say(BEGIN)
        for _ in range(500):
            talk.say(b"x")
            time.sleep(0.02)
    except OSError:
        closed.set()

with RawServer(script) as server:
    hot = HotPath(pool(SETTINGS(server)), URL(server), connect_timeout_s=0.25)
    got = hot.post(b"/", b"", Body(2, b"hi"), deadline=time.monotonic() + 60.0)
    print(got.stage, got.sent_all, got.text, closed.wait(20))
"""
TLS_DRIPS = """
BEGIN = b"\\x16\\x03\\x03\\x3f\\x00\\x02"
SETTINGS = lambda server: Http()
URL = lambda server: server.url.replace("http:", "https:")
"""
PROXY_DRIPS = """
BEGIN = b"HTTP/1.1 200 OK\\r\\nX: "
SETTINGS = lambda server: Http(proxy=server.url)
URL = lambda server: "https://localhost:1"
"""


@pytest.mark.parametrize(("who", "stage"), [(TLS_DRIPS, "tls"), (PROXY_DRIPS, "proxy")])
def test_a_connection_that_never_gets_open_octet_by_octet_is_given_up(who: str, stage: str) -> None:
    assert in_a_worker(who + DRIPS) == f"{stage} False not open within 0.5 s True\n"


# --- through a proxy -------------------------------------------------------------------------


def tunnel(
    inner: Callable[[Conversation], None], seen: list[bytes]
) -> Callable[[Conversation], None]:
    def script(talk: Conversation) -> None:
        seen.append(talk.request()[0])
        talk.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inner(talk)

    return script


def test_a_proxy_is_asked_for_a_tunnel_with_its_login() -> None:
    seen: list[bytes] = []

    def relay(talk: Conversation) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates()[1])
        with context.wrap_socket(talk.sock, server_side=True) as sock:
            accepting(Conversation(sock, 0))

    with RawServer(tunnel(relay, seen)) as proxy:
        settings = Http(proxy=f"http://us%65r:pass@127.0.0.1:{proxy.port}")
        hot = hot_to("https://localhost:4433", settings)
        assert response(post(hot)).status == 202
        assert response(post(hot)).status == 202
        hot.close()

    assert len(seen) == 1
    lines = seen[0].split(b"\r\n")
    assert lines[0] in (b"CONNECT localhost:4433 HTTP/1.0", b"CONNECT localhost:4433 HTTP/1.1")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in lines


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 407 Login\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n", b"garbage\r\n\r\n", b""]
)
def test_a_proxy_that_refuses_is_told_as_the_proxy(answer: bytes) -> None:
    with RawServer(once(answer)) as proxy:
        settings = Http(proxy=f"http://127.0.0.1:{proxy.port}")
        got = unanswered(post(hot_to("https://localhost:4433", settings)))

    assert (got.stage, got.sent_all) == ("proxy", False)


def test_a_proxy_carries_https_only() -> None:
    with pytest.raises(ValueError, match="https"):
        HotPath(pool(Http(proxy="http://127.0.0.1:1")), "http://localhost/")


# --- the rest --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/a b", b"/a\r\nX: y", b"/a\n"])
def test_a_path_cannot_carry_headers(path: bytes) -> None:
    hot = HotPath(pool(Http(), ca_file=certificates()[0]), "https://localhost/")

    with pytest.raises(ValueError, match="path"):
        hot.post(path, HEADERS, BODY, deadline=time.monotonic() + 1)


@pytest.mark.parametrize("url", ["ftp://x/", "https:///x", "graph"])
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="HTTP"):
        HotPath(pool(Http(), ca_file=certificates()[0]), url)


def test_no_more_idle_connections_are_kept_than_wanted() -> None:
    with RawServer(accepting) as server:
        hot = hot_for(server, max_idle=2)
        links = [hot._open(time.monotonic() + 5) for _ in range(4)]
        for link in links:
            assert not isinstance(link, OSError)
            hot._keep(link, 100.0)

        assert len(hot._idle) == 2
        hot.close()
        assert not hot._idle


def test_connections_idle_for_long_are_closed_as_others_are_kept() -> None:
    with RawServer(accepting) as server:
        hot = hot_for(server)
        first, second = (hot._open(time.monotonic() + 5) for _ in range(2))
        assert not isinstance(first, OSError)
        assert not isinstance(second, OSError)
        hot._keep(first, 100.0)
        hot._keep(second, 200.0)

        assert hot._idle == [second]
        assert hot._kept(1000.0) is None
        assert not hot._idle


@given(st.binary(max_size=200))
def test_any_octets_are_a_head_or_garbage(octets: bytes) -> None:
    for text in (octets, b"HTTP/1.1 202 " + octets + b"\r\n\r\n"):
        try:
            head = parse_head(text)
        except _NoHead as failure:
            assert failure.stage == "garbled"  # noqa: PT017  both ways are right
        else:
            assert 0 <= head.status <= 999


NAMES = st.sampled_from(
    ["Date", "X", "request-id", "Content-Length", "transfer-encoding", " a", ""]
)
VALUES = st.text(alphabet="ab :,\t\x80\xff", max_size=8)
LINE_ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r\n ", "\r\n\t"])


@given(st.lists(st.tuples(NAMES, VALUES, LINE_ENDS), max_size=6))
def test_fields_read_at_once_are_those_read_line_by_line(
    fields: list[tuple[str, str, str]],
) -> None:
    lines = "".join(f"{name}:{value}{end}" for name, value, end in fields)
    lines += "" if lines.endswith("\n") else "\r\n"  # a head ends with an empty line
    text = f"HTTP/1.1 202 Accepted\r\n{lines}\r\n"

    assert hotpath._fields(text) == hotpath._line_by_line(text)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.data())
def test_chunks_of_any_octets_come_out_whole(chunks: list[bytes], data: st.DataObject) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
    stream = b"HTTP/1.1 400 A\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    cut = data.draw(st.integers(1, 40))
    pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    read = functools.partial(_read_from, pieces)

    assert read() == (400, b"".join(chunks), True)


def _read_from(pieces: list[bytes]) -> tuple[int, bytes, bool]:
    """Read an answer from a wire that gives these pieces."""

    class Wire:
        def fileno(self) -> int:
            return -1

        def settimeout(self, value: float | None, /) -> None: ...

        def send(self, data: object, /) -> int:
            return 0

        def recv(self, buflen: int, /) -> bytes:
            return pieces.pop(0) if pieces else b""

        def close(self) -> None: ...

    wire = Wire()
    link = hotpath._Link(wire, wire, SYSTEM)
    source = hotpath._Source(link, 1e9)
    head = parse_head(source.head())
    body, is_complete = hotpath._read_body(source, head)
    return head.status, body, is_complete
