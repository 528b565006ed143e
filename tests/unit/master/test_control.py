"""control.sock: who may ask, one request each, and no client holds up another."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.errors import ListenError
from relayd.master import control as rooms
from relayd.master.control import MOST_CLIENTS, Client, Control, listen
from relayd.master.frames import Decoder, Json, done, encode


class House:
    """A control server whose loop is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "control.sock")
        self.clock = FakeClock()
        self.selector = selectors.DefaultSelector()
        self.asked: list[tuple[Client, dict[str, Json]]] = []
        self.control = Control(
            listen(self.path),
            self.selector,
            lambda client, request: self.asked.append((client, request)),
            clock=self.clock,
        )

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def turn(self, until: Callable[[], bool] = lambda: False) -> None:
        """Handle what is there; go on until it is true, if told what."""
        for _ in range(1000):
            found = self.selector.select(0)
            for key, events in found:
                key.data(events)
            if until() or not found:
                return

    @property
    def clients(self) -> int:
        return len(self.control.closables()) - 1


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.control.close()
    house.selector.close()


def test_a_request_is_heard_and_answered_and_the_connection_closed(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"v": 1, "command": "status"}))
        house.turn()
        client, request = house.asked[0]
        assert request == {"v": 1, "command": "status"}
        assert client.peer == rooms.Peer(os.getpid(), os.getuid())
        house.control.reply(client, done({"a": 1}))
        assert Decoder().feed(sock.recv(1000)) == [done({"a": 1})]
        assert sock.recv(1000) == b""
    assert house.clients == 0


def test_a_request_in_pieces_is_one_request(house: House) -> None:
    octets = encode({"v": 1, "command": "status"})
    with house.connect() as sock:
        for at in range(len(octets)):
            sock.sendall(octets[at : at + 1])
            house.turn()
        assert len(house.asked) == 1


def test_garbage_closes_its_sender_only(house: House) -> None:
    with house.connect() as good, house.connect() as bad:
        bad.sendall(b"\xff\xff\xff\xff garbage")
        good.sendall(encode({"command": "ping"}))
        house.turn()
        assert bad.recv(10) == b""
        assert len(house.asked) == 1
        assert house.clients == 1


def test_a_second_request_on_a_connection_is_garbage(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "ping"}))
        house.turn()
        sock.sendall(encode({"command": "ping"}))
        house.turn()
        assert house.clients == 0
        house.control.reply(house.asked[0][0], done())


def test_a_client_that_left_is_no_matter(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "ping"}))
        house.turn()
    house.turn()
    client = house.asked[0][0]
    house.control.reply(client, done())
    assert house.control.hand_over(client, lambda _fd: False)
    assert house.clients == 0


def test_a_client_that_asks_nothing_is_closed_after_a_while(house: House) -> None:
    with house.connect() as sock:
        house.turn()
        house.clock.advance(rooms.REQUEST_WITHIN_S - 1)
        house.control.expire()
        assert house.clients == 1
        house.clock.advance(1)
        house.control.expire()
        assert sock.recv(10) == b""


def test_a_client_that_waits_for_a_long_answer_is_not(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "reload"}))
        house.turn()
        house.clock.advance(10_000)
        house.control.expire()
        assert house.clients == 1


def test_a_client_that_does_not_read_is_closed_and_nobody_waits(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "queue.list"}))
        house.turn()
        house.control.reply(house.asked[0][0], done({"text": "x" * 1_000_000}))
        assert house.clients == 1
        house.clock.advance(rooms.REPLY_WITHIN_S)
        house.control.expire()
        assert house.clients == 0


def test_a_large_answer_arrives_whole(house: House) -> None:
    answer = done({"text": "x" * 1_000_000})
    with house.connect() as sock:
        sock.sendall(encode({"command": "queue.list"}))
        house.turn()
        house.control.reply(house.asked[0][0], answer)
        decoder = Decoder()
        frames: list[dict[str, Json]] = []
        while not frames:
            house.turn(until=lambda: True)
            frames = decoder.feed(sock.recv(65536))
        assert frames == [answer]


def test_an_answer_that_is_too_large_is_refused_with_words(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "queue.list"}))
        house.turn()
        house.control.reply(house.asked[0][0], done({"text": "x" * 2_000_000}))
        (frame,) = Decoder().feed(sock.recv(65536))
        assert frame["ok"] is False


def test_a_connection_can_be_handed_over(house: House) -> None:
    taken: list[int] = []

    def take(fd: int) -> bool:
        taken.append(os.dup(fd))
        return True

    with house.connect() as sock:
        sock.sendall(encode({"command": "queue.list"}))
        house.turn()
        client = house.asked[0][0]
        assert not house.control.hand_over(client, lambda _fd: False)
        assert house.clients == 1
        assert house.control.hand_over(client, take)
        assert house.clients == 0
        with socket.socket(fileno=taken[0]) as worker:
            assert worker.getblocking()
            worker.sendall(encode(done()))
        assert Decoder().feed(sock.recv(1000)) == [done()]


def test_more_clients_than_there_is_room_for_are_closed(house: House) -> None:
    socks = []
    for _ in range(MOST_CLIENTS + 3):
        socks.append(house.connect())
        house.turn()
    assert house.clients == MOST_CLIENTS
    assert socks[-1].recv(10) == b""
    for sock in socks:
        sock.close()
    house.turn()
    assert house.clients == 0


def test_closing_sends_what_was_still_on_its_way(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"command": "stop"}))
        house.turn()
        house.control.reply(house.asked[0][0], done({"last": "words"}))
        house.control.close()
        assert Decoder().feed(sock.recv(1000)) == [done({"last": "words"})]


def test_strangers_are_closed_without_a_word(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_own_uids", lambda: ())
    with house.connect() as sock:
        house.turn()
        assert sock.recv(10) == b""
    house.control._admin_gid = os.getgid()
    with house.connect() as sock:
        house.turn()
        assert house.clients == 1


def test_the_socket_is_for_owner_and_group_only(house: House) -> None:
    assert stat.S_IMODE(os.stat(house.path).st_mode) == 0o660


def test_a_living_one_is_not_pushed_aside(house: House) -> None:
    with pytest.raises(ListenError, match=f"already running: pid {os.getpid()} answers"):
        listen(house.path)


def test_a_dead_ones_socket_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    listen(path).close()


@pytest.mark.parametrize("path", ["/nonexistent/control.sock", "/" + "x" * 107])
def test_a_path_that_cannot_be_is_said_so(path: str) -> None:
    with pytest.raises(ListenError):
        listen(path)


def test_a_file_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(ListenError):
        listen(str(path))
    assert path.read_text() == "mine"


def test_without_descriptors_the_loop_does_not_spin_and_goes_on_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.connect() as sock:
        sock.sendall(encode({"v": 1, "command": "status"}))
        with monkeypatch.context() as scarce:
            scarce.setattr(house.control, "sock", Exhausted(house.control.sock))
            house.turn(until=lambda: False)
            assert house.selector.select(0) == []  # who waits does not keep the loop awake
            house.control.expire()
            assert house.selector.select(0) == []
        house.clock.advance(rooms.PAUSE_S)
        house.control.expire()
        house.turn(until=lambda: bool(house.asked))
        assert house.asked


class Exhausted:
    """A listening socket in a process that has no descriptor left."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_client_of_before_a_re_exec_is_answered(house: House) -> None:
    ours, theirs = socket.socketpair()
    client = house.control.adopt(ours)
    house.clock.advance(3600)
    house.control.expire()
    house.control.reply(client, done({"a": 1}))
    house.turn()
    assert Decoder().feed(theirs.recv(1000)) == [done({"a": 1})]
    theirs.close()
    assert house.clients == 0


def test_a_bug_is_an_answer_too(tmp_path: Path) -> None:
    class Broken(House):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.control.close()
            self.control = Control(listen(self.path), self.selector, _broken, clock=self.clock)

    house = Broken(tmp_path)
    with house.connect() as sock:
        sock.sendall(encode({"v": 1, "command": "status"}))
        with pytest.raises(ZeroDivisionError):
            house.turn()
        (reply,) = Decoder().feed(sock.recv(1000))
        assert reply["ok"] is False
        assert "a bug" in str(reply["error"])
    assert house.clients == 0
    house.control.close()
    house.selector.close()


def _broken(_client: Client, _request: dict[str, Json]) -> None:
    raise ZeroDivisionError
