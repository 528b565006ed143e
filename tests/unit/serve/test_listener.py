"""A listener greets without asking anybody, keeps to the limits, and always closes the socket."""

from __future__ import annotations

import math
import os
import resource
import socket as plain
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import gevent
import pytest
from gevent import socket
from gevent import ssl as gevent_ssl
from gevent.event import Event
from structlog.testing import capture_logs

from relayd.access.plan import Planner
from relayd.config.model import Config
from relayd.config.model import Listener as ListenerSettings
from relayd.master.frames import Json
from relayd.serve import listener as room
from relayd.serve.desk import House
from relayd.serve.listener import Listener, Sessions, base36, converse, folded, manners
from relayd.smtp import replies
from relayd.spool.memory import MemoryDoor
from tests.unit.serve.test_desk import CONFIG, LAN, UPS, Gate

LOCAL = replace(UPS, networks=("127.0.0.0/8",))
HOUSE_CONFIG = replace(CONFIG, device=(LOCAL,))


class Board:
    """Counts in and out; full when told."""

    def __init__(self) -> None:
        self.takes_more = True
        self.is_full_of_all = False
        self.has_far_more = False
        self.elsewhere = 0
        self.inside: list[str] = []

    def beat(self) -> None:
        raise AssertionError

    def accept(self, *, does: bool) -> None:
        raise AssertionError

    def is_ahead(self) -> bool:
        return self.has_far_more

    def others(self) -> int:
        return self.elsewhere

    def enter(self, device: str) -> bool:
        if self.takes_more:
            self.inside.append(device)
        return self.takes_more

    def is_full(self) -> bool:
        return self.is_full_of_all

    def leave(self, device: str) -> None:
        self.inside.remove(device)

    def move(self, old: str, new: str) -> bool:
        return True


class Shop:
    """A listener on a free port and a way to call it."""

    def __init__(
        self, settings: ListenerSettings, config: Config, sock: socket.socket | None = None
    ) -> None:
        self.board = Board()
        self.sessions = Sessions("t-")
        self.door = MemoryDoor()
        self.house = House(
            config=config,
            planner=Planner(config),
            verifier=Gate(),
            door=self.door,
            pulse=self.board,
            context=lambda _: None,
        )
        if sock is None:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            sock.listen(5)
            sock.setblocking(False)
        self.port: int = sock.getsockname()[1]
        self.sock = sock
        self.listener = Listener(sock, settings, self.house, self.sessions)

    def call(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 5)


@contextmanager
def open_shop(settings: ListenerSettings = LAN, config: Config = HOUSE_CONFIG) -> Iterator[Shop]:
    shop = Shop(settings, config)
    shop.listener.start()
    try:
        yield shop
    finally:
        shop.listener.close()


def read_all(client: socket.socket) -> bytes:
    octets = b""
    while chunk := client.recv(4096):
        octets += chunk
    return octets


def test_a_session_is_greeted_counted_and_let_go() -> None:
    with open_shop() as shop, shop.call() as client:
        assert client.recv(100) == replies.banner("relay.test").octets
        assert shop.board.inside == ["ups"]
        client.sendall(b"QUIT\r\n")
        assert read_all(client) == replies.BYE.octets
        assert shop.sessions.wait_none_left(5)
        gevent.idle()
    assert shop.board.inside == []


def test_accepted_connections_send_at_once_and_notice_a_peer_without_power() -> None:
    shop = Shop(LAN, HOUSE_CONFIG)  # does not accept: we do
    with shop.call():
        socket.wait_read(shop.sock.fileno())
        accepted, _ = shop.sock.accept()

    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    accepted.close()
    shop.sock.close()


def test_a_connection_is_left_to_a_worker_that_has_far_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_LEFT_TO_OTHERS_S", 60.0)  # however slow the other is
    with open_shop() as shop:
        other = Shop(LAN, HOUSE_CONFIG, shop.sock.dup())
        other.listener.start()
        shop.board.has_far_more = True
        clients = [shop.call() for _ in range(4)]
        for client in clients:
            assert client.recv(100) == replies.banner("relay.test").octets
        assert (len(shop.board.inside), len(other.board.inside)) == (0, 4)
        for client in clients:
            client.close()
        other.listener.close()
        assert other.sessions.wait_none_left(5)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Return what grows with each call of a method of the server's."""
    calls: list[object] = []
    real = getattr(room._Server, name)

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(room._Server, name, counted)
    return calls


@pytest.mark.parametrize(("unasked_s", "times"), [(0.0, 5), (60.0, 1)])
def test_what_nobody_else_comes_for_is_taken_and_what_is_behind_it(
    monkeypatch: pytest.MonkeyPatch, unasked_s: float, times: int
) -> None:
    monkeypatch.setattr(room, "_UNASKED_S", (unasked_s, unasked_s))
    left = count_calls(monkeypatch, "_leave_to_others")
    with open_shop() as shop:
        shop.board.has_far_more = True
        for client in [shop.call() for _ in range(5)]:
            assert client.recv(100) == replies.banner("relay.test").octets
            client.close()
        assert len(left) == times
        assert shop.sessions.wait_none_left(5)


def test_once_another_has_one_more_or_one_less_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_UNASKED_S", (60.0, 60.0))
    left = count_calls(monkeypatch, "_leave_to_others")
    with open_shop() as shop:
        shop.board.has_far_more = True
        for elsewhere, times in [(3, 1), (3, 1), (4, 2), (4, 2), (3, 3)]:
            shop.board.elsewhere = elsewhere
            with shop.call() as client:
                assert client.recv(100) == replies.banner("relay.test").octets
            assert len(left) == times


def test_the_longer_nobody_comes_the_longer_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_UNASKED_S", (0.01, 0.03))
    with open_shop() as shop:
        server = shop.listener._server
        shop.board.has_far_more = True
        pauses = []
        for _ in range(4):
            with shop.call() as client:
                assert client.recv(100) == replies.banner("relay.test").octets
            pauses.append(server._unasked_s)
            server._asks_at = -math.inf
        assert pauses == [0.02, 0.03, 0.03, 0.03]
        shop.board.has_far_more = False
        assert [*server.do_read()] == []  # nobody is there: as if another had come
        assert server._unasked_s == 0.01


def test_a_busy_worker_leaves_it_as_long_as_one_at_rest() -> None:
    with open_shop() as shop:
        loop = shop.listener._server.loop
        before = loop.now()
        time.sleep(0.05)  # a callback that works: the loop's own time stands still
        assert loop.now() == before
        shop.listener._server._leave_to_others()
        assert loop.now() > before


def test_once_others_came_they_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LEFT_TO_OTHERS_S", 60.0)  # what is left is looked at by hand
    monkeypatch.setattr(room, "_UNASKED_S", (60.0, 60.0))
    left = count_calls(monkeypatch, "_leave_to_others")
    with open_shop() as shop, shop.sock.dup() as another:
        shop.board.has_far_more = True
        for number in (1, 2, 3):
            with shop.call(), gevent.Timeout(60):
                while len(left) < number:
                    gevent.idle()
                accepted, _ = another.accept()
                accepted.close()
                shop.listener._server._take_what_is_left()
        assert shop.board.inside == []


def test_a_socket_that_is_none_is_told_as_it_is() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        room._Server(sock, print, "lan", Board())


def test_a_listener_that_is_closed_while_it_leaves_a_connection_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = count_calls(monkeypatch, "_take_what_is_left")
    with open_shop() as shop, shop.sock.dup() as another:
        asked = Event()

        def is_ahead() -> bool:
            asked.set()
            return True

        monkeypatch.setattr(shop.board, "is_ahead", is_ahead)
        with shop.call():
            assert asked.wait(5)
            shop.listener.close()
            Event().wait(10 * room._LEFT_TO_OTHERS_S)
            assert looked == []
            accepted, _ = another.accept()
            accepted.close()


@pytest.mark.parametrize("is_ahead", [False, True])
def test_without_a_descriptor_left_clients_wait_and_it_is_told_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_ahead: bool
) -> None:
    tries = count_calls(monkeypatch, "_tell")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_shop() as shop, shop.call() as client, capture_logs() as logs:
        shop.board.has_far_more = is_ahead
        free = os.dup(0)
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            client.settimeout(0.3)  # some tries
            with pytest.raises(TimeoutError):
                client.recv(100)
            assert 1 <= len(tries) <= 10, "it rests longer each time"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        client.settimeout(5)
        assert client.recv(100) == replies.banner("relay.test").octets
    told = [one for one in logs if one["event"] == "listener.exhausted"]
    assert [(one["listener"], one["reason"]) for one in told] == [("lan", "Too many open files")]
    assert "LimitNOFILE" in told[0]["do"]
    assert capfd.readouterr().err == "", "no traceback of gevent's"


def test_past_the_limit_a_client_hears_why_and_is_let_go() -> None:
    with open_shop() as shop:
        shop.board.takes_more = False
        with shop.call() as client:
            assert read_all(client) == replies.TOO_MANY_FROM_YOU.octets
        assert caller(shop)["reason"] == "max_connections_per_device is reached"
        shop.board.is_full_of_all = True
        with shop.call() as client:
            assert read_all(client) == replies.TOO_MANY_CONNECTIONS.octets
        assert caller(shop)["reason"] == (
            "max_connections, or what LimitNOFILE leaves of it, is reached"
        )
    assert len(shop.sessions) == 0


def test_a_stranger_past_the_limit_is_not_told_that_it_is_he() -> None:
    with open_shop(config=replace(CONFIG, device=())) as shop:
        shop.board.takes_more = False
        with shop.call() as client:
            assert read_all(client) == replies.TOO_MANY_CONNECTIONS.octets
        assert "unknown peers" in str(caller(shop)["reason"])


def test_where_tls_comes_first_nothing_is_said_in_clear_past_the_limit() -> None:
    with open_shop(replace(LAN, tls="implicit")) as shop:
        shop.board.takes_more = False
        with shop.call() as client:
            assert read_all(client) == b""
        assert caller(shop)["code"] == 421


def caller(shop: Shop) -> dict[str, Json]:
    """Return the one row that was remembered, its refusal's members beside it."""
    ((row,),) = shop.house.callers.take()
    refusal = row.get("refusal")
    return {**row, **refusal} if isinstance(refusal, Mapping) else row


def talk(shop: Shop, *lines: str) -> None:
    with shop.call() as client:
        client.recv(100)
        for line in lines:
            client.sendall(line.encode() + b"\r\n")
            client.recv(1000)
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    assert shop.sessions.wait_none_left(5)
    gevent.idle()


def test_a_refusal_is_remembered_with_its_dialogue_and_its_rule() -> None:
    with open_shop() as shop:
        talk(shop, "EHLO ups", "MAIL FROM:<ups@nas.local>", "RCPT TO:<x@example.com>")
        row = caller(shop)
    assert (row["ip"], row["device"], row["code"]) == ("127.0.0.1", "ups", 550)
    assert "own_domains" in str(row["reason"])
    assert row["recipient"] == "x@example.com"
    assert row["listener"] == "lan"
    transcript = row["transcript"]
    assert isinstance(transcript, list)
    assert transcript[-2:] == [
        "C: RCPT TO:<x@example.com>",
        "S: 550 5.7.1 Recipient not allowed",
    ]


def test_who_was_left_out_of_an_accepted_message_is_remembered_beside_it() -> None:
    with open_shop() as shop:
        talk(
            shop, "EHLO ups", "MAIL FROM:<ups@nas.local>", "RCPT TO:<ops@contoso.com>",
            "RCPT TO:<x@example.com>", "DATA", "Subject: x\r\n\r\nbody\r\n.", "QUIT",
        )  # fmt: skip
        row = caller(shop)
    assert (row["accepted"], row["refused"], row["code"]) == (1, 1, 550)
    assert row["recipient"] == "x@example.com"
    assert "own_domains" in str(row["reason"])


@pytest.mark.parametrize(("name", "user"), [("printer", "printer"), ("made-up", "")])
def test_a_refused_login_is_remembered_of_the_user_there_is_and_of_no_made_up_name(
    name: str, user: str
) -> None:
    with open_shop() as shop:
        login = b64encode(f"\0{name}\0wrong".encode()).decode()
        talk(shop, "EHLO printer", f"AUTH PLAIN {login}", "QUIT")
        row = caller(shop)
    assert (row["ip"], row["user"], row["login"]) == ("127.0.0.1", user, name)
    assert (row["refused"], row["reason"]) == (1, "login: wrong password")


def test_a_slip_of_the_language_is_remembered_by_its_reply() -> None:
    with open_shop() as shop:
        talk(shop, "EHLO ups", "FROBNICATE now")
        row = caller(shop)
    assert (row["code"], row["reply"], row["reason"]) == (500, "Command not recognized", "")
    assert "FROBNICATE" not in str(row["transcript"])


def test_a_handshake_that_fails_is_remembered_though_nothing_was_refused() -> None:
    with open_shop() as shop:
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        shop.listener._house = replace(shop.house, context=lambda _: context)
        with shop.call() as client:
            client.recv(100)
            client.sendall(b"EHLO ups\r\n")
            client.recv(1000)
            client.sendall(b"STARTTLS\r\n")
            client.recv(1000)
            client.sendall(b"this is no hello\r\n")
            read_all(client)
        assert shop.sessions.wait_none_left(5)
        gevent.idle()
        row = caller(shop)
    assert row["code"] == 0
    assert str(row["reason"]).startswith("tls-failed: ")


def test_who_is_turned_away_for_too_many_is_remembered() -> None:
    with open_shop() as shop:
        shop.board.takes_more = False
        with shop.call() as client:
            read_all(client)
        assert "max_connections" in str(caller(shop)["reason"])


def test_a_session_that_went_well_is_no_refusal() -> None:
    with open_shop() as shop:
        talk(shop, "EHLO ups", "QUIT")
        assert list(shop.house.callers.take()) == []


def test_a_bug_costs_one_session_and_not_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with open_shop() as shop:
        monkeypatch.setattr(room, "Desk", broken)
        with shop.call() as client:
            assert read_all(client) == b""
        monkeypatch.undo()
        with shop.call() as client:
            assert client.recv(100).startswith(b"220 ")
            client.sendall(b"QUIT\r\n")
            read_all(client)


@pytest.mark.slow(5)
def test_draining_lets_idle_sessions_go_with_421() -> None:
    with open_shop() as shop, shop.call() as client:
        client.recv(100)
        shop.listener.close()
        shop.sessions.drain()
        assert read_all(client) == replies.SHUTTING_DOWN.octets
        assert shop.sessions.wait_none_left(5)


def test_an_operators_session_speaks_as_the_device() -> None:
    with open_shop() as shop:
        answer = said_by_operator(shop)

    assert answer.startswith(b"250 2.0.0 Ok: queued as ")
    assert len(shop.door.spool.messages) == 1


def said_by_operator(shop: Shop) -> bytes:
    ours, theirs = plain.socketpair()
    server = socket.socket(fileno=theirs.detach())
    client = socket.socket(fileno=ours.detach())
    serving = gevent.spawn(converse, server, shop.house, shop.sessions, LOCAL)
    for line in (b"EHLO a", b"MAIL FROM:<a@b.test>", b"RCPT TO:<ops@contoso.com>", b"DATA"):
        client.recv(4096)
        client.sendall(line + b"\r\n")
    assert client.recv(100).startswith(b"354 ")
    client.sendall(b"Subject: x\r\n\r\nbody\r\n.\r\nQUIT\r\n")
    answer = client.recv(200)
    serving.join(5)
    client.close()
    server.close()
    assert list(shop.house.callers.take()) == [], "an operator's test is no mail of the device"
    return answer


@pytest.mark.parametrize(
    ("given", "ip"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"), ("::1", "::1")],
)
def test_an_address_is_folded_to_its_plain_form(given: str, ip: str) -> None:
    assert folded(given) == ip


def test_names_of_sessions_differ_and_bear_the_workers_prefix() -> None:
    sessions = Sessions("1k-")

    assert [sessions.new_name(), sessions.new_name()] == ["1k-1", "1k-2"]
    assert base36(35 * 36 + 35) == "zz"
    assert base36(0) == "0"


def test_manners_are_the_limits_of_the_configuration() -> None:
    limits = replace(CONFIG.limits, idle_timeout=7.0, max_errors=3)

    assert manners(LAN, limits).idle_timeout_s == 7.0
    assert manners(LAN, limits).max_errors == 3
