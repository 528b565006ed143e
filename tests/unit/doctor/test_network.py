"""Each step below a token, taken alone: what it finds, how it fails, and that it ends."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relayd.clock import SYSTEM, Clock, FakeClock
from relayd.doctor import network
from relayd.doctor.network import (
    EXPIRED,
    Broken,
    NotTrusted,
    Place,
    Proxy,
    Refused,
    Way,
    dial_each,
    get,
    look_up,
    place_of,
    proxy_of,
)
from relayd.net.http import Resolver, SocketAddress, roots
from tests.raw_server import Conversation, RawServer, answering, certificates
from tests.way_out import expired_leaf, free_port, leading_to, showing, tunnelling

HERE = "127.0.0.1"


def way(
    proxy: Proxy | None = None,
    *,
    timeout_s: float = 10.0,
    secure: bool = False,
    clock: Clock = SYSTEM,
) -> Way:
    proxy_roots = roots(certificates()[0]) if secure else None
    return Way(
        proxy, resolver=Resolver(), timeout_s=timeout_s, proxy_roots=proxy_roots, clock=clock
    )


# ---- what is written


def test_a_place_is_shown_as_people_write_it() -> None:
    assert str(place_of("https://graph.microsoft.com/v1.0")) == "graph.microsoft.com"
    assert str(place_of("https://127.0.0.1:8443/v1.0")) == "127.0.0.1:8443"
    assert str(place_of("https://[::1]/x")) == "[::1]"


@pytest.mark.parametrize("url", ["", "http://x.example", "https://", "x"])
def test_only_https_is_a_place(url: str) -> None:
    with pytest.raises(ValueError, match="no https URL"):
        place_of(url)


def test_a_proxy_is_taken_apart_and_its_login_not_shown() -> None:
    proxy = proxy_of("http://me:s%40crt@proxy.lan:3128")
    assert proxy is not None
    assert (str(proxy.place), proxy.is_tls, proxy.login) == ("proxy.lan:3128", False, "me:s@crt")
    assert "s@crt" not in repr(proxy)
    assert proxy_of("") is None
    with pytest.raises(ValueError, match="is wanted"):
        proxy_of("proxy.lan:3128")


# ---- names and addresses


def test_a_name_nobody_knows_is_told_without_the_name_twice() -> None:
    def fail(_host: str, _port: int) -> list[SocketAddress]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Broken, match=r"^Name or service not known$"):
        look_up(Place("x.example", 443), resolver=Resolver(lookup=fail), timeout_s=10)


def test_a_name_server_that_is_silent_is_not_waited_for() -> None:
    gate = threading.Event()

    def hang(_host: str, _port: int) -> list[SocketAddress]:
        gate.wait(20)
        return []

    with pytest.raises(Broken, match="no answer from the name server"):
        look_up(Place("x.example", 443), resolver=Resolver(lookup=hang), timeout_s=0.05)
    gate.set()


def test_every_address_is_tried_and_each_gets_its_verdict() -> None:
    closed = free_port()
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
        found = dial_each(
            [
                SocketAddress(socket.AF_INET, (HERE, port)),
                SocketAddress(socket.AF_INET, ("127.0.0.2", closed)),
            ],
            timeout_s=10,
        )
    assert found.answered == (HERE,)
    assert found.silent == (("127.0.0.2", "Connection refused"),)


def test_addresses_that_never_answer_cost_one_time_out_together() -> None:
    with socket.socket() as full:  # a backlog that is full: what comes next is not answered
        full.bind((HERE, 0))
        full.listen(0)
        where = (HERE, full.getsockname()[1])
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(where)
        began = SYSTEM.monotonic()
        found = dial_each([SocketAddress(socket.AF_INET, where)] * 4, timeout_s=0.2)
        assert SYSTEM.monotonic() - began < 10
        assert found.answered == ()
        assert dict(found.silent) == {HERE: "no answer within 0.2 s"}
        for filler in fillers:
            filler.close()


# ---- TLS


def test_a_trusted_server_shows_who_issued_its_certificate() -> None:
    with RawServer(answering(), tls=True) as server:
        sock, shown = way().secure(Place(HERE, server.port), roots(certificates()[0]))
        sock.close()
    assert (shown.issuer, shown.organisation) == ("a test", "")
    assert shown.not_before < datetime.now(UTC) < shown.not_after


def test_an_untrusted_server_is_told_with_its_issuer() -> None:
    with (
        RawServer(answering(), tls=True) as server,
        pytest.raises(NotTrusted, match=r"unable to get|self-signed|self signed") as caught,
    ):
        way().secure(Place(HERE, server.port), roots())
    assert caught.value.certificate is not None
    assert caught.value.certificate.issuer == "a test"


def test_a_certificate_that_ran_out_is_told_by_its_code(tmp_path: Path) -> None:
    authority, leaf = expired_leaf(tmp_path)
    with (
        showing(RawServer(answering(), tls=True), leaf) as server,
        pytest.raises(NotTrusted) as caught,
    ):
        way().secure(Place(HERE, server.port), roots(str(authority)))
    assert caught.value.code == EXPIRED
    assert caught.value.certificate is not None
    assert caught.value.certificate.not_after.year == 2020


def test_a_server_without_tls_is_no_server() -> None:
    def shout(talk: Conversation) -> None:
        talk.say(b"HTTP/1.1 302 Found\r\n\r\n")
        talk.sock.recv(65536)

    with RawServer(shout) as server, pytest.raises(Broken, match="TLS could not be agreed on"):
        way().secure(Place(HERE, server.port), roots())


def test_a_port_where_nobody_listens_is_told() -> None:
    with pytest.raises(Broken, match="Connection refused"):
        way().connect(Place(HERE, free_port()))


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    def listen(talk: Conversation) -> None:
        while talk.sock.recv(65536):
            pass

    with RawServer(listen) as server, pytest.raises(Broken, match="TLS could not be agreed on"):
        # The clock stands: looking up and connecting take nothing away from the server's second.
        way(timeout_s=1.0, clock=FakeClock()).secure(Place(HERE, server.port), roots())


def test_when_the_time_is_over_before_a_connection_it_is_told() -> None:
    class Hasty(FakeClock):
        def monotonic(self) -> float:
            self.advance(6)
            return super().monotonic()

    with pytest.raises(Broken, match="timed out"):
        way(clock=Hasty()).connect(Place(HERE, free_port()))


# ---- the proxy


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_proxy_leads_to_tls_with_its_login(is_tls: bool) -> None:  # noqa: FBT001  the two kinds
    heads: list[bytes] = []
    with (
        RawServer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), tls=True) as server,
        RawServer(tunnelling(heads), tls=is_tls) as middle,
    ):
        proxy = Proxy(Place(HERE, middle.port), is_tls, "me:secret")
        place = Place(HERE, server.port)
        sock, shown = way(proxy, secure=is_tls).secure(place, roots(certificates()[0]))
        sock.close()
    assert shown.issuer == "a test"
    assert heads[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode())
    assert base64.b64encode(b"me:secret") in heads[0]


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 407, "it answered 407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", 403, "it answered 403 Forbidden"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 0, "no HTTP"),
        (b"", 0, "closed the connection"),
        (b"x" * 20_000, 0, "closed the connection"),
    ],
)
def test_a_proxy_that_does_not_open_the_way_is_quoted(
    answer: bytes, status: int, words: str
) -> None:
    def refuse(talk: Conversation) -> None:
        talk.request()
        talk.say(answer)

    with RawServer(refuse) as middle, pytest.raises(Refused, match=words) as caught:
        way(Proxy(Place(HERE, middle.port), False)).connect(Place("graph.example", 443))
    assert caught.value.status == status


def test_a_proxy_that_is_away_is_told() -> None:
    with pytest.raises(Broken, match="Connection refused"):
        way(Proxy(Place(HERE, free_port()), False)).connect(Place("graph.example", 443))


# ---- asking


def asked(*answers: bytes, timeout_s: float = 10.0, hold: bool = False) -> network.Fetched:
    def script(talk: Conversation) -> None:
        talk.request()
        talk.say(*answers)
        if hold:
            talk.sock.recv(1)

    with RawServer(script, tls=True) as server:
        place = Place("graph.example", server.port)
        sock, _ = Way(None, resolver=leading_to(server.port), timeout_s=10).secure(
            Place(HERE, server.port), roots(certificates()[0])
        )
        with sock:
            return get(sock, place, "/x", timeout_s=timeout_s, clock=SYSTEM)


DATED = b"HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 2026 10:00:00 GMT\r\nConnection: close\r\n"


def test_an_answer_tells_the_servers_clock() -> None:
    found = asked(DATED + b"Content-Length: 2\r\n\r\n", b"hi")
    assert (found.status, found.body) == (200, b"hi")
    assert found.date == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert abs((datetime.now(UTC) - found.at).total_seconds()) < 60


def test_chunks_are_put_together() -> None:
    chunked = DATED + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"
    assert asked(chunked).body == b"hi"


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 2\r\n\r\nhi",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_a_server_that_leaves_the_connection_open_is_not_waited_for(rest: bytes) -> None:
    assert asked(DATED + rest, hold=True).body == b"hi"


@pytest.mark.parametrize("date", [b"", b"Date: yesterday\r\n"])
def test_a_server_without_a_readable_date_has_none(date: bytes) -> None:
    assert asked(b"HTTP/1.1 200 OK\r\n" + date + b"Content-Length: 0\r\n\r\n").date is None


@pytest.mark.parametrize("octets", [b"", b"hello\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n"])
def test_what_is_no_http_is_told(octets: bytes) -> None:
    with pytest.raises(Broken, match="no HTTP"):
        asked(octets)


def test_an_answer_that_never_ends_is_left_in_time() -> None:
    with pytest.raises(Broken, match=r"no answer in time|no whole answer"):
        asked(DATED, timeout_s=0.1, hold=True)


def test_reasons_are_the_operating_systems_words() -> None:
    reasons: list[Callable[[], str]] = [
        lambda: network._reason(TimeoutError()),
        lambda: network._reason(OSError("odd")),
        lambda: network._reason(OSError(101, "Network is unreachable")),
    ]
    assert [reason() for reason in reasons] == [
        "no answer in time", "odd", "Network is unreachable",
    ]  # fmt: skip
