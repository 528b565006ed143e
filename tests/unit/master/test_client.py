"""Asking control.sock: replies come back, and every way of silence is said in words."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Decoder, done, encode

PATIENCE_S = 20.0


class Server:
    """Answers one connection with fixed octets; remembers the request."""

    def __init__(self, path: str, answer: bytes) -> None:
        self.path = path
        self.request: dict[str, object] = {}
        self._answer = answer
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(path)
        self._sock.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._sock.accept()
        with sock:
            self.request = dict(Decoder().feed(sock.recv(65536))[0])
            sock.sendall(self._answer)

    def close(self) -> None:
        self._thread.join()
        self._sock.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    found: list[Server] = []
    yield found
    for server in found:
        server.close()


def test_a_request_bears_its_version_and_the_reply_comes_back(
    path: str, servers: list[Server]
) -> None:
    servers.append(Server(path, encode(done({"a": 1}))))
    reply = client.ask(path, {"command": "status"}, timeout_s=PATIENCE_S)
    assert reply["result"] == {"a": 1}
    assert servers[0].request == {"v": 1, "command": "status"}


def test_several_replies_come_one_by_one_and_the_last_ends_it(
    path: str, servers: list[Server]
) -> None:
    frames = [done({"n": 1}, more=True), done({"n": 2}, more=True), done({"n": 3})]
    servers.append(Server(path, b"".join(encode(each) for each in frames)))
    replies = client.stream(path, {"command": "queue.list"}, timeout_s=PATIENCE_S)
    assert [reply["result"] for reply in replies] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_nobody_there_is_not_running(path: str) -> None:
    with pytest.raises(NotRunning, match="No such file") as caught:
        client.ask(path, {}, timeout_s=PATIENCE_S)
    assert caught.value.permitted


def test_a_dead_socket_is_not_running(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(NotRunning, match="refused"):
        client.ask(path, {}, timeout_s=PATIENCE_S)


def test_a_close_without_a_word_means_not_allowed(path: str, servers: list[Server]) -> None:
    servers.append(Server(path, b""))
    with pytest.raises(NotRunning) as caught:
        client.ask(path, {}, timeout_s=PATIENCE_S)
    assert not caught.value.permitted


def test_a_close_before_the_request_was_read_means_the_same(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def turn_away() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(1, socket.MSG_PEEK)  # there, and not taken: the close is a reset

        thread = threading.Thread(target=turn_away)
        thread.start()
        with pytest.raises(NotRunning) as error:
            client.ask(path, {"command": "status"}, timeout_s=PATIENCE_S)
        thread.join()
    assert not error.value.permitted


def test_garbage_is_said_to_be_garbage(path: str, servers: list[Server]) -> None:
    servers.append(Server(path, b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(NotRunning, match="makes no sense"):
        client.ask(path, {}, timeout_s=PATIENCE_S)


def test_silence_has_an_end(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        with pytest.raises(NotRunning, match=r"no answer within 0\.05 s"):
            client.ask(path, {}, timeout_s=0.05)


@pytest.mark.parametrize(("is_each", "left_s"), [(True, 5.0), (False, 1.0)])
def test_a_long_answer_may_have_time_for_each_reply(
    monkeypatch: pytest.MonkeyPatch, *, is_each: bool, left_s: float
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(client, "SYSTEM", clock)
    deadline = client._Deadline(5.0, is_each=is_each)
    clock.advance(4)
    deadline.came()
    assert deadline.left_s() == left_s
    clock.advance(6)
    with pytest.raises(TimeoutError):
        deadline.left_s()


def test_each_reply_is_noted_while_more_follow(
    path: str, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[None] = []
    monkeypatch.setattr(client._Deadline, "came", lambda _: came.append(None))
    servers.append(Server(path, encode(done(more=True)) * 2 + encode(done())))
    assert len(list(client.stream(path, {}, timeout_s=PATIENCE_S, is_each=True))) == 3
    assert len(came) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect anywhere")
def test_a_socket_that_is_not_for_us_says_so(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        os.chmod(path, 0)
        with pytest.raises(NotRunning) as caught:
            client.ask(path, {}, timeout_s=PATIENCE_S)
    assert not caught.value.permitted
