"""The server answers many at once, lets no stranger in, and survives whatever it is sent."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from relayd.cache.frames import (
    Answer,
    Call,
    Decoder,
    Frame,
    Garbage,
    Push,
    Refusal,
    encode,
)
from relayd.cache.server import MAX_CONNECTIONS, Connection, Handler, Request, Server
from tests.cache_loop import Turning


def echo(request: Request) -> None:
    request.answer(request.payload)


def fail(request: Request) -> None:
    raise ZeroDivisionError


def choke(request: Request) -> None:
    raise Garbage("not what I wanted")


HANDLERS: Mapping[str, Handler] = {"echo": echo, "fail": fail, "choke": choke}


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        yield sock


def hear(sock: socket.socket, count: int) -> list[Frame]:
    decoder, heard = Decoder(), list[Frame]()
    while len(heard) < count:
        data = sock.recv(65536)
        assert data, "the server closed the connection"
        heard += decoder.feed(data)
    return heard


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cache.sock")


@pytest.fixture
def turning(path: str) -> Iterator[Turning]:
    with Turning(Server(path, HANDLERS)) as loop:
        yield loop


def test_calls_are_answered_under_their_number(turning: Turning, path: str) -> None:
    with connected(path) as sock:
        sock.sendall(encode(Call(7, "echo", {"a": 1})) + encode(Call(9, "echo", {"b": 2})))
        assert hear(sock, 2) == [Answer(7, {"a": 1}), Answer(9, {"b": 2})]


def test_a_late_answer_does_not_hold_up_the_next(path: str) -> None:
    kept: list[Request] = []
    with (
        Turning(Server(path, {"later": kept.append, "echo": echo})) as loop,
        connected(path) as sock,
    ):
        sock.sendall(encode(Call(1, "later", {})) + encode(Call(2, "echo", {})))
        assert hear(sock, 1) == [Answer(2, {})]
        loop.do(lambda: kept[0].answer({"late": True}))
        assert hear(sock, 1) == [Answer(1, {"late": True})]


def test_the_socket_is_ours_alone(turning: Turning, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_another_user_is_not_let_in(path: str) -> None:
    nobody = frozenset({os.geteuid() + 1})
    with Turning(Server(path, HANDLERS, uids=nobody)), connected(path) as sock:
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "octets",
    [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\0\0\0\2[]", encode(Answer(1, {}))],
)
def test_garbage_costs_its_sender_the_connection_and_nobody_else(
    turning: Turning, path: str, octets: bytes
) -> None:
    with connected(path) as good, connected(path) as bad:
        bad.sendall(octets)
        assert bad.recv(1) == b""
        good.sendall(encode(Call(1, "echo", {})))
        assert hear(good, 1) == [Answer(1, {})]


def test_an_unknown_method_is_refused(turning: Turning, path: str) -> None:
    with connected(path) as sock:
        sock.sendall(encode(Call(1, "dance", {})))
        assert hear(sock, 1) == [Refusal(1, "unknown-method", "dance", {})]


def test_a_handler_that_fails_refuses_and_the_server_goes_on(turning: Turning, path: str) -> None:
    with connected(path) as sock:
        sock.sendall(b"".join(encode(Call(n, m, {})) for n, m in enumerate(("fail", "choke"), 1)))
        first, second = hear(sock, 2)
        assert isinstance(first, Refusal)
        assert first.cause == "internal"
        assert second == Refusal(2, "malformed", "not what I wanted", {})
        sock.sendall(encode(Call(3, "echo", {})))
        assert hear(sock, 1) == [Answer(3, {})]


def test_a_call_that_wants_no_answer_gets_none(turning: Turning, path: str) -> None:
    with connected(path) as sock:
        for method in ("echo", "choke", "dance"):
            sock.sendall(encode(Call(0, method, {})))
        sock.sendall(encode(Call(1, "echo", {})))
        assert hear(sock, 1) == [Answer(1, {})]


def test_posted_work_that_fails_does_not_stop_the_loop(turning: Turning, path: str) -> None:
    turning.server.post(fail_here)
    with connected(path) as sock:
        sock.sendall(encode(Call(1, "echo", {})))
        assert hear(sock, 1) == [Answer(1, {})]


def fail_here() -> None:
    raise ZeroDivisionError


def test_a_client_that_does_not_read_is_dropped_and_blocks_nobody(path: str) -> None:
    here: list[Connection] = []
    gone: list[int] = []
    server = Server(
        path,
        {"hello": lambda request: here.append(request.connection), "echo": echo},
        on_close=lambda connection: gone.append(connection.serial),
    )
    with Turning(server) as loop, connected(path) as deaf, connected(path) as good:
        deaf.sendall(encode(Call(0, "hello", {})))
        good.sendall(encode(Call(1, "echo", {})))
        hear(good, 1)

        def shout() -> None:
            for _ in range(100):
                here[0].push("news", {"text": "a" * 100_000})

        loop.do(shout)
        loop.do(lambda: None)
        assert gone == [here[0].serial]
        good.sendall(encode(Call(2, "echo", {})))
        assert hear(good, 1) == [Answer(2, {})]


def test_what_does_not_fit_at_once_is_sent_when_there_is_room(path: str) -> None:
    here: list[Connection] = []
    server = Server(path, {"hello": lambda request: here.append(request.connection)})
    with Turning(server) as loop, connected(path) as sock:
        sock.sendall(encode(Call(0, "hello", {})))
        while not here:
            loop.do(lambda: None)
        count = 5

        def shout() -> None:
            for _ in range(count):
                here[0].push("news", {"t": "a" * 150_000})

        loop.do(shout)
        assert len(hear(sock, count)) == count


def test_the_end_of_a_connection_is_told_once(path: str) -> None:
    gone: list[Connection] = []
    with Turning(Server(path, HANDLERS, on_close=gone.append)) as loop:
        with connected(path) as sock:
            sock.sendall(encode(Call(1, "echo", {})))
            hear(sock, 1)
        while not gone:
            loop.do(lambda: None)
    assert [one.pid for one in gone] == [os.getpid()]


def test_connections_beyond_the_bound_are_closed(path: str) -> None:
    server = Server(path, HANDLERS)
    with Turning(server) as loop:
        socks = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS + 1)]
        try:
            for sock in socks:
                sock.settimeout(10)
                sock.connect(path)
            assert socks[-1].recv(1) == b""
            loop.do(lambda: None)
            assert len(server) == MAX_CONNECTIONS
        finally:
            for sock in socks:
                sock.close()


def test_a_dead_daemons_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Turning(Server(path, HANDLERS)), connected(path) as sock:
        sock.sendall(encode(Call(1, "echo", {})))
        assert hear(sock, 1) == [Answer(1, {})]


def test_a_file_that_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(FileExistsError):
        Server(path, HANDLERS)
    assert Path(path).read_text() == "precious"


def test_closing_takes_the_path_away_but_not_a_successors(path: str) -> None:
    first = Server(path, HANDLERS)
    second = Server(path, HANDLERS)
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_a_path_that_cannot_be_bound_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        Server(str(tmp_path / ("x" * 120)), HANDLERS)


def test_a_push_reaches_the_client(path: str) -> None:
    def poke(request: Request) -> None:
        request.connection.push("recall", {"a": 1})

    with Turning(Server(path, {"poke": poke})), connected(path) as sock:
        sock.sendall(encode(Call(0, "poke", {})))
        assert hear(sock, 1) == [Push("recall", {"a": 1})]
